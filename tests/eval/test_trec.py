import math
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval import measures, trec

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
odd = st.sampled_from(
    ["a b", "%", "%20", "100%25", "\t", "\u00a0", "\u2028", "\ufeff", "\x1c", "\0", "#1", "é"]
)
any_ids = st.one_of(odd, ids)
float32s = st.floats(width=32, allow_nan=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("trec") / "file"


@given(run=st.dictionaries(any_ids, st.dictionaries(any_ids, float32s, min_size=1, max_size=5), max_size=4))
@example(run={"\ufeff": {"\ufeff": 0.1}})
@settings(deadline=None)
def test_runs_come_back_as_they_were(path, run):
    run = {
        query_id: {doc_id: float(np.float32(score)) for doc_id, score in documents.items()}
        for query_id, documents in run.items()
    }
    trec.write_run(path, run)
    read = trec.read_run(path)
    assert read == run
    assert list(read) == list(run)
    for query_id, documents in run.items():
        assert list(read[query_id]) == measures.rank(documents)


@given(
    st.dictionaries(any_ids, st.dictionaries(any_ids, st.integers(-5, 5), min_size=1, max_size=5), max_size=4)
)
@settings(deadline=None)
def test_qrels_come_back_as_they_were(path, qrels):
    trec.write_qrels(path, qrels)
    assert trec.read_qrels(path) == qrels


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
@settings(deadline=None)
def test_scores_come_back_as_the_same_float32(path, scores):
    documents = {f"d{i}": score for i, score in enumerate(scores)}
    trec.write_run(path, {"q": documents})
    with np.errstate(over="ignore"):
        assert trec.read_run(path)["q"] == {doc_id: np.float32(score) for doc_id, score in documents.items()}


def test_what_is_written(tmp_path):
    # Ties to the greater doc_id; 1 + 1e-9 is 1 as float32.
    run = {"q 1": {"a": 1 + 1e-9, "50% b": 1.0, "c": np.float32(0.1), "d": 2}, "empty": {}}
    trec.write_run(tmp_path / "runs" / "x.trec", run, tag="my tag")
    assert (tmp_path / "runs" / "x.trec").read_text() == (
        "q%201 Q0 d 1 2.0 my%20tag\n"
        "q%201 Q0 a 2 1.0 my%20tag\n"
        "q%201 Q0 50%25%20b 3 1.0 my%20tag\n"
        "q%201 Q0 c 4 0.1 my%20tag\n"
    )
    trec.write_qrels(tmp_path / "qrels", {"q 1": {"a": 1, "no-break\u00a0space": np.int64(-1)}})
    assert (tmp_path / "qrels").read_text() == "q%201 0 a 1\nq%201 0 no-break%C2%A0space -1\n"


def test_foreign_files(tmp_path):
    path = tmp_path / "run"
    path.write_bytes(
        b"\xef\xbb\xbf301\tQ0\tFBIS3-27619\t99\t  2.138276\tSTANDARD more junk at\r\n"
        b"\n" + "301 Q0 no-break\u00a0space 99 inf x\n".encode() + b"302 Q0 100%zz any -1e400 x"
    )
    score = float(np.float32(2.138276))
    assert trec.read_run(path) == {
        "301": {"FBIS3-27619": score, "no-break\u00a0space": math.inf},
        "302": {"100%zz": -math.inf},
    }


def test_the_official_sample(collections):
    folder = collections / "trec_eval"
    run = trec.read_run(folder / "results.trunc")
    assert {topic: len(documents) for topic, documents in run.items()} == {"301": 500, "303": 84}
    qrels = trec.read_qrels(folder / "qrels.rel_level")
    assert {grade for judged in qrels.values() for grade in judged.values()} == {-1, 0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            b"q Q0 d 1 0.5",
            ":2: the row 'q Q0 d 1 0.5' has 5 columns, not 'query_id Q0 doc_id rank score tag'",
        ),
        (b"q Q0 d 1 high x", ":2: score 'high' is not a number"),
        (b"q Q0 d 1 NaN x", ":2: score 'NaN' is not a number"),
        (b"q Q0 a 1 0.5 x", ":2: doc_id 'a' is listed twice for query_id 'q'"),
        (b"q Q0 %61 1 0.5 x", ":2: doc_id 'a' is listed twice for query_id 'q'"),
        (b"q Q0 \xff 1 0.5 x", r":2: doc_id '\\xff' is not UTF-8"),
        (b"%FF Q0 d 1 0.5 x", ":2: query_id '%FF' is not UTF-8"),
    ],
)
def test_bad_runs_are_refused_by_line(tmp_path, row, message):
    path = tmp_path / "bad.trec"
    path.write_bytes(b"q Q0 a 1 0.9 x\n" + row + b"\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path) + message)}$"):
        trec.read_run(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"query-id corpus-id score", ":2: the row 'query-id corpus-id score' has 3 columns"),
        (b"q 0 d 1 x", ":2: the row 'q 0 d 1 x' has 5 columns, not 'query_id 0 doc_id grade'"),
        (b"q 0 d 1.0", ":2: grade '1.0' is not an integer"),
        (b"q 0 d 1_0", ":2: grade '1_0' is not an integer"),
        (b"q 0 a 1", ":2: doc_id 'a' is judged twice for query_id 'q'"),
    ],
)
def test_bad_qrels_are_refused_by_line(tmp_path, row, message):
    path = tmp_path / "bad.qrels"
    path.write_bytes(b"q 0 a 1\n" + row + b"\n")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path) + message)}"):
        trec.read_qrels(path)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"": {"a": 1.0}}, "query_id is empty"),
        ({"q": {"": 1.0}}, "doc_id is empty"),
        ({"q": {"\ud800": 1.0}}, r"doc_id '\\ud800' holds a lone surrogate"),
        ({"q": {"a": math.nan}}, "of query 'q' of document 'a' is nan"),
    ],
)
def test_a_refused_run_leaves_the_old_file(tmp_path, run, message):
    path = tmp_path / "run"
    trec.write_run(path, {"q": {"a": 1.0}})
    with pytest.raises(ValueError, match=message):
        trec.write_run(path, {"first": {"a": 1.0}} | run)
    assert trec.read_run(path) == {"q": {"a": 1.0}}
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_qrels_are_written_of_integers_only(tmp_path):
    with pytest.raises(ValueError, match=r"\('q', 'a'\) is 0.5"):
        trec.write_qrels(tmp_path / "qrels", {"q": {"a": 0.5}})
    with pytest.raises(ValueError, match="doc_id is empty"):
        trec.write_qrels(tmp_path / "qrels", {"q": {"": 1}})
