"""Contrastive training of a dual encoder, as a Task for the loop.

Letters: B queries, H listed negatives of each, L length, N = B (1 + H) documents, D width; M
chunks of R rows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dual_encoder.lora import Lora
from dual_encoder.objectives import arrays, softmax
from dual_encoder.towers import DOCUMENT, QUERY, DualEncoder
from moe import leakage
from moe.auxiliary import Auxiliary, WithAuxiliary, added, streams
from training import mesh as meshes
from training import variables
from training.task import Batch, Metrics, Others

_FIELDS = ("tokens", "mask", "segments")
_OBJECTIVE = 2**31 - 1  # tells an objective's key from those of chunks
_LORA = 1  # tells the key of adapters from that of the model
# Of a dense model; see `smallest_batch`.
SMALLEST_BATCH = {
    **{f"query_{name}": np.zeros((1, 1), np.int32) for name in _FIELDS},
    **{f"document_{name}": np.zeros((1, 1, 1), np.int32) for name in _FIELDS},
    "document_rows": np.zeros((1, 1), np.int32),
    "positives": np.zeros((1, 1), np.int32),
}


def smallest_batch(model: Any) -> dict[str, np.ndarray]:
    """Returns a batch that parameters can be shaped from: they depend on no batch size or length."""
    return {name: np.repeat(x, leakage.group_rows(model), axis=0) for name, x in SMALLEST_BATCH.items()}


@dataclasses.dataclass(frozen=True)
class Contrastive(WithAuxiliary):
    """Pulls a query to its relevant document, away from the others of the batch.

    Parameters are `{"model": ...}`, `log_temperature` [] where the temperature is learned, `bias` [] where
    the objective names one, and `lora` where kernels are adapted. The state has every other collection of the
    model's variables, such as the balancing bias of routers; `{}` for a dense model.

    Attributes:
      model: the dual encoder.
      objective: one of `dual_encoder.objectives` or `dual_encoder.blockwise`, waiting for its arrays; it is
        handed those that it names, see `objectives.arrays`.
      temperature: what scores are divided by, or where it starts if it is learned.
      learn_temperature: whether it is trained with the model, as min_temperature + exp(parameter).
      bias: where the bias starts that is added to scores; it is trained with the model where the objective
        names one (`objectives.pairwise.sigmoid`), and there is none elsewhere.
      min_temperature: what a learned temperature stays above; 0.01 as in CLIP (Radford et al., 2021),
        where it is a clip, at which a temperature would get no gradient any more.
      measures: by name, functions of `eval.on_device` that wait for their arrays. Each is logged as
        `batch/<name>`, its mean over queries, which rank the documents that their loss compares; a tie is
        lost, as for `accuracy`. Their product of the vectors is the objective's, which XLA computes once;
        an objective that never makes it whole allows none.
      chunks: M, gradient caching (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under
        Memory Limited Setup"): the batch is encoded in M chunks, of which only the vectors are kept. The
        loss is that of the whole batch, and from its gradient with respect to the vectors each chunk is
        encoded once more, with the same random key, to get that of the parameters. The encoder's memory is
        that of one chunk, for a third more computation. So every document of the batch is still a negative
        of every query; with `microbatches` of the schedule, only those of its microbatch are. What sparse
        layers are balanced over is all of the batch too; a group of all rows (`group_rows` of a mixture) has
        those of a chunk.
      auxiliary: what the sums of sparse layers come to, with a domain for each side (towers.QUERY,
        towers.DOCUMENT); None for a dense model. A tied tower is balanced over queries and documents
        together, the rows of an example side by side.
      lora: low-rank products that are added to kernels of the model, see `dual_encoder.lora`; None for none.
      frozen: regular expressions; a parameter is left as it is where one is found in its path, such as
        `model/document/encoder/embed/table`: it costs no gradient and no optimizer state, see
        training.frozen.

    Raises:
      ValueError: a temperature that is not positive, chunks below 1, a measure that is no function or has
        no scores to be made of, an objective that needs what no Task has.
    """

    model: DualEncoder
    objective: Callable = softmax.info_nce
    temperature: float = 0.05
    learn_temperature: bool = False
    min_temperature: float = 0.01
    bias: float = -10.0
    measures: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    chunks: int = 1
    auxiliary: Auxiliary | None = None
    lora: Lora | None = None
    frozen: tuple[str, ...] = ()
    arrays: tuple[str, ...] = dataclasses.field(init=False)  # that the objective names

    def __post_init__(self):
        object.__setattr__(self, "arrays", arrays.named(self.objective))
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if self.learn_temperature and not 0 < self.min_temperature < self.temperature:
            raise ValueError(
                f"min_temperature is {self.min_temperature}; it must be positive and below temperature, "
                f"{self.temperature}"
            )
        for name, measure in self.measures.items():
            if not callable(measure):
                raise ValueError(
                    f"measures[{name!r}] is {measure!r}; allowed: a function such as eval.on_device.mrr"
                )
        if self.measures and "candidates" in self.arrays:
            raise ValueError(
                f"measures has {', '.join(self.measures)}; allowed: none, {{}}, for they need all scores "
                "at once, which this objective never has"
            )
        if isinstance(self.chunks, bool) or not isinstance(self.chunks, int) or self.chunks < 1:
            raise ValueError(f"chunks is {self.chunks!r}; allowed: an integer of at least 1")

    @property
    def reads(self) -> frozenset[str]:
        """What the loss reads of a batch beside its pairs: the arrays that the objective names, such as
        "teacher" and "target", "negatives" that queries list, and "group" in a Task that weighs groups."""
        return frozenset((*self.arrays, "negatives"))

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Any, Any]:
        params, state = variables.split(self.model.init(rng, queries(batch), documents(batch)))
        if self.learn_temperature:
            params["log_temperature"] = jnp.log(self.temperature - self.min_temperature)
        if "bias" in self.arrays:
            params["bias"] = jnp.float32(self.bias)
        if self.lora is not None:
            params["lora"] = self.lora.init(jax.random.fold_in(rng, _LORA), params["model"])
        return params, state

    def variables(self, params: Any, state: Any) -> dict[str, Any]:
        """Returns what the model is applied with."""
        if self.lora is not None:
            params = {**params, "model": self.lora.merged(params["model"], params["lora"])}
        return variables.joined(params, state)

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
        """Expects the arrays of `corpora.batches.contrastive`.

        Raises:
          ValueError: the chunks do not divide the batch, or not into rows for every device; the model has
            sparse layers and the Task no `auxiliary`, or the other way round.
        """
        query_BD, document_ND, sums = self.vectors(params, state, batch, rng, train=train)
        loss, metrics = self.compare(params, query_BD, document_ND, batch, rng=rng)
        more, of_sparse = added(self.auxiliary, sums, others)
        if of_sparse:
            metrics = {**metrics, **of_sparse, "contrastive": loss}
            loss = loss + more
        return loss, (state, metrics)

    def compare(
        self,
        params: Any,
        query_BD: jax.Array,
        document_ND: jax.Array,
        batch: Batch,
        weights_B: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the objective's loss of vectors that are there, and its metrics.

        Args:
          params: of the Task, for a temperature and a bias that are learned.
          query_BD: of a batch.
          document_ND: likewise.
          batch: theirs.
          weights_B: how much each query counts in the mean; None for 1 each.
          rng: a key, for an objective that draws; the one that `vectors` was given will do.

        Raises:
          ValueError: there are weights, and the objective takes none; or it draws, and there is no key.
        """
        if weights_B is not None and "weights" not in self.arrays:
            raise ValueError(f"{self.objective} takes no weights; allowed here: an objective that does")
        temperature = self.current_temperature(params)
        drawn = None if rng is None else jax.random.fold_in(rng, _OBJECTIVE)
        handed = arrays.given(self.arrays, batch, temperature, weights_B, bias=params.get("bias"), rng=drawn)
        loss, metrics = self.objective(query_BD, document_ND, **handed)
        measured = self._measure(query_BD, document_ND, batch) if self.measures else {}
        return loss, {**metrics, **measured, "temperature": temperature}

    def survey(self, params: Any, state: Any, batch: Batch, rng: jax.Array) -> Any:
        """Returns the sums that `loss` comes to from the same arguments in training."""
        return self.vectors(params, state, batch, rng, train=True)[2]

    def vectors(
        self, params: Any, state: Any, batch: Batch, rng: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, dict[str, dict[str, jax.Array]]]:
        """Returns the vectors of queries [B, D] and documents [N, D], and the sums of sparse layers by the
        place of their tower."""
        variables = self.variables(params, state)
        listed = batch["document_rows"].shape[1]

        def encode(batch, rng):
            return self.model.apply(
                variables,
                queries(batch),
                documents(batch),
                train=train,
                rngs=streams(rng),
                method="with_sums",
            )

        if self.chunks == 1:
            query_BD, document_ND, *sums = encode(batch, rng)
            return query_BD, document_ND, self._by_place(*sums)

        read = {f"{side}_{name}" for side in ("query", "document") for name in _FIELDS}
        chunk_of = chunked({name: batch[name] for name in sorted(read)}, self.chunks)

        def encode_chunk(number):
            return encode(chunk_of(number), jax.random.fold_in(rng, number))

        # In a loop the compiler merges nothing, and the barrier against that costs time.
        checkpointed = jax.checkpoint(encode_chunk, prevent_cse=False)
        query_MRD, document_MRD, *sums = jax.lax.map(checkpointed, jnp.arange(self.chunks))
        of_layers = lambda group: jax.vmap(lambda x_MR: in_order(x_MR, group), in_axes=1)
        sums = [jax.tree.map(of_layers(n), side) for n, side in zip((1, listed), sums, strict=True)]
        return in_order(query_MRD, 1), in_order(document_MRD, listed), self._by_place(*sums)

    def _by_place(self, query: Mapping, document: Mapping) -> dict[str, dict[str, jax.Array]]:
        """The sums of either side, [Y, B, ...] and [Y, N, ...], with domains, by the tower's place."""
        sides = {"query": (query, QUERY), "document": (document, DOCUMENT)}
        found = {
            place: {**sums, "domains": jnp.full(sums["tokens"].shape[1], side, jnp.int32)}
            for place, (sums, side) in sides.items()
            if sums
        }
        if self.model.query is not self.model.document or not found:
            return found
        return {"query": {name: _joined(x, found["document"][name]) for name, x in found["query"].items()}}

    def current_temperature(self, params: Any) -> jax.Array:
        if not self.learn_temperature:
            return jnp.float32(self.temperature)
        return self.min_temperature + jnp.exp(params["log_temperature"])

    def _measure(self, query_BD: jax.Array, document_ND: jax.Array, batch: Batch) -> Metrics:
        labels_B, where = arrays.given(("labels", "where"), batch, jnp.float32(1)).values()
        scores_BN = jax.lax.stop_gradient(query_BD @ document_ND.T)
        own_BN = (labels_B[:, None] == jnp.arange(scores_BN.shape[1])[None, :]).astype(jnp.int32)
        return {
            f"batch/{name}": measure(scores_BN, own_BN, where=where, tie_rank=own_BN).mean()
            for name, measure in self.measures.items()
        }


def queries(batch: Batch) -> dict[str, jax.Array]:
    """The query side of a batch, each [B, L]."""
    return {name: batch[f"query_{name}"] for name in _FIELDS}


def documents(batch: Batch) -> dict[str, jax.Array]:
    """The document side of a batch, [B, 1 + H, L] flattened to [N, L]."""
    return {name: (x := batch[f"document_{name}"]).reshape(-1, x.shape[-1]) for name in _FIELDS}


def chunked(batch: Batch, chunks: int) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Returns the function of m that gives chunk m of a batch: its rows m, m + M, m + 2 M, ...

    So each device has its own rows in every chunk, where the rows of the batch are split over devices.

    Raises:
      ValueError: M does not divide B, or devices not the rows of a chunk.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else meshes.batch_parts(mesh)
    for name, x in batch.items():
        if x.shape[0] % (chunks * devices):
            times = f" times {devices} devices" if devices > 1 else ""
            raise ValueError(
                f"chunks is {chunks}, which{times} does not divide the {x.shape[0]} rows of {name}"
            )

    def chunk(number: jax.Array) -> dict[str, jax.Array]:
        # A slice at a time: all chunks side by side would be a copy of the batch.
        split = {name: x.reshape(-1, chunks, *x.shape[1:]) for name, x in batch.items()}
        part = {name: jax.lax.dynamic_index_in_dim(x, number, 1, keepdims=False) for name, x in split.items()}
        if devices == 1:
            return part
        return jax.lax.with_sharding_constraint(part, meshes.batch_sharding(mesh))

    return chunk


def in_order(x_MR: jax.Array, group: int) -> jax.Array:
    """Returns the rows [M, R, ...] of chunks as [M R, ...] in the order of the batch; `group` is the rows of
    one query."""
    chunks, rows, *rest = x_MR.shape
    return x_MR.reshape(chunks, rows // group, group, *rest).swapaxes(0, 1).reshape(-1, *rest)


def _joined(query: jax.Array, document: jax.Array) -> jax.Array:
    """Sums of queries and documents, each query before its documents: [Y, B, ...] and [Y, N, ...] make
    [Y, B + N, ...]; domains have no Y."""
    rows = 0 if query.ndim == 1 else 1
    cut = lambda x: x.reshape(*x.shape[:rows], query.shape[rows], -1, *x.shape[rows + 1 :])
    both = jnp.concatenate([cut(query), cut(document)], axis=rows + 1)
    return both.reshape(*both.shape[:rows], -1, *both.shape[rows + 2 :])
