"""An encoder with one vector for each document: a query's logits are products with all of them.

Zhou et al. (2022), "DynamicRetriever: A Pre-training Model-based IR System with Neither Sparse nor Dense
Index". Its documents have the ids of the atomic scheme, one symbol each, and are found as those of any other
model. The vanilla variant:

    dict(
        name="generative_retrieval.dynamic_retriever.DynamicRetriever",
        tower=dict(
            name="dual_encoder.towers.Tower",
            encoder=dict(name="backbones.encoder.TransformerEncoder", ...),
            pooler=dict(name="dual_encoder.poolers.cls"),
            normalize=False,
        ),
        documents=8_841_823,
        spare=416,  # rows that make the table divisible by the mesh, and room for more documents
    )

The OverDense variant goes on from a dense retriever:

    initial=dict(name="generative_retrieval.dynamic_retriever.OverDense", run="runs/dual", temperature=0.05)

begins W with that run's document vectors, and the config's `init_from` the tower with its query tower. A mesh
keeps W in parts by a rule such as `("rows/table", ("fsdp", None))`.

Letters: B queries, S length of a text, N documents, V = 1 + N + spare symbols, D width, K ids that are being
spelled, M slots.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from backbones.attention import HIDDEN
from corpora.tables import DataError
from dual_encoder.retriever import load_indexed, vectors_folder
from dual_encoder.towers import Tower
from dual_encoder.vectors import VectorStore
from generative_retrieval.models import Spelled, texts
from moe import leakage
from training.activations import named
from training.task import Batch

Initial = Callable[[jax.Array, tuple[int, int]], jax.Array]
random: Initial = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")


class DynamicRetriever(nn.Module):
    """log p(document | query) = log softmax(W q), over the N documents; document n is symbol n + 1.

    Attributes:
      tower: of queries, and of the texts that are indexed; its vectors are q.
      documents: N.
      spare: rows of W without a document yet. Theirs, and that of END, are in no softmax; when documents are
        added, `documents` goes up by as many as `spare` goes down.
      initial: `(rng, (V, D)) -> float32 [V, D]`, how W begins; a normal with variance 1 / D by default.

    Raises:
      ValueError: documents is below 1, or spare below 0.
    """

    tower: Tower
    documents: int
    spare: int = 0
    initial: Initial = random

    def __post_init__(self):
        if self.documents < 1 or self.spare < 0:
            raise ValueError(
                f"documents is {self.documents} and spare {self.spare}; allowed: at least 1 and at least 0"
            )
        super().__post_init__()

    def setup(self):
        self.rows = Table(self.docid_size, self.initial)

    @property
    def text_size(self) -> int:
        """How many words there is room for."""
        return self.tower.encoder.embed.vocab_size

    @property
    def docid_size(self) -> int:
        """How many symbols there is room for."""
        return 1 + self.documents + self.spare

    @nn.nowrap
    def check(self, doc_ids: Sequence[str]) -> None:
        """Raises DataError where W is to begin with vectors of other documents than those of a run."""
        if isinstance(self.initial, OverDense):
            self.initial.check(doc_ids)

    def __call__(self, batch: Batch, *, train: bool = False) -> Spelled:
        """Expects `tokens` and `mask` [B, S], `targets` [B, 1].

        Raises:
          ValueError: ids of more than one symbol.
        """
        if batch["targets"].shape[1] != 1:
            raise ValueError(
                f"ids have up to {batch['targets'].shape[1]} symbols; allowed with DynamicRetriever: 1, such "
                "as those of generative_retrieval.schemes.atomic"
            )
        vectors_BD, sums = self.tower.with_sums(texts(batch), train=train)
        aux = {"tower": sums} if sums else {}
        vectors_B1D = vectors_BD[:, None]
        return Spelled(self._logits(vectors_B1D), aux, last=vectors_B1D)

    def start(self, batch: Batch, slots: int, *, allow_batch_dependence: bool = False) -> jax.Array:
        """The vectors of queries, float32 [B, D]; see `speller.Speller.start`."""
        del slots  # nothing is read but END
        if not allow_batch_dependence:
            leakage.refuse_batch(self, "search", "allow_batch_dependence=True of `start`")
        return self.tower(texts(batch))

    def step(
        self, symbols_BK: jax.Array, depth: jax.Array, visible_BKM: jax.Array, vectors_BD: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """See `speller.Speller.step`; there is but one."""
        del symbols_BK, depth, visible_BKM
        return self._logits(vectors_BD[:, None]), vectors_BD

    def _logits(self, vectors_B1D: jax.Array) -> jax.Array:
        logits_B1V = self.rows(vectors_B1D)
        symbols_V = jnp.arange(logits_B1V.shape[-1])
        is_document_V = (symbols_V >= 1) & (symbols_V <= self.documents)
        return named(jnp.where(is_document_V[None, None], logits_B1V, HIDDEN), "logits")


class Table(nn.Module):
    """One vector a symbol; its parameter is float32 [V, D]."""

    size: int
    initial: Initial

    @nn.compact
    def __call__(self, vectors: jax.Array) -> jax.Array:
        """Products of float32 [..., D] with all vectors: [..., V]."""
        table_VD = self.param("table", self.initial, (self.size, vectors.shape[-1]))
        return vectors @ table_VD.T


@dataclasses.dataclass(frozen=True)
class OverDense:
    """The beginning of W from a dense retriever: its document vectors, each over `temperature`.

    With the tower of its queries the logits are then its scores as it was trained with them. END and the rows
    of further documents begin as by default.

    Attributes:
      run: a dual encoder's run, evaluated, over the same documents; or over the first of them.
      temperature: what that run divides its scores by.
    """

    run: str
    temperature: float = 1.0

    def __call__(self, rng: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Returns float32 [V, D].

        Raises:
          DataError: the run has no vectors, or not such as fit: another width, more documents than rows, or
            several vectors a document.
        """
        store = VectorStore.open(vectors_folder(self.run))
        size, width = shape
        texts_of_run, rows, run_width = store.manifest["texts"], len(store), store.manifest["width"]
        if rows != texts_of_run or rows > size - 1 or run_width != width:
            raise DataError(
                f"{self.run} has {rows} vectors of width {run_width} for {texts_of_run} documents; allowed: "
                f"one of width {width} for each, of at most {size - 1}"
            )
        return random(rng, shape).at[1 : 1 + rows].set(store.vectors() / np.float32(self.temperature))

    def check(self, doc_ids: Sequence[str]) -> None:
        """Looks at what the vectors are of, which shapes do not say.

        Args:
          doc_ids: of the documents, in the order of W.

        Raises:
          DataError: they are of another checkpoint than the run's best one, or of other documents than these
            in their order, or than the first of them.
        """
        _, store = load_indexed(self.run)
        differing = [at for at, doc_id in enumerate(store.ids) if list(doc_ids[at : at + 1]) != [doc_id]]
        if differing:
            first = differing[0]
            raise DataError(
                f"document {first} of {self.run} is {store.ids[first]!r}, which is another one or none here; "
                "allowed: a run over the same documents in their order, or over the first of them"
            )
