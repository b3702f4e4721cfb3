"""A query generator from config to files of queries: trained, evaluated, drawn from, stopped and resumed."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from configs.generative_retrieval import query_generator as configs
from corpora import beir
from corpora.tables import DataError, Document, Judgement, Query, Tables
from dual_encoder import retriever, vectors
from eval import results
from experiments import cli, generate_queries, round_trip, run_dirs
from experiments.cli import UsageError
from experiments.query_generator import Experiment
from generative_retrieval import generated_queries, task
from generative_retrieval.query_sampling import Generator
from training import distributed, trained

NAMES = [f"{a}{b}{c}" for a in "bdgk" for b in "aei" for c in "mnr"]  # 36
SPLITS = {"train": range(24), "dev": range(24, 30), "test": range(30, 36)}


def tables():
    """A document on each name; test questions have a word that is nowhere else."""
    documents = [
        Document(f"d{i}", name, f"of the {name} there is much to say") for i, name in enumerate(NAMES)
    ]
    word = {"train": "what is", "dev": "what is", "test": "zyzzyx is"}
    split_of = {i: split for split, rows in SPLITS.items() for i in rows}
    queries = [Query(f"q{i}", f"{word[split_of[i]]} {name}") for i, name in enumerate(NAMES)]
    qrels = {split: [Judgement(f"q{i}", f"d{i}", 1) for i in rows] for split, rows in SPLITS.items()}
    return Tables(documents, queries, qrels, {})


def config(folder, **given):
    made = configs.get_config(f"folder={folder}/collection,width=64,layers=1,length=12,batch=8,steps=2")
    made.tokenizer.vocab_size = 150
    model = made.task.model
    model.encoder.embed.vocab_size = model.decoder.embed.vocab_size = 150
    model.encoder.embed.width = model.decoder.embed.width = 16
    for block in (model.encoder.block, model.decoder.block):
        block.attention.heads, block.feed_forward.width = 2, 16
    model.decoder.block.cross_attention.heads = 2
    made.text.query_length = 8
    made.evaluation.batch_size = 8
    made.mesh.axes.data = 1
    made.update_from_flattened_dict(given)
    return made.to_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("query_generator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        beir.write(folder / "collection", tables())
        yield folder


@pytest.fixture(scope="module")
def run_dir(folder):
    experiment = run_dirs.start(folder / "run", config(folder))
    experiment.train()
    experiment.evaluate()
    return folder / "run"


def program(monkeypatch, *arguments):
    monkeypatch.setattr(distributed, "start", lambda: None)  # the test has used jax already
    monkeypatch.setattr(sys, "argv", ["generate_queries", *map(str, arguments)])
    generate_queries.main()


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_results_are_those_of_the_test_pairs(run_dir):
    read = results.read(run_dir)
    found, test = read.per_query["query_generator"], read.meta["test"]
    assert list(found["words"]) == [f"q{i} d{i}" for i in SPLITS["test"]]
    loss = -sum(found["log_likelihood"].values()) / sum(found["words"].values())
    assert test["loss"] == pytest.approx(loss, rel=1e-6)
    assert test["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    experiment = run_dirs.reopen(run_dir)  # padding that fills up a batch counts nothing
    batch = experiment._batches(experiment.pairs("test"))(np.arange(6), 0)
    smallest = task.smallest_batch(experiment.task.model)
    of = experiment.training
    _, *best = trained.best(run_dir, experiment.task, smallest, of.mesh, of.layout)
    expected = jax.jit(lambda *best: experiment.task.loss(*best, batch, jax.random.key(0), train=False)[0])(
        *best
    )
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert read.means["test_queries"]["hits@1"] == 1.0  # each name is in one document
    drawn = read.per_query["generated_queries"]["hits@10"]
    assert list(drawn) == [f"d{i}" for i in SPLITS["test"]]
    assert test["documents_without_training_queries"] == 6
    assert test["without_training_queries"]["hits@10"] == pytest.approx(np.mean(list(drawn.values())))
    assert "generated_queries" in (run_dir / "tables" / "results.md").read_text()


@pytest.mark.slow
def test_nothing_of_dev_and_test_queries_is_learned(run_dir):
    experiment = run_dirs.reopen(run_dir)
    assert experiment.tokenizer.tokens("zyzzyx") != ["zyzzyx"]
    assert experiment.tokenizer.tokens("what is") == ["what", "is"]
    pairs = experiment.pairs(experiment.evaluation.train_split)
    assert set(pairs.query_ids) == {f"q{i}" for i in SPLITS["train"]}


@pytest.mark.slow
def test_files_hold_every_query_once_and_keep_those_that_lead_back(run_dir, monkeypatch, capsys):
    program(monkeypatch, f"--workdir={run_dir}", "--queries_per_document=4", "--keep_top=1")
    made, kept = lines(run_dir / "queries/generated.jsonl"), lines(run_dir / "queries/queries.jsonl")
    assert len({(row["doc_id"], row["text"]) for row in made}) == len(made) > 36
    experiment = run_dirs.reopen(run_dir)
    search = round_trip.bm25(experiment.dataset)
    rows = np.array([int(row["doc_id"][1:]) for row in made])
    firsts = search([row["text"] for row in made], 1)[:, 0]
    assert [row["rank"] for row in made] == (firsts == rows).astype(int).tolist()
    assert kept == [row for row in made if row["rank"] == 1]
    assert 0 < len(kept) < len(made)
    qrels = (run_dir / "queries/qrels.tsv").read_text().splitlines()
    assert qrels == ["query-id\tcorpus-id\tscore", *(f"{row['_id']}\t{row['doc_id']}\t1" for row in kept)]
    assert f"{len(kept):,} ({len(kept) / len(made):.1%}) find their document" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same(run_dir, folder, monkeypatch):
    arguments = [f"--workdir={run_dir}", "--queries_per_document=2", "--block_size=16", "--keep_top=0"]
    program(monkeypatch, *arguments, f"--output={folder / 'whole'}", "--batch_size=8")
    assert lines(folder / "whole/generated.jsonl") == lines(folder / "whole/queries.jsonl")
    calls, generate = [], Generator.__call__

    def stopping(self, variables, table, numbers, report=None):
        calls.append(numbers[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, variables, table, numbers, report)

    monkeypatch.setattr(Generator, "__call__", stopping)
    into = f"--output={folder / 'stopped'}"
    with pytest.raises(SystemExit):
        program(monkeypatch, *arguments, into)
    assert not (folder / "stopped/queries.jsonl").exists()
    program(monkeypatch, *arguments, into)
    assert calls == [0, 16, 16, 32]
    for name in ("generated.jsonl", "queries.jsonl", "qrels.tsv"):
        assert (folder / "stopped" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    with pytest.raises(SystemExit):
        program(monkeypatch, *arguments, into, "--seed=1")


def blocks(folder, **share):
    calls = []

    def generate(start, stop, report):
        calls.append(start)
        return [[f"query {row}", f"query {row}", " ", "other"] for row in range(start, stop)]

    ids = [f"d{row}" for row in range(5)]
    missing = generated_queries.write_blocks(
        folder, {"seed": 0}, ids, generate, title="drawing", block_size=2, **share
    )
    return missing, calls, ids


def test_jobs_share_blocks_and_a_query_stands_once(tmp_path):
    assert blocks(tmp_path, process=0, processes=2)[:2] == (1, [0, 4])
    assert blocks(tmp_path, process=1, processes=2)[:2] == (0, [2])
    missing, calls, ids = blocks(tmp_path)
    assert (missing, calls) == (0, [])
    found = generated_queries.read_blocks(tmp_path, ids)
    assert [(query.query_id, query.text, query.row) for query in found][:3] == [
        ("d0#0", "query 0", 0),
        ("d0#1", "other", 0),
        ("d1#0", "query 1", 1),
    ]
    assert len(found) == 10


def test_what_is_mixed_or_damaged_is_refused(tmp_path):
    _, _, ids = blocks(tmp_path)
    with pytest.raises(DataError, match=r"something else \(seed is 0 there and 1 here"):
        generated_queries.write_blocks(tmp_path, {"seed": 1}, ids, None, title="")
    (tmp_path / "blocks/00001.jsonl").write_text('{"doc_id": "d3", "queries": []}\n')
    with pytest.raises(DataError, match=r"00001\.jsonl is missing or damaged .*'d3' where 'd2' is expected"):
        generated_queries.read_blocks(tmp_path, ids)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        blocks(tmp_path)


class OneHot:
    """A dual encoder in the shape of `Trained`: a query is the number of the passage it is like."""

    step = 1

    def identity(self):
        return {"step": self.step}

    def queries(self, texts):
        return np.eye(4, dtype=np.float32)[[int(text) for text in texts]], None


def test_a_dual_encoder_finds_documents_by_their_passages(tmp_path, folder, monkeypatch):
    dataset = Experiment(config(folder), tmp_path).dataset
    monkeypatch.setattr(retriever.Trained, "load", lambda *_: OneHot())
    (tmp_path / "config.json").write_text("{}")
    passages = np.zeros((37, 4), np.float32)  # the first document has two, of which one is like query 1
    passages[[0, 1, 2, 3], [0, 1, 2, 3]] = 1
    text_of_row = np.array([0, *range(36)])
    about = {"step": 1, "texts_hash": dataset.corpus_hash}
    vectors.write(
        tmp_path / "index/vectors", about, dataset.doc_ids, 4, lambda *_: (passages, text_of_row), title="x"
    )
    search = round_trip.dual_encoder(tmp_path, dataset)
    assert search(["1", "2"], 1).tolist() == [[0], [1]]
    rows = np.array([0, 1, 3])
    assert round_trip.ranks(search, ["1", "2", "3"], rows, 5).tolist() == [1, 1, 4]  # ties by row: 2 0 1 3
    assert round_trip.ranks(search, ["1", "2", "3"], rows, 3).tolist() == [1, 1, round_trip.NONE]
    OneHot.step = 2
    with pytest.raises(DataError, match=r"another checkpoint .*step is 1 there and 2 here"):
        round_trip.dual_encoder(tmp_path, dataset)
    OneHot.step = 1
    with pytest.raises(DataError, match=r"other documents than these .*texts_hash is .* there"):
        round_trip.dual_encoder(tmp_path, dataclasses.replace(dataset, corpus_hash="another"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("task", dict(name="language_model.causal.Causal"), "config.task"),
        ("evaluation.measures", ("ndcg",), "measures has 'ndcg'; allowed: those cut at a rank"),
        ("evaluation.sampling.top_p", 0.0, "top_p is 0.0; allowed: above 0"),
        ("text.document_length", 2, "document_length is 2; it must be at least 4"),
        ("batch.batch_size", 0, "batch_size is 0; it must be at least 1"),
    ],
)
def test_malformed_fields_are_named(folder, field, value, message):
    made = config(folder)
    at = made
    *path, last = field.split(".")
    for name in path:
        at = at[name]
    at[last] = value
    with pytest.raises(cli._EXPECTED, match=message):
        Experiment(made, folder / "malformed")


def test_a_run_of_another_family_is_refused(folder):
    with pytest.raises(UsageError, match="allowed: a run of a query generator"):
        generate_queries.sampling_of({"family": "experiments.contrastive.Experiment", "evaluation": {}})
