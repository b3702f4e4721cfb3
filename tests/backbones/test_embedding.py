"""The table of token vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.embedding import TokenEmbedding


def test_rows_of_the_table_and_their_gradient():
    module = TokenEmbedding(vocab_size=5, width=3)
    tokens = jnp.array([[4, 0, 4]])
    params = module.init(jax.random.key(0), tokens)
    table = params["params"]["table"]
    np.testing.assert_array_equal(module.apply(params, tokens), table[tokens])
    gradient = jax.grad(lambda p: module.apply(p, tokens).sum())(params)["params"]["table"]
    np.testing.assert_array_equal(gradient[:, 0], [1, 0, 0, 0, 2])


def test_a_token_out_of_range_is_nan_not_a_neighbor():
    module = TokenEmbedding(vocab_size=5, width=3)
    params = module.init(jax.random.key(0), jnp.array([0]))
    rows = module.apply(params, jnp.array([4, 5, -1, 2**31 - 1]))
    np.testing.assert_array_equal(jnp.isnan(rows).all(-1), [False, True, True, True])


def test_initial_vectors_have_norm_one():
    table = TokenEmbedding(2000, 64).init(jax.random.key(0), jnp.array([0]))["params"]["table"]
    assert jnp.mean(jnp.linalg.norm(table, axis=1)) == pytest.approx(1.0, abs=0.02)
    assert jnp.max(jnp.abs(table)) < 2.3 / 8, "truncated at two deviations of the untruncated normal"


def test_attend_is_the_product_with_every_row():
    module = TokenEmbedding(vocab_size=5, width=3)
    params = module.init(jax.random.key(0), jnp.array([0]))
    x = jax.random.normal(jax.random.key(1), (2, 4, 3))
    logits = module.apply(params, x, method="attend")
    np.testing.assert_allclose(
        logits, np.einsum("bld,vd->blv", x, params["params"]["table"]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("sizes", "message"), [((0, 3), "vocab_size is 0"), ((5, -1), "width is -1")])
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        TokenEmbedding(*sizes).init(jax.random.key(0), jnp.array([0]))
