"""Score the first documents of a TREC run anew with a trained dual encoder or cross-encoder.

Only the documents that occur among the first `depth` of a query are read. Those further down keep
their order below. Prints the measures before and after, and whether the difference could be chance.

Examples:
  python -m experiments.rerank --workdir=runs/mine --run=runs/mine/runs/bm25.trec
  python -m experiments.rerank --workdir=runs/mine --run=FILE.trec --depth=1000 --weight=0.5
  python -m experiments.rerank --workdir=runs/mine --run=FILE.trec --folder=PATH --output=OTHER.trec
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.dataset import Dataset
from cross_encoder.task import Ranking
from cross_encoder.trained import Trained as CrossEncoder
from dual_encoder import scorers
from dual_encoder.scorers import Scorer
from dual_encoder.task import Contrastive
from dual_encoder.trained import Trained as DualEncoder
from eval import comparison, fusion, measures, runs, trec
from experiments import cli, compare, cross_encoder_settings, run_dirs, settings
from experiments.encode import open_collection
from training.build import build


def main() -> None:
    """Entry point of `retrievax-rerank`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run whose model scores.")
    run = command.string("run", None, "The TREC run to rerank.")
    folder = command.string(
        "folder", None, "The run's collection, in BEIR layout; by default the workdir's own."
    )
    split = command.string("split", None, "The split to measure on; by default the config's test split.")
    depth = command.integer("depth", 100, "Documents of a query to score anew.", lower_bound=1)
    weight = command.number(
        "weight",
        1.0,
        "Of the model's score; below 1, the rest is the run's own score, both scaled to [0, 1] over a "
        "query's documents.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    output = command.string(
        "output", None, "The TREC run to write; by default NAME-reranked.trec in the workdir's runs/."
    )
    batch_size = command.integer("batch_size", 256, "Texts, or pairs, computed at a time.", lower_bound=1)
    allow = command.boolean(
        "allow_batch_dependence", "Let a text's vector or score depend on what is computed with it."
    )

    def main_rerank() -> None:
        if run.value is None:
            raise cli.UsageError("--run is not given; it names the TREC run to rerank")
        if not 0 <= weight.value <= 1:  # NaN passes the flag's own bounds
            raise cli.UsageError(f"--weight is {weight.value}; allowed: 0 to 1")
        config = run_dirs.load_config(workdir.value)
        load, kind = _loader(config)
        evaluation = settings.evaluation(config["evaluation"], "config.evaluation", kind)
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
        scorer = load(workdir.value, batch_size=batch_size.value, allow_batch_dependence=allow.value)
        second = rerank(scorer, dataset, first, depth.value, weight.value)
        name = Path(run.value).stem
        file = Path(output.value or Path(workdir.value) / "runs" / f"{name}-reranked.trec")
        trec.write_run(file, second, f"{name}-reranked")
        print(f"\n{report(name, qrels, first, second, evaluation.measures)}\n\nwritten: {file}")

    command.run(main_rerank)


def _loader(config: Mapping[str, Any]) -> tuple[Callable[..., Scorer], type[settings.Evaluation]]:
    """Returns how a run's scorer is opened, and what its field `evaluation` is. Raises UsageError where it is
    of a family that has none."""
    task = build(config.get("task"), "config.task")
    if isinstance(task, Ranking):
        return functools.partial(CrossEncoder.load, config=config), cross_encoder_settings.Evaluation
    if isinstance(getattr(task, "base", task), Contrastive):
        load = lambda run_dir, **options: functools.partial(
            scorers.scores, DualEncoder.load(run_dir, config, **options)
        )
        return load, settings.Evaluation
    raise cli.UsageError(
        f"--workdir: the run is of {config.get('family')}; allowed: a run of a dual encoder or of a "
        "cross-encoder"
    )


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
    scorer: Scorer, dataset: Dataset, run: measures.Run, depth: int, weight: float = 1.0
) -> measures.Run:
    """Scores the first `depth` documents of each query anew; those further down follow in their order.

    Args:
      scorer: who scores, see dual_encoder.scorers.
      dataset: the collection, with all of the run's queries and documents.
      run: to rerank.
      depth: documents of a query to score.
      weight: of the scorer, the rest is the run's; see fusion.interpolate. 1 takes its scores as they are.
    """
    first = head(run, depth)
    scored = score(scorer, dataset, first)
    if weight < 1:
        scored = fusion.interpolate(scored, first, weight)
    return followed(scored, run)


def head(run: measures.Run, depth: int) -> measures.Run:
    """Returns the first `depth` documents of each query, best first."""
    return {query_id: {d: hits[d] for d in measures.rank(hits)[:depth]} for query_id, hits in run.items()}


def followed(scored: measures.Run, run: measures.Run) -> measures.Run:
    """Returns what was scored of a run, and below it the rest of the run in its order."""
    return {
        query_id: followed_by(scored[query_id], [d for d in measures.rank(hits) if d not in scored[query_id]])
        for query_id, hits in run.items()
    }


def score(scorer: Scorer, dataset: Dataset, candidates: Mapping[str, Mapping[str, float]]) -> measures.Run:
    """Returns a scorer's score of each query's candidates."""
    row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
    rows_QM = np.full((len(candidates), max(map(len, candidates.values()), default=0)), -1, np.int32)
    for rows_M, hits in zip(rows_QM, candidates.values(), strict=True):
        rows_M[: len(hits)] = [row_of[doc_id] for doc_id in hits]
    scores_QM = scorer(dataset, list(candidates), rows_QM).tolist()
    return {
        query_id: dict(zip(hits, scores_M, strict=False))
        for (query_id, hits), scores_M in zip(candidates.items(), scores_QM, strict=True)
    }


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


if __name__ == "__main__":
    main()
