"""The mixture against a loop over tokens, and what it records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from moe.capacity import Capacity
from moe.experts import Dense, Gated
from moe.feed_forward import Context
from moe.mixture import Mixture, replayed
from moe.one_hot import OneHot
from moe.routers import TopK

B, L, D, E, K, F = 3, 5, 8, 4, 2, 6


def layer(**fields):
    base = dict(router=TopK(E, K), experts=Dense(F), dispatcher=OneHot())
    return Mixture(**{**base, **fields})


def inputs(seed=0):
    x_BLD = jax.random.normal(jax.random.key(seed), (B, L, D))
    valid_BL = np.ones((B, L), bool)
    valid_BL[1, 3:] = False
    return x_BLD, Context(valid=jnp.asarray(valid_BL))


def brute(params, x_BLD, valid_BL, capacity=None, gated=False):
    """A loop over tokens in order: each goes to its experts while they have places in its sequence."""
    x_BLD = np.asarray(x_BLD, np.float64)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    y = np.zeros_like(x_BLD)
    dropped = np.zeros(B)
    for b in range(B):
        used = np.zeros(E, int)
        for t in range(L):
            if not valid_BL[b, t]:
                continue
            logits = x_BLD[b, t] @ p["router"]["score"]["kernel"]
            probability = np.exp(logits - logits.max())
            probability /= probability.sum()
            chosen = np.argsort(-probability, kind="stable")[:K]
            weights = probability[chosen] / probability[chosen].sum()
            for e, w in zip(chosen, weights, strict=True):
                if capacity is not None and used[e] >= capacity:
                    dropped[b] += 1
                    continue
                used[e] += 1
                if gated:
                    gate = x_BLD[b, t] @ p["experts"]["gate"][e]
                    hidden = gate / (1 + np.exp(-gate)) * (x_BLD[b, t] @ p["experts"]["in"][e])
                else:
                    h = x_BLD[b, t] @ p["experts"]["in"][e]
                    hidden = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
                y[b, t] += w * (hidden @ p["experts"]["out"][e])
    return y, dropped


def close(a, b):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("gated", [False, True])
def test_every_token_gets_the_weighted_sum_of_its_experts(drawn, gated):
    x, context = inputs()
    module = layer(experts=Gated(F) if gated else Dense(F))
    params = drawn(module, x, context, ())["params"]
    y, carry, aux = jax.jit(module.apply)({"params": params}, x, context, ())
    expected, _ = brute(params, x, np.asarray(context.valid), gated=gated)
    close(y, expected)
    assert carry == ()
    assert np.asarray(aux["count"]).sum(1).tolist() == [L * K, 3 * K, L * K]
    assert np.asarray(aux["tokens"]).tolist() == [L, 3, L]
    assert not np.asarray(aux["dropped"]).any()


def test_an_expert_serves_the_first_tokens_of_a_sequence_up_to_its_capacity(drawn):
    x, context = inputs()
    # C = ceil(0.8 * 2 * 5 / 4) = 2
    module = layer(dispatcher=OneHot(Capacity(factor=0.8, tokens=L)))
    params = drawn(module, x, context, ())["params"]
    y, _, aux = jax.jit(module.apply)({"params": params}, x, context, ())
    expected, dropped = brute(params, x, np.asarray(context.valid), capacity=2)
    close(y, expected)
    assert dropped.sum() > 0
    assert np.asarray(aux["dropped"]).tolist() == dropped.tolist()


def test_a_recorded_routing_is_replayed_to_the_bit(drawn):
    x, context = inputs()
    module = layer(dispatcher=OneHot(Capacity(factor=0.8, tokens=L)))
    params = drawn(module, x, context, ())["params"]
    (y, _, aux), recorded = module.apply({"params": params}, x, context, (), mutable=["routing"])
    again, _, _ = module.apply({"params": params, **replayed(recorded)}, x, context, ())
    np.testing.assert_array_equal(again, y)

    # Another input goes where the first one went, not where it would go itself.
    other = jax.random.normal(jax.random.key(5), x.shape)
    _, _, again = module.apply({"params": params, **replayed(recorded)}, other, context, ())
    _, _, free = module.apply({"params": params}, other, context, ())
    np.testing.assert_array_equal(again["served"], aux["served"])
    assert (free["served"] != aux["served"]).any()


def test_a_layer_that_is_called_twice_does_not_replay_itself(drawn):
    """As tied towers do: the second call chooses for its own input."""

    class Twice(nn.Module):
        mixture: Mixture

        def __call__(self, x, other, context):
            return self.mixture(x, context, ())[0], self.mixture(other, context, ())[0]

    x, context = inputs()
    other = jax.random.normal(jax.random.key(5), x.shape)
    module = Twice(layer())
    params = drawn(module, x, other, context)["params"]
    plain = module.apply({"params": params}, x, other, context)
    recorded, _ = module.apply({"params": params}, x, other, context, mutable=["routing"])
    np.testing.assert_array_equal(recorded[1], plain[1])


def test_shared_experts_add_to_the_routed_ones(drawn):
    from moe import feed_forward

    x, context = inputs()
    module = layer(shared=feed_forward.Dense(F))
    params = drawn(module, x, context, ())["params"]
    y, _, _ = jax.jit(module.apply)({"params": params}, x, context, ())
    routed = {name: params[name] for name in ("router", "experts")}
    alone, _, _ = layer().apply({"params": routed}, x, context, ())
    shared, _, _ = feed_forward.Dense(F).apply({"params": params["shared"]}, x, context, ())
    close(y, alone + shared)


def test_groups_must_divide_the_batch():
    x, context = inputs()
    with pytest.raises(ValueError, match="group_rows is 2; allowed: a divisor of the batch's 3 rows"):
        layer(group_rows=2).init(jax.random.key(0), x, context, ())


def test_the_router_scores_in_float32_under_bfloat16(drawn):
    x, context = inputs()
    module = layer()
    params = drawn(module, x, context, ())["params"]
    half = x.astype(jnp.bfloat16)
    y, _, aux = jax.jit(module.apply)({"params": params}, half, context, ())
    _, _, exact = jax.jit(module.apply)({"params": params}, half.astype(jnp.float32), context, ())
    assert y.dtype == jnp.bfloat16
    assert aux["z"].dtype == jnp.float32
    np.testing.assert_array_equal(aux["z"], exact["z"])


def test_a_shared_layer_that_gives_sums_is_refused():
    """Its experts would be trained without balance."""
    x, context = inputs()
    with pytest.raises(ValueError, match=r"shared gives sums .*; allowed: a layer that gives none"):
        jax.eval_shape(layer(shared=layer()).init, jax.random.key(0), x, context, ())


def test_a_recording_of_other_experts_is_refused(drawn):
    x, context = inputs()
    module = layer()
    params = drawn(module, x, context, ())["params"]
    _, recorded = module.apply({"params": params}, x, context, (), mutable=["routing"])
    choice = recorded["routing"]["choice"].replace(num_experts=E + 1)
    with pytest.raises(ValueError, match=f"of {E + 1} experts; allowed: {E}"):
        module.apply({"params": params, "replay": {"choice": choice}}, x, context, ())
