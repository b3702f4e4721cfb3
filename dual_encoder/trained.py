"""A dual encoder as a run left it, with all that it takes to turn text into vectors.

Letters: T texts, R rows (a document's passages are several), D width.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corpora import tokenizer as tokenizers
from corpora.tables import Document
from corpora.tokenizer import TOKENIZER_FILE, Tokenizer
from corpora.tokens import TextSettings
from dual_encoder import task as tasks
from dual_encoder.derived import Derived
from dual_encoder.encoding import Encoder, best_variables
from moe import leakage
from training import files
from training.build import SpecError, build, fill
from training.mesh import data_mesh


@dataclasses.dataclass(frozen=True)
class Trained:
    """Attributes:
    step: of the checkpoint.
    variables: of the model, on the encoder's devices: "params", and what else its layers have.
    width: D of its vectors.
    encoder: the model.
    tokenizer: the run's, read from `tokenizer_file`.
    text: how texts become tokens.
    """

    step: int
    variables: Any
    width: int
    encoder: Encoder
    tokenizer: Tokenizer
    tokenizer_file: Path
    text: TextSettings

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        config: Mapping[str, Any],
        *,
        batch_size: int = 256,
        devices: list[jax.Device] | None = None,
        allow_batch_dependence: bool = False,
    ) -> "Trained":
        """Opens a run's best checkpoint.

        Args:
          run_dir: the run.
          config: of the run.
          batch_size: texts encoded at a time.
          devices: to encode on; by default all of this process.
          allow_batch_dependence: whether a text's vector may depend on those that are encoded with it, see
            `moe.leakage`.

        Raises:
          CheckpointError: the run has no checkpoint.
          SpecError: the config names what is not there, or is of another family.
          DependenceError: vectors depend on the batch, and it is not allowed.
        """
        task = task_of(config)
        if not allow_batch_dependence:
            leakage.refuse_batch(task.model, "encode", "allow_batch_dependence (--allow_batch_dependence)")
        text = fill(TextSettings, config["text"], "config.text")
        mesh = data_mesh(jax.local_devices() if devices is None else devices)
        encoder = Encoder(task.model, batch_size=batch_size, mesh=mesh)
        tokenizer = tokenizers.load(str(Path(run_dir) / TOKENIZER_FILE))
        return cls.of_run(run_dir, task, encoder, tokenizer, text)

    @classmethod
    def of_run(
        cls,
        run_dir: str | Path,
        task: tasks.Contrastive,
        encoder: Encoder,
        tokenizer: Tokenizer,
        text: TextSettings,
    ) -> "Trained":
        """Opens a run's best checkpoint where the rest of the run is open already."""
        step, variables = best_variables(run_dir, task)
        batch = tasks.documents(tasks.smallest_batch(task.model))
        encode = functools.partial(task.model.apply, method="encode_document")
        width = jax.eval_shape(encode, variables, batch).shape[-1]
        file = Path(run_dir) / TOKENIZER_FILE
        return cls(step, encoder.place(variables), width, encoder, tokenizer, file, text)

    def documents(
        self, documents: Iterable[Document], report: Callable[[float], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns vectors float32 [R, D], and the number int32 [R] of the document that each is of.

        `report` is told how many documents are done.
        """
        table = self.text.passages(self.tokenizer, documents)
        count = int(table.document_of_row[-1]) + 1 if len(table) else 0
        vectors_RD = self.encoder.documents(
            self.variables,
            table,
            self.text.document_length,
            report=report and (lambda rows: report(rows * count / len(table))),
        )
        return vectors_RD, table.document_of_row

    def queries(
        self, texts: Sequence[str], report: Callable[[float], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns vectors float32 [T, D] and 0 to T - 1, as `documents` does."""
        table = self.text.queries(self.tokenizer, texts)
        vectors_TD = self.encoder.queries(self.variables, table, self.text.query_length, report=report)
        return vectors_TD, np.arange(len(texts), dtype=np.int32)

    def identity(self) -> dict[str, Any]:
        """Returns what the vector of a text depends on, as JSON can hold it: large things by their hash."""
        state = {name: held for name, held in self.variables.items() if name != "params"}
        return {
            "step": self.step,
            "parameters": digest(self.variables["params"]),
            **({"state": digest(state)} if state else {}),
            "tokenizer": files.digest(self.tokenizer_file),
            "text": dataclasses.asdict(self.text),
        }


def task_of(config: Mapping[str, Any]) -> tasks.Contrastive | Derived:
    """Builds the Task of a run's config. Raises SpecError where it is no dual encoder's."""
    task = build(config.get("task"), "config.task")
    if not isinstance(task, tasks.Contrastive | Derived):
        raise SpecError(
            f"the run is of {config.get('family')}; allowed: a run of a dual encoder, whose task is "
            "dual_encoder.task.Contrastive, or made around one"
        )
    return task


def digest(params: Any) -> str:
    """Returns the SHA-256 of parameters: of their paths, shapes, dtypes and values."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
