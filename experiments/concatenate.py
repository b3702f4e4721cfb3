"""Search with the vectors of two dual encoders side by side, as one.

A document's vector is that of the first run followed by that of the second, and a query's likewise, with the
second times a weight: the product is the first run's score plus the weight times the second's, exactly, from
one index. The weight is tuned on dev. Chen et al. (2022), "Salient Phrase Aware Dense Retrieval", put a dense
retriever and one that imitates BM25 together so.

Prints the measures on the test split and each ranking's overlap with BM25 (RBO, p = 0.9). Writes
results.json, per_query.json and runs/*.trec into --output, for compare and table.

Examples:
  python -m experiments.concatenate runs/plain runs/imitation --output=runs/spar
  python -m experiments.concatenate runs/plain runs/imitation --output=runs/spar --weight=0.5
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.dataset import Dataset
from dual_encoder import retriever
from dual_encoder.trained import Trained
from dual_encoder.vectors import VectorStore
from eval import comparison, measures, overlap, results, runs
from experiments import cli, compare, reports, run_dirs, settings
from experiments.encode import open_collection
from index import exact, lexical, passages

SYSTEM = "dual_encoder"  # of the concatenation, as of a run that trained one
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


def main() -> None:
    """Entry point of `retrievax-concatenate`."""
    command = cli.Command(__doc__)
    given = command.arguments("RUN", "two run directories of dual encoders, evaluated.", least=2)
    output = command.string("output", None, "The folder to write.")
    weight = command.number(
        "weight",
        None,
        f"Of the second run; by default the best on dev of {', '.join(map(str, WEIGHTS))}.",
        lower_bound=0.0,
        upper_bound=1e6,
    )

    def concatenate() -> None:
        if len(given.values) != 2:
            raise cli.UsageError(f"{len(given.values)} RUN given; exactly 2 are needed")
        if output.value is None:
            raise cli.UsageError("--output is not given; it names the folder to write")
        if Path(output.value).resolve() in [Path(run).resolve() for run in given.values]:
            raise cli.UsageError(f"--output is {output.value}, one of the runs; name another folder")
        print(evaluate(given.values, Path(output.value), weight.value))

    command.run(concatenate)


class Concatenation:
    """The vectors of two runs side by side.

    Args:
      trained: the two dual encoders.
      stores: the vectors of the same documents, in the same passages.

    Raises:
      UsageError: the stores differ in what their rows are of.
    """

    def __init__(self, trained: Sequence[Trained], stores: Sequence[VectorStore]):
        self._trained, (first, second) = trained, stores
        if first.ids != second.ids or not np.array_equal(first.text_of_row, second.text_of_row):
            raise cli.UsageError(
                "the runs have other documents, or other passages of them; allowed: the same"
            )
        self._text_of_row = first.text_of_row
        self._index = exact.build(np.concatenate([store.vectors() for store in stores], axis=1))

    def queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns what either run makes of queries, float32 [Q, D] each."""
        return [trained.queries(texts)[0] for trained in self._trained]

    def search(
        self, vectors: Sequence[np.ndarray], weights: tuple[float, float], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores and rows [Q, k] of the best documents; `weights` are those of the two runs."""
        both_QD = np.concatenate([w * x_QD for w, x_QD in zip(weights, vectors, strict=True)], axis=1)
        return passages.search(lambda depth: exact.search(self._index, both_QD, depth), self._text_of_row, k)


def evaluate(run_dirs_given: Sequence[str], output: Path, weight: float | None) -> str:
    """Evaluates the concatenation of two runs, writes the results and returns the table.

    Args:
      run_dirs_given: the two runs.
      output: the folder.
      weight: of the second; None to tune it on dev.
    """
    configs = [run_dirs.load_config(run) for run in run_dirs_given]
    dataset = open_collection(configs[0], None)
    print(dataset.summary(), flush=True)
    opened = [retriever.load_indexed(run, texts_hash=dataset.corpus_hash) for run in run_dirs_given]
    both = Concatenation(*zip(*opened, strict=True))
    of = settings.evaluation(configs[0]["evaluation"], "config.evaluation")
    depth = settings.deepest((*of.measures, of.tune_measure)) + of.drop_same_id

    def search(split: str, vectors: Sequence[np.ndarray], weights: tuple[float, float]) -> measures.Run:
        found = both.search(vectors, weights, depth)
        return runs.from_rows(
            list(dataset.split(split)), dataset.doc_ids, *found, drop_same_id=of.drop_same_id
        )

    chosen, tried = weight, {}
    if weight is None:
        dev = dataset.split(of.dev_split)
        vectors = both.queries(_texts(dataset, of.dev_split))
        for candidate in WEIGHTS:
            run = search(of.dev_split, vectors, (1.0, candidate))
            per_query = measures.evaluate(dev, run, [of.tune_measure])
            tried[candidate] = measures.means(per_query)[of.tune_measure]
        chosen = max(tried, key=tried.get)
    test = dataset.split(of.test_split)
    vectors = both.queries(_texts(dataset, of.test_split))
    names = _names(run_dirs_given)
    index = lexical.BM25.load(Path(run_dirs_given[0]) / "index" / "bm25")
    found = index.search(_texts(dataset, of.test_split), depth)
    test_runs = {
        "bm25": runs.from_rows(list(test), dataset.doc_ids, *found, drop_same_id=of.drop_same_id),
        names[0]: search(of.test_split, vectors, (1.0, 0.0)),
        names[1]: search(of.test_split, vectors, (0.0, 1.0)),
        SYSTEM: search(of.test_split, vectors, (1.0, chosen)),
    }
    per_query = {name: measures.evaluate(test, run, of.measures) for name, run in test_runs.items()}
    alike = {name: _alike(run, test_runs["bm25"]) for name, run in test_runs.items() if name != "bm25"}
    _write(output, configs[0], dataset, test_runs, of.run_depth)
    meta = {
        **run_dirs.meta(configs[0]),
        "data": dataset.summary(),
        "corpus_hash": dataset.corpus_hash,
        "runs": [str(run) for run in run_dirs_given],
        "weight": chosen,
        "weights_tried": {str(w): value for w, value in tried.items()},
        "rank_biased_overlap_with_bm25": alike,
    }
    results.write(output, meta, per_query)
    table = comparison.compare(per_query, list(of.measures), names[0])
    lines = [
        f"{SYSTEM} is {names[0]} + {chosen:g} x {names[1]}"
        + (f", tuned on dev by {of.tune_measure}" if tried else ""),
        *(f"rank-biased overlap with bm25, {name}: {value:.3f}" for name, value in alike.items()),
    ]
    return "\n".join([f"\n{compare.caption(table)}\n\n{table.table()}\n", *lines, f"\nwritten: {output}"])


def _names(run_dirs_given: Sequence[str]) -> list[str]:
    """What the two runs are called in the results: as their folders, where no other system is called so."""
    names = [Path(run).name or str(run) for run in run_dirs_given]
    return names if len(set(names)) == 2 and not {SYSTEM, "bm25"} & set(names) else ["first", "second"]


def _texts(dataset: Dataset, split: str) -> list[str]:
    return [dataset.queries[query_id] for query_id in dataset.split(split)]


def _alike(run: measures.Run, other: measures.Run) -> float:
    return statistics.fmean(overlap.rank_biased_overlap(run, other).values())


def _write(
    output: Path,
    config: Mapping[str, Any],
    dataset: Dataset,
    test_runs: Mapping[str, measures.Run],
    depth: int,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / run_dirs.CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
    reports.write_runs(output, test_runs, depth)


if __name__ == "__main__":
    main()
