"""Time and memory of a sparse layer beside a dense one with as many active operations, forward and backward.

The dense layer is two plain products, D to K F and back, with the same activation (ReLU, so that products are
what is timed); it must run at 85% or more of the rate of the bare products, which are timed too. What is
timed of the sparse layer:

* `layer`: `moe.mixture.Mixture` as a user has it, with its router and the sums it reports. Tokens choose from
  what their random vectors say, so that experts have about as much each.
* `given`: dispatch, experts and combination alone, of a random routing that is given.

Over the time of the dense layer, `ratio` is that of the layer with E=16, k=2, dropless; the operations of the
router are in the layer's time and in no peer's. `skewed` is `given` with E=64, k=4, where experts are drawn
by Zipf's law with the exponent 1. `vs_one_hot` is the time of the layer with the one-hot dispatch over that
with the sorted one, both with capacity 1.25 and all tokens as one group; `temporaries` are XLA's, of the
layer over the dense one's. Layers that should be equal are compared before they are timed.

    python -m experiments.benchmarks.moe_layer --json

With --large, on a GPU: E=64, k=8, D=4,096, F=1,024, T=16,384 in bfloat16, grouped products alone beside plain
ones.

Letters: T tokens, D width, F width of an expert, E experts, K choices.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from moe import experts, feed_forward
from moe.capacity import Capacity
from moe.dispatch import Dispatcher
from moe.dropless import Dropless
from moe.feed_forward import Context
from moe.grouped_matmul import grouped_matmul
from moe.mixture import Mixture
from moe.one_hot import OneHot
from moe.routers import TopK
from moe.routing import Routing, token_choice
from moe.sorted import Sorted
from training.memory import keep_freed_memory

_BARS = dict(ratio=1.35, skewed=1.7, temporaries=2.0)  # at most
_LEAST = dict(vs_one_hot=6.0, dense_rate=0.85)  # at least
_CAPACITY = 1.25
_LENGTH = 128  # tokens of a sequence
_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Shape:
    tokens: int
    width: int
    hidden: int
    experts: int
    choices: int

    @property
    def flops(self) -> int:
        """Of the two products of all chosen experts, forward and backward."""
        return 12 * self.tokens * self.choices * self.width * self.hidden


MAIN = Shape(tokens=4_096, width=256, hidden=1_024, experts=16, choices=2)
SKEWED = Shape(tokens=4_096, width=256, hidden=1_024, experts=64, choices=4)
LARGE = Shape(tokens=16_384, width=4_096, hidden=1_024, experts=64, choices=8)


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(
        "experiments.benchmarks.moe_layer",
        "Time and memory of a sparse layer beside a dense one with as many active operations.",
        "python -m experiments.benchmarks.moe_layer --json",
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each; default: %(default)s")
    parser.add_argument("--large", action="store_true", help="grouped products on a GPU, in bfloat16")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; at least 1 is needed")
    keep_freed_memory()
    if not args.large:
        jax.config.update("jax_platforms", "cpu")
    try:
        made = measure_large(LARGE, args.rounds) if args.large else measure(args.rounds)
    except harness.BenchmarkError as error:
        sys.exit(f"error: {error}")
    harness.report(made, list(lines(made)), as_json=args.json)


def measure(rounds: int, main_shape: Shape = MAIN, skewed_shape: Shape = SKEWED) -> dict:
    """Runs all parts on the CPU and returns the record.

    Raises:
      harness.BenchmarkError: what should be equal is not, or the dense layer is no fair peer.
    """
    even = time_main(main_shape, rounds)
    skewed = time_skewed(skewed_shape, rounds)
    seconds = even["seconds"]
    return {
        "name": "moe_layer",
        "ratio": seconds["dropless"] / seconds["dense"],
        "ratio_given": seconds["given"] / seconds["dense"],
        "skewed": skewed["seconds"]["given"] / skewed["seconds"]["dense"],
        "vs_one_hot": seconds["one_hot"] / seconds["sorted"],
        "temporaries": even["temporaries"]["dropless"] / even["temporaries"]["dense"],
        "rate": {
            "dense": even["products"] / seconds["dense"],
            "dense_skewed": skewed["products"] / skewed["seconds"]["dense"],
            "grouped": even["grouped"],
        },
        "gflops": main_shape.flops / even["products"] / 1e9,
        "bars": {"at most": _BARS, "at least": _LEAST},
        "main": even,
        "with_skew": skewed,
        "device": harness.device_name(),
        "rounds": rounds,
        "versions": harness.versions("jax", "flax"),
    }


def time_main(shape: Shape, rounds: int) -> dict:
    """Times dense, dropless, sorted and one-hot layers, and the experts alone with a routing given."""
    say(f"compiling layers: {shape}")
    limit = Capacity(factor=_CAPACITY, tokens=shape.tokens)
    layers = {"dropless": Dropless(), "sorted": Sorted(limit), "one_hot": OneHot(limit)}
    inputs = draw(shape)
    compiled = {"dense": compile_layer(dense(shape), inputs)}
    compiled |= {name: compile_layer(sparse(shape, found), inputs) for name, found in layers.items()}
    compiled["given"] = compile_given(shape, even_routing(shape), inputs)
    check(compiled["sorted"].run(), compiled["one_hot"].run())
    seconds = harness.interleaved_medians(
        {name: timed(each.run) for name, each in compiled.items()} | products(shape), rounds=rounds
    )
    parts = {name: seconds.pop(name) for name in tuple(seconds) if name not in compiled}
    plain = sum(time for name, time in parts.items() if not name.startswith("grouped"))
    return {
        "shape": dataclasses.asdict(shape),
        "seconds": seconds,
        "products": plain,
        "grouped": plain / sum(time for name, time in parts.items() if name.startswith("grouped")),
        "parts": parts,
        "temporaries": {name: each.temporaries for name, each in compiled.items()},
    }


def time_skewed(shape: Shape, rounds: int) -> dict:
    """Times experts with a skewed routing beside the dense layer."""
    say(f"compiling with skew: {shape}")
    inputs, routing = draw(shape), skewed_routing(shape)
    compiled = {
        "dense": compile_layer(dense(shape), inputs),
        "given": compile_given(shape, routing, inputs),
    }
    runs = {name: timed(each.run) for name, each in compiled.items()}
    plain = {name: run for name, run in products(shape).items() if not name.startswith("grouped")}
    seconds = harness.interleaved_medians(runs | plain, rounds=rounds)
    loads = np.bincount(np.ravel(routing.expert), minlength=shape.experts)
    return {
        "shape": dataclasses.asdict(shape),
        "products": sum(seconds.pop(name) for name in plain),
        "seconds": seconds,
        "largest_load": int(loads.max()),
        "smallest_load": int(loads.min()),
        "temporaries": {name: each.temporaries for name, each in compiled.items()},
    }


def measure_large(shape: Shape, rounds: int) -> dict:
    """Times grouped products in bfloat16 beside plain ones of as many operations, on a GPU.

    Raises:
      harness.BenchmarkError: there is no GPU.
    """
    if jax.default_backend() != "gpu":
        raise harness.BenchmarkError(f"--large needs a GPU; the device is {harness.device_name()}")
    runs = products(shape, jnp.bfloat16)
    seconds = harness.interleaved_medians(runs, rounds=rounds, warmup=3)
    sums = {
        f"{kind}_{way}": sum(
            time
            for name, time in seconds.items()
            if name.startswith(kind) and name.endswith("_y") == (way == "forward")
        )
        for kind in ("plain", "grouped")
        for way in ("forward", "backward")
    }
    return {
        "name": "moe_layer_large",
        "shape": dataclasses.asdict(shape),
        "seconds": seconds,
        "forward": sums["plain_forward"] / sums["grouped_forward"],
        "backward": sums["plain_backward"] / sums["grouped_backward"],
        "tflops": shape.flops / 1e12 / (sums["plain_forward"] + sums["plain_backward"]),
        "device": harness.device_name(),
        "rounds": rounds,
        "versions": harness.versions("jax", "flax"),
    }


@dataclasses.dataclass(frozen=True)
class Compiled:
    run: Callable[[], Any]
    temporaries: int


def compile_layer(layer: Any, inputs: tuple[jax.Array, jax.Array]) -> Compiled:
    """Value, and gradients of x and all parameters, of a feed-forward layer."""
    x_BLD, dy_BLD = inputs
    context = Context(valid=jnp.ones(x_BLD.shape[:2], bool), train=True)
    params = jax.jit(layer.init)(jax.random.key(2), x_BLD, context, ())["params"]

    def both(params, x_BLD, dy_BLD):
        apply = lambda params, x: layer.apply({"params": params}, x, context, ())[
            ::2
        ]  # the sums are made, too
        y_BLD, pull, sums = jax.vjp(apply, params, x_BLD, has_aux=True)
        return y_BLD, pull(dy_BLD), sums

    return compiled(both, params, x_BLD, dy_BLD)


def compile_given(shape: Shape, routing: Routing, inputs: tuple[jax.Array, jax.Array]) -> Compiled:
    """Value, and gradients of x, experts and weights of edges, of dropless dispatch with a routing."""
    x_GSD, dy_GSD = (x.reshape(1, shape.tokens, shape.width) for x in inputs)
    network = experts.Dense(shape.hidden, activation=jax.nn.relu)
    plan_of = lambda routing: Dropless().plan(routing, train=True)
    params = jax.jit(lambda key: network.init(key, plan_of(routing).dispatch(x_GSD)))(jax.random.key(2))

    def both(params, x_GSD, routing, dy_GSD):
        def apply(params, x_GSD, weight_GR):
            plan = plan_of(routing.replace(weight=weight_GR))
            return plan.combine(network.apply(params, plan.dispatch(x_GSD)))

        y_GSD, pull = jax.vjp(apply, params, x_GSD, routing.weight)
        return y_GSD, pull(dy_GSD)

    return compiled(both, params, x_GSD, routing, dy_GSD)


def compiled(function: Callable, *args: Any) -> Compiled:
    made = jax.jit(function).lower(*args).compile()
    return Compiled(lambda: made(*args), made.memory_analysis().temp_size_in_bytes)


def dense(shape: Shape) -> feed_forward.Dense:
    return feed_forward.Dense(shape.choices * shape.hidden, activation=jax.nn.relu)


def sparse(shape: Shape, dispatcher: Dispatcher) -> Mixture:
    return Mixture(
        router=TopK(shape.experts, shape.choices),
        experts=experts.Dense(shape.hidden, activation=jax.nn.relu),
        dispatcher=dispatcher,
        group_rows=None,
    )


def products(shape: Shape, dtype: Any = jnp.float32) -> dict[str, Callable[[int], object]]:
    """The six bare products of the dense layer, and the grouped ones of as many operations, to be timed."""
    tokens, wide = shape.tokens, shape.choices * shape.hidden
    normal = lambda *sizes: jax.random.normal(jax.random.key(3), sizes, dtype)
    x_TD, h_TF, in_DF, out_FD = (
        normal(tokens, shape.width),
        normal(tokens, wide),
        normal(shape.width, wide),
        normal(wide, shape.width),
    )
    times, into, of = jax.jit(jnp.matmul), jax.jit(lambda y, w: y @ w.T), jax.jit(lambda x, y: x.T @ y)
    runs = {
        "plain_in_y": timed(times, x_TD, in_DF),
        "plain_in_dx": timed(into, h_TF, in_DF),
        "plain_in_dw": timed(of, x_TD, h_TF),
        "plain_out_y": timed(times, h_TF, out_FD),
        "plain_out_dx": timed(into, x_TD, out_FD),
        "plain_out_dw": timed(of, h_TF, x_TD),
    }
    rows = tokens * shape.choices
    sizes_E = jnp.bincount(np.ravel(even_routing(shape).expert), length=shape.experts)
    x_RD, h_RF = normal(rows, shape.width), normal(rows, shape.hidden)
    in_EDF = normal(shape.experts, shape.width, shape.hidden)
    out_EFD = normal(shape.experts, shape.hidden, shape.width)
    pull = lambda x, w, dy: jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E), x, w)[1](dy)
    forward, backward = jax.jit(lambda x, w: grouped_matmul(x, w, sizes_E)), jax.jit(pull)
    return runs | {
        "grouped_in_y": timed(forward, x_RD, in_EDF),
        "grouped_out_y": timed(forward, h_RF, out_EFD),
        "grouped_in_back": timed(backward, x_RD, in_EDF, h_RF),
        "grouped_out_back": timed(backward, h_RF, out_EFD, x_RD),
    }


def draw(shape: Shape) -> tuple[jax.Array, jax.Array]:
    """x and the gradient of the result, [B, L, D]."""
    size = (shape.tokens // _LENGTH, _LENGTH, shape.width)
    return tuple(jax.random.normal(jax.random.key(seed), size) for seed in (0, 1))


def even_routing(shape: Shape) -> Routing:
    """Each token chooses K different experts, all equally likely."""
    return drawn_routing(shape, np.ones(shape.experts))


def skewed_routing(shape: Shape) -> Routing:
    """Each token draws K different experts, the n-th of them with a probability of 1 / n each time."""
    return drawn_routing(shape, 1 / np.arange(1, shape.experts + 1))


def drawn_routing(shape: Shape, likely: np.ndarray) -> Routing:
    random = np.random.default_rng(0)
    # The K largest of logits with Gumbel noise are draws without replacement.
    noisy_TE = np.log(likely) + random.gumbel(size=(shape.tokens, shape.experts))
    expert_TK = np.argsort(-noisy_TE, axis=1)[:, : shape.choices].astype(np.int32)
    weight_TK = random.dirichlet(np.ones(shape.choices), size=shape.tokens)
    return token_choice(
        jnp.asarray(expert_TK)[None], jnp.asarray(weight_TK)[None], jnp.ones((1, 1, 1), bool), shape.experts
    )


def timed(function: Callable, *args: Any) -> Callable[[int], object]:
    return lambda number: jax.block_until_ready(function(*args))


def check(ours: Any, oracle: Any) -> None:
    """Raises a BenchmarkError unless values and gradients are equal, to 1e-5 of the largest of each."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if not np.max(np.abs(a - b)) <= _TOLERANCE * np.max(np.abs(b)):
            raise harness.BenchmarkError("the sorted and the one-hot layer differ")


def lines(made: Mapping) -> Sequence[str]:
    """The report for a reader."""
    if made["name"] == "moe_layer_large":
        yield f"{made['shape']} in bfloat16, on {made['device']}"
        yield f"  plain products {made['tflops']:.0f} TFLOP/s; grouped, as a part of that rate: forward"
        yield f"  {made['forward']:.2f}, backward {made['backward']:.2f} (bar 0.60)"
        return
    seconds, rate = made["main"]["seconds"], made["rate"]
    yield f"forward and backward on {made['device']}, {made['main']['shape']}"
    yield "  " + ", ".join(f"{name} {time * 1e3:.0f} ms" for name, time in seconds.items())
    yield (
        f"  ratio {made['ratio']:.2f} (bar {_BARS['ratio']}), experts alone {made['ratio_given']:.2f}; "
        f"vs_one_hot {made['vs_one_hot']:.1f} (bar {_LEAST['vs_one_hot']}); "
        f"temporaries {made['temporaries']:.2f} (bar {_BARS['temporaries']})"
    )
    yield (
        f"  plain products {made['gflops']:.0f} GFLOP/s; of that rate: dense layer {rate['dense']:.2f} "
        f"(bar {_LEAST['dense_rate']}), grouped products {rate['grouped']:.2f}"
    )
    part = made["with_skew"]
    yield f"skewed, {part['shape']}, experts with {part['smallest_load']} to {part['largest_load']} tokens"
    yield "  " + ", ".join(f"{name} {time * 1e3:.0f} ms" for name, time in part["seconds"].items())
    yield (
        f"  skewed {made['skewed']:.2f} (bar {_BARS['skewed']}); the dense layer runs at "
        f"{rate['dense_skewed']:.2f} of the rate of plain products"
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
