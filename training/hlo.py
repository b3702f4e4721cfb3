"""Reads the text of a compiled XLA module: its computations, and how often each of them runs.

The text is what `jax.stages.Compiled.as_text()` gives. Shapes in it are of one device. What `totals` adds up
counts a loop's body as often as it runs, where XLA's own `cost_analysis` counts it once:

    while                     turns times the body, turns + 1 times the condition
    conditional               the branch with the most
    call, async-start         the called computation, once
    fusion                    the computation that it fuses, for those who ask

The turns of a loop are `known_trip_count` where the compiler left it; else they follow from the condition, a
counter compared with a constant, with the counter's first value and step; else they are unknown, counted as
one, and said in `unknown`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

_LEAF = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """The shape of an array, or of a part of a tuple.

    Attributes:
      dtype: XLA's name, such as "bf16".
      dims: the shape.
      space: where it lies: 0 for the device's main memory, others are on the chip (TPU: 1 is vector memory).
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Its size, without what tiles add in padding."""
        if self.dtype in ("token", "opaque"):
            return 0
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])
        return math.ceil(math.prod(self.dims) * bits / 8)


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique within the module.
      opcode: such as "fusion".
      results: its shape; the parts of a tuple, nested ones flattened.
      operands: names of instructions of the same computation.
      literal: what stands between its parentheses, such as the number of a parameter.
      attributes: what follows them.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str

    def called(self, *attributes: str) -> list[str]:
        """Returns the computations that attributes such as `calls` or `branch_computations` name."""
        names = []
        for attribute in attributes:
            for one, several in re.findall(rf"\b{attribute}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes):
                names += [one] if one else _NAME.findall(several)
        return names

    @property
    def index(self) -> int:
        """Which part of a tuple a get-tuple-element takes."""
        return int(re.search(r"\bindex=(\d+)", self.attributes)[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Instructions by name, in order, and which of them is the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Array]:
        """Returns the shapes of an instruction's operands."""
        return [array for name in instruction.operands for array in self.instructions[name].results]

    @functools.cached_property
    def users(self) -> Mapping[str, Sequence[Instruction]]:
        """The instructions that read each one."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for name in dict.fromkeys(instruction.operands):
                users[name].append(instruction)
        return users


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """Attributes:
    computations: by name.
    entry: the one that runs.
    partitions: how many devices the module is for.
    """

    computations: Mapping[str, Computation]
    entry: Computation
    partitions: int


def parse(text: str) -> Module:
    """Reads a module. Raises ValueError where the text is none."""
    partitions = re.search(r"\bnum_partitions=(\d+)", text[:100_000])
    computations: dict[str, Computation] = {}
    entry = root = None
    lines: dict[str, Instruction] = {}
    name = ""
    for line in text.splitlines():
        if not name:
            header = _HEADER.match(line)
            if header:
                name, lines, root = header[2], {}, None
                entry = name if header[1] else entry
        elif line.startswith("}"):  # what may follow is the thread, such as that of a sparse core
            computations[name] = Computation(name, lines, root)
            name = ""
        else:
            match = _ASSIGNMENT.match(re.sub(r"/\*.*?\*/", "", line))
            if match:
                instruction = _instruction(match[2], match[3])
                lines[instruction.name] = instruction
                root = instruction if match[1] else root
    if entry is None:
        raise ValueError("no ENTRY computation: this is not the text of a compiled XLA module")
    return Module(computations, computations[entry], int(partitions[1]) if partitions else 1)


def totals(
    module: Module,
    count: Callable[[Computation, Instruction], Mapping[Key, float]],
    *,
    fusions: bool,
    weight: Callable[[Key], float] = lambda key: 1.0,
    unknown: dict[str, None] | None = None,
) -> dict[Key, float]:
    """Adds up what a function finds in every instruction that runs, as often as it runs.

    Args:
      module: from `parse`.
      count: from a computation and one of its instructions, numbers by key. What a loop or a call holds is
        counted inside of it.
      fusions: whether the instructions inside of fusions are counted too.
      weight: of a key, by which the branches of a conditional are compared.
      unknown: gets the names of loops whose turns are unknown.
    """
    found: dict[str, dict[Key, float]] = {}

    def of(name: str) -> dict[Key, float]:
        if name not in found:
            found[name] = sums = {}
            computation = module.computations[name]
            for instruction in computation:
                _add(sums, count(computation, instruction), 1)
                for part, times in inside(computation, instruction):
                    _add(sums, part, times)
        return found[name]

    def inside(computation: Computation, instruction: Instruction) -> list[tuple[dict[Key, float], float]]:
        if instruction.opcode == "while":
            turns = trip_count(module, computation, instruction)
            if turns is None:
                turns = 1
                if unknown is not None:
                    unknown[instruction.name] = None
            (body,), (condition,) = instruction.called("body"), instruction.called("condition")
            return [(of(body), turns), (of(condition), turns + 1)]
        if instruction.opcode == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            return [(max(map(of, branches), key=lambda sums: sum(weight(k) * n for k, n in sums.items())), 1)]
        if instruction.opcode in ("call", "async-start") or (fusions and instruction.opcode == "fusion"):
            return [(of(name), 1) for name in instruction.called("calls", "to_apply")]
        return []

    return of(module.entry.name)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often the body of a while loop runs, None where that is not known."""
    known = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition")[0]]
    body = module.computations[loop.called("body")[0]]
    found = _comparison(module, condition)
    if found is None or body.root.opcode != "tuple":
        return None
    at, direction, bound = found
    first = _constant(computation, _tuple_part(computation, loop.operands[0], at))
    step = _step(module, body, at)
    if first is None or not step:
        return None
    if direction in ("LE", "GE"):  # to below or above
        bound += 1 if direction == "LE" else -1
    if (direction in ("LT", "LE") and step < 0) or (direction in ("GT", "GE") and step > 0):
        return None
    return max(0, math.ceil((bound - first) / step))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    results = tuple(
        Array(
            dtype,
            tuple(int(n.lstrip("<=")) for n in dims.split(",") if n),
            int(space[1]) if (space := re.search(r"S\((\d+)\)", layout)) else 0,
        )
        for dtype, dims, layout in _LEAF.findall(text[:end])
    )
    opcode, _, rest = text[end:].lstrip().partition("(")
    close = _closing("(" + rest, 0)
    literal = rest[: close - 1]
    operands = () if opcode in ("constant", "parameter", "iota") else tuple(_NAME.findall(literal))
    return Instruction(name, opcode, results, operands, literal, rest[close:])


def _closing(text: str, start: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]!r}")


def _add(sums: dict[Key, float], more: Mapping[Key, float], times: float) -> None:
    for key, number in more.items():
        sums[key] = sums.get(key, 0) + times * number


# What hands its operand on unchanged, as far as a counter is concerned.
_COPIES = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "optimization-barrier")


def _source(computation: Computation, name: str) -> Instruction:
    instruction = computation.instructions[name]
    while instruction.opcode in _COPIES:
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(computation: Computation, name: str | None) -> int | None:
    if name is None:
        return None
    source = _source(computation, name)
    number = re.fullmatch(r"-?\d+", source.literal)
    return int(source.literal) if source.opcode == "constant" and number else None


def _tuple_part(computation: Computation, name: str, at: int) -> str | None:
    source = _source(computation, name)
    return source.operands[at] if source.opcode == "tuple" else None


def _counter(computation: Computation, name: str) -> int | None:
    """Which part of the computation's only parameter, a tuple, an instruction is."""
    source = _source(computation, name)
    if source.opcode != "get-tuple-element":
        return None
    parameter = computation.instructions[source.operands[0]]
    return source.index if parameter.opcode == "parameter" else None


def _inlined(module: Module, computation: Computation, name: str) -> tuple[str, list[str], str] | None:
    """The opcode, operands and attributes of an instruction, or of the only operation that it fuses."""
    source = _source(computation, name)
    operands = list(source.operands)
    if source.opcode in ("fusion", "call"):
        inner = module.computations[source.called("calls", "to_apply")[0]]
        outer = {i.name: operands[int(i.literal)] for i in inner if i.opcode == "parameter"}
        source = _source(inner, inner.root.name)
        names = [_source(inner, operand) for operand in source.operands]
        operands = [outer.get(i.name, f"{inner.name}:{i.name}") for i in names]
    return source.opcode, operands, source.attributes


def _value(module: Module, computation: Computation, name: str) -> int | None:
    place, colon, inner = name.partition(":")
    return _constant(module.computations[place], inner) if colon else _constant(computation, name)


def _comparison(module: Module, condition: Computation) -> tuple[int, str, int] | None:
    """(part of the tuple, direction, bound) of a condition that compares a counter with a constant."""
    opcode, operands, attributes = _inlined(module, condition, condition.root.name)
    direction = re.search(r"direction=(\w\w)", attributes)
    if opcode != "compare" or direction is None or direction[1] == "EQ":
        return None
    flipped = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "NE": "NE"}
    for (counter, other), way in ((operands, direction[1]), (operands[::-1], flipped[direction[1]])):
        at = None if ":" in counter else _counter(condition, counter)
        bound = _value(module, condition, other)
        if at is not None and bound is not None:
            return at, way, bound
    return None


def _step(module: Module, body: Computation, at: int) -> int | None:
    """What a turn adds to a part of the loop's tuple."""
    opcode, operands, _ = _inlined(module, body, body.root.operands[at])
    if opcode not in ("add", "subtract") or len(operands) != 2:
        return None
    for counter, other in (operands, operands[::-1]) if opcode == "add" else (operands,):
        if ":" not in counter and _counter(body, counter) == at:
            step = _value(module, body, other)
            return step if step is None or opcode == "add" else -step
    return None
