"""Recipes of negatives and sampling end to end: they train on a small collection, and are opened again."""

import json

import jax
import numpy as np
import pytest

from configs.dual_encoder import recipe
from configs.dual_encoder.recipes import negatives, sampling
from dual_encoder.derived import OWN
from dual_encoder.trained import Trained
from experiments import run_dirs
from training import metrics
from training.checkpoints import Checkpoints, read_best_params

WORDS = ("iron", "silk", "corn", "salt", "wool", "coal", "rice", "gold", "jute", "clay", "lead", "tea")
JOINED = ("joined", "task_batches", "tdro", "tdro_weighted")
# The recipes that begin with another run, and that one's.
BEFORE = dict.fromkeys(
    ("mined", "positive_aware", "star", "unified", "dynamic", "topics_of_run"), "plain"
) | {"tdro": "joined", "tdro_weighted": "tdro"}  # fmt: skip
FAST = "dynamic"


def collection(folder, words):
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": f"part {n}", "text": f"the {w} {w}"} for n, w in enumerate(words)]
    queries = [{"_id": f"q{n}", "text": f"trade of {word}"} for n, word in enumerate(words)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "dev", "test"):
        lines = "".join(f"q{n}\td{n}\t1\n" for n in range(len(words)))
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")


def config(folder, name, steps=2, run=""):
    joined = name in JOINED
    data = f"{folder / 'one'}+{folder / 'two'}" if joined else folder / "one"
    made = recipe.get_config(f"folder={data},recipe={name},steps={steps},batch=4,run={folder / run}")
    made.tokenizer.vocab_size = 120
    model = made.task.base.model if "base" in made.task else made.task.model
    towers = [model.tower] if "tower" in model else [model.query, model.document]
    for tower in towers:
        tower.encoder.embed.update(vocab_size=120, width=16)
    made.mesh.axes.data = 1
    made.schedule.update(log_every=1, eval_every=steps, save_every=1)
    if name == "tas_balanced":  # a teacher that needs no training
        made.batch.teacher = dict(name="dual_encoder.scorers.bm25")
    if "clusters" in made.batch.get("groups", {}):
        made.batch.groups.clusters = 3
        if "width" in made.batch.groups:
            made.batch.groups.width = 4
    return made.to_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two collections, and the runs on them, by recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    collection(folder / "one", WORDS)
    collection(folder / "two", [f"old {word}" for word in WORDS[:6]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        yield folder


def begin(folder, name):
    """Trains what the recipe begins with, once for all that do, and returns its folder; "" for none."""
    before = BEFORE.get(name, "")
    if before and not (folder / before).exists():
        run_dirs.start(folder / before, config(folder, before, run=begin(folder, before))).train()
    return before


def ran(folder, name):
    """The recipe's run and its config."""
    made = config(folder, name, run=begin(folder, name))
    if not (folder / name).exists():
        run_dirs.start(folder / name, made).train()
    return folder / name, made


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*negatives.RECIPES, *sampling.RECIPES) if name != FAST])
def test_trains_and_is_opened_again(folder, name):
    run_dir, made = ran(folder, name)
    rows = metrics.read(run_dir)
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert (run_dir / "negatives.json").exists() == (
        name in {*negatives.RECIPES, "tas_balanced"} - {"momentum"}
    )
    vectors, _ = Trained.load(run_dir, made).queries(["trade of iron"])
    assert 0 < np.linalg.norm(vectors) < np.inf


@pytest.mark.slow
def test_dynamic_negatives_train_one_tower_resume_exactly_and_are_opened_again(folder, monkeypatch):
    before = begin(folder, FAST)
    made = config(folder, FAST, steps=3, run=before)
    whole = run_dirs.start(folder / "whole", made).train()
    save = Checkpoints.save

    def save_and_stop(self, state, beside):
        save(self, state, beside)
        self.wait()
        if int(state.step) == 2:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(RuntimeError, match="stopped"):
            run_dirs.start(folder / "stopped", made).train()
    resumed = run_dirs.start(folder / "stopped", made).train()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(whole.state[OWN]["vectors"]).max() > 0

    _, params, state = read_best_params(folder / before / "checkpoints")
    table = params["model"]["query"]["encoder"]["embed"]["table"]
    model = whole.params["model"]
    np.testing.assert_array_equal(model["document"]["encoder"]["embed"]["table"], table)
    assert (np.asarray(model["query"]["encoder"]["embed"]["table"]) != table).any()
    assert read_best_params(folder / "whole" / "checkpoints")[2] == state == {}
    # The documents of the new run are those of the old one, to the last bit.
    old, new = (Trained.load(folder / run, json.loads((folder / run / "config.json").read_text()))
                for run in (before, "whole"))  # fmt: skip
    documents = run_dirs.reopen(folder / "whole").dataset.documents
    np.testing.assert_array_equal(old.documents(documents)[0], new.documents(documents)[0])
