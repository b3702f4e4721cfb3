"""Weights of groups against transcriptions of their rules, and what they are for: the worst group's loss."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from corpora.tables import DataError
from dual_encoder import robust
from dual_encoder.derived import OWN, Sizes
from dual_encoder.objectives.softmax import info_nce
from dual_encoder.task import Contrastive
from training.build import SpecError, build
from training.checkpoints import Checkpoints
from training.step import make_step
from training.task import begin, create

TOWER = {
    "name": "dual_encoder.towers.Tower",
    "encoder": {
        "name": "backbones.bag.BagOfSubwords",
        "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 30, "width": 4},
    },
    "pooler": {"name": "dual_encoder.poolers.mean"},
}
TEMPERATURE, GROUPS = 0.5, 3


@functools.cache
def base(**fields):
    model = build({"name": "dual_encoder.towers.tied", "tower": TOWER})
    return Contrastive(model, objective=info_nce, temperature=TEMPERATURE, **fields)


def of(kind, **fields):
    return kind(base(), **fields).sized(Sizes(0, 1, GROUPS))


def batch(seed, groups=(0, 1, 0, 2, 1, 0)):
    rng = np.random.default_rng(seed)
    rows = len(groups)
    arrays = {"document_rows": np.arange(rows)[:, None], "positives": np.arange(rows)[:, None]}
    arrays["group"] = np.array(groups)
    for side, shape in (("query", (rows, 4)), ("document", (rows, 1, 5))):
        arrays[f"{side}_tokens"] = rng.integers(5, 30, shape)
        arrays[f"{side}_mask"] = np.ones(shape)
        arrays[f"{side}_segments"] = np.zeros(shape)
    return {name: x.astype(np.int32) for name, x in arrays.items()}


def query_losses(params, arrays):
    """InfoNCE of each query [B], with a bag of subwords of the tests' own."""
    encoder = params["model"]["query"]["encoder"]

    def encode(tokens_NL):
        counts = (tokens_NL[:, :, None] == jnp.arange(30)[None, None, :]).sum(axis=1)
        x = jnp.log1p(counts) * jnp.exp(encoder["log_token_weight"])[None, :] @ encoder["embed"]["table"]
        return x / jnp.linalg.norm(x, axis=1, keepdims=True)

    scores = encode(arrays["query_tokens"]) @ encode(arrays["document_tokens"][:, 0]).T / TEMPERATURE
    return jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)


def group_means(values, arrays):
    return np.array(
        [np.mean(values[arrays["group"] == g]) if (arrays["group"] == g).any() else 0 for g in range(GROUPS)]
    )


BATCHES = [(0, 1, 0, 2, 1, 0), (0, 0, 1, 1, 1, 1), (2, 2, 2, 0, 1, 0)]  # the second has no group 2


def test_weights_of_clusters_follow_their_losses_and_gradients():
    rate, power, memory, floor = 3.0, 0.25, 0.9, 0.2
    task = of(robust.Clusters, rate=rate, power=power, memory=memory, floor=floor)
    optimizer = optax.sgd(0.1)
    train = create(task, optimizer, jax.random.key(0), batch(0))
    step = jax.jit(make_step(task, optimizer))
    of_group = jax.jit(jax.value_and_grad(lambda p, arrays, w: (query_losses(p, arrays) * w).sum() / w.sum()))
    weights = np.full(GROUPS, 1 / GROUPS)
    for number, groups in enumerate(BATCHES):
        arrays = batch(number, groups)
        there = sorted(set(groups))
        losses, gradients = np.zeros(GROUPS), {}
        for g in there:
            losses[g], found = of_group(train.params, arrays, (arrays["group"] == g).astype(np.float32))
            flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])
            gradients[g] = flat / np.linalg.norm(flat)
        expected = np.mean([GROUPS * weights[g] / weights.sum() * losses[g] for g in there])
        train, metrics = step(train, arrays, jax.random.key(1))
        assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
        assert float(metrics["group/1/weight"]) == pytest.approx(weights[1], rel=1e-4)  # before the step
        grown = {}
        for i in there:
            agreement = (
                sum((losses[i] * losses[j]) ** power * (gradients[i] @ gradients[j]) for j in there) / GROUPS
            )
            grown[i] = weights[i] ** memory * np.exp(rate * agreement)
        before = sum(weights[g] for g in there)
        for i in there:
            weights[i] = max(grown[i] / sum(grown.values()) * before, floor)
        np.testing.assert_allclose(train.state[OWN]["weights"], weights, rtol=1e-4)
    assert len({round(float(w), 4) for w in weights}) > 1


@pytest.mark.parametrize("reference", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_of_tasks_follow_their_losses_relative_to_a_reference(reference, tmp_path):
    rate, arrays = 0.7, batch(0)
    theirs = base().init(jax.random.key(5), arrays)[0]
    optimizer = optax.sgd(0.3)
    task = of(robust.Tasks, rate=rate)
    if reference:
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save_best(begin(optimizer, theirs, {}), 0.0)
            checkpoints.wait()
        task = of(robust.Tasks, rate=rate, reference=str(tmp_path))
    params, state = task.init(jax.random.key(0), arrays)
    train = begin(optimizer, params, task.begin(params, state, None))
    step = jax.jit(make_step(task, optimizer))
    log_weights, averages, seen = np.zeros(GROUPS), np.zeros(GROUPS), set()
    for number, groups in enumerate(BATCHES):
        arrays = batch(number, groups)
        losses = np.asarray(query_losses(train.params, arrays))
        relative = losses / np.asarray(query_losses(theirs, arrays)) if reference else losses
        log_weights = log_weights + rate * group_means(relative, arrays)
        weights = np.exp(log_weights) / np.exp(log_weights).sum()
        of_query = weights[arrays["group"]]
        train, metrics = step(train, arrays, jax.random.key(1))
        assert float(metrics["loss"]) == pytest.approx(GROUPS * (losses * of_query).mean(), rel=1e-5)
        np.testing.assert_allclose(train.state[OWN]["weights"], weights, rtol=1e-5)
        means = group_means(losses, arrays)
        for g in set(groups):
            averages[g] = 0.9 * averages[g] + 0.1 * means[g] if g in seen else means[g]
        seen |= set(groups)
        for g in range(GROUPS):
            assert float(metrics[f"group/{g}/weight"]) == pytest.approx(weights[g], rel=1e-5)
            assert float(metrics[f"group/{g}/loss"]) == pytest.approx(averages[g], rel=1e-4)
        assert float(metrics["group/worst"]) == pytest.approx(averages.max(), rel=1e-4)


@pytest.mark.parametrize("kind", [robust.Tasks, robust.Clusters])
def test_a_batch_of_one_group_counts_by_its_weight(kind):
    arrays = batch(0, groups=[1] * 6)
    task = of(kind)
    params, state = task.init(jax.random.key(0), arrays)
    loss = jax.jit(functools.partial(task.loss, train=False))
    weights = jnp.array([0.2, 0.7, 0.1])
    weighed = loss(params, {OWN: {**state[OWN], "weights": weights}}, arrays, jax.random.key(0))[0]
    expected = 3 * 0.7 * float(query_losses(params, arrays).mean())
    assert float(weighed) == pytest.approx(expected, rel=1e-5)


def test_a_loss_below_zero_moves_weights_as_zero_does():
    before, there = jnp.array([0.5, 0.3, 0.2]), jnp.array([True, True, False])
    move = lambda losses: robust.moved(before, jnp.array(losses), jnp.eye(3), there, 1.0, 0.25, 0.1, 0.01)
    np.testing.assert_array_equal(move([-0.5, 2.0, 0.0]), move([0.0, 2.0, 0.0]))
    assert np.isfinite(move([-0.5, 2.0, 0.0])).all()


def unequal(step):
    """Group 0, 12 rows, asks for its own word; group 1, 4 rows, for the next one, which is to be learned."""
    arrays = batch(step, groups=[0] * 12 + [1] * 4)
    rng = np.random.default_rng(step)
    word_B = np.concatenate([rng.integers(6, 18, 12), rng.integers(18, 30, 4)]).astype(np.int32)
    next_B = np.where(word_B < 18, word_B, word_B // 6 * 6 + (word_B + 1) % 6)
    arrays["query_tokens"][:], arrays["document_tokens"][:, 0] = word_B[:, None], next_B[:, None]
    arrays["document_rows"][:] = arrays["positives"][:] = word_B[:, None]
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        functools.partial(robust.Tasks, rate=0.05),
        functools.partial(robust.Clusters, rate=1.0, memory=0.5),
    ],
)
def test_the_worst_groups_loss_is_lower_than_without_weights(kind):
    def trained(task):
        train = create(task, optax.sgd(0.3), jax.random.key(0), unequal(0))
        step = jax.jit(make_step(task, optax.sgd(0.3)))
        for number in range(60):
            train, _ = step(train, unequal(number), jax.random.key(0))
        losses = [np.asarray(query_losses(train.params, unequal(1000 + n))) for n in range(5)]
        groups = unequal(0)["group"]
        return train, max(np.mean([x[groups == g].mean() for x in losses]) for g in (0, 1))

    _, plain = trained(base())
    train, weighed = trained(kind(base()).sized(Sizes(0, 1, 2)))
    weights = np.asarray(train.state[OWN]["weights"])
    assert weights[1] > weights[0]
    assert weighed < plain - 0.1


def test_weights_are_handed_on_to_the_next_run(tmp_path):
    rows = [{"step": 1, "group/0/weight": 0.9, "group/1/weight": 0.05, "group/2/weight": 0.05}]
    rows += [{"step": 2, "group/0/weight": 0.2, "group/1/weight": 0.3, "group/2/weight": 0.5}]
    rows += [{"step": 2, "dev/mrr@10": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert robust.weights_of(str(tmp_path)) == (0.2, 0.3, 0.5)
    assert robust.weights_of(str(tmp_path), top=0.7) == (0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="top is 0; allowed: above 0, at most 1"):
        robust.weights_of(str(tmp_path), top=0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    with pytest.raises(DataError, match=r"has logged no weights of groups"):
        robust.weights_of(str(tmp_path))


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(SpecError, match=r"Tasks weighs groups; config.batch.groups names none"):
        robust.Tasks(base()).sized(Sizes(0, 1, 0))
    with pytest.raises(SpecError, match=r"config.batch.group_rows is the whole batch_size; allowed: half"):
        robust.Clusters(base()).sized(Sizes(0, 1, 3, one_group=True))
    with pytest.raises(ValueError, match=r"floor is 0.5; allowed: at most 1 / 3"):
        of(robust.Clusters, floor=0.5)
    task = of(robust.Clusters, parameters="layers_9")
    shapes = jax.eval_shape(lambda: create(task, optax.sgd(0.1), jax.random.key(0), batch(0)))
    with pytest.raises(SpecError, match="'layers_9' is found in no parameter"):
        jax.eval_shape(make_step(task, optax.sgd(0.1)), shapes, batch(0), jax.random.key(0))
