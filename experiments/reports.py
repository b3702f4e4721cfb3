"""What an evaluation of a retriever leaves in its run directory for people: runs, the table, the plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corpora.dataset import Dataset
from eval import measures, plots, results, significance, trec
from training import metrics

_SAMPLES = 10_000  # of the randomization test


def write_runs(run_dir: Path, test_runs: Mapping[str, measures.Run], depth: int) -> None:
    """Writes runs/<system>.trec, the best `depth` documents of each query."""
    for name, run in test_runs.items():
        best = {query_id: _best(hits, depth) for query_id, hits in run.items()}
        trec.write_run(run_dir / "runs" / f"{name}.trec", best, name)


def show(run_dir: Path) -> None:
    """Prints the table of what was written, each system against BM25 tuned on dev, and writes it to
    tables/results.md."""
    written = results.read(run_dir)
    baseline = written.per_query["bm25"]
    p_values = {
        system: {
            name: significance.randomization_test(values, baseline[name], samples=_SAMPLES)
            for name, values in columns.items()
        }
        for system, columns in written.per_query.items()
        if system != "bm25"
    }
    table = results.table(written, baseline="bm25", p_values=p_values)
    with trec.replacing(run_dir / "tables" / "results.md") as file:
        file.write(table + "\n")
    queries = len(next(iter(baseline.values())))
    print(
        f"\n{queries:,} test queries; in brackets the difference from bm25 and its p (randomization test)\n"
    )
    print(table)


def plot_training(
    run_dir: Path,
    config: Mapping[str, Any],
    dataset: Dataset,
    qrels: measures.Qrels,
    others: Mapping[str, measures.Run],
) -> None:
    """Draws how the best measure grew on dev, and what other systems reach there, unless that is a measure of
    some of the dev queries, such as dev/added/mrr@10.

    Args:
      run_dir: the run.
      config: its config.
      dataset: the collection.
      qrels: of dev.
      others: runs of dev by system.
    """
    best_measure = config["schedule"]["best_measure"]
    name = best_measure.removeprefix("dev/")
    levels = {}
    for system, run in others.items() if "/" not in name else ():
        levels[system] = measures.means(measures.evaluate(qrels, run, [name]))[name]
    file = run_dir / "plots" / "training.png"
    file.parent.mkdir(exist_ok=True)
    title = f"{dataset.name}: {len(qrels):,} dev queries, {len(dataset.doc_ids):,} documents"
    plots.quality_over_training(file, metrics.read(run_dir), best_measure, levels, title=title)
    print(f"\nwritten: {run_dir}/results.json, per_query.json, runs/, tables/, {file}")


def _best(hits: dict[str, float], depth: int) -> dict[str, float]:
    return {doc_id: hits[doc_id] for doc_id in measures.rank(hits)[:depth]}
