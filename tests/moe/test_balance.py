"""Balance losses on sums worked out by hand, and against the formulas of other implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import balance

# Two rows, two experts; row 0 has 4 tokens, row 1 has 2; K = 1.
HAND = {
    "count": np.array([[3.0, 1.0], [0.0, 2.0]], np.float32),
    "weight": np.array([[3.0, 1.0], [0.0, 2.0]], np.float32),
    "probability": np.array([[2.5, 1.5], [0.5, 1.5]], np.float32),
    "tokens": np.array([4.0, 2.0], np.float32),
    "entropy": np.array([2.0, 0.4], np.float32),
    "z": np.array([8.0, 1.0], np.float32),
    "domains": np.array([0, 1], np.int32),
}


def entropy(*p):
    return -sum(x * np.log(x) for x in p)


def random_sums(seed, rows=6, experts=4, k=2, layers=3):
    """Sums of random tokens, and those tokens: probabilities and choices [Y, B, L, E], valid [B, L]."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(layers, rows, 5, experts))
    probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = (np.argsort(np.argsort(-probability, axis=-1), axis=-1) < k).astype(np.float64)
    valid = np.arange(5)[None] < rng.integers(1, 6, (rows, 1))
    by_row = lambda x: jnp.asarray((x * valid[None, :, :, None]).sum(2), jnp.float32)
    tokens = jnp.asarray(np.tile(valid.sum(1), (layers, 1)), jnp.float32)
    sums = {"count": by_row(chosen), "probability": by_row(probability), "tokens": tokens}
    return sums, probability, chosen, valid


def test_load_balancing_by_hand():
    # f = (3, 3) / 6, P = (3, 3) / 6: 2 (1/4 + 1/4); the rows alone are uneven.
    assert balance.load_balancing(HAND) == pytest.approx(1.0)
    # Row 0: f = (3, 1) / 4, P = (2.5, 1.5) / 4; row 1: f = (0, 1), P = (0.25, 0.75).
    rows = 2 * (3 * 2.5 + 1 * 1.5) / 16, 2 * 0.75
    assert balance.sequence_load_balancing(HAND) == pytest.approx(np.mean(rows))
    assert balance.micro_load_balancing(HAND, parts=2) == pytest.approx(np.mean(rows))
    assert balance.micro_load_balancing(HAND, parts=1) == pytest.approx(1.0)
    # Counts of earlier microbatches, here (6, 0): f = (9, 3) / 12.
    before = {**HAND, "count_before": np.array([[2.0, 0.0], [4.0, 0.0]], np.float32)}
    assert balance.load_balancing(before) == pytest.approx(1.0)
    before["probability"] = np.array([[4.0, 0.0], [2.0, 0.0]], np.float32)
    assert balance.load_balancing(before) == pytest.approx(2 * 9 / 12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_load_balancing_is_one_where_even_and_e_where_one_expert_has_all(k):
    even = {
        "count": jnp.full((2, 3, 4), 1.5 * k),
        "probability": jnp.full((2, 3, 4), 1.5),
        "tokens": jnp.full((2, 3), 6.0),
    }
    one = np.zeros((2, 3, 4), np.float32)
    one[..., 2] = 6.0
    for loss in (balance.load_balancing, balance.sequence_load_balancing):
        assert loss(even) == pytest.approx(1.0)
        assert loss({**even, "count": one, "probability": one}) == pytest.approx(4.0)


def test_load_balancing_is_a_kth_of_what_counts_every_choice_gives():
    """The mean over tokens of each of K one-hot choices times the mean probability, as for Mixtral."""
    sums, probability, chosen, valid = random_sums(0)
    of_layer = []
    for p, c in zip(probability, chosen, strict=True):
        of_layer.append(4 * (c[valid].mean(0) * p[valid].mean(0)).sum() / 2)
    assert balance.load_balancing(sums) == pytest.approx(np.mean(of_layer), rel=1e-5)


def test_rows_without_tokens_change_nothing():
    sums, *_ = random_sums(1)
    empty = {name: jnp.pad(x, [(0, 0), (0, 6)] + [(0, 0)] * (x.ndim - 2)) for name, x in sums.items()}
    for loss in (balance.load_balancing, balance.sequence_load_balancing):
        assert loss(empty) == pytest.approx(float(loss(sums)), rel=1e-6)
    expected = balance.micro_load_balancing(sums, parts=2)
    assert balance.micro_load_balancing(empty, parts=4) == pytest.approx(float(expected), rel=1e-6)


def test_balance_of_devices_is_that_of_merged_experts():
    sums, *_ = random_sums(2)
    merged = {name: x.reshape(3, 6, 2, 2).sum(-1) if x.ndim == 3 else x for name, x in sums.items()}
    expected = float(balance.load_balancing(merged))
    assert balance.device_load_balancing(sums, devices=2) == pytest.approx(expected)
    assert balance.device_load_balancing(sums, devices=1) == pytest.approx(1.0)
    expected = float(balance.load_balancing(sums))
    assert balance.device_load_balancing(sums, devices=4) == pytest.approx(expected)


def test_importance_by_hand():
    # Weights of the batch (3, 3) are even; those of row 0 alone have mean 2 and variance 1.
    assert balance.importance(HAND) == 0.0
    assert balance.importance({"weight": HAND["weight"][:1]}) == pytest.approx(1 / 4)
    assert np.isfinite(jax.grad(lambda w: balance.importance({"weight": w}))(jnp.zeros((2, 2)))).all()


def test_router_z_is_a_mean_over_tokens():
    assert balance.router_z(HAND) == pytest.approx(9 / 6)


def test_entropies_by_hand():
    assert balance.local_entropy(HAND) == pytest.approx(2.4 / 6)
    assert balance.local_entropy(HAND, domains=(0, 1)) == pytest.approx(2.0 / 4 + 0.4 / 2)
    assert balance.local_entropy(HAND, domains=(1,)) == pytest.approx(0.2)
    by_domain = entropy(2.5 / 4, 1.5 / 4), entropy(0.25, 0.75)
    assert balance.global_entropy(HAND) == pytest.approx(-np.log(2))
    assert balance.global_entropy(HAND, domains=(0, 1)) == pytest.approx(-sum(by_domain), rel=1e-6)
    # A threshold between the two: one domain is done, the other is not; a third is not in the batch.
    found = balance.global_entropy(HAND, domains=(0, 1, 2), threshold=0.6)
    assert by_domain[1] < 0.6 < by_domain[0]
    assert found == pytest.approx(0.6 - by_domain[1], rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        balance.load_balancing,
        balance.sequence_load_balancing,
        balance.router_z,
        lambda sums: balance.global_entropy(sums, domains=(0, 1), threshold=0.6),
        lambda sums: balance.local_entropy(sums, domains=(0, 1)),
    ],
)
def test_layers_are_averaged(loss):
    other = {name: x if name == "domains" else 0.5 * x + 0.5 for name, x in HAND.items()}
    both = {name: x if name == "domains" else np.stack([x, other[name]]) for name, x in HAND.items()}
    assert loss(both) == pytest.approx((float(loss(HAND)) + float(loss(other))) / 2, rel=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="parts is 4; allowed: a divisor of the batch's 2 rows"):
        balance.micro_load_balancing(HAND, parts=4)
    with pytest.raises(ValueError, match="devices is 3; allowed: a divisor of the 2 experts"):
        balance.device_load_balancing(HAND, devices=3)
    with pytest.raises(ValueError, match=r"no 'probability'; allowed: losses of count, tokens"):
        balance.load_balancing({name: HAND[name] for name in ("count", "tokens")})
    with pytest.raises(ValueError, match=r"domains is \(0, 1\); allowed: \(\)"):
        balance.local_entropy({name: x for name, x in HAND.items() if name != "domains"}, domains=(0, 1))


def test_what_is_not_there_has_a_finite_gradient():
    """A domain without a token, and an expert whose probability has underflowed in every token."""
    tokens = jnp.full((1, 2), 4.0)

    def absent(probability):
        sums = {"probability": probability, "tokens": tokens, "domains": jnp.array([0, 0])}
        return balance.global_entropy(sums, domains=(0, 1))

    def underflown(probability):
        return balance.global_entropy({"probability": probability, "tokens": tokens}, threshold=1.0)

    assert jnp.isfinite(jax.grad(absent)(jnp.ones((1, 2, 3)) * 4 / 3)).all()
    assert jnp.isfinite(jax.grad(underflown)(jnp.array([[[4.0, 0, 0], [4.0, 0, 0]]]))).all()
