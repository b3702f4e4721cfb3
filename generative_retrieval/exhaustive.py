"""Scores of every docid, one by one: what searches are compared with, and rankings of given documents.

Letters: B queries, N documents, T symbols of the longest id, V symbols.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from generative_retrieval.models import texts
from generative_retrieval.task import log_likelihood, read
from training.task import Batch


def targets(symbols_NT: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `targets` and `target_mask`, int32 [N, T] each, of ids with `docids.NONE` behind their end."""
    shown_NT = symbols_NT >= 0
    return {"targets": np.where(shown_NT, symbols_NT, 0), "target_mask": shown_NT.astype(np.int32)}


def scores(model: nn.Module, variables: Any, batch: Batch, symbols_NT: np.ndarray) -> jax.Array:
    """Returns log p(id | query) of every id in nats, float32 [B, N], by teacher forcing.

    Nothing is shared between ids, so this takes the computation of B N examples; use jax.jit.

    Args:
      model: such as `models.EncoderDecoder`.
      variables: what it is applied with.
      batch: the queries, `tokens` and `mask` [B, S].
      symbols_NT: int32, see `docids.Docids`.
    """
    queries = texts(batch)
    ids = {name: jnp.asarray(x) for name, x in targets(np.asarray(symbols_NT)).items()}

    def of_document(_, id_T: dict[str, jax.Array]) -> tuple[None, jax.Array]:
        rows = len(queries["tokens"])
        given = {name: jnp.broadcast_to(x_T[None], (rows, *x_T.shape)) for name, x_T in id_T.items()}
        whole = {**queries, **given}
        return None, log_likelihood(model.apply(variables, read(whole)).logits, whole)

    return jax.lax.scan(of_document, None, ids)[1].T
