import json
import math

import numpy as np
import pytest

from eval import results

META = {"seed": 0, "versions": {"jax": "0.10.2"}}
SYSTEMS = {
    "bm25": {"ndcg@10": {"q1": 0.5, "q2": 0.25}, "mrr@10": {"q1": 1.0, "q2": 0.0}},
    "dual_encoder": {"ndcg@10": {"q1": 0.5, "q2": 0.35}, "mrr@10": {"q1": 1.0, "q2": 1 / 3}},
}
MEANS = {"bm25": {"ndcg@10": 0.375, "mrr@10": 0.5}, "dual_encoder": {"ndcg@10": 0.425, "mrr@10": 2 / 3}}


def test_the_files(tmp_path):
    run_dir = tmp_path / "runs" / "quickstart"
    results.write(run_dir, META, SYSTEMS)
    summary = json.loads((run_dir / "results.json").read_text())
    assert list(summary) == ["meta", "bm25", "dual_encoder"]
    assert summary == {"meta": META} | {system: pytest.approx(values) for system, values in MEANS.items()}
    assert json.loads((run_dir / "per_query.json").read_text()) == SYSTEMS
    assert sorted(file.name for file in run_dir.iterdir()) == ["per_query.json", "results.json"]


def test_read_gives_back_what_was_written(tmp_path):
    odd = {"a b": {"map": {"\ud800 é\u2028": np.float32(0.5), "q": 1}}}
    results.write(tmp_path, META, SYSTEMS)
    results.write(tmp_path, META, odd)  # in place of the first
    read = results.read(tmp_path)
    assert read == results.Results(
        META, {"a b": {"map": 0.75}}, {"a b": {"map": {"\ud800 é\u2028": 0.5, "q": 1.0}}}
    )


@pytest.mark.parametrize(
    ("meta", "systems", "message"),
    [
        (META, {"meta": SYSTEMS["bm25"]}, 'called "meta"'),
        (META, {"x": {"map": {"q1": math.nan}}}, "'x', 'map', 'q1' is nan; results must be finite"),
        (META, {"x": {"map": {}}}, r"no queries for \['map'\]"),
        ({"loss": math.inf}, SYSTEMS, "meta cannot be written as JSON: Out of range"),
        ({"config": object()}, SYSTEMS, "meta cannot be written as JSON: Object of type object"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_files(tmp_path, meta, systems, message):
    results.write(tmp_path, META, SYSTEMS)
    with pytest.raises(ValueError, match=message):
        results.write(tmp_path, meta, systems)
    assert results.read(tmp_path).per_query == SYSTEMS
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_results(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"results.json does not exist; has this run been evaluated\?"
    ):
        results.read(tmp_path)
    results.write(tmp_path, META, SYSTEMS)
    (tmp_path / "per_query.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"per_query\.json does not exist"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "results.json",
            '{"meta": {},\n "bm25": }',
            "results.json: not the JSON of results: .* line 2 column 10",
        ),
        ("results.json", "[]", "results.json: holds a JSON list"),
        ("results.json", "{}", '"meta" is None, not an object'),
        ("results.json", '{"meta": {}, "x": 1}', r"results.json: \['x'\] is 1, not an object"),
        ("results.json", '{"meta": {}, "x": {"map": "1"}}', r"\['x'\]\['map'\] is '1', not a finite number"),
        ("results.json", '{"meta": {}, "x": {"map": NaN}}', "holds NaN; results must be finite"),
        (
            "results.json",
            '{"meta": {}, "x": {"map": 1e999}}',
            r"\['x'\]\['map'\] is inf, not a finite number",
        ),
        ("results.json", '{"meta": {}}', "differ in the measures of 'bm25'"),
        ("per_query.json", b"\xff", "per_query.json: not the JSON of results: .* can't decode"),
        ("per_query.json", '{"x": {"map": 0.5}}', r"per_query.json: \['x'\]\['map'\] is 0.5, not an object"),
        ("per_query.json", '{"x": 0.5}', r"per_query.json: \['x'\] is 0.5, not an object"),
        ("per_query.json", '{"x": {"map": {}}}', r"per_query.json: .*no queries for \['map'\]"),
    ],
)
def test_malformed_results(tmp_path, file, content, message):
    results.write(tmp_path, META, SYSTEMS)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        results.read(tmp_path)


def test_files_of_different_runs_are_noticed(tmp_path):
    results.write(tmp_path, META, SYSTEMS)
    summary = (tmp_path / "results.json").read_text()
    results.write(tmp_path, META, SYSTEMS | {"bm25": {"ndcg@10": {"q1": 0.9}, "mrr@10": {"q1": 1.0}}})
    (tmp_path / "results.json").write_text(summary)
    with pytest.raises(ValueError, match=r"0.375 for 'bm25', 'ndcg@10', but per_query.json averages to 0.9"):
        results.read(tmp_path)


READ = results.Results(META, MEANS | {"hybrid": {"mrr@10": 0.7}}, {})


def test_table():
    assert results.table(READ).splitlines() == [
        "| system       | ndcg@10 | mrr@10 |",
        "| :----------- | ------: | -----: |",
        "| bm25         |  0.3750 | 0.5000 |",
        "| dual_encoder |  0.4250 | 0.6667 |",
        "| hybrid       |       - | 0.7000 |",
    ]


def test_table_against_a_baseline():
    p_values = {"dual_encoder": {"mrr@10": 0.0312}, "hybrid": {"mrr@10": 1e-5}}
    text = results.table(READ, ["mrr@10"], baseline="bm25", p_values=p_values)
    assert text.splitlines() == [
        "| system       |                    mrr@10 |",
        "| :----------- | ------------------------: |",
        "| bm25         |                    0.5000 |",
        "| dual_encoder | 0.6667 (+33.3%, p=0.0312) |",
        "| hybrid       | 0.7000 (+40.0%, p<0.0001) |",
    ]


def test_table_against_a_baseline_of_zero():
    read = results.Results({}, {"a": {"map": 0.0}, "b": {"map": 0.25}}, {})
    assert "0.2500 (+0.2500)" in results.table(read, baseline="a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["map"]}, r"measure 'map' is not in the results; they have \['ndcg@10', 'mrr@10'\]"),
        ({"baseline": "bm52"}, r"baseline 'bm52' is not in the results; they have \['bm25'"),
        ({"p_values": {}}, "differences from a baseline"),
    ],
)
def test_bad_tables(options, message):
    with pytest.raises(ValueError, match=message):
        results.table(READ, **options)


def test_markdown_table():
    assert results.markdown_table(["a|b", "k"], [["x", "12345"]]) == (
        "| a\\|b |     k |\n"
        "| :--- | ----: |\n"
        "| x    | 12345 |"
    )  # fmt: skip
    assert results.markdown_table(["system"], []) == "| system |\n| :----- |"
    with pytest.raises(ValueError, match=r"row \['x'\] has 1 cells; the header has 2"):
        results.markdown_table(["a", "b"], [["x"]])
