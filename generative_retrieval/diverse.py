"""Beam search whose results differ: Vijayakumar et al. (2018), "Diverse Beam Search for Improved Description
of Complex Scenes".

The beams are cut into groups, which choose their symbols one after the other. A group is deterred from a
symbol by a penalty for each beam of the groups before it that chose that symbol at the same place of its id
(Hamming diversity), and remembers the penalties it took, as in the authors' code. The first group is a plain
beam search.

Letters: B queries, K beams, G groups, W beams of a group, V symbols.
"""

import jax
import jax.numpy as jnp

from generative_retrieval import beam
from generative_retrieval.beam import Beams, Choice, Found
from generative_retrieval.docids import NONE
from generative_retrieval.speller import Speller
from generative_retrieval.trie import Live, Trie


def search(
    speller: Speller,
    trie: Trie,
    *,
    beams: int,
    groups: int,
    penalty: float,
    results: int,
    live: Live | None = None,
    length_penalty: float = 0.0,
    renormalize: bool = False,
) -> Found:
    """Finds likely documents with ids that differ. A pure function, to be traced by jax.jit.

    The scores of what is found are the model's own, without penalties; a document that several groups found
    is there once.

    Args:
      groups: G, 1 for a plain beam search; divides `beams`.
      penalty: in nats, for each beam of an earlier group with the same symbol at the same place.
      speller, trie, beams, results, live, length_penalty, renormalize: as in `beam.search`.

    Raises:
      ValueError: groups does not divide the beams, the penalty is negative, or as `beam.search`.
    """
    if groups < 1 or beams % groups:
        raise ValueError(f"groups is {groups}; allowed: a divisor of beams, {beams}")
    if not 0 <= penalty < float("inf"):
        raise ValueError(f"penalty is {penalty}; allowed: 0 or more")
    width = beams // groups

    def in_turn(at: Beams, log_p_BKV: jax.Array) -> Choice:
        """`at.kept`: scores [B, K] with the penalties, by which a group chooses."""
        each = 1 if at.nodes_BK.shape[1] == beams else groups  # at first all groups are at the root
        nodes_BK, scores_BK, log_p_BKV = (
            jnp.repeat(x, each, axis=1) for x in (at.nodes_BK, at.scores_BK, log_p_BKV)
        )
        held = nodes_BK.shape[1]
        batch, size = log_p_BKV.shape[0], log_p_BKV.shape[2]

        def choose(taken_BV: jax.Array, group: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple]:
            nodes_BW, penalized_BW, log_p_BWV = group
            wanted_BWV = penalized_BW[:, :, None] + log_p_BWV - penalty * taken_BV[:, None]
            best_BW, children_BW, parents_BW = trie.best(nodes_BW, at.depth, wanted_BWV, width, live)
            symbols_BW = jnp.where(children_BW == NONE, NONE, trie.symbol(children_BW))
            taken_BV = taken_BV + jax.nn.one_hot(symbols_BW, size).sum(axis=1)  # NONE is no symbol's
            return taken_BV, (best_BW, children_BW, parents_BW)

        by_group = lambda x_BK: jnp.moveaxis(x_BK.reshape(batch, groups, -1, *x_BK.shape[2:]), 1, 0)
        given = tuple(by_group(x) for x in (nodes_BK, at.kept[:, :held], log_p_BKV))
        _, chosen = jax.lax.scan(choose, jnp.zeros((batch, size)), given)
        penalized_BK, children_BK, parents_BK = (jnp.moveaxis(x, 0, 1).reshape(batch, beams) for x in chosen)
        # From numbers within a group to numbers of beams.
        parents_BK += jnp.repeat(jnp.arange(groups) * (held // groups), width)[None]
        own_BKV = scores_BK[:, :, None] + log_p_BKV
        symbols_BK = trie.symbol(children_BK)
        own_BK = jnp.take_along_axis(own_BKV.reshape(batch, -1), parents_BK * size + symbols_BK, axis=1)
        children_BK = jnp.where(_found_before(trie, children_BK), NONE, children_BK)
        own_BK = jnp.where(children_BK == NONE, -jnp.inf, own_BK)
        return Choice(children_BK, own_BK, parents_BK, penalized_BK)

    return beam.spell(
        speller,
        trie,
        in_turn,
        beams=beams,
        results=results,
        live=live,
        length_penalty=length_penalty,
        renormalize=renormalize,
        kept=jnp.zeros((speller.batch_size, beams), jnp.float32),
    )


def _found_before(trie: Trie, children_BK: jax.Array) -> jax.Array:
    """Whether a beam has come to a document that one before it has come to as well: bool [B, K]."""
    documents_BK = trie.document(children_BK)
    same_BKK = documents_BK[:, :, None] == documents_BK[:, None, :]
    beams = documents_BK.shape[1]
    earlier_KK = jnp.arange(beams)[None] < jnp.arange(beams)[:, None]
    return (same_BKK & earlier_KK[None]).any(axis=2) & (documents_BK != NONE)
