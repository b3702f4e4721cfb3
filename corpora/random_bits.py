"""Random numbers of many examples at once, each a function of its example alone."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def random_bits(seed: int, step: int, examples_B: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """Returns uint64 [B, count], random numbers of each example that depend on nothing but the arguments.

    A generator for each example would take longer than the rest of the batch. These are the outputs of
    SplitMix64 (Steele et al., 2014, "Fast Splittable Pseudorandom Number Generators") from a start
    that is itself mixed out of the arguments.
    """
    start_B1 = np.zeros((len(examples_B), 1), np.uint64)
    for value in (seed, step, purpose, np.asarray(examples_B)[:, None]):
        start_B1 = _mix(start_B1 + _GOLDEN + np.asarray(value).astype(np.uint64))
    return _mix(start_B1 + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)[None, :])


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64; products wrap."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
