"""Product quantizer (Jégou, Douze and Schmid, 2011, "Product Quantization for Nearest Neighbor Search").

A vector is cut into M equal parts, and each part is replaced by the nearest of K centroids that k-means found
among the same parts of all vectors: M codes below K for a vector.

Letters: N vectors, D width, M parts, C = D / M width of a part, K centroids of a part.
"""

import dataclasses

import jax
import numpy as np
from jax.sharding import NamedSharding

from clustering import codes as coding
from clustering import kmeans
from clustering import rows as reading
from clustering.rows import Rows, Seed


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """The quantizer: codebooks_MKC float32."""

    codebooks_MKC: np.ndarray

    def encode(self, vectors, *, sharding: NamedSharding | None = None) -> np.ndarray:
        """Returns the codes int32 [N, M] of `vectors`: of each part the nearest centroid, ties to the lower.

        Raises:
          ValueError: `vectors` is malformed, not finite, or not as wide as the quantizer's.
        """
        M, K, C = self.codebooks_MKC.shape
        rows = Rows(vectors)
        if rows.width != M * C:
            raise ValueError(f"vectors are {rows.width} wide; allowed: {M * C}, the width of the quantizer")
        size = reading.block_size(len(rows), M * K, sharding)
        run, codes_NM, start = (
            reading.jitted(_nearest_of_parts, sharding),
            np.empty((len(rows), M), np.int32),
            0,
        )
        for x_BD, count in rows.blocks(size, sharding):
            codes_BM, squared_B = run(x_BD, self.codebooks_MKC)
            reading.check_finite(np.asarray(squared_B))
            codes_NM[start : start + count] = np.asarray(codes_BM)[:count]
            start += count
        return codes_NM

    def decode(self, codes_NM: np.ndarray) -> np.ndarray:
        """Returns the vectors float32 [N, D] that codes stand for.

        Raises:
          ValueError: the codes are not [N, M], or not all from 0 to K - 1.
        """
        M, K, C = self.codebooks_MKC.shape
        codes_NM = coding.checked_codes(codes_NM, M, K)
        return self.codebooks_MKC[np.arange(M)[None, :], codes_NM].reshape(len(codes_NM), M * C)

    def error(self, vectors, *, sharding: NamedSharding | None = None) -> float:
        """Returns the mean squared distance of vectors from what their codes stand for."""
        rows = Rows(vectors)
        return coding.mean_squared_distance(rows, self.encode(rows, sharding=sharding), self.decode)


def fit(
    vectors,
    parts: int,
    k: int,
    *,
    seed: Seed = 0,
    iterations: int = 25,
    restarts: int = 1,
    sample: int | None = None,
    sharding: NamedSharding | None = None,
) -> Product:
    """Trains a product quantizer.

    Args:
      vectors: floating point [N, D], or a sequence of blocks, see `rows.Rows`.
      parts: M, a divisor of D.
      k: centroids of a part, N at most.
      seed: an int, 0 or more, or several, or a key of jax.random.
      iterations, restarts: of k-means, as in `kmeans.fit`.
      sample: trains on so many vectors, drawn at random and held in memory; by default 256 for each of the
        k. All, if there are fewer.
      sharding: of the rows of a block over a mesh, such as `training.mesh.batch_sharding(mesh)`.

    Raises:
      ValueError: a number is out of its range, or `vectors` is malformed or not finite.
    """
    rows = Rows(vectors)
    reading.check_count("parts", parts)
    if rows.width % parts:
        raise ValueError(f"parts is {parts}; allowed: divisors of {rows.width}, the width of the vectors")
    sample = coding.checked_sample(sample, k, len(rows))
    seed = reading.seed_numbers(seed)
    x_NMC = rows.sample(sample, reading.generator(seed, parts)).reshape(-1, parts, rows.width // parts)
    found = [
        kmeans.fit(
            x_NMC[:, part],
            k,
            seed=(*seed, part),
            iterations=iterations,
            restarts=restarts,
            sharding=sharding,
        ).centroids_KD
        for part in range(parts)
    ]
    return Product(np.stack(found))


def _nearest_of_parts(x_BD, codebooks_MKC):
    M, _, C = codebooks_MKC.shape
    of_parts = jax.vmap(kmeans.nearest, in_axes=(1, 0), out_axes=1)
    codes_BM, squared_BM = of_parts(x_BD.reshape(-1, M, C), codebooks_MKC)
    return codes_BM, squared_BM.sum(axis=1)
