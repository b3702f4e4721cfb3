"""The docids of a generative retriever's run: given once, kept in docids.npz, and read from then on.

docids.json says of which documents they are, and has a hash of them, so that ids never come to stand for
other documents than those that the model was trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from corpora.tables import DataError
from experiments.cli import UsageError
from generative_retrieval.docids import Docids, DocidsError, Documents
from generative_retrieval.trained import DOCIDS_FILE
from training import checkpoints, distributed, mesh
from training.build import SpecError

if TYPE_CHECKING:
    from experiments.generative import Experiment

ABOUT_FILE = "docids.json"
_SYMBOLS_HASH = "symbols_sha256"


def of(experiment: Experiment) -> Docids:
    """Returns the docids of a run; the first process gives them where they are not there yet.

    Raises:
      UsageError: they are of other documents, or missing where the model is trained, or the model has no
        room for them or for their symbols.
      DataError: the model is to begin with what is of other documents.
      SpecError: the scheme refuses its settings.
    """
    run_dir, doc_ids, model = experiment.run_dir, experiment.dataset.doc_ids, experiment.task.model
    with distributed.leader_first("giving documents their ids"):
        if not (run_dir / DOCIDS_FILE).exists():
            if checkpoints.steps(run_dir / "checkpoints" / checkpoints.LATEST):
                # New ones may differ from those that the model has learned, as libraries change.
                raise UsageError(
                    f"{run_dir / DOCIDS_FILE} is missing but the run is trained; restore it or train anew "
                    "into another --workdir"
                )
            if hasattr(model, "check"):
                model.check(doc_ids)
            made = _give(experiment)
            about = _of_documents(doc_ids) | {"fitted": fitted_documents(experiment)}
            about |= {_SYMBOLS_HASH: _symbols_hash(made)} | summary(made)
            (run_dir / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n")
            made.save(run_dir / DOCIDS_FILE)
        made = load(run_dir, doc_ids)
    size, documents = model.docid_size, getattr(model, "documents", len(made))
    if documents < len(made):
        raise UsageError(
            f"config.task: documents of the model is {documents}, but {len(made)} have docids; allowed: "
            f"{len(made)} or more, with as many fewer of `spare`"
        )
    if size < made.size:
        raise UsageError(
            f"config.task: the vocab_size of the model's docid embedding is {size}, but the docids have "
            f"{made.size} symbols; allowed: {made.size} or more"
        )
    print(line(made), flush=True)
    return made


def load(run_dir: str | Path, doc_ids: Sequence[str]) -> Docids:
    """Returns the docids that a run has given.

    Raises:
      UsageError: it has none, or they are of other documents than these, or not those that it gave.
    """
    file = Path(run_dir) / DOCIDS_FILE
    made, about = _load(file), read_about(run_dir)
    if any(about[name] != value for name, value in _of_documents(doc_ids).items()):
        raise UsageError(
            f"{file} has the ids of {about['documents']:,} other documents than the {len(doc_ids):,} of "
            "config.data, which changed since; train anew into another --workdir"
        )
    found = _symbols_hash(made)
    # Runs from before it was kept have no hash.
    if len(made) != about["documents"] or about.get(_SYMBOLS_HASH, found) != found:
        raise UsageError(
            f"{file} has other ids than the run gave, of which {ABOUT_FILE} tells; restore it or train anew "
            "into another --workdir"
        )
    return made


def line(docids: Docids) -> str:
    """Returns one line on the docids of a run."""
    of = summary(docids)
    return (
        f"docids: {of['scheme']}, {len(docids):,} of {of['shortest']} to {of['longest']} symbols below "
        f"{of['symbols']:,}; {of['collisions']:.1%} shared a code before suffixes"
    )


def summary(docids: Docids) -> dict[str, Any]:
    """Returns what results say of docids."""
    lengths = docids.lengths
    return {
        "scheme": docids.scheme,
        "symbols": docids.size,
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "mean_length": round(float(lengths.mean()), 3),
        "collisions": docids.collisions,
    }


def read_about(run_dir: str | Path) -> dict[str, Any]:
    """Returns what docids.json says. Raises UsageError where it is missing or damaged."""
    file = Path(run_dir) / ABOUT_FILE
    try:
        about = json.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"no docids in {run_dir}: {file} does not exist") from None
    except ValueError as error:
        raise UsageError(f"{file} is damaged: {error}") from None
    fields = about if isinstance(about, dict) else {}
    if not (isinstance(fields.get("documents"), int) and isinstance(fields.get("of"), str)):
        raise UsageError(
            f"{file} is damaged: it holds {about!r:.40}; expected `documents`, a number, and `of`, a hash"
        )
    return about


def earlier_documents(experiment: Experiment) -> int:
    """Returns how many documents had ids before, the first ones of the collection; 0 where all are new.

    Raises:
      UsageError: there is no such run, or the collection does not begin with its documents.
    """
    earlier = experiment.docids_spec.extends
    if not earlier:
        return 0
    about, doc_ids = read_about(earlier), experiment.dataset.doc_ids
    count = about["documents"]
    if count >= len(doc_ids) or _digest(doc_ids[:count]) != about["of"]:
        raise UsageError(
            f"config.docids.extends is {earlier!r}, whose {count:,} documents config.data ({len(doc_ids):,}) "
            "does not begin with; allowed: those in their order and more, as corpora.extended.load gives them"
        )
    return count


def fitted_documents(experiment: Experiment) -> int:
    """Returns of how many documents, the first ones, vectors are learned: those that the scheme's own
    clusters are of, however often documents were added since.

    Raises:
      UsageError: what `earlier_documents` raises.
    """
    if not earlier_documents(experiment):
        return len(experiment.dataset.doc_ids)
    about = read_about(experiment.docids_spec.extends)
    return about.get("fitted", about["documents"])


def documents(experiment: Experiment) -> Documents:
    """Returns what a scheme may look at, of all documents."""
    spec, dataset = experiment.docids_spec, experiment.dataset
    titles, texts = dataset.titles_and_texts()
    tokenizer = experiment.tokenizer if spec.scheme.needs_tokenizer else None
    # One process gives ids, so that its own devices are all there are.
    sharding = mesh.batch_sharding(mesh.data_mesh(jax.local_devices()))
    whole = Documents(dataset.doc_ids, titles, texts, tokenizer=tokenizer, sharding=sharding)
    if not spec.scheme.needs_vectors:
        return whole
    vectors_ND = spec.vectors(whole, fitted=fitted_documents(experiment))
    return dataclasses.replace(whole, vectors_ND=vectors_ND)


def _give(experiment: Experiment) -> Docids:
    spec, seed = experiment.docids_spec, experiment.config["seed"]
    earlier = earlier_documents(experiment)
    try:
        whole = documents(experiment)
        if not earlier:
            return spec.scheme.assign(whole, seed)
        before = load(spec.extends, whole.doc_ids[:earlier])
        return spec.scheme.extend(before, _behind(whole, earlier), seed)
    except (DataError, SpecError, UsageError):  # which say where they come from
        raise
    except ValueError as error:
        raise UsageError(f"config.docids: {error}") from error


def _behind(whole: Documents, first: int) -> Documents:
    vectors_ND = None if whole.vectors_ND is None else whole.vectors_ND[first:]
    rest = (whole.doc_ids[first:], whole.titles[first:], whole.texts[first:])
    return Documents(*rest, vectors_ND, whole.tokenizer, whole.sharding)


def _load(file: Path) -> Docids:
    try:
        return Docids.load(file)
    except DocidsError as error:
        raise UsageError(str(error)) from None


def _of_documents(doc_ids: Sequence[str]) -> dict[str, Any]:
    return {"documents": len(doc_ids), "of": _digest(doc_ids)}


def _symbols_hash(docids: Docids) -> str:
    return hashlib.sha256(np.ascontiguousarray(docids.symbols_NT, "<i4")).hexdigest()


def _digest(doc_ids: Sequence[str]) -> str:
    found = hashlib.sha256()
    for doc_id in doc_ids:
        found.update(f"{doc_id}\0".encode())
    return found.hexdigest()
