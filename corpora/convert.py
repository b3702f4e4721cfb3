"""Make BEIR folders from the public repositories of two collections.

- `fairytaleqa`: github.com/uci-soe/FairytaleQAData (Xu et al., 2022, "Fantastic Questions and Where
  to Find Them: FairytaleQA"). Apache-2.0.
- `medquad`: github.com/abachaa/MedQuAD (Ben Abacha and Demner-Fushman, 2019, "A Question-Entailment
  Approach to Question Answering"). CC BY 4.0.

Example:
    git clone https://github.com/abachaa/MedQuAD
    python -m corpora.convert medquad MedQuAD collections/medquad
"""

import argparse
import csv
import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from corpora import beir
from corpora.tables import DataError, Document, Judgement, Query, Tables

_FAIRYTALEQA_SPLITS = {"train": "train", "dev": "val", "test": "test"}


def fairytaleqa(source: Path) -> Tables:
    """FairytaleQA: given a question on a story, find the section(s) of it that answer.

    A document is one section of a story, `<story>#<section>`, titled with the story's name; a query
    is a question, `<story>#q<row>`, relevant to each section it was written for. Section numbers can
    repeat in a story (their texts are joined), and so can `question_id` (the row number is used
    instead). Questions without a section stay, unjudged.

    Args:
      source: a checkout; `data-by-train-split/{questions,section-stories}/{train,val,test}` are read.

    Raises:
      DataError: if files or columns are missing.
    """
    data = source / "data-by-train-split"
    sections, titles = {}, {}  # by document id
    queries, qrels = [], {}
    for split, folder in _FAIRYTALEQA_SPLITS.items():
        pairs = {}  # a dict as an ordered set: a row can name a section twice
        stories = _found(data / "section-stories" / folder, "*-story.csv")
        for path in stories:
            story = path.name.removesuffix("-story.csv")
            for section, text in _csv_rows(path, "section", "text"):
                ident = f"{story}#{section.strip()}"
                sections[ident] = _clean(f"{sections.get(ident, '')} {text}")
                titles[ident] = story.replace("-", " ")
            questions = data / "questions" / folder / f"{story}-questions.csv"
            for number, (question, answered_by) in enumerate(
                _csv_rows(questions, "question", "cor_section"), 1
            ):
                ident = f"{story}#q{number}"
                queries.append(Query(ident, _clean(question)))
                for section in answered_by.split(","):
                    if section.strip():
                        pairs[ident, f"{story}#{section.strip()}"] = 1
        qrels[split] = [Judgement(*pair, relevance) for pair, relevance in pairs.items()]
    documents = [Document(ident, titles[ident], text) for ident, text in sections.items()]
    return Tables(documents, queries, qrels)


def medquad(source: Path) -> Tables:
    """MedQuAD: given a medical question, find the answer among those of the NIH's web sites.

    A document is a distinct answer, titled with the focus of its file (no title where several foci
    share the answer). A query is a distinct question, ignoring case; every answer given to it is
    relevant. Both are named `<source>-<file>-<pair>` after their first occurrence. Answers that are
    empty, or only the heading of a section that was not captured (fewer than 5 words, or fewer than
    15 and ending in "?"), are left out. Split by a hash of the first file that asks the question.

    Args:
      source: a checkout; its `<number>_<source>_QA*` folders of XML files are read.

    Raises:
      DataError: if files are missing or not XML.
    """
    answers, foci = {}, {}  # by document id
    documents_by_answer, queries_by_question = {}, {}
    questions, split_by_query = {}, {}  # by query id
    qrels = {"train": {}, "dev": {}, "test": {}}
    for path in _found(source, "*_QA*/*.xml"):
        site = path.parent.name.split("_")[1]
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise DataError(f"{path}:{error.position[0]}: not XML: {error}") from None
        focus = _clean(root.findtext("Focus"))
        for number, pair in enumerate(root.iter("QAPair"), 1):
            question, answer = _clean(pair.findtext("Question")), _clean(pair.findtext("Answer"))
            words = len(answer.split())
            if words < 5 or (words < 15 and answer.endswith("?")):
                continue
            ident = f"{site}-{path.stem}-{number}"
            document = documents_by_answer.setdefault(answer, ident)
            answers[document] = answer
            foci.setdefault(document, set()).add(focus)
            query = queries_by_question.setdefault(question.casefold(), ident)
            questions.setdefault(query, question)
            split = split_by_query.setdefault(query, _medquad_split(f"{site}/{path.name}"))
            qrels[split][query, document] = 1
    return Tables(
        documents=[
            Document(ident, min(foci[ident]) if len(foci[ident]) == 1 else "", answer)
            for ident, answer in answers.items()
        ],
        queries=[Query(ident, question) for ident, question in questions.items()],
        qrels={
            split: [Judgement(*pair, relevance) for pair, relevance in pairs.items()]
            for split, pairs in qrels.items()
        },
    )


def _medquad_split(file: str) -> str:
    bucket = int(hashlib.sha256(file.encode()).hexdigest(), 16) % 100
    return "train" if bucket < 90 else "dev" if bucket < 95 else "test"


# By name: what makes the tables, and the license that goes with them.
COLLECTIONS = {"fairytaleqa": (fairytaleqa, "LICENSE"), "medquad": (medquad, "LICENSE.txt")}


def convert(collection: str, source: Path, out: Path, *, overwrite: bool = False) -> Tables:
    """Writes one of `COLLECTIONS` to `out` in BEIR layout, with its license, and returns its tables.

    Raises:
      DataError: if `source` is not the collection's repository, or `out` holds something and
        `overwrite` is false. Nothing is written then.
    """
    make, license_file = COLLECTIONS[collection]
    if out.exists() and not out.is_dir():
        raise DataError(f"OUT: {out} is not a folder")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise DataError(f"OUT: {out} is not empty; give --overwrite to replace the collection in it")
    if not (source / license_file).is_file():
        raise DataError(f"SOURCE: {source} has no file {license_file}; is it a checkout of {collection}?")
    tables = make(source)
    beir.write(out, tables)
    shutil.copyfile(source / license_file, out / license_file)
    return tables


def _clean(text: str | None) -> str:
    return " ".join((text or "").split())


def _found(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise DataError(f"SOURCE: no file: looked for {folder / pattern}")
    return paths


def _csv_rows(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """Returns the named columns of every row of a CSV file with a header."""
    if not path.is_file():
        raise DataError(f"SOURCE: no file: looked for {path}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = []
        try:
            for row in reader:
                values = tuple(row.get(column) for column in columns)
                if None in values:
                    missing = columns[values.index(None)]
                    raise DataError(f"{path}:{reader.line_num}: field {missing!r} is missing")
                rows.append(values)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error}") from None
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m corpora.convert",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("collection", choices=COLLECTIONS)
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a checkout of the public repository")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace the collection in OUT")
    args = parser.parse_args(argv)
    try:
        tables = convert(args.collection, args.source, args.out, overwrite=args.overwrite)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {len(tables.documents):,} documents, {len(tables.queries):,} queries")
    for split, judgements in tables.qrels.items():
        judged = len({judgement.query_id for judgement in judgements})
        print(f"  {split}: {judged:,} queries, {len(judgements):,} judgements")
    return 0


if __name__ == "__main__":
    sys.exit(main())
