"""A trained generative retriever, opened to search with: `experiments.search` prints what it finds."""

import json
from collections.abc import Mapping, Sequence
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
from experiments.generative_settings import Evaluation, Text
from generative_retrieval import trained
from generative_retrieval.retriever import Retriever
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
        retriever: Retriever,
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
        """Opens a run's best checkpoint.

        Args:
          run_dir: the run.
          config: of the run.
          k: results of a query.
          beams: ids that are spelled at a time; None for those of the config, or k if it is more.
          only: a file of doc ids, one a line, that may be found; None for all.
          without: a file of doc ids that may not; None for none.
          allow_batch_dependence: see `Retriever`.

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
        retriever = Retriever(
            task.model,
            docids,
            mesh,
            layout,
            batch_size=1,
            length=text.length,
            beams=max(evaluation.beams, k) if beams is None else beams,
            results=k,
            length_penalty=evaluation.length_penalty,
            search=evaluation.search,
            allow_batch_dependence=allow_batch_dependence,
        )
        live_N = live(dataset.doc_ids, only, without)
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


def live(doc_ids: Sequence[str], only: str | None, without: str | None) -> np.ndarray | None:
    """Returns which documents may be found, bool [N]; None for all.

    Args:
      doc_ids: of all documents.
      only: a file of those that may; None for all.
      without: a file of those that may not.

    Raises:
      UsageError: see `Searcher.load`.
    """
    if only is None and without is None:
        return None
    row_of = {doc_id: row for row, doc_id in enumerate(doc_ids)}
    live_N = np.full(len(doc_ids), only is None)
    if only is not None:
        live_N[_rows(only, "--only", row_of)] = True
    if without is not None:
        live_N[_rows(without, "--without", row_of)] = False
    if not live_N.any():
        raise UsageError("--only and --without leave no document to be found")
    return live_N


def _rows(file: str, flag: str, row_of: Mapping[str, int]) -> list[int]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{flag}: {file}: {getattr(error, 'strerror', None) or error}") from None
    named = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, doc_id in named:
        if doc_id not in row_of:
            raise UsageError(f"{flag}: {file}:{number}: the collection has no document {json.dumps(doc_id)}")
    return [row_of[doc_id] for _, doc_id in named]
