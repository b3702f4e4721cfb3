"""The trie against sets of beginnings."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generative_retrieval import trie as tries

V, T, MOST = 6, 4, 24  # MOST documents


def goes_on(ids):
    """By beginning, the symbols that lead on."""
    found = {}
    for symbols in ids:
        for depth in range(len(symbols)):
            found.setdefault(symbols[:depth], set()).add(symbols[depth])
    return found


@pytest.fixture
def check(make_ids, pad_trie, quick_jit):
    """The function `(seed, count, closed) -> None` that draws a trie and asks it about every beginning."""

    @quick_jit
    def ask(built, live, nodes_P, depth, scores_PV):
        nodes_P1, every_PV = nodes_P[:, None], jnp.broadcast_to(jnp.arange(V)[None], scores_PV.shape)
        best = built.best(nodes_P1, depth, scores_PV[:, None], V, live)[1]
        children_PV = built.child(jnp.broadcast_to(nodes_P1, scores_PV.shape), every_PV)
        masks = (built.mask(nodes_P1)[:, 0], built.mask(nodes_P1, live)[:, 0])
        return *masks, children_PV, built.document(children_PV), best

    def check(seed, count, closed):
        rng = np.random.default_rng(seed)
        symbols_NT = make_ids(rng, count, V, T, closed=closed)
        ids = [tuple(row[row >= 0].tolist()) for row in symbols_NT]
        whole = tries.build(symbols_NT, V)
        built, left = pad_trie(whole, MOST), rng.random(len(ids)) < 0.6
        some = goes_on([symbols for symbols, there in zip(ids, left, strict=True) if there])
        every, nodes = goes_on(ids), {(): tries.ROOT}
        documents = {symbols: row for row, symbols in enumerate(ids)}
        for depth in range(T):
            paths = [path for path in every if len(path) == depth]
            nodes_P = np.full(MOST, -1, np.int32)
            nodes_P[: len(paths)] = [nodes[path] for path in paths]
            scores_PV = rng.normal(size=(MOST, V)).astype(np.float32)
            asked = ask(built, whole.live(left), nodes_P, np.int32(depth), scores_PV)
            mask_PV, live_PV, children_PV, documents_PV, best_PV = (np.asarray(x) for x in asked)
            for row, path in enumerate(paths):
                on = some.get(path, set())
                assert set(np.flatnonzero(mask_PV[row])) == every[path]
                assert set(np.flatnonzero(live_PV[row])) == on
                assert set(np.flatnonzero(children_PV[row] >= 0)) == every[path]
                ended = [documents.get((*path, symbol), -1) for symbol in range(V)]
                assert documents_PV[row].tolist() == ended
                nodes |= {(*path, symbol): children_PV[row, symbol] for symbol in every[path]}
                expected = [nodes[(*path, symbol)] for symbol in sorted(on, key=lambda s: -scores_PV[row, s])]
                assert best_PV[row].tolist() == expected + [-1] * (V - len(on))
            for asked_PV in (mask_PV, live_PV, children_PV >= 0, best_PV >= 0):
                assert not asked_PV[len(paths) :].any()  # -1 is no node
        assert len(set(nodes.values())) == len(nodes) == len(whole.symbols)

    return check


@pytest.mark.parametrize("table", [1, 4_194_304])
def test_every_node_leads_on_as_the_ids_do(check, monkeypatch, table):
    monkeypatch.setattr(tries, "_TABLE", table)

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, MOST), st.booleans())
    def hold(seed, count, closed):
        check(seed, count, closed)

    hold()


def test_a_table_of_some_depths_and_lists_below_lead_on_alike(check, monkeypatch):
    monkeypatch.setattr(tries, "_TABLE", 7 * V)  # the root and at most five nodes below it
    check(0, MOST, True)
    check(1, MOST, False)


def test_a_subset_that_does_not_fit_is_refused(make_ids):
    built = tries.build(make_ids(np.random.default_rng(0), 9, V, T), V)
    with pytest.raises(ValueError, match=r"documents are bool \[1, 3\]; allowed: bool \[S, "):
        built.live(np.ones(3, bool))
    with pytest.raises(ValueError, match="of_query has 2; allowed: 0 to 1"):
        built.live(np.ones((2, built.num_documents), bool), np.array([0, 2]))
