"""The causal Task: its loss by hand, padding, state and sums of sparse layers, one mesh as another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from backbones.decoder import Decoded
from configs.language_model import parts
from language_model.causal import Causal, batch_shapes
from moe.auxiliary import Auxiliary
from training import mesh as meshes
from training.activations import constrained
from training.build import build
from training.mesh import Layout
from training.rules import shardings
from training.step import make_step
from training.task import TrainState

V = 13
SERVED = {"name": "moe.capacity.Capacity", "factor": 9.0, "tokens": 6}
MIXTURE = {
    "name": "moe.mixture.Mixture",
    "router": {"name": "moe.loss_free.LossFree", "num_experts": 4, "k": 1},
    "experts": {"name": "moe.experts.Gated", "width": 8},
    "dispatcher": {"name": "moe.one_hot.OneHot", "capacity": SERVED},
}
BALANCE = Auxiliary(
    losses={"load": lambda sums: sums["tokens"].sum()},
    weights={"load": 0.5},
    bias_update=lambda bias, count: bias + count,
)


def decoder(feed_forward=None, **fields):
    spec = parts.decoder(V, 16, 2, feed_forward or parts.gated(16))
    return build({**spec, "unroll": 1, **fields})


def batch(rows=8, length=6, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    arrays = {name: np.where(mask, rng.integers(2, V, mask.shape), 0) for name in ("tokens", "targets")}
    arrays |= {"mask": mask, "domains": rng.integers(0, 3, rows)}
    return {name: jnp.asarray(array, jnp.int32) for name, array in arrays.items()}


def begin(task, arrays):
    return jax.jit(task.init)(jax.random.key(1), arrays)


def loss(task, params, state, arrays):
    return jax.jit(lambda *given: task.loss(*given, jax.random.key(2), train=True))(params, state, arrays)


def start(optimizer, params, state):
    return TrainState(jnp.zeros((), jnp.int32), params, state, optimizer.init(params))


class Fixed(nn.Module):
    """Logits that are a parameter, whatever is read."""

    logits: tuple

    @nn.compact
    def __call__(self, batch, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        logits = scale * jnp.asarray(self.logits)
        return Decoded(logits=logits, last=logits, mask=batch["mask"])


def test_loss_by_hand():
    logits = np.log([[[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]], [[1.0, 3.0, 4.0], [9.0, 1.0, 1.0]]])
    task = Causal(Fixed(tuple(map(tuple, logits.tolist()))))
    arrays = {"tokens": [[0, 0], [0, 0]], "targets": [[2, 0], [1, 0]], "mask": [[1, 1], [1, 0]]}
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    params, state = begin(task, arrays)
    assert state == {}
    found, (_, metrics) = loss(task, params, state, arrays)
    # 5/8, 1/4 and 3/8; the fourth is under the mask
    assert float(found) == pytest.approx(-(np.log(5 / 8) + np.log(1 / 4) + np.log(3 / 8)) / 3)
    assert float(metrics["cross_entropy"]) == float(found)
    scores, tokens = task.score(params, state, arrays)
    np.testing.assert_allclose(scores, [np.log(5 / 32), np.log(3 / 8)], rtol=1e-6)
    assert tokens.tolist() == [2, 1]


class Bigram(nn.Module):
    """The next token is told from this one alone."""

    @nn.compact
    def __call__(self, batch, *, train=False):
        table_VV = self.param("table", nn.initializers.normal(), (V, V))
        logits = table_VV[batch["tokens"]]
        return Decoded(logits=logits, last=logits, mask=batch["mask"])


def test_padding_does_not_matter_and_a_batch_of_nothing_has_loss_0():
    arrays, task = batch(), Causal(Bigram())
    params, state = begin(task, arrays)
    value = jax.jit(jax.value_and_grad(lambda p, arrays: loss(task, p, state, arrays)[0]))
    hidden = arrays["mask"] == 0
    under = {**arrays, **{name: jnp.where(hidden, 5, arrays[name]) for name in ("tokens", "targets")}}
    wider = {name: jnp.pad(x, ((0, 2), (0, 3))[: x.ndim]) for name, x in arrays.items()}
    for other in (under, wider):
        for ours, theirs in zip(
            *map(jax.tree.leaves, (value(params, other), value(params, arrays))), strict=True
        ):
            assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    nothing, gradient = value(params, jax.tree.map(jnp.zeros_like, arrays))
    assert float(nothing) == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_microbatches_are_averaged_as_means():
    """What the docstring says: each microbatch counts alike, however many tokens it has."""
    arrays = batch()
    task, optimizer = Causal(Bigram()), optax.sgd(0.1)
    params, state = begin(task, arrays)
    step = jax.jit(make_step(task, optimizer, microbatches=2))
    _, metrics = step(start(optimizer, params, state), arrays, jax.random.key(0))
    halves = [{name: x[i : i + 4] for name, x in arrays.items()} for i in (0, 4)]
    means = [float(loss(task, params, {}, half)[0]) for half in halves]
    assert int(halves[0]["mask"].sum()) != int(halves[1]["mask"].sum())
    assert float(metrics["loss"]) == pytest.approx(np.mean(means), rel=1e-5)


def test_sums_of_sparse_layers_go_to_the_auxiliary_and_move_the_state():
    """Of a router that is balanced by a bias, which starts from 0."""
    arrays = batch()
    task = Causal(decoder(MIXTURE), BALANCE)
    params, state = begin(task, arrays)
    assert list(state) == ["balance"]  # a recorded routing is none of it
    (bias,) = jax.tree.leaves(state)
    assert bias.shape == (2, 4)
    assert not bias.any()

    @jax.jit
    def both(*given):
        return task.loss(*given, jax.random.key(2), train=True), task.survey(*given, jax.random.key(2))

    (found, (_, metrics)), survey = both(params, state, arrays)
    tokens = int(arrays["mask"].sum())
    assert float(metrics["moe/load"]) == 2 * tokens  # in each of two layers
    assert float(found) == pytest.approx(float(metrics["cross_entropy"]) + tokens, rel=1e-6)
    assert survey[""]["domains"].tolist() == arrays["domains"].tolist()
    assert survey[""]["count"].shape == (2, 8, 4)
    (bias,) = jax.tree.leaves(task.update_state(state, metrics["sums"]))
    np.testing.assert_array_equal(bias, survey[""]["count"].sum(1))
    assert bias.sum(1).tolist() == [tokens] * 2  # one choice a token


def test_an_auxiliary_goes_with_sparse_layers_only():
    arrays = batch()
    shape = lambda task: jax.eval_shape(
        lambda: task.loss(*task.init(jax.random.key(0), arrays), arrays, jax.random.key(0), train=True)
    )
    with pytest.raises(ValueError, match="auxiliary is None, but layers of the model give sums; allowed"):
        shape(Causal(decoder(MIXTURE)))
    with pytest.raises(ValueError, match="auxiliary is given, but no layer of the model gives sums"):
        shape(Causal(decoder(), BALANCE))


class Drawing(nn.Module):
    """Returns what it draws from two streams."""

    @nn.compact
    def __call__(self, batch, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        drawn = (
            [jax.random.normal(self.make_rng(name)) for name in ("dropout", "router")] if train else [0, 0]
        )
        logits = scale * jnp.broadcast_to(jnp.stack(drawn), (*batch["tokens"].shape, 2))
        return Decoded(logits=logits, last=logits, mask=batch["mask"])


def test_dropout_and_router_draw_from_streams_of_their_own():
    task, arrays = Causal(Drawing()), {**batch(1, 1), "targets": jnp.zeros((1, 1), jnp.int32)}
    params, state = begin(task, arrays)
    found = float(loss(task, params, state, arrays)[0])
    assert found != pytest.approx(np.log(2))  # as it is where both draws are the same


def test_logits_are_kept_once():
    """Beside the logits, there is one array of their size: their gradient."""
    rows, length, vocabulary = 2, 256, 4096
    task = Causal(build(parts.decoder(vocabulary, 16, 1, parts.gated(16))))
    shapes = batch_shapes(rows, length)
    params, state = jax.eval_shape(task.init, jax.random.key(0), shapes)
    gradient = lambda p, arrays: task.loss(p, state, arrays, jax.random.key(2), train=True)[0]
    compiled = jax.jit(jax.grad(gradient)).lower(params, shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.6 * 4 * rows * length * vocabulary


@pytest.mark.slow
def test_the_same_on_eight_devices_as_on_one():
    axes = {"data": 2, "fsdp": 2, "tensor": 2}
    arrays, task = batch(), Causal(build(parts.decoder(16, 128, 1, parts.gated(96))))
    params, state = begin(task, arrays)
    of = lambda p, arrays: task.loss(p, state, arrays, jax.random.key(2), train=True)[0]
    value = jax.value_and_grad(of)
    alone = jax.jit(value)(params, arrays)
    given = parts.mesh()
    layout = Layout(axes, given["parameters"], given["activations"])
    mesh = layout.mesh()
    where = shardings(TrainState((), params, state, ()), mesh, layout.parameters).params
    placed = jax.device_put(params, where)
    split = meshes.shard_batch({name: np.asarray(x) for name, x in arrays.items()}, mesh)
    found = jax.jit(constrained(value, mesh, layout.activations))(placed, split)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, alone)), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
