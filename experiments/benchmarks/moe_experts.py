"""Time of a sparse layer as experts grow in number and their active operations stay the same.

T=32,768 tokens with k=2 of E = 8, 32, 128 and 512 experts, D=F=256, forward and backward: dropless dispatch,
experts (with ReLU) and combination of a uniform random routing that is given. The router, whose work grows
with E, is timed apart. `last_to_first` is the time with the most experts over that with the fewest.

The floor beside it is what the weights alone cost: all experts' are read forward and backward and their
gradients written once, at the rate at which this machine copies memory.

    python -m experiments.benchmarks.moe_experts --json --plot=moe_experts.png

Letters: T tokens, D width, F width of an expert, E experts, K choices.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.benchmarks import harness
from experiments.benchmarks.moe_layer import Shape, compile_given, compiled, draw, even_routing, timed
from moe.groups import Tokens
from moe.routers import TopK
from training.memory import keep_freed_memory

_EXPERTS = (8, 32, 128, 512)
_BAR = 1.5
_COPIED = 2**28  # bytes of the array that is copied to measure the rate of memory


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.moe_experts",
        "Time of a sparse layer with a fixed number of active operations as experts grow in number.",
        "python -m experiments.benchmarks.moe_experts --json --plot=moe_experts.png",
    )
    parser.add_argument("--tokens", type=int, default=32_768, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each; default: %(default)s")
    parser.add_argument("--plot", help="a PNG file for the curve")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; at least 1 is needed")
    if args.tokens < 128 or args.tokens % 128:
        parser.error(f"--tokens is {args.tokens}; allowed: a multiple of 128")
    if args.plot and not os.path.isdir(os.path.dirname(args.plot) or "."):
        parser.error(f"--plot: no such folder: {os.path.dirname(args.plot)}")
    keep_freed_memory()
    jax.config.update("jax_platforms", "cpu")
    made = measure(args.tokens, args.rounds)
    if args.plot:
        plot(args.plot, made)
    harness.report(made, list(lines(made)), as_json=args.json)


def measure(tokens: int, rounds: int, experts: Sequence[int] = _EXPERTS, width: int = 256) -> dict:
    """Times experts and routers for each number of experts, and returns the record."""
    shapes = [Shape(tokens, width, width, number, choices=2) for number in experts]
    runs: dict[str, Callable[[int], object]] = {}
    for shape in shapes:
        print(f"compiling E={shape.experts}", file=sys.stderr, flush=True)
        runs[f"experts {shape.experts}"] = timed(compile_given(shape, even_routing(shape), draw(shape)).run)
        runs[f"router {shape.experts}"] = timed(compile_router(shape))
    copied = jnp.ones(_COPIED // 4, jnp.float32)
    runs["copy"] = timed(jax.jit(lambda x: x + 1), copied)
    seconds = harness.interleaved_medians(runs, rounds=rounds)
    bandwidth = 2 * copied.nbytes / seconds["copy"]  # read and written
    times = [seconds[f"experts {number}"] for number in experts]
    return {
        "name": "moe_experts",
        "experts": list(experts),
        "seconds": times,
        "router_seconds": [seconds[f"router {number}"] for number in experts],
        "floor_seconds": [traffic(shape) / bandwidth for shape in shapes],
        "last_to_first": times[-1] / times[0],
        "bar": _BAR,
        "gflops": shapes[0].flops / times[0] / 1e9,
        "bytes_per_second": bandwidth,
        "tokens": tokens,
        "width": width,
        "choices": 2,
        "device": harness.device_name(),
        "rounds": rounds,
        "versions": harness.versions("jax", "flax"),
    }


def traffic(shape: Shape) -> int:
    """Bytes of weights that are read forward and backward, and of gradients written, in float32.

    >>> traffic(Shape(tokens=1, width=2, hidden=3, experts=5, choices=1))  # 3 times 5 pairs of 2 x 3
    720
    """
    return 3 * 4 * shape.experts * 2 * shape.width * shape.hidden


def compile_router(shape: Shape) -> Callable[[], object]:
    """Value, and gradients of x and the router's kernel, of the weights of chosen experts."""
    x_GSD = draw(shape)[0].reshape(1, shape.tokens, shape.width)
    zeros_GS = jnp.zeros((1, shape.tokens), jnp.int32)
    tokens = Tokens(valid=jnp.ones((1, shape.tokens), bool), rows=zeros_GS, positions=zeros_GS)
    router = TopK(shape.experts, shape.choices)
    params = jax.jit(router.init)(jax.random.key(2), x_GSD, tokens)

    def both(params, x_GSD):
        def weights(params, x_GSD):
            routing = router.apply(params, x_GSD, tokens)
            return routing.weight, routing.expert

        weight_GR, pull, expert_GR = jax.vjp(weights, params, x_GSD, has_aux=True)
        return expert_GR, pull(jnp.cos(weight_GR))

    return compiled(both, params, x_GSD).run


def lines(made: Mapping) -> Sequence[str]:
    """The report for a reader."""
    yield (
        f"forward and backward on {made['device']}, {made['tokens']:,} tokens, {made['choices']} choices, "
        f"widths {made['width']}; memory at {made['bytes_per_second'] / 1e9:.0f} GB/s"
    )
    columns = zip(
        made["experts"], made["seconds"], made["floor_seconds"], made["router_seconds"], strict=True
    )
    yield f"  {'experts':>8}{'ms':>10}{'floor':>10}{'router':>10}"
    for number, *times in columns:
        yield f"  {number:>8}" + "".join(f"{time * 1e3:>10.1f}" for time in times)
    yield f"  last over first {made['last_to_first']:.2f} (bar {made['bar']})"


def plot(path: str, made: Mapping) -> None:
    """Draws the time of experts and of routers over the number of experts, with the floor."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves = {
        "experts": ("seconds", "C0", "-"),
        "weights alone, read twice, gradients written": ("floor_seconds", "0.6", ":"),
        "router (apart)": ("router_seconds", "C1", "--"),
    }
    for label, (name, color, style) in curves.items():
        milliseconds = [time * 1e3 for time in made[name]]
        axes.plot(made["experts"], milliseconds, marker="o", markersize=4, color=color, ls=style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(made["experts"], [str(number) for number in made["experts"]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("experts")
    axes.set_ylabel("ms, forward and backward")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
