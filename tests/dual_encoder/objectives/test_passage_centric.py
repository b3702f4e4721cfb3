import numpy as np
import pytest

from dual_encoder.objectives.passage_centric import pair
from dual_encoder.objectives.softmax import info_nce


def slow_pair(q, d, labels, where, relevant, temperature, weights, alpha=0.1):
    total, own = 0.0, set(labels.tolist())
    for b, y in enumerate(labels):
        score = np.exp(q[b] @ d[y] / temperature)
        documents = sum(np.exp(q[b] @ d[n] / temperature) for n in range(len(d)) if where[b, n])
        negatives = [d[n] for n in range(len(d)) if n not in own and where[b, n]]
        others = [q[c] for c in range(len(q)) if c != b and not relevant[c, y]]
        passages = score + sum(np.exp(d[y] @ x / temperature) for x in negatives + others)
        total -= weights[b] * ((1 - alpha) * np.log(score / documents) + alpha * np.log(score / passages))
    return total / len(q)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_equals_the_formula(seed, assert_follows):
    assert_follows(pair, slow_pair, seed)


@pytest.mark.slow
def test_without_alpha_it_is_info_nce(example, pick):
    q, d, given = example()
    found, _ = pair(q, d, **pick(pair, given), alpha=0)
    assert float(found) == pytest.approx(float(info_nce(q, d, **pick(info_nce, given))[0]), rel=1e-6)


def test_only_the_passage_loss_parts_passages_that_the_query_scores_alike(example, pick):
    # A listed negative that is as far from the query as can be, beside the document: nothing in L_Q moves it.
    q, d = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    arrays = dict(labels=np.array([0]), where=np.ones((1, 2), bool), relevant=np.array([[True, False]]))
    _, metrics = pair(q, d, **arrays, temperature=1.0)
    assert float(metrics["passage_accuracy"]) == 0  # s(p+, p-) = 1 is above s(p+, q) = 0
    apart = pair(q, np.array([[0.0, 1.0], [0.0, -1.0]]), **arrays, temperature=1.0, alpha=1.0)
    assert float(apart[1]["passage_accuracy"]) == 1
    assert apart[0] < pair(q, d, **arrays, temperature=1.0, alpha=1.0)[0]


def test_alpha_is_a_share(example, pick):
    q, d, given = example()
    with pytest.raises(ValueError, match=r"alpha is 1.5; allowed: 0 to 1"):
        pair(q, d, **pick(pair, given), alpha=1.5)
