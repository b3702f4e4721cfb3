"""Words of the text become symbols of the id."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval.task import smallest_batch
from training.build import build


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_what_is_copied_is_the_symbol_of_a_word_of_the_text(make_pair, first):
    words = 12
    spec = make_pair(words=words, symbols=words + first)
    model = build(spec | dict(name="generative_retrieval.copying.CopyingEncoderDecoder", first=first))
    params = model.init(jax.random.key(0), smallest_batch(model))["params"]
    batch = {
        "tokens": jnp.array([[3, 7, 3, 9], [5, 0, 0, 0]]),
        "mask": jnp.array([[1, 1, 1, 1], [1, 0, 0, 0]]),
        "targets": jnp.array([[4, 8], [6, 1]]),
        "target_mask": jnp.ones((2, 2), int),
    }

    def probabilities(share):
        params["copy_gate"]["bias"] = jnp.full(1, share)
        params["copy_gate"]["kernel"] = jnp.zeros_like(params["copy_gate"]["kernel"])
        return np.exp(jax.jit(model.apply)({"params": params}, batch).logits)

    copied, mixed, written = (probabilities(share) for share in (40.0, 0.0, -40.0))
    for row, there in enumerate(([3, 7, 9], [5])):
        assert set(np.flatnonzero(copied[row, 0] > 1e-6)) == {word + first for word in there}
    np.testing.assert_allclose(mixed, (copied + written) / 2, atol=1e-6)
    np.testing.assert_allclose(mixed.sum(axis=2), 1, rtol=1e-5)
