"""corpora.dataset with both builders: what is prepared, and that nothing stale is served."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from corpora import dataset
from corpora.sources import beir_folder, python_functions
from corpora.tables import DataError, Document

ROOT = Path(__file__).parents[2]
CODE = '''
def first(a, b):
    """Adds two numbers together."""
    total = a + b
    return total


class Thing:
    def second(self):
        """Gives back the thing itself.

        Not this paragraph.
        """
        thing = self
        return thing
'''


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": "d é", "title": "T", "text": "one"}, {"_id": "d2", "text": ""}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "what?"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td é\t2\n")
    return folder


def test_beir_folder(beir):
    data = beir_folder.load(folder=str(beir))
    assert list(data.documents) == [Document("d é", "T", "one"), Document("d2", "", "")]
    assert data.documents[-1].doc_id == "d2"
    assert data.documents[0:1] == [Document("d é", "T", "one")]
    assert data.documents.read([1, 0])[0].doc_id == "d2"
    assert data.doc_ids == ["d é", "d2"]
    assert data.queries == {"q1": "what?"}
    assert data.split("test") == {"q1": {"d é": 2}}
    assert data.counts["empty_documents"] == 1
    assert "2 documents; queries: test 1" in data.summary()
    with pytest.raises(DataError, match="no split 'train'; it has test"):
        data.split("train")


def test_a_split_that_could_not_be_read_back_is_refused(beir):
    (beir / "qrels" / "test.tsv").rename(beir / "qrels" / "dev.small.tsv")
    with pytest.raises(DataError, match=r"split 'dev\.small'; allowed as its name: letters, digits, _ and -"):
        beir_folder.load(folder=str(beir))


def test_python_functions(tmp_path):
    (tmp_path / "code" / "pkg").mkdir(parents=True)
    for number, name in enumerate(["mod", "b", "c", "d"]):
        text = CODE.replace("numbers", f"numbers{number}").replace("total", f"t{number}")
        text = text.replace("itself", f"itself{number}").replace("thing =", f"thing = {number} or")
        (tmp_path / "code" / "pkg" / f"{name}.py").write_text(text)
    data = python_functions.load(root=str(tmp_path / "code"))
    assert data.doc_ids == [f"pkg/{name}.py:{line}" for name in ("b", "c", "d", "mod") for line in (2, 9)]
    assert data.documents[7].title == "pkg.mod.Thing.second"
    assert data.documents[6].text == "def first(a, b):\n    t0 = a + b\n    return t0"
    assert data.queries["pkg/mod.py:9"] == "Gives back the thing itself0."
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 4, "dev": 2, "test": 2}
    for qrels in data.qrels.values():
        assert qrels == {i: {i: 1} for i in qrels}
        assert len({i.split(":")[0] for i in qrels}) == len(qrels) / 2  # both functions of a file


def test_splits_are_by_file_and_never_empty():
    split = python_functions.split_files(f"f{i}.py" for i in range(50))
    assert sorted(split.values()) == ["dev"] * 5 + ["test"] * 5 + ["train"] * 40
    assert python_functions.split_files(reversed(list(split))) == split
    assert set(python_functions.split_files("abc").values()) == {"train", "dev", "test"}
    with pytest.raises(DataError, match=r"in 2 file\(s\); at least 3"):
        python_functions.split_files("ab")


def test_prepared_once_and_never_stale(beir, cache):
    first = beir_folder.load(folder=str(beir))
    again = beir_folder.load(folder=str(beir))
    assert again.folder == first.folder
    assert len(list((cache / "data").glob("*/meta.json"))) == 1
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "what else?"}\n')
    assert beir_folder.load(folder=str(beir)).queries == {"q1": "what else?"}
    assert dataset.open_prepared(first.folder).queries == {"q1": "what?"}


def test_a_preparation_that_fails_leaves_nothing_behind(beir, cache, monkeypatch):
    def fail(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(beir_folder.BeirFolder, "tables", fail)
        with pytest.raises(KeyboardInterrupt):
            beir_folder.load(folder=str(beir))
    assert list((cache / "data").iterdir()) == []
    assert list(beir_folder.load(folder=str(beir)).queries) == ["q1"]


def test_two_processes_may_prepare_the_same(beir):
    code = f"from corpora.sources import beir_folder; print(beir_folder.load(folder={str(beir)!r}).doc_ids)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == ["['d é', 'd2']\n"] * 2


def test_an_empty_folder_of_code_is_refused(tmp_path):
    (tmp_path / "code").mkdir()
    with pytest.raises(DataError, match="no documented function"):
        python_functions.load(root=str(tmp_path / "code"))
    with pytest.raises(DataError, match="no such file or folder: '/nowhere'"):
        python_functions.load(root="/nowhere")
    with pytest.raises(DataError, match="package 'surely_not_installed' is not installed"):
        python_functions.load(packages=("surely_not_installed",))


def test_a_collection_is_found_by_name(beir, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_DATA", str(beir.parent))
    assert beir_folder.find("collection") == beir
    with pytest.raises(DataError, match=r"no folder 'colection'.*RETRIEVAX_DATA=.* has collection"):
        beir_folder.find("colection")


def test_it_is_an_ordinary_tfds_builder(beir, tmp_path):
    builder = beir_folder.BeirFolder(folder=str(beir), config="queries", data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    source = builder.as_data_source(split="queries")
    assert source[0] == {"query_id": b"q1", "text": b"what?"}
    assert tfds.core.registered.imported_builder_cls("python_functions") is python_functions.PythonFunctions
    assert "tensorflow" not in sys.modules
