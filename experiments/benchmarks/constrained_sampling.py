"""How near samplers of docids come to the model's own distribution, and how often they ask the constraint.

A made-up model over few docids, so that every distribution can be enumerated: random logits behind every
beginning, most of whose continuations are no docids. True is the model's distribution given that it writes
the id of a document. KL(sampler || true), in nats, of plain masking and of ASAp's next sample is that of
their exact distributions; of the others, that of the weighted samples, which for n perfect samples of D
documents would be about (D - 1) / 2n ("floor").

    python -m experiments.benchmarks.constrained_sampling --json

Letters: B queries, K particles, N documents, V symbols, T symbols of an id, P beginnings of a length.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from generative_retrieval import asap, rejection, sampling, smc
from generative_retrieval import trie as tries
from generative_retrieval.docids import END, NONE
from generative_retrieval.speller import Speller

_WEIGHTED = "weighted rejection, SMC"
_ASAP = (1, 10, 100, 1_000, 10_000)  # samples


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.constrained_sampling",
        "KL of samplers of docids to the model's own distribution, and evaluations of the constraint.",
        "python -m experiments.benchmarks.constrained_sampling --json",
    )
    parser.add_argument("--documents", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--symbols", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=3, help="symbols of an id; default: %(default)s")
    parser.add_argument("--particles", type=int, default=256, help="of a query; default: %(default)s")
    parser.add_argument(
        "--per-document", type=int, default=2_000, help="most samples a document; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)
    for name in ("documents", "symbols", "length", "particles", "per_document"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least 1 is needed")
    if args.documents > (args.symbols - 1) ** args.length:
        most = (args.symbols - 1) ** args.length
        parser.error(f"--documents is {args.documents}; allowed: at most {most}, the ids that there are")
    if args.symbols**args.length > 2**22:
        parser.error(f"--symbols and --length make {args.symbols**args.length} ids; allowed: {2**22}")
    world = draw_world(args.documents, args.symbols, args.length, args.seed)
    made = measure(world, args.particles, args.per_document, args.seed)
    harness.report(made, list(lines(made)), as_json=args.json)


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Docids, and a model that is a table.

    Attributes:
      symbols_NT: int32, as in docids.Docids.
      logits: float32 [V^t, V] for each t below T, behind every beginning of t symbols, whose number has its
        first symbol as the lowest digit in base V.
    """

    symbols_NT: np.ndarray
    logits: tuple[np.ndarray, ...]

    @functools.cached_property
    def trie(self) -> tries.Trie:
        return tries.build(self.symbols_NT, self.size)

    @property
    def size(self) -> int:
        return self.logits[0].shape[1]

    @property
    def log_p(self) -> list[np.ndarray]:
        """Log-probabilities of the next symbol behind every beginning, float64."""
        return [_log_softmax(logits.astype(np.float64)) for logits in self.logits]

    @property
    def beginnings_NT(self) -> np.ndarray:
        """The number of the beginning before each symbol of the ids."""
        digits_NT = np.maximum(self.symbols_NT, 0) * self.size ** np.arange(self.symbols_NT.shape[1])
        return np.cumsum(digits_NT, axis=1) - digits_NT

    def speller(self, batch_size: int) -> Speller:
        """The model with so many queries, all alike."""
        powers_T = jnp.asarray(self.size ** np.arange(len(self.logits)))
        tables = [jnp.asarray(table) for table in self.logits]

        def start(slots: int) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros((batch_size, slots), jnp.int32), jnp.zeros((), jnp.int32)

        def step(symbols_BK, depth, visible_BKM, cache):
            digits_BM, taken = cache
            digits_BK = jnp.where(depth > 0, symbols_BK * powers_T[depth - 1], 0)
            digits_BM = jax.lax.dynamic_update_slice(digits_BM, digits_BK, (0, taken))
            beginnings_BK = jnp.where(visible_BKM, digits_BM[:, None], 0).sum(axis=2)
            of_depth = [lambda rows_BK, table=table: table[rows_BK] for table in tables]
            logits_BKV = jax.lax.switch(depth, of_depth, beginnings_BK)
            return logits_BKV, (digits_BM, taken + symbols_BK.shape[1])

        return Speller(batch_size, start, step)

    def log_p_of_ids(self) -> np.ndarray:
        """The model's log-probability of each id: float64 [N]."""
        return self._over_ids(self.log_p)

    def true(self, live_N: np.ndarray | None = None) -> np.ndarray:
        """The model's distribution given that it writes a live document's id: float64 [N]."""
        log_p_N = self.log_p_of_ids()
        return np.exp(_log_softmax(log_p_N if live_N is None else np.where(live_N, log_p_N, -np.inf)))

    def masked(self, live_N: np.ndarray | None = None) -> np.ndarray:
        """The distribution of plain masking: float64 [N]."""
        return self._reweighted([np.zeros_like(table) for table in self.log_p], live_N)

    def after(self, futures: asap.Futures, query: int = 0, live_N: np.ndarray | None = None) -> np.ndarray:
        """The distribution of ASAp's next sample: float64 [N]."""
        log_c_X = np.asarray(futures.log_c_BX[query], np.float64)
        nodes_P, log_c = np.zeros(1, np.int32), []
        for _ in self.logits:
            nodes_VP = jnp.broadcast_to(jnp.asarray(nodes_P)[None], (self.size, len(nodes_P)))
            symbols_VP = jax.lax.broadcasted_iota(jnp.int32, nodes_VP.shape, 0)
            children_VP = np.asarray(self.trie.child(nodes_VP, symbols_VP))
            log_c.append(np.where(children_VP >= 0, log_c_X[children_VP], 0.0).T)
            nodes_P = children_VP.reshape(-1)  # the symbol at this depth is the digit of V^depth
        return self._reweighted(log_c, live_N)

    def _reweighted(self, log_c: list[np.ndarray], live_N: np.ndarray | None) -> np.ndarray:
        """Symbols that lead on drawn by p c: of each id, and 0 for documents that are not live."""
        live_N = np.ones(len(self.symbols_NT), bool) if live_N is None else live_N
        tables = []
        for depth, (log_p_PV, log_c_PV) in enumerate(zip(self.log_p, log_c, strict=True)):
            rows = live_N & (self.symbols_NT[:, depth] >= 0)
            allowed_PV = np.zeros(log_p_PV.shape, bool)
            allowed_PV[self.beginnings_NT[rows, depth], self.symbols_NT[rows, depth]] = True
            tables.append(_log_softmax(np.where(allowed_PV, log_p_PV + log_c_PV, -np.inf)))
        return np.where(live_N, np.exp(self._over_ids(tables)), 0.0)

    def _over_ids(self, tables: list[np.ndarray]) -> np.ndarray:
        total_N = np.zeros(len(self.symbols_NT))
        for depth, table_PV in enumerate(tables):
            symbols_N = self.symbols_NT[:, depth]
            gained_N = table_PV[self.beginnings_NT[:, depth], np.maximum(symbols_N, 0)]
            total_N += np.where(symbols_N >= 0, gained_N, 0.0)
        return total_N


def draw_world(
    documents: int, size: int, length: int, seed: int, *, closed: bool = False, scale: float = 2.0
) -> World:
    """Draws docids, and normal logits with a standard deviation of `scale`.

    Args:
      documents: N.
      size: V.
      length: T.
      seed: of all.
      closed: whether ids are of 1 to T - 1 symbols and END; otherwise of T symbols.
      scale: of the logits.
    """
    rng = np.random.default_rng(seed)
    codes = length - closed
    chosen = rng.choice((size - 1) ** codes, documents, replace=False)
    symbols_NT = np.stack(np.unravel_index(chosen, (size - 1,) * codes), axis=1).astype(np.int32) + 1
    if closed:
        symbols_NT = _closed(symbols_NT, rng)
    logits = [rng.normal(0, scale, (size**depth, size)).astype(np.float32) for depth in range(length)]
    return World(symbols_NT, tuple(logits))


def _closed(symbols_NT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cuts ids behind a random symbol, where they stay different, and puts END behind them."""
    ids: dict[tuple[int, ...], None] = {}
    for whole in symbols_NT.tolist():
        cut = (*whole[: rng.integers(1, len(whole) + 1)], END)
        ids[(*whole, END) if cut in ids else cut] = None
    longest = symbols_NT.shape[1] + 1
    return np.asarray([[*id_, *[NONE] * (longest - len(id_))] for id_ in ids], np.int32)


def kl(one_N: np.ndarray, other_N: np.ndarray) -> float:
    """KL(one || other) of distributions, in nats.

    >>> round(kl(np.asarray([0.5, 0.5, 0.0]), np.asarray([0.25, 0.5, 0.25])), 6)  # ln(2) / 2
    0.346574
    """
    there = one_N > 0
    return float((one_N[there] * np.log(one_N[there] / other_N[there])).sum())


def share(documents: np.ndarray, log_weights: np.ndarray, count: int) -> np.ndarray:
    """The distribution over `count` documents that weighted samples stand for; of arrays of one shape."""
    weights = np.exp(log_weights - log_weights.max())
    shares = np.bincount(documents.ravel(), weights.ravel(), minlength=count)
    return shares / shares.sum()


def pooled(found: smc.Weighted) -> np.ndarray:
    """Log-weights [B, K] of the particles of all queries, which are alike, by the queries' normalizers."""
    return np.asarray(found.log_weights_BK + found.log_normalizer_B[:, None])


def measure(world: World, particles: int, per_document: int, seed: int) -> dict:
    """Runs all samplers, and returns the record."""
    true_N, count = world.true(), len(world.symbols_NT)
    most = -(-per_document * count // particles)  # queries
    queries = sorted({max(1, most // 100), max(1, most // 10), most})

    def run(draw: rejection.Draw, batch: int) -> smc.Weighted:
        keys_B = sampling.keys(seed, np.arange(batch))
        sample = functools.partial(smc.sample, world.speller(batch), world.trie, particles=particles)
        return jax.jit(functools.partial(sample, draw=draw))(keys_B)

    masked_N = world.masked()
    rows = [{"sampler": "masking", "kl": kl(masked_N, true_N)}, *_asap_rows(world, true_N, seed)]
    for name, draw in (("unweighted rejection", rejection.unweighted), (_WEIGHTED, rejection.weighted)):
        for batch in queries:
            print(f"{name}, {batch * particles} samples", file=sys.stderr, flush=True)
            found = run(draw, batch)
            shares_N = share(np.asarray(found.documents_BK), pooled(found), count)
            samples = batch * particles
            row = {"sampler": name, "samples": samples, "kl": kl(shares_N, true_N)}
            row |= {"kl_to_masking": kl(shares_N, masked_N), "floor": (count - 1) / (2 * samples)}
            row["evaluations_per_symbol"] = float(found.evaluations_B.sum()) / (samples * len(world.logits))
            if name == _WEIGHTED:
                row["normalizer"] = float(np.exp(found.log_normalizer_B).mean())
            rows.append(row)
    return {
        "name": "constrained_sampling",
        "rows": rows,
        "normalizer": float(np.exp(world.log_p_of_ids()).sum()),
        "evaluations_of_masking_per_symbol": world.size,
        "documents": count,
        "symbols": world.size,
        "length": world.symbols_NT.shape[1],
        "particles": particles,
        "seed": seed,
        "device": harness.device_name(),
        "versions": harness.versions("jax"),
    }


def _asap_rows(world: World, true_N: np.ndarray, seed: int) -> Iterator[dict]:
    """The KL of the next sample of a query after so many."""
    futures, before = None, 0
    for number, samples in enumerate(_ASAP):
        sample = functools.partial(asap.sample, world.speller(1), world.trie, iterations=samples - before)
        keys_B = sampling.keys(seed, np.asarray([number]))
        print(f"ASAp, {samples} samples", file=sys.stderr, flush=True)
        _, futures = jax.jit(sample)(keys_B, futures=futures)
        before = samples
        yield {"sampler": "ASAp", "samples": samples, "kl": kl(world.after(futures), true_N)}


def lines(made: Mapping) -> Iterator[str]:
    """The report for a reader."""
    yield (
        f"{made['documents']} docids of {made['length']} symbols out of {made['symbols']}; the model writes "
        f"one with probability {made['normalizer']:.4f}; masking asks {made['symbols']} times for each symbol"
    )
    columns = {"samples": 9, "KL to true": 12, "to masking": 12, "floor": 10, "asked": 8, "normalizer": 12}
    yield f"  {'':<26}" + "".join(f"{name:>{width}}" for name, width in columns.items())
    for row in made["rows"]:
        shown = f"  {row['sampler']:<26}{row.get('samples', 'exact'):>9}{row['kl']:>12.6f}"
        if "floor" in row:
            shown += (
                f"{row['kl_to_masking']:>12.6f}{row['floor']:>10.6f}{row['evaluations_per_symbol']:>8.2f}"
            )
        if "normalizer" in row:
            shown += f"{row['normalizer']:>12.4f}"
        yield shown


def _log_softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis; rows that are -inf throughout stay so."""
    most = values.max(axis=-1, keepdims=True)
    shifted = values - np.where(np.isfinite(most), most, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        normalized = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.where(np.isfinite(most), normalized, -np.inf)


if __name__ == "__main__":
    main()
