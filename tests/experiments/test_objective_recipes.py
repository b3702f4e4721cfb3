"""Every recipe of an objective, end to end on a small folder: trained, evaluated, with its own systems."""

import json

import pytest

from configs.dual_encoder import recipe
from configs.dual_encoder.recipes.objectives import RECIPES
from eval import results
from experiments.cli import UsageError
from experiments.contrastive import Experiment

MATRYOSHKA = ("matryoshka", "refreshed_matryoshka")
TOPICS = ("iron", "silk", "corn", "salt", "wool", "coal", "rice", "gold")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three documents to a topic, two of them relevant to its query."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "qrels").mkdir()
    documents = [
        {"_id": f"{topic}{n}", "title": topic if n < 2 else "town", "text": f"{word} of {topic} in the town"}
        for topic in TOPICS
        for n, word in enumerate(("trade", "price", "lack"))
    ]
    queries = [{"_id": topic, "text": f"who sold {topic}"} for topic in TOPICS]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "dev", "test"):
        lines = "".join(f"{topic}\t{topic}{n}\t1\n" for topic in TOPICS for n in range(2))
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


def experiment(folder, run_dir, name, **evaluation):
    config = recipe.get_config(f"folder={folder},recipe={name},run={folder.parent / 'first'},steps=3,batch=8")
    config.schedule.update(eval_every=3, save_every=3, log_every=1)
    config.tokenizer.vocab_size = 200
    towers = [config.task.get("base", config.task).model[side] for side in ("query", "document")]
    for tower in towers:
        tower.encoder.embed.update(vocab_size=200, width=16)
    config.evaluation.bm25_grid.update(k1=(0.9,), b=(0.4,), title_weight=(1.0,))
    if name in MATRYOSHKA:
        config.task.objective.widths = (4, 8, 16)
        config.evaluation.update(dict(widths=(4, 8), funnel=((4, 12), (8, 6))) | evaluation)
    config = config.to_dict()
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(config))
    return Experiment(config, run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pair", *(name for name in RECIPES if name != "pair")])
def test_a_recipe_trains_and_is_evaluated(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(folder.parent / "cache"))
    # The second stage of `pair` goes on from the first.
    run_dir = folder.parent / "first" if name == "pair" else tmp_path / "run"
    of = experiment(folder, run_dir, name)
    of.train()
    of.evaluate()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(set(losses)) == 3
    systems = list(results.read(run_dir).means)
    cut = ["dual_encoder@4", "dual_encoder@8", "dual_encoder_funnel"] if name in MATRYOSHKA else []
    assert systems == ["bm25_plain", "bm25", "dual_encoder", "hybrid", *cut]
    for system in cut:
        assert (run_dir / "runs" / f"{system}.trec").read_text().count("\n") > len(TOPICS)
    assert (run_dir / "plots" / "widths.png").exists() == bool(cut)


def test_a_width_above_that_of_the_vectors_is_refused_before_training(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVAX_CACHE", str(folder.parent / "cache"))
    message = "config.evaluation.widths has the width 32; allowed: below 16, that of the vectors"
    with pytest.raises(UsageError, match=message):
        experiment(folder, tmp_path / "run", "matryoshka", widths=(8, 32))
