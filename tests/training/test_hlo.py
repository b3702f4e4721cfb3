"""The reader of compiled modules: on text written by hand, and on what XLA prints."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from training import hlo

MODULE = """HloModule jit_f, is_scheduled=true, num_partitions=8

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[]{:T(128)}, /*index=1*/f32[4]{0:T(128)S(1)}) parameter(0)
  %one = s32[] constant(STEP)
  %i = s32[] get-tuple-element(%p), index=0
  %next = s32[] OPERATION(%i, %one)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %twice = f32[4]{0} add(%x, %x)
  ROOT %out = (s32[], f32[4]) tuple(%next, %twice)
}

%condition (q: (s32[], f32[4])) -> pred[] {
  %q = (s32[], f32[4]{0}) parameter(0)
  %bound = s32[] constant(BOUND)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %more = pred[] compare(COMPARED), direction=DIRECTION
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0), metadata={op_name="a"}
  %first = s32[] constant(FIRST)
  %copied = s32[] copy(%first)
  %init = (s32[], f32[4]{0}) tuple(%copied, %a)
  %loop = (s32[], f32[4]{0}) while(%init), condition=%condition, body=%bodyKNOWN
  ROOT %result = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def module(**given):
    fields = dict(
        FIRST="0", STEP="1", BOUND="5", OPERATION="add", DIRECTION="LT", COMPARED="%j, %bound", KNOWN=""
    )
    text = MODULE
    for name, value in (fields | given).items():
        text = text.replace(name, value)
    return hlo.parse(text)


def additions(parsed):
    unknown = {}
    found = hlo.totals(
        parsed,
        lambda _, instruction: {"add": 1} if instruction.name == "twice" else {},
        fusions=True,
        unknown=unknown,
    )
    return found.get("add", 0), list(unknown)


def test_shapes_names_and_attributes():
    parsed = module()
    assert parsed.partitions == 8
    assert list(parsed.computations) == ["body", "condition", "main"]
    assert parsed.entry.name == "main"
    assert parsed.entry.root.name == "result"
    body = parsed.computations["body"]
    first, second = body.instructions["p"].results
    assert (first.dtype, first.dims, first.space, first.bytes) == ("s32", (), 0, 4)
    assert (second.dtype, second.dims, second.space, second.bytes) == ("f32", (4,), 1, 16)
    assert body.instructions["next"].operands == ("i", "one")
    assert body.instructions["one"].literal == "1"
    assert [i.name for i in body.users["i"]] == ["next"]
    loop = parsed.entry.instructions["loop"]
    assert (loop.called("body"), loop.called("condition")) == (["body"], ["condition"])
    branches = hlo.Instruction("c", "conditional", (), (), "", ", branch_computations={%a, %b.1}, x=%y")
    assert branches.called("branch_computations") == ["a", "b.1"]


def test_a_computation_may_say_which_thread_runs_it():
    text = MODULE.replace(
        "  ROOT %more = pred[] compare(COMPARED), direction=DIRECTION\n}",
        """  ROOT %more = pred[] copy(%j)
}, execution_thread="sparsecore\"""",
    )
    assert list(hlo.parse(text).computations) == ["body", "condition", "main"]


@pytest.mark.parametrize(
    ("dtype", "dims", "size"),
    [("pred", (3,), 3), ("bf16", (2, 3), 12), ("s4", (5,), 3), ("f8e4m3fn", (7,), 7), ("token", (), 0),
     ("c64", (2,), 16), ("u32", (), 4)],
)  # fmt: skip
def test_bytes(dtype, dims, size):
    assert hlo.Array(dtype, dims).bytes == size


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ({}, 5),
        ({"FIRST": "2"}, 3),
        ({"STEP": "2"}, 3),
        ({"DIRECTION": "LE"}, 6),
        ({"DIRECTION": "NE"}, 5),
        ({"COMPARED": "%bound, %j", "DIRECTION": "GT"}, 5),
        ({"FIRST": "9", "STEP": "-2", "DIRECTION": "GT"}, 2),
        ({"FIRST": "9", "OPERATION": "subtract", "DIRECTION": "GE"}, 5),
        ({"FIRST": "7"}, 0),
        ({"KNOWN": ', backend_config={"known_trip_count":{"n":"11"}}'}, 11),
        ({"DIRECTION": "EQ"}, None),
        ({"OPERATION": "multiply"}, None),
        ({"STEP": "-1"}, None),
        ({"COMPARED": "%j, %j"}, None),
    ],
)
def test_turns_of_a_loop(given, turns):
    parsed = module(**given)
    assert hlo.trip_count(parsed, parsed.entry, parsed.entry.instructions["loop"]) == turns
    expected = (1, ["loop"]) if turns is None else (turns, [])
    assert additions(parsed) == expected


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing\n")


def products(function, *args):
    """Products in the compiled module, as often as they run: as dots, or in calls of a library."""
    parsed = hlo.parse(jax.jit(function).lower(*args).compile().as_text())

    def count(_, instruction):
        dot = instruction.opcode == "dot" or "__onednn$matmul" in instruction.attributes
        return {"dot": 1} if dot else {}

    unknown = {}
    return hlo.totals(parsed, count, fusions=True, unknown=unknown).get("dot", 0), len(unknown)


@pytest.mark.parametrize("layers", [2, 4])
def test_loops_of_a_compiled_module(layers):
    x, w = jnp.ones((8, 8)), jnp.ones((layers, 8, 8))

    def scanned(w, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    assert products(scanned, w, x) == (layers, 0)
    assert products(jax.grad(scanned, argnums=(0, 1)), w, x) == (3 * layers, 0)

    def nested(w, x):
        return lax.fori_loop(0, 3, lambda _, x: x + scanned(w, x), x)

    assert products(nested, w, x) == (3 * layers, 0)


def test_a_loop_of_unknown_length_and_the_larger_branch():
    x = jnp.ones((8, 8))
    assert products(lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), x) == (1, 1)
    branches = (lambda x: x @ x, lambda x: jnp.tanh(x @ x) @ x, lambda x: x + 1.0)
    assert products(lambda i, x: lax.switch(i, branches, x), jnp.int32(1), x) == (2, 0)
