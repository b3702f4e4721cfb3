"""Who mines the listed hard negatives of training queries.

A config's `batch.negatives` names one of these, or a function of yours, `(dataset, pairs) -> Mined`; the
experiment hands it the collection and the pairs. What is taken out of a ranking on the way, and how much of
it, see `negative_filters`.

Letters: Q queries, K documents that are found for each, M negatives that are kept, R rows of an index.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.batches import Pairs
from corpora.dataset import Dataset
from corpora.tables import DataError
from dual_encoder.negative_filters import Filter, Mined, filtered, is_positive, label, to_the_left
from dual_encoder.trained import Trained
from index import exact, lexical, passages

Miner = Callable[[Dataset, Pairs], Mined]


def bm25(
    dataset: Dataset,
    pairs: Pairs,
    *,
    count: int,
    skip: int = 0,
    depth: int = 0,
    filters: Sequence[Filter] = (),
    analyzer: lexical.Analyzer = lexical.PROSE,
    **settings: Any,
) -> Mined:
    """The documents that BM25 ranks highest and that are not known to be relevant.

    Karpukhin et al. (2020), "Dense Passage Retrieval for Open-Domain Question Answering".

    Args:
      dataset: the collection.
      pairs: training examples; `pairs.positives` are left out of the negatives.
      count: M, how many to keep a query.
      skip: how many of the highest ranked to pass over, which are the likeliest to be relevant
        though not judged so.
      depth: K, how many of the highest ranked are looked at; 0 for as many as make `count` where no more
        filters are given.
      filters: what else is taken out, see `negative_filters`; give them a `depth`.
      analyzer: how text becomes terms.
      **settings: `k1`, `b` and `title_weight`, see lexical.BM25.from_analyzed.

    Raises:
      ValueError: `count` is below 1, `skip` below 0, or `depth` too small for them.
    """
    depth = _depth(pairs, count, skip, depth)
    titles, texts = dataset.titles_and_texts()
    index = lexical.BM25.build(texts, titles=titles, analyzer=analyzer, **settings)
    _, rows_QK = index.search(_texts(dataset, pairs), depth)
    return filtered(dataset, pairs, rows_QK, count=count, skip=skip, filters=filters)


def nearest(
    search: Callable[[int], np.ndarray],
    dataset: Dataset,
    pairs: Pairs,
    *,
    count: int,
    skip: int = 0,
    depth: int = 0,
    filters: Sequence[Filter] = (),
) -> Mined:
    """The documents that the model itself ranks highest and that are not known to be relevant.

    The negatives of Xiong et al. (2021), "Approximate Nearest Neighbor Negative Contrastive Learning for
    Dense Text Retrieval", mined between two steps: the paper's index lags behind the training that goes on
    beside it, this one does not, and its search is exact.

    Args:
      search: from a number K to rows [Q, K] of the best documents of every training query.
      dataset, pairs, count, skip, depth, filters: as for `bm25`.

    Raises:
      ValueError: as `bm25`.
    """
    rows_QK = search(_depth(pairs, count, skip, depth))
    return filtered(dataset, pairs, rows_QK, count=count, skip=skip, filters=filters)


def mined(
    dataset: Dataset,
    pairs: Pairs,
    *,
    run: str,
    count: int,
    skip: int = 0,
    depth: int = 0,
    filters: Sequence[Filter] = (),
) -> Mined:
    """The documents that the dual encoder of another run ranks highest and that are not known to be relevant.

    The static hard negatives of Zhan et al. (2021), "Optimizing Dense Retrieval Model Training with Hard
    Negatives": those of a model that was warmed up, mined once. They are STAR's where in-batch negatives are
    there too and the training begins with that run's parameters.

    Args:
      run: its run directory.
      dataset, pairs, count, skip, depth, filters: as for `bm25`.

    Raises:
      ValueError: as `bm25`.
      DataError: there is no such run.
      CheckpointError: it has no checkpoint.
      DependenceError: its vectors depend on what is encoded together.
    """
    depth = _depth(pairs, count, skip, depth)
    trained = of_run(run, "negatives")
    vectors_RD, document_R = trained.documents(dataset.documents)
    vectors_QD, _ = trained.queries(_texts(dataset, pairs))
    index = exact.build(vectors_RD)
    _, rows_QK = passages.search(lambda k: exact.search(index, vectors_QD, k), document_R, depth)
    return filtered(dataset, pairs, np.asarray(rows_QK), count=count, skip=skip, filters=filters)


def union(dataset: Dataset, pairs: Pairs, *, count: int, sources: Sequence[Miner]) -> Mined:
    """The negatives of several miners together: the first of each, then the second of each, and so on.

    So Tang et al. (2022), "DPTDR: Deep Prompt Tuning for Dense Passage Retrieval", unify those of several
    retrievers, which miss different documents.

    Args:
      count: M, how many to keep a query.
      sources: the miners, each with a `count` of its own.
      dataset, pairs: as for `bm25`.

    Raises:
      ValueError: `count` is below 1 or there are no sources.
    """
    if count < 1 or not sources:
        raise ValueError(
            f"negatives: count is {count} and there are {len(sources)} sources; allowed: 1 or more"
        )
    found = [source(dataset, pairs) for source in sources]
    removed, candidates = {}, 0
    for source, one in zip(sources, found, strict=True):
        candidates += one.candidates
        for name, taken in one.removed.items():
            removed[f"{label(source)}: {name}"] = removed.get(f"{label(source)}: {name}", 0) + taken
    widest = max(one.rows.shape[1] for one in found)
    padded = [
        np.pad(one.rows, ((0, 0), (0, widest - one.rows.shape[1])), constant_values=-1) for one in found
    ]
    rows_QK = to_the_left(np.stack(padded, axis=2).reshape(len(padded[0]), -1))
    again_QK = np.zeros(rows_QK.shape, bool)
    for column in range(1, rows_QK.shape[1]):
        again_QK[:, column] = is_positive(rows_QK[:, column, None], rows_QK[:, :column])[:, 0]
    joined = Mined(rows_QK, candidates, removed).without("found before", again_QK)
    return joined._replace(rows=joined.rows[:, :count])


def judged(dataset: Dataset, pairs: Pairs, *, count: int) -> Mined:
    """The documents that the judgements say are not relevant: those of relevance 0 or below.

    So a collection brings its own negatives, such as the third column of `corpora.sources.triples`.

    Args:
      dataset: the collection.
      pairs: training examples of a split, which also judges these.
      count: M, how many to keep a query: the first in the order of the judgements.

    Raises:
      ValueError: `count` is below 1.
      DataError: the split judges no document not relevant.
    """
    if count < 1:
        raise ValueError(f"negatives: count is {count}; it must be at least 1")
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
    judgements = dataset.split(pairs.split)
    table_QM = np.full((len(pairs.query_ids), count), -1, np.int32)
    candidates = 0
    for query, query_id in enumerate(pairs.query_ids):
        listed = [row_of[d] for d, relevance in judgements.get(query_id, {}).items() if relevance <= 0]
        candidates += len(listed)
        listed = listed[:count]
        table_QM[query, : len(listed)] = listed
    if (table_QM < 0).all():
        raise DataError(
            f"{dataset.name}: split {pairs.split!r} judges no document not relevant (relevance 0) to a "
            "training query; dual_encoder.negatives.bm25 mines some"
        )
    return Mined(table_QM, candidates, {})


def of_run(run: str, field: str) -> Trained:
    """Opens a run's dual encoder; `field` of the config asks for it. Raises as `mined`."""
    try:
        config = json.loads((Path(run) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"config.batch.{field}.run is {run!r}; no run there: {error}") from None
    return Trained.load(run, config)


def _depth(pairs: Pairs, count: int, skip: int, depth: int) -> int:
    if count < 1 or skip < 0:
        raise ValueError(f"negatives: count is {count} and skip {skip}; they must be at least 1 and 0")
    if depth and depth < skip + count:
        raise ValueError(f"negatives: depth is {depth}; allowed: skip + count, {skip + count}, or more, or 0")
    return depth or skip + count + pairs.positives.shape[1]


def _texts(dataset: Dataset, pairs: Pairs) -> list[str]:
    return [dataset.queries[query_id] for query_id in pairs.query_ids]
