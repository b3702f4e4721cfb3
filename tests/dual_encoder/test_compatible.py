import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backbones.bag import BagOfSubwords
from backbones.embedding import TokenEmbedding
from dual_encoder import compatible, poolers, towers
from dual_encoder.compatible import Stationary, class_loss, higher_order, simplex
from dual_encoder.derived import OWN, Sizes
from dual_encoder.task import Contrastive
from training.build import SpecError


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (3, 2), (5, 9), (65, 64)])
def test_prototypes_are_a_regular_simplex(classes, width):
    corners = simplex(classes, width).astype(np.float64)
    cosines = corners @ corners.T
    expected = np.where(np.eye(classes), 1.0, -1 / (classes - 1))
    np.testing.assert_allclose(cosines, expected, atol=1e-6)
    np.testing.assert_allclose(corners.sum(axis=0), 0, atol=1e-5)


def test_no_more_prototypes_than_there_is_room_for():
    with pytest.raises(ValueError, match="classes is 4; allowed: 2 to 3"):
        simplex(4, 2)


def test_losses_by_hand():
    x = np.array([[2.0, 0.0], [0.0, -3.0], [1.0, 1.0]])  # of length 1: (1, 0), (0, -1), (.7, .7)
    groups = np.array([0, 1, 0])
    prototypes = simplex(3, 2)
    expected = []
    for row, group in zip(x, groups, strict=True):
        scores = 5 * prototypes @ (row / np.linalg.norm(row))
        expected.append(np.log(np.exp(scores).sum()) - scores[group])
    found = class_loss(jnp.asarray(x), jnp.asarray(groups), jnp.asarray(prototypes), 5.0)
    assert found == pytest.approx(np.mean(expected), rel=1e-5)
    before = np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    s = 5 * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ before.T
    # Of rows 0 and 2, which are of one class, row 1 is the negative, and of row 1 both.
    total = sum(
        np.log(sum(np.exp(s[i, j]) for j in shown)) - s[i, i]
        for i, shown in ((0, (0, 1)), (1, (0, 1, 2)), (2, (1, 2)))
    )
    assert higher_order(jnp.asarray(x), jnp.asarray(before), jnp.asarray(groups), 5.0) == pytest.approx(
        total / 3, rel=1e-5
    )
    assert np.isnan(class_loss(jnp.asarray(x), jnp.asarray([0, 1, 3]), jnp.asarray(prototypes), 5.0))


def task(**fields):
    tower = towers.Tower(BagOfSubwords(TokenEmbedding(9, 4)), poolers.mean)
    return Stationary(Contrastive(towers.tied(tower)), classes=3, **fields)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    arrays = {}
    for side, shape in {"query": (3, 2), "document": (3, 2, 3)}.items():
        arrays[f"{side}_tokens"] = rng.integers(0, 9, shape)
        arrays[f"{side}_mask"], arrays[f"{side}_segments"] = np.ones(shape), np.zeros(shape)
    arrays["document_rows"] = np.array([[4, 0], [2, 1], [3, 0]])
    arrays["positives"] = arrays["document_rows"][:, :1]
    arrays["group"] = np.array([0, 2, 1])
    return {name: x.astype(np.int32) for name, x in arrays.items()}


class Store:
    """The index of the run before: five documents, of which the first has two passages."""

    manifest = {"width": 4}  # noqa: RUF012
    text_of_row = np.array([0, 0, 1, 2, 3, 4], np.int32)

    ids = tuple("abcde")

    def vectors(self):
        return np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)

    def __len__(self):
        return 6


def test_documents_are_pulled_to_what_the_index_has(monkeypatch):
    monkeypatch.setattr(compatible.VectorStore, "open", lambda folder: Store())
    corpus = dict(doc_ids=Store.ids, document_of_row=Store.text_of_row)
    of = task(previous="run", share=0.25).sized(Sizes(6, 4, 3, **corpus))
    shaped = shapes, state = jax.eval_shape(of.init, jax.random.key(0), batch())
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    assert state[OWN]["vectors"].shape == (8, 4)  # a multiple of the devices
    state = of.begin(params, state, None)
    key = jax.random.key(1)
    total, (_, metrics) = jax.jit(functools.partial(of.loss, train=True))(params, state, batch(), key)

    @jax.jit
    def expected(params):
        query, document, _ = of.base.vectors(params, {}, batch(), key, train=True)
        return document, of.base.compare(params, query, document, batch())[0]

    document, base = expected(params)
    before = jnp.asarray(Store().vectors()[[5, 3, 4]])  # the first passages of documents 4, 2 and 3
    aligned = higher_order(document[::2], before, batch()["group"], 10.0)
    assert metrics["higher_order"] == pytest.approx(float(aligned), rel=1e-5)
    assert total == pytest.approx(float(base + 0.25 * metrics["class_loss"] + 0.75 * aligned), rel=1e-5)
    assert of.kept(state) == {}
    fewer = task(previous="run").sized(Sizes(5, 1, 3))
    with pytest.raises(SpecError, match="6 vectors of 4; allowed: 5 of 4"):
        fewer.begin(*jax.eval_shape(fewer.init, jax.random.key(0), batch()), None)
    for field, other, what in (
        ("doc_ids", list("abcdf"), "documents"),
        ("document_of_row", np.array([0, 1, 1, 2, 3, 4]), "passages of its documents"),
    ):
        others = task(previous="run").sized(Sizes(6, 4, 3, **{**corpus, field: other}))
        with pytest.raises(
            SpecError, match=f"previous is run, whose index has other {what} than config.data"
        ):
            others.begin(*shaped, None)
    with pytest.raises(ValueError, match="classes is 3; allowed: 4 or more"):
        fewer.sized(Sizes(6, 1, 4))


def test_the_first_model_has_prototypes_alone():
    of = task()
    params, state = jax.eval_shape(of.init, jax.random.key(0), batch())
    assert state == {}
    loss = functools.partial(of.loss, train=True)
    _, (_, metrics) = jax.eval_shape(loss, params, state, batch(), jax.random.key(1))
    assert "higher_order" not in metrics
    without = {name: x for name, x in batch().items() if name != "group"}
    with pytest.raises(ValueError, match="names none"):
        jax.eval_shape(loss, params, state, without, jax.random.key(1))
