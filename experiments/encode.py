"""Encode a collection with a trained run into vector files that other programs can read.

By default the documents of the run's own collection, into the run's index, where evaluate and search
find them. A run that was stopped goes on when the same command is given again. Several jobs share
the work if each is given its number; they need nothing but the same file system. The processes of one
job on a cluster, or of experiments.launch, share it by themselves.

Examples:
  python -m experiments.encode --workdir=runs/quickstart
  python -m experiments.encode --workdir=runs/mine --queries=test
  python -m experiments.encode --workdir=runs/mine --folder=PATH --output=vectors/other
  python -m experiments.encode --workdir=runs/mine --process=0 --processes=4 &   # to --process=3
"""

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from corpora.dataset import Dataset
from corpora.sources import beir_folder
from dual_encoder import retriever, vectors
from dual_encoder.trained import Trained
from experiments import cli, run_dirs
from training import distributed
from training.build import build


def main() -> None:
    """Entry point of `retrievax-encode`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run whose dual encoder encodes.")
    folder = command.string("folder", None, "Another collection, in BEIR layout; by default the run's own.")
    queries = command.string("queries", None, "A split whose queries to encode, instead of the documents.")
    output = command.string("output", None, "The folder to write; by default one of the run's.")
    shard_size = command.integer("shard_size", None, "Texts of a file; 16,384 by default.", lower_bound=1)
    batch_size = command.integer("batch_size", 256, "Texts encoded at a time.", lower_bound=1)
    allow = command.boolean(
        "allow_batch_dependence", "Let a text's vector depend on the texts that are encoded with it."
    )
    process = command.integer("process", None, "The number of this job, from 0.", lower_bound=0)
    processes = command.integer("processes", None, "How many jobs share the work.", lower_bound=1)

    def encode() -> None:
        distributed.start()
        number, count = share(process.value, processes.value)
        config = run_dirs.load_config(workdir.value)
        trained = Trained.load(
            workdir.value, config, batch_size=batch_size.value, allow_batch_dependence=allow.value
        )
        dataset = open_collection(config, folder.value)
        print(dataset.summary(), flush=True)
        if output.value is not None:
            into = Path(output.value)
        elif folder.value is None and queries.value is None:
            into = retriever.vectors_folder(workdir.value)
        else:
            parts = [
                folder.value and Path(folder.value).resolve().name,
                queries.value and f"queries-{queries.value}",
            ]
            into = Path(workdir.value) / "vectors" / "-".join(part for part in parts if part)
        write = documents if queries.value is None else functools.partial(queries_of, split=queries.value)
        try:
            missing = write(
                trained, config, dataset, into, shard_size=shard_size.value, process=number, processes=count
            )
        except KeyboardInterrupt:
            print(f"stopped; whole files in {into} are kept, run again to go on", file=sys.stderr)
            raise
        if processes.value is None:
            distributed.wait("encoding")
            missing = 0
        if missing:
            print(f"{into}: this job's share is written; {missing} shards are not, which other jobs have")
        else:
            store = vectors.VectorStore.open(into)
            print(
                f"{into}: {len(store):,} vectors of {len(store.ids):,} texts, {store.manifest['width']} wide"
            )

    command.run(encode)


def share(process: int | None, processes: int | None) -> tuple[int, int]:
    """Returns the number of this job and how many share the work: those given, or the processes of this one.

    Raises:
      UsageError: both of two ways are asked for, or there is no such number.
    """
    if distributed.several() and (process is not None or processes is not None):
        raise cli.UsageError(
            "--process and --processes are given; allowed: neither in a job of several processes, which "
            "share the work by themselves"
        )
    count = processes or jax.process_count()
    number = jax.process_index() if process is None else process
    if number >= count:
        raise cli.UsageError(f"--process is {number}; allowed: 0 to {count - 1}, with --processes={count}")
    return number, count


def open_collection(config: Mapping[str, Any], folder: str | None, *, allow_missing: bool = False) -> Dataset:
    """Returns a run's own collection, or the one in a folder in BEIR layout."""
    if folder is None:
        return build(config["data"], "config.data")
    return beir_folder.load(folder=folder, allow_missing=allow_missing)


def documents(
    trained: Trained, config: Mapping[str, Any], dataset: Dataset, folder: Path, **share: Any
) -> int:
    """Writes the vectors of a collection's documents; see vectors.write for `share`, errors and result."""

    def encode(start: int, stop: int, report):
        return trained.documents(dataset.documents[start:stop], report)

    about = about_documents(trained, config, dataset)
    encoder = trained.encoder
    computed, tokens = encoder.computed, encoder.tokens
    missing = vectors.write(
        folder,
        about,
        dataset.doc_ids,
        trained.width,
        encode,
        title="encoding the corpus",
        shown=encoder.shown,
        **share,
    )
    computed, tokens = encoder.computed - computed, encoder.tokens - tokens
    if computed and distributed.is_leader():
        print(f"{1 - tokens / computed:.1%} of the positions encoded were padding", file=sys.stderr)
    return missing


def queries_of(
    trained: Trained, config: Mapping[str, Any], dataset: Dataset, folder: Path, *, split: str, **share: Any
) -> int:
    """Writes the vectors of a split's queries, as `documents` does."""
    query_ids = list(dataset.split(split))
    texts = [dataset.queries[query_id] for query_id in query_ids]
    texts_hash = hashlib.sha256(json.dumps([query_ids, texts]).encode()).hexdigest()

    def encode(start: int, stop: int, report):
        return trained.queries(texts[start:stop], report)

    about = _about(trained, config, dataset, f"queries of {split}", texts_hash)
    return vectors.write(
        folder, about, query_ids, trained.width, encode, title=f"encoding the {split} queries", **share
    )


def about_documents(trained: Trained, config: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Returns what the vectors of the documents are said to be of, see vectors.write."""
    return _about(trained, config, dataset, "documents", dataset.corpus_hash)


def _about(
    trained: Trained, config: Mapping[str, Any], dataset: Dataset, side: str, texts_hash: str
) -> dict[str, Any]:
    return {
        "config_hash": run_dirs.meta(config)["config_hash"],
        **trained.identity(),
        "collection": dataset.name,
        "side": side,
        "texts_hash": texts_hash,
    }


if __name__ == "__main__":
    main()
