import functools

import numpy as np
import pytest

from dual_encoder.objectives.distillation import distilled
from dual_encoder.objectives.softmax import info_nce
from training import ranking


def listed(q, d, b, where, teacher):
    """A query's columns that are there and scored, with the teacher's scores of them."""
    width = teacher.shape[1]
    columns = [h for h in range(width) if where[b, b * width + h] and not np.isnan(teacher[b, h])]
    return [b * width + h for h in columns], [teacher[b, h] for h in columns]


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def slow_distilled(
    q,
    d,
    labels,
    where,
    temperature,
    teacher,
    weights,
    kind,
    of_teacher=1.0,
    weight=1.0,
    contrastive_weight=0.0,
):
    total, counted, contrast = 0.0, 0, 0.0
    for b in range(len(q)):
        exps = {n: np.exp(q[b] @ d[n] / temperature) for n in range(len(d)) if where[b, n]}
        contrast -= weights[b] * np.log(exps[labels[b]] / sum(exps.values()))
        columns, t = listed(q, d, b, where, teacher)
        if len(columns) < 2:
            continue
        counted += 1
        s = np.array([q[b] @ d[n] for n in columns]) / temperature
        p, log_s = softmax(np.array(t) / of_teacher), np.log(softmax(s))
        if kind == "margin":
            apart = np.mean([((s[0] - s[i]) - (t[0] - t[i])) ** 2 for i in range(1, len(s))])
        else:
            apart = sum(p * ((np.log(p) if kind == "kl" else 0) - log_s))
        total += weights[b] * apart
    return weight * total / counted + contrastive_weight * contrast / len(q)


@pytest.mark.parametrize(
    ("loss", "formula", "options"),
    [
        (functools.partial(ranking.kl, temperature=2.0), dict(kind="kl", of_teacher=2.0), {}),
        (ranking.list_net, dict(kind="list"), dict(weight=0.3, contrastive_weight=0.7)),
        (ranking.margin_mse, dict(kind="margin"), dict(contrastive_weight=1.0)),
    ],
    ids=["kl", "list_net", "margin_mse"],
)
def test_equals_the_formula(loss, formula, options, assert_follows):
    assert_follows(
        functools.partial(distilled, loss=loss, **options),
        functools.partial(slow_distilled, **formula, **options),
    )


@pytest.mark.slow
def test_a_student_that_agrees_has_nothing_to_learn_but_the_contrast(example, pick):
    q, d, given = example()
    student = np.einsum("bd,bhd->bh", q, d.reshape(4, 3, -1)) / 0.5
    given = {**given, "teacher": student}
    for loss in (ranking.kl, ranking.margin_mse):
        found, metrics = distilled(q, d, **pick(distilled, given), loss=loss, contrastive_weight=1.0)
        assert float(metrics["distillation"]) == pytest.approx(0, abs=1e-5)
        assert float(found) == pytest.approx(float(info_nce(q, d, **pick(info_nce, given))[0]), abs=1e-5)


def test_weights_that_leave_nothing_are_refused(example, pick):
    q, d, given = example()
    with pytest.raises(
        ValueError, match="weight is 0 and contrastive_weight 0; allowed: 0 or more, one above"
    ):
        distilled(q, d, **pick(distilled, given), weight=0, contrastive_weight=0)
