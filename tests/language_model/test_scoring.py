"""Scores of chunks are those of the Task, in batches that do not come out even, on one and eight devices."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from backbones.decoder import Decoded
from corpora.text_chunks import ChunkTable
from language_model.causal import Causal
from language_model.domains import Chunks
from language_model.scoring import Scorer, perplexity
from training import mesh as meshes
from training.mesh import Layout

V, LENGTH = 16, 5


class Bigram(nn.Module):
    """The next token is told from this one alone."""

    @nn.compact
    def __call__(self, batch, *, train=False):
        table_VV = self.param("table", nn.initializers.normal(), (V, V))
        logits = table_VV[batch["tokens"]]
        return Decoded(logits=logits, last=logits, mask=batch["mask"])


def chunks(count=11):
    lengths = np.random.default_rng(0).integers(1, LENGTH + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(1).integers(3, V, offsets[-1]).astype(np.int32)
    table = ChunkTable(tokens, offsets, np.arange(count, dtype=np.int32), begin_id=1, pad_id=0)
    return Chunks(table, np.zeros(count, np.int32), np.array([count]))


def test_equals_the_loss_of_each_chunk_alone_on_any_mesh():
    of, task = chunks(), Causal(Bigram())
    rectangle = {**of.table.rectangle(np.arange(11), LENGTH), "domains": of.domains}
    params, state = jax.jit(task.init)(jax.random.key(0), rectangle)
    loss = jax.jit(lambda batch: task.loss(params, state, batch, jax.random.key(0), train=False)[0])
    alone = [float(loss({name: x[i : i + 1] for name, x in rectangle.items()})) for i in range(11)]
    expected = -np.array(alone) * np.diff(of.table.offsets)
    for axes, size in (({"data": 1}, 4), ({"data": 4, "tensor": 2}, 8)):
        layout = Layout(axes, (("table", ("tensor", None)),), (("none", ("batch",)),))
        mesh = layout.mesh()
        score = Scorer(task, mesh, layout, batch_size=size, length=LENGTH)
        found, tokens = score(meshes.replicate(params, mesh), meshes.replicate(state, mesh), of)
        assert tokens.tolist() == np.diff(of.table.offsets).tolist()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="batch_size has 4 rows, which 8 parts of a batch"):
        Scorer(None, Layout().mesh(), Layout(), batch_size=4, length=LENGTH)


def test_perplexity_is_a_finite_number_whatever_the_loss():
    assert perplexity(np.log(7.0)) == pytest.approx(7.0)
    assert perplexity(709.0) < perplexity(np.float64(1e4)) < np.inf
    assert np.isnan(perplexity(np.nan))
