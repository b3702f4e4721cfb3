"""Retrieval by n-grams that a model generates: any run of tokens in a document is one of its identifiers.

SEAL (Bevilacqua et al., 2022, "Autoregressive Search Engines: Generating Substrings as Document
Identifiers"). A text-to-text model writes n-grams by beam search; an FM-index of the corpus allows only those
that occur, from any place in any document. Of n-grams and their probabilities given the query, p(n|q), there
are three scores:

- `best` of the log-probabilities, the paper's LM: a document's score is that of its best n-gram, log p(n|q);
- `best` of the `log_odds`, its LM+FM: the same with a weight that rewards n-grams rarer in the corpus than
  for the query, p(n) being how often one occurs over the tokens of the corpus,

      w(n, q) = max(0, log  p(n|q) (1 - p(n)) / (p(n) (1 - p(n|q))))

- `intersective` of the `log_odds`, with which it does best: all n-grams of a document count together,

      W(d, q) = sum over n in K(d) of  w(n, q)^alpha cover(n)
      cover(n) = 1 - beta + beta |tokens of n that no heavier n-gram of K(d) has| / |tokens of n|

  where K(d) are those with an occurrence in d that overlaps none of a heavier one's. "Tokens" are different
  tokens. alpha = 2 and beta = 0.8, as in the authors' code.

Not here, though in the authors' code: smoothed counts, the probabilities of all single tokens as further
n-grams, n-grams of the query itself, titles generated apart.

On the host, but for the model.

Letters: B queries, K beams, T tokens of the longest n-gram, V tokens of the vocabulary, M slots of the cache.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from generative_retrieval import speller as spellers
from generative_retrieval.fm_index import FMIndex, Run
from generative_retrieval.speller import Speller
from training.task import Batch

Ngram = tuple[int, ...]
_CERTAIN = -1e-10  # a log-probability nearer to 0 has no finite odds


class Ranking(NamedTuple):
    """The best documents of one query, by score; a tie goes to the lower row.

    Attributes:
      documents_n: int64, rows of the documents.
      scores_n: float64.
    """

    documents_n: np.ndarray
    scores_n: np.ndarray


class _Beam(NamedTuple):
    ngram: Ngram
    log_p: float
    run: Run


def compiled(model: nn.Module) -> Callable[[Any, Batch], Speller]:
    """Spellers whose steps are compiled once for all batches of a shape.

    Args:
      model: text to text, as in `speller.of`; its symbols are the token ids of the index.

    Returns:
      A function of the variables and a batch, as in `speller.of`.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def start(variables, batch, slots):
        return spellers.of(model, variables, batch).start(slots)

    @jax.jit
    def step(variables, symbols_BK, depth, visible_BKM, cache):
        return model.apply(variables, symbols_BK, depth, visible_BKM, cache, method="step")

    def of(variables: Any, batch: Batch) -> Speller:
        return Speller(
            len(batch["tokens"]),
            functools.partial(start, variables, batch),
            functools.partial(step, variables),
        )

    return of


def generate(
    speller: Speller, index: FMIndex, *, beams: int = 15, length: int = 10, partial: bool = True
) -> list[dict[Ngram, float]]:
    """Writes n-grams of the corpus by beam search, as likely given the query as can be.

    Args:
      speller: a text-to-text model with its queries, such as `compiled` gives.
      index: of the corpus; its token ids are the model's symbols.
      beams: K.
      length: T; an n-gram also ends where every occurrence of it ends a document.
      partial: whether the beams of all steps are returned, so n-grams of 1 to T tokens. If not, only those
        that the search ends with; `best` of log-probabilities wants that, since shorter ones are likelier.

    Returns:
      For each query its n-grams with their log-probabilities, the model's own, the likeliest first; a tie
      goes to the one that sorts first.

    Raises:
      ValueError: beams or length is below 1, or the corpus has a token that the model has not.
    """
    for field, value in (("beams", beams), ("length", length)):
        if value < 1:
            raise ValueError(f"{field} is {value}; allowed: 1 or more")
    batch = speller.batch_size
    logits_BV, cache = spellers.begin(speller, length, beams)
    log_p_BKV = _log_p(logits_BV)[:, None]
    largest = int(index.following(index.everything)[0].max())
    if largest >= log_p_BKV.shape[2]:
        raise ValueError(f"the corpus has token {largest}; allowed: below {log_p_BKV.shape[2]}, the model's")
    lineage_BKT = spellers.lineage(batch, length, beams)
    grown = [[_Beam((), 0.0, index.everything)] for _ in range(batch)]
    found: list[dict[Ngram, float]] = [{} for _ in range(batch)]
    for depth in range(1, length + 1):
        parents_BK, symbols_BK = np.zeros((2, batch, beams), np.int32)
        for query, before in enumerate(grown):
            after, parents, ended = _grow(index, before, log_p_BKV[query], beams)
            grown[query] = after
            parents_BK[query, : len(after)] = parents
            symbols_BK[query, : len(after)] = [beam.ngram[-1] for beam in after]
            kept = after + ended if partial or depth == length else ended
            found[query].update({beam.ngram: beam.log_p for beam in kept})
        if depth == length or not any(grown):
            break
        now = jnp.asarray(depth, jnp.int32)
        lineage_BKT = spellers.descend(lineage_BKT, jnp.asarray(parents_BK), now)
        seen_BKM = spellers.visible(lineage_BKT, now)
        logits_BKV, cache = speller.step(jnp.asarray(symbols_BK), now, seen_BKM, cache)
        log_p_BKV = _log_p(logits_BKV)
    return [dict(sorted(ngrams.items(), key=lambda item: (-item[1], item[0]))) for ngrams in found]


def _log_p(logits: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1))


def _grow(
    index: FMIndex, before: list[_Beam], log_p_KV: np.ndarray, beams: int
) -> tuple[list[_Beam], np.ndarray, list[_Beam]]:
    """The best continuations of a query's beams, which of these each goes on from, and those with none."""
    following = [index.following(beam.run)[0] for beam in before]
    ended = [beam for beam, tokens in zip(before, following, strict=True) if not len(tokens)]
    parents_C = np.repeat(np.arange(len(before)), [len(tokens) for tokens in following])
    tokens_C = np.concatenate([*following, np.zeros(0, np.int64)])
    scores_C = np.asarray([beam.log_p for beam in before])[parents_C] + log_p_KV[parents_C, tokens_C]
    best = np.lexsort((tokens_C, parents_C, -scores_C))[:beams]
    after = [
        _Beam((*before[k].ngram, token), score, index.extend(before[k].run, token))
        for k, token, score in zip(
            parents_C[best].tolist(), tokens_C[best].tolist(), scores_C[best].tolist(), strict=True
        )
    ]
    return after, parents_C[best], ended


def log_odds(ngrams: Mapping[Ngram, float], index: FMIndex) -> dict[Ngram, float]:
    """w(n, q) of each n-gram, see the module's docstring; 0 for those that are not in the corpus.

    Args:
      ngrams: with log p(n|q).
      index: of the corpus.
    """
    weights = {}
    for ngram, log_p in ngrams.items():
        count, log_p = index.count(ngram), min(log_p, _CERTAIN)
        if not 0 < count < len(index):
            weights[ngram] = 0.0
            continue
        odds = log_p - math.log(-math.expm1(log_p))
        weights[ngram] = max(0.0, odds - math.log(count / (len(index) - count)))
    return weights


def best(weights: Mapping[Ngram, float], index: FMIndex, results: int) -> Ranking:
    """Ranks documents by the heaviest of their n-grams; those without any are not ranked.

    Args:
      weights: of n-grams.
      index: of the corpus.
      results: documents at most.
    """
    scores_D = np.full(index.num_documents, -np.inf)
    for ngram, weight in weights.items():
        documents = index.documents(ngram)
        scores_D[documents] = np.maximum(scores_D[documents], weight)
    return _ranked(scores_D, results)


def intersective(
    weights: Mapping[Ngram, float],
    index: FMIndex,
    results: int,
    *,
    alpha: float = 2.0,
    beta: float = 0.8,
    rare: int = 1_500,
) -> Ranking:
    """Ranks documents by all their n-grams together; see the module's docstring.

    Args:
      weights: w(n, q), such as `log_odds` gives; n-grams of weight 0 do not count.
      index: of the corpus.
      results: documents at most.
      alpha: above 1, a heavy n-gram counts more than several light ones.
      beta: 0 to 1, how much of its weight an n-gram loses whose tokens are all in heavier ones.
      rare: documents are found by n-grams that occur so often at most, or this would go over the whole
        corpus for a common word; more frequent ones count in documents that were found.
    """
    ordered = sorted((item for item in weights.items() if item[1] > 0), key=lambda item: (-item[1], item[0]))
    runs = [index.find(ngram) for ngram, _ in ordered]
    found_D = np.zeros(index.num_documents, bool)
    for run in runs:
        if run.count <= rare:
            found_D[index.occurrences(run)[0]] = True
    scores_D = np.where(found_D, 0.0, -np.inf)
    taken: dict[int, set[int]] = {row: set() for row in np.flatnonzero(found_D).tolist()}  # places in it
    covered: dict[int, set[int]] = {row: set() for row in taken}  # tokens
    for (ngram, weight), run in zip(ordered, runs, strict=True):
        documents, begins = index.occurrences(run)
        kept, tokens = found_D[documents], set(ngram)
        counted = set()
        for row, begin in zip(documents[kept].tolist(), begins[kept].tolist(), strict=True):
            places = range(begin, begin + len(ngram))
            if taken[row].isdisjoint(places):
                taken[row].update(places)
                counted.add(row)
        for row in counted:
            cover = 1 - beta + beta * len(tokens - covered[row]) / len(tokens)
            scores_D[row] += weight**alpha * cover
            covered[row] |= tokens
    return _ranked(scores_D, results)


def retrieve(
    speller: Speller, index: FMIndex, *, results: int, beams: int = 15, length: int = 10
) -> list[Ranking]:
    """Ranks the documents of each query by SEAL's intersective score of the n-grams that the model writes.

    The arguments and errors are those of `generate`; `results` is how many documents at most.
    """
    found = generate(speller, index, beams=beams, length=length)
    return [intersective(log_odds(ngrams, index), index, results) for ngrams in found]


def _ranked(scores_D: np.ndarray, results: int) -> Ranking:
    order = np.argsort(-scores_D, kind="stable")[:results]
    order = order[np.isfinite(scores_D[order])]
    return Ranking(order, scores_D[order])
