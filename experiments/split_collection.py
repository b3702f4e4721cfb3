"""Split a collection in BEIR layout in two: one to train on first, and documents that come later.

For trying how an index takes documents that are added to it. The later documents are drawn at random. No
training query of the collection is for them: queries that are, in any split, judge them alone, those of train
as queries of test.

Example:
  python -m experiments.split_collection --folder=medquad --documents=1000 --to=data/medquad
writes data/medquad/first and data/medquad/later.
"""

from pathlib import Path

import numpy as np

from corpora import beir
from corpora.sources import beir_folder
from corpora.tables import Judgement, Tables
from experiments import cli
from experiments.cli import UsageError


def main() -> None:
    """Entry point of `retrievax-split-collection`."""
    command = cli.Command(__doc__)
    folder = command.string("folder", None, "The collection: a path, or a name under RETRIEVAX_DATA.")
    documents = command.integer("documents", 1000, "How many come later.", lower_bound=1)
    seed = command.integer("seed", 0, "Of the draw.", lower_bound=0)
    to = command.string("to", None, "Where first/ and later/ are written.")

    def write() -> None:
        for flag in (folder, to):
            if not flag.value:
                raise UsageError(f"--{flag.name} is missing")
        whole = beir.read(beir_folder.find(folder.value), allow_missing=True)
        with cli.expecting(ValueError):
            parts = split(whole, documents.value, seed.value)
        for name, tables in zip(("first", "later"), parts, strict=True):
            beir.write(Path(to.value) / name, tables)
            qrels = ", ".join(
                f"{split} {len({j.query_id for j in rows}):,}" for split, rows in tables.qrels.items()
            )
            print(f"{Path(to.value) / name}: {len(tables.documents):,} documents; queries: {qrels}")
        print(
            "train whatever helps (a query generator, a dual encoder, a teacher) on first/ alone: training "
            "questions of the whole collection are test questions of later/"
        )

    command.run(write)


def split(whole: Tables, documents: int, seed: int) -> tuple[Tables, Tables]:
    """Returns what there is at first, and what comes later: so many documents drawn at random.

    Queries with documents on both sides stay on both, each with its own, unless they are of train: then they
    are on the first side alone.

    Raises:
      ValueError: there are not more documents than that, or a side has no judged query left.
    """
    count = len(whole.documents)
    if not 0 < documents < count:
        raise ValueError(f"--documents is {documents}; allowed: 1 to {count - 1}")
    rows = np.random.default_rng(seed).permutation(count)[:documents]
    late = {whole.documents[row].doc_id for row in rows}
    judged: tuple[dict[str, list[Judgement]], ...] = ({}, {})
    for name, judgements in whole.qrels.items():
        for judgement in judgements:
            if judgement.doc_id not in late:
                judged[0].setdefault(name, []).append(judgement)
    trained = {judgement.query_id for judgement in judged[0].get("train", ())}
    for name, judgements in whole.qrels.items():
        for judgement in judgements:
            if judgement.doc_id in late and judgement.query_id not in trained:
                judged[1].setdefault("test" if name == "train" else name, []).append(judgement)
    for side, qrels in zip(("first", "later"), judged, strict=True):
        if not qrels:
            raise ValueError(f"no query judges a document of {side}; allowed: --documents or --seed others")
    sides = []
    for is_late, qrels in zip((False, True), judged, strict=True):
        asked = {judgement.query_id for judgements in qrels.values() for judgement in judgements}
        sides.append(
            Tables(
                [document for document in whole.documents if (document.doc_id in late) == is_late],
                [query for query in whole.queries if query.query_id in asked],
                qrels,
            )
        )
    return sides[0], sides[1]


if __name__ == "__main__":
    main()
