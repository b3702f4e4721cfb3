"""A trained generative retriever, opened to search with: `experiments.search` prints what it finds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corpora import tokenizer as tokenizers
from corpora import tokens
from corpora.dataset import Dataset
from corpora.tokenizer import TOKENIZER_FILE
from dual_encoder.retriever import Hit
from experiments import generative_docids, settings
from experiments.cli import UsageError
from experiments.generative_settings import Docids, Evaluation, Text
from experiments.live_documents import live
from experiments.searching import Searching
from generative_retrieval import trained
from generative_retrieval.batch_search import BatchSearch
from training.build import build, fill
from training.mesh import Layout, data_mesh

SYSTEM = "generative"


class Searcher:
    """Searches a collection on one device; `load` opens a run.

    Args:
      dataset: the collection.
      tokenizer: the run's.
      length: tokens that queries are cut to.
      retriever: the model, one query at a time.
      variables: the model's.
      live_N: bool, which documents may be found; None for all.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: tokenizers.Tokenizer,
        length: int,
        retriever: BatchSearch,
        variables: Any,
        live_N: np.ndarray | None = None,
    ):
        self.dataset, self._tokenizer, self._length = dataset, tokenizer, length
        self._retriever, self._variables, self._live_N = retriever, variables, live_N

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        config: Mapping[str, Any],
        *,
        k: int,
        beams: int | None = None,
        only: str | None = None,
        without: str | None = None,
        allow_batch_dependence: bool = False,
    ) -> "Searcher":
        """Opens a run's best checkpoint; documents that config.docids.removed names are never found.

        Args:
          run_dir: the run.
          config: of the run.
          k: results of a query.
          beams: ids that are spelled at a time; None for those of the config, or as often as many as are
            needed for k.
          only: a file of doc ids, one a line, that may be found; None for all.
          without: a file of doc ids that may not; None for none.
          allow_batch_dependence: see `BatchSearch`.

        Raises:
          UsageError: a file is not there, names a document that is not, or leaves none to be found; or the
            run's docids are of other documents.
          CheckpointError: the run has no checkpoint.
          DependenceError: results depend on what is searched together, and it is not allowed.
        """
        task = build(config["task"], "config.task")
        text = fill(Text, config["text"], "config.text")
        evaluation = settings.evaluation(config["evaluation"], "config.evaluation", Evaluation)
        dataset = build(config["data"], "config.data")
        docids = generative_docids.load(run_dir, dataset.doc_ids)
        mesh, layout = data_mesh(jax.local_devices()[:1]), Layout()
        if beams is not None and beams < k:
            raise UsageError(f"beams is {beams}; allowed: {k} or more, for so many results")
        retriever = BatchSearch(
            task.model,
            docids,
            mesh,
            layout,
            batch_size=1,
            length=text.length,
            beams=-(-k // evaluation.beams) * evaluation.beams if beams is None else beams,
            results=k,
            length_penalty=evaluation.length_penalty,
            search=evaluation.search,
            allow_batch_dependence=allow_batch_dependence,
        )
        removed = fill(Docids, build(config["docids"], "config.docids"), "config.docids").removed
        live_N = live(dataset.doc_ids, only=only, without=without, removed=removed)
        _, variables = trained.best(run_dir, task, mesh, layout)
        tokenizer = tokenizers.load(str(Path(run_dir) / TOKENIZER_FILE))
        return cls(dataset, tokenizer, text.length, retriever, variables, live_N)

    def search(self, query: str, k: int = 10, system: str = SYSTEM) -> list[Hit]:
        """Returns the k best documents of a query, best first; their scores are log-probabilities.

        Args:
          query: any text.
          k: results, at most those that it was opened with.
          system: "generative".

        Raises:
          ValueError: another system.
        """
        if system != SYSTEM:
            raise ValueError(f"system is {system!r}; allowed: {SYSTEM}")
        table = tokens.tokenize(self._tokenizer, [("", query)], max_length=self._length, special_tokens=False)
        scores_Qn, rows_Qn = self._retriever(self._variables, table, live_SN=self._live_N)
        found = [(row, score) for row, score in zip(rows_Qn[0].tolist(), scores_Qn[0].tolist(), strict=True)]
        found = [(row, score) for row, score in found if row >= 0][:k]
        documents = self.dataset.documents.read([row for row, _ in found])
        return [
            Hit(rank, score, *document)
            for rank, ((_, score), document) in enumerate(zip(found, documents, strict=True), 1)
        ]


SEARCHING = Searching((SYSTEM,), Searcher.load, options=("beams", "only", "without"))
