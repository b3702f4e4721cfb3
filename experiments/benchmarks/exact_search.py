"""Speed of exact search on the CPU beside FAISS (IndexFlatIP) and PyTorch (`torch.topk(q @ d.T, k)`).

The vectors are random unit vectors. Ours must find what the peers find, or there is no report. A bare
matrix product of the same shapes says how much of the time is selection.

    make bench
    python -m experiments.benchmarks.exact_search --json
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np

from experiments.benchmarks import harness
from index import exact

_TOLERANCE = 1e-4
_BATCHES = 4  # distinct ones, so that none is served from the cache of the last


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.exact_search",
        "Exact search on the CPU: queries per second, ours beside the faster of FAISS and PyTorch.",
        "python -m experiments.benchmarks.exact_search --json",
    )
    parser.add_argument("--documents", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=256, help="of the vectors; default: %(default)s")
    parser.add_argument("--k", type=int, default=100, help="results per query; default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="queries of a batch; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=25, help="timed runs of each; default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("documents", "width", "k", "batch", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    if args.k > args.documents:
        parser.error(f"--k is {args.k}; at most --documents ({args.documents}) are there to be found")
    jax.config.update("jax_platforms", "cpu")  # the peers run there
    try:
        made = measure(args.documents, args.width, args.k, args.batch, args.rounds)
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    lines = [
        f"exact search, {args.documents:,} x {args.width} float32, k={args.k}, batches of {args.batch}, "
        f"on {made['device']}",
        f"ours {made['ours']:.0f} queries/s, {made['peer_name']} {made['peer']:.0f}: "
        f"ratio {made['ratio']:.2f}; {made['matmul_fraction']:.0%} of the rate of a bare matrix product "
        f"({made['matmul_name']} {made['matmul']:.0f})",
    ]
    harness.report(made, lines, as_json=args.json)


def measure(documents: int, width: int, k: int, batch: int, rounds: int) -> dict:
    """Checks ours against both peers, times all, and returns the record.

    Raises:
      harness.BenchmarkError: if a peer is not installed or finds something else.
    """
    faiss, torch = harness.import_peers("faiss", "torch")
    vectors_ND = _unit_vectors(documents, width, seed=0)
    queries = [_unit_vectors(batch, width, seed=1 + number) for number in range(_BATCHES)]

    index = exact.build(vectors_ND)
    on_device = jax.numpy.asarray(vectors_ND)
    product = jax.jit(lambda queries_QD, vectors_ND: queries_QD @ vectors_ND.T)
    torch_vectors, torch_queries = torch.from_numpy(vectors_ND), [torch.from_numpy(q) for q in queries]
    flat = faiss.IndexFlatIP(width)
    flat.add(vectors_ND)

    searches = {
        "retrievax": lambda i: jax.block_until_ready(
            exact.search(index, queries[i % _BATCHES], k, query_batch=batch)
        ),
        "faiss IndexFlatIP": lambda i: flat.search(queries[i % _BATCHES], k),
        "torch.topk": lambda i: torch.topk(torch_queries[i % _BATCHES] @ torch_vectors.T, k),
    }
    products = {
        "jax": lambda i: product(queries[i % _BATCHES], on_device).block_until_ready(),
        "torch": lambda i: torch_queries[i % _BATCHES] @ torch_vectors.T,
    }
    for number in range(_BATCHES):
        for search in searches.values():
            check(vectors_ND, queries[number], *searches["retrievax"](number), *search(number))

    callables = searches | {f"{name} matmul": call for name, call in products.items()}
    seconds = harness.interleaved_medians(callables, rounds=rounds, warmup=2)
    rates = {name: batch / median for name, median in seconds.items()}
    peer = max(("faiss IndexFlatIP", "torch.topk"), key=rates.get)
    matmul = max((f"{name} matmul" for name in products), key=rates.get)
    return harness.record(
        name="exact_search",
        ours=rates["retrievax"],
        peer=rates[peer],
        better="higher",
        unit="queries/s",
        peer_name=peer,
        matmul=rates[matmul],
        matmul_name=matmul,
        matmul_fraction=rates["retrievax"] / rates[matmul],
        rates=rates,
        documents=documents,
        width=width,
        k=k,
        batch=batch,
        rounds=rounds,
        versions=harness.versions("jax", "faiss-cpu", "torch"),
    )


def check(vectors_ND, queries_QD, scores_QK, rows_QK, peer_scores_QK, peer_rows_QK) -> None:
    """Raises BenchmarkError unless both found the same, up to documents whose scores nearly tie.

    Scores must agree rank by rank, and each list's rows must have the scores it says: then rows
    differ only where scores are within the tolerance of 1e-4.
    """
    scores_QK, peer_scores_QK = np.asarray(scores_QK), np.asarray(peer_scores_QK)
    if not np.allclose(scores_QK, peer_scores_QK, rtol=0, atol=_TOLERANCE):
        raise harness.BenchmarkError("the scores differ from the peer's by more than 1e-4")
    for scores, rows in (scores_QK, np.asarray(rows_QK)), (peer_scores_QK, np.asarray(peer_rows_QK)):
        for query_D, row_scores, row_ids in zip(queries_QD, scores, rows, strict=True):
            if len(set(row_ids.tolist())) != len(row_ids):
                raise harness.BenchmarkError("a document was found twice for one query")
            true = vectors_ND[row_ids].astype(np.float64) @ query_D.astype(np.float64)
            if not np.allclose(true, row_scores, rtol=0, atol=_TOLERANCE):
                raise harness.BenchmarkError("rows do not have the scores that are reported for them")


def _unit_vectors(count: int, width: int, *, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
