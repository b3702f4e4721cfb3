"""Constrained beam search beside Hugging Face's on the CPU, and what the constraint itself costs.

`peer`: a model of T5-small's shape with random weights, the same on both sides, and decoder vocabularies of
32 and of 100 symbols beside END. Queries of 32 tokens in batches of 16 are searched for with 10 beams among
100,000 random docids, of 6 symbols out of 32 and of 3 out of 100: encoder and search, NumPy in and out. The
peer is `generate` with a `prefix_allowed_tokens_fn` that looks into a dict; making dict or trie is not
timed. Both must find the same docids in the same order, with the same scores, or there is no report. `ratio`
is ours over the peer's queries per second, the smaller of the two.

`trie`: the same model and queries over 10,000 to 10 million docids of 6 symbols out of 32, encoder and its
keys and values apart. A step is a sixth of a search: the decoder reads what 10 beams of each query added,
and the best continuations are found. Without a constraint the same search takes the best of all symbols of
all beams. `cost` is the time of a constrained step over that of an unconstrained one, `growth` that with
the most docids over that with the fewest. `choice_s` is a step of searches whose logits are given: what is
left without the model. `build_s` and `bytes` (a document) are of the trie with the most docids.

    make bench
    python -m experiments.benchmarks.constrained_decoding --json

Letters: B queries, S length of a query, N documents, T symbols of a docid, V symbols, K beams, n results.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from experiments.benchmarks import harness, hugging_face, t5
from generative_retrieval import beam, trie
from generative_retrieval import speller as spellers
from generative_retrieval.docids import NONE
from training.build import build
from training.memory import keep_freed_memory

PARTS = ("peer", "trie")
_LEAST = dict(ratio=1.7)
_MOST = dict(growth=1.3, build_s=60.0, bytes=64.0)
_MOST_COST = {"100000": 1.05, "10000000": 1.1}  # by number of docids
_TOLERANCE = 1e-5  # of the largest score
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a search, T5-small's as they stand."""

    width: int = 512
    hidden: int = 2_048
    heads: int = 8
    layers: int = 6
    words: int = 32_128
    batch: int = 16
    query_length: int = 32
    beams: int = 10


@dataclasses.dataclass(frozen=True)
class Ids:
    """Random docids: how many, of how many symbols out of how many."""

    documents: int
    length: int
    symbols: int

    def draw(self) -> np.ndarray:
        """int32 [N, T], all different, symbols from 1 on."""
        random = np.random.default_rng(_SEED)
        codes = random.choice(self.symbols**self.length, self.documents, replace=False)
        digits = np.unravel_index(codes, (self.symbols,) * self.length)
        return 1 + np.stack(digits, axis=1).astype(np.int32)

    @property
    def size(self) -> int:
        """V, with END."""
        return self.symbols + 1

    def __str__(self) -> str:
        return f"{self.documents:,} docids of {self.length} symbols out of {self.symbols}"


BESIDE_PEER = {"6_of_32": Ids(100_000, 6, 32), "3_of_100": Ids(100_000, 3, 100)}
GROWING = tuple(Ids(documents, 6, 32) for documents in (10_000, 100_000, 1_000_000, 10_000_000))


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.constrained_decoding",
        "Constrained beam search beside Hugging Face's, and what the constraint itself costs.",
        "python -m experiments.benchmarks.constrained_decoding --json",
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each; default: %(default)s")
    parser.add_argument("--part", choices=PARTS, help="only this one")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; at least 1 is needed")
    keep_freed_memory()  # for the peer too: it is one process
    jax.config.update("jax_platforms", "cpu")  # the peer runs there
    try:
        made = measure(args.rounds, parts=PARTS if args.part is None else (args.part,))
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    harness.report(made, list(lines(made)), as_json=args.json)


def measure(
    rounds: int,
    shape: Shape = Shape(),
    beside_peer: Mapping[str, Ids] = BESIDE_PEER,
    growing: Sequence[Ids] = GROWING,
    parts: Sequence[str] = PARTS,
) -> dict:
    """Runs the parts on the CPU and returns the record.

    Raises:
      harness.BenchmarkError: the peer is not installed, or finds something else.
    """
    made: dict[str, Any] = {"name": "constrained_decoding"}
    if "peer" in parts:
        made["peer"] = {name: beside(shape, ids, rounds) for name, ids in beside_peer.items()}
        made["ratio"] = min(part["ratio"] for part in made["peer"].values())
    if "trie" in parts:
        made |= grow(shape, growing, rounds)
    return made | {
        "bars": {"at least": _LEAST, "at most": _MOST | {"cost": _MOST_COST}},
        "shape": dataclasses.asdict(shape),
        "device": harness.device_name(),
        "rounds": rounds,
        "versions": harness.versions("jax", "flax"),
    }


# Beside the peer.


def beside(shape: Shape, ids: Ids, rounds: int) -> dict:
    """Checks that both find the same, and times both.

    Raises:
      harness.BenchmarkError: the peer is not installed, or finds something else.
    """
    torch, transformers = harness.import_peers("torch", "transformers")
    symbols_NT, tokens_BS = ids.draw(), queries(shape)
    model = hugging_face.random_t5(
        torch,
        transformers,
        words=shape.words,
        symbols=ids.size,
        seed=_SEED,
        d_model=shape.width,
        d_ff=shape.hidden,
        d_kv=shape.width // shape.heads,
        num_heads=shape.heads,
        num_layers=shape.layers,
    )
    say(f"the peer's dict of {ids}")
    peer = hugging_face.Peer(
        torch,
        model,
        tokens_BS,
        hugging_face.allowed_after(symbols_NT),
        beams=shape.beams,
        length=ids.length,
    )
    say(f"compiling a search among {ids}")
    variables = {"params": t5.parameters(hugging_face.state_of(model), shape.heads)}
    ours = searcher(shape, ids.size, variables, trie.build(symbols_NT, ids.size))
    documents_BK, scores_BK = ours(tokens_BS)
    difference = check((symbols_NT[documents_BK], scores_BK), peer())
    say(f"timing both among {ids}")
    seconds = harness.interleaved_medians(
        {"retrievax": lambda number: ours(tokens_BS), "transformers": lambda number: peer()}, rounds=rounds
    )
    rates = {name: shape.batch / median for name, median in seconds.items()}
    return harness.record(
        name="beside_peer",
        ours=rates["retrievax"],
        peer=rates["transformers"],
        better="higher",
        unit="queries/s",
        score_difference=difference,
        ids=dataclasses.asdict(ids),
        threads=torch.get_num_threads(),
        peer_versions=harness.versions("torch", "transformers"),
    )


def searcher(
    shape: Shape, size: int, variables: Any, tree: trie.Trie
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Our search, one compiled program: tokens [B, S] -> rows of documents [B, K] and scores [B, K]."""
    model = model_of(shape, size)

    @jax.jit
    def search(variables, tree, tokens_BS):
        speller = spellers.of(model, variables, batch_of(tokens_BS))
        return beam.search(speller, tree, beams=shape.beams, results=shape.beams)

    variables = jax.device_put(variables)

    def run(tokens_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = search(variables, tree, tokens_BS)
        return np.asarray(found.documents_Bn), np.asarray(found.scores_Bn)

    return run


def check(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], tolerance: float = _TOLERANCE
) -> float:
    """Returns the greatest difference of the scores.

    Args:
      ours, theirs: docids [B, K, T] and scores [B, K].
      tolerance: as a part of the largest score.

    Raises:
      harness.BenchmarkError: the docids are not the same in the same order, or the scores differ.
    """
    if not np.array_equal(ours[0], theirs[0]):
        unlike = int((ours[0] != theirs[0]).any(axis=-1).sum())
        raise harness.BenchmarkError(f"{unlike} of {ours[1].size} docids are not the peer's")
    difference = float(np.max(np.abs(ours[1] - theirs[1])))
    if not difference <= tolerance * np.max(np.abs(theirs[1])):
        raise harness.BenchmarkError(f"the scores differ from the peer's by up to {difference}")
    return difference


# The constraint.


@struct.dataclass
class Free:
    """What `beam.search` asks of a trie, where any symbols make an id: no constraint.

    A node is its depth times V plus the symbol that led to it.
    """

    size: int = struct.field(pytree_node=False)
    length: int = struct.field(pytree_node=False)

    def symbol(self, nodes: jax.Array) -> jax.Array:
        return nodes % self.size

    def document(self, nodes: jax.Array) -> jax.Array:
        return jnp.where(nodes // self.size == self.length, nodes, NONE)

    def best(self, nodes_BK, depth, scores_BKV, count, live=None):
        del nodes_BK, live
        best_Bn, at_Bn = jax.lax.top_k(scores_BKV.reshape(len(scores_BKV), -1), count)
        return best_Bn, (depth + 1) * self.size + at_Bn % self.size, at_Bn // self.size


def grow(shape: Shape, growing: Sequence[Ids], rounds: int) -> dict:
    """Builds tries of the given sizes, fewest documents first, and times steps with and without them."""
    size, length = growing[0].size, growing[0].length
    search, choose = stepper(shape, size, length), chooser(shape, size)
    tries: dict[str, Any] = {"free": Free(size, length)}
    built = {}
    for ids in growing:
        symbols_NT, name = ids.draw(), str(ids.documents)
        say(f"building the trie of {ids}")
        start = time.perf_counter()
        tries[name] = jax.block_until_ready(trie.build(symbols_NT, size))
        built[name] = {"build_s": time.perf_counter() - start, "bytes": tries[name].nbytes / ids.documents}
    say("timing steps")
    steps, choices = (
        harness.interleaved_medians(
            {name: functools.partial(run, tree) for name, tree in tries.items()}, rounds=rounds
        )
        for run in (search, choose)
    )
    fewest, most = str(growing[0].documents), str(growing[-1].documents)
    return {
        "step_s": {name: seconds / length for name, seconds in steps.items()},
        "choice_s": {name: seconds / length for name, seconds in choices.items()},
        "cost": {name: steps[name] / steps["free"] for name in built},
        "growth": steps[most] / steps[fewest],
        "tries": built,
        **built[most],
    }


def stepper(shape: Shape, size: int, length: int) -> Callable[[Any, int], beam.Found]:
    """A search `(trie, number of the round)`, for queries that are encoded here."""
    model = model_of(shape, size)
    batch = batch_of(queries(shape))
    first = jnp.ones((shape.batch, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(_SEED), batch | {"targets": first, "target_mask": first})
    slots = spellers.slots(length, shape.beams)
    encoded = jax.jit(lambda variables: spellers.of(model, variables, batch).start(slots))(variables)

    @jax.jit
    def search(variables, tree, encoded):
        speller = dataclasses.replace(spellers.of(model, variables, batch), start=lambda slots: encoded)
        return beam.search(speller, tree, beams=shape.beams, results=shape.beams)

    return lambda tree, number: jax.block_until_ready(search(variables, tree, encoded))


def chooser(shape: Shape, size: int) -> Callable[[Any, int], beam.Found]:
    """As `stepper`, but the logits of all steps are given."""
    given_BKV = jax.random.normal(jax.random.key(_SEED), (shape.batch, shape.beams, size))

    @jax.jit
    def search(tree, given_BKV):
        step = lambda symbols_BK, depth, visible_BKM, cache: (given_BKV[:, : symbols_BK.shape[1]], cache)
        speller = spellers.Speller(shape.batch, lambda slots: (), step)
        return beam.search(speller, tree, beams=shape.beams, results=shape.beams)

    return lambda tree, number: jax.block_until_ready(search(tree, given_BKV))


def queries(shape: Shape) -> np.ndarray:
    """Random words, int32 [B, S], without padding."""
    draw = np.random.default_rng(_SEED + 1).integers
    return draw(1, shape.words, (shape.batch, shape.query_length), dtype=np.int32)


def model_of(shape: Shape, size: int) -> Any:
    return build(
        t5.spec(
            words=shape.words,
            symbols=size,
            width=shape.width,
            hidden=shape.hidden,
            heads=shape.heads,
            layers=shape.layers,
        )
    )


def batch_of(tokens_BS: jax.Array) -> dict[str, jax.Array]:
    return {"tokens": jnp.asarray(tokens_BS), "mask": jnp.ones(tokens_BS.shape, jnp.int32)}


def lines(made: Mapping) -> Sequence[str]:
    """The report for a reader."""
    shape = made["shape"]
    yield (
        f"{shape['layers']} + {shape['layers']} layers of {shape['width']}, batches of {shape['batch']} "
        f"queries of {shape['query_length']} tokens, {shape['beams']} beams, on {made['device']}"
    )
    for part in made.get("peer", {}).values():
        yield (
            f"  {Ids(**part['ids'])}: ours {part['ours']:.1f} queries/s, transformers {part['peer']:.1f}: "
            f"ratio {part['ratio']:.2f}; the same docids, scores to {part['score_difference']:.0e}"
        )
    if "ratio" in made:
        yield f"  ratio {made['ratio']:.2f} (bar {_LEAST['ratio']})"
    if "cost" not in made:
        return
    step, choice = (
        {name: time * 1e3 for name, time in made[kind].items()} for kind in ("step_s", "choice_s")
    )
    yield f"  a step without constraint {step['free']:.1f} ms, of that the choice {choice['free']:.3f}"
    for name, cost in made["cost"].items():
        bar = f" (bar {_MOST_COST[name]})" if name in _MOST_COST else ""
        yield (
            f"  {int(name):,} docids: {step[name]:.1f} ms, {cost:.3f} times that{bar}, "
            f"of that the choice {choice[name]:.3f}"
        )
    yield f"  from the fewest docids to the most: {made['growth']:.2f} times (bar {_MOST['growth']})"
    yield (
        f"  the trie of most: built in {made['build_s']:.1f} s (bar {_MOST['build_s']:.0f}), "
        f"{made['bytes']:.1f} bytes a document (bar {_MOST['bytes']:.0f})"
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
