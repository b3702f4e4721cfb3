"""Beam search over docids, on the device from the first symbol to the last.

Letters: B queries, K beams, V symbols, T symbols of the longest id, M slots of the cache, n results.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from generative_retrieval import speller as spellers
from generative_retrieval.docids import NONE
from generative_retrieval.speller import Speller
from generative_retrieval.trie import ROOT, Live, Trie


@struct.dataclass
class Found:
    """The best documents of each query, by score; a tie goes to the lower row.

    Attributes:
      documents_Bn: int32, rows of the documents; -1 for none.
      scores_Bn: float32; -inf for none.
    """

    documents_Bn: jax.Array
    scores_Bn: jax.Array


@struct.dataclass
class Beams:
    """Ids of which a search knows the beginnings.

    Attributes:
      depth: int32 [], symbols of the ids so far.
      nodes_BK: int32, where they are in the trie; -1 for a beam that holds nothing. One a query, the root,
        before the first symbol.
      scores_BK: float32, the model's log-probabilities; -inf for nothing.
      kept: what the way to choose keeps of the K beams: a pytree.
    """

    depth: jax.Array
    nodes_BK: jax.Array
    scores_BK: jax.Array
    kept: Any


@struct.dataclass
class Choice:
    """How beams go on.

    Attributes:
      children_BK: int32, the nodes where the K beams are now; -1 for nothing.
      scores_BK: float32, log-probabilities of the ids so far; -inf for nothing.
      parents_BK: int32, which beam each goes on from.
      kept: as in `Beams`.
    """

    children_BK: jax.Array
    scores_BK: jax.Array
    parents_BK: jax.Array
    kept: Any = ()


@struct.dataclass
class _State:
    """Attributes:
    at: the beams.
    lineage_BKT: see `speller.descend`.
    cache: the model's.
    found: those that have ended.
    """

    at: Beams
    lineage_BKT: jax.Array
    cache: Any
    found: Found


def search(
    speller: Speller,
    trie: Trie,
    *,
    beams: int,
    results: int,
    live: Live | None = None,
    length_penalty: float = 0.0,
    renormalize: bool = False,
) -> Found:
    """Finds the documents whose ids a model thinks likeliest. A pure function, to be traced by jax.jit.

    The score of a document is log p(id | query) / length^length_penalty, the length being that of its id in
    symbols, END among them (Wu et al., 2016, "Google's Neural Machine Translation System", has a shifted
    length). p is the model's own: the probabilities of an id's symbols among all symbols. The search ends
    as soon as nothing that is still being spelled can be among the best n.

    De Cao et al. (2021), "Autoregressive Entity Retrieval", constrain a beam search by a trie in this way.
    With as many beams as documents it is exhaustive. Ties within the beam go to the beam that was ahead,
    then to the lower symbol.

    Args:
      speller: the model with its queries.
      trie: the docids.
      beams: K, ids of each query that are being spelled at a time.
      results: n.
      live: which documents may be found; None for all. Others are never found, and take no beam.
      length_penalty: 0 for plain log-probabilities; 1 for their mean by symbol.
      renormalize: whether p is renormalized over the symbols that lead on, which favors ids with few
        siblings.

    Raises:
      ValueError: beams or results is below 1, or the penalty negative.
    """

    def best(at: Beams, log_p_BKV: jax.Array) -> Choice:
        continued_BKV = at.scores_BK[:, :, None] + log_p_BKV
        scores_BK, children_BK, parents_BK = trie.best(at.nodes_BK, at.depth, continued_BKV, beams, live)
        return Choice(children_BK, scores_BK, parents_BK)

    return spell(
        speller,
        trie,
        best,
        beams=beams,
        results=results,
        live=live,
        length_penalty=length_penalty,
        renormalize=renormalize,
    )


def spell(
    speller: Speller,
    trie: Trie,
    choose: Callable[[Beams, jax.Array], Choice],
    *,
    beams: int,
    results: int,
    live: Live | None,
    length_penalty: float,
    renormalize: bool,
    kept: Any = (),
) -> Found:
    """The loop of all beam searches, from the first symbol to the end of the last id that matters.

    Args:
      speller, trie: as in `search`.
      choose: `(beams, log_p float32 [B, K, V]) -> choice`, one symbol on. The first call has one beam a
        query.
      beams, results, live, length_penalty, renormalize: as in `search`.
      kept: what `choose` keeps of the K beams, before the first symbol.

    Raises:
      ValueError: as `search`.
    """
    check(beams=beams, results=results, length_penalty=length_penalty)
    logits_BV, cache = spellers.begin(speller, trie.length, beams)
    batch = speller.batch_size

    def grow(logits_BKV: jax.Array, state: _State) -> tuple[_State, jax.Array]:
        """The beams one symbol on, and their last symbols [B, K]."""
        at = state.at
        choice = choose(at, _log_p(logits_BKV, trie.mask(at.nodes_BK, live) if renormalize else None))
        depth = at.depth + 1
        documents_BK = trie.document(choice.children_BK)
        ended_BK = documents_BK != NONE
        lengthened = depth.astype(jnp.float32) ** length_penalty
        ended_scores_BK = jnp.where(ended_BK, choice.scores_BK / lengthened, -jnp.inf)
        lineage_BKT = state.lineage_BKT
        if trie.length > 1:
            lineage_BKT = spellers.descend(lineage_BKT, choice.parents_BK, depth)
        going = Beams(
            depth=depth,
            nodes_BK=jnp.where(ended_BK, NONE, choice.children_BK),
            scores_BK=jnp.where(ended_BK, -jnp.inf, choice.scores_BK),
            kept=choice.kept,
        )
        found = _merged(state.found, documents_BK, ended_scores_BK)
        grown = state.replace(at=going, lineage_BKT=lineage_BKT, found=found)
        return grown, trie.symbol(choice.children_BK)

    def goes_on(carry: tuple[_State, jax.Array]) -> jax.Array:
        state, at = carry[0], carry[0].at
        reachable_B = at.scores_BK.max(axis=1) / float(trie.length) ** length_penalty
        better_B = (reachable_B >= state.found.scores_Bn[:, -1]) & jnp.isfinite(reachable_B)
        return (at.depth < trie.length) & better_B.any()

    def step(carry: tuple[_State, jax.Array]) -> tuple[_State, jax.Array]:
        state, symbols_BK = carry
        seen_BKM = spellers.visible(state.lineage_BKT, state.at.depth)
        logits_BKV, cache = speller.step(symbols_BK, state.at.depth, seen_BKM, state.cache)
        return grow(logits_BKV, state.replace(cache=cache))

    first = _State(
        at=Beams(
            depth=jnp.zeros((), jnp.int32),
            nodes_BK=jnp.full((batch, 1), ROOT, jnp.int32),
            scores_BK=jnp.zeros((batch, 1), jnp.float32),
            kept=kept,
        ),
        lineage_BKT=spellers.lineage(batch, trie.length, beams),
        cache=cache,
        found=Found(
            documents_Bn=jnp.full((batch, results), NONE, jnp.int32),
            scores_Bn=jnp.full((batch, results), -jnp.inf, jnp.float32),
        ),
    )
    carry = grow(logits_BV[:, None], first)
    if trie.length > 1:
        carry = jax.lax.while_loop(goes_on, step, carry)
    return carry[0].found


def check(*, beams: int, results: int, length_penalty: float) -> None:
    """Raises ValueError where a number that a search is asked for is out of range."""
    for field, value in (("beams", beams), ("results", results)):
        if value < 1:
            raise ValueError(f"{field} is {value}; allowed: 1 or more")
    if not 0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty is {length_penalty}; allowed: 0 or more")


def _log_p(logits_BKV: jax.Array, among_BKV: jax.Array | None) -> jax.Array:
    """Log-probabilities of the symbols, among all of them or some."""
    logits_BKV = logits_BKV.astype(jnp.float32)
    if among_BKV is None:
        return jax.nn.log_softmax(logits_BKV, axis=-1)
    return jax.nn.log_softmax(logits_BKV, axis=-1, where=among_BKV)


def _merged(found: Found, documents_BK: jax.Array, scores_BK: jax.Array) -> Found:
    """The best n of those found and of more."""
    documents = jnp.concatenate([found.documents_Bn, documents_BK], axis=1)
    negative, documents = jax.lax.sort(
        (-jnp.concatenate([found.scores_Bn, scores_BK], axis=1), documents), dimension=1, num_keys=2
    )
    count = found.scores_Bn.shape[1]
    return Found(documents_Bn=documents[:, :count], scores_Bn=-negative[:, :count])
