"""Experts that are looked up."""

import jax
import numpy as np
import pytest

from moe import tables
from moe.experts import Dense
from moe.feed_forward import Context
from moe.groups import Tokens
from moe.mixture import Mixture, replayed
from moe.one_hot import OneHot
from training.build import build

B, L, D, E, F, V = 3, 4, 5, 4, 6, 10
TOKENS = np.array([[1, 2, 3, 9], [0, 1, 1, 0], [-1, 2, 10, 3]], np.int32)  # 10 is none, -1 a prefix
DOMAINS = np.array([2, 0, 1], np.int32)
VALID = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], bool)

TABLE = np.array([3, 0, 0, 2, 1, 1, 2, 3, 0, 1])
TWO = np.stack([TABLE, np.where(np.arange(V) < 5, (TABLE + 1) % E, -1)], axis=1)
GROUPS = ((0, 1), (2,), (1, 3))


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def known(token, size=V):
    return 0 <= token < size


ROUTERS = {
    # router, and its experts of (token, domain)
    "token": (tables.ByToken(E, lambda _: TABLE), lambda t, d: [TABLE[t]] if known(t) else []),
    "two": (tables.ByToken(E, lambda _: TWO), lambda t, d: [e for e in TWO[t] if e >= 0] if known(t) else []),
    "domain": (tables.ByDomain(E), lambda t, d: [d]),
    "skills": (
        tables.ByDomain(E, experts=[[1], [2, 3], [0]], always=[0]),
        lambda t, d: [[0, 1], [0, 2, 3], [0]][d],
    ),
}


def context(**fields):
    return Context(**{**dict(valid=VALID, tokens=TOKENS, domains=DOMAINS), **fields})


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("name", ROUTERS)
def test_a_mixture_equals_a_loop(drawn, name):
    router, experts = ROUTERS[name]
    mixture = Mixture(router, Dense(F), OneHot())
    x = normal((B, L, D))
    variables = drawn(mixture, x, context(), ())
    assert set(variables["params"]) == {"experts"}  # nothing of the router is trained

    @jax.jit
    def run():
        apply = lambda variables, **kw: mixture.apply(variables, x, context(), (), **kw)
        (y, _, aux), recorded = apply({"params": variables["params"]}, mutable=["routing"])
        return y, aux, apply({"params": variables["params"], **replayed(recorded)})[0]

    y, aux, again = run()
    w_in, w_out = (np.asarray(variables["params"]["experts"][n], np.float64) for n in ("in", "out"))
    expected, count = np.zeros((B, L, D)), np.zeros((B, E))
    for b, t in np.argwhere(VALID):
        found = experts(TOKENS[b, t], DOMAINS[b])
        for e in found:
            expected[b, t] += gelu(np.asarray(x, np.float64)[b, t] @ w_in[e]) @ w_out[e] / len(found)
            count[b, e] += 1
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(aux["count"], count)
    assert "probability" not in aux
    np.testing.assert_array_equal(again, y)


def rows(tokens, domains):
    tokens = np.asarray(tokens)
    numbers = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Tokens(numbers >= 0, numbers, numbers, tokens, np.asarray(domains))


def test_a_domain_has_a_group_and_a_token_one_of_it():
    router = tables.ByDomainAndToken(E, GROUPS, vocabulary=V, seed=3)
    every = np.tile(np.arange(-1, V + 1, dtype=np.int32), (4, 1))
    domains = np.tile(np.array([[0], [1], [2], [3]], np.int32), (1, V + 2))  # there is no domain 3
    run = lambda router: router.apply({}, np.zeros((4, V + 2, D)), rows(every, domains))
    found = run(router)
    expert, keep = (np.asarray(v).reshape(4, V + 2) for v in (found.expert, found.keep))
    np.testing.assert_array_equal(keep[:3], np.tile([False] + [True] * V + [False], (3, 1)))
    assert not keep[3].any()
    assert [set(row[1:-1].tolist()) for row in expert[:3]] == [set(g) for g in GROUPS]
    assert (np.asarray(found.weight)[np.asarray(found.keep)] == 1).all()
    np.testing.assert_array_equal(run(router.clone()).expert, found.expert)
    assert not np.array_equal(run(router.clone(seed=4)).expert, found.expert)


def test_a_random_table_is_even_and_follows_its_seed():
    found = tables.random(8, vocabulary=16000, seed=1)
    np.testing.assert_array_equal(found, tables.random(8, vocabulary=16000, seed=1))
    assert (found != tables.random(8, vocabulary=16000, seed=2)).mean() > 0.8
    np.testing.assert_allclose(np.bincount(found, minlength=8), 2000, atol=170)


def test_a_balanced_table_fills_the_emptiest_expert():
    # 9 -> 0; 7 -> 1; 4 -> 2; 4 -> 2 (4 < 7); 2 -> 1 (7 < 8 < 9); 1 -> 2 (8).
    # Those never seen go by the number of ids.
    found = tables.balanced(3, frequencies=[4, 9, 0, 4, 1, 7, 2, 0, 0])
    assert found.tolist() == [2, 0, 0, 2, 2, 1, 1, 0, 1]


def test_a_balanced_table_is_within_one_token_type_of_even():
    frequency = 1000 / np.arange(1, 2001)
    load = np.bincount(tables.balanced(4, frequencies=frequency), weights=frequency)
    assert load.max() - load.min() <= frequency.min() * 1.01
    assert np.bincount(tables.random(4, vocabulary=2000), weights=frequency).std() > 100 * load.std()


def test_tables_can_lie_in_files(tmp_path):
    np.save(tmp_path / "frequencies.npy", np.array([5.0, 1, 3, 3]))
    np.save(tmp_path / "table.npy", TWO)
    assert tables.balanced(2, frequencies=str(tmp_path / "frequencies.npy")).tolist() == [0, 0, 1, 1]
    spec = dict(
        name="moe.tables.ByToken",
        num_experts=E,
        table=dict(name="moe.tables.given", experts=str(tmp_path / "table.npy")),
    )
    found = build(spec).apply({}, np.zeros((1, 2, D)), rows([[4, 6]], [[0, 0]]))
    assert found.expert[found.keep].tolist() == [1, 2, 2]
    np.testing.assert_array_equal(found.weight[found.keep], [0.5, 0.5, 1.0])


@pytest.mark.parametrize(
    ("router", "missing", "said"),
    [
        (tables.ByToken(E, lambda _: TABLE), "tokens", "the batch has no token ids"),
        (tables.ByDomain(E), "domains", "the batch has no domains"),
        (tables.ByDomainAndToken(E, GROUPS, V), "domains", "the batch has no domains"),
        (tables.ByDomainAndToken(E, GROUPS, V), "tokens", "the batch has no token ids"),
        (tables.ByToken(2, lambda _: TABLE), None, "experts are 0 to 3; allowed: -1 to 1"),
        (tables.ByToken(E, lambda _: TABLE / 2), None, "experts are float64 .10,.; allowed: integers"),
        (
            tables.ByDomain(E, experts=[[0], []]),
            None,
            r"experts of domain 1 are \(\); allowed: at least one of 0",
        ),
        (
            tables.ByDomain(E, experts=[[0, 0]]),
            None,
            r"experts of domain 0 are \(0, 0\); allowed.*none twice",
        ),
        (tables.ByDomain(E, experts=[[0]], always=[4]), None, r"experts of domain 0 are \(4, 0\)"),
        (tables.ByDomain(E, experts=[]), None, "experts are of no domain"),
        (
            tables.ByDomainAndToken(E, ((0, 4),), V),
            None,
            r"groups of domain 0 are \(0, 4\); allowed.* 0 to 3",
        ),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said(router, missing, said):
    batch = rows(TOKENS, np.broadcast_to(DOMAINS[:, None], TOKENS.shape))
    if missing:
        batch = batch.replace(**{missing: None})
    with pytest.raises(ValueError, match=said):
        router.apply({}, np.zeros((B, L, D)), batch)


def test_frequencies_are_counts():
    with pytest.raises(
        ValueError, match=r"frequencies have the shape \(2,\); allowed: \[V\] numbers of at least 0"
    ):
        tables.balanced(2, frequencies=[1, -1])
