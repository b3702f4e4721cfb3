"""The recipes of towers, poolings and heads train, are evaluated and encode, on a small collection."""

import json
import re
import types

import jax
import numpy as np
import pytest

from configs.dual_encoder import recipe
from configs.dual_encoder.recipes import small
from corpora import beir
from corpora.tables import Document, Judgement, Query, Tables
from dual_encoder import adapter, towers
from dual_encoder.attention_poolers import AllLayers
from dual_encoder.trained import Trained
from eval import results
from experiments import adapt, compatibility, layer_grid, run_dirs

DOCUMENTS, VOCAB, WIDTH = 24, 200, 64
WORDS = [f"{a}{b}{c}" for a in "bdgkpt" for b in "aeiou" for c in "lmnrs"]
QUICK = "gaussian"
# Not those that differ from one of these in the name of a function or a module that has tests of its own.
OTHERS = [
    "lora", "deep_prompts", "frozen_documents", "token_aggregation", "two_dimensional", "stationary",
    "pool_layers_causal",
]  # fmt: skip


def tables():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 8)) for _ in range(DOCUMENTS)]
    documents = [Document(f"d{i}", "", text) for i, text in enumerate(texts)]
    queries = [Query(f"q{i}", " ".join(text.split()[:3])) for i, text in enumerate(texts)]
    splits = {"train": range(16), "dev": range(16, 20), "test": range(20, 24)}
    qrels = {name: [Judgement(f"q{i}", f"d{i}", 1) for i in rows] for name, rows in splits.items()}
    return Tables(documents, queries, qrels, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    beir.write(folder / "collection", tables())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        patch.setenv("RETRIEVAX_PROCESSES", "1")
        for name, value in {
            "VOCAB_SIZE": VOCAB,
            "WIDTH": WIDTH,
            "QUERY_LENGTH": 8,
            "DOCUMENT_LENGTH": 16,
        }.items():
            patch.setattr(small, name, value)
        yield folder


def run(folder, name, evaluate=False):
    given = f"folder={folder / 'collection'},recipe={name},steps=2,batch=8,run={folder / 'small'}"
    config = recipe.get_config(given)
    config.schedule.update(eval_every=2, save_every=2)
    config.mesh.axes.data = 1  # compiles faster
    if "groups" in config.batch:
        config.batch.groups.update(clusters=3, width=4)
    config.evaluation.bm25_grid.update(k1=(0.9,), b=(0.4,), title_weight=(1.0,))
    experiment = run_dirs.start(folder / name, config.to_dict())
    experiment.train()
    if evaluate:
        assert experiment.evaluate().means["dual_encoder"]["recall@100"] == 1
    trained = Trained.load(
        folder / name, run_dirs.load_config(folder / name), batch_size=8, devices=jax.devices()[:1]
    )
    vectors, _ = trained.queries([WORDS[0], f"{WORDS[1]} {WORDS[2]}"])
    assert np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-6


@pytest.fixture(scope="module")
def base(folder):
    """The run that others begin with."""
    run(folder, "small", evaluate=True)


@pytest.mark.slow
def test_a_recipe_runs_end_to_end(folder):
    run(folder, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_recipe_runs_end_to_end(folder, base, name):
    run(folder, name)


@pytest.mark.slow
def test_a_run_is_adapted_without_its_encoder(folder, base):
    settings = [adapter.Settings(rank=rank, sides="both", negatives=3, epochs=2) for rank in (2, 4)]
    found = adapt.of_run(str(folder / "small"), str(folder / "adapted"), settings)
    assert set(found.means) == {"dual_encoder", "rank-2", "rank-4"}
    assert found.means["dual_encoder"]["ndcg@10"] == pytest.approx(
        results.read(folder / "small").means["dual_encoder"]["ndcg@10"]
    )
    saved = np.load(folder / "adapted" / "adapters" / "rank-2.npz")
    assert {name: saved[name].shape for name in saved} == {
        "query/a": (WIDTH, 2), "query/b": (2, WIDTH), "document/a": (WIDTH, 2), "document/b": (2, WIDTH),
    }  # fmt: skip


@pytest.mark.slow
def test_queries_of_a_run_search_the_index_of_another(folder, base):
    runs = [str(folder / "small"), str(folder / "small")]
    found = compatibility.of_runs(runs, "ndcg@10")
    own = results.read(folder / "small").means["dual_encoder"]["ndcg@10"]
    np.testing.assert_allclose([found["matrix"][0][0], *found["matrix"][1]], own, rtol=1e-6)
    assert found["matrix"][0][1] is None
    assert found["average_compatibility"] == 0  # the same is not better
    assert f"{own:.4f} -" in "\n".join(compatibility.lines(found))


@pytest.mark.slow
def test_layers_by_widths(folder, base):
    found = layer_grid.of_run(str(folder / "small"), [8], "ndcg@10")
    assert found["widths"] == [8, WIDTH]
    assert [row["layers"] for row in found["grid"]] == [1, 2]
    own = results.read(folder / "small").means["dual_encoder"]["ndcg@10"]
    assert found["grid"][1]["values"][1] == pytest.approx(own)
    table = "\n".join(layer_grid.lines(found))
    assert re.search(r"^\| 2 ", table, flags=re.MULTILINE)
    assert json.loads((folder / "small" / "layers.json").read_text()) == found


def test_the_shallower_tower_says_how_many_layers():
    tower = lambda layers, pooler=None: types.SimpleNamespace(
        encoder=types.SimpleNamespace(num_layers=layers), pooler=pooler
    )
    assert layer_grid._layers("run", towers.separate(tower(2), tower(3))) == 2
    with pytest.raises(ValueError, match="run: its encoder has no layers"):
        layer_grid._layers("run", towers.separate(tower(2), tower(0)))
    with pytest.raises(ValueError, match="run: its pooler is AllLayers; allowed"):
        layer_grid._layers("run", towers.separate(tower(2), tower(2, AllLayers(latents=1, heads=1))))


def test_a_run_to_begin_with_is_asked_for():
    with pytest.raises(ValueError, match="run is empty"):
        recipe.get_config("folder=x,recipe=lora")
