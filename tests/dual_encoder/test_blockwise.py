"""The blockwise objectives equal the plain ones on one device and on rings, in memory that does not grow."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dual_encoder import blockwise
from dual_encoder.candidates import Candidates
from dual_encoder.objectives import softmax
from training.mesh import Layout

NAMES = ("info_nce", "symmetric_info_nce")


def example(seed=0, queries=16, negatives=1, width=8, positives=2):
    """Unit vectors, few documents of which some are missing or stand twice, and labels in any order."""
    rng = np.random.default_rng(seed)
    documents = queries * (1 + negatives)
    vectors = rng.normal(size=(queries + documents, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, documents, queries).astype(np.int32)  # two queries may share a document
    rows = rng.integers(-1, documents, documents).astype(np.int32)
    known = rng.integers(-1, documents, (queries, positives)).astype(np.int32)
    return vectors[:queries], vectors[queries:], labels, Candidates(known, rows)


def plain(name, labels, candidates):
    where = candidates.where(labels)
    return lambda q, d, t: getattr(softmax, name)(q, d, labels=labels, where=where, temperature=t)


def ours(name, labels, candidates, block):
    return lambda q, d, t: getattr(blockwise, name)(
        q, d, labels=labels, candidates=candidates, temperature=t, block=block
    )


def differentiated(objective, q, d, temperature):
    """((loss, metrics), gradients of both vectors and the temperature)."""
    function = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True))
    return jax.device_get(function(q, d, jnp.float32(temperature)))


def assert_equal(made, expected):
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))


@pytest.fixture
def rounds(monkeypatch):
    """A loop over documents twice, as where too few queries fit to hold their scores."""
    monkeypatch.setattr(blockwise, "_HELD", 0)


@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(1, 20),
    negatives=st.integers(0, 2),
    width=st.integers(1, 9),
    positives=st.integers(1, 3),
    block=st.integers(1, 24),
    temperature=st.floats(0.05, 2.0),
    name=st.sampled_from(NAMES),
    fewest=st.sampled_from([1, blockwise._FEWEST_HELD]),
)
@settings(max_examples=6, deadline=None)
def test_equals_the_plain_objective(
    seed, queries, negatives, width, positives, block, temperature, name, fewest
):
    q, d, labels, candidates = example(seed, queries, negatives, width, positives)
    expected = differentiated(plain(name, labels, candidates), q, d, temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "_FEWEST_HELD", fewest)  # 1: the scores are held in any block
        made = differentiated(ours(name, labels, candidates, block), q, d, temperature)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        # One query may have no negative: a loss and gradients of zero, up to rounding.
        assert np.max(np.abs(a - b)) <= 1e-5 * max(np.max(np.abs(b)), 0.1)


RINGS = [dict(data=n) for n in (1, 2, 4, 8)] + [
    dict(data=2, fsdp=2),
    dict(replica=2, fsdp=2, tensor=2),
    dict(expert=2, tensor=4),
    dict(replica=2, data=2, expert=2),
]
FEW = [("info_nce", dict(data=2, fsdp=2), 5)] + [
    ("symmetric_info_nce", axes, 5) for axes in (dict(data=8), dict(replica=2, fsdp=2, tensor=2))
]
ALL = [(name, axes, block) for name in NAMES for axes in RINGS for block in (5, 512)]


@pytest.mark.parametrize(
    ("name", "axes", "block"),
    FEW + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FEW],
    ids=str,
)
def test_a_ring_equals_one_device(name, axes, block):
    q, d, labels, candidates = example(1, queries=24, negatives=1, width=5)
    expected = differentiated(plain(name, labels, candidates), q, d, 0.1)
    with jax.set_mesh(Layout(axes).mesh()):
        made = differentiated(ours(name, labels, candidates, block), q, d, 0.1)
    assert_equal(made, expected)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_in_which_nothing_counts(name, rounds):
    q, d, labels, _ = example(3, queries=12, negatives=1)
    labels = np.arange(12, dtype=np.int32) * 2
    rows = np.arange(24, dtype=np.int32)
    rows[8:16] = -1  # a block of 8, but for the own documents of queries 4 to 7
    known = np.tile(np.arange(24, dtype=np.int32), (12, 1))
    known[:4, 16:] = -1  # queries 4 to 11 know all others as positives: only their own document counts
    candidates = Candidates(known, rows)
    expected = differentiated(plain(name, labels, candidates), q, d, 0.1)
    made = differentiated(ours(name, labels, candidates, block=4), q, d, 0.1)
    assert_equal(made, expected)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(made))


def test_a_tie_is_no_hit_wherever_it_lies(rounds):
    # Query 0 has its own document again as document 6, of another block; the second query has not.
    q, d = np.eye(8, dtype=np.float32)[:2], np.eye(8, dtype=np.float32)
    d[6] = d[0]
    candidates = Candidates(np.array([[0], [1]], np.int32), np.arange(8, dtype=np.int32))
    objective = ours("info_nce", np.array([0, 1], np.int32), candidates, block=2)
    _, metrics = objective(q, d, 0.5)
    assert float(metrics["accuracy"]) == 0.5


@pytest.mark.parametrize("held", [0, 2])
def test_what_comes_from_above_scales_the_gradient(held, monkeypatch):
    # Two blocks of 8 x 8 are held: the scores of 3 queries with 40 documents.
    monkeypatch.setattr(blockwise, "_HELD", held)
    monkeypatch.setattr(blockwise, "_FEWEST_HELD", 1)
    q, d, labels, candidates = example(4, queries=20)
    made, expected = (
        jax.jit(jax.grad(lambda *a, f=f: -3.0 * f(*a)[0] ** 2, argnums=(0, 1, 2)))(q, d, 0.2)
        for f in (ours("info_nce", labels, candidates, 8), plain("info_nce", labels, candidates))
    )
    assert_equal(made, expected)


def test_the_value_alone_equals_that_with_a_gradient():
    q, d, labels, candidates = example(5)
    for name in NAMES:
        objective = ours(name, labels, candidates, 4)
        assert_equal(jax.jit(objective)(q, d, 0.1), differentiated(objective, q, d, 0.1)[0])


def temporaries(objective, batch, width=16):
    shape = jax.ShapeDtypeStruct

    def value(q, d, t, known, rows):
        return objective(np.arange(batch, dtype=np.int32), Candidates(known, rows))(q, d, t)

    compiled = (
        jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))
        .lower(
            *(shape((batch, width), jnp.float32),) * 2,
            shape((), jnp.float32),
            shape((batch, 1), jnp.int32),
            shape((batch,), jnp.int32),
        )
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "held"), [("info_nce", 4), ("info_nce", 0), ("symmetric_info_nce", 4)])
def test_memory_is_flat_in_the_batch(name, held, monkeypatch):
    monkeypatch.setattr(blockwise, "_HELD", held)
    monkeypatch.setattr(blockwise, "_FEWEST_HELD", 1)
    small, large = (temporaries(lambda *a: ours(name, *a, block=64), batch) for batch in (256, 1024))
    # Beside blocks, less than ten numbers of each query and document.
    assert large - small <= 2 * 768 * 10 * 4
    assert large < 1024 * 1024 * 4 / 4  # the matrix, which the plain form has several times


def sent_bytes(jaxpr, times=1):
    """What one device sends by ppermute, with loops counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "ppermute":
            total += times * sum(x.aval.size * x.aval.dtype.itemsize for x in equation.outvars)
        runs = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for inner in jax.core.jaxprs_in_params(equation.params):
            total += sent_bytes(inner, runs)
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("devices", [2, 8])
def test_the_ring_sends_what_is_documented(name, devices):
    q, d, labels, candidates = example(6, queries=16, negatives=1, width=6)
    objective = ours(name, labels, candidates, block=512)
    n, width = 32 // devices, 6
    first = (devices - 1) * n * (4 * width + 4)
    gradient = first + devices * n * 4 * width
    assert first + gradient == 4 * n * (width * (3 * devices - 2) + 2 * (devices - 1))
    if name == "symmetric_info_nce":
        first += devices * 12 * n
        gradient += (devices - 1) * 8 * n
    with jax.set_mesh(Layout(dict(data=devices)).mesh()):
        value = jax.make_jaxpr(lambda *a: objective(*a)[0])(q, d, 0.1)
        both = jax.make_jaxpr(jax.value_and_grad(lambda *a: objective(*a)[0]))(q, d, 0.1)
    assert sent_bytes(value.jaxpr) == first
    assert sent_bytes(both.jaxpr) == first + gradient


def test_rows_that_the_mesh_does_not_divide_are_refused():
    q, d, labels, candidates = example(7, queries=6, negatives=0)
    with (
        jax.set_mesh(Layout(dict(data=2, fsdp=2)).mesh()),
        pytest.raises(ValueError, match=r"query_vectors has 6 rows, .* 4 devices .*\(data=2, fsdp=2\)"),
    ):
        ours("info_nce", labels, candidates, 4)(q, d, 1.0)


def test_what_does_not_fit_is_refused():
    q, d, labels, candidates = example()
    with pytest.raises(ValueError, match="block is 0; it must be at least 1"):
        ours("info_nce", labels, candidates, 0)(q, d, 1.0)
    with pytest.raises(AssertionError):
        ours("info_nce", labels, candidates, 4)(q[:, :3], d, 1.0)
    with pytest.raises(AssertionError):
        ours("info_nce", labels, candidates, 4)(q, d[:-1], 1.0)


def test_examples_in_docstrings():
    assert doctest.testmod(blockwise).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sign", "block"), [(1, 512), (-1, 4)])
def test_as_exact_as_the_plain_form_where_queries_are_far_apart_or_scores_large(name, sign, block):
    # Scores of up to 100: each query is next to its own document, or far from every one.
    rng = np.random.default_rng(0)
    q = rng.normal(size=(13, 16)).astype(np.float32) if sign > 0 else 1 + 0.05 * rng.normal(size=(13, 16))
    d = sign * (q + 0.1 * rng.normal(size=(13, 16)))
    q, d = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (q, d))
    labels, rows = np.arange(13), np.arange(13, dtype=np.int32)
    candidates = Candidates(rows[:, None], rows)
    plain = getattr(softmax, name)

    def whole(q, d):
        return plain(q, d, labels=labels, where=candidates.where(labels), temperature=0.01)[0]

    with jax.enable_x64(True):
        exact = jax.device_get(
            jax.grad(whole, argnums=(0, 1))(*(jnp.asarray(x, jnp.float64) for x in (q, d)))
        )
    found = jax.grad(lambda q, d: ours(name, labels, candidates, block)(q, d, 0.01)[0], argnums=(0, 1))(q, d)
    for ours_ND, plain_ND, exact_ND in zip(found, jax.grad(whole, argnums=(0, 1))(q, d), exact, strict=True):
        error = np.max(np.abs(np.asarray(plain_ND) - exact_ND))
        # Scores of 100 made twice may differ by their last bit; 1 / (13 t) is the largest possible gradient.
        twice = 0.0 if name == "info_nce" else np.spacing(np.float32(100)) / (13 * 0.01)
        assert np.max(np.abs(np.asarray(ours_ND) - exact_ND)) <= 4 * error + twice
