"""Vectors that can be cut in two directions: to their first numbers, and to the first layers of the encoder.

    task=dict(
        name="dual_encoder.two_dimensional.TwoDimensional",
        base=<the config's Task>, widths=(32, 64, 128),
    )

The encoder needs `return_layers` and `norm_layers`. `experiments.layer_grid` measures a run by layer and
width.

Letters: B queries, N documents, L length, D width, Y layers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dual_encoder.derived import Derived, check_dense, check_whole
from dual_encoder.task import documents, queries
from dual_encoder.towers import DualEncoder, l2_normalize
from moe.auxiliary import streams
from training.paths import map_with_path
from training.task import Batch, Metrics

_LAYER, _WIDTH = 3, 4  # tell the keys of what is drawn from each other


@dataclasses.dataclass(frozen=True)
class TwoDimensional(Derived):
    """Li, Li, Li, Xie and Li (2024), "2D Matryoshka Sentence Embeddings".

    At each step a layer n below the last, N, and a width d are drawn, all alike likely. With X_n^d the first
    d numbers of the vectors of layer n:

        loss(X_N^D) + loss(X_N^d) + loss(X_n^D) + loss(X_n^d) + align (KL(X_n^D) + KL(X_n^d))

    KL is the mean over texts of the divergence of the softmax over a vector's numbers at layer n from that at
    the last layer, which is the teacher and gets no gradient from it. Vectors of length 1 are scaled by
    sqrt(D) before, so that their numbers are about 1 as the paper's are, which are not normalized.

    Attributes:
      base: the contrastive Task; its objective is the loss.
      widths: those that d is drawn from.
      align: the weight of both divergences; 1 in the paper.
      align_temperature: what numbers are divided by before the softmax.

    Raises:
      ValueError: widths that are not positive, a temperature that is not, a base with sparse layers or
      chunks.
    """

    widths: tuple[int, ...] = ()
    align: float = 1.0
    align_temperature: float = 1.0

    def __post_init__(self):
        check_dense(self.base, "two_dimensional")
        check_whole(self.base, "two_dimensional")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths is {self.widths}; allowed: positive numbers")
        if not self.align_temperature > 0 or self.align < 0:
            raise ValueError(
                f"align is {self.align} and align_temperature {self.align_temperature}; allowed: 0 or more, "
                "and above 0"
            )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        return self.base.init(rng, batch)

    def loss(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `corpora.batches.contrastive`.

        Raises:
          ValueError: a width above D, or an encoder of one layer or that returns none.
        """
        found = self.model.apply(
            self.variables(params, state),
            queries(batch),
            documents(batch),
            train=train,
            rngs=streams(rng),
            method="of_layers",
        )
        layers, _, width = found[0].shape
        if layers < 2 or max(self.widths) > width:
            raise ValueError(
                f"widths is {self.widths} and the encoder has {layers} layers of {width}; allowed: widths up "
                "to that, and 2 layers or more"
            )
        layer = jax.random.randint(jax.random.fold_in(rng, _LAYER), (), 0, layers - 1)
        kept = jax.random.choice(jax.random.fold_in(rng, _WIDTH), jnp.asarray(self.widths))
        last, drawn = tuple(x[-1] for x in found), tuple(x[layer] for x in found)
        sides = (self.model.query, self.model.document)
        cut = lambda pair: tuple(cut_to(x, kept, side.normalize) for x, side in zip(pair, sides, strict=True))

        def compared(pair):
            return self.base.compare(params, *pair, batch, rng=rng)

        total, metrics = compared(last)
        losses = {
            "last_cut": compared(cut(last))[0],
            "drawn": compared(drawn)[0],
            "drawn_cut": compared(cut(drawn))[0],
        }
        both = lambda width, *pairs: (
            sum(
                alignment(a, b, width, self.align_temperature, scaled=side.normalize)
                for a, b, side in zip(*pairs, sides, strict=True)
            )
            / len(sides)
        )
        losses["align"] = both(width, drawn, last) + both(kept, cut(drawn), cut(last))
        total = (
            total + losses["last_cut"] + losses["drawn"] + losses["drawn_cut"] + self.align * losses["align"]
        )
        return total, (state, {**metrics, **losses})


def cut_to(x_BD: jax.Array, width: jax.Array, normalize: bool) -> jax.Array:
    """Returns vectors [B, D] with zeros after the first `width` numbers: their products are those of the cut
    vectors, whose number may be traced."""
    x_BD = jnp.where(jnp.arange(x_BD.shape[1])[None] < width, x_BD, 0)
    return l2_normalize(x_BD) if normalize else x_BD


def alignment(
    x_BD: jax.Array, teacher_BD: jax.Array, width: jax.Array | int, temperature: float, *, scaled: bool
) -> jax.Array:
    """Returns the mean divergence [] of softmaxes over the first `width` numbers, from the teacher's."""
    shown_1D = (jnp.arange(x_BD.shape[1]) < width)[None]
    scale = (jnp.sqrt(jnp.float32(width)) if scaled else 1.0) / temperature

    def logs(x_BD: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(jnp.where(shown_1D, scale * x_BD, -jnp.inf), axis=1)

    teacher_BD = jax.lax.stop_gradient(jnp.where(shown_1D, logs(teacher_BD), 0))
    found_BD = jnp.where(shown_1D, jnp.exp(teacher_BD) * (teacher_BD - jnp.where(shown_1D, logs(x_BD), 0)), 0)
    return found_BD.sum(axis=1).mean()


def shortened(model: DualEncoder, variables: Any, layers: int) -> tuple[DualEncoder, Any]:
    """Returns the model that stops after the first layers, and its variables: early exit, at their price
    alone.

    Raises:
      ValueError: a tower's encoder has no `num_layers`, or fewer.
    """

    def tower(of: Any) -> Any:
        count = getattr(of.encoder, "num_layers", 0)
        if not 1 <= layers <= count:
            raise ValueError(f"layers is {layers}; allowed: 1 to {count}, of {type(of.encoder).__name__}")
        return of.clone(encoder=of.encoder.clone(num_layers=layers, unroll=min(layers, of.encoder.unroll)))

    query = tower(model.query)
    document = query if model.document is model.query else tower(model.document)
    first = lambda path, leaf: leaf[:layers] if "/encoder/block/" in path else leaf
    return DualEncoder(query=query, document=document), map_with_path(first, variables)
