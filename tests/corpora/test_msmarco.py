"""corpora.sources.msmarco: the files of MS MARCO, passages and documents."""

import gzip

import pytest

from corpora.sources import msmarco
from corpora.tables import DataError, Document

FILES = {
    "collection.tsv": '0\tThe "first" passage.\n1\tanother one\n7\t\n',
    "queries.train.tsv": "10\thow far\n11\twho\n12\twhen\n",
    "queries.dev.tsv": "20\twhere\n21\twhy\n",
    "queries.eval.tsv": "30\tnot judged\n",
    "qrels.train.tsv": "10\t0\t0\t1\n11\t0\t1\t1\n12\t0\t7\t1\n12\t0\t7\t1\n",
    "qrels.dev.small.tsv": "20 0 1 1\n",
    "other.txt": "passed over",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files").mkdir()
    for name, text in FILES.items():
        (tmp_path / "files" / name).write_text(text)
    return tmp_path / "files"


def test_passages(folder):
    data = msmarco.load(folder=str(folder))
    assert list(data.documents) == [
        Document("0", "", 'The "first" passage.'),
        Document("1", "", "another one"),
        Document("7", "", ""),
    ]
    assert data.queries == {
        "10": "how far", "11": "who", "12": "when", "20": "where", "21": "why", "30": "not judged",
    }  # fmt: skip
    assert data.qrels == {
        "train": {"10": {"0": 1}, "11": {"1": 1}, "12": {"7": 1}},
        "dev_small": {"20": {"1": 1}},
    }
    assert data.counts == {"duplicate_judgements": 1, "skipped_judgements": 0}


def test_training_queries_are_held_out(folder):
    data = msmarco.load(folder=str(folder), held_out=0.3)
    assert sorted(data.qrels) == ["dev_small", "held_out", "train"]
    assert (len(data.qrels["held_out"]), len(data.qrels["train"])) == (1, 2)
    assert {**data.qrels["held_out"], **data.qrels["train"]} == msmarco.load(folder=str(folder)).qrels[
        "train"
    ]
    (folder / "qrels.train.tsv").rename(folder / "qrels.held_out.tsv")
    (folder / "qrels.train.tsv").write_text((folder / "qrels.held_out.tsv").read_text())
    with pytest.raises(DataError, match=r"there is a qrels.held_out.tsv already"):
        msmarco.load(folder=str(folder), held_out=0.3)
    (folder / "qrels.train.tsv").unlink()
    with pytest.raises(DataError, match=r"data.held_out is 0.3, but there is no qrels.train.tsv"):
        msmarco.load(folder=str(folder), held_out=0.3)


def test_documents_compressed_under_their_own_names(tmp_path):
    files = {
        "msmarco-docs.tsv.gz": "D1\thttp://a\tA title\tIts body.\nD2\thttp://b\t\tNo title\n",
        "msmarco-doctrain-queries.tsv.gz": "1\thow far\n",
        "msmarco-doctrain-qrels.tsv.gz": "1 0 D2 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    data = msmarco.load(folder=str(tmp_path))
    assert list(data.documents) == [Document("D1", "A title", "Its body."), Document("D2", "", "No title")]
    assert data.qrels == {"train": {"1": {"D2": 1}}}


def test_an_edited_file_is_prepared_anew(folder):
    before = msmarco.load(folder=str(folder))
    assert msmarco.load(folder=str(folder)).folder == before.folder
    (folder / "qrels.dev.small.tsv").write_text("21\t0\t1\t1\n")
    assert msmarco.load(folder=str(folder)).qrels["dev_small"] == {"21": {"1": 1}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "collection.tsv",
            "0\ta\n1 b\n",
            r"collection.tsv:2: a line must have 2 columns \(pid, text\).*'1 b'",
        ),
        ("collection.tsv", "0\ta\n0\tb\n", r"collection.tsv:2: field '_id': duplicate id '0'"),
        ("queries.train.tsv", "10\n", r"queries.train.tsv:1: a line must have 2 columns \(qid, text\)"),
        ("queries.train.tsv", "10\t \n", r"queries.train.tsv:1: field 'text' of query '10' is empty"),
        ("queries.train.tsv", "20\tno\n", r"queries.train.tsv: query '20' is 'no', but 'where' in .*dev.tsv"),
        ("qrels.train.tsv", "10 0 0\n", r"qrels.train.tsv:1: a line must have 4 columns \(qid, 0, pid, rel"),
        ("qrels.train.tsv", "10 0 0 x\n", r"qrels.train.tsv:1: field 'score' must be an integer"),
        (
            "qrels.train.tsv",
            "10 0 0 1\n99 0 0 1\n",
            r"1 of 2 rows name an unknown id: .*:2: .* no query '99'",
        ),
        ("qrels.dev_small.tsv", "20 0 1 1\n", r"split 'dev_small' is both qrels.dev.small.tsv and"),
        (
            "msmarco-docs.tsv",
            "D\tu\tt\tb\n",
            r"there are collection.tsv and msmarco-docs.tsv; expected one of",
        ),
    ],
)
def test_what_is_wrong_is_named(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        msmarco.load(folder=str(folder))


def test_unknown_ids_can_be_skipped(folder):
    (folder / "qrels.train.tsv").write_text("10 0 0 1\n99 0 0 1\n")
    data = msmarco.load(folder=str(folder), allow_missing=True)
    assert data.qrels["train"] == {"10": {"0": 1}}
    assert data.counts["skipped_judgements"] == 1


def test_missing_files_are_named(folder):
    with pytest.raises(DataError, match=r"data.folder: no such folder: '/nowhere'"):
        msmarco.load(folder="/nowhere")
    (folder / "qrels.train.tsv").unlink()
    (folder / "qrels.dev.small.tsv").unlink()
    with pytest.raises(DataError, match=r"no file: looked for qrels.<split>.tsv"):
        msmarco.load(folder=str(folder))
    (folder / "collection.tsv").unlink()
    with pytest.raises(DataError, match=r"no collection; expected one of collection.tsv, collection.tsv.gz"):
        msmarco.load(folder=str(folder))
