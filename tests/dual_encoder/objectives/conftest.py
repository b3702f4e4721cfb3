"""What the tests of objectives share: a small batch, and an objective held against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dual_encoder.objectives import arrays

QUERIES, LISTED, WIDTH = 4, 3, 5
NAMES = tuple(name for name in arrays.ARRAYS if name != "target")  # which stands in no batch here


def _example(seed=0, temperature=0.5, queries=QUERIES, listed=LISTED, width=WIDTH):
    """Returns (q [B, D], d [N, D], every array by name) in float64, from a batch in which documents are
    shared: a query's second positive is the own document of the next, and one negative is missing."""
    rng = np.random.default_rng(seed)
    rows_BH = rng.permutation(3 * queries * listed)[: queries * listed].reshape(queries, listed)
    positives_BP = np.stack([rows_BH[:, 0], np.full(queries, -1)], axis=1)
    positives_BP[0, 1] = rows_BH[1, 0]
    if listed > 1:
        rows_BH[2, 1] = rows_BH[0, 0]  # a negative that is another query's own
        rows_BH[3, listed - 1] = -1
    teacher_BH = np.where(rows_BH < 0, np.nan, rng.normal(size=rows_BH.shape) * 2)
    batch = {"document_rows": rows_BH, "positives": positives_BP, "teacher": teacher_BH}
    weights_B = rng.random(queries) + 0.5
    given = arrays.given(
        NAMES,
        {name: jnp.asarray(x) for name, x in batch.items()},
        temperature,
        weights_B / weights_B.mean(),
        bias=-0.7,
        rng=jax.random.key(seed),
    )
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    q, d = rng.normal(size=(queries, width)), rng.normal(size=(queries * listed, width))
    return unit(q), unit(d), given


def _pick(objective, given):
    return {name: given[name] for name in arrays.named(objective)}


def _assert_follows(objective, formula, seed=0, **sizes):
    """Holds values and gradients of both sides against `formula(q, d, **arrays)`, slow and in float64, and
    its finite differences."""
    with jax.enable_x64():
        q, d, given = _example(seed, **sizes)
        handed = _pick(objective, given)
        in_numpy = {name: x if name == "rng" else np.asarray(x) for name, x in handed.items()}
        value = lambda q, d: formula(q, d, **in_numpy)
        function = lambda q, d: objective(q, d, **handed)[0]
        loss, gradients = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(q, d)
        np.testing.assert_allclose(loss, value(q, d), rtol=1e-9)
        for side, found in zip((0, 1), gradients, strict=True):
            expected = np.zeros_like((q, d)[side])
            for at in np.ndindex(expected.shape):
                step = np.zeros_like(expected)
                step[at] = 1e-6
                up, down = ((q + s * step, d) if side == 0 else (q, d + s * step) for s in (1, -1))
                expected[at] = (value(*up) - value(*down)) / 2e-6
            assert np.abs(expected).max() > 1e-4
            assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture
def example():
    return _example


@pytest.fixture
def pick():
    return _pick


@pytest.fixture
def assert_follows():
    return _assert_follows
