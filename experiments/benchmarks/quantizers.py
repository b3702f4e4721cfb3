"""k-means and quantizers beside scikit-learn and FAISS: what they leave of the same vectors, and time.

The inertia of k-means stands beside scikit-learn's (`KMeans`, one k-means++ start), the mean squared error of
product and residual codes beside FAISS's (`ProductQuantizer`, and `ResidualQuantizer` with as wide a beam).
What a system leaves is the mean over three seeds; a ratio above 1.02 is more than the 2% that are allowed.
Vectors are a mixture of Gaussians whose parts differ in weight and whose directions differ in spread, or
those of a file.

    make bench
    python -m experiments.benchmarks.quantizers --json
    python -m experiments.benchmarks.quantizers --vectors vectors.npy
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from clustering import kmeans, product, residual
from experiments.benchmarks import harness

BAR = 1.02
_SEEDS = 3
_ITERATIONS = 25
_CENTERS = 200


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.quantizers",
        "Inertia and reconstruction errors beside scikit-learn's and FAISS's on the same vectors.",
        "python -m experiments.benchmarks.quantizers --json",
    )
    parser.add_argument("--vectors", help="a .npy file of floats [N, D]; default: a mixture of Gaussians")
    parser.add_argument("--documents", type=int, default=16_384, help="of the mixture; default: %(default)s")
    parser.add_argument("--width", type=int, default=64, help="of the mixture; default: %(default)s")
    parser.add_argument("--k", type=int, default=256, help="clusters of k-means; default: %(default)s")
    parser.add_argument("--codes", type=int, default=8, help="codes of a vector; default: %(default)s")
    parser.add_argument("--bits", type=int, default=6, help="of a code; default: %(default)s")
    parser.add_argument("--beam", type=int, default=5, help="of residual codes; default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("documents", "width", "k", "codes", "bits", "beam"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    jax.config.update("jax_platforms", "cpu")  # the peers run there
    try:
        vectors_ND = read(args.vectors) if args.vectors else mixture(args.documents, args.width)
        made = measure(vectors_ND, args.k, args.codes, args.bits, args.beam, args.vectors or "mixture")
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    lines = [f"{made['documents']:,} x {made['width']} float32 ({made['data']}), on {made['device']}"]
    lines += [
        f"{row['quantizer']:<20} {row['ours']:12.6g}, {row['peer_name']} {row['peer']:.6g}: ratio "
        f"{row['ratio']:.4f}; {row['seconds']:.2f} s, {row['peer_seconds']:.2f} s: {row['time_ratio']:.2f}"
        for row in made["rows"]
    ]
    harness.report(made, lines, as_json=args.json)


def measure(vectors_ND: np.ndarray, k: int, codes: int, bits: int, beam: int, data: str) -> dict:
    """Trains ours and the peers' on the same vectors and returns the record, one row a quantizer.

    The record's `ours`, `peer` and `ratio` are those of the row with the largest ratio.

    Raises:
      harness.BenchmarkError: a peer is not installed, or the vectors do not allow these numbers.
    """
    cluster, faiss = harness.import_peers("sklearn.cluster", "faiss")
    N, D = vectors_ND.shape
    if max(k, 2**bits) > N or D % codes:
        raise harness.BenchmarkError(
            f"vectors are {N} x {D}; allowed: k ({k}) and 2**bits ({2**bits}) up to {N}, and codes "
            f"({codes}) that divide {D}"
        )

    def sklearn_inertia(seed):
        return cluster.KMeans(k, max_iter=_ITERATIONS, n_init=1, random_state=seed).fit(vectors_ND).inertia_

    def product_error(seed):
        quantizer = faiss.ProductQuantizer(D, codes, bits)
        quantizer.cp.seed = 1234 + seed
        return peer_error(quantizer, vectors_ND)

    def residual_error(seed, width):
        quantizer = faiss.ResidualQuantizer(D, codes, bits)
        quantizer.max_beam_size = width
        quantizer.cp.seed = 1234 + seed
        return peer_error(quantizer, vectors_ND)

    ours = {
        "k-means": lambda seed: kmeans.fit(vectors_ND, k, seed=seed, iterations=_ITERATIONS).inertia,
        "product": lambda seed: product.fit(vectors_ND, codes, 2**bits, seed=seed).error(vectors_ND),
    }
    peers = {"k-means": ("scikit-learn", sklearn_inertia), "product": ("faiss", product_error)}
    for width in sorted({1, beam}):
        name = f"residual, beam {width}"
        ours[name] = lambda seed, width=width: residual.fit(
            vectors_ND, codes, 2**bits, beam=width, seed=seed
        ).error(vectors_ND)
        peers[name] = "faiss", lambda seed, width=width: residual_error(seed, width)
    rows = [compare(name, ours[name], *peers[name]) for name in ours]
    worst = max(rows, key=lambda row: row["ratio"])
    return harness.record(
        name="quantizers",
        ours=worst["ours"],
        peer=worst["peer"],
        better="lower",
        unit="squared distance",
        worst=worst["quantizer"],
        bar=BAR,
        rows=rows,
        data=data,
        documents=N,
        width=D,
        k=k,
        codes=codes,
        bits=bits,
        seeds=_SEEDS,
        versions=harness.versions("jax", "faiss-cpu", "scikit-learn"),
    )


def compare(
    name: str, ours: Callable[[int], float], peer_name: str, peer: Callable[[int], float]
) -> dict[str, Any]:
    """Returns the row of a quantizer: what both leave, the mean over seeds, and the medians of their seconds.

    `ours` and `peer` train with a seed and return what is left; a first run of each is not timed.
    """
    left = {"ours": {}, "peer": {}}

    def run(side, train):
        return lambda seed: left[side].update({seed: float(train(seed))})

    seconds = harness.interleaved_medians(
        {"ours": run("ours", ours), "peer": run("peer", peer)}, rounds=_SEEDS
    )
    means = {side: float(np.mean(list(found.values()))) for side, found in left.items()}
    return {
        "quantizer": name,
        "peer_name": peer_name,
        **means,
        "ratio": means["ours"] / means["peer"],
        "seconds": seconds["ours"],
        "peer_seconds": seconds["peer"],
        "time_ratio": seconds["ours"] / seconds["peer"],
    }


def peer_error(quantizer, vectors_ND: np.ndarray) -> float:
    """Trains a FAISS quantizer and returns the mean squared error of its reconstruction."""
    quantizer.train(vectors_ND)
    away_ND = vectors_ND - quantizer.decode(quantizer.compute_codes(vectors_ND))
    return float(np.square(away_ND).sum(dtype=np.float64) / len(vectors_ND))


def mixture(documents: int, width: int) -> np.ndarray:
    """Returns float32 [documents, width] of a mixture: weights as 1 / rank, spread as 1 / sqrt(direction)."""
    generator = np.random.default_rng(0)
    spread_D = 1 / np.sqrt(1 + np.arange(width))
    centers = generator.standard_normal((_CENTERS, width)) * spread_D
    weights = 1 / (1 + np.arange(_CENTERS))
    chosen = generator.choice(_CENTERS, documents, p=weights / weights.sum())
    noise_ND = 0.7 * generator.standard_normal((documents, width)) * spread_D
    return (centers[chosen] + noise_ND).astype(np.float32)


def read(path: str) -> np.ndarray:
    """Returns the vectors of a file as float32, or raises a BenchmarkError that says what is wrong."""
    try:
        vectors_ND = np.load(path)
    except (OSError, ValueError) as error:
        raise harness.BenchmarkError(f"--vectors {path} cannot be read: {error}") from error
    if getattr(vectors_ND, "ndim", 0) != 2 or not np.issubdtype(vectors_ND.dtype, np.floating):
        raise harness.BenchmarkError(f"--vectors {path} holds no floating-point array [N, D]")
    return np.ascontiguousarray(vectors_ND, np.float32)


if __name__ == "__main__":
    main()
