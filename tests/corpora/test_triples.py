"""corpora.sources.triples: lines of query, relevant text, other text."""

import gzip

import pytest

from corpora import batches
from corpora.sources import triples
from corpora.tables import DataError
from dual_encoder import negatives

LINES = [
    "how far\tten miles\ta red cat",
    "how far\tten miles\ta dog",
    "who\tAnn\tten miles",
    "how far\ta red cat\tAnn",
    "when\tnow\tAnn",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "triples.tsv"
    path.write_text("".join(line + "\n" for line in LINES))
    return path


def test_equal_texts_are_joined_and_negatives_kept(file):
    data = triples.load(file=str(file))
    assert [document.text for document in data.documents] == ["ten miles", "a red cat", "a dog", "Ann", "now"]
    assert data.doc_ids == ["d0", "d1", "d2", "d3", "d4"]
    assert data.queries == {"q0": "how far", "q1": "who", "q2": "when"}
    assert data.qrels == {
        "train": {
            "q0": {"d0": 1, "d1": 1, "d2": 0, "d3": 0},  # the cat is said to be relevant once
            "q1": {"d3": 1, "d0": 0},
            "q2": {"d4": 1, "d3": 0},
        }
    }
    assert data.counts == {"triples": 5, "contradictions": 1}
    pairs = batches.training_pairs(data, "train")
    assert negatives.judged(data, pairs, count=2).rows.tolist() == [[2, 3], [0, -1], [3, -1]]


def test_queries_are_held_out_with_all_their_triples(file):
    data = triples.load(file=str(file), dev=0.3, test=0.3)
    assert sorted(len(qrels) for qrels in data.qrels.values()) == [1, 1, 1]
    assert {query for qrels in data.qrels.values() for query in qrels} == {"q0", "q1", "q2"}
    whole = triples.load(file=str(file)).qrels["train"]
    for qrels in data.qrels.values():
        for query_id, judgements in qrels.items():
            assert judgements == whole[query_id]
    assert data.qrels != triples.load(file=str(file), dev=0.3, test=0.3, seed=2).qrels


def test_a_limit_and_a_compressed_file(file, tmp_path):
    assert triples.load(file=str(file), limit=2).counts["triples"] == 2
    packed = tmp_path / "triples.tsv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert triples.load(file=str(packed)).qrels == triples.load(file=str(file)).qrels


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("how far\tten miles", r"triples.tsv:6: a line must have 3 columns .*, not 2: 'how far\\tten miles'"),
        ("a\tb\tc\td", "triples.tsv:6: a line must have 3 columns"),
        ("\tb\tc", "triples.tsv:6: column 'query' is empty"),
        ("a\tb\t ", "triples.tsv:6: column 'negative' is empty"),
        ("a\tb\tb", "triples.tsv:6: columns 'positive' and 'negative' are the same: 'b'"),
    ],
)
def test_a_bad_line_is_named(file, line, message):
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        triples.load(file=str(file))


def test_bad_files_and_options_are_named(file, tmp_path):
    with pytest.raises(DataError, match=r"data.file: no such file: '/nowhere'"):
        triples.load(file="/nowhere")
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(DataError, match=r"empty.tsv: no triples"):
        triples.load(file=str(tmp_path / "empty.tsv"))
    with pytest.raises(DataError, match=r"data.dev is 1.5; allowed: 0 to below 1"):
        triples.load(file=str(file), dev=1.5)
    with pytest.raises(DataError, match=r"data.limit is -1"):
        triples.load(file=str(file), limit=-1)
