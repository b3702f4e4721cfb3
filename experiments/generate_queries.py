"""Draw queries for the documents of a collection with a query generator, and keep those that lead back.

By default for the run's own collection, into the run directory. Written are generated.jsonl, all queries, and
those whose document is among the best that BM25 (or the dual encoder of --retriever) finds for them:
queries.jsonl, which the mixtures of generative retrieval read, and qrels.tsv. A run that was stopped goes on
when the same command is given again; with another --keep_top or --retriever it filters what is there anew.
Several jobs share the work if each is given its number; they need nothing but the same file system.

Examples:
  python -m experiments.generate_queries --workdir=runs/qgen
  python -m experiments.generate_queries --workdir=runs/qgen --queries_per_document=20 --output=queries/20
  python -m experiments.generate_queries --workdir=runs/qgen --keep_top=1 --retriever=runs/medquad
  python -m experiments.generate_queries --workdir=runs/qgen --folder=PATH --keep_top=0
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from corpora.tokenizer import TOKENIZER_FILE
from dual_encoder.trained import digest
from experiments import cli, encode, query_generator, round_trip, run_dirs
from generative_retrieval import generated_queries
from generative_retrieval.generated_queries import GeneratedQuery
from generative_retrieval.query_generator import TextSettings
from generative_retrieval.query_sampling import Generator, Sampling, texts
from generative_retrieval.task import smallest_batch
from moe import leakage
from training import distributed, files, mesh, trained
from training.build import fill
from training.progress import Progress

_SHOWN = 5  # documents whose queries are printed
_SEARCHED_AT_ONCE = 2_048  # queries


def main() -> None:
    """Entry point of `retrievax-generate-queries`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/query_generator", "The run of a query generator.")
    folder = command.string("folder", None, "Another collection, in BEIR layout; by default the run's own.")
    output = command.string("output", None, "The folder to write; by default one of the run's.")
    count = command.integer("queries_per_document", 5, "How many are drawn.", lower_bound=1)
    seed = command.integer("seed", 0, "Of the draws.", lower_bound=0)
    default = "by default as the run's config has it for its evaluation."
    temperature = command.number(
        "temperature",
        None,
        f"0 takes the likeliest subword; {default}",
        lower_bound=0.0,
        upper_bound=100.0,
    )
    top_k = command.integer(
        "top_k", None, f"Draw from the k likeliest subwords, 0 for all; {default}", lower_bound=0
    )
    top_p = command.number(
        "top_p",
        None,
        f"Draw from the likeliest subwords that make up p; {default}",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    keep_top = command.integer(
        "keep_top",
        10,
        "Keep a query if its document is among the best so many of a search for it; 0 keeps all.",
        lower_bound=0,
    )
    retriever = command.string("retriever", None, "The dual encoder's run that searches; by default BM25.")
    batch_size = command.integer("batch_size", 64, "Documents at a time.", lower_bound=1)
    block_size = command.integer("block_size", None, "Documents of a block; 1,024 by default.", lower_bound=1)
    allow = command.boolean(
        "allow_batch_dependence", "Draw also where experts make a query depend on the other documents."
    )
    process = command.integer("process", None, "The number of this job, from 0.", lower_bound=0)
    processes = command.integer("processes", None, "How many jobs share the work.", lower_bound=1)

    def generate() -> None:
        distributed.start()
        number, of = encode.share(process.value, processes.value)
        if retriever.value is not None and not keep_top.value:
            raise cli.UsageError(
                "--retriever is given and --keep_top is 0; allowed: 1 or more, to keep by it"
            )
        config = run_dirs.load_config(workdir.value)
        given = dict(temperature=temperature.value, top_k=top_k.value, top_p=top_p.value)
        sampling = sampling_of(config, **given)
        writer = Writer.load(
            workdir.value,
            config,
            sampling,
            queries=count.value,
            seed=seed.value,
            batch_size=batch_size.value,
            allow_batch_dependence=allow.value,
        )
        dataset = encode.open_collection(config, folder.value)
        print(dataset.summary(), flush=True)
        into = Path(output.value or Path(workdir.value) / "queries" / Path(folder.value or "").name)
        search = None
        if retriever.value is not None:  # what it lacks is known before the queries are drawn
            search = round_trip.dual_encoder(retriever.value, dataset)
        try:
            missing = writer.blocks(dataset, into, block_size=block_size.value, process=number, processes=of)
        except KeyboardInterrupt:
            print(f"stopped; whole blocks in {into} are kept, run again to go on", file=sys.stderr)
            raise
        if processes.value is None:
            distributed.wait("generating queries")
            missing = 0
        if missing:
            print(f"{into}: this job's share is written; {missing} blocks are not, which other jobs have")
        elif distributed.is_leader():
            finish(dataset, into, search, keep_top.value)

    command.run(generate)


def sampling_of(config: Mapping[str, Any], **given: float | None) -> Sampling:
    """Returns how queries are drawn: as given, and where that is None as a run's config has it.

    Raises:
      UsageError: a number is out of range, or the config is not that of a query generator.
    """
    fields = config.get("evaluation")
    fields = fields.get("sampling") if isinstance(fields, Mapping) else None
    if not isinstance(fields, Mapping):
        raise cli.UsageError(
            f"--workdir: the run is of {config.get('family')}; allowed: a run of a query generator"
        )
    with cli.expecting(ValueError):
        values = {name: value for name, value in given.items() if value is not None}
        return fill(Sampling, {**fields, **values}, "config.evaluation.sampling")


@dataclasses.dataclass(frozen=True)
class Writer:
    """A trained query generator, and what its queries depend on.

    Attributes:
      generator: draws them.
      variables: of the model, on this process's devices.
      tokenizer: the run's.
      text: how texts become tokens.
      about: all that a document's queries depend on but the document.
    """

    generator: Generator
    variables: Any
    tokenizer: tokenizers.Tokenizer
    text: TextSettings
    about: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        run_dir: str | Path,
        config: Mapping[str, Any],
        sampling: Sampling,
        *,
        queries: int,
        seed: int,
        batch_size: int = 64,
        allow_batch_dependence: bool = False,
    ) -> "Writer":
        """Opens a run's best checkpoint on the devices of this process; see `query_sampling.Generator`.

        Raises:
          UsageError: the run is of another family.
          CheckpointError: it has no checkpoint.
          DependenceError: a query depends on the other documents, and that is not allowed.
        """
        task = query_generator.task_of(config)
        if not allow_batch_dependence:
            leakage.refuse_batch(task.model, "generate", "allow_batch_dependence (--allow_batch_dependence)")
        text = fill(TextSettings, config["text"], "config.text")
        devices = mesh.data_mesh(jax.local_devices())
        step, params, state = trained.on_host(run_dir, task, smallest_batch(task.model))
        variables = jax.device_get(task.variables(params, state))
        file = Path(run_dir) / TOKENIZER_FILE
        about = {
            "step": step,
            "variables": digest(variables),
            "tokenizer": files.digest(file),
            "text": dataclasses.asdict(text),
            "sampling": dataclasses.asdict(sampling),
            "queries_per_document": queries,
            "seed": seed,
        }
        generator = Generator(
            task.model,
            devices,
            fill(mesh.Layout, config["mesh"], "config.mesh"),
            sampling,
            queries=queries,
            document_length=text.document_length,
            query_length=text.query_length,
            seed=seed,
            batch_size=batch_size,
            allow_batch_dependence=allow_batch_dependence,
        )
        return cls(generator, mesh.replicate(variables, devices), tokenizers.load(str(file)), text, about)

    def blocks(self, dataset: Dataset, folder: Path, **share: Any) -> int:
        """Draws the queries of a collection's documents; see `generated_queries.write_blocks` for `share`,
        errors and result."""

        def generate(start: int, stop: int, report: Callable[[int], None]) -> list[list[str]]:
            table = self.text.documents(self.tokenizer, dataset.documents[start:stop])
            made_NKT = self.generator(self.variables, table, np.arange(start, stop), report)
            return texts(self.tokenizer, made_NKT)

        about = {**self.about, "collection": dataset.name, "texts_hash": dataset.corpus_hash}
        return generated_queries.write_blocks(
            folder, about, dataset.doc_ids, generate, title="generating queries", **share
        )


def finish(
    dataset: Dataset, folder: Path, search: round_trip.Search | None, keep_top: int
) -> list[GeneratedQuery]:
    """Writes the files for other programs, prints a few queries, and returns those that are kept.

    Args:
      dataset: the collection.
      folder: where the blocks are.
      search: the retriever; None for BM25.
      keep_top: a query is kept if its document is among so many that it finds; 0 to keep all.
    """
    queries = generated_queries.read_blocks(folder, dataset.doc_ids)
    kept = queries
    if keep_top:
        queries = _ranked(queries, search or round_trip.bm25(dataset), keep_top)
        kept = [query for query in queries if query.rank != round_trip.NONE]
    generated_queries.publish(folder, queries, kept)
    _show(dataset, queries)
    having = len({query.row for query in kept})
    print(f"\n{folder}: {len(queries):,} different queries of {len(dataset.doc_ids):,} documents")
    if keep_top:
        first = sum(query.rank == 1 for query in queries)
        total = max(len(queries), 1)
        print(
            f"{len(kept):,} ({len(kept) / total:.1%}) find their document among the best {keep_top}, "
            f"{first:,} ({first / total:.1%}) first; those are kept, for {having:,} documents"
        )
    print(f"written: {folder}/generated.jsonl, queries.jsonl, qrels.tsv")
    return kept


def _ranked(
    queries: Sequence[GeneratedQuery], search: round_trip.Search, keep_top: int
) -> list[GeneratedQuery]:
    progress = Progress(len(queries), unit="query", title="searching for the documents")
    found = []
    for start in range(0, len(queries), _SEARCHED_AT_ONCE):
        some = queries[start : start + _SEARCHED_AT_ONCE]
        rows_Q = np.array([query.row for query in some])
        ranks_Q = round_trip.ranks(search, [query.text for query in some], rows_Q, keep_top)
        found += [query._replace(rank=int(rank)) for query, rank in zip(some, ranks_Q, strict=True)]
        progress.update(len(found))
    progress.close()
    return found


def _show(dataset: Dataset, queries: Sequence[GeneratedQuery]) -> None:
    count = len(dataset.doc_ids)
    rows = np.linspace(0, count, min(_SHOWN, count), endpoint=False).astype(int).tolist()
    for row in rows:
        document = dataset.documents[row]
        print(f"\n{document.doc_id}  {document.title}")
        for query in queries:
            if query.row == row:
                rank = {-1: "", round_trip.NONE: "not found"}.get(query.rank, f"rank {query.rank}")
                print(f"  {query.text}{f'  ({rank})' if rank else ''}")


if __name__ == "__main__":
    main()
