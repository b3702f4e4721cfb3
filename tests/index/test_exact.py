import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import exact


def oracle(vectors_ND, queries_QD, k):
    """The whole score matrix, sorted stably: descending scores, equal ones in the order of rows."""
    scores_QN = queries_QD.astype(np.float32) @ vectors_ND.astype(np.float32).T
    found = min(k, scores_QN.shape[1])
    rows = np.argsort(-scores_QN, axis=1, kind="stable")[:, :found]
    scores = np.take_along_axis(scores_QN, rows, axis=1)
    pad = ((0, 0), (0, k - found))
    return np.pad(scores, pad, constant_values=-np.inf), np.pad(rows, pad, constant_values=-1)


def check(vectors_ND, queries_QD, k, *, chunk=None, query_batch=8):
    index = exact.build(vectors_ND, chunk=chunk)
    scores, rows = exact.search(index, queries_QD, k, query_batch=query_batch)
    assert scores.dtype == jnp.float32
    assert rows.dtype == jnp.int32
    expected_scores, expected_rows = oracle(vectors_ND, queries_QD, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def integers(seed, *shape, low=-2, high=3, dtype=np.float32):
    """Small integers: every inner product is exact in float32, and many of them tie."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def test_by_hand():
    vectors_ND = np.array([[1, 0], [0, 1], [1, 1], [1, 0]], np.float32)
    scores, rows = exact.search(exact.build(vectors_ND), np.array([[2, 1]], np.float32), 3)
    np.testing.assert_array_equal(scores, [[3, 2, 2]])  # 2 + 1, then 2 from rows 0 and 3 alike
    np.testing.assert_array_equal(rows, [[2, 0, 3]])


@pytest.mark.parametrize("chunk", [1, 16, 100, 128, 1000, 5000])
def test_many_duplicates_at_any_chunking(chunk):
    # 1,000 documents with only 27 distinct vectors: nearly every rank is decided by the row.
    check(integers(0, 1000, 3, low=-1, high=2), integers(1, 11, 3), 120, chunk=chunk)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_any_order_of_documents(order):
    # Ascending scores let every chunk replace the whole top k; the others let none in after the first.
    scores = {"ascending": np.arange(2000), "descending": -np.arange(2000), "equal": np.zeros(2000)}[order]
    check(scores.astype(np.float32)[:, None], np.array([[1], [-1], [2]], np.float32), 50, chunk=128)


@pytest.mark.parametrize(("N", "k"), [(1, 1), (1, 5), (16, 16), (17, 40), (300, 1000), (300, 1)])
def test_more_results_than_documents(N, k):
    check(integers(2, N, 4), integers(3, 5, 4), k, chunk=64)


def test_negative_scores_come_before_nothing():
    # Zero padding must not pass for documents that score 0.
    check(-np.ones((5, 2), np.float32), np.ones((1, 2), np.float32), 8)


def test_signed_zeros_tie():
    vectors_ND = np.array([[-0.0], [0.0], [-0.0], [0.0]], np.float32)
    _, rows = exact.search(exact.build(vectors_ND), np.ones((1, 1), np.float32), 4)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_the_oracle(data):
    # Few shapes, so that few programs compile; the values are free.
    N, k, chunk = data.draw(st.sampled_from([(5, 3, None), (70, 9, 32), (130, 40, 48), (130, 200, 64)]))
    Q = data.draw(st.integers(1, 10))
    levels = data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 2**32 - 1))
    check(
        integers(seed, N, 3, low=-levels, high=levels),
        integers(seed + 1, Q, 3),
        k,
        chunk=chunk,
        query_batch=4,
    )


@pytest.mark.parametrize(
    ("vector_dtype", "query_dtype"),
    [(ml_dtypes.bfloat16, ml_dtypes.bfloat16), (ml_dtypes.bfloat16, np.float32), (np.float16, np.float16)],
)
def test_narrow_vectors_are_summed_in_float32(vector_dtype, query_dtype):
    # 257 = 256 + 1 needs more than bfloat16's 8 bits, 4,097 more than float16's 11.
    vectors_ND = np.ones((40, 4097), vector_dtype)
    vectors_ND[3, :3] = 2
    scores, rows = exact.search(exact.build(vectors_ND), np.ones((1, 4097), query_dtype), 3)
    np.testing.assert_array_equal(scores, [[4100, 4097, 4097]])
    np.testing.assert_array_equal(rows, [[3, 0, 1]])
    assert exact.build(vectors_ND).chunks.dtype == vector_dtype
    check(integers(4, 200, 8, dtype=vector_dtype), integers(5, 9, 8, dtype=query_dtype), 20, chunk=64)


def test_real_vectors_find_the_same_at_any_chunking():
    rng = np.random.default_rng(6)
    vectors_ND = np.tile(rng.standard_normal((500, 64), dtype=np.float32), (4, 1))  # each four times
    queries_QD = rng.standard_normal((8, 64), dtype=np.float32)
    scores_QN = queries_QD.astype(np.float64) @ vectors_ND.T.astype(np.float64)
    expected = np.argsort(-scores_QN[:, :500], axis=1)[:, :20]
    expected = (expected[:, :, None] + 500 * np.arange(4)).reshape(8, 80)
    for chunk in (100, 512, 2000):
        scores, rows = exact.search(exact.build(vectors_ND, chunk=chunk), queries_QD, 80, query_batch=8)
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(scores, np.take_along_axis(scores_QN, expected, axis=1), rtol=1e-5)


def test_under_jit_as_outside():
    vectors_ND, queries_QD = integers(7, 150, 4), integers(8, 13, 4)
    inside = jax.jit(lambda v, q: exact.search(exact.build(v, chunk=64), q, 10, query_batch=5))
    outside = exact.search(exact.build(vectors_ND, chunk=64), queries_QD, 10, query_batch=5)
    jax.tree.map(np.testing.assert_array_equal, inside(vectors_ND, queries_QD), outside)


def test_number_of_queries_compiles_nothing():
    index = exact.build(integers(9, 90, 3))
    exact.search(index, integers(10, 1, 3), 7, query_batch=4)
    compiled = exact._search_batch._cache_size()
    for Q in (2, 4, 5, 9):
        exact.search(index, integers(10, Q, 3), 7, query_batch=4)
    assert exact._search_batch._cache_size() == compiled


def sizes(jaxpr):
    """Yields the number of elements of every array that a jaxpr computes, at any depth."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))


def test_score_matrix_never_exists():
    N, D, Q, k, chunk = 65536, 8, 64, 10, 1024
    index = exact.ExactIndex(jnp.zeros((N // chunk, chunk, D)), N)
    queries_QD = jnp.zeros((Q, D))
    closed = jax.make_jaxpr(exact._search_batch, static_argnums=2)(index, queries_QD, k)
    largest = max(sizes(closed.jaxpr))
    assert largest >= Q * chunk  # the walk did see the scores of a chunk
    assert largest < Q * N / 16
    compiled = exact._search_batch.lower(index, queries_QD, k).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * Q * N / 4


NAN_ROW = np.array([[0, 0], [0, np.nan]], np.float32)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, 3)), r"vectors has shape \(0, 3\)"),
        (np.zeros((3, 0)), r"vectors has shape \(3, 0\)"),
        (np.zeros(3), r"vectors has shape \(3,\); \[rows, width\]"),
        (np.zeros((2, 3), np.int32), "vectors has dtype int32; allowed: float32, bfloat16, float16"),
        (NAN_ROW, "vectors has non-finite values .* first in row 1"),
        (jnp.asarray(NAN_ROW), "vectors has non-finite values .* first in row 1"),
        (np.full((2, 2), np.inf, ml_dtypes.bfloat16), "vectors has non-finite values .* first in row 0"),
    ],
)
def test_bad_vectors(vectors, message):
    with pytest.raises(ValueError, match=message):
        exact.build(vectors)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((0, 2), np.float32), 1, r"queries has shape \(0, 2\)"),
        (np.zeros(2, np.float32), 1, r"queries has shape \(2,\)"),
        (np.zeros((1, 3), np.float32), 1, "queries are 3 wide and the index is 2 wide"),
        (NAN_ROW, 1, "queries has non-finite values .* first in row 1"),
        (np.zeros((1, 2), np.float32), 0, "k is 0; at least 1"),
    ],
)
def test_bad_queries(queries, k, message):
    index = exact.build(np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match=message):
        exact.search(index, queries, k)


def test_bad_sizes():
    with pytest.raises(ValueError, match="chunk is 0"):
        exact.build(np.ones((4, 2)), chunk=0)
    with pytest.raises(ValueError, match="query_batch is -1"):
        exact.search(exact.build(np.ones((4, 2))), np.ones((1, 2)), 1, query_batch=-1)
