"""Fields of a retrieval experiment's config, `batch`, `init_from`, `evaluation`, checked where they enter."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from corpora.batches import Pairs
from dual_encoder.negative_filters import Mined
from dual_encoder.retriever import FUSION_DEPTH
from eval import measures
from experiments.cli import UsageError
from index import funnel as funnels
from index import lexical
from training.build import build, check_arguments, fill
from training.paths import check_expressions


@dataclasses.dataclass(frozen=True)
class Batch:
    """Attributes:
    batch_size: queries of a step, over all processes and devices.
    neighbors: consecutive examples that stay together, see corpora.batches.Order.
    negatives_per_query: listed hard negatives of each query, drawn anew at each step.
    negatives: who mines them, `(dataset, pairs) -> Mined`, such as dual_encoder.negatives.bm25; None for
      none.
    refresh: who mines them anew with the model in training, such as dual_encoder.negatives.nearest.
    refresh_every: steps between that; 0 for never.
    margin_bins: negatives are drawn evenly over so many bins of the teacher's scores, see
      corpora.margin_bins; 0 for all alike.
    pairs: who makes the training examples of those of the split, `(dataset, pairs) -> Pairs`, such as
      dual_encoder.lexical_imitation.bm25_pairs; None for those that are judged relevant.
    teacher: who scores each query's documents for an objective that imitates it, see `dual_encoder.scorers`;
      None for none.
    targets: who gives a vector that each query's is to be like, for an objective that asks for it:
      `(dataset, query_ids) -> float32 [queries, D]`, see `dual_encoder.targets`; None for none.
    groups: who tells which group each example is of, such as its topic: `(dataset, pairs) -> int32
      [examples]`; None for none.
    group_rows: rows of one group that stand together in a batch, see corpora.grouped_order; with
      batch_size all of a batch are of one group. 0 leaves the order alone.
    group_weights: of each group, in any unit, how much of the training it is; () for its share of the
      examples. Needs group_rows.
    length_window: batches whose examples are sorted by length among them, for less padding; 0 for none.
      It changes which documents meet as in-batch negatives, see corpora.batches.Order.
    """

    batch_size: int
    neighbors: int = 1
    negatives_per_query: int = 0
    negatives: Callable[..., Mined] | None = None
    refresh: Callable[..., Mined] | None = None
    refresh_every: int = 0
    length_window: int = 0
    pairs: Callable[..., Pairs] | None = None
    teacher: Callable[..., np.ndarray] | None = None
    targets: Callable[..., np.ndarray] | None = None
    groups: Callable[..., np.ndarray] | None = None
    group_rows: int = 0
    group_weights: Sequence[float] = ()
    margin_bins: int = 0

    def __post_init__(self):
        for field, least in (
            ("batch_size", 1),
            ("neighbors", 1),
            ("negatives_per_query", 0),
            ("refresh_every", 0),
            ("length_window", 0),
            ("group_rows", 0),
            ("margin_bins", 0),
        ):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {least}")
        if self.length_window and self.neighbors > 1:
            raise ValueError(
                f"length_window is {self.length_window} and neighbors {self.neighbors}; allowed: a "
                "length_window above 0 only with neighbors 1, for it parts them"
            )
        if (self.negatives is not None) != bool(self.negatives_per_query):
            raise ValueError(
                f"negatives_per_query is {self.negatives_per_query} and negatives is "
                f"{'not ' if self.negatives is None else ''}given; hard negatives need both"
            )
        for field in ("negatives", "refresh"):
            count = getattr(getattr(self, field), "keywords", {}).get("count", self.negatives_per_query)
            if getattr(self, field) is not None and count < self.negatives_per_query:
                raise ValueError(
                    f"{field}.count is {count}; it must be at least negatives_per_query, "
                    f"{self.negatives_per_query}"
                )
        if (self.refresh is not None) != bool(self.refresh_every):
            raise ValueError(
                f"refresh_every is {self.refresh_every} and refresh is "
                f"{'not ' if self.refresh is None else ''}given; refreshed negatives need both"
            )
        if self.margin_bins and (self.teacher is None or self.negatives is None):
            raise ValueError(
                f"margin_bins is {self.margin_bins}; allowed: 0, or with negatives and a teacher of theirs"
            )
        if self.group_rows and self.groups is None:
            raise ValueError(f"group_rows is {self.group_rows} and groups is not given; allowed: both")
        if self.group_weights and not self.group_rows:
            raise ValueError("group_weights is given and group_rows is 0; allowed: 1 or more")
        if any(not weight >= 0 for weight in self.group_weights):
            raise ValueError(f"group_weights is {tuple(self.group_weights)}; allowed: numbers of 0 or more")
        if self.group_rows and self.batch_size % self.group_rows:
            raise ValueError(
                f"group_rows is {self.group_rows}; allowed: a divisor of batch_size, {self.batch_size}"
            )
        if self.group_rows and (self.neighbors > 1 or self.length_window):
            raise ValueError(
                f"group_rows is {self.group_rows}, neighbors {self.neighbors} and length_window "
                f"{self.length_window}; allowed with group_rows: 1 and 0, for it orders the examples itself"
            )
        if self.refresh is not None and self.negatives is None:
            raise ValueError("refresh is given and negatives is not; the first steps need some too")


def check_read(batch: Batch, reads: Collection[str]) -> None:
    """Raises UsageError where a field would be computed and nobody reads it.

    Args:
      batch: the field `batch` of a config.
      reads: of the Task, see dual_encoder.task.Contrastive.
    """
    naming = "an objective of config.task that names {}, such as dual_encoder.objectives.{}"
    for field, name, read, reader in (
        ("negatives", "negatives", False, "a config.task that compares queries with listed documents"),
        (
            "teacher",
            "teacher",
            batch.margin_bins,
            naming.format("teacher", "distillation.distilled") + ", or margin_bins",
        ),
        ("targets", "target", False, naming.format("target", "imitation.imitated")),
        (
            "groups",
            "group",
            batch.group_rows,
            "group_rows, or a config.task that reads groups, such as dual_encoder.robust.Tasks",
        ),
    ):
        if getattr(batch, field) is not None and not read and name not in reads:
            raise UsageError(f"config.batch.{field} is given and nothing reads it; it needs {reader}")


@dataclasses.dataclass(frozen=True)
class Rows:
    """The field `batch` where there is nothing but its size to say.

    Attributes:
      batch_size: rows of a step, over all processes and devices; each is a text and what is made of it.
    """

    batch_size: int

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """Attributes:
    run: a run directory whose best parameters are taken; "" for none.
    rules: (regular expression, replacement) pairs for its parameters' paths, see training.warm_start.
    folder: a published encoder's folder in place of a run, see dual_encoder.pretrained; "" for none. Without
      rules its parameters go to every place where its tower, or its encoder, stands.
    """

    run: str = ""
    rules: Sequence[Sequence[Any]] = ()
    folder: str = ""

    def __post_init__(self):
        if self.run and self.folder:
            raise ValueError(f"run is {self.run!r} and folder {self.folder!r}; allowed: one of them")
        for rule in self.rules:
            pair = isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)
            several = pair and isinstance(rule[1], (tuple, list)) and all(isinstance(r, str) for r in rule[1])
            if not pair or not (several or isinstance(rule[1], str | None)):
                raise ValueError(f"rules has {rule!r}; allowed: (regular expression, replacement) pairs")
        check_expressions([pattern for pattern, _ in self.rules], "config.init_from.rules")


@dataclasses.dataclass(frozen=True)
class Bm25Grid:
    """What BM25 is tuned over on dev: every `k1`, `b` and `title_weight` with every one of `analyzers`."""

    k1: Sequence[float]
    b: Sequence[float]
    title_weight: Sequence[float]
    analyzers: Mapping[str, Any]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not getattr(self, field.name):
                raise ValueError(f"{field.name} is empty; at least one is needed")
        for setting in self.settings():
            lexical.check_settings(**setting._asdict())

    def settings(self) -> list[lexical.Setting]:
        return lexical.grid(self.k1, self.b, self.title_weight)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Attributes:
    train_split, dev_split, test_split: names of splits of the collection; where nothing is trained, the first
      two may be "", for none.
    measures: of the test set, see eval.measures.
    dev_measures: of each evaluation during training.
    tune_measure: what BM25's settings and the fusion's weight are chosen by, on dev.
    fusion_weights: of the dual encoder, to choose from; 0 to 1.
    run_depth: documents of a query that runs/*.trec keep.
    bm25_plain: arguments of lexical.BM25.build for the untuned baseline.
    bm25_grid: see `Bm25Grid`.
    drop_same_id: whether no system may find the document of a query's own id, as in ArguAna, see
      eval.runs.from_rows.
    widths: numbers of a vector that are searched by too, ascending, each a system; see experiments.widths.
    funnel: (width, documents kept) pairs of a search by more and more numbers, see index.funnel; () for none.
    """

    train_split: str
    dev_split: str
    test_split: str
    measures: Sequence[str]
    dev_measures: Sequence[str]
    tune_measure: str
    fusion_weights: Sequence[float]
    run_depth: int
    bm25_plain: Mapping[str, Any]
    bm25_grid: Bm25Grid
    drop_same_id: bool = False
    widths: Sequence[int] = ()
    funnel: Sequence[Sequence[int]] = ()

    def __post_init__(self):
        if any(a >= b for a, b in itertools.pairwise((0, *self.widths))):
            raise ValueError(f"widths is {self.widths}; allowed: ascending positive numbers")
        if any(len(stage) != 2 for stage in self.funnel):
            raise ValueError(f"funnel is {self.funnel}; allowed: (width, documents kept) pairs")
        if self.funnel:
            funnels.check([funnels.Stage(*stage) for stage in self.funnel])
        for field in ("measures", "dev_measures", "fusion_weights"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty; at least one is needed")
        for name in (*self.measures, *self.dev_measures, self.tune_measure):
            measures.depth(name)
        for weight in self.fusion_weights:
            if not 0 <= weight <= 1:
                raise ValueError(f"fusion_weights has {weight}; allowed: 0 to 1")
        plain = dict(self.bm25_plain)
        check_arguments(lexical.BM25.build, plain, "bm25_plain")
        lexical.check_settings(k1=plain.get("k1", 1.5), b=plain.get("b", 0.75), title_weight=1.0)
        if self.run_depth < 1:
            raise ValueError(f"run_depth is {self.run_depth}; it must be at least 1")


def evaluation(spec: Mapping[str, Any], where: str, kind: type[Evaluation] = Evaluation) -> Evaluation:
    """Returns the settings that a config's `evaluation` describes, of a `kind` with its family's own fields.
    Raises SpecError naming the field."""
    fields = build(spec, where)
    if isinstance(fields, Mapping) and "bm25_grid" in fields:
        fields = {**fields, "bm25_grid": fill(Bm25Grid, fields["bm25_grid"], f"{where}.bm25_grid")}
    return fill(kind, fields, where)


def refuse_widths(evaluation: Evaluation, searched: str) -> None:
    """Raises ValueError where cut vectors are to be searched, and there are none."""
    if evaluation.widths or evaluation.funnel:
        raise ValueError(
            f"widths is {evaluation.widths} and funnel {evaluation.funnel}; allowed: (), for {searched}"
        )


def deepest(names: Sequence[str]) -> int:
    """How many documents a query's ranking must have for these measures; an uncut one gets FUSION_DEPTH."""
    return max(measures.depth(name) or FUSION_DEPTH for name in names)
