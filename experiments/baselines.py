"""BM25 as the systems of every retrieval family are compared with it: plain, and tuned on dev."""

import dataclasses
import sys
from typing import Any

import numpy as np

from corpora.dataset import Dataset
from eval import measures, runs
from experiments import settings
from index import lexical


def bm25(
    dataset: Dataset, evaluation: settings.Evaluation, qrels: measures.Qrels, queries: list[str]
) -> tuple[lexical.BM25, lexical.BM25, dict[str, Any]]:
    """Returns BM25 as the config fixes it (text alone), BM25 tuned, and what was chosen.

    Args:
      dataset: the collection.
      evaluation: of the config.
      qrels: of dev.
      queries: their texts, in the same order.
    """
    grid, measure, drop_same_id = evaluation.bm25_grid, evaluation.tune_measure, evaluation.drop_same_id
    titles, texts = dataset.titles_and_texts()
    plain = lexical.BM25.build(texts, **evaluation.bm25_plain)
    tried = grid.settings()

    def quality(scores_QK: np.ndarray, rows_QK: np.ndarray) -> float:
        run = runs.from_rows(list(qrels), dataset.doc_ids, scores_QK, rows_QK, drop_same_id=drop_same_id)
        return measures.means(measures.evaluate(qrels, run, [measure]))[measure]

    best = None
    count = len(tried) * len(grid.analyzers)
    print(f"tuning BM25 on {len(queries):,} dev queries: {count} settings", file=sys.stderr, flush=True)
    for analyzer in grid.analyzers.values():
        analyzed = lexical.analyze(texts, analyzer=analyzer, titles=titles)
        setting, table = lexical.tune(
            analyzed,
            queries,
            tried,
            quality,
            k=settings.deepest([measure]) + drop_same_id,
            progress=sys.stderr.isatty(),
        )
        if best is None or table[setting] > best[0]:
            best = table[setting], analyzed, setting
    _, analyzed, setting = best
    chosen = {**dataclasses.asdict(analyzed.vocabulary.analyzer), **setting._asdict()}
    return plain, lexical.BM25.from_analyzed(analyzed, **setting._asdict()), chosen


def untuned(
    dataset: Dataset, evaluation: settings.Evaluation
) -> tuple[lexical.BM25, lexical.BM25, dict[str, Any]]:
    """Returns what `bm25` does where there is no dev to tune on: the grid's first setting in place of the
    best."""
    titles, texts = dataset.titles_and_texts()
    plain = lexical.BM25.build(texts, **evaluation.bm25_plain)
    setting, analyzer = (
        evaluation.bm25_grid.settings()[0],
        next(iter(evaluation.bm25_grid.analyzers.values())),
    )
    analyzed = lexical.analyze(texts, analyzer=analyzer, titles=titles)
    chosen = {**dataclasses.asdict(analyzed.vocabulary.analyzer), **setting._asdict()}
    return plain, lexical.BM25.from_analyzed(analyzed, **setting._asdict()), chosen
