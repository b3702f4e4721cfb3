"""Floating-point operations of a function, counted from its jaxpr: nothing is compiled and nothing runs.

XLA's own `cost_analysis` counts the body of a loop once, whatever the number of turns, and does not exist
before compilation on an accelerator. The rules here are those of XLA's HloCostAnalysis for operations before
optimization, and loops count as often as they run:

    dot_general, ragged_dot, convolution    2 per multiplication and addition; padding is not multiplied
    elementwise, comparison, conversion     1 per element of the result
    reduction                               1 per element that is folded into another
    gather, scatter                         what the bounds cost, 1 per element that is added or multiplied
    sort                                    n ceil(log2 n)
    exp, tanh, sqrt and their like          counted apart, as transcendentals
    scan                                    its length times the body
    cond                                    the branch with the most; of `platform_dependent` the default
    shard_map, pallas_call                  the body, times its devices or the points of its grid
    while                                   body and condition once, and said so in `uncounted`

What differs from XLA: random bits count 0, since they are integers and what they take depends on the
generator; a cumulative operation counts 1 per element, not the window that XLA makes of it; `ragged_dot`
counts each row once, not once for every group; and XLA leaves out what it folds as it reads the program,
such as the product with the 1 that a gradient starts from.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What moves, shapes or names data, what XLA leaves to a library, and what makes random bits.
_FREE = _names("""
    all_gather all_gather_invariant all_to_all axis_index broadcast_in_dim concatenate copy copy_p device_put
    dynamic_slice dynamic_update_slice empty empty2 get iota layout_constraint mesh_cast name
    optimization_barrier pad pbroadcast pcast platform_index ppermute program_id pvary ragged_all_to_all
    random_bits random_clone random_fold_in random_seed random_split random_unwrap random_wrap reshape reshard
    rev rng_bit_generator rng_uniform sharding_constraint slice split squeeze stack stop_gradient swap
    threefry2x32 top_k transpose
""")
_ONE = _names("""
    abs add add_any addupdate and bitcast_convert_type ceil clamp clz cummax cummin cumprod cumsum div eq
    eq_to floor ge gt is_finite le le_to lt lt_to max min mul ne neg not or pmax pmin population_count psum
    psum_invariant reduce_precision reduce_scatter rem round select_n shift_left shift_right_arithmetic
    shift_right_logical sign square sub xor
""")
_REDUCTIONS = _names("""
    argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor
""")
_TRANSCENDENTAL = _names("atan atan2 cbrt cos erf exp expm1 log log1p pow rsqrt sin sqrt tan tanh")
# How XLA spells these out: (flops, transcendentals) per element.
_COMPOSED = {"erf_inv": (37, 2), "erfc": (62, 1), "exp2": (1, 1), "logistic": (3, 1)}
_AGAIN = "rematted_computation"  # jax's own scope of what a backward pass computes again
_ARITHMETIC_SCATTERS = _names("scatter-add scatter-sub scatter-mul scatter-min scatter-max")


@dataclasses.dataclass(frozen=True)
class Flops:
    """What `count` found.

    Attributes:
      total: floating-point operations, without transcendentals.
      matmul: those of them in dots and convolutions.
      recomputed: those of `matmul` that a backward pass computes again (`jax.checkpoint`).
      transcendentals: exp, tanh, sqrt and their like, one per element.
      modules: path -> the part of `total` in that module itself and in none of its children; "" is what
        stands in no module, such as the optimizer. Forward and backward add up.
      uncounted: what the numbers lack, in words: loops of unknown length and unknown primitives.
    """

    total: int
    matmul: int
    recomputed: int
    transcendentals: int
    modules: Mapping[str, int]
    uncounted: tuple[str, ...]


def count(function: Callable, *args: Any, **kwargs: Any) -> Flops:
    """Counts one call of a function, over all devices.

    Paths of modules are the named scopes that flax linen opens, "DualEncoder/query/encoder/block/attention",
    without what differentiation and rematerialization add. Differentiation takes what does not change from
    turn to turn out of a loop, and there its path begins at the loop ("block/attention").

    What a backward pass computes again counts again: a utilization made of it is that of the hardware. That
    of the model has `matmul - recomputed` (Chowdhery et al., 2022, "PaLM: Scaling Language Modeling with
    Pathways"). What no output depends on does not count.

    Args:
      function: anything that `jax.jit` takes, or what it returned.
      *args: pytrees of arrays or jax.ShapeDtypeStruct.
      **kwargs: likewise.
    """
    traced = (function if hasattr(function, "trace") else jax.jit(function)).trace(*args, **kwargs)
    jaxpr = traced.jaxpr.jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    tally = _Tally()
    _add(jaxpr, "", 1, tally)
    total = sum(tally.modules.values())
    return Flops(
        total, tally.matmul, tally.recomputed, tally.transcendentals, tally.modules, tuple(tally.uncounted)
    )


def table(flops: Flops, depth: int = 4) -> list[str]:
    """Lines of module, operations and share of the total; a module's children stand below it, most first.

    Shares below 0.05% are left out, and each line of `uncounted` comes last.

    Args:
      flops: from `count`.
      depth: down to which level of modules; what lies deeper counts for the module above it.
    """
    sums: dict[tuple[str, ...], int] = {}
    for path, number in flops.modules.items():
        names = tuple(path.split("/")) if path else ("(in no module)",)
        for level in range(min(depth, len(names)) + 1):
            sums[names[:level]] = sums.get(names[:level], 0) + number
    rows: list[tuple[str, int]] = []

    def visit(names: tuple[str, ...]) -> None:
        rows.append(("  " * len(names) + (names[-1] if names else "all"), sums[names]))
        children = [other for other in sums if len(other) == len(names) + 1 and other[:-1] == names]
        for child in sorted(children, key=lambda child: (-sums[child], child)):
            if sums[child] >= 0.0005 * flops.total:
                visit(child)

    if flops.total:
        visit(())
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name:{width}}  {number:9.3e}  {number / flops.total:6.1%}" for name, number in rows]
    return lines + [f"not counted: {what}" for what in flops.uncounted]


@dataclasses.dataclass
class _Tally:
    modules: dict[str, int] = dataclasses.field(default_factory=dict)
    matmul: int = 0
    recomputed: int = 0
    transcendentals: int = 0
    uncounted: dict[str, None] = dataclasses.field(default_factory=dict)  # a set that keeps its order

    def add(self, path: str, number: int) -> None:
        self.modules[path] = self.modules.get(path, 0) + number

    def merge(self, other: "_Tally") -> None:
        for path, number in other.modules.items():
            self.add(path, number)
        self.matmul += other.matmul
        self.recomputed += other.recomputed
        self.transcendentals += other.transcendentals
        self.uncounted |= other.uncounted


def _add(jaxpr: core.Jaxpr, outer: str, times: int, tally: _Tally) -> None:
    """Adds `times` runs of a jaxpr that stands in the scope `outer`."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        scope = "/".join(part for part in (outer, str(equation.source_info.name_stack)) if part)
        inner = list(core.jaxprs_in_params(equation.params))
        platforms = equation.params.get("branches_platforms")
        if platforms and None in platforms:
            _add(inner[platforms.index(None)], scope, times, tally)
        elif name == "cond":
            branches = [_Tally() for _ in inner]
            for branch, part in zip(inner, branches, strict=True):
                _add(branch, scope, times, part)
            tally.merge(max(branches, key=lambda part: sum(part.modules.values())))
        elif inner and not _has_fold(name):
            runs = times * _runs(equation)
            if name == "while":
                tally.uncounted[f"turns of a while loop after the first, in {module_path(scope)!r}"] = None
            for sub in inner:
                _add(sub, scope, runs, tally)
        else:
            path = module_path(scope)
            matmul, other, transcendentals = _operations(equation)
            if other is None:
                tally.uncounted[f"{name}, in {path!r}"] = None
                continue
            tally.add(path, times * (matmul + other))
            tally.matmul += times * matmul
            tally.recomputed += times * matmul * (_AGAIN in scope)
            tally.transcendentals += times * transcendentals


def _has_fold(name: str) -> bool:
    """Whether a primitive's inner jaxpr is the fold of two elements, of which the rules below know."""
    return name.startswith(("scatter", "reduce"))


def _runs(equation: core.JaxprEqn) -> int:
    params = equation.params
    if equation.primitive.name == "scan":
        return params["length"]
    if equation.primitive.name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if equation.primitive.name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _operations(equation: core.JaxprEqn) -> tuple[int, int | None, int]:
    """Returns (flops of products, other flops or None for unknown, transcendentals)."""
    name, params = equation.primitive.name, equation.params
    result = _size(equation.outvars[0]) if equation.outvars else 0
    operand = _size(equation.invars[0]) if equation.invars else 0
    if name in _FREE:
        return 0, 0, 0
    if name == "convert_element_type":
        return 0, result * (equation.invars[0].aval.dtype != equation.outvars[0].aval.dtype), 0
    if name == "pow":  # an integer exponent is converted first
        base, exponent = (v.aval for v in equation.invars)
        return 0, exponent.size * (exponent.dtype != base.dtype), result
    if name in _ONE:
        return 0, result, 0
    if name in _TRANSCENDENTAL:
        return 0, 0, result
    if name in _COMPOSED:
        flops, transcendentals = _COMPOSED[name]
        return 0, flops * result, transcendentals * result
    if name in _REDUCTIONS:
        # Folding two (value, index) pairs takes 9: four comparisons, and what is made of them.
        return 0, (operand - result) * (9 if name.startswith("arg") else 1), 0
    if name in ("dot_general", "ragged_dot_general"):
        return _dot(equation), 0, 0
    if name == "conv_general_dilated":
        return _convolution(equation), 0, 0
    if name == "integer_pow":  # by squaring
        power = abs(params["y"])
        products = power.bit_length() + power.bit_count() - 2 if power else 0
        return 0, result * (products + (params["y"] < 0)), 0
    if name == "sort":
        return 0, operand * math.ceil(math.log2(max(operand, 1))), 0
    if name == "gather":
        indices = equation.invars[1].aval
        if params["mode"].name != "FILL_OR_DROP":
            return 0, 0, 0
        # Two comparisons and their `and`, `and` over the axes indexed, and a choice for each result.
        return 0, 4 * indices.size - math.prod(indices.shape[:-1]) + result, 0
    if name.startswith("scatter"):
        updates = _size(equation.invars[2]) if name in _ARITHMETIC_SCATTERS else 0
        return 0, updates + (equation.invars[1].aval.size if params["mode"].name == "CLIP" else 0), 0
    return 0, None, 0


def _dot(equation: core.JaxprEqn) -> int:
    """2 B M N K: all of the left operand, once for each free column of the right one."""
    left, right = equation.invars[0].aval, equation.invars[1].aval
    numbers = equation.params.get("dimension_numbers")
    groups: tuple[int, ...] = ()
    if numbers is None:
        ragged = equation.params["ragged_dot_dimension_numbers"]
        numbers, groups = ragged.dot_dimension_numbers, tuple(ragged.rhs_group_dimensions)
    (_, contracted), (_, batched) = numbers
    taken = {*contracted, *batched, *groups}
    return 2 * left.size * math.prod(n for axis, n in enumerate(right.shape) if axis not in taken)


def _convolution(equation: core.JaxprEqn) -> int:
    left, right = equation.invars[0].aval, equation.invars[1].aval
    params = equation.params
    left_axes, right_axes, out_axes = params["dimension_numbers"]
    out = equation.outvars[0].aval
    pairs = 1
    for i, (low, _) in enumerate(params["padding"]):
        out_positions = np.arange(out.shape[out_axes[2 + i]])[:, None] * params["window_strides"][i] - low
        at = out_positions + np.arange(right.shape[right_axes[2 + i]])[None, :] * params["rhs_dilation"][i]
        read, hole = np.divmod(at, params["lhs_dilation"][i])
        pairs *= int(((hole == 0) & (read >= 0) & (read < left.shape[left_axes[2 + i]])).sum())
    batch = left.shape[left_axes[0]] // params["batch_group_count"]
    return 2 * batch * pairs * right.shape[right_axes[0]] * right.shape[right_axes[1]]


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))


def module_path(scope: str) -> str:
    """The module that a stack of named scopes stands for.

    >>> module_path("transpose(jvp(DualEncoder))/query/rematted_computation/block.layer/block/bld,bl->bd")
    'DualEncoder/query/block'
    """
    path: list[str] = []
    before = ""
    for part in re.sub(r"\w+\(|\)", "", scope).split("/"):
        if not part or part == _AGAIN or "->" in part:
            continue  # jax's own scopes: einsum writes its formula
        name = part.partition(".")[0]
        # linen writes "module.method" but for __call__: one method calling another is no child.
        if not (path and name == path[-1] and ("." in part or "." in before)):
            path.append(name)
        before = part
    return "/".join(path)
