"""Tests of corpora.convert on tiny source trees that have the quirks of the real ones."""

import csv
import subprocess
import sys

import pytest

from corpora import beir, convert
from corpora.tables import DataError, Document, Judgement, Query

LONG = "this answer has at least five words"


@pytest.fixture
def fairytale_source(tmp_path):
    """Two stories: one with repeated numbers and a byte-order mark, one in each other split."""
    source = tmp_path / "FairytaleQAData"
    data = source / "data-by-train-split"

    def write(kind, split, name, header, *rows):
        path = data / kind / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8-sig" if name.startswith("snow") else "utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    story, questions = ["section", "text"], ["question_id", "question", "cor_section"]
    write("section-stories", "train", "snow-man-story.csv", story,
          ["1", "It  is\ncold.\n"], ["5", "First five,"], [" 5 ", "second five."])  # fmt: skip
    write("questions", "train", "snow-man-questions.csv", questions,
          ["1", "How is  it?", "1"], ["1", "Who, then?", "5, 1,5,"], ["2", "Unanswered?", ""])  # fmt: skip
    for split, name in (("val", "tin-box"), ("test", "fox")):
        write("section-stories", split, f"{name}-story.csv", story, ["1", f"Of the {name}."])
        write("questions", split, f"{name}-questions.csv", questions, ["1", "Of whom?", "1"])
    (source / "LICENSE").write_text("Apache")
    return source


def test_fairytaleqa_joins_repeated_sections_and_numbers_questions_by_row(fairytale_source):
    tables = convert.fairytaleqa(fairytale_source)
    assert tables.documents == [
        Document("snow-man#1", "snow man", "It is cold."),
        Document("snow-man#5", "snow man", "First five, second five."),
        Document("tin-box#1", "tin box", "Of the tin-box."),
        Document("fox#1", "fox", "Of the fox."),
    ]
    assert tables.queries == [
        Query("snow-man#q1", "How is it?"),
        Query("snow-man#q2", "Who, then?"),  # question_id 1 again
        Query("snow-man#q3", "Unanswered?"),
        Query("tin-box#q1", "Of whom?"),
        Query("fox#q1", "Of whom?"),
    ]
    assert tables.qrels == {
        "train": [
            Judgement("snow-man#q1", "snow-man#1", 1),
            Judgement("snow-man#q2", "snow-man#5", 1),  # "5, 1,5," names it twice
            Judgement("snow-man#q2", "snow-man#1", 1),
        ],
        "dev": [Judgement("tin-box#q1", "tin-box#1", 1)],
        "test": [Judgement("fox#q1", "fox#1", 1)],
    }


def test_fairytaleqa_names_what_is_missing(fairytale_source):
    questions = fairytale_source / "data-by-train-split/questions/test/fox-questions.csv"
    questions.write_text("question,section\nWho?,1\n")
    with pytest.raises(DataError, match=r"fox-questions.csv:2: field 'cor_section' is missing"):
        convert.fairytaleqa(fairytale_source)
    questions.write_bytes(b"question,cor_section\n\xe9,1\n")
    with pytest.raises(DataError, match=r"fox-questions.csv: not UTF-8"):
        convert.fairytaleqa(fairytale_source)
    questions.unlink()
    with pytest.raises(DataError, match=r"looked for .*fox-questions.csv"):
        convert.fairytaleqa(fairytale_source)


# sha256("<source>/<file>") modulo 100: GARD/anemia.xml 69, GARD/lupus.xml 94, NIDDK/flu.xml 97.
FILE_OF = {"train": "anemia", "dev": "lupus", "test": "flu"}


def medquad_file(source, folder, name, focus, *pairs):
    path = source / folder / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f"<QAPair><Question>{q}</Question><Answer>{a}</Answer></QAPair>" for q, a in pairs)
    path.write_text(f"<Document><Focus>{focus}</Focus><QAPairs>{body}</QAPairs></Document>", encoding="utf-8")


@pytest.fixture
def medquad_source(tmp_path):
    source = tmp_path / "MedQuAD"
    medquad_file(
        source, "4_GARD_QA", FILE_OF["train"], "  The\n Flu ",
        ("What is Flu?", f" {LONG}  of flu\n"),
        ("What causes it?", f"{LONG} shared"),
        ("Too short?", "only four words here"),
        ("A heading?", "is this one a heading of the section below or not?"),
        ("Nothing?", ""),
        ("A long one?", "is this " + "very " * 12 + "long?"),
    )  # fmt: skip
    medquad_file(
        source, "4_GARD_QA", FILE_OF["dev"], "Gout",
        ("WHAT IS FLU?", f"{LONG} of gout"),
        ("What of gout?", f"{LONG} shared"),
    )  # fmt: skip
    medquad_file(
        source, "5_NIDDK_QA_extra", FILE_OF["test"], "Mumps",
        ("What of mumps?", f"{LONG} of mumps"),
        ("Twice?", f"{LONG} of mumps"),
        ("Twice?", f"{LONG} of mumps"),
    )  # fmt: skip
    medquad_file(source, "10_Other_QA", "empty", "Nothing", ("What?", ""))
    (source / "LICENSE.txt").write_text("CC BY")
    (source / "readme.txt").write_text("not read")
    return source


def test_medquad_merges_answers_and_questions(medquad_source):
    tables = convert.medquad(medquad_source)
    train, dev, test = (FILE_OF[split] for split in ("train", "dev", "test"))
    assert tables.documents == [
        Document(f"GARD-{train}-1", "The Flu", f"{LONG} of flu"),
        Document(f"GARD-{train}-2", "", f"{LONG} shared"),  # of two foci
        Document(f"GARD-{train}-6", "The Flu", "is this " + "very " * 12 + "long?"),
        Document(f"GARD-{dev}-1", "Gout", f"{LONG} of gout"),
        Document(f"NIDDK-{test}-1", "Mumps", f"{LONG} of mumps"),
    ]
    assert tables.queries == [
        Query(f"GARD-{train}-1", "What is Flu?"),
        Query(f"GARD-{train}-2", "What causes it?"),
        Query(f"GARD-{train}-6", "A long one?"),
        Query(f"GARD-{dev}-2", "What of gout?"),
        Query(f"NIDDK-{test}-1", "What of mumps?"),
        Query(f"NIDDK-{test}-2", "Twice?"),
    ]
    assert tables.qrels == {
        "train": [
            Judgement(f"GARD-{train}-1", f"GARD-{train}-1", 1),
            Judgement(f"GARD-{train}-2", f"GARD-{train}-2", 1),
            Judgement(f"GARD-{train}-6", f"GARD-{train}-6", 1),
            # "WHAT IS FLU?" of the dev file is the training question in other letters.
            Judgement(f"GARD-{train}-1", f"GARD-{dev}-1", 1),
        ],
        "dev": [Judgement(f"GARD-{dev}-2", f"GARD-{train}-2", 1)],
        "test": [
            Judgement(f"NIDDK-{test}-1", f"NIDDK-{test}-1", 1),
            Judgement(f"NIDDK-{test}-2", f"NIDDK-{test}-1", 1),
        ],
    }


def test_medquad_splits_90_5_5_by_hash(tmp_path):
    hashes = {"GARD/flu": 88, "NIDDK/typhus": 90, "GARD/lupus": 94, "NIDDK/flu": 97}
    for file in hashes:
        site, name = file.split("/")
        medquad_file(tmp_path, f"1_{site}_QA", name, file, (f"What of {file}?", f"{LONG} {file}"))
    qrels = convert.medquad(tmp_path).qrels
    assert {split: [row.query_id for row in rows] for split, rows in qrels.items()} == {
        "train": ["GARD-flu-1"],
        "dev": ["GARD-lupus-1", "NIDDK-typhus-1"],
        "test": ["NIDDK-flu-1"],
    }


def test_medquad_names_a_file_that_is_not_xml(medquad_source):
    (medquad_source / "4_GARD_QA" / "bad.xml").write_text("<Document>\n<Focus></Document>")
    with pytest.raises(DataError, match=r"bad.xml:2: not XML"):
        convert.medquad(medquad_source)


def test_program_writes_a_collection_with_its_license(medquad_source, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert.main(["medquad", str(medquad_source), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "5 documents, 6 queries" in printed
    assert "train: 3 queries, 4 judgements" in printed
    assert (out / "LICENSE.txt").read_text() == "CC BY"
    tables = beir.read(out)
    assert tables.documents == convert.medquad(medquad_source).documents
    assert tables.qrels == convert.medquad(medquad_source).qrels


def test_program_overwrites_only_when_told(fairytale_source, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["fairytaleqa", str(fairytale_source), str(out)]
    assert convert.main(arguments) == 0  # an empty folder may be there
    before = (out / "corpus.jsonl").read_bytes()
    assert convert.main(arguments) == 2
    message = capsys.readouterr().err
    assert message == f"error: OUT: {out} is not empty; give --overwrite to replace the collection in it\n"
    assert convert.main([*arguments, "--overwrite"]) == 0
    assert (out / "corpus.jsonl").read_bytes() == before


def test_a_wrong_source_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "LICENSE").write_text("x")
    (tmp_path / "LICENSE.txt").write_text("x")
    for collection, looked_for in {
        "fairytaleqa": "data-by-train-split/section-stories/train/*-story.csv",
        "medquad": "*_QA*/*.xml",
    }.items():
        command = [sys.executable, "-m", "corpora.convert", collection, str(tmp_path), str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == f"error: SOURCE: no file: looked for {tmp_path / looked_for}\n"
        assert not (tmp_path / "out").exists()


def test_a_source_without_license_and_an_out_that_is_a_file_are_refused(medquad_source, tmp_path, capsys):
    assert convert.main(["medquad", str(medquad_source), str(medquad_source / "readme.txt")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert convert.main(["medquad", str(tmp_path), str(tmp_path / "out")]) == 2
    assert f"{tmp_path} has no file LICENSE.txt; is it a checkout of medquad?" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as done:
        convert.main(["--help"])
    assert done.value.code == 0
    assert "python -m corpora.convert medquad MedQuAD collections/medquad" in capsys.readouterr().out
