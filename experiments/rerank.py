"""Score the first documents of a TREC run anew with a trained dual encoder.

Only the documents that occur among the first `depth` of a query are encoded. Those further down keep
their order below. Prints the measures before and after, and whether the difference could be chance.

Examples:
  python -m experiments.rerank --workdir=runs/mine --run=runs/mine/runs/bm25.trec
  python -m experiments.rerank --workdir=runs/mine --run=FILE.trec --depth=1000 --weight=0.5
  python -m experiments.rerank --workdir=runs/mine --run=FILE.trec --folder=PATH --output=OTHER.trec
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from corpora.dataset import Dataset
from dual_encoder.trained import Trained, task_of
from eval import comparison, fusion, measures, runs, trec
from experiments import cli, compare, run_dirs, settings
from experiments.encode import open_collection
from training.progress import Progress

_AT_ONCE = 16_384  # documents read and tokenized


def main() -> None:
    """Entry point of `retrievax-rerank`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run whose dual encoder scores.")
    run = command.string("run", None, "The TREC run to rerank.")
    folder = command.string(
        "folder", None, "The run's collection, in BEIR layout; by default the workdir's own."
    )
    split = command.string("split", None, "The split to measure on; by default the config's test split.")
    depth = command.integer("depth", 100, "Documents of a query to score anew.", lower_bound=1)
    weight = command.number(
        "weight",
        1.0,
        "Of the dual encoder; below 1, the rest is the run's own score, both scaled to [0, 1] over a "
        "query's documents.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    output = command.string(
        "output", None, "The TREC run to write; by default NAME-reranked.trec in the workdir's runs/."
    )
    batch_size = command.integer("batch_size", 256, "Texts encoded at a time.", lower_bound=1)
    allow = command.boolean(
        "allow_batch_dependence", "Let a text's vector depend on the texts that are encoded with it."
    )

    def main_rerank() -> None:
        if run.value is None:
            raise cli.UsageError("--run is not given; it names the TREC run to rerank")
        if not 0 <= weight.value <= 1:  # NaN passes the flag's own bounds
            raise cli.UsageError(f"--weight is {weight.value}; allowed: 0 to 1")
        config = run_dirs.load_config(workdir.value)
        task_of(config)  # another family's evaluation has other fields
        evaluation = settings.evaluation(config["evaluation"], "config.evaluation")
        with cli.expecting(OSError, ValueError):
            first = trec.read_run(run.value)
        dataset = open_collection(config, folder.value)
        print(dataset.summary(), flush=True)
        split_name = split.value or evaluation.test_split
        qrels = dataset.split(split_name)
        check_ids(run.value, first, dataset)
        if not first.keys() & qrels.keys():
            raise cli.UsageError(f"{run.value} has no query of the split {split_name!r}")
        if evaluation.drop_same_id:
            first = runs.without_same_id(first)
        trained = Trained.load(
            workdir.value, config, batch_size=batch_size.value, allow_batch_dependence=allow.value
        )
        second = rerank(trained, dataset, first, depth.value, weight.value)
        name = Path(run.value).stem
        file = Path(output.value or Path(workdir.value) / "runs" / f"{name}-reranked.trec")
        trec.write_run(file, second, f"{name}-reranked")
        print(f"\n{report(name, qrels, first, second, evaluation.measures)}\n\nwritten: {file}")

    command.run(main_rerank)


def check_ids(file: str, run: measures.Run, dataset: Dataset) -> None:
    """Raises UsageError if a run has queries or documents that the collection has not; some are named."""
    documents = {doc_id for hits in run.values() for doc_id in hits}
    for what, ids, known in (
        ("queries", run.keys(), dataset.queries.keys()),
        ("documents", documents, set(dataset.doc_ids)),
    ):
        unknown = sorted(ids - known)
        if unknown:
            shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            raise cli.UsageError(
                f"{file}: {len(unknown):,} of {len(ids):,} {what} are not in the collection ({shown})"
            )


def rerank(
    trained: Trained, dataset: Dataset, run: measures.Run, depth: int, weight: float = 1.0
) -> measures.Run:
    """Scores the first `depth` documents of each query anew; those further down follow in their order.

    Args:
      trained: the dual encoder.
      dataset: the collection, with all of the run's queries and documents.
      run: to rerank.
      depth: documents of a query to score.
      weight: of the dual encoder, the rest is the run's; see fusion.interpolate. 1 takes its scores as
        they are.
    """
    ranked = {query_id: measures.rank(hits) for query_id, hits in run.items()}
    head = {query_id: {d: run[query_id][d] for d in ids[:depth]} for query_id, ids in ranked.items()}
    scored = score(trained, dataset, head)
    if weight < 1:
        scored = fusion.interpolate(scored, head, weight)
    return {query_id: followed_by(scored[query_id], ids[depth:]) for query_id, ids in ranked.items()}


def score(trained: Trained, dataset: Dataset, candidates: Mapping[str, Mapping[str, float]]) -> measures.Run:
    """Returns the dual encoder's score of each query's candidates: a document's is its best passage's."""
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
    rows = sorted({row_of[doc_id] for hits in candidates.values() for doc_id in hits})
    if not rows:
        return {query_id: {} for query_id in candidates}
    place_of = {dataset.doc_ids[row]: place for place, row in enumerate(rows)}
    vectors_RD, first_row = _encode(trained, dataset, rows)
    vectors_QD, _ = trained.queries([dataset.queries[query_id] for query_id in candidates])
    found = {}
    for (query_id, hits), vector_D in zip(candidates.items(), vectors_QD, strict=True):
        places = np.array([place_of[doc_id] for doc_id in hits], np.int64)
        counts = first_row[places + 1] - first_row[places]
        starts = np.cumsum(counts) - counts
        within = np.arange(counts.sum()) - np.repeat(starts, counts)
        scores_R = vectors_RD[np.repeat(first_row[places], counts) + within] @ vector_D
        best = np.maximum.reduceat(scores_R, starts) if len(places) else scores_R
        found[query_id] = dict(zip(hits, best.tolist(), strict=True))
    return found


def followed_by(scored: Mapping[str, float], rest: Sequence[str]) -> dict[str, float]:
    """The scored documents, and below them `rest` in its order, at steps that float32 tells apart."""
    if not rest:
        return dict(scored)
    lowest = min(scored.values())
    step = max(1.0, 2 * float(np.spacing(np.float32(abs(lowest) + len(rest)))))
    return {**scored, **{doc_id: lowest - step * i for i, doc_id in enumerate(rest, 1)}}


def report(
    name: str, qrels: measures.Qrels, before: measures.Run, after: measures.Run, names: Sequence[str]
) -> str:
    """Returns the table of a run before and after, with what its brackets say."""
    systems = {
        title: measures.evaluate(qrels, run, names)
        for title, run in ((name, before), (f"{name} reranked", after))
    }
    found = comparison.compare(systems, list(names), name)
    return f"{compare.caption(found)}\n\n{found.table()}"


def _encode(trained: Trained, dataset: Dataset, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors [R, D] of some documents, and where those of the i-th begin [len(rows) + 1]."""
    progress = Progress(len(rows), unit="document", title="encoding the documents of the run")
    parts, of_document = [], []
    try:
        for start in range(0, len(rows), _AT_ONCE):
            documents = dataset.documents.read(rows[start : start + _AT_ONCE])
            vectors_RD, document_of_row = trained.documents(
                documents, lambda count, start=start: progress.update(start + int(count))
            )
            parts.append(vectors_RD)
            of_document.append(document_of_row + start)
    finally:
        progress.close()
    first_row = np.searchsorted(np.concatenate(of_document), np.arange(len(rows) + 1))
    return np.concatenate(parts), first_row


if __name__ == "__main__":
    main()
