"""What ids a collection's documents have in each scheme, or those of a run: lengths, symbols, collisions.

Reads the collection, the tokenizer and, if there is one, the scheme and the vectors of a config's field
`docids`; without it, documents are embedded by TF-IDF. With --workdir the ids of that run alone. The columns:

    mean, longest    symbols of an id, END included
    symbols          ids are spelled with, END included: what a model's docid embedding needs at least
    collisions       share of the documents whose code another one has too, before numbers part them; of a
                     semantic id the code is the path of clusters
    file             docids.npz, with what later documents need (codebooks, a tree)
    nodes, trie      of the trie that decoding is constrained by, and its size on the device
    seconds          to give the ids, clustering and tokenizing included, embedding not

Examples:
  python -m experiments.docids --config=configs/generative_retrieval/medquad.py
  python -m experiments.docids --config=configs/dual_encoder/fairytaleqa.py --json
  python -m experiments.docids --workdir=runs/gr
"""

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from corpora import tokenizer as tokenizers
from corpora.dataset import Dataset
from eval.results import markdown_table
from experiments import cli, generative_docids, opening
from experiments.generative_settings import Docids as DocidsSettings
from generative_retrieval import trie, vectors
from generative_retrieval.docids import Docids, DocidsError, Documents, Scheme
from generative_retrieval.schemes.atomic import Atomic
from generative_retrieval.schemes.by_position import ByPosition
from generative_retrieval.schemes.naive import Naive
from generative_retrieval.schemes.quantized import Product, Residual
from generative_retrieval.schemes.random_codes import RandomCodes
from generative_retrieval.schemes.semantic import Semantic
from generative_retrieval.schemes.text import FirstTokens, Titles, Urls
from generative_retrieval.trained import DOCIDS_FILE
from training.build import build, fill
from training.roofline import bytes_for_people

# Trees as in DSI and in NCI, and codes of about as many symbols.
SCHEMES: tuple[Scheme, ...] = (
    Atomic(),
    Naive(base=10),
    Naive(base=1000),
    RandomCodes(length=4, base=30),
    Semantic(branching=10, leaf_size=100),
    Semantic(branching=30, leaf_size=30),
    ByPosition(Semantic(branching=30, leaf_size=30)),
    Residual(steps=3, k=30),
    Product(parts=4, k=30),
    Titles(length=12),
    Urls(length=12),
    FirstTokens(length=8),
)
_WIDTH = 128  # of TF-IDF vectors


def main() -> None:
    """Entry point of `retrievax-docids`."""
    command = cli.Command(__doc__)
    config = command.config("configs/generative_retrieval/medquad.py")
    workdir = command.string("workdir", None, "A run of a generative retriever, whose ids are shown.")
    as_json = command.boolean("json", "Print JSON instead of a table.")

    def run() -> None:
        if workdir.value is None:
            found = of_collection(config.value.to_dict())
        else:
            with cli.expecting(DocidsError):
                found = [row(Docids.load(Path(workdir.value) / DOCIDS_FILE))]
        print(json.dumps(found, indent=1) if as_json.value else "\n".join(lines(found)))

    command.run(run)


def of_collection(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each of `SCHEMES`, and first one for the config's own scheme if it names another.

    Args:
      config: an experiment's of any family that has a collection and a tokenizer.

    Raises:
      SpecError, UsageError, DataError: what it names is missing or malformed.
    """
    opening.check_fields(config, ("seed", "data", "tokenizer"))
    own = None
    if "docids" in config:
        own = fill(DocidsSettings, build(config["docids"], "config.docids"), "config.docids")
    schemes = SCHEMES if own is None or own.scheme in SCHEMES else (own.scheme, *SCHEMES)
    dataset = build(config["data"], "config.data")
    if not isinstance(dataset, Dataset):
        raise cli.UsageError(
            "config.data is no collection; allowed: one such as corpora.sources.beir_folder.load"
        )
    documents = Documents(dataset.doc_ids, *dataset.titles_and_texts())
    default = functools.partial(vectors.latent, width=min(_WIDTH, len(documents) - 1))
    embed = own.vectors if own is not None and own.vectors is not None else default
    with cli.expecting(ValueError):
        tokenizer = _tokenizer(config, dataset)
        vectors_ND = embed(documents, fitted=len(documents))
    documents = dataclasses.replace(documents, vectors_ND=vectors_ND, tokenizer=tokenizer)
    return [_of_scheme(scheme, documents, config["seed"]) for scheme in schemes]


def row(docids: Docids) -> dict[str, Any]:
    """Returns what the table says of docids, as JSON has it: counts, bytes."""
    made = trie.build(docids.symbols_NT, docids.size)
    with tempfile.TemporaryDirectory() as folder:
        docids.save(Path(folder) / DOCIDS_FILE)
        size = (Path(folder) / DOCIDS_FILE).stat().st_size
    own = generative_docids.summary(docids)
    return own | {
        "documents": len(docids),
        "file_bytes": size,
        "trie_nodes": made.symbols.shape[0],
        "trie_bytes": made.nbytes,
    }


def lines(found: list[dict[str, Any]]) -> list[str]:
    """Returns the table as lines, and below it why a scheme gave no ids."""
    head = ("scheme", "mean", "longest", "symbols", "collisions", "file", "nodes", "trie", "seconds")
    rows = [
        (
            of.get("settings", of["scheme"]),
            f"{of['mean_length']:.2f}",
            str(of["longest"]),
            f"{of['symbols']:,}",
            f"{of['collisions']:.1%}",
            bytes_for_people(of["file_bytes"]),
            f"{of['trie_nodes']:,}",
            bytes_for_people(of["trie_bytes"]),
            f"{of['seconds']:.2f}" if "seconds" in of else "-",
        )
        for of in found
        if "refused" not in of
    ]
    refused = [f"no ids by {of['settings']}: {of['refused']}" for of in found if "refused" in of]
    return [*markdown_table(head, rows).splitlines(), *refused]


def _of_scheme(scheme: Scheme, documents: Documents, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    try:
        docids = scheme.assign(documents, seed)
    except ValueError as error:  # such as fewer documents than clusters
        return {"settings": repr(scheme), "refused": str(error)}
    seconds = time.monotonic() - started
    return {"settings": repr(scheme), "seconds": round(seconds, 3)} | row(docids)


def _tokenizer(config: Mapping[str, Any], dataset: Dataset) -> tokenizers.Tokenizer:
    given = build(config["tokenizer"], "config.tokenizer")
    return given if isinstance(given, tokenizers.Tokenizer) else given(_texts(dataset))


def _texts(dataset: Dataset) -> Iterator[str]:
    for document in dataset.documents:
        yield document.title
        yield document.text


if __name__ == "__main__":
    main()
