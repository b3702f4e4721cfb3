"""The loss by hand, and the encoder-decoder's score of a whole id against its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generative_retrieval import beam, exhaustive, speller, trie
from generative_retrieval.task import cross_entropy, smallest_batch
from training.build import SpecError, build


def spec(make_pair, **fields):
    model = make_pair(dropout=0.0, decoder_layers=2, bias={})
    return dict(name="generative_retrieval.task.SequenceToSequence", model=model, **fields)


def queries(rng, rows=3, length=6):
    sizes = rng.integers(1, length + 1, rows)
    mask = (np.arange(length) < sizes[:, None]).astype(np.int32)
    return {"tokens": jnp.asarray(rng.integers(0, 20, (rows, length)) * mask), "mask": jnp.asarray(mask)}


def random_params(task, scale=1.0):
    """Parameters large enough that logits differ."""
    params, state = task.init(jax.random.key(1), smallest_batch(task.model))
    return jax.tree.map(lambda leaf: scale * leaf, params), state


def test_the_loss_is_the_mean_over_symbols_that_are_shown():
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.7, 0.1], [1.0, 1.0, 1.0]]]))
    batch = {"targets": jnp.array([[0, 2], [0, 0]]), "target_mask": jnp.array([[1, 1], [1, 0]])}
    loss, metrics = cross_entropy(jnp.asarray(logits), batch)
    assert float(loss) == pytest.approx(-(np.log(0.5) + np.log(0.8) + np.log(0.2)) / 3, rel=1e-6)
    assert float(metrics["symbol_accuracy"]) == pytest.approx(2 / 3)
    assert float(metrics["id_accuracy"]) == 0.5
    smooth, _ = cross_entropy(jnp.asarray(logits), batch, label_smoothing=0.3)
    spread = [np.mean(np.log(p)) for p in ([0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1])]
    assert float(smooth) == pytest.approx(0.7 * float(loss) - 0.3 * sum(spread) / 3, rel=1e-6)


def test_label_smoothing_out_of_range_is_named(make_pair):
    with pytest.raises(SpecError, match=r"label_smoothing is 1\.0; allowed: 0 to below 1"):
        build(spec(make_pair, label_smoothing=1.0))


@pytest.mark.slow
def test_beams_of_one_row_score_as_whole_ids_do(make_ids, make_pair):
    rng = np.random.default_rng(0)
    task = build(spec(make_pair))
    of = task.variables(*random_params(task, 3.0))
    symbols_NT = make_ids(rng, 20, 5, 4)
    count = len(symbols_NT)
    batch = queries(rng)
    all_BN = np.asarray(jax.jit(lambda batch: exhaustive.scores(task.model, of, batch, symbols_NT))(batch))
    search = lambda batch: beam.search(
        speller.of(task.model, of, batch), trie.build(symbols_NT, 5), beams=count, results=count
    )
    found = jax.jit(search)(batch)
    assert (np.sort(found.documents_Bn, axis=1) == np.arange(count)).all()
    np.testing.assert_allclose(
        found.scores_Bn,
        np.take_along_axis(all_BN, np.asarray(found.documents_Bn), axis=1),
        atol=1e-5,
        rtol=1e-5,
    )
    rows = {**batch, **exhaustive.targets(np.tile(symbols_NT[7], (3, 1)))}
    np.testing.assert_allclose(task.score(*split_of(of), rows), all_BN[:, 7], rtol=1e-5)


def split_of(variables):
    return {"model": variables["params"]}, {}


@pytest.mark.slow
def test_the_gradient_reaches_both_sides_and_padding_does_not_matter(make_pair):
    rng = np.random.default_rng(1)
    task = build(spec(make_pair))
    params, state = random_params(task)
    targets = {
        "targets": jnp.array([[1, 2, 0], [3, 0, 0], [4, 1, 0]]),
        "target_mask": jnp.array([[1] * 3] * 3),
    }
    batch = {**queries(rng), **targets}
    loss = lambda params, batch: task.loss(params, state, batch, jax.random.key(0), train=True)[0]
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, batch)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))
    padded = {name: jnp.pad(x, ((0, 0), (0, 3))) for name, x in batch.items()}
    assert float(loss(params, padded)) == pytest.approx(float(value), rel=1e-5)
