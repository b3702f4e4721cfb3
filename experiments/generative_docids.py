"""The docids of a generative retriever's run: given once, kept in docids.npz, and read from then on.

docids.json says of which documents they are, so that ids never come to stand for others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from experiments.cli import UsageError
from generative_retrieval.docids import Docids, DocidsError, Documents
from generative_retrieval.trained import DOCIDS_FILE
from training import distributed, mesh

if TYPE_CHECKING:
    from experiments.generative import Experiment

ABOUT_FILE = "docids.json"


def of(experiment: Experiment) -> Docids:
    """Returns the docids of a run; the first process gives them where they are not there yet.

    Raises:
      UsageError: they are of other documents, or the model has no room for them or for their symbols.
      DataError: the model is to begin with what is of other documents.
      SpecError: the scheme refuses its settings.
    """
    run_dir, doc_ids, model = experiment.run_dir, experiment.dataset.doc_ids, experiment.task.model
    with distributed.leader_first("giving documents their ids"):
        if not (run_dir / DOCIDS_FILE).exists():
            if hasattr(model, "check"):
                model.check(doc_ids)
            made = _give(experiment)
            about = json.dumps(_of_documents(doc_ids) | summary(made), indent=1)
            (run_dir / ABOUT_FILE).write_text(about + "\n")
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
      UsageError: it has none, or they are of other documents than these.
    """
    file = Path(run_dir) / DOCIDS_FILE
    made, about = _load(file), read_about(run_dir)
    if any(about.get(name) != value for name, value in _of_documents(doc_ids).items()):
        raise UsageError(
            f"{file} has the ids of {about.get('documents'):,} other documents than the {len(doc_ids):,} of "
            "config.data, which changed since; train anew into another --workdir"
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
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise UsageError(f"no docids in {run_dir}: {file} does not exist") from None
    except ValueError as error:
        raise UsageError(f"{file} is damaged: {error}") from None


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
    fitted = earlier_documents(experiment) or len(whole)
    return dataclasses.replace(whole, vectors_ND=spec.vectors(whole, fitted=fitted))


def _give(experiment: Experiment) -> Docids:
    spec, seed = experiment.docids_spec, experiment.config["seed"]
    earlier = earlier_documents(experiment)
    whole = documents(experiment)
    try:
        if not earlier:
            return spec.scheme.assign(whole, seed)
        return spec.scheme.extend(_load(Path(spec.extends) / DOCIDS_FILE), _behind(whole, earlier), seed)
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


def _digest(doc_ids: Sequence[str]) -> str:
    found = hashlib.sha256()
    for doc_id in doc_ids:
        found.update(f"{doc_id}\0".encode())
    return found.hexdigest()
