"""The measures inside jit equal those of eval.measures on any run; and cases worked by hand."""

import doctest
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import measures, on_device

FUNCTIONS = {
    "ndcg": on_device.ndcg,
    "mrr": on_device.mrr,
    "map": on_device.map,
    "recall": on_device.recall,
    "precision": on_device.precision,
    "hits": on_device.hits,
    "r_precision": on_device.r_precision,
}
CUTS = (1, 3, 20)
NAMES = ["ndcg", "mrr", "map", "r_precision"]
NAMES += [f"{name}@{k}" for name in ("ndcg", "mrr", "map", "recall", "precision", "hits") for k in CUTS]
DOCUMENTS, QUERIES = 9, 3


@functools.partial(jax.jit, static_argnames="level")
def on_arrays(scores, labels, where, retrieved, tie_rank, level):
    values = {}
    for measure in NAMES:
        name, _, cut = measure.partition("@")
        options = {"topn": int(cut)} if cut else {}
        if name != "ndcg":
            options["relevance_level"] = level
        masks = {"where": where, "retrieved": retrieved, "tie_rank": tie_rank}
        values[measure] = FUNCTIONS[name](scores, labels, **masks, **options)
    return values


scores = st.one_of(
    st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0, 1.0 + 2**-23, math.inf]),
    st.floats(width=32, allow_nan=False, allow_subnormal=False),
)
row = st.tuples(
    *(st.lists(kind, min_size=DOCUMENTS, max_size=DOCUMENTS) for kind in (
        scores, st.integers(-2, 3), st.sampled_from([True, True, False]), st.sampled_from([True, True, False])
    )),
    st.permutations(range(DOCUMENTS)),
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(st.lists(row, min_size=QUERIES, max_size=QUERIES), st.sampled_from([1, 2]))
def test_equals_the_final_numbers(rows, level):
    qrels, run = {}, {}
    for query, (scores, labels, where, retrieved, ties) in enumerate(rows):
        # The greatest doc_id is the first of a tie.
        ids = [f"d{DOCUMENTS - tie}" for tie in ties]
        there = [n for n in range(DOCUMENTS) if where[n]]
        qrels[f"q{query}"] = {"nothing": 0, **{ids[n]: labels[n] for n in there}}
        run[f"q{query}"] = {ids[n]: scores[n] for n in there if retrieved[n]}
    expected = measures.evaluate(qrels, run, NAMES, relevance_level=level)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    columns[0] = columns[0].astype(np.float32)
    values = on_arrays(*columns, level=level)
    for measure in NAMES:
        np.testing.assert_allclose(
            values[measure], list(expected[measure].values()), rtol=1e-5, atol=1e-7, err_msg=measure
        )


# As in test_measures: by score b (grade 0), d (unjudged), a (1), e (unjudged), c (3); f (2) is not retrieved.
SCORES = jnp.array([0.7, 0.9, 0.5, 0.8, 0.6, 5.0])
LABELS = jnp.array([1, 0, 3, 0, 0, 2])
RETRIEVED = jnp.array([True, True, True, True, True, False])


def test_by_hand():
    def value(measure, **options):
        return float(measure(SCORES, LABELS, retrieved=RETRIEVED, **options))

    best = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert value(on_device.ndcg) == pytest.approx((1 / math.log2(4) + 3 / math.log2(6)) / best)
    assert value(on_device.mrr) == pytest.approx(1 / 3)
    assert value(on_device.mrr, topn=2) == 0
    assert value(on_device.map) == pytest.approx((1 / 3 + 2 / 5) / 3)
    assert value(on_device.recall) == pytest.approx(2 / 3)
    assert value(on_device.precision) == pytest.approx(2 / 5)
    assert value(on_device.precision, topn=10) == pytest.approx(2 / 10)
    assert value(on_device.hits) == 1
    assert value(on_device.r_precision) == pytest.approx(1 / 3)


def test_what_is_left_out_is_not_missed():
    value = functools.partial(on_device.recall, SCORES, LABELS)
    assert float(value(retrieved=RETRIEVED)) == pytest.approx(2 / 3)
    assert float(value(where=RETRIEVED)) == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_relevant_and_nothing_retrieved_are_zero(name):
    none = jnp.zeros(6, bool)
    for arguments in ({"where": none}, {"retrieved": none}):
        assert float(FUNCTIONS[name](SCORES, LABELS, **arguments)) == 0
    assert float(FUNCTIONS[name](SCORES, -LABELS)) == 0
    assert FUNCTIONS[name](jnp.zeros((2, 0)), jnp.zeros((2, 0), jnp.int32)).tolist() == [0, 0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ties_go_to_the_lower_index_unless_told(name):
    same, own = jnp.ones(4), jnp.array([0, 0, 1, 0])
    first, last = jnp.array([3, 2, 0, 1]), jnp.array([0, 0, 1, 0])
    topn = {} if name == "r_precision" else {"topn": 1}
    value = functools.partial(FUNCTIONS[name], same, own, **topn)
    assert [float(value(tie_rank=ties)) for ties in (None, first, last)] == [0, 1, 0]
    assert float(on_device.mrr(same, own)) == pytest.approx(1 / 3)
    assert float(on_device.mrr(same, own, tie_rank=last)) == pytest.approx(1 / 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_equals_leading_axes(name):
    rng = np.random.default_rng(0)
    shape = (2, 3, 7)
    scores, labels = rng.integers(0, 4, shape).astype(np.float32), rng.integers(0, 3, shape)
    where = rng.random(shape) < 0.8
    measure = functools.partial(FUNCTIONS[name], **({} if name == "r_precision" else {"topn": 2}))
    whole = measure(scores, labels, where=where)
    assert (whole.shape, whole.dtype) == ((2, 3), jnp.float32)
    assert np.ptp(whole) > 0
    mapped = jax.vmap(jax.vmap(lambda s, y, w: measure(s, y, where=w)))(scores, labels, where)
    np.testing.assert_array_equal(mapped, whole)


def test_lower_precision_keeps_its_ties():
    half = jnp.array([1.001, 1.0], jnp.bfloat16)  # one number in bfloat16
    assert float(on_device.mrr(half, jnp.array([0, 1]), tie_rank=jnp.array([1, 0]))) == 1


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="topn is 0; allowed: an integer of at least 1"):
        on_device.ndcg(SCORES, LABELS, topn=0)
    with pytest.raises(ValueError, match="relevance_level is 0; allowed"):
        on_device.mrr(SCORES, LABELS, relevance_level=0)
    for wrong in ({"where": RETRIEVED[:5]}, {"retrieved": RETRIEVED[None]}, {"tie_rank": LABELS[:1]}):
        with pytest.raises(AssertionError):
            on_device.map(SCORES, LABELS, **wrong)


def test_examples_in_docstrings():
    assert doctest.testmod(on_device).failed == 0
