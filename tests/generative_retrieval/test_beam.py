"""Beam search against the scores of every id, a search in Python, and tries of the live documents alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generative_retrieval import beam, exhaustive, trie
from generative_retrieval import speller as spellers
from generative_retrieval.docids import NONE
from training.build import build

V, T, B, K, MOST = 6, 4, 2, 3, 24  # MOST documents


def test_as_wide_as_the_corpus_it_is_exhaustive(tables, make_ids, pad_trie, quick_jit, monkeypatch):
    length_penalty = 1.0
    monkeypatch.setattr(trie, "_TABLE", 1)
    rng, model, seeds = np.random.default_rng(0), tables(V, T), np.arange(B)

    @quick_jit
    def search(built, live):
        settings = dict(beams=MOST, results=MOST, length_penalty=length_penalty)
        return beam.search(model.speller(seeds), built, live=live, **settings)

    for closed, share in ((True, 1.0), (True, 0.7), (False, 1.0), (False, 0.7)):
        symbols_NT = make_ids(rng, MOST, V, T, closed=closed)
        built, there_N = trie.build(symbols_NT, V), rng.random(len(symbols_NT)) < share
        found = search(pad_trie(built, MOST), built.live(there_N))
        scores_BN = model.scores(seeds, symbols_NT) / (symbols_NT >= 0).sum(axis=1) ** length_penalty
        for query, scores_N in enumerate(scores_BN):
            expected = sorted(np.flatnonzero(there_N), key=lambda row: -scores_N[row])
            nothing = MOST - len(expected)
            assert found.documents_Bn[query].tolist() == expected + [-1] * nothing
            best = [*scores_N[expected], *[-np.inf] * nothing]
            np.testing.assert_allclose(found.scores_Bn[query], best, rtol=1e-5)


# Random tries.


@pytest.fixture
def search_random(tables, make_ids, pad_trie, quick_jit):
    """The function `(seed, count, closed) -> None` that draws a trie and checks what is found in it."""
    model = tables(V, T)

    @quick_jit
    def search(built, live, seeds):
        return beam.search(model.speller(seeds), built, beams=K, results=K, live=live)

    def check(seed, count, closed):
        rng = np.random.default_rng(seed)
        symbols_NT = make_ids(rng, count, V, T, closed=closed)
        built = trie.build(symbols_NT, V)
        documents = len(symbols_NT)
        seeds = rng.integers(0, 1000, B, dtype=np.int32)
        there_SN = rng.random((B, documents)) < rng.choice([0.1, 0.5, 1.0], (B, 1))
        subset_B = rng.permutation(B)
        found = search(pad_trie(built, MOST), built.live(there_SN, subset_B), seeds)
        for query, subset in enumerate(subset_B):
            live = np.flatnonzero(there_SN[subset])
            rows = np.asarray(found.documents_Bn[query])
            rows = rows[rows != NONE]
            assert np.isin(rows, live).all()
            assert len(set(rows)) == len(rows) == min(K, len(live))
            if not len(live):
                continue
            # A search in the trie of the live documents alone finds the same: barred ones took no beam.
            alone = trie.build(symbols_NT[live], V)
            same = search(pad_trie(alone, MOST), alone.live(np.ones((B, len(live)), bool), subset_B), seeds)
            np.testing.assert_array_equal(rows, live[np.asarray(same.documents_Bn[query])[: len(rows)]])
            np.testing.assert_array_equal(found.scores_Bn[query], same.scores_Bn[query])

    return check


@pytest.mark.parametrize("examples", [50, pytest.param(10_000, marks=pytest.mark.slow)])
def test_only_live_documents_are_found_as_if_there_were_no_others(search_random, monkeypatch, examples):
    monkeypatch.setattr(trie, "_TABLE", 1)  # so that both forms of children are used, and have one shape

    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, MOST), st.booleans())
    def hold(seed, count, closed):
        search_random(seed, count, closed)

    hold()


@pytest.mark.slow
def test_it_stops_early_with_the_best_of_a_search_to_the_end(
    tables, make_ids, pad_trie, python_search, quick_jit, monkeypatch
):
    length_penalty, seeds = 1.0, range(50)
    monkeypatch.setattr(trie, "_TABLE", 1)
    model, steps = tables(V, T, scale=3.0), []
    counted = lambda speller: dataclasses.replace(
        speller, step=lambda *given: (jax.debug.callback(lambda: steps.append(1)), speller.step(*given))[1]
    )

    @quick_jit
    def search(built, seeds):
        settings = dict(beams=K, results=2, length_penalty=length_penalty)
        return beam.search(counted(model.speller(seeds)), built, **settings)

    for seed in seeds:
        symbols_NT = make_ids(np.random.default_rng(seed), MOST, V, T)
        found = jax.block_until_ready(search(pad_trie(trie.build(symbols_NT, V), MOST), np.array([seed])))
        expected = python_search(
            model,
            seed,
            symbols_NT,
            range(len(symbols_NT)),
            beams=K,
            results=2,
            length_penalty=length_penalty,
        )
        assert found.documents_Bn[0].tolist() == [row for row, _ in expected]
        np.testing.assert_allclose(found.scores_Bn[0], [score for _, score in expected], rtol=1e-5)
    jax.effects_barrier()
    assert 2 * len(seeds) < len(steps) < T * len(seeds)  # some searches stopped before the longest id's end


@pytest.mark.slow
def test_renormalized_over_what_leads_on_the_scores_of_all_live_documents_add_up_to_one(
    tables, make_ids, quick_jit
):
    symbols_NT = make_ids(np.random.default_rng(0), MOST, V, T)
    built, there_N = trie.build(symbols_NT, V), np.arange(len(symbols_NT)) % 3 > 0
    settings = dict(beams=MOST, results=MOST, renormalize=True)
    search = lambda live: beam.search(tables(V, T).speller([0, 1]), built, live=live, **settings)
    scores_Bn = quick_jit(search)(built.live(there_N)).scores_Bn
    assert np.isfinite(scores_Bn).sum(axis=1).tolist() == [there_N.sum()] * 2
    np.testing.assert_allclose(np.exp(scores_Bn).sum(axis=1), 1, rtol=1e-5)


def test_ties_go_to_the_lower_symbol_in_the_beam_and_to_the_lower_row_among_results(tables, quick_jit):
    """All symbols are alike. Three beams hold 1, 2, 3, then 11, 12, 13: rows 4, 2 and 0."""
    symbols_NT = np.array([[1, 3], [3, 1], [1, 2], [2, 1], [1, 1]], np.int32)
    built = trie.build(symbols_NT, 4)
    found = quick_jit(lambda: beam.search(tables(4, 2, scale=0.0).speller([0]), built, beams=3, results=3))()
    assert found.documents_Bn.tolist() == [[0, 2, 4]]
    np.testing.assert_allclose(found.scores_Bn, np.full((1, 3), -2 * np.log(4)), rtol=1e-6)


# With a model.


class Uncached:
    """The speller of a model that keeps nothing: each step decodes all beams from their first symbol."""

    def __init__(self, model, variables, batch):
        self.model, self.variables, self.batch = model, variables, batch

    def speller(self):
        size = len(self.batch["tokens"])

        def start(slots):
            empty = jnp.full((size, slots), NONE, jnp.int32)
            return {"symbols": empty, "depths": empty, "taken": jnp.zeros((), jnp.int32)}

        def step(symbols_BK, depth, visible_BKM, cache):
            put = lambda name, new: jax.lax.dynamic_update_slice_in_dim(
                cache[name], new, cache["taken"], axis=1
            )
            held = {
                "symbols": put("symbols", symbols_BK),
                "depths": put("depths", jnp.full_like(symbols_BK, depth)),
                "taken": cache["taken"] + symbols_BK.shape[1],
            }
            read = [
                jnp.where(visible_BKM & (held["depths"] == at)[:, None], held["symbols"][:, None], 0).max(
                    axis=2
                )
                for at in range(1, T)
            ]
            targets_BKT = jnp.stack([*read, jnp.zeros_like(symbols_BK)], axis=2)
            beams = symbols_BK.shape[1]
            rows = {name: jnp.repeat(self.batch[name], beams, axis=0) for name in ("tokens", "mask")}
            rows["targets"] = targets_BKT.reshape(-1, T)
            rows["target_mask"] = jnp.ones_like(rows["targets"])
            logits = self.model.apply(self.variables, rows).logits[:, depth]
            return logits.reshape(size, beams, -1), held

        return spellers.Speller(size, start, step)


@pytest.fixture(scope="module")
def spelled(make_pair, quick_jit):
    """A tiny encoder-decoder, its variables, 8 queries, and ids."""
    model = build(make_pair(words=V, symbols=V, bias={}))
    rng = np.random.default_rng(0)
    mask = np.arange(5) < rng.integers(1, 6, (8, 1))
    batch = {"tokens": rng.integers(0, V, (8, 5), dtype=np.int32), "mask": mask.astype(np.int32)}
    ids = 1 + np.stack(np.unravel_index(rng.choice((V - 1) ** T, 60, replace=False), (V - 1,) * T), axis=1)
    symbols_NT = ids.astype(np.int32)
    first = {name: x[: len(batch["tokens"])] for name, x in exhaustive.targets(symbols_NT).items()}
    variables = quick_jit(model.init)(jax.random.key(0), batch | first)
    sharper = jax.tree.map(lambda x: x * 2, variables)  # so that queries differ in what they find
    return model, sharper, batch, symbols_NT


@pytest.fixture(scope="module")
def search_spelled(spelled, quick_jit):
    """The compiled search, and what it finds on one device."""
    model, variables, batch, symbols_NT = spelled
    built = trie.build(symbols_NT, V)

    @quick_jit
    def search(variables, batch):
        return beam.search(spellers.of(model, variables, batch), built, beams=4, results=4)

    one = search(variables, batch)
    assert len({tuple(row) for row in one.documents_Bn.tolist()}) > 3  # queries differ
    return search, one


def assert_same(found, other):
    np.testing.assert_array_equal(found.documents_Bn, other.documents_Bn)
    np.testing.assert_allclose(found.scores_Bn, other.scores_Bn, rtol=1e-5)


def test_a_batch_split_over_eight_devices_finds_the_same(spelled, search_spelled):
    (_, variables, batch, _), (search, one) = spelled, search_spelled
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    of_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    eight = search(jax.device_put(variables, everywhere), jax.device_put(batch, of_batch))
    assert eight.documents_Bn.sharding.is_equivalent_to(of_batch, 2)
    assert_same(eight, one)


@pytest.mark.slow
def test_without_a_cache_it_finds_the_same(spelled, search_spelled, quick_jit):
    model, variables, batch, symbols_NT = spelled
    built = trie.build(symbols_NT, V)
    plain = quick_jit(
        lambda variables, batch: beam.search(
            Uncached(model, variables, batch).speller(), built, beams=4, results=4
        )
    )(variables, batch)
    assert_same(plain, search_spelled[1])


@pytest.mark.parametrize(("field", "value"), [("beams", 0), ("results", 0), ("length_penalty", -1.0)])
def test_a_number_out_of_range_is_named(tables, make_ids, field, value):
    built = trie.build(make_ids(np.random.default_rng(0), 4, 5, 3), 5)
    with pytest.raises(ValueError, match=f"{field} is {value}; allowed"):
        beam.search(tables(5, 3).speller([0]), built, **{**dict(beams=2, results=2), field: value})
