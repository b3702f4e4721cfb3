"""A language model from config to figures: trained, stopped and resumed, evaluated, sampled from; errors."""

import json
import sys

import jax
import numpy as np
import pytest

from configs.language_model import corpora
from corpora import beir
from corpora.mixture_order import MixtureOrder
from corpora.tables import DataError, Document, Judgement, Query, Tables
from eval import results
from experiments import compare, planning, run_dirs, sample
from experiments.cli import UsageError
from experiments.language import Experiment
from language_model import domains
from training.build import SpecError
from training.checkpoints import CheckpointError
from training.interrupts import Interrupted
from training.mesh import Layout

WORDS = {"sea": "ship wave salt gull tide", "kitchen": "pan salt oven bread knife"}


def write(folder, domain, documents=30):
    """Sentences in which a word follows from the one before it."""
    words, rng = WORDS[domain].split(), np.random.default_rng(0)
    texts = [
        " ".join(words[(int(start) + i) % 5] for i in range(int(length)))
        for start, length in zip(rng.integers(0, 5, documents), rng.integers(6, 20, documents), strict=True)
    ]
    rows = [Document(f"d{i}", domain, f"{text} no {i}") for i, text in enumerate(texts)]
    beir.write(folder / domain, Tables(rows, [Query("q", "x")], {"test": [Judgement("q", "d0", 1)]}, {}))


def config(folder, **given):
    made = corpora.get_config(
        f"folders={folder}/sea+{folder}/kitchen,width=32,layers=1,length=8,batch=8,steps=6"
    )
    made.tokenizer.vocab_size = made.task.model.embed.vocab_size = 90
    made.data.update(dev=0.2, test=0.2)
    made.schedule.update(eval_every=3, save_every=3, log_every=2)
    made.mesh.axes.data = 1
    made.update_from_flattened_dict(given)
    return made.to_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        for domain in WORDS:
            write(folder, domain)
        yield folder


@pytest.fixture(scope="module")
def run_dir(folder):
    experiment = run_dirs.start(folder / "run", config(folder))
    experiment.train()
    experiment.evaluate()
    return folder / "run"


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_it_learns_and_the_best_is_the_one_of_lowest_loss_on_dev(run_dir):
    dev = [row for row in metrics(run_dir) if "dev/loss" in row]
    assert [row["step"] for row in dev] == [0, 3, 6]
    assert dev[-1]["dev/loss"] < dev[0]["dev/loss"] - 0.1
    for row in dev:
        assert row["dev/perplexity"] == pytest.approx(np.exp(row["dev/loss"]))
        assert row["dev/log_likelihood"] == -row["dev/loss"]
        of_domains = [row[f"dev/loss/{domain}"] for domain in ("kitchen", "sea")]
        assert min(of_domains) < row["dev/loss"] < max(of_domains)
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert best["step"] == min(dev, key=lambda row: row["dev/loss"])["step"]


def test_figures_of_test_are_those_of_its_documents(run_dir):
    read = results.read(run_dir)
    test, documents = read.meta["test"], read.per_query["language_model"]
    assert list(test) == ["all", "kitchen", "sea"]
    for domain, figures in test.items():
        names = [n for n in documents["tokens"] if domain == "all" or n.startswith(f"{domain}/")]
        tokens = sum(documents["tokens"][name] for name in names)
        assert (figures["documents"], figures["tokens"]) == (len(names), tokens)
        loss = -sum(documents["log_likelihood"][name] for name in names) / tokens
        assert figures["loss"] == pytest.approx(loss, rel=1e-6)
        assert figures["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    means = read.means["language_model"]
    assert -means["log_likelihood"] / means["tokens"] == pytest.approx(test["all"]["loss"], rel=1e-6)
    assert test["all"]["documents"] == 12
    assert "| kitchen |" in (run_dir / "tables" / "results.md").read_text()


def test_the_unigram_perplexity_is_that_of_counts_plus_one(run_dir):
    experiment = run_dirs.reopen(run_dir)
    train, test = experiment.chunks("train").table.tokens, experiment.chunks("test").table.tokens
    counts = dict.fromkeys(range(experiment.tokenizer.vocab_size), 1)
    for token in train.tolist():
        counts[token] += 1
    found = np.mean([np.log(counts[token] / sum(counts.values())) for token in test.tolist()])
    figures = results.read(run_dir).meta["test"]["all"]
    assert figures["unigram_perplexity"] == pytest.approx(np.exp(-found), rel=1e-6)


def test_the_begin_token_stands_before_every_chunk_and_the_end_token_ends_a_document(run_dir):
    experiment = run_dirs.reopen(run_dir)
    table, tokenizer = experiment.chunks("test").table, experiment.tokenizer
    batch = table.rectangle(np.arange(len(table)), 8)
    assert (batch["tokens"][:, 0] == tokenizer.cls_id).all()
    document = next(experiment.domains.documents("test", "kitchen"))
    ids = batch["targets"][table.document_of_chunk == 0][batch["mask"][table.document_of_chunk == 0] > 0]
    assert ids[-1] == tokenizer.sep_id
    assert tokenizer.decode(ids) == f"{document.title} {document.text}"


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same(run_dir, folder, monkeypatch):
    whole = MixtureOrder.rows

    def stopping(self, step, batch_size):
        if step == 4:
            raise KeyboardInterrupt
        return whole(self, step, batch_size)

    monkeypatch.setattr(MixtureOrder, "rows", stopping)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run_dirs.start(folder / "stopped", config(folder)).train()
    assert [path.name for path in (folder / "stopped/checkpoints/latest").glob("[0-9]*")] == ["3"]
    monkeypatch.setattr(MixtureOrder, "rows", whole)
    experiment = run_dirs.start(folder / "stopped", config(folder))
    experiment.train()
    assert metrics(folder / "stopped") == metrics(run_dir)


def test_evaluating_again_on_eight_devices_gives_the_same(run_dir):
    before = results.read(run_dir)
    stored = run_dirs.load_config(run_dir)
    stored["mesh"]["axes"] |= {"data": 4, "tensor": 1, "fsdp": 2}
    found = Experiment(stored, run_dir).evaluate()
    assert found.means["language_model"] == pytest.approx(before.means["language_model"], rel=1e-5)


@pytest.mark.slow
def test_it_begins_with_another_runs_parameters(run_dir, folder, capsys):
    given = {"init_from.run": str(run_dir), "schedule.total_steps": 1, "schedule.eval_every": 1}
    experiment = run_dirs.start(folder / "second", config(folder, **given))
    experiment.train()
    dev = [row["dev/loss"] for row in metrics(folder / "second") if "dev/loss" in row]
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    assert dev[0] == pytest.approx(-best["value"], rel=1e-5)
    assert f"from {run_dir}" in capsys.readouterr().out


@pytest.mark.slow
def test_texts_are_sampled(run_dir, monkeypatch, capsys):
    monkeypatch.setenv("RETRIEVAX_PROCESSES", "1")

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample", f"--workdir={run_dir}", *arguments])
        try:
            sample.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    status, out = program("--prompt=sea ship", "--count=2", "--length=4", "--temperature=0")
    assert status == 0
    texts = out.strip().split("\n\n")
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert texts[0].startswith("sea ship")
    status, err = program("--top_p=0")
    assert (status, err.strip()) == (2, "error: top_p is 0.0; allowed: above 0 and up to 1")
    status, err = program("--domain=sky")
    assert (status, err.strip()) == (2, "error: --domain is 'sky'; allowed: kitchen, sea")
    assert program("--domain=sea", "--length=2")[0] == 0
    status, err = program("--workdir=/nowhere")
    assert status == 2
    assert "no run in /nowhere" in err


@pytest.mark.slow
def test_runs_are_compared_by_their_documents(run_dir, folder):
    second = folder / "again"
    experiment = run_dirs.start(second, config(folder, seed=1))
    experiment.train()
    experiment.evaluate()
    found = compare.of_runs([str(run_dir), str(second)], "language_model", ["log_likelihood"], None)
    assert found.queries == 12


def test_its_step_can_be_planned_from_shapes(folder):
    made = config(folder)
    mesh = Layout({"data": -1}).mesh()
    batch = planning._batch(made, mesh, 1)
    assert {name: x.shape for name, x in batch.items()} == {
        "tokens": (8, 8), "targets": (8, 8), "mask": (8, 8), "domains": (8,)
    }  # fmt: skip
    step, arguments = planning._abstract_step(made, Layout(made["mesh"]["axes"]), Layout({"data": 1}).mesh())
    with jax.set_mesh(Layout({"data": 1}).mesh()):
        state, *_ = jax.eval_shape(step, *arguments)
    assert state.params["model"]["embed"]["table"].shape == (90, 32)
    with pytest.raises(UsageError, match=r"config\.batch\.batch_size has 8 rows, which 8 parts of a batch"):
        planning._batch(made, mesh, 2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch.length", 1, "config.batch: length is 1; it must be at least 2"),
        ("batch.domain_rows", 3, "config.batch: domain_rows is 3; allowed: a divisor of batch_size, 8"),
        ("batch.rows", 3, "config.batch.rows: .*takes no 'rows'"),
        ("evaluation.batch_size", 0, "config.evaluation: batch_size is 0; it must be at least 1"),
        ("schedule.best_measure", "dev/loss", "best_measure is 'dev/loss'; allowed: dev/log_likelihood"),
        ("seed", -1, "config.seed is -1; allowed: 0 to"),
        ("data.dev", 0.0, "config.data: dev is 0.0; allowed: above 0"),
        ("data.weights", {"sea": 1.0}, "config.data: weights has sea; allowed: one for each of"),
        ("data.collections.sea.folder", "/nowhere", "data.folder: no folder '/nowhere'"),
        ("data", {"name": "pathlib.Path"}, "config.data is 'pathlib.Path'; allowed: language_model"),
        ("mesh.axes.data", 16, "config.mesh: mesh data=16 needs 16 devices; there are 8"),
        ("init_from.run", "/nowhere", "no best checkpoint in /nowhere/checkpoints"),
        ("task.model.block.attention.heads", 3, "config.task: heads is 3; allowed"),
        ("task.modle", {}, "config.task.modle: .*did you mean model"),
        ("task", {"name": "pathlib.Path"}, "config.task is 'pathlib.Path'; allowed: language_model.causal"),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_allowed(folder, tmp_path, field, value, message):
    changed = config(folder)
    *path, last = field.split(".")
    node = changed
    for key in path:
        node = node[key]
    node[last] = value
    with pytest.raises((SpecError, UsageError, DataError, CheckpointError), match=message):
        Experiment(changed, tmp_path)


def test_what_only_training_can_tell(folder, tmp_path, monkeypatch):
    with pytest.raises(
        UsageError, match=r"config\.batch: domain_rows is 512; allowed: 1 to \d+, the examples"
    ):
        Experiment(config(folder, **{"batch.batch_size": 512, "batch.domain_rows": 512}), tmp_path).train()
    with monkeypatch.context() as patch:
        empty = lambda of, split, *given: (_ for _ in ()).throw(DataError(f"no text in {split}"))
        patch.setattr(domains, "chunks", empty)
        with pytest.raises(DataError, match="no text in test"):
            Experiment(config(folder), tmp_path).train()
    other = config(folder, **{"task.model.embed.vocab_size": 20})
    with pytest.raises(UsageError, match=r"embed\.vocab_size is 20, but the tokenizer has"):
        Experiment(other, tmp_path).train()
    with pytest.raises(UsageError, match="the config has no batch, task; allowed: seed, data"):
        Experiment({k: v for k, v in other.items() if k not in ("batch", "task")}, tmp_path)
