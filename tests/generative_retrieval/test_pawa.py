"""The prefix-aware decoder: its logits by the formula, its parameters and its computation by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval import pawa
from training import flops
from training.build import build

V, D, B, T = 5, 8, 2, 3


def spec(make_pair, layers=1):
    pair = make_pair()
    block = pair["decoder"]["block"] | dict(name="backbones.decoder_blocks.PostNorm")
    name = "generative_retrieval.pawa.PrefixAware"
    return pair | dict(name=name, adaptor_block=block, adaptor_layers=layers)


def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 20, (B, 4), dtype=np.int32),
        "mask": np.ones((B, 4), np.int32),
        "targets": rng.integers(1, V, (B, T), dtype=np.int32),
        "target_mask": np.ones((B, T), np.int32),
    }


@pytest.mark.slow
def test_logits_are_those_of_both_tables(make_pair):
    model, plain = build(spec(make_pair)), build(make_pair())
    read = {"tokens": np.pad(batch()["targets"][:, :-1], ((0, 0), (1, 0))), "mask": batch()["target_mask"]}

    @jax.jit
    def run(key):
        variables = model.init(key, batch())
        params, bound = variables["params"], model.bind(variables)
        of_pair = plain.apply({"params": {name: params[name] for name in ("encoder", "decoder")}}, batch())
        return params, model.apply(variables, batch()), of_pair, bound.adaptor(read, bound._source(B)).last

    params, adapted, of_pair, a_BTD = jax.device_get(run(jax.random.key(0)))
    l_DDV = params["adaptor"]["output"]["kernel"].reshape(D, D, V)
    h_BTD, w_DV = of_pair.last, params["decoder"]["embed"]["table"].T
    for b in range(B):
        for t in range(T):
            own_DV = sum(a_BTD[b, t, e] * l_DDV[e] for e in range(D))
            expected = h_BTD[b, t] @ (w_DV + own_DV)
            np.testing.assert_allclose(adapted.logits[b, t], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(adapted.logits - of_pair.logits).min() > 1e-4


def test_a_table_for_each_position():
    tables = pawa.product(jnp.ones((1, 1, 2)), jnp.arange(6.0).reshape(1, 1, 6))
    assert tables.tolist() == [[[3.0, 5.0, 7.0]]]  # [1, 1] @ [[0, 1, 2], [3, 4, 5]]


def test_parameters_and_computation(make_pair):
    model, plain = build(spec(make_pair, layers=2)), build(make_pair())
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch())["params"]
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    attention, feed_forward, norms = 4 * D * D, 2 * D * 12, 3 * D
    more = D * D * V + D + 2 * (2 * attention + feed_forward + norms)
    of_pair = jax.eval_shape(plain.init, jax.random.key(0), batch())["params"]
    assert count(shapes) == count(of_pair) + more
    done = lambda model, held: flops.count(model.apply, {"params": held}, batch()).matmul
    # of each symbol: a L and h times it, besides the adaptor's two layers
    tables = B * T * (2 * D * D * V + 2 * D * V)
    layers = B * T * 2 * 2 * (2 * attention + feed_forward)
    extra = done(model, shapes) - done(plain, of_pair)
    assert tables + layers - B * T * 2 * 2 * 2 * D * D < extra < 1.3 * (tables + layers)


def test_refuses_to_be_without_an_adaptor(make_pair):
    model = build({k: v for k, v in spec(make_pair).items() if k != "adaptor_block"})
    with pytest.raises(ValueError, match="adaptor_block is None; allowed: one of"):
        model.init(jax.random.key(0), batch())
