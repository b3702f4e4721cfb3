"""Random numbers of examples: of their own example alone, and even."""

import numpy as np

from corpora.random_bits import random_bits


def splitmix64(state, count):
    """The reference: Steele et al. (2014), in Python's integers."""
    mask, out = 2**64 - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_equals_splitmix64_from_the_mixed_start():
    start = 0
    for value in (5, 7, 1, 11):  # seed, step, purpose, example
        start = splitmix64((start + value) & (2**64 - 1), 1)[0]
    assert random_bits(5, 7, np.array([11]), 1, 4)[0].tolist() == splitmix64(start, 4)
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]  # the first output of the published generator from 0


def test_depend_on_every_argument_and_on_no_other_example():
    base = random_bits(0, 3, np.array([4, 9, 2]), 0, 5)
    np.testing.assert_array_equal(base[[1]], random_bits(0, 3, np.array([9]), 0, 5))
    others = [random_bits(1, 3, np.array([9]), 0, 5), random_bits(0, 4, np.array([9]), 0, 5)]
    others += [random_bits(0, 3, np.array([9]), 1, 5), random_bits(0, 3, np.array([8]), 0, 5)]
    for other in others:
        assert not (other == base[1]).any()


def test_are_even_over_examples_and_steps():
    remainders = np.concatenate(
        [random_bits(0, step, np.arange(1_000), 0, 6).reshape(-1) % np.uint64(5) for step in range(10)]
    )
    # 60,000 draws of 5 values: a standard deviation of 98 around 12,000.
    assert np.abs(np.bincount(remainders.astype(int)) - 12_000).max() < 500
