"""Vectors read some rows at a time: from an array, a file mapped into memory, or a sequence of blocks.

Everything in this room reads its vectors through `Rows` and sees them as float32 blocks of one size, padded
at the end. So nothing is ever whole on a device, and a result does not depend on how the vectors came.

Letters: N vectors, D their width, B rows of a block.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Entries of a matrix of distances that one device makes at a time: on a CPU they stay near the cache.
_ENTRIES = {"cpu": 1 << 22}
_ENTRIES_ELSEWHERE = 1 << 26
_FEWEST, _MOST = 256, {"cpu": 1 << 14}
_MOST_ELSEWHERE = 1 << 17


Seed = int | Sequence[int] | jax.Array  # a number, several, or a key of jax.random


class Rows:
    """Vectors [N, D], read as float32.

    Args:
      vectors: a floating-point array [N, D] (also an np.memmap, whose pages are read as they are needed, or
        a jax.Array, which is taken to the host), a sequence of such blocks [n, D] that can be read again and
        again, or Rows.

    Raises:
      ValueError: it is empty, not of two dimensions, not floating point, or its blocks differ in width.
    """

    def __init__(self, vectors):
        if isinstance(vectors, Rows):
            self._blocks, self._first, self._rows = vectors._blocks, vectors._first, vectors._rows
        else:
            listed = isinstance(vectors, Sequence) and not hasattr(vectors, "shape")
            self._blocks = vectors if listed else [_host(vectors)]
            shapes = [_checked_shape(_host(block)) for block in self._blocks]
            if not shapes:
                raise ValueError("vectors is an empty sequence; at least one block is needed")
            if len({width for _, width in shapes}) > 1:
                raise ValueError(
                    f"blocks are {sorted({width for _, width in shapes})} wide; allowed: one width"
                )
            self._first = np.cumsum([0] + [size for size, _ in shapes])
            self._rows = None
        self.width = _host(self._blocks[0]).shape[1]

    def __len__(self) -> int:
        return int(self._first[-1]) if self._rows is None else len(self._rows)

    def subset(self, rows: np.ndarray) -> "Rows":
        """Returns the Rows of these rows, in this order; nothing is read."""
        made = Rows(self)
        made._rows = rows if self._rows is None else self._rows[rows]
        return made

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows start to stop, float32 [stop - start, D]."""
        if self._rows is None and len(self._blocks) == 1:
            return np.asarray(_host(self._blocks[0])[start:stop], np.float32)
        return self.take(np.arange(start, min(stop, len(self))))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns these rows, float32 [n, D]."""
        rows = rows if self._rows is None else self._rows[rows]
        if len(self._blocks) == 1:
            return np.asarray(_host(self._blocks[0])[rows], np.float32)
        of_row = np.searchsorted(self._first, rows, side="right") - 1
        taken = np.empty((len(rows), self.width), np.float32)
        for number in np.unique(of_row):  # each block is read once
            here = np.flatnonzero(of_row == number)
            taken[here] = _host(self._blocks[number])[rows[here] - self._first[number]]
        return taken

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Returns `count` rows drawn without replacement, or all if there are fewer, in order: [n, D]."""
        if count >= len(self):
            return self.read(0, len(self))
        return self.take(np.sort(generator.choice(len(self), count, replace=False, shuffle=False)))

    def blocks(self, size: int, sharding: NamedSharding | None = None) -> Iterator[tuple[jax.Array, int]]:
        """Yields blocks float32 [size, D] on the device, the last padded with zeros, and the rows of each."""
        for start in range(0, len(self), size):
            block = self.read(start, start + size)
            yield placed(padded(block, size), sharding), len(block)


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns the rows [n, ...] with zeros behind them: [size, ...]."""
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def placed(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """Puts an array on the device, or over the devices of a mesh."""
    if sharding is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.cache
def jitted(function: Callable, sharding: NamedSharding | None, *static: str) -> Callable:
    """Returns the jitted function, whose results every process of the mesh has whole."""
    if sharding is None:
        return jax.jit(function, static_argnames=static)
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(function, static_argnames=static, out_shardings=whole)


def block_size(count: int, columns: int, sharding: NamedSharding | None) -> int:
    """Returns the rows of a block whose distances to `columns` centroids are made at once.

    A power of two a device, so that few programs are compiled, and no more than `count` rows need.
    """
    backend = jax.default_backend()
    most = min(_ENTRIES.get(backend, _ENTRIES_ELSEWHERE) // columns, _MOST.get(backend, _MOST_ELSEWHERE))
    devices = parts(sharding)
    needed = -(-count // devices)
    return devices * max(
        min(power_of_two(most // 2 + 1), power_of_two(needed)), min(_FEWEST, power_of_two(needed))
    )


def parts(sharding: NamedSharding | None) -> int:
    """Returns into how many parts the sharding cuts the rows of a block."""
    if sharding is None:
        return 1
    names = sharding.spec[0] if len(sharding.spec) else None
    names = (names,) if isinstance(names, str) else names or ()
    return int(np.prod([sharding.mesh.shape[name] for name in names], dtype=int))


def seed_numbers(seed: Seed) -> tuple[int, ...]:
    """Returns the numbers that a seed stands for; with more behind them they make seeds of their own.

    Raises:
      ValueError: a number is negative.
    """
    if isinstance(seed, jax.Array):
        is_key = jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key)
        seed = np.asarray(jax.random.key_data(seed) if is_key else seed).ravel().tolist()
    found = tuple(seed) if isinstance(seed, Sequence) else (int(seed),)
    if any(number < 0 for number in found):
        raise ValueError(f"seed is {seed}; allowed: 0 or more, or a key of jax.random")
    return found


def generator(*seeds: Seed) -> np.random.Generator:
    """Returns the generator of these seeds together; random numbers are drawn on the host."""
    return np.random.default_rng([number for seed in seeds for number in seed_numbers(seed)])


def check_count(name: str, value: int, least: int = 1, most: int | None = None) -> None:
    """Raises a ValueError that names the field unless least <= value <= most."""
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} is {value}; allowed: {allowed}")


def check_finite(values: np.ndarray) -> None:
    """Raises a ValueError unless these numbers, made from vectors, are finite."""
    if not np.isfinite(values).all():
        raise ValueError("vectors have non-finite values (NaN or infinity), or such that float32 overflows")


def power_of_two(n: int) -> int:
    """Returns the least power of two that is n or more."""
    return 1 << max(n - 1, 0).bit_length()


def _host(block) -> np.ndarray:
    return block if isinstance(block, np.ndarray) else np.asarray(block)


def _checked_shape(block: np.ndarray) -> tuple[int, int]:
    if block.ndim != 2 or 0 in block.shape:
        raise ValueError(
            f"vectors has shape {block.shape}; [rows, width] with at least one of each is needed"
        )
    if not np.issubdtype(block.dtype, np.floating) and block.dtype != jax.numpy.bfloat16:
        raise ValueError(f"vectors has dtype {block.dtype}; floating point is needed")
    return block.shape
