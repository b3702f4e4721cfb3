"""The first centroids of k-means, drawn as k-means++ does, greedily.

Arthur and Vassilvitskii, 2007, "k-means++: The Advantages of Careful Seeding": each next centroid is a vector
drawn with probability in proportion to its squared distance from the nearest one so far. As the authors
suggest in passing, several are drawn each time, 2 + ln k, and the one that leaves the smallest sum of
squared distances is kept.

Letters: S vectors, D width, K centroids, L candidates.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def draws(generator: np.random.Generator, k: int) -> np.ndarray:
    """Returns the random numbers that drawing k centroids takes: float32 [K, L], from 0 to 1."""
    return generator.random((k, 2 + int(math.log(k))), np.float32)


def plus_plus(x_SD: jax.Array, valid_S: jax.Array, draws_KL: jax.Array) -> jax.Array:
    """Draws K of the vectors; under `jit` and `vmap`.

    Args:
      x_SD: float32; best with a mean near zero, for distances are made from norms and products.
      valid_S: bool, which rows count; the first must.
      draws_KL: from `draws`. Where fewer than K vectors differ, the first is drawn again for the rest.

    Returns:
      float32 [K, D], rows of x_SD.
    """
    norms_S = (x_SD * x_SD).sum(axis=1)

    def squared(at_L):
        products_SL = jnp.matmul(x_SD, x_SD[at_L].T, precision=lax.Precision.HIGHEST)
        squared_SL = norms_S[:, None] + norms_S[at_L][None, :] - 2 * products_SL
        # What is left of the rounding where both are the same vector.
        noise_SL = 4e-7 * (norms_S[:, None] + norms_S[at_L][None, :])
        return jnp.where(valid_S[:, None] & (squared_SL > noise_SL), squared_SL, 0.0)

    def draw(weights_S, draws_L):
        sums_S = jnp.cumsum(weights_S)
        total = sums_S[-1]
        # Below the total, so that some row's sum is above it.
        points_L = jnp.minimum(draws_L * total, jnp.nextafter(total, 0.0))
        at_L = jnp.argmax(sums_S[:, None] > points_L[None, :], axis=0)
        return jnp.where((total > 0) & valid_S[at_L], at_L, 0)

    def step(number, carry):
        nearest_S, chosen_K = carry
        at_L = draw(nearest_S, draws_KL[number])
        left_SL = jnp.minimum(nearest_S[:, None], squared(at_L))
        best = jnp.argmin(left_SL.sum(axis=0))
        return left_SL[:, best], chosen_K.at[number].set(at_L[best])

    first = draw(valid_S.astype(jnp.float32), draws_KL[0, :1])
    chosen_K = jnp.zeros(len(draws_KL), jnp.int32).at[0].set(first[0].astype(jnp.int32))
    _, chosen_K = lax.fori_loop(1, len(draws_KL), step, (squared(first)[:, 0], chosen_K))
    return x_SD[chosen_K]
