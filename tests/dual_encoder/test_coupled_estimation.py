"""Coupled estimation: its losses by the formula, whose gradient is whose, and a simulated pool."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dual_encoder import coupled_estimation
from dual_encoder import task as tasks
from dual_encoder.coupled_estimation import SELECTION, CoupledEstimation, weighted_pairs
from dual_encoder.task import Contrastive
from eval import on_device
from training.build import build

TOPICS, ABOUT, LISTED = 16, 4, 2
TERM, SYNONYM, SUBJECT = 5, 5 + TOPICS, 5 + 2 * TOPICS  # where the words of each kind begin


@functools.cache
def model():
    tower = dict(
        name="dual_encoder.towers.Tower",
        encoder=dict(
            name="backbones.bag.BagOfSubwords",
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=5 + 3 * TOPICS, width=16),
        ),
        pooler=dict(name="dual_encoder.poolers.mean"),
    )
    return build(dict(name="dual_encoder.towers.tied", tower=tower))


def task(**fields):
    return CoupledEstimation(Contrastive(model(), temperature=0.2), **fields)


def side(name, tokens):
    shapes = {"tokens": tokens, "mask": np.ones_like(tokens), "segments": np.zeros_like(tokens)}
    return {f"{name}_{field}": x.astype(np.int32) for field, x in shapes.items()}


def positive(topic):
    """Found by the term of the query, in the pool, and judged relevant."""
    return [TERM + topic, *[SUBJECT + topic] * ABOUT]


def unjudged(topic):
    """About the topic in other words: relevant, and in no pool of lexical retrievers."""
    return [SYNONYM + topic, *[SUBJECT + topic] * ABOUT]


def negative(topic, other):
    """Has the term, and is about something else."""
    return [TERM + topic, *[SUBJECT + other] * ABOUT]


def batch(rng, rows=16, false=0.25):
    """Queries of a term, the judged document of each, and hard negatives, of which a share is relevant."""
    topics = rng.integers(0, TOPICS, rows)
    other = lambda topic: (topic + rng.integers(1, TOPICS)) % TOPICS
    draw = lambda topic: unjudged(topic) if rng.random() < false else negative(topic, other(topic))
    documents = np.array([[positive(t), *(draw(t) for _ in range(LISTED))] for t in topics])
    numbers = np.arange(rows * (1 + LISTED), dtype=np.int32).reshape(rows, -1)
    queries = (TERM + topics)[:, None]
    return {
        **side("query", queries),
        **side("document", documents),
        "document_rows": numbers,
        "positives": numbers[:, :1],
    }


def test_the_weighted_loss_equals_the_formula():
    rng = np.random.default_rng(0)
    scores, other, there = rng.normal(size=(3, 4)), 3 * rng.normal(size=(3, 4)), rng.random((3, 3)) < 0.7
    there[1] = False  # a query without negatives has no loss

    def slow(scores):
        total = 0.0
        for b in range(3):
            terms = [
                1 / (1 - 1 / (1 + np.exp(-other[b, h] / 2))) * np.log(1 + np.exp(scores[b, h] - scores[b, 0]))
                for h in range(1, 4)
                if there[b, h - 1]
            ]
            total += np.mean(terms) if terms else 0.0
        return total / 3

    with jax.enable_x64():
        loss = lambda scores, other: weighted_pairs(scores, other, there, 2.0)[0]
        value, (of_scores, of_other) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(scores, other)
    np.testing.assert_allclose(value, slow(scores), rtol=1e-9)
    np.testing.assert_array_equal(of_other, 0)  # a weight is a constant
    for at in np.ndindex(scores.shape):
        step = np.zeros_like(scores)
        step[at] = 1e-6
        np.testing.assert_allclose(
            of_scores[at], (slow(scores + step) - slow(scores - step)) / 2e-6, atol=1e-8
        )


@pytest.mark.slow
def test_neither_model_learns_from_the_others_loss():
    of, arrays = task(), batch(np.random.default_rng(0))
    params, state = of.init(jax.random.key(0), arrays)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def of_one(params, name):
        _, (_, metrics) = of.loss(params, state, arrays, jax.random.key(1), train=True)
        return jnp.where(name, metrics["relevance"], metrics["selection"]), metrics

    for name, learns, not_ in ((1, "model", SELECTION), (0, SELECTION, "model")):
        gradient, metrics = of_one(params, name)
        largest = {part: max(abs(x).max() for x in jax.tree.leaves(gradient[part])) for part in gradient}
        assert largest[learns] > 1e-3
        assert largest[not_] == 0
    assert float(metrics["relevance"]) != float(metrics["selection"])  # they begin apart


def test_only_the_model_of_relevance_is_evaluated():
    of, arrays = task(), tasks.SMALLEST_BATCH
    params, state = of.init(jax.random.key(0), arrays)
    assert of.variables(params, state)["params"] is params["model"]
    assert jax.tree.map(jnp.shape, params["model"]) == jax.tree.map(jnp.shape, params[SELECTION])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"debias": 0}, "debias is 0; it must be positive"),
        ({"contrastive_weight": -1}, "contrastive_weight is -1; it must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        task(**fields)


def test_measures_that_would_not_be_made_are_refused_and_only_what_is_read_is_named():
    measured = Contrastive(model(), measures={"mrr": on_device.mrr})
    with pytest.raises(ValueError, match="contrastive_weight 0: base has measures mrr; allowed: none"):
        CoupledEstimation(measured)
    assert CoupledEstimation(measured, contrastive_weight=0.5).reads == measured.reads
    assert task().reads == {"negatives"}


def test_queries_without_listed_negatives_are_refused():
    of, arrays = task(), tasks.SMALLEST_BATCH
    params, state = of.init(jax.random.key(0), arrays)
    with pytest.raises(
        ValueError, match=r"queries list 0 negatives; allowed: config.batch.negatives_per_query"
    ):
        of.loss(params, state, arrays, jax.random.key(0), train=True)


def recovered(of, params):
    """The share of (unjudged positive, true negative with the term) of a query that are ranked right."""
    others = [(t, u) for t in range(TOPICS) for u in range(TOPICS) if u != t]
    documents = np.array([unjudged(t) for t in range(TOPICS)] + [negative(t, u) for t, u in others])
    fields = side("query", TERM + np.arange(TOPICS)[:, None]), side("document", documents)
    texts = [{name.split("_")[1]: x for name, x in of_side.items()} for of_side in fields]
    query_BD, document_ND = of.model.apply({"params": params["model"]}, *texts)
    scores = query_BD @ document_ND.T
    relevant_B = jnp.diagonal(scores[:, :TOPICS])
    negative_BN = scores[:, TOPICS:].reshape(TOPICS, TOPICS, -1)[jnp.arange(TOPICS), jnp.arange(TOPICS)]
    return (relevant_B[:, None] > negative_BN).mean()


@pytest.mark.slow
def test_it_recovers_more_unjudged_positives_than_naive_hard_negatives():
    optimizer, found = optax.adam(2e-2), {}

    def run(of, key, batches):
        params, state = of.init(key, jax.tree.map(lambda x: x[0], batches))

        def step(carry, arrays):
            params, moments = carry
            loss = lambda params: of.loss(params, state, arrays, key, train=True)[0]
            updates, moments = optimizer.update(jax.grad(loss)(params), moments)
            return (optax.apply_updates(params, updates), moments), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return recovered(of, params)

    # With a debias this high every weight is 2: hard negatives as they come.
    for name, debias in (("naive", 1e9), ("debiased", 2.0)):
        training = jax.jit(functools.partial(run, task(debias=debias, contrastive_weight=1.0)))
        found[name] = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            batches = [batch(rng) for _ in range(150)]
            stacked = {field: np.stack([made[field] for made in batches]) for field in batches[0]}
            found[name].append(float(training(jax.random.key(seed), stacked)))
    assert all(a > b for a, b in zip(found["debiased"], found["naive"], strict=True)), found
    assert np.mean(found["debiased"]) > 1.5 * np.mean(found["naive"]), found


def test_examples_in_docstrings():
    assert doctest.testmod(coupled_estimation).failed == 0
