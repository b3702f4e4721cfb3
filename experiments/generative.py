"""How a generative retriever's experiment is put together from its config; a config names `Experiment` as its
`family`.

The fields of such a config, besides those of experiments.opening:

    data        spec of a collection, such as corpora.sources.beir_folder.load
    text        see experiments.generative_settings.Text
    docids      which ids documents have, see experiments.generative_settings.Docids
    indexing    what is mapped to them, see experiments.generative_settings.Indexing
    batch       see experiments.settings.Rows
    task        spec of the Task, such as generative_retrieval.task.SequenceToSequence, with its model. It may
                have a method `batches`, see training.task.Task. A model that has also the methods of
                dual_encoder.towers.DualEncoder is evaluated as a dual encoder besides
    plan        optional: for programs that read no data, see experiments.generative_settings.Plan
    evaluation  see experiments.generative_settings.Evaluation
    paper       optional: what a paper reports, see experiments.collected
"""

import functools
import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from corpora import batches, tokens
from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from corpora.mixture_order import MixtureOrder
from corpora.tables import DataError
from eval import measures, results, runs
from eval.trec import replacing
from experiments import generative_docids, generative_evaluation, generative_search, opening, settings
from experiments.cli import UsageError
from experiments.generative_settings import Docids, Evaluation, Indexing, Text
from experiments.live_documents import live
from experiments.settings import Rows
from generative_retrieval import docids as ids
from generative_retrieval import indexing
from generative_retrieval.batch_search import BatchSearch
from generative_retrieval.indexing import Examples, Source
from training import checkpoints, distributed, loop, mesh
from training.build import build, fill
from training.profiling import Profile
from training.task import TrainState

FIELDS = (
    "seed", "data", "tokenizer", "text", "docids", "indexing", "batch", "task", "optimizer", "mesh",
    "init_from", "schedule", "evaluation",
)  # fmt: skip


INDEXING_FILE = "indexing.json"


class Experiment:
    """A config's objects. Texts are tokenized, and documents given ids, when they are first asked for.

    Documents that config.docids.removed names are never found.

    Args:
      config: as a plain dict.
      run_dir: where the tokenizer, docids, checkpoints and results go.

    Raises:
      SpecError, UsageError, DataError: what a config names does not exist or is malformed.
    """

    searching = generative_search.SEARCHING

    def __init__(self, config: Mapping[str, Any], run_dir: Path):
        opening.check_fields(config, FIELDS)
        self.config, self.run_dir = config, run_dir
        # Everything that a config can get wrong comes before the first slow step.
        self.task = build(config["task"], "config.task")
        if not all(hasattr(getattr(self.task, "model", None), name) for name in ("text_size", "docid_size")):
            raise UsageError(
                f"config.task is {config['task'].get('name')!r}; allowed: a Task whose model spells docids, "
                "such as generative_retrieval.task.SequenceToSequence"
            )
        self.text = fill(Text, config["text"], "config.text")
        self.docids_spec = fill(Docids, build(config["docids"], "config.docids"), "config.docids")
        self.indexing = fill(Indexing, build(config["indexing"], "config.indexing"), "config.indexing")
        if self.indexing.replay and not self.docids_spec.extends:
            raise UsageError(
                f"config.indexing.replay is {self.indexing.replay}; allowed: 0, as config.docids.extends is "
                "''"
            )
        self.batch = fill(Rows, config["batch"], "config.batch")
        self.evaluation = settings.evaluation(config["evaluation"], "config.evaluation", Evaluation)
        self.training = opening.training(
            config,
            run_dir,
            rows=self.batch.batch_size,
            measured=[
                f"dev/{part}{name}"
                for part in ("", *(("earlier/", "added/", "both/") if self.docids_spec.extends else ()))
                for name in self.evaluation.dev_measures
            ],
            said_by="config.evaluation.dev_measures",
        )
        self._tokenizer_spec = build(config["tokenizer"], "config.tokenizer")
        with distributed.leader_first("preparing the data"):
            self.dataset: Dataset = build(config["data"], "config.data")
        print(self.dataset.summary(), flush=True)
        for split in (self.evaluation.train_split, self.evaluation.dev_split, self.evaluation.test_split):
            self.dataset.split(split)
        self.live_N = live(self.dataset.doc_ids, removed=self.docids_spec.removed)

    @functools.cached_property
    def pairs(self) -> batches.Pairs:
        return batches.training_pairs(self.dataset, self.evaluation.train_split)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        size = ("config.task: the vocab_size of the model's text embedding", self.task.model.text_size)
        return opening.tokenizer(self.run_dir, self._tokenizer_spec, self._training_texts, [size])

    @functools.cached_property
    def docids(self) -> ids.Docids:
        return generative_docids.of(self)

    @functools.cached_property
    def added_rows(self) -> np.ndarray:
        """The documents whose ids were added to those of another run, int32; none where all are new."""
        earlier = generative_docids.earlier_documents(self)
        return np.arange(earlier or len(self.dataset.doc_ids), len(self.dataset.doc_ids), dtype=np.int32)

    def source(self, rows: np.ndarray) -> Source:
        """Returns what examples of some documents are made of."""
        return Source(
            documents=self.dataset.documents,
            rows=np.asarray(rows, np.int32),
            doc_ids=self.dataset.doc_ids,
            queries=[self.dataset.queries[self.pairs.query_ids[row]] for row in self.pairs.query_rows],
            query_documents=self.pairs.document_rows,
            tokenizer=self.tokenizer,
            length=self.text.length,
        )

    def examples(self) -> tuple[dict[str, Examples], list[float] | None]:
        """Returns what is mapped to docids, and the weights of a batch; None for shares by size."""
        of, count = self.indexing, len(self.dataset.doc_ids)
        parts = {"": (np.arange(count), 1.0)}
        if self.docids_spec.extends:
            parts = {
                " (added)": (self.added_rows, 1 - of.replay),
                " (earlier)": (np.arange(count - len(self.added_rows)), of.replay),
            }
        found, weights = {}, {}
        for part, (rows, share) in parts.items():
            if not share:
                continue
            source = self.source(rows)
            made = {name: _made(name, make, source) for name, make in of.sources.items()}
            made = {name: examples for name, examples in made.items() if len(examples)}
            if not made:
                raise UsageError(f"config.indexing.sources have no example of the documents{part}")
            own = {name: float(of.weights.get(name, len(examples))) for name, examples in made.items()}
            for name, examples in made.items():
                found[f"{name}{part}"] = examples
                weights[f"{name}{part}"] = share * own[name] / sum(own.values())
        by_size = not of.weights and len(parts) == 1
        return found, None if by_size else [weights[name] for name in found]

    def query_tokens(self, query_ids: list[str]) -> tokens.TokenTable:
        return self.text_tokens([self.dataset.queries[query_id] for query_id in query_ids])

    def text_tokens(self, texts: list[str]) -> tokens.TokenTable:
        """Returns texts as the model reads queries."""
        pairs = (("", text) for text in texts)
        return tokens.tokenize(self.tokenizer, pairs, max_length=self.text.length, special_tokens=False)

    def train(self, *, profile: Profile | None = None) -> TrainState:
        """Trains from the run's latest checkpoint, or from the start; see training.loop.train.

        Raises:
          UsageError: a source of config.indexing gives other examples than when the run was trained.
        """
        of, seed, symbols_NT = self.training, self.config["seed"], self.docids.symbols_NT
        examples, weights = self.examples()
        _keep(self.run_dir, examples)
        order = MixtureOrder([len(made) for made in examples.values()], seed, weights=weights)
        shares = zip(examples.items(), order.shares, strict=True)
        print(
            "indexing: "
            + ", ".join(f"{name} {len(made):,} ({share:.0%} of the rows)" for (name, made), share in shares),
            flush=True,
        )
        given = list(examples.values())
        make_batch = indexing.batches(given, symbols_NT, length=self.text.length, seed=seed)
        if hasattr(self.task, "batches"):  # it wants more of a batch
            make_batch = self.task.batches(
                make_batch,
                source=self.source(np.arange(len(self.dataset.doc_ids))),
                examples=given,
                symbols_NT=symbols_NT,
                seed=seed,
            )

        def stream(first_step: int, in_use: Mapping[str, np.ndarray]) -> Iterator[Mapping[str, np.ndarray]]:
            del in_use  # there are no tables
            return batches.stream(
                make_batch,
                order,
                batch_size=self.batch.batch_size,
                first_step=first_step,
                total_steps=of.schedule.total_steps,
                part=mesh.held_rows(self.batch.batch_size, of.mesh),
            )

        first = np.cumsum([0, *map(len, given)])

        def describe(step: int) -> str:
            rows = order.rows(step, self.batch.batch_size)[:5]
            places = np.searchsorted(first, rows, side="right") - 1
            documents = [
                given[at].document_rows[row - first[at]] for at, row in zip(places, rows, strict=True)
            ]
            names = ", ".join(self.dataset.doc_ids[document] for document in documents)
            return f"documents {names}{', ...' if self.batch.batch_size > 5 else ''}"

        return loop.train(
            self.task,
            of.optimizer,
            stream,
            of.schedule,
            self.run_dir,
            seed=seed,
            mesh=of.mesh,
            layout=of.layout,
            evaluators=[self.dev_evaluator()],
            initialize=opening.initialize(of.init_from, self.run_dir),
            describe_batch=describe,
            profile=profile,
        )

    def evaluate(self) -> results.Results:
        """See experiments.generative_evaluation."""
        return generative_evaluation.evaluate(self)

    def dev_evaluator(self) -> loop.Evaluator:
        """Returns the evaluator of `dev/<measure>`: documents that dev queries find, of all there are.

        Where documents were added also `dev/earlier/<measure>` and `dev/added/<measure>`, of the queries for
        either, and `dev/both/<measure>`, the mean of the two. If none is for an added document, the
        beginnings of the added ones stand in as queries, which tell only whether they are learned.
        """
        judged, most = self.dataset.split(self.evaluation.dev_split), self.evaluation.dev_queries
        of_parts = self.by_documents(judged) if self.docids_spec.extends else {"": list(judged)}
        parts = {part: query_ids[: most or None] for part, query_ids in of_parts.items()}
        parts[""] = [query_id for query_ids in parts.values() for query_id in query_ids]
        qrels = {query_id: judged[query_id] for query_id in parts[""]}
        texts = {query_id: self.dataset.queries[query_id] for query_id in qrels}
        if not parts.get("added", True):
            beginnings = self._beginnings(most or 200)
            parts["added"] = list(beginnings)
            texts |= {query_id: text for query_id, (_, text) in beginnings.items()}
            qrels = qrels | {query_id: {doc_id: 1} for query_id, (doc_id, _) in beginnings.items()}
        names, table = self.evaluation.dev_measures, self.text_tokens(list(texts.values()))

        def evaluate(state: TrainState) -> Iterator[tuple[str, float]]:
            variables = self.task.variables(state.eval_params, state.state)
            run = self.search(variables, list(texts), table, title="searching dev")
            per_query, means = measures.evaluate(qrels, run, names), {}
            for part, query_ids in parts.items():
                for name in names:
                    values = [per_query[name][query_id] for query_id in query_ids]
                    means[part, name] = statistics.fmean(values) if values else 0.0
                    yield f"dev/{part}{'/' if part else ''}{name}", means[part, name]
            if len(parts) > 1:
                for name in names:
                    yield f"dev/both/{name}", (means["earlier", name] + means["added", name]) / 2

        return evaluate

    def by_documents(self, qrels: measures.Qrels) -> dict[str, list[str]]:
        """Returns which queries are for an added document, "added", and which for none, "earlier"."""
        added = {self.dataset.doc_ids[row] for row in self.added_rows}
        parts: dict[str, list[str]] = {"earlier": [], "added": []}
        for query_id, judged in qrels.items():
            for_added = any(grade > 0 and doc_id in added for doc_id, grade in judged.items())
            parts["added" if for_added else "earlier"].append(query_id)
        return parts

    def _beginnings(self, count: int) -> dict[str, tuple[str, str]]:
        """Ids that no query has, each with the id and the text of an added document."""
        read = self.dataset.documents.read(self.added_rows[:count].tolist())
        return {f"beginning of {d.doc_id}": (d.doc_id, f"{d.title} {d.text}") for d in read}

    @functools.cached_property
    def retriever(self) -> BatchSearch:
        """Searches as the config's `evaluation` says."""
        return self.make_retriever()

    def make_retriever(self, **changed: Any) -> BatchSearch:
        """Returns a retriever with other settings than those of the config; on its mesh, unless another is
        given."""
        of = self.evaluation
        given = dict(
            mesh=self.training.mesh,
            layout=self.training.layout,
            batch_size=of.batch_size,
            length=self.text.length,
            beams=of.beams,
            results=of.results + of.drop_same_id,
            length_penalty=of.length_penalty,
            search=of.search,
            allow_batch_dependence=True,  # what is evaluated says so, see opening.warn_of_leaks
        )
        return BatchSearch(self.task.model, self.docids, **(given | changed))

    def search(
        self,
        variables: Any,
        query_ids: list[str],
        table: tokens.TokenTable,
        *,
        live_N: np.ndarray | None = None,
        title: str = "",
    ) -> measures.Run:
        """Returns what queries find with the given variables, which are on the mesh; of all documents, or of
        those that `live_N` says, bool; never of those that were removed."""
        if self.live_N is not None:
            live_N = self.live_N if live_N is None else live_N & self.live_N
        found = self.retriever(variables, table, live_SN=live_N, title=title)
        return runs.from_rows(
            query_ids, self.dataset.doc_ids, *found, drop_same_id=self.evaluation.drop_same_id
        )

    def without_removed(self, run: measures.Run) -> measures.Run:
        """Returns a run of another system without the documents that were removed."""
        if self.live_N is None:
            return run
        removed = {self.dataset.doc_ids[row] for row in np.flatnonzero(~self.live_N)}
        return {
            query_id: {doc_id: score for doc_id, score in hits.items() if doc_id not in removed}
            for query_id, hits in run.items()
        }

    def _training_texts(self) -> Iterator[str]:
        for document in self.dataset.documents:
            yield document.title
            yield document.text
        for query_id in self.pairs.query_ids:
            yield self.dataset.queries[query_id]


def _made(name: str, make: Callable[[Source], Examples], source: Source) -> Examples:
    try:
        return make(source)
    except DataError:  # which names the file
        raise
    except ValueError as error:
        raise UsageError(f"config.indexing.sources.{name}: {error}") from error


def _keep(run_dir: Path, examples: Mapping[str, Examples]) -> None:
    """Writes what each source gives to indexing.json; where the run is trained, compares it with that.

    A config names files that may change between two starts, and with them the order of all examples.

    Raises:
      UsageError: a source gives other examples than before, or than in the first process.
    """
    file, now = run_dir / INDEXING_FILE, {name: _digest(made) for name, made in examples.items()}
    with distributed.leader_first("comparing what is indexed"):
        if distributed.is_leader():
            trained = checkpoints.steps(run_dir / "checkpoints" / checkpoints.LATEST)
            if not (trained and file.exists()):
                with replacing(file) as opened:
                    json.dump(now, opened, indent=1)
        try:
            before = dict(json.loads(file.read_text()))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{file} is damaged: {error}") from None
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UsageError(
                f"config.indexing.sources: {name} gives other examples than when the run was trained, see "
                f"{file}; restore the file that it reads or train anew into another --workdir"
            )


def _digest(examples: Examples) -> list[int | str]:
    """Returns how many examples there are, and a hash of them."""
    table, found = examples.tokens, hashlib.sha256()
    for array, kind in ((table.tokens, "<i4"), (table.offsets, "<i8"), (examples.document_rows, "<i4")):
        found.update(np.ascontiguousarray(array, kind))
    return [len(examples), found.hexdigest()]
