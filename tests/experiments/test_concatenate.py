"""Two dual encoders side by side, whose product is the weighted sum; and what learns from another run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from configs.dual_encoder import recipe
from corpora import beir
from corpora.tables import Document, Judgement, Query, Tables
from eval import results, trec
from experiments import concatenate, run_dirs
from experiments.cli import UsageError
from training.checkpoints import read_best_params

DOCUMENTS = 40
WORDS = [f"{a}{b}{c}" for a in "bdgkpt" for b in "aeiou" for c in "lmnrs"]


class Vectors(SimpleNamespace):
    def vectors(self):
        return self.rows


def store(rng, rows, width, documents=None):
    return Vectors(
        ids=[f"d{i}" for i in range(rows)],
        text_of_row=np.arange(rows) if documents is None else np.asarray(documents),
        rows=rng.normal(size=(rows, width)).astype(np.float32),
    )


def test_one_search_gives_the_weighted_sum_of_both_scores():
    rng = np.random.default_rng(0)
    stores = store(rng, 9, 4), store(rng, 9, 6)
    queries = [rng.normal(size=(3, width)).astype(np.float32) for width in (4, 6)]
    trained = [SimpleNamespace(queries=lambda texts, q=q: (q, None)) for q in queries]
    both = concatenate.Concatenation(trained, stores)
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 2.5)):
        scores, rows = both.search(both.queries(["x"] * 3), weights, 9)
        expected = sum(w * q @ s.rows.T for w, q, s in zip(weights, queries, stores, strict=True))
        np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1))


def test_runs_of_other_passages_are_refused():
    rng = np.random.default_rng(0)
    stores = store(rng, 4, 2), store(rng, 4, 2, documents=[0, 0, 1, 2])
    with pytest.raises(UsageError, match="other documents, or other passages"):
        concatenate.Concatenation([None, None], stores)


def test_a_run_is_not_called_as_another_system():
    assert concatenate._names(["runs/a", "b/"]) == ["a", "b"]
    for other in ("x/a", "runs/bm25", "runs/dual_encoder"):
        assert concatenate._names(["runs/a", other]) == ["first", "second"]


def tables():
    rng = np.random.default_rng(0)
    own = [rng.choice(WORDS, 6) for _ in range(DOCUMENTS)]
    documents = [Document(f"d{i}", own[i][0], f"{' '.join(own[i])} bal dem") for i in range(DOCUMENTS)]
    queries = [Query(f"q{i}", f"{' '.join(own[i][1:4])} bal") for i in range(DOCUMENTS)]
    splits = {"train": range(20), "dev": range(20, 30), "test": range(30, 40)}
    qrels = {name: [Judgement(f"q{i}", f"d{i}", 1) for i in rows] for name, rows in splits.items()}
    return Tables(documents, queries, qrels, {})


def config(folder, name, run="", **given):
    made = recipe.get_config(f"folder={folder}/collection,recipe={name},run={run},steps=8,batch=20").to_dict()
    made["tokenizer"] |= {"vocab_size": 300} if "vocab_size" in made["tokenizer"] else {}
    for side in ("query", "document"):
        embed = made["task"]["model"][side]["encoder"]["embed"]
        embed |= {"vocab_size": 300, "width": embed["width"] // 64}
    head = made["task"]["model"]["query"].get("head")
    if head:
        head["features"] //= 64
    made["schedule"] |= {"eval_every": 8, "save_every": 8, "log_every": 2}
    made["evaluation"]["bm25_grid"] |= {"k1": (0.9,), "b": (0.4,), "title_weight": (1.0,)}
    made["optimizer"]["optimizer"]["learning_rate"]["peak"] = 0.05
    made["mesh"]["axes"]["data"] = 1
    for path, value in given.items():
        *above, last = path.split("__")
        within = made
        for part in above:
            within = within[part]
        within[last] = value
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        patch.setenv("RETRIEVAX_PROCESSES", "1")  # jax, which has computed by now, cannot look for others
        beir.write(folder / "collection", tables())
        yield folder


@pytest.fixture(scope="module")
def teacher(folder):
    experiment = run_dirs.start(folder / "plain", config(folder, "plain"))
    experiment.train()
    experiment.evaluate()
    return folder / "plain"


def parameters(run_dir):
    return read_best_params(run_dir / "checkpoints")[1]["model"]


def logged(run_dir, name):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["query_distillation", "softqe"])
def test_a_query_tower_learns_vectors_beside_documents_that_stay(folder, teacher, name):
    given = {}
    if name == "softqe":
        file = folder / "expansions.jsonl"
        file.write_text("".join(f'{{"query_id": "q{i}", "text": "dem {WORDS[i]}"}}\n' for i in range(20)))
        given = {"batch__targets__expansions": str(file)}
    experiment = run_dirs.start(folder / name, config(folder, name, teacher, **given))
    experiment.train()
    theirs, ours = parameters(teacher), parameters(folder / name)
    table = theirs["query"]["encoder"]["embed"]["table"]
    np.testing.assert_array_equal(ours["document"]["encoder"]["embed"]["table"], table)
    for key in ("log_token_weight", "log_segment_weight"):
        np.testing.assert_array_equal(ours["document"]["encoder"][key], theirs["document"]["encoder"][key])
    mse = logged(folder / name, "mse")
    assert mse[-1] < mse[0]
    if name == "query_distillation":
        assert ours["query"]["encoder"]["embed"]["table"].shape[1] == table.shape[1] // 4
        targets = np.load(folder / name / "tables" / "targets.npy")
        np.testing.assert_allclose(np.linalg.norm(targets, axis=1), 1.0, rtol=1e-4)


@pytest.mark.slow
def test_a_lexical_model_is_trained_and_concatenated(folder, teacher, monkeypatch, capsys):
    experiment = run_dirs.start(folder / "lexical", config(folder, "lexical_imitation"))
    assert experiment.pairs.positives.shape == (20, 10)
    experiment.train()
    experiment.evaluate()
    out = folder / "both"
    given = ["concatenate", str(teacher), str(folder / "lexical"), f"--output={out}", "--weight=1.5"]
    monkeypatch.setattr(sys, "argv", given)
    concatenate.main()
    printed = capsys.readouterr().out
    assert "dual_encoder is plain + 1.5 x lexical" in printed
    read = results.read(out)
    assert list(read.means) == ["bm25", "plain", "lexical", "dual_encoder"]
    assert read.means["plain"] == pytest.approx(results.read(teacher).means["dual_encoder"])
    assert read.means["lexical"] == pytest.approx(results.read(folder / "lexical").means["dual_encoder"])
    assert set(read.meta["rank_biased_overlap_with_bm25"]) == {"plain", "lexical", "dual_encoder"}
    one, other, both = (
        trec.read_run(out / "runs" / f"{n}.trec") for n in ("plain", "lexical", "dual_encoder")
    )
    for query_id, hits in both.items():
        for doc_id, score in hits.items():
            expected = one[query_id][doc_id] + 1.5 * other[query_id][doc_id]
            assert score == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(sys, "argv", given[:-1])
    concatenate.main()
    tried = results.read(out).meta
    assert tried["weight"] == float(max(tried["weights_tried"], key=tried["weights_tried"].get))


@pytest.mark.slow
def test_a_tightly_coupled_student_is_trained_and_evaluated(folder):
    made = recipe.get_config(f"folder={folder}/collection,recipe=tightly_coupled,steps=4,batch=4").to_dict()
    made["tokenizer"]["vocab_size"] = 300
    of_student, of_teacher = made["task"]["base"]["model"]["tower"], made["task"]["teacher"]
    for encoder in (of_student["encoder"], of_teacher["encoder"]):
        encoder["embed"] |= {"vocab_size": 300, "width": 16}
        encoder["num_layers"] = 1
    made["schedule"] |= {"eval_every": 4, "save_every": 4, "log_every": 1}
    made["evaluation"]["bm25_grid"] |= {"k1": (0.9,), "b": (0.4,), "title_weight": (1.0,)}
    made["mesh"]["axes"]["data"] = 1
    experiment = run_dirs.start(folder / "tightly_coupled", made)
    experiment.train()
    experiment.evaluate()
    assert "dual_encoder" in results.read(folder / "tightly_coupled").means
    for name in ("contrastive", "distillation", "teacher/loss"):
        assert np.isfinite(logged(folder / "tightly_coupled", name)).all()


def test_help_has_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["concatenate", "--help"])
    concatenate.main()
    printed = capsys.readouterr().out
    assert "python -m experiments.concatenate" in printed
    assert "RUN: " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b"], "--output is not given"),
        (["a", "b", "c", "--output=x"], "3 RUN given; exactly 2 are needed"),
        (["a", "b", "--output=a"], "one of the runs; name another folder"),
        (["a", "b", "--output=x"], "no run in a"),
        (["a", "--output=x"], "1 RUN given"),
    ],
)
def test_the_command_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["concatenate", *arguments])
    with pytest.raises(SystemExit) as stop:
        concatenate.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
