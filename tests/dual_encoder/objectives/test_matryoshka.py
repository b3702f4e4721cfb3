import functools

import jax
import numpy as np
import pytest

from dual_encoder import blockwise
from dual_encoder.objectives import arrays
from dual_encoder.objectives.distillation import distilled
from dual_encoder.objectives.matryoshka import matryoshka, truncated
from dual_encoder.objectives.softmax import info_nce
from training.build import SpecError, build


def slow_nested(q, d, labels, where, temperature, weights, widths, shares):
    total = 0.0
    for width, share in zip(widths, shares, strict=True):
        cut = lambda x, w=width: x[:, :w] / np.linalg.norm(x[:, :w], axis=1, keepdims=True)
        scores = np.where(where, cut(q) @ cut(d).T / temperature, -np.inf)
        log_p = scores[np.arange(len(q)), labels] - np.log(np.exp(scores).sum(axis=1))
        total -= share * np.mean(weights * log_p)
    return total


def test_equals_the_formula(assert_follows):
    objective = matryoshka(objective=info_nce, widths=(2, 3, 5), weights_of_widths=(0.5, 1.0, 2.0))
    assert_follows(objective, functools.partial(slow_nested, widths=(2, 3, 5), shares=(0.5, 1.0, 2.0)))


def test_the_whole_width_alone_is_the_objective(example, pick):
    q, d, given = example()
    found, metrics = matryoshka(objective=info_nce, widths=(5,))(q, d, **pick(info_nce, given))
    expected, _ = info_nce(q, d, **pick(info_nce, given))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["loss@5"]) == pytest.approx(float(expected), rel=1e-6)


def test_it_names_the_arrays_of_the_objective_that_it_holds():
    spec = dict(
        name="dual_encoder.objectives.matryoshka.matryoshka",
        objective=dict(
            name="dual_encoder.objectives.distillation.distilled",
            loss=dict(name="training.ranking.margin_mse"),
        ),
        widths=(2, 4),
    )
    assert arrays.named(build(spec)) == arrays.named(distilled)
    assert arrays.named(matryoshka(objective=blockwise.info_nce, widths=(2,))) == arrays.named(
        blockwise.info_nce
    )


@pytest.mark.slow
def test_numbers_beyond_the_largest_width_have_no_gradient(example, pick):
    q, d, given = example()
    objective = matryoshka(objective=info_nce, widths=(2, 4))
    gradient = np.asarray(jax.grad(lambda d: objective(q, d, **pick(info_nce, given))[0])(d))
    assert (gradient[:, 4:] == 0).all()
    assert (np.abs(gradient[:, :4]).max(axis=0) > 0).all()


def test_lengths_are_kept_where_they_count():
    x = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]], np.float32)
    assert truncated(x, 2, normalize=False).tolist() == [[3, 4], [0, 0]]
    np.testing.assert_allclose(truncated(x, 2, normalize=True), [[0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": ()}, r"widths is \(\); allowed: ascending positive numbers"),
        ({"widths": (4, 2)}, r"widths is \(4, 2\); allowed: ascending"),
        (
            {"widths": (2, 4), "weights_of_widths": (1.0,)},
            r"weights_of_widths is \(1.0,\); allowed: one a width",
        ),
    ],
)
def test_impossible_widths_are_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        build(dict(name="dual_encoder.objectives.matryoshka.matryoshka", objective=info_nce, **fields))


def test_a_width_above_that_of_the_vectors_is_refused(example, pick):
    q, d, given = example()
    with pytest.raises(ValueError, match="widths has 8; allowed: up to 5, of the vectors"):
        matryoshka(objective=info_nce, widths=(4, 8))(q, d, **pick(info_nce, given))
