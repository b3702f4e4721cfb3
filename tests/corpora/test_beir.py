"""Tests of corpora.beir: every refusal by its message, and the round trip."""

import gzip
import json
import re
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import beir
from corpora.tables import DataError, Document, Judgement, Query, Tables

HEADER = "query-id\tcorpus-id\tscore\n"
FILES = {
    "corpus.jsonl": '{"_id": "d1", "title": "A", "text": "first"}\n{"_id": "d2", "text": "second"}\n',
    "queries.jsonl": '{"_id": "q1", "text": "one"}\n{"_id": "q 2", "text": "two"}\n',
    "qrels/test.tsv": HEADER + "q1\td1\t1\nq 2\td2\t2\n",
}


@pytest.fixture
def folder(tmp_path):
    """Returns a function that writes the tiny collection, with files replaced (None: left out)."""

    def make(changes=None):
        for name, content in {**FILES, **(changes or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            if content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return make


def refused(folder, *parts, **options):
    """Asserts that reading fails with one line that holds all `parts`."""
    with pytest.raises(DataError) as caught:
        beir.read(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_reads_a_tiny_collection(folder):
    tables = beir.read(folder())
    assert tables.documents == [Document("d1", "A", "first"), Document("d2", "", "second")]
    assert tables.queries == [Query("q1", "one"), Query("q 2", "two")]
    assert tables.qrels == {"test": [Judgement("q1", "d1", 1), Judgement("q 2", "d2", 2)]}
    assert tables.counts == {"empty_documents": 0, "duplicate_judgements": 0, "skipped_judgements": 0}


@pytest.mark.parametrize("name", FILES)
def test_byte_order_mark_crlf_and_empty_lines_at_the_end_change_nothing(folder, name):
    plain = beir.read(folder())
    changed = "\ufeff" + FILES[name].replace("\n", "\r\n") + "\r\n \n\n"
    assert beir.read(folder({name: changed})) == plain


def test_last_line_needs_no_line_feed(folder):
    plain = beir.read(folder())
    assert beir.read(folder({name: text.rstrip("\n") for name, text in FILES.items()})) == plain


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_reads_compressed_files(folder, name):
    plain = beir.read(folder())
    (folder() / name).unlink()
    changes = {name: None, f"{name}.gz": gzip.compress(FILES[name].encode())}
    assert beir.read(folder(changes)) == plain


def test_files_are_those_that_are_read(folder):
    path = folder({"qrels/dev.tsv": FILES["qrels/test.tsv"], "qrels/._dev.tsv": "junk", "notes.txt": "x"})
    names = [file.relative_to(path).as_posix() for file in beir.files(path)]
    assert names == ["corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv"]
    only_dev = beir.files(path, splits=["dev"])
    assert [file.name for file in only_dev] == ["corpus.jsonl", "queries.jsonl", "dev.tsv"]
    assert list(beir.read(path, splits=["dev"]).qrels) == ["dev"]


def test_line_separators_other_than_line_feed_stay_in_the_text(folder):
    text = "a\u2028b\u2029c\x85d"
    path = folder({"corpus.jsonl": FILES["corpus.jsonl"].replace("second", text)})
    assert beir.read(path).documents[1].text == text


def test_empty_documents_are_kept_and_counted(folder):
    rows = '{"_id": "d1", "title": null, "text": ""}\n{"_id": "d2", "title": "T", "text": ""}\n'
    tables = beir.read(folder({"corpus.jsonl": rows}))
    assert tables.documents == [Document("d1", "", ""), Document("d2", "T", "")]
    assert tables.counts["empty_documents"] == 1


# What each bad second line of corpus.jsonl is refused with.
BAD_DOCUMENTS = {
    '{"_id": "d2", "text": ': ["malformed JSON", "column 23"],
    "{'_id': 'd2'}": ["malformed JSON"],
    "[" * 100_000: ["malformed JSON"],
    '{"_id": "d2", "text": ' + "1" * 5_000 + "}": ["malformed JSON"],
    '["d2", "text"]': ["must be a JSON object, not list", "d2"],
    "null": ["must be a JSON object, not NoneType"],
    '{"id": "d2", "text": "x"}': ["field '_id' is missing", "'id', 'text'"],
    '{"_id": "", "text": "x"}': ["field '_id' is empty"],
    '{"_id": " ", "text": "x"}': ["field '_id' is empty"],
    '{"_id": 2, "text": "x"}': ["field '_id' must be a string, not int 2"],
    '{"_id": null, "text": "x"}': ["field '_id' must be a string, not NoneType"],
    '{"_id": "d\\t2", "text": "x"}': ["field '_id' must hold no tab", r"'d\t2'"],
    '{"_id": "d\\n2", "text": "x"}': ["field '_id' must hold no tab and no line end", r"'d\n2'"],
    '{"_id": "d\\r2", "text": "x"}': ["field '_id' must hold no tab and no line end"],
    '{"_id": "d1", "text": "x"}': ["field '_id': duplicate id 'd1'", "corpus.jsonl:1"],
    '{"_id": "d2", "title": "x"}': ["field 'text' is missing", "'_id', 'title'"],
    '{"_id": "d2", "text": null}': ["field 'text' must be a string, not NoneType"],
    '{"_id": "d2", "text": ["x"]}': ["field 'text' must be a string, not list"],
    '{"_id": "d2", "title": 7, "text": "x"}': ["field 'title' must be a string, not int 7"],
    '{"_id": "d2", "text": "\\ud800"}': ["field 'text' has half a surrogate pair: \\ud800"],
    "": ["empty line"],
}


@pytest.mark.parametrize("line", BAD_DOCUMENTS, ids=lambda line: line[:40])
def test_bad_document_names_file_line_and_field(folder, line):
    first = FILES["corpus.jsonl"].splitlines()[0]
    path = folder({"corpus.jsonl": f'{first}\n{line}\n{{"_id": "d9", "text": "x"}}\n'})
    refused(path, f"{path / 'corpus.jsonl'}:2: ", *BAD_DOCUMENTS[line])


def test_bad_query_names_file_line_and_field(folder):
    first = FILES["queries.jsonl"].splitlines()[0]
    for line, part in {
        '{"_id": "q2", "text": " "}': "field 'text' of query 'q2' is empty",
        '{"_id": "q2"}': "field 'text' is missing",
        '{"_id": "q1", "text": "x"}': "field '_id': duplicate id 'q1', first in",
        '{"text": "x"}': "field '_id' is missing",
    }.items():
        path = folder({"queries.jsonl": f"{first}\n{line}\n"})
        refused(path, f"{path / 'queries.jsonl'}:2: ", part)


@pytest.mark.parametrize("name", FILES)
def test_not_utf8_names_file_line_and_byte(folder, name):
    first, second = FILES[name].splitlines()[:2]
    path = folder({name: f"{first}\n".encode() + f"{second} \xe9\n".encode("latin-1")})
    refused(path, f"{path / name}:2: not UTF-8: byte 0xe9 at column {len(second) + 2}")


def test_damaged_gzip_files_name_the_file(folder):
    (folder() / "corpus.jsonl").unlink()
    whole = gzip.compress(FILES["corpus.jsonl"].encode())
    flipped = whole[:-8] + bytes([whole[-8] ^ 0xFF]) + whole[-7:]  # of the checksum
    for data in (whole[:-10], flipped, b"no gzip file at all"):
        path = folder({"corpus.jsonl": None, "corpus.jsonl.gz": data})
        refused(path, str(path / "corpus.jsonl.gz"), "damaged gzip file")


def test_empty_corpus_and_no_queries_are_refused(folder):
    for content in ("", "\n\n"):
        refused(folder({"corpus.jsonl": content}), "corpus.jsonl", "the corpus is empty")
        refused(folder({"corpus.jsonl": FILES["corpus.jsonl"], "queries.jsonl": content}), "no queries")


def test_missing_files_say_what_was_looked_for(folder, tmp_path):
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "no such folder")
    refused(tmp_path, "looked for corpus.jsonl or corpus.jsonl.gz")
    folder({"queries.jsonl": None, "qrels/test.tsv": None})
    refused(tmp_path, "looked for queries.jsonl or queries.jsonl.gz")
    folder({"qrels/test.tsv": None})
    refused(tmp_path, "looked for qrels/<split>.tsv")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_plain_and_compressed_file_together_are_refused(folder, name):
    path = folder({f"{name}.gz": gzip.compress(FILES[name].encode())})
    refused(path, str(path), f"there are both {name} and {name}.gz")
    with pytest.raises(DataError, match="both"):
        beir.files(path)


def test_unknown_split_lists_those_there_are(folder):
    path = folder({"qrels/train.tsv": FILES["qrels/test.tsv"]})
    refused(path, "no split 'tests'", "there are test, train", splits=["test", "tests"])


# What each bad third line of qrels/test.tsv is refused with.
BAD_ROWS = {
    "q1 d2 1": ["3 columns", "query-id, corpus-id, score", "not 1", "q1 d2 1"],
    "q1\t0\td2\t1": ["3 columns", "not 4"],
    "q1\td2": ["3 columns", "not 2"],
    "q1\td2\t1.0": ["field 'score' must be an integer of 32 bits, not '1.0'"],
    "q1\td2\t": ["field 'score' must be an integer of 32 bits, not ''"],
    "q1\td2\t1_0": ["field 'score'"],
    "q1\td2\t\u0663": ["field 'score'"],
    "q1\td2\t2147483648": ["field 'score'", "2147483648"],
    "q1\td1\t3": ["field 'score' is 3, but 1 in", "test.tsv:2", "query-id 'q1', corpus-id 'd1'"],
    "": ["empty line"],
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_bad_judgement_names_file_line_and_field(folder, line):
    path = folder({"qrels/test.tsv": f"{HEADER}q1\td1\t1\n{line}\nq 2\td2\t2\n"})
    refused(path, f"{path / 'qrels/test.tsv'}:3: ", *BAD_ROWS[line])


def test_a_judgement_said_twice_is_kept_once(folder):
    tables = beir.read(folder({"qrels/test.tsv": HEADER + "q1\td1\t-1\nq1\td1\t-1\n"}))
    assert tables.qrels["test"] == [Judgement("q1", "d1", -1)]
    assert tables.counts["duplicate_judgements"] == 1


def test_headerless_file_is_read_only_if_its_first_line_is_a_known_pair(folder):
    plain = beir.read(folder())
    rows = FILES["qrels/test.tsv"].removeprefix(HEADER)
    assert beir.read(folder({"qrels/test.tsv": rows})) == plain
    for first in ("query_id\tdoc_id\trelevance", "q1\tmissing\t1", "q1 0 d1 1"):
        path = folder({"qrels/test.tsv": f"{first}\n{rows}"})
        where = f"{path / 'qrels/test.tsv'}:1: "
        refused(path, where, "the header must be query-id, corpus-id, score", allow_missing=True)


def test_unknown_ids_are_counted_and_the_first_five_named(folder):
    rows = "".join(f"q1\tmissing{n}\t1\n" for n in range(6))
    path = folder({"qrels/test.tsv": f"{HEADER}q9\td1\t1\n{rows}q1\td1\t1\n"})
    file = path / "qrels/test.tsv"
    refused(
        path, f"{file}: 7 of 8 rows name an unknown id", f"{file}:2: field 'query-id': no query 'q9'",
        f"{file}:6: field 'corpus-id': no document 'missing3'; ...",
    )  # fmt: skip
    with pytest.raises(DataError, match=re.escape("missing3")) as caught:
        beir.read(path)
    assert "missing4" not in str(caught.value)


def test_allow_missing_skips_unknown_ids_and_counts_them(folder):
    rows = HEADER + "q9\td1\t1\nq1\tmissing\t1\nq1\td1\t1\n"
    tables = beir.read(folder({"qrels/test.tsv": rows, "qrels/dev.tsv": rows}), allow_missing=True)
    assert tables.qrels["test"] == [Judgement("q1", "d1", 1)]
    assert tables.counts["skipped_judgements"] == 4


def test_a_split_without_judgements_is_refused(folder):
    refused(folder({"qrels/test.tsv": HEADER}), "test.tsv", "no judgements")
    path = folder({"qrels/test.tsv": HEADER + "q9\td1\t1\n"})
    refused(path, "no judgements; 1 rows with an unknown id were skipped", allow_missing=True)


# Any text that UTF-8 can hold; ids without tab and line ends, and not blank.
TEXTS = st.text(max_size=20) | st.sampled_from(["", "\u2028", 'say "hi"', "\\", "a\tb\r\nc", "\ufeffx", "\0"])
IDS = st.text(min_size=1, max_size=8).filter(lambda s: s.strip() and not re.search(r"[\t\r\n]", s))


@st.composite
def collections_of_any_text(draw):
    doc_ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    query_ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    pairs = st.tuples(st.sampled_from(query_ids), st.sampled_from(doc_ids))
    judged = st.dictionaries(pairs, st.integers(-(2**31) + 1, 2**31 - 1), min_size=1, max_size=5)
    return Tables(
        documents=[Document(ident, draw(TEXTS), draw(TEXTS)) for ident in doc_ids],
        queries=[Query(ident, draw(TEXTS.filter(str.strip))) for ident in query_ids],
        qrels={
            split: [Judgement(*pair, score) for pair, score in draw(judged).items()]
            for split in draw(st.lists(st.sampled_from(["train", "dev", "test"]), min_size=1, unique=True))
        },
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(collections_of_any_text())
def test_what_is_written_is_read_back(tables):
    with tempfile.TemporaryDirectory() as folder:
        beir.write(folder, tables)
        got = beir.read(folder)
    assert got.documents == tables.documents
    assert got.queries == tables.queries
    assert got.qrels == tables.qrels


def test_write_compresses_a_big_corpus_to_equal_bytes_and_removes_what_is_stale(tmp_path):
    qrels = {"test": [Judgement("q1", "d1", 1)]}
    small = Tables([Document("d1", "", "x")], [Query("q1", "x")], {**qrels, "dev": qrels["test"]})
    big = Tables([Document("d1", "", "word " * 600_000)], [Query("q1", "x")], qrels)
    beir.write(tmp_path, small)
    (tmp_path / "LICENSE").write_text("kept")
    beir.write(tmp_path, big)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == ["LICENSE", "corpus.jsonl.gz", "qrels/test.tsv", "queries.jsonl"]
    assert beir.read(tmp_path).documents == big.documents
    before = (tmp_path / "corpus.jsonl.gz").read_bytes()
    assert before[4:8] == bytes(4)  # gzip's time of writing
    beir.write(tmp_path, small)
    assert beir.read(tmp_path).documents == small.documents
    assert not (tmp_path / "corpus.jsonl.gz").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"documents": [Document("a\tb", "", "x")]}, "field '_id' must hold no tab"),
        ({"documents": []}, "the corpus is empty"),
        ({"documents": [Document("d1", "", "x"), Document("d1", "", "y")]}, "duplicate id 'd1'"),
        ({"documents": [Document("d1", "", "\ud800")]}, "half a surrogate pair"),
        ({"queries": [Query("q1", " ")]}, "is empty"),
        ({"qrels": {"test": [Judgement("q1", "d7", 1)]}}, "no document 'd7'"),
        ({"qrels": {"test": [Judgement("q1", "d1", 0.5)]}}, "field 'score'"),
        ({"qrels": {"a/b": [Judgement("q1", "d1", 1)]}}, "split 'a/b' cannot name a file"),
        ({"qrels": {}}, "no split"),
    ],
)
def test_write_refuses_what_read_would(tmp_path, changes, part):
    good = {
        "documents": [Document("d1", "", "x")],
        "queries": [Query("q1", "x")],
        "qrels": {"test": [Judgement("q1", "d1", 1)]},
    }
    with pytest.raises(DataError, match=re.escape(part)):
        beir.write(tmp_path / "out", Tables(**{**good, **changes}))
    assert not (tmp_path / "out").exists()


# Documents; by split, queries with judgements and judgements.
REAL = {
    "cranfield": (1_400, {"test": (225, 1_612)}),
    "fairytaleqa": (4_094, {"train": (8_548, 9_502), "dev": (1_025, 1_133), "test": (1_007, 1_104)}),
    "medquad": (15_790, {"train": (12_880, 14_723), "dev": (746, 825), "test": (711, 791)}),
    "limit-small": (46, {"test": (1_000, 2_000)}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_collections_have_the_known_sizes_and_write_back_to_the_same_lines(collections, tmp_path, name):
    documents, splits = REAL[name]
    tables = beir.read(collections / name)
    assert len(tables.documents) == documents
    assert len(tables.queries) == sum(queries for queries, _ in splits.values())
    sizes = {s: (len({j.query_id for j in rows}), len(rows)) for s, rows in tables.qrels.items()}
    assert sizes == splits
    assert tables.counts["empty_documents"] == (2 if name == "cranfield" else 0)

    beir.write(tmp_path, tables)
    for ours, theirs in zip(beir.files(tmp_path), beir.files(collections / name), strict=True):
        assert ours.name == theirs.name
        opener = gzip.open if ours.suffix == ".gz" else open
        with opener(ours, "rb") as one, opener(theirs, "rb") as other:
            assert one.read() == other.read()


def test_extra_fields_are_passed_over(folder):
    row = json.dumps({"_id": "d2", "title": "", "text": "second", "metadata": {"url": "x"}})
    path = folder({"corpus.jsonl": FILES["corpus.jsonl"].splitlines()[0] + f"\n{row}\n"})
    assert beir.read(path).documents[1] == Document("d2", "", "second")
