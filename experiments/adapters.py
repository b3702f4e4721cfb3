"""A run's dual encoder as the evaluators of the packages `beir` and `mteb` want one.

    encoder = adapters.Encoder.load("runs/mine")

    # beir: an exact search of its own, and its own measures
    search = DenseRetrievalExactSearch(encoder)
    found = EvaluateRetrieval(search, score_function="dot").retrieve(corpus, queries)

    # mteb: any of its tasks
    mteb.evaluate(encoder, tasks)

Scores are products of vectors, which are the cosine where the encoder scales them to length 1. Neither
package is needed to import this.

Letters: Q queries, N documents, D width.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corpora.tables import Document
from dual_encoder.trained import Trained
from experiments import run_dirs

_QUERY, _DOCUMENT = "query", "document"  # the values of mteb's PromptType
Batch = Mapping[str, Sequence[str]]


class Encoder:
    """Turns the texts of either package into vectors, each side with its own prompt.

    Args:
      trained: the dual encoder.
      name: what mteb calls it, "organization/model".

    Raises:
      ValueError: documents are cut into passages, whose best scores these packages do not take.
    """

    def __init__(self, trained: Trained, name: str = "retrievax/run"):
        if trained.text.passage_stride:
            raise ValueError(
                f"text.passage_stride is {trained.text.passage_stride}; allowed: 0, one vector a document"
            )
        self._trained, self._name = trained, name

    @classmethod
    def load(cls, run_dir: str | Path, *, batch_size: int = 256) -> "Encoder":
        """Opens a run's best checkpoint; errors are those of `Trained.load`."""
        run_dir = Path(run_dir)
        trained = Trained.load(run_dir, run_dirs.load_config(run_dir), batch_size=batch_size)
        return cls(trained, f"retrievax/{run_dir.resolve().name}")

    def encode_queries(self, queries: Sequence[str], **options: Any) -> np.ndarray:
        """Returns float32 [Q, D]. For beir, whose options (its batch size, a progress bar) are not followed:
        texts are encoded in batches of their own length."""
        del options
        return self._trained.queries(list(queries))[0]

    def encode_corpus(
        self, corpus: Sequence[Mapping[str, str]] | Mapping[str, Sequence[str]], **options: Any
    ) -> np.ndarray:
        """Returns float32 [N, D] of documents with `text` and maybe `title`: a list of them, or lists by
        field. For beir; options as in `encode_queries`."""
        del options
        if isinstance(corpus, Mapping):
            titles = corpus.get("title") or [""] * len(corpus["text"])
            pairs = list(zip(titles, corpus["text"], strict=True))
        else:
            pairs = [(document.get("title", ""), document["text"]) for document in corpus]
        return self._documents(pairs)

    def encode(self, inputs: Iterable[Batch], *, prompt_type: Any = None, **options: Any) -> np.ndarray:
        """Returns float32 [Q, D] or [N, D], by `prompt_type`; without one, texts are taken for queries. For
        mteb.

        Args:
          inputs: batches with `text`, and for documents maybe `title` and `body`, the text without it.
          prompt_type: mteb's PromptType.
          **options: what the task is, and mteb's own batch size, which are not followed.

        Raises:
          ValueError: another prompt type.
        """
        del options
        side = getattr(prompt_type, "value", prompt_type) or _QUERY
        if side not in (_QUERY, _DOCUMENT):
            raise ValueError(f"prompt_type is {prompt_type!r}; allowed: {_QUERY}, {_DOCUMENT}")
        if side == _QUERY:
            return self.encode_queries([text for batch in inputs for text in batch["text"]])
        pairs: list[tuple[str, str]] = []
        for batch in inputs:
            if "title" in batch and "body" in batch:
                pairs += zip((title or "" for title in batch["title"]), batch["body"], strict=True)
            else:
                pairs += (("", text) for text in batch["text"])
        return self._documents(pairs)

    def similarity(self, first: Any, second: Any) -> np.ndarray:
        """Returns float32 [Q, N], the products of two sets of vectors. For mteb."""
        return np.asarray(first) @ np.asarray(second).T

    def similarity_pairwise(self, first: Any, second: Any) -> np.ndarray:
        """Returns float32 [Q], the products of vectors of the same row. For mteb."""
        return (np.asarray(first) * np.asarray(second)).sum(axis=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb records of the model: its name, revision (the checkpoint's digest) and width."""
        meta = importlib.import_module("mteb.models.model_meta").ModelMeta
        identity = self._trained.identity()
        return meta.create_empty(
            overwrites=dict(
                name=self._name,
                revision=identity["parameters"][:40],
                embed_dim=self._trained.width,
                max_tokens=self._trained.text.document_length,
                similarity_fn_name="dot",
            )
        )

    def _documents(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        made = (Document(str(number), title, text) for number, (title, text) in enumerate(pairs))
        return self._trained.documents(made)[0]
