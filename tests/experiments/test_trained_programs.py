"""What is done with a trained run (evaluate again, encode, rerank), on a small collection like ArguAna:
each query is the text of a document and has its id, and another document is relevant."""

import dataclasses
import functools
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from corpora import beir
from corpora.tables import DataError, Document, Judgement, Query, Tables
from dual_encoder import scorers, vectors
from dual_encoder.negative_filters import Mined
from dual_encoder.retriever import Retriever
from dual_encoder.trained import Trained, digest
from dual_encoder.vectors import VectorStore
from eval import measures, results, runs, trec
from experiments import baselines, encode, evaluation, rerank, run_dirs
from index import exact, lexical

FILE = Path(__file__).parents[2] / "configs" / "dual_encoder" / "beir_folder.py"
DOCUMENTS, DEPTH = 48, 7
WORDS = [f"{a}{b}{c}" for a in "bdgkpt" for b in "aeiou" for c in "lmnrs"]


def tables():
    """Document i has words of its own and some of its partner i ^ 1, and all share a few."""
    rng = np.random.default_rng(0)
    own = [" ".join(rng.choice(WORDS, 6)) for _ in range(DOCUMENTS)]
    shared = [" ".join(own[i ^ 1].split()[:3]) for i in range(DOCUMENTS)]
    documents = [Document(f"d{i}", "", f"{own[i]} {shared[i]} bal dem") for i in range(DOCUMENTS)]
    queries = [Query(document.doc_id, document.text) for document in documents]
    splits = {"train": range(24), "dev": range(24, 36), "test": range(36, 48)}
    qrels = {name: [Judgement(f"d{i}", f"d{i ^ 1}", 1) for i in rows] for name, rows in splits.items()}
    return Tables(documents, queries, qrels, {})


def config(folder):
    spec = importlib.util.spec_from_file_location("beir_folder_config", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(f"folder={folder},steps=4,batch=8").to_dict()
    config["tokenizer"]["vocab_size"] = 300
    for side in ("query", "document"):
        config["task"]["model"][side]["encoder"]["embed"] |= {"vocab_size": 300, "width": 8}
    config["schedule"] |= {"eval_every": 2, "save_every": 2}
    config["evaluation"] |= {"run_depth": DEPTH, "drop_same_id": True}
    config["evaluation"]["bm25_grid"] |= {"k1": (0.9,), "b": (0.4,), "title_weight": (1.0,)}
    return config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("trained")
    beir.write(tmp / "collection", tables())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(tmp / "cache"))
        experiment = run_dirs.start(tmp / "run", config(tmp / "collection"))
        experiment.train()
        experiment.evaluate()
    return tmp / "run"


@pytest.fixture(autouse=True)
def _cache(run_dir, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(run_dir.parent / "cache"))
    monkeypatch.setenv("RETRIEVAX_PROCESSES", "1")  # jax, which has computed by now, cannot look for others


@pytest.fixture
def trained(run_dir):
    return Trained.load(run_dir, run_dirs.load_config(run_dir), batch_size=8, devices=jax.devices()[:1])


@pytest.fixture
def dataset(run_dir):
    return encode.open_collection(run_dirs.load_config(run_dir), None)


@pytest.fixture
def program(run_dir, monkeypatch, capsys):
    def program(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, f"--workdir={run_dir}", *map(str, arguments)])
        status = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return program


def read_run(run_dir, system):
    return trec.read_run(run_dir / "runs" / f"{system}.trec")


@pytest.mark.parametrize("system", ["bm25_plain", "bm25", "dual_encoder", "hybrid"])
def test_no_system_finds_the_querys_own_document_and_the_runs_are_full(run_dir, system):
    run = read_run(run_dir, system)
    assert sorted(run) == [f"d{i}" for i in range(36, 48)]
    for query_id, hits in run.items():
        assert query_id not in hits
        assert len(hits) == DEPTH


def test_the_own_document_would_have_been_first(run_dir, dataset):
    titles, texts = dataset.titles_and_texts()
    found = lexical.BM25.build(texts, titles=titles).search([dataset.queries["d40"]], 2)
    assert next(iter(runs.from_rows(["d40"], dataset.doc_ids, *found)["d40"])) == "d40"


def test_neither_does_the_evaluation_of_a_training(run_dir, trained):
    experiment = run_dirs.reopen(run_dir)
    index = exact.build(VectorStore.open(run_dir / "index" / "vectors").vectors())
    variables = experiment.encoder.place(jax.device_get(trained.variables))
    run = experiment.search(index, variables, ["d40"], experiment.query_tokens(["d40"]), 3)
    assert len(run["d40"]) == 3
    assert "d40" not in run["d40"]


def test_nor_is_it_a_negative(run_dir):
    experiment = run_dirs.reopen(run_dir)
    queries, row_of = experiment.pairs.query_ids, experiment.dataset.doc_ids.index
    own = [row_of(query_id) for query_id in queries]
    mined = Mined(np.array([[row, 2, 3] for row in own], np.int32), 3 * len(own), {"known positives": 0})
    expected = [[other for other in (2, 3) if other != row] for row in own]
    for found, kept in zip(experiment.told(mined, 7), expected, strict=True):
        assert found[found >= 0].tolist() == kept
    counts = json.loads((run_dir / "negatives.json").read_text())["7"]
    removed = 3 * len(own) - sum(map(len, expected))
    assert counts["removed"] == {"known positives": 0, "own document": removed}


def test_a_measure_deeper_than_the_fusion_sees_every_document(run_dir, monkeypatch):
    monkeypatch.setattr(evaluation, "FUSION_DEPTH", 4)
    experiment = run_dirs.reopen(run_dir)
    fields = {"measures": ("recall@48",), "run_depth": 60, "tune_measure": "mrr@10"}
    monkeypatch.setattr(experiment, "evaluation", dataclasses.replace(experiment.evaluation, **fields))
    copy = run_dir.parent / "deep"
    shutil.copytree(run_dir, copy)
    monkeypatch.setattr(experiment, "run_dir", copy)
    experiment.evaluate()
    for hits in trec.read_run(copy / "runs" / "dual_encoder.trec").values():
        assert len(hits) == 47  # all but the query's own


def test_bm25_is_tuned_without_the_own_documents_too(run_dir, monkeypatch):
    seen = []

    def tune(analyzed, queries, settings, quality, *, k, progress):
        # The own document first, then the relevant one, which has rank 1 once the own is dropped.
        rows = [[24 + i, (24 + i) ^ 1] + [-1] * (k - 2) for i in range(len(queries))]
        seen.append((k, quality(np.full((len(queries), k), 1.0, np.float32), np.array(rows))))
        return settings[0], {settings[0]: 1.0}

    monkeypatch.setattr(lexical, "tune", tune)
    experiment = run_dirs.reopen(run_dir)
    qrels = experiment.dataset.split("dev")
    baselines.bm25(
        experiment.dataset, experiment.evaluation, qrels, [experiment.dataset.queries[q] for q in qrels]
    )
    assert seen == [(11, 1.0), (11, 1.0)]


def test_an_evaluation_that_was_stopped_goes_on_and_gives_the_same(run_dir, monkeypatch):
    before, folder = results.read(run_dir), run_dir / "index" / "vectors"
    expected = VectorStore.open(folder).vectors()
    monkeypatch.setattr(vectors, "SHARD_SIZE", 20)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "step": -1}))  # of another checkpoint
    calls, whole = [], Trained.documents

    def stopping(self, documents, report=None):
        calls.append(len(documents))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, documents, report)

    monkeypatch.setattr(Trained, "documents", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_dirs.reopen(run_dir).evaluate()
    with pytest.raises(DataError, match=r"has no index; run python -m experiments.evaluate"):
        Retriever.load(run_dir)
    found = run_dirs.reopen(run_dir).evaluate()
    assert calls == [20, 20, 20, 8]
    assert found.means == before.means
    np.testing.assert_array_equal(VectorStore.open(folder).vectors(), expected)


def test_vectors_of_another_checkpoint_are_not_searched(run_dir):
    file = run_dir / "index" / "vectors" / "manifest.json"
    text = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(text), "step": -1}))
        with pytest.raises(DataError, match=r"another checkpoint than its best one now \(step is -1 there"):
            Retriever.load(run_dir)
    finally:
        file.write_text(text)
    assert Retriever.load(run_dir).search("bal dem", k=3, system="dual_encoder")


def test_encoded_documents_and_queries_give_the_run_that_was_evaluated(run_dir, program, tmp_path):
    assert program(encode, f"--output={tmp_path / 'd'}", "--shard_size=10")[0] == 0
    assert program(encode, f"--output={tmp_path / 'q'}", "--queries=test", "--batch_size=3")[0] == 0
    documents, queries = (VectorStore.open(tmp_path / side) for side in "dq")
    found = exact.search(exact.build(documents.vectors()), queries.vectors(), DEPTH + 1)
    run = runs.from_rows(queries.ids, documents.ids, *found, drop_same_id=True)
    expected = read_run(run_dir, "dual_encoder")
    assert run.keys() == expected.keys()
    for query_id, hits in run.items():
        assert hits == pytest.approx(expected[query_id], abs=1e-5)


def test_encode_finds_what_evaluate_made(program, run_dir, monkeypatch):
    monkeypatch.setattr(Trained, "documents", None)  # called for nothing
    status, out, _ = program(encode)
    assert status == 0
    assert f"{run_dir / 'index' / 'vectors'}: 48 vectors of 48 texts, 8 wide" in out


def test_jobs_share_an_encoding_of_another_collection(program, run_dir, tmp_path):
    other = tables()
    beir.write(
        tmp_path / "other", Tables(other.documents[:30], other.queries, {"x": other.qrels["train"]}, {})
    )
    arguments = [f"--folder={tmp_path / 'other'}", "--shard_size=8", "--processes=2"]
    status, out, _ = program(encode, *arguments, "--process=1")
    assert status == 0
    assert "this job's share is written; 2 shards are not, which other jobs have" in out
    status, out, _ = program(encode, *arguments, "--process=0")
    assert status == 0
    assert f"{run_dir / 'vectors' / 'other'}: 30 vectors of 30 texts, 8 wide" in out
    there = VectorStore.open(run_dir / "vectors" / "other")
    own = VectorStore.open(run_dir / "index" / "vectors")
    np.testing.assert_allclose(there.vectors(), own.vectors()[:30], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries=nope"], "beir_folder has no split 'nope'; it has dev, test, train"),
        (["--process=2", "--processes=2"], "--process is 2; allowed: 0 to 1, with --processes=2"),
        (
            ["--queries=test", "--output={index}"],
            "holds vectors of something else (side is 'documents' there",
        ),
        (["--folder=/nowhere"], "data.folder: no folder '/nowhere'"),
        (["--workdir=/nowhere"], "no run in /nowhere"),
    ],
)
def test_encode_refuses(program, run_dir, arguments, message):
    index = run_dir / "index" / "vectors"
    status, _, err = program(encode, *(argument.format(index=index) for argument in arguments))
    assert status == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]


def test_ctrl_c_says_that_nothing_is_lost(program, tmp_path, monkeypatch):
    def stopping(self, documents, report=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trained, "documents", stopping)
    status, _, err = program(encode, f"--output={tmp_path / 'd'}")
    assert status == 130
    assert err.splitlines()[-1] == f"stopped; whole files in {tmp_path / 'd'} are kept, run again to go on"


def test_the_identity_changes_with_all_that_the_vectors_depend_on(trained):
    identity = trained.identity()
    assert identity == json.loads(json.dumps(identity))
    other = dataclasses.replace(trained.text, document_length=9)
    assert dataclasses.replace(trained, text=other).identity() != identity
    params = {"a": np.arange(4.0), "b": np.zeros(2)}
    same = {"b": np.zeros(2), "a": np.arange(4.0)}
    assert digest(params) == digest(same)
    others = [
        {"a": np.arange(4.0) + 1e-9, "b": np.zeros(2)},
        {"a": np.arange(4.0).reshape(2, 2), "b": np.zeros(2)},
        {"a": np.arange(4.0), "c": np.zeros(2)},
        {"a": np.arange(4.0, dtype=np.float32), "b": np.zeros(2)},
    ]
    assert len({digest(params), *map(digest, others)}) == 5


def test_reranking_scores_as_the_index_does_and_leaves_the_rest_in_order(run_dir, program, tmp_path):
    file = tmp_path / "out.trec"
    bm25, dense = read_run(run_dir, "bm25"), Retriever.load(run_dir)
    status, out, err = program(
        rerank, f"--run={run_dir / 'runs' / 'bm25.trec'}", "--depth=3", f"--output={file}"
    )
    assert status == 0, err
    run = trec.read_run(file)
    store = VectorStore.open(run_dir / "index" / "vectors")
    vector_of = dict(zip(store.ids, store.vectors(), strict=True))
    for query_id, hits in bm25.items():
        ranked = measures.rank(hits)
        vectors_1D, _ = dense._trained.queries([dense.dataset.queries[query_id]])
        expected = {doc_id: vector_of[doc_id] @ vectors_1D[0] for doc_id in ranked[:3]}
        assert {d: run[query_id][d] for d in ranked[:3]} == pytest.approx(expected, abs=1e-5)
        order = measures.rank(run[query_id])
        assert set(order[:3]) == set(ranked[:3])
        assert order[3:] == ranked[3:]
    before, after = (measures.evaluate(dense.dataset.split("test"), r, ["mrr@10"]) for r in (bm25, run))
    assert f"{measures.means(before)['mrr@10']:.4f}" in out
    assert f"{measures.means(after)['mrr@10']:.4f} (" in out
    assert "12 queries; in brackets the difference from bm25 and its p" in out


def test_reranking_by_the_first_stage_alone_changes_nothing(run_dir, dataset, trained):
    bm25 = read_run(run_dir, "bm25")
    found = rerank.rerank(functools.partial(scorers.scores, trained), dataset, bm25, depth=100, weight=0.0)
    assert {q: measures.rank(hits) for q, hits in found.items()} == {
        q: measures.rank(hits) for q, hits in bm25.items()
    }


def test_reranking_takes_a_documents_best_passage(dataset, trained, monkeypatch):
    short = dataclasses.replace(
        trained, text=dataclasses.replace(trained.text, document_length=6, passage_stride=4)
    )
    rows = [dataset.doc_ids.index(doc_id) for doc_id in ("d3", "d40")]
    vectors_RD, document_of_row = short.documents(dataset.documents.read(rows))
    assert np.bincount(document_of_row).min() > 1
    (vector_D,), _ = short.queries([dataset.queries["d5"]])
    best = [(vectors_RD[document_of_row == i] @ vector_D).max() for i in (0, 1)]
    monkeypatch.setattr(scorers, "_AT_ONCE", 1)  # documents are read in parts
    scorer = functools.partial(scorers.scores, short)
    scores = rerank.score(scorer, dataset, {"d5": {"d40": 0.0, "d3": 0.0}, "d6": {}})
    assert scores == {"d5": pytest.approx({"d3": best[0], "d40": best[1]}, abs=1e-5), "d6": {}}


def test_what_follows_the_scored_is_told_apart_in_float32():
    for lowest in (-1e8, -0.5, 3e7):
        scores = rerank.followed_by({"a": lowest, "b": lowest + 100}, [f"x{i}" for i in range(50)])
        assert measures.rank(scores) == ["b", "a", *(f"x{i}" for i in range(50))]
    assert rerank.followed_by({"a": 1.0}, []) == {"a": 1.0}


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ("d36 Q0 d1 1 2.0 x\nd37 Q0 zz 1 1.0 x\n", [], "1 of 2 documents are not in the collection (zz)"),
        ("nn Q0 d1 1 2.0 x\n", [], "1 of 1 queries are not in the collection (nn)"),
        ("d36 Q0 d1 1 2.0 x\n", ["--split=dev"], "has no query of the split 'dev'"),
        ("d36 Q0 d1 1 2.0 x\n", ["--split=nope"], "has no split 'nope'; it has dev, test, train"),
        ("d36 Q0 d1 1 2.0 x\n", ["--weight=1.5"], "flag --weight=1.5"),
        ("d36 Q0 d1 1 2.0 x\n", ["--weight=nan"], "--weight is nan; allowed: 0 to 1"),
        ("d36 d1\n", [], "has 2 columns"),
        (None, [], "No such file or directory"),
    ],
)
def test_rerank_refuses(program, tmp_path, rows, arguments, message):
    file = tmp_path / "first.trec"
    if rows:
        file.write_text(rows)
    status, _, err = program(rerank, f"--run={file}", *arguments)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
