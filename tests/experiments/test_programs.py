"""The programs end to end on a small folder of real code: train, resume, evaluate, search."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dual_encoder.retriever import Retriever
from eval import results, trec
from experiments import run_dirs

ROOT = Path(__file__).parents[2]
PACKAGES = ("asyncio", "email", "json", "logging", "unittest", "importlib")
SMALL = [
    "--config.schedule.total_steps=6",
    "--config.schedule.eval_every=3",
    "--config.schedule.save_every=3",
    "--config.schedule.log_every=2",
    "--config.batch.batch_size=64",
    "--config.tokenizer.vocab_size=900",
    "--config.evaluation.bm25_grid.k1=(1.5,)",
]


CACHE = tempfile.TemporaryDirectory()
ENVIRONMENT = {**os.environ, "RETRIEVAX_CACHE": CACHE.name}


def program(name, *arguments, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT,
    )  # fmt: skip


def overrides(tmp):
    sizes = [
        f"--config.task.model.{side}.encoder.embed.{field}"
        for side in ("query", "document")
        for field in ("vocab_size=900", "width=32")
    ]
    return [*SMALL, *sizes, f"--config.data.root={tmp / 'code'}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory that the train program made, and what it printed."""
    tmp = tmp_path_factory.mktemp("programs")
    for package in PACKAGES:
        shutil.copytree(Path(sysconfig.get_path("stdlib")) / package, tmp / "code" / package)
    done = program("train", f"--workdir={tmp / 'run'}", *overrides(tmp))
    assert done.returncode == 0, done.stderr
    return tmp, done.stdout


def test_train_writes_everything_a_run_is_to_hold(trained):
    tmp, printed = trained
    run = tmp / "run"
    found = results.read(run)
    assert list(found.means) == ["bm25_plain", "bm25", "dual_encoder", "hybrid"]
    for measured in found.means.values():
        assert list(measured) == ["ndcg@10", "mrr@10", "recall@10", "recall@100"]
        assert all(0 < value <= 1 for value in measured.values())
    for field in ("config_hash", "seed", "versions", "device", "bm25", "fusion_weight", "corpus_hash"):
        assert field in found.meta
    queries = set(found.per_query["hybrid"]["mrr@10"])
    for system in found.means:
        assert set(trec.read_run(run / "runs" / f"{system}.trec")) <= queries
    assert (run / "plots" / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "tables" / "results.md").read_text().strip() in printed
    assert "python_functions: " in printed


def test_the_same_command_again_resumes_and_changes_nothing(trained):
    tmp, _ = trained
    before = results.read(tmp / "run")
    again = program("train", f"--workdir={tmp / 'run'}", *overrides(tmp))
    assert again.returncode == 0, again.stderr
    assert results.read(tmp / "run").means == before.means


def test_another_config_is_refused_and_names_the_field(trained):
    tmp, _ = trained
    other = program("train", f"--workdir={tmp / 'run'}", *overrides(tmp), "--config.seed=1")
    assert other.returncode == 2
    assert "holds a run of another config (seed: 0 -> 1)" in other.stderr
    assert other.stderr.count("\n") == 1


def test_a_bad_config_leaves_no_run_behind(trained):
    tmp, _ = trained
    bad = program(
        "train",
        f"--workdir={tmp / 'bad'}",
        *overrides(tmp),
        "--config.task.objective.name=dual_encoder.objectives.softmax.info_nse",
    )
    assert bad.returncode == 2
    assert bad.stderr == (
        "error: config.task.objective.name is 'dual_encoder.objectives.softmax.info_nse'; "
        "dual_encoder.objectives.softmax has no 'info_nse'; did you mean info_nce?\n"
    )
    assert not (tmp / "bad").exists()


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(trained):
    tmp, _ = trained
    field = "--config.task.model.query.encoder.embed.vocab_size=800"
    bad = program("train", f"--workdir={tmp / 'bad'}", *overrides(tmp), field)
    assert bad.returncode == 2
    assert bad.stderr.splitlines()[-1] == (
        "error: config.task.model.query.encoder.embed.vocab_size is 800, but the tokenizer has 900 entries; "
        "allowed: 900 or more"
    )


def test_search_prints_path_line_and_snippet(trained):
    tmp, _ = trained
    done = program("search", f"--workdir={tmp / 'run'}", "--query=decode a JSON document", "--k=3")
    assert done.returncode == 0, done.stderr
    first = done.stdout.strip().splitlines()[1].split()
    path, line = first[2].split(":")
    source = (tmp / "code" / path).read_text().splitlines()
    assert source[int(line) - 1].strip() in done.stdout
    asked = program("search", f"--workdir={tmp / 'run'}", "--json", "--k=2", stdin="one query\n\nanother\n")
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [answer["query"] for answer in answers] == ["one query", "another"]
    assert [hit["rank"] for hit in answers[0]["hits"]] == [1, 2]


def test_searching_without_a_run_is_one_line(tmp_path):
    done = program("search", f"--workdir={tmp_path}", "--query=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no run in" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_retriever_agrees_with_the_run_that_was_evaluated(trained):
    tmp, _ = trained
    retriever = Retriever.load(tmp / "run")
    run_of = {
        name: trec.read_run(tmp / "run" / "runs" / f"{name}.trec")
        for name in ("hybrid", "bm25", "dual_encoder")
    }
    query_id = next(iter(run_of["hybrid"]))
    for name, run in run_of.items():
        hits = retriever.search(retriever.dataset.queries[query_id], k=5, system=name)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
        expected = sorted(run[query_id].values(), reverse=True)[:5]
        np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=1e-4, atol=1e-5)
        assert set(run[query_id]) >= {hit.doc_id for hit in hits}
    with pytest.raises(ValueError, match="system is 'bm52'"):
        retriever.search("x", system="bm52")
    with pytest.raises(ValueError, match="k is 0"):
        retriever.search("x", k=0)


def test_an_edited_collection_is_noticed(trained):
    tmp, _ = trained
    copy = tmp / "copy"
    shutil.copytree(tmp / "run", copy)
    manifest = json.loads((copy / "index" / "manifest.json").read_text())
    (copy / "index" / "manifest.json").write_text(
        json.dumps({**manifest, "data": "/gone", "corpus_hash": "other"})
    )
    with pytest.raises(ValueError, match=r"changed since .* was indexed; run python -m experiments.evaluate"):
        Retriever.load(copy)
    assert run_dirs.load_config(copy)["seed"] == 0


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *((name, "--workdir") for name in ("train", "evaluate", "search", "quickstart", "encode", "rerank")),
        *((name, "RUN: ") for name in ("compare", "average")),
    ],
)
def test_help_has_an_example(name, flag):
    done = program(name, "--help")
    assert done.returncode == 0
    assert f"python -m experiments.{name}" in done.stdout
    assert flag in done.stdout
