"""The momentum queue against a transcription in NumPy over several steps, and what it refuses."""

import functools

import jax
import numpy as np
import optax
import pytest

from dual_encoder.derived import OWN
from dual_encoder.momentum import Momentum
from dual_encoder.objectives.softmax import info_nce
from dual_encoder.task import Contrastive
from training.build import build
from training.checkpoints import Checkpoints
from training.step import make_step
from training.task import begin

TOWER = {
    "name": "dual_encoder.towers.Tower",
    "encoder": {
        "name": "backbones.bag.BagOfSubwords",
        "embed": {"name": "backbones.embedding.TokenEmbedding", "vocab_size": 30, "width": 8},
    },
    "pooler": {"name": "dual_encoder.poolers.mean"},
}
TEMPERATURE, QUEUE, MOMENTUM, RATE = 0.1, 12, 0.75, 0.5


@functools.cache
def task(**fields):
    model = build({"name": "dual_encoder.towers.tied", "tower": TOWER})
    return Momentum(
        Contrastive(model, objective=info_nce, temperature=TEMPERATURE), QUEUE, MOMENTUM, **fields
    )


def batch(seed, rows=4, listed=0):
    rng = np.random.default_rng(seed)
    arrays = {"document_rows": rng.integers(0, 6, (rows, 1 + listed))}
    arrays["positives"] = np.concatenate(
        [arrays["document_rows"][:, :1], rng.integers(-1, 6, (rows, 1))], axis=1
    )
    for side, shape in (("query", (rows, 4)), ("document", (rows, 1 + listed, 5))):
        arrays[f"{side}_tokens"] = rng.integers(5, 30, shape)
        arrays[f"{side}_mask"] = np.ones(shape)
        arrays[f"{side}_segments"] = np.zeros(shape)
    return {name: x.astype(np.int32) for name, x in arrays.items()}


def encoded(model, tokens_NL):
    """Vectors of length 1, as the bag makes them of the tokens' counts, in NumPy."""
    table, log_weight = (np.asarray(x) for x in (model["embed"]["table"], model["log_token_weight"]))
    counts = np.stack([np.bincount(tokens, minlength=30) for tokens in tokens_NL])
    x = (np.log1p(counts) * np.exp(log_weight)) @ table
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def transcribed(model, keys, queue, arrays, in_batch):
    """The loss of a step, one query after the other; `queue` is a list of (vector, row), oldest first."""
    vectors = encoded(model, arrays["query_tokens"])
    of_batch = encoded(keys, arrays["document_tokens"].reshape(-1, 5))
    rows = arrays["document_rows"]
    listed = rows.shape[1]
    losses = []
    for b, query in enumerate(vectors):
        positives = set(arrays["positives"][b])
        negatives = [vector for vector, row in queue if row not in positives]
        for n, row in enumerate(rows.reshape(-1)):
            if (n % listed or in_batch) and row not in positives:
                negatives.append(of_batch[n])
        own = query @ of_batch[b * listed] / TEMPERATURE
        losses.append(np.log(np.exp(own) + sum(np.exp(query @ n / TEMPERATURE) for n in negatives)) - own)
    return np.mean(losses), [*queue, *zip(of_batch, rows.reshape(-1), strict=True)][-QUEUE:]


@pytest.mark.parametrize(("in_batch", "listed"), [(False, 0), pytest.param(True, 1, marks=pytest.mark.slow)])
def test_losses_keys_and_queue_are_those_of_a_transcription_over_several_steps(in_batch, listed, tmp_path):
    of = task(in_batch=in_batch)
    params, state = of.init(jax.random.key(0), batch(0, listed=listed))
    moved = jax.tree.map(lambda x: x + 0.01, params)  # as though from another run
    train = begin(optax.sgd(RATE), moved, of.begin(moved, state, None))
    step = jax.jit(make_step(of, optax.sgd(RATE)))
    keys, queue = jax.device_get(moved["model"]["query"]["encoder"]), []
    for number in range(5):  # the queue is full and goes around
        arrays = batch(number, listed=listed)
        model = jax.device_get(train.params["model"]["query"]["encoder"])
        keys = jax.tree.map(lambda k, p: MOMENTUM * k + (1 - MOMENTUM) * p, keys, model)
        expected, queue = transcribed(model, keys, queue, arrays, in_batch)
        if number == 3:  # it goes on from a checkpoint as though nothing had happened
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(train, {})
                checkpoints.wait()
                train, _ = checkpoints.restore(train)
        train, metrics = step(train, arrays, jax.random.key(9))
        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=2e-5)
    own = train.state[OWN]
    assert int(own["next"]) == 5 * 4 * (1 + listed) % QUEUE
    assert sorted(np.asarray(own["rows"]).tolist()) == sorted(int(row) for _, row in queue)
    held = np.sort(np.asarray(own["vectors"]), axis=0)
    np.testing.assert_allclose(held, np.sort([vector for vector, _ in queue], axis=0), atol=1e-6)
    averaged = own["keys"]["model"]["query"]["encoder"]
    for a, b in zip(jax.tree.leaves(averaged), jax.tree.leaves(keys), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_what_does_not_fit_is_refused():
    shapes = jax.eval_shape(task().init, jax.random.key(0), batch(0))
    with pytest.raises(ValueError, match="queue is 12; allowed: a multiple of the batch's 5 queries, of 5"):
        task().loss(*shapes, batch(0, rows=5), jax.random.key(0), train=True)
    with pytest.raises(ValueError, match="momentum is 2; allowed: 0 to 1"):
        Momentum(task().base, momentum=2)
    with pytest.raises(ValueError, match="momentum: base has chunks 2"):
        Momentum(Contrastive(task().model, chunks=2))
    separate = build({"name": "dual_encoder.towers.separate", "query": TOWER, "document": TOWER})
    with pytest.raises(ValueError, match="the document tower alone has document/encoder/embed/table"):
        Momentum(Contrastive(separate)).init(jax.random.key(0), batch(0))
