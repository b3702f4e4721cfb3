import jax
import jax.numpy as jnp
import numpy as np

from clustering import seeding

plus_plus = jax.jit(seeding.plus_plus)


def draw(x_SD, valid_S, seed):
    return np.asarray(plus_plus(x_SD, valid_S, seeding.draws(np.random.default_rng(seed), 4)))


def test_each_of_a_few_distinct_vectors_is_drawn_once():
    # Four values, many times each; a vector that was drawn has distance 0 and is not drawn again.
    values_KD = np.array([[-3.0, 0.0], [-1.0, 0.5], [1.0, 0.5], [3.0, -1.0]], np.float32)
    x_SD = np.repeat(values_KD, [40, 5, 2, 17], axis=0)
    for seed in range(5):
        drawn_KD = draw(x_SD, np.ones(64, bool), seed)
        np.testing.assert_array_equal(drawn_KD[np.argsort(drawn_KD[:, 0])], values_KD)


def test_rows_that_do_not_count_are_not_drawn():
    x_SD = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    x_SD[20:] = 100
    valid_S = np.arange(64) < 20
    for seed in range(5):
        assert (draw(x_SD, valid_S, seed) < 100).all()
    # Fewer than k vectors: the first again, never one that does not count.
    drawn_KD = draw(x_SD, np.arange(64) < 2, 0)
    assert {tuple(row) for row in drawn_KD.tolist()} == {tuple(row) for row in x_SD[:2].tolist()}


def test_far_vectors_are_drawn_more_often():
    # From 0 the next is drawn in proportion to 1, 4 and 9, twice. Of the two, 1 would leave 1 + 4 and is kept
    # only if drawn twice; 2 and 3 would each leave 2, and the first of them is kept.
    x_SD = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    draws_RKL = np.random.default_rng(0).random((2000, 2, 2), np.float32)
    run = jax.jit(jax.vmap(seeding.plus_plus, in_axes=(None, None, 0)))
    drawn = np.asarray(run(x_SD, jnp.ones(4, bool), draws_RKL))[:, :, 0]
    seconds = drawn[drawn[:, 0] == 0, 1]
    shares = [(seconds == value).mean() for value in (1, 2, 3)]
    expected = [1 / 196, 4 / 13 * 195 / 196, 9 / 13 * 195 / 196]
    np.testing.assert_allclose(shares, expected, atol=0.05)
