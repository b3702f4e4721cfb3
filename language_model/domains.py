"""Several collections as the text of one language model: each is a domain, and some documents are held out.

    data = dict(
        name="language_model.domains.held_out",
        collections=dict(
            stories=dict(name="corpora.sources.beir_folder.load", folder="fairytaleqa"),
            medicine=dict(name="corpora.sources.beir_folder.load", folder="medquad"),
        ),
        dev=0.02,
        test=0.02,
    )

Letters: B rows of a batch, L length, N chunks.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from corpora import text_chunks
from corpora.batches import Batch
from corpora.dataset import Dataset
from corpora.sources.hashes import split_off
from corpora.tables import DataError, Document
from corpora.text_chunks import ChunkTable
from corpora.tokenizer import Tokenizer
from training.progress import Progress

SPLITS = ("train", "dev", "test")
ALL = "all"  # domains together, where figures are named by domain


@dataclasses.dataclass(frozen=True)
class Domains:
    """Attributes:
    collections: by domain, in the order of their names; a domain's number is its place here.
    rows: by domain and split, the documents of each, int64.
    weights: by domain, what its share of a batch is in proportion to; {} for as many chunks as it has.
    """

    collections: Mapping[str, Dataset]
    rows: Mapping[str, Mapping[str, np.ndarray]]
    weights: Mapping[str, float]

    @property
    def names(self) -> list[str]:
        return list(self.collections)

    @property
    def corpus_hash(self) -> str:
        """Of all documents, and of which are held out: what a figure on dev or test depends on."""
        hashes = {
            domain: [dataset.corpus_hash, *(self.rows[domain][split].tolist() for split in SPLITS[1:])]
            for domain, dataset in self.collections.items()
        }
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def documents(self, split: str, domain: str) -> Iterator[Document]:
        """Yields the documents of a split, in the order of the collection."""
        dataset, rows = self.collections[domain], self.rows[domain][split]
        for start in range(0, len(rows), 10_000):
            yield from dataset.documents.read(rows[start : start + 10_000])

    def document_ids(self, split: str) -> list[str]:
        """Returns `domain/doc_id` of a split's documents, all domains in turn."""
        return [
            f"{domain}/{dataset.doc_ids[row]}"
            for domain, dataset in self.collections.items()
            for row in self.rows[domain][split]
        ]

    def summary(self) -> str:
        """Returns a line for each domain: documents by split, and the corpus hash."""
        return "\n".join(
            f"{domain}: {', '.join(f'{split} {len(rows):,}' for split, rows in self.rows[domain].items())} "
            f"documents; corpus {dataset.corpus_hash[:12]}"
            for domain, dataset in self.collections.items()
        )


def held_out(
    collections: Mapping[str, Dataset],
    *,
    dev: float = 0.02,
    test: float = 0.02,
    weights: Mapping[str, float] | None = None,
) -> Domains:
    """Puts collections together.

    Documents are held out by the hash of their id, those of each domain apart: a share of `dev` and one of
    `test`, of each at least one document. What a document's chunks are plays no part.

    Args:
      collections: by domain.
      dev, test: shares of the documents, above 0.
      weights: by domain, of the rows of a batch; None or {} where a domain's share is that of its chunks.

    Raises:
      ValueError: no collection, a domain's name that means something else, a share or a weight out of range,
        weights of other domains.
      DataError: a collection has too few documents.
    """
    if not collections:
        raise ValueError("collections is empty; at least one is needed")
    for domain in collections:
        if domain in ("", ALL):
            raise ValueError(f"collections has a domain {domain!r}; allowed: a name other than {ALL!r}")
    for field, share in (("dev", dev), ("test", test)):
        if not 0 < share < 1:
            raise ValueError(f"{field} is {share}; allowed: above 0 and below 1")
    weights = dict(weights or {})
    if weights and weights.keys() != collections.keys():
        raise ValueError(
            f"weights has {', '.join(weights)}; allowed: one for each of {', '.join(collections)}, or none"
        )
    for domain, weight in weights.items():
        if not (0 <= weight < float("inf")):
            raise ValueError(f"weights.{domain} is {weight}; allowed: 0 or more")
    if weights and not sum(weights.values()) > 0:
        raise ValueError("weights are all 0; allowed: at least one above 0")
    rows = {}
    for domain, dataset in collections.items():
        if not isinstance(dataset, Dataset):
            raise ValueError(f"collections.{domain} is {dataset!r}; allowed: a collection, see docs")
        if len(dataset.doc_ids) < len(SPLITS):
            raise DataError(f"data: {domain} has {len(dataset.doc_ids)} documents; at least 3 are needed")
        split_of = split_off(dataset.doc_ids, {"dev": dev, "test": test})
        assigned = np.array([SPLITS.index(split_of[doc_id]) for doc_id in dataset.doc_ids])
        rows[domain] = {split: np.flatnonzero(assigned == i) for i, split in enumerate(SPLITS)}
    ordered = sorted(collections)
    return Domains({d: collections[d] for d in ordered}, {d: rows[d] for d in ordered}, weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of one split, those of a domain one after the other.

    Attributes:
      table: their tokens; its documents are numbered as `Domains.document_ids` lists them.
      domains: int32 [N], the domain of each chunk, ascending.
      sizes: int64 [domains], chunks of each domain.
    """

    table: ChunkTable
    domains: np.ndarray
    sizes: np.ndarray


def chunks(of: Domains, split: str, tokenizer: Tokenizer, length: int) -> Chunks:
    """Tokenizes a split and cuts it into chunks of at most `length` tokens.

    Raises:
      DataError: a domain has no text in this split.
    """
    counts = [len(of.rows[domain][split]) for domain in of.names]
    progress = Progress(sum(counts), unit="document", title=f"tokenizing {split}")
    done = 0

    def counted() -> Iterator[Document]:
        nonlocal done
        for domain in of.names:
            for document in of.documents(split, domain):
                yield document
                done += 1
                progress.update(done)

    table = text_chunks.cut(tokenizer, counted(), length)
    progress.close()
    domain_of_document = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    domains = domain_of_document[table.document_of_chunk]
    sizes = np.bincount(domains, minlength=len(counts))
    for domain, size in zip(of.names, sizes, strict=True):
        if not size:
            raise DataError(f"data: the documents of {domain} in split {split} have no text")
    return Chunks(table, domains, sizes)


def batches(of: Chunks, length: int) -> Callable[..., Batch]:
    """Returns the function `(chunks [B] of the whole batch, step, part=all) -> batch of that part`.

    The batch has `tokens`, `targets` and `mask`, int32 [B, L], see `corpora.text_chunks`, and `domains`,
    int32 [B].
    """

    def batch(chunks_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)) -> Batch:
        del step  # nothing is drawn
        rows = np.asarray(chunks_B)[part]
        return {**of.table.rectangle(rows, length), "domains": of.domains[rows]}

    return batch
