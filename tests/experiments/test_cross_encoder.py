"""A cross-encoder from config to figures, and what it is good for: to judge, to teach, to rerank."""

import json
import sys

import numpy as np
import pytest

from configs.cross_encoder import beir_folder as cross_encoders
from configs.dual_encoder import parts, recipe
from corpora import batches, beir
from corpora.batches import Order
from corpora.tables import DataError, Document, Judgement, Query, Tables
from cross_encoder.trained import Scorer
from dual_encoder import scorers
from dual_encoder.denoised import denoised
from dual_encoder.negative_filters import Mined
from eval import measures, results, trec
from experiments import rerank, run_dirs
from experiments.cli import UsageError
from training.build import SpecError
from training.checkpoints import CheckpointError
from training.interrupts import Interrupted

DOCUMENTS, DEPTH = 40, 5
WORDS = [f"{a}{b}{c}" for a in "bdgkpt" for b in "aeiou" for c in "lmnrs"]


def tables():
    """A query has two words of its document and one of another; all share a few."""
    rng = np.random.default_rng(0)
    own = [rng.choice(WORDS, 6) for _ in range(DOCUMENTS)]
    documents = [Document(f"d{i}", own[i][0], f"{' '.join(own[i])} bal dem") for i in range(DOCUMENTS)]
    queries = [
        Query(f"q{i}", f"{' '.join(own[i][1:3])} {own[(i + 1) % DOCUMENTS][0]} bal") for i in range(DOCUMENTS)
    ]
    splits = {"train": range(20), "dev": range(20, 30), "test": range(30, 40)}
    qrels = {name: [Judgement(f"q{i}", f"d{i}", 1) for i in rows] for name, rows in splits.items()}
    return Tables(documents, queries, qrels, {})


def small(config):
    config["tokenizer"]["vocab_size"] = 300
    config["schedule"] |= {"eval_every": 2, "save_every": 2}
    config["evaluation"]["bm25_grid"] |= {"k1": (0.9,), "b": (0.4,), "title_weight": (1.0,)}
    config["mesh"]["axes"]["data"] = 1
    return config


def bag_config(folder, **given):
    """A bag in the place of the Transformer, which is compiled at once."""
    made = cross_encoders.get_config(f"folder={folder},steps=4,batch=4,negatives=2,depth={DEPTH}")
    config = small(made.to_dict())
    tower = parts.bag_tower(300, 8, segment_weights=(1.0, 1.0, 2.0, 2.0))
    config["task"]["model"] |= {"encoder": tower["encoder"], "pooler": tower["pooler"]}
    config["mesh"] |= {"parameters": (), "activations": ()}
    config["evaluation"] |= {"dev_depth": 4}
    return config | given


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross_encoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        patch.setenv("RETRIEVAX_PROCESSES", "1")  # jax, which has computed by now, cannot look for others
        beir.write(folder / "collection", tables())
        yield folder


@pytest.fixture(scope="module")
def run_dir(folder):
    experiment = run_dirs.start(folder / "run", bag_config(folder / "collection"))
    experiment.train()
    experiment.evaluate()
    return folder / "run"


@pytest.fixture
def dataset(run_dir):
    return run_dirs.reopen(run_dir).dataset


def student(folder, run_dir, name, *, steps=2):
    made = recipe.get_config(f"folder={folder}/collection,recipe={name},run={run_dir},steps={steps},batch=4")
    config = small(made.to_dict())
    for side in ("query", "document"):
        config["task"]["model"][side]["encoder"]["embed"] |= {"vocab_size": 300, "width": 8}
    config["evaluation"]["dev_measures"] = ("mrr@10",)
    return config


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_it_reorders_what_bm25_finds_and_the_rest_follows(run_dir, dataset):
    read = results.read(run_dir)
    assert list(read.means) == ["bm25_plain", "bm25", "cross_encoder", "hybrid"]
    assert read.meta["depth"] == DEPTH
    bm25, found = (trec.read_run(run_dir / "runs" / f"{name}.trec") for name in ("bm25", "cross_encoder"))
    rows = np.array(
        [[dataset.doc_ids.index(d) for d in measures.rank(hits)[:DEPTH]] for hits in bm25.values()]
    )
    scores = Scorer(str(run_dir))(dataset, list(bm25), rows)
    for (query_id, hits), rows_M, scores_M in zip(bm25.items(), rows, scores, strict=True):
        expected = {dataset.doc_ids[row]: s for row, s in zip(rows_M, scores_M.tolist(), strict=True)}
        assert {d: found[query_id][d] for d in expected} == pytest.approx(expected, abs=1e-5)
        assert measures.rank(found[query_id])[DEPTH:] == measures.rank(hits)[DEPTH:]


def test_dev_is_the_first_documents_in_the_order_of_the_scores(run_dir):
    assert [row["step"] for row in metrics(run_dir) if "dev/mrr@10" in row] == [0, 2, 4]
    best = json.loads((run_dir / "checkpoints" / "best.json").read_text())
    experiment = run_dirs.reopen(run_dir)
    dev, dataset = experiment.dataset.split("dev"), experiment.dataset
    bm25 = scorers.bm25(**experiment.evaluation.dev_bm25)
    everything = np.tile(np.arange(DOCUMENTS), (len(dev), 1))
    first = np.argsort(-bm25(dataset, list(dev), everything), axis=1, kind="stable")[:, :4]
    scores = Scorer(str(run_dir))(dataset, list(dev), first)
    run = {
        q: {dataset.doc_ids[row]: s for row, s in zip(rows, scored, strict=True)}
        for q, rows, scored in zip(dev, first, scores.tolist(), strict=True)
    }
    value = measures.means(measures.evaluate(dev, run, ["mrr@10"]))["mrr@10"]
    assert best["value"] == pytest.approx(value)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same(run_dir, folder, monkeypatch):
    whole = Order.rows

    def stopping(self, step, batch_size):
        if step == 3:
            raise KeyboardInterrupt
        return whole(self, step, batch_size)

    monkeypatch.setattr(Order, "rows", stopping)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run_dirs.start(folder / "stopped", bag_config(folder / "collection")).train()
    monkeypatch.setattr(Order, "rows", whole)
    run_dirs.start(folder / "stopped", bag_config(folder / "collection")).train()
    assert metrics(folder / "stopped") == metrics(run_dir)


def test_a_scorer_gives_nan_where_no_document_is_and_refuses_what_is_no_cross_encoder(
    run_dir, dataset, folder
):
    rows = np.array([[3, -1], [-1, -1]])
    found = Scorer(str(run_dir))(dataset, ["q1", "q2"], rows)
    np.testing.assert_array_equal(np.isnan(found), rows < 0)
    kept = [path for path in (run_dir / "scores").iterdir() if len(np.load(path)) == 2]
    assert len(kept) == 1
    np.save(kept[0], np.full((2, 2), 7.0, np.float32))  # it is not computed again, for the same pairs
    assert (Scorer(str(run_dir))(dataset, ["q1", "q2"], rows) == 7.0).all()
    np.testing.assert_array_equal(Scorer(str(run_dir))(dataset, ["q2", "q1"], rows)[1], [np.nan] * 2)
    with pytest.raises(DataError, match="no run in 'nowhere'"):
        Scorer("nowhere")
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text(
        json.dumps({"family": "x", "task": {"name": "dual_encoder.poolers.mean"}})
    )
    with pytest.raises(SpecError, match="allowed: a run of a cross-encoder"):
        Scorer(str(folder / "other"))
    (folder / "other" / "config.json").write_text((run_dir / "config.json").read_text())
    with pytest.raises(CheckpointError):
        Scorer(str(folder / "other"))


def test_scores_of_a_dual_encoders_run(run_dir):
    with pytest.raises(SpecError, match="allowed: a run of a dual encoder"):
        scorers.trained(str(run_dir))
    with pytest.raises(DataError, match="no run in 'nowhere'"):
        scorers.trained("nowhere")


def test_denoised_keeps_what_the_judge_scores_below(dataset):
    pairs = batches.training_pairs(dataset, "train")
    rows = np.tile(np.array([7, 5, 9, -1], np.int32), (len(pairs.query_ids), 1))
    source = lambda dataset, pairs: Mined(rows, rows.size, {"known positives": 3})
    scores = np.tile(np.array([0.0, 2.0, -1.0, np.nan], np.float32), (len(rows), 1))
    scores[0] = [2.5, 2.0, 3.0, np.nan]

    def judge(dataset, query_ids, rows_QM):
        assert query_ids == pairs.query_ids
        np.testing.assert_array_equal(rows_QM, rows)
        return scores

    found = denoised(dataset, pairs, count=1, source=source, judge=judge, below=2.0)
    np.testing.assert_array_equal(found.rows[:, 0], [-1, *[7] * (len(rows) - 1)])
    assert found.removed == {"known positives": 3, "judged 2 or more": 3 + len(rows) - 1}
    probability = scorers.probability(judge)(dataset, pairs.query_ids, rows)
    np.testing.assert_allclose(
        probability[1, :3], [0.5, 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))], rtol=1e-6
    )
    scores[3, 0] = np.nan
    with pytest.raises(ValueError, match="gives no score to 1 of 60 candidates"):
        denoised(dataset, pairs, count=1, source=source, judge=judge)


def test_scorers_by_hand(dataset):
    rows = np.array([[3, -1, 0]])
    one = lambda dataset, query_ids, rows_QM: np.where(rows_QM < 0, np.nan, rows_QM).astype(np.float32)
    found = scorers.weighted([one, one], [0.5, 2.0])(dataset, ["q0"], rows)
    np.testing.assert_array_equal(found, [[7.5, np.nan, 0.0]])
    with pytest.raises(ValueError, match="weights are"):
        scorers.weighted([one], [1.0, 2.0])


@pytest.mark.parametrize(
    "name",
    [
        "cross_encoder_kl",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("cross_encoder_margin_mse", "denoised", "bm25_kl")
        ),
    ],
)
def test_a_student_learns_from_it(run_dir, folder, name):
    config = student(folder, run_dir, name)
    experiment = run_dirs.start(folder / name, config)
    experiment.train()
    scored = sorted(path.stem for path in (folder / name / "tables").glob("teacher*.npy"))
    assert scored == ([] if name == "denoised" else ["teacher_negatives", "teacher_positives"])
    if name == "cross_encoder_kl":
        of, pairs = Scorer(str(run_dir)), experiment.pairs
        table = np.load(folder / name / "tables" / "teacher_positives.npy")
        np.testing.assert_allclose(table, of(experiment.dataset, pairs.query_ids, pairs.positives), rtol=1e-5)
        assert all(np.isfinite(row["distillation"]) for row in metrics(folder / name) if "loss" in row)
    if name == "denoised":
        counts = json.loads((folder / name / "negatives.json").read_text())["0"]
        assert "judged 0.1 or more" in counts["removed"]


def test_a_run_is_reranked_by_it(run_dir, tmp_path, monkeypatch, capsys):
    file = run_dir / "runs" / "bm25.trec"
    out = tmp_path / "out.trec"
    monkeypatch.setattr(
        sys,
        "argv",
        ["rerank", f"--workdir={run_dir}", f"--run={file}", f"--depth={DEPTH}", f"--output={out}"],
    )
    rerank.main()
    found, expected = trec.read_run(out), trec.read_run(run_dir / "runs" / "cross_encoder.trec")
    assert {q: measures.rank(h) for q, h in found.items()} == {
        q: measures.rank(h) for q, h in expected.items()
    }
    assert "10 queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("batch.negatives_per_query", 31, SpecError, "count is 30; it must be at least negatives_per_query"),
        ("batch.negatives_per_query", 0, SpecError, "negatives_per_query is 0; it must be at least 1"),
        ("text.query_length", 2, SpecError, "query_length is 2; it must be at least 4"),
        ("evaluation.depth", 0, SpecError, "depth is 0; it must be at least 1"),
        ("evaluation.dev_bm25", {"nope": 1}, SpecError, "takes no 'nope'"),
        ("task.name", "optax.adamw", SpecError, "takes no 'model'"),
        ("task", {"name": "dual_encoder.poolers.mean"}, UsageError, "allowed: cross_encoder.task.Ranking"),
        ("schedule.best_measure", "dev/x", UsageError, "allowed: dev/mrr@10, dev/ndcg@10"),
    ],
)
def test_a_wrong_field_is_named(folder, path, value, error, message):
    config = bag_config(folder / "collection")
    *above, last = path.split(".")
    within = config
    for name in above:
        within = within[name]
    within[last] = value
    with pytest.raises(error, match=message):
        run_dirs.start(folder / "wrong", config)


@pytest.mark.slow
def test_the_transformer_of_the_config_learns(folder):
    made = cross_encoders.get_config(
        f"folder={folder}/collection,objective=localized_contrastive,width=16,layers=1,steps=30,batch=10,depth=4"
    )
    config = small(made.to_dict())
    config["task"]["model"]["encoder"]["embed"]["vocab_size"] = 300
    config["schedule"] |= {"eval_every": 30, "save_every": 30, "log_every": 10}
    run_dirs.start(folder / "transformer", config).train()
    rows = metrics(folder / "transformer")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
