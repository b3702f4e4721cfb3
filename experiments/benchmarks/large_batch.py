"""Time and memory of large contrastive batches: blockwise loss and gradient caching beside the plain ones.

Three parts. `blockwise`: value and gradient of the loss alone, `dual_encoder.blockwise` beside
`objectives.softmax` under `jit`, the mask included. `cached`: a whole training step whose batch is
encoded in chunks (`Contrastive(chunks=M)`), beside the same step at once. `memory`: the temporaries that
XLA's compiled programs need, beside arguments and results, as the batch grows; nothing of that size is run.
What is timed must be equal in value and gradient, or there is no report.

Each `time_ratio` is over its bar, so that at most 1 is meant: 1.05 times the plain time for vectors of 256,
1.15 for 768, where the products are a larger part and the fourth of them would show; 1.4 for the cached step.

    python -m experiments.benchmarks.large_batch --json --plot=large_batch.png

Letters: B queries and documents of a batch, D width.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dual_encoder import blockwise
from dual_encoder.candidates import Candidates
from dual_encoder.objectives import softmax
from experiments.benchmarks import harness, train_step
from training.build import build
from training.memory import keep_freed_memory
from training.step import make_step
from training.task import begin

_BARS = {256: 1.05, 768: 1.15}
_CACHED_BAR = 1.4
_TOLERANCE = 1e-5
_SMALLEST = 1_024
_MODEL = dict(layers=4, width=256, heads=4, vocabulary=16_000)
_LENGTHS = dict(query_length=32, document_length=128)
_STEP_BATCH, _CHUNKS = 128, 4
_CHUNK_ROWS = 256  # of the curve of the cached step
_OBJECTIVES = ("info_nce", "symmetric_info_nce")


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.large_batch",
        "Time and memory of large contrastive batches on the CPU: blockwise loss and gradient caching.",
        "python -m experiments.benchmarks.large_batch --json --plot=large_batch.png",
    )
    sizes = dict(batch=8_192, largest=65_536, rounds=9)
    parser.add_argument("--batch", type=int, default=8_192, help="of the timed loss; default: %(default)s")
    parser.add_argument(
        "--largest", type=int, default=65_536, help="batch of the curves; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each; default: %(default)s")
    parser.add_argument(
        "--objective", choices=_OBJECTIVES, default=_OBJECTIVES[0], help="default: %(default)s"
    )
    parser.add_argument("--plot", help="a PNG file for the curves of memory")
    args = parser.parse_args(argv)
    for name in sizes:
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    if args.largest < _SMALLEST:
        parser.error(f"--largest is {args.largest}; the curves begin at {_SMALLEST}")
    if args.plot and not os.path.isdir(os.path.dirname(args.plot) or "."):
        parser.error(f"--plot: no such folder: {os.path.dirname(args.plot)}")
    keep_freed_memory()
    jax.config.update("jax_platforms", "cpu")
    try:
        made = measure(args.batch, args.largest, args.rounds, args.objective)
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    if args.plot:
        plot(args.plot, made["memory"])
    harness.report(made, list(lines(made)), as_json=args.json)


def measure(batch: int, largest: int, rounds: int, objective: str) -> dict:
    """Runs all three parts and returns the record.

    Raises:
      harness.BenchmarkError: what is timed is not equal.
    """
    return {
        "name": "large_batch",
        "objective": objective,
        "blockwise": time_losses(batch, rounds, objective),
        "cached": time_steps(rounds),
        "memory": memory(largest, objective),
        "device": harness.device_name(),
        "rounds": rounds,
        "versions": harness.versions("jax", "flax", "optax"),
    }


def time_losses(batch: int, rounds: int, objective: str) -> dict:
    """Times value and gradient, plain and blockwise, for each width."""
    widths = {}
    for width, bar in _BARS.items():
        say(f"value and gradient of {objective}, batch {batch:,}, width {width}")
        arrays = random_vectors(batch, width)
        compiled = {
            name: differentiated(loss).lower(*arrays).compile() for name, loss in losses(objective).items()
        }
        difference = check(*(jax.device_get(compiled[name](*arrays)) for name in ("blockwise", "plain")))
        seconds = harness.interleaved_medians(
            {
                name: lambda number, run=run, arrays=arrays: jax.block_until_ready(run(*arrays))
                for name, run in compiled.items()
            },
            rounds=rounds,
        )
        ratio = seconds["blockwise"] / seconds["plain"]
        widths[str(width)] = dict(seconds=seconds, ratio=ratio, bar=bar, difference=difference)
    worst = max(made["ratio"] / made["bar"] for made in widths.values())
    return {"time_ratio": worst, "batch": batch, "widths": widths}


def time_steps(rounds: int) -> dict:
    """Times a training step, encoded at once and in chunks, from the same parameters."""
    say(f"training step, batch {_STEP_BATCH}, at once and in {_CHUNKS} chunks")
    batch = train_step.random_batch(_MODEL["vocabulary"], _STEP_BATCH, **_LENGTHS)
    task = build(train_step.task_spec(**_MODEL))
    params, _ = jax.device_get(jax.jit(task.init)(jax.random.key(0), batch))
    steps = {
        "plain": train_step.Ours(task, params, batch),
        "cached": train_step.Ours(dataclasses.replace(task, chunks=_CHUNKS), params, batch),
    }
    made = {name: [step(number) for number in range(3)] for name, step in steps.items()}
    difference = train_step.check(made["cached"], made["plain"])
    seconds = harness.interleaved_medians(steps, rounds=rounds)
    ratio = seconds["cached"] / seconds["plain"]
    return {
        "time_ratio": ratio / _CACHED_BAR,
        "seconds": seconds,
        "ratio": ratio,
        "bar": _CACHED_BAR,
        "loss_difference": difference,
        "batch": _STEP_BATCH,
        "chunks": _CHUNKS,
    }


def memory(largest: int, objective: str) -> dict:
    """Bytes of temporaries of compiled programs, for batches from 1,024 on, doubled up to the largest.

    Returns:
      `loss_plain`, `loss_blockwise`, `step_plain` and `step_cached`, lists as long as `batches`; and
      `loss_vectors`, the bytes of vectors and their gradients, which are arguments and results of the loss
      alone but temporaries of a step.
    """
    batches = [_SMALLEST << k for k in range((largest // _SMALLEST).bit_length())]
    curves = {name: [] for name in ("loss_plain", "loss_blockwise", "vectors", "step_plain", "step_cached")}
    for batch in batches:
        say(f"memory of batch {batch:,}")
        vectors = jax.eval_shape(functools.partial(random_vectors, batch, _MODEL["width"]))
        for name, loss in losses(objective).items():
            curves[f"loss_{name}"].append(temporaries(differentiated(loss), *vectors))
        curves["vectors"].append(2 * sum(x.size * x.dtype.itemsize for x in vectors[:2]))
        plain = dict(name=f"dual_encoder.objectives.softmax.{objective}")
        curves["step_plain"].append(step_temporaries(batch, 1, plain))
        in_blocks = dict(name=f"dual_encoder.blockwise.{objective}")
        curves["step_cached"].append(step_temporaries(batch, batch // _CHUNK_ROWS, in_blocks))
    return {"batches": batches, **curves, "width": _MODEL["width"], "chunk_rows": _CHUNK_ROWS}


def step_temporaries(batch: int, chunks: int, objective: Mapping[str, Any]) -> int:
    """Bytes of temporaries of a whole training step: forward, backward, AdamW."""
    task = build(train_step.task_spec(**_MODEL) | dict(objective=objective, chunks=chunks))
    arrays = train_step.random_batch(_MODEL["vocabulary"], batch, **_LENGTHS)
    optimizer = optax.adamw(1e-4)
    params, _ = jax.eval_shape(task.init, jax.random.key(0), arrays)
    state = jax.eval_shape(lambda params: begin(optimizer, params, {}), params)
    step = jax.jit(make_step(task, optimizer), donate_argnums=0)
    return temporaries(step, state, arrays, jax.random.key(1))


def temporaries(function: Any, *arguments: Any) -> int:
    """Bytes that the compiled function needs beside its arguments and results."""
    return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def losses(objective: str) -> dict[str, Callable]:
    """Both forms as functions of (query vectors, document vectors, temperature, rows)."""

    def plain(query_BD, document_BD, temperature, rows_B):
        labels_B = jnp.arange(len(rows_B))
        where_BB = Candidates(rows_B[:, None], rows_B).where(labels_B)
        function = getattr(softmax, objective)
        return function(query_BD, document_BD, labels=labels_B, where=where_BB, temperature=temperature)

    def in_blocks(query_BD, document_BD, temperature, rows_B):
        candidates = Candidates(rows_B[:, None], rows_B)
        function = getattr(blockwise, objective)
        return function(
            query_BD,
            document_BD,
            labels=jnp.arange(len(rows_B)),
            candidates=candidates,
            temperature=temperature,
        )

    return {"plain": plain, "blockwise": in_blocks}


def differentiated(loss: Callable) -> Any:
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def random_vectors(batch: int, width: int) -> tuple[jax.Array, ...]:
    """Unit query vectors, documents near their own, a temperature, and rows of which some repeat."""
    keys = jax.random.split(jax.random.key(0), 3)
    unit = lambda x_BD: x_BD / jnp.linalg.norm(x_BD, axis=1, keepdims=True)
    query_BD = unit(jax.random.normal(keys[0], (batch, width)))
    document_BD = unit(query_BD + 3.0 * unit(jax.random.normal(keys[1], (batch, width))))
    rows_B = jax.random.randint(keys[2], (batch,), 0, 8 * batch)
    return query_BD, document_BD, jnp.float32(0.05), rows_B


def check(made: Any, expected: Any) -> float:
    """Returns the greatest difference of loss, accuracy and gradients, relative to the largest of each.

    Raises:
      harness.BenchmarkError: it is above 1e-5.
    """
    leaves = zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True)
    worst = float(np.max([np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in leaves]))
    if not worst <= _TOLERANCE:
        raise harness.BenchmarkError(
            f"the blockwise loss or a gradient differs by {worst:.1e}; allowed: 1e-5"
        )
    return worst


def lines(made: Mapping) -> Sequence[str]:
    """The report for a reader."""
    part = made["blockwise"]
    yield f"{made['objective']}, value and gradient, batch {part['batch']:,}, on {made['device']}"
    for width, at in part["widths"].items():
        seconds = at["seconds"]
        yield (
            f"  width {width}: blockwise {seconds['blockwise']:.3f} s, plain {seconds['plain']:.3f} s: ratio "
            f"{at['ratio']:.2f} (bar {at['bar']}); equal to {at['difference']:.0e}"
        )
    part = made["cached"]
    yield (
        f"training step, batch {part['batch']}: {part['chunks']} chunks {part['seconds']['cached']:.2f} s, "
        f"at once {part['seconds']['plain']:.2f} s: ratio {part['ratio']:.2f} (bar {part['bar']})"
    )
    part = made["memory"]
    yield f"temporaries in MiB; width {part['width']}, cached in chunks of {part['chunk_rows']} queries"
    names = ("loss_plain", "loss_blockwise", "vectors", "step_plain", "step_cached")
    yield "".join(f"{name:>16}" for name in ("batch", *names))
    for number, batch in enumerate(part["batches"]):
        yield f"{batch:>16,}" + "".join(f"{part[name][number] / 2**20:>16,.1f}" for name in names)


def plot(path: str, made: Mapping) -> None:
    """Draws the temporaries over the batch, of the loss on the left and of a training step on the right."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    curves = {
        left: {
            "loss_plain": "plain loss",
            "loss_blockwise": "blockwise loss",
            "vectors": "vectors and gradients (beside it)",
        },
        right: {
            "step_plain": "plain step",
            "step_cached": f"blockwise, chunks of {made['chunk_rows']}",
            "vectors": "vectors and gradients (part of it)",
        },
    }
    for (axes, named), place in zip(curves.items(), ("upper left", (0.03, 0.35)), strict=True):
        for number, (name, label) in enumerate(named.items()):
            color, style = ("0.6", ":") if name == "vectors" else (f"C{number}", "-")
            mebibytes = [size / 2**20 for size in made[name]]
            axes.loglog(
                made["batches"],
                mebibytes,
                base=2,
                marker="o",
                markersize=4,
                color=color,
                ls=style,
                label=label,
            )
        axes.set_xlabel("batch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=9, loc=place)
        axes.set_xticks(made["batches"], [f"{batch // 1024}k" for batch in made["batches"]])
    left.set_ylabel("temporaries, MiB")
    left.set_title("loss, value and gradient", fontsize=11)
    right.set_title("training step", fontsize=11)
    figure.savefig(path, dpi=120)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
