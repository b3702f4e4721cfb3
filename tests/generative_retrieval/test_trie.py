"""The trie against sets of beginnings."""

import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval import trie as tries


def goes_on(ids):
    """By beginning, the symbols that lead on."""
    found = {}
    for symbols in ids:
        for depth in range(len(symbols)):
            found.setdefault(symbols[:depth], set()).add(symbols[depth])
    return found


@pytest.mark.parametrize("table", [1, 4_194_304])
@pytest.mark.parametrize("seed", range(5))
def test_every_node_leads_on_as_the_ids_do(make_ids, monkeypatch, seed, table):
    monkeypatch.setattr(tries, "_TABLE", table)
    rng = np.random.default_rng(seed)
    size, length = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    symbols_NT = make_ids(rng, int(rng.integers(1, 40)), size, length)
    ids = [tuple(row[row >= 0].tolist()) for row in symbols_NT]
    built = tries.build(symbols_NT, size)
    left = rng.random(len(ids)) < 0.6
    live = built.live(left)
    every, some = goes_on(ids), goes_on([symbols for symbols, there in zip(ids, left, strict=True) if there])
    nodes = {(): tries.ROOT}
    for path in sorted(every, key=len):
        node_11 = jnp.array([[nodes[path]]])
        assert set(np.flatnonzero(built.mask(node_11)[0, 0])) == every[path]
        assert set(np.flatnonzero(built.mask(node_11, live)[0, 0])) == some.get(path, set())
        for symbol in range(size):
            child = int(built.child(jnp.array(nodes[path]), jnp.array(symbol)))
            assert (child >= 0) == (symbol in every[path])
            nodes[(*path, symbol)] = child
        scores_V = rng.normal(size=size).astype(np.float32)
        best = built.best(node_11, jnp.array(len(path)), jnp.asarray(scores_V)[None, None], size, live)
        expected = sorted(some.get(path, set()), key=lambda symbol: -scores_V[symbol])
        assert [int(child) for child in best[1][0] if child >= 0] == [nodes[(*path, s)] for s in expected]
        assert int(built.document(jnp.array(nodes[path]))) == -1
    for row, symbols in enumerate(ids):
        assert int(built.document(jnp.array(nodes[symbols]))) == row
