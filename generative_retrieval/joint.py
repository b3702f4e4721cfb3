"""One encoder for two retrievers: a docid is spelled from what it makes of a query, and its pooled vector is
searched with as a dual encoder's.

    task=dict(
        name="generative_retrieval.joint.Joint",
        spelling=dict(
            name="generative_retrieval.task.SequenceToSequence",
            model=dict(
                name="generative_retrieval.joint.SharedEncoder",
                generator=dict(name="generative_retrieval.models.EncoderDecoder", ...),
                pooler=dict(name="dual_encoder.poolers.mean"),
            ),
        ),
        weight=1.0,
    )

`dual_encoder.encoding.Encoder(task.model)` encodes queries and documents with the Task's variables, as with
those of any dual encoder; `eval.fusion` makes one ranking of both.

Letters: B rows, S length of a text, L of a document, D width of a vector, K ids that are being spelled, M
slots.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from backbones.encoded import Encoded
from corpora.lengths import bucket, ladder
from dual_encoder.objectives import arrays, softmax
from dual_encoder.towers import Tower
from generative_retrieval import indexing
from generative_retrieval import task as tasks
from generative_retrieval.indexing import Examples, Source
from generative_retrieval.models import EncoderDecoder, Spelled, texts
from moe.auxiliary import streams
from training import variables
from training.task import Batch, Metrics, Others


class SharedEncoder(nn.Module):
    """An encoder and a decoder that spells, and a tower around the same encoder.

    Attributes:
      generator: the encoder and the decoder.
      pooler: one of `dual_encoder.poolers`.
      head: of the tower, as in `dual_encoder.towers.Tower`.
      normalize: likewise.
    """

    generator: EncoderDecoder
    pooler: Callable[[Encoded], jax.Array]
    head: nn.Module | None = None
    normalize: bool = True

    def setup(self):
        self.tower = self._tower()

    @property
    def text_size(self) -> int:
        """How many words there is room for."""
        return self.generator.text_size

    @property
    def docid_size(self) -> int:
        """How many symbols there is room for."""
        return self.generator.docid_size

    @property
    def query(self) -> Tower:
        """The tower of queries, which `dual_encoder.encoding.Encoder` asks for."""
        return self._tower()

    @property
    def document(self) -> Tower:
        """The tower of documents, the same."""
        return self._tower()

    def __call__(self, batch: Batch, *, train: bool = False) -> Spelled:
        """See `EncoderDecoder`."""
        return self.generator(batch, train=train)

    def both(
        self, batch: Batch, documents: Mapping[str, jax.Array], *, train: bool = False
    ) -> tuple[Spelled, jax.Array, jax.Array]:
        """Returns what is spelled, the vectors of the batch's texts [B, D], which are encoded once for both,
        and those of documents [N, D].

        Raises:
          ValueError: in training, the encoder returns sums, of which those of documents would be lost.
        """
        spelled = self.generator(batch, train=train)
        return spelled, self.tower.pooled(spelled.encoded), self.tower(documents, train=train)

    def start(self, batch: Batch, slots: int, *, allow_batch_dependence: bool = False) -> Any:
        """See `speller.Speller.start`."""
        return self.generator.start(batch, slots, allow_batch_dependence=allow_batch_dependence)

    def step(
        self, symbols_BK: jax.Array, depth: jax.Array, visible_BKM: jax.Array, cache: Any
    ) -> tuple[jax.Array, Any]:
        """See `speller.Speller.step`."""
        return self.generator.step(symbols_BK, depth, visible_BKM, cache)

    def encode_query(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """Returns the vectors of a batch of queries, float32 [B, D]."""
        return self.tower(batch, train=train)

    def encode_document(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """Returns those of documents, as `encode_query` does."""
        return self.tower(batch, train=train)

    @nn.nowrap
    def _tower(self) -> Tower:
        return Tower(self.generator.encoder, self.pooler, self.head, self.normalize)


@dataclasses.dataclass(frozen=True)
class Joint(tasks.AroundSpelling):
    """Two tasks for one encoder: to spell the id of a text's document, and to bring the text's vector close
    to that of its document.

        loss = loss of spelling + weight * contrastive loss

    In-batch documents are each other's negatives, but for those that are the same one; a document stands in
    the batch for each text of it.

    Attributes:
      spelling: with all its options; its model is a `SharedEncoder`.
      objective: one of `dual_encoder.objectives`, waiting for its arrays; no teacher scores these.
      temperature: what products of vectors are divided by.
      weight: of the contrastive loss.

    Raises:
      ValueError: temperature or weight is not positive, or the model is another one.
    """

    spelling: tasks.SequenceToSequence
    objective: Callable = softmax.info_nce
    temperature: float = 0.05
    weight: float = 1.0

    def __post_init__(self):
        for field in ("temperature", "weight"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be positive")
        if not isinstance(self.model, SharedEncoder):
            raise ValueError(
                f"spelling.model is {type(self.model).__name__}; allowed: "
                "generative_retrieval.joint.SharedEncoder"
            )

    def batches(
        self,
        make_batch: Callable[..., indexing.Batch],
        *,
        source: Source,
        examples: Sequence[Examples],
        symbols_NT: np.ndarray,
        seed: int,
    ) -> Callable[..., indexing.Batch]:
        """Returns `make_batch` with the document of each text, see `with_documents`: its first tokens."""
        del examples, symbols_NT, seed
        return with_documents(make_batch, indexing.first_tokens(source), length=source.length)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        return variables.split(self.model.init(rng, tasks.read(batch), texts(batch), method="both"))

    def loss(
        self,
        params: Any,
        state: Any,
        batch: Batch,
        rng: jax.Array,
        *,
        train: bool,
        others: Others | None = None,
    ) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Expects the arrays of `SequenceToSequence`, and those of `with_documents`."""
        seen = self.spelling.seen(batch, train=train)
        spelled, query_BD, document_BD = self.model.apply(
            self.variables(params, state),
            tasks.read(seen),
            documents(batch),
            train=train,
            rngs=streams(rng),
            method="both",
        )
        query_BD = query_BD[:: len(query_BD) // len(document_BD)]  # one pass of each query
        rows_B1 = batch["documents"][:, None]
        listed = {"document_rows": rows_B1, "positives": rows_B1}
        handed = arrays.given(arrays.named(self.objective), listed, jnp.float32(self.temperature))
        contrastive, of_pairs = self.objective(query_BD, document_BD, **handed)
        loss, metrics = self.spelling.weighed(spelled, seen, train=train, others=others)
        metrics = {**metrics, "spelling": loss, "contrastive": contrastive}
        metrics |= {f"contrastive/{name}": value for name, value in of_pairs.items()}
        return loss + self.weight * contrastive, (state, metrics)


def with_documents(
    make_batch: Callable[..., indexing.Batch], documents: Examples, *, length: int
) -> Callable[..., indexing.Batch]:
    """Returns `make_batch` with `document_tokens`, `document_mask` and `document_segments` [B, L] besides.

    L is the shortest of `corpora.lengths.ladder` that holds the longest document of the whole batch.

    Args:
      make_batch: such as `indexing.batches` gives.
      documents: one text of each document, such as `indexing.first_tokens`.
      length: tokens that documents are cut to.
    """
    rungs = ladder(length)
    row_of = np.full(int(documents.document_rows.max()) + 1, -1)
    row_of[documents.document_rows] = np.arange(len(documents))

    def batch(examples_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)) -> indexing.Batch:
        whole = make_batch(examples_B, step)
        rows_B = row_of[whole["documents"]]
        longest = min(documents.tokens.longest(rows_B), length)
        arrays = documents.tokens.rectangle(rows_B[part], bucket(longest, rungs))
        return {
            **{name: x[part] for name, x in whole.items()},
            **{f"document_{name}": x for name, x in arrays.items()},
        }

    return batch


def documents(batch: Batch) -> dict[str, jax.Array]:
    """The documents of a batch, each [B, L]."""
    return {name: batch[f"document_{name}"] for name in ("tokens", "mask", "segments")}
