"""A generative retriever from config to figures: trained, stopped and resumed, evaluated, searched; documents
added to it; errors."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from configs.generative_retrieval import continual, medquad
from corpora import beir
from corpora.mixture_order import MixtureOrder
from corpora.tables import DataError, Document, Judgement, Query, Tables
from dual_encoder.trained import Trained
from eval import results, trec
from experiments import compare, generative_docids, rerank, run_dirs, search
from experiments.cli import UsageError
from experiments.generative import Experiment
from experiments.generative_search import Searcher
from generative_retrieval.docids import Docids
from training import loop
from training.build import SpecError
from training.checkpoints import CheckpointError
from training.interrupts import Interrupted
from training.task import TrainState

WORDS = [f"{a}{b}{c}" for a in "bdgkpt" for b in "aeiou" for c in "lmnrs"]
DOCUMENTS, LATER = 24, 6


def write(folder, first, count, splits):
    """Document i is named by a word, which its queries ask for."""
    rows = range(first, first + count)
    documents = [Document(f"d{i}", WORDS[i], f"{WORDS[i]} {WORDS[-i - 1]} more of it") for i in rows]
    queries = [Query(f"{split}{i}", f"what is {WORDS[i]} {split}") for split in splits for i in rows]
    qrels = {split: [Judgement(f"{split}{i}", f"d{i}", 1) for i in rows] for split in splits}
    beir.write(folder, Tables(documents, queries, qrels, {}))


def config(folder, scheme="naive", **given):
    made = medquad.get_config(
        f"folder={folder},scheme={scheme},steps=12,batch=8,width=32,layers=1,decoder_layers=1,branching=3,vocab=150,length=8"
    )
    made.optimizer.optimizer.learning_rate.peak = 1e-2
    made.schedule.update(eval_every=6, save_every=3, log_every=4)
    made.evaluation.update(beams=4, results=4, batch_size=8, measures=("hits@1", "hits@4", "mrr@4"))
    made.evaluation.update(dev_measures=("hits@4", "mrr@4"), run_depth=4, tune_measure="mrr@4")
    made.schedule.best_measure = "dev/hits@4"
    made.evaluation.bm25_grid.update(k1=(0.9,), b=(0.4,), title_weight=(1.0,))
    made.mesh.axes.data = 1
    made.update_from_flattened_dict(given)
    return made.to_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generative")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        patch.setenv("RETRIEVAX_PROCESSES", "1")
        write(folder / "first", 0, DOCUMENTS, ("train", "dev", "test"))
        write(folder / "later", DOCUMENTS, LATER, ("dev", "test"))
        yield folder


@pytest.fixture(scope="module")
def run_dir(folder):
    experiment = run_dirs.start(folder / "run", config(folder / "first"))
    experiment.train()
    experiment.evaluate()
    return folder / "run"


@pytest.fixture
def program(run_dir, monkeypatch, capsys):
    def program(*arguments, workdir=run_dir):
        monkeypatch.setattr(sys, "argv", ["search", f"--workdir={workdir}", *map(str, arguments)])
        status = 0
        try:
            search.main()
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return program


def metrics(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_it_learns_and_every_result_is_a_document(run_dir):
    losses = [row["loss"] for row in metrics(run_dir) if "loss" in row]
    assert losses[-1] < losses[0] - 0.3
    run = trec.read_run(run_dir / "runs" / "generative.trec")
    assert sorted(run) == sorted(f"test{i}" for i in range(DOCUMENTS))
    for hits in run.values():
        assert len(hits) == 4
        assert set(hits) <= {f"d{i}" for i in range(DOCUMENTS)}
        assert all(score < 0 for score in hits.values())


def test_results_say_what_the_ids_are(run_dir):
    meta = results.read(run_dir).meta
    assert meta["docids"] | {"mean_length": 0} == {
        "scheme": "naive", "symbols": 11, "shortest": 2, "longest": 3, "mean_length": 0, "collisions": 0.0
    }  # fmt: skip
    assert meta["docids"]["mean_length"] == round((10 * 2 + 14 * 3) / 24, 3)
    assert meta["milliseconds_per_query"] > 0
    assert set(results.read(run_dir).means) == {"bm25_plain", "bm25", "generative", "hybrid"}


@pytest.mark.slow
def test_evaluating_again_on_eight_devices_gives_the_same(run_dir):
    before = results.read(run_dir)
    stored = run_dirs.load_config(run_dir)
    stored["mesh"]["axes"] |= {"data": 4, "tensor": 1, "fsdp": 2}
    found = Experiment(stored, run_dir).evaluate()
    assert found.per_query["generative"] == before.per_query["generative"]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same(run_dir, folder, monkeypatch):
    whole = MixtureOrder.rows

    def stopping(self, step, batch_size):
        if step == 8:
            raise KeyboardInterrupt
        return whole(self, step, batch_size)

    monkeypatch.setattr(MixtureOrder, "rows", stopping)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run_dirs.start(folder / "stopped", config(folder / "first")).train()
    assert [path.name for path in (folder / "stopped/checkpoints/latest").glob("[0-9]*")]
    monkeypatch.setattr(MixtureOrder, "rows", whole)
    run_dirs.start(folder / "stopped", config(folder / "first")).train()
    assert metrics(folder / "stopped") == metrics(run_dir)


@pytest.mark.slow
def test_a_query_is_searched_for_among_all_or_some_documents(run_dir, program, tmp_path):
    query = f"--query=what is {WORDS[3]}"

    def found(*arguments):
        status, out, err = program(query, "--json", "--k=24", *arguments)
        assert (status, err) == (0, "")
        shown = json.loads(out)
        assert shown["system"] == "generative"
        return {hit["doc_id"]: hit["score"] for hit in shown["hits"]}

    whole = found()  # as many beams as documents: all of them, best first
    assert list(whole.values()) == sorted(whole.values(), reverse=True)
    assert set(whole) == {f"d{i}" for i in range(DOCUMENTS)}
    first, second = list(whole)[:2]
    (tmp_path / "ids.txt").write_text(f"{first}\n{second}\n")
    without = found(f"--without={tmp_path / 'ids.txt'}")
    assert without == pytest.approx({d: s for d, s in whole.items() if d not in (first, second)}, rel=1e-4)
    only = found(f"--only={tmp_path / 'ids.txt'}")
    assert only == pytest.approx({first: whole[first], second: whole[second]}, rel=1e-4)
    status, _, err = program(query, "--k=2", "--beams=1")
    assert (status, "beams is 1; allowed: 2 or more" in err) == (2, True)
    status, out, _ = program(query, "--k=2")
    assert status == 0
    assert first in out
    assert program("--query=?", "--json")[1].count("doc_id") == 0  # no token, nothing found


def test_what_search_refuses(run_dir, program, tmp_path):
    (tmp_path / "wrong.txt").write_text("d0\n\nd99\n")
    for arguments, message in (
        ([f"--only={tmp_path / 'wrong.txt'}"], 'wrong.txt:3: the collection has no document "d99"'),
        (["--without=/nowhere"], "--without: /nowhere: No such file"),
        (["--system=bm25"], "--system is 'bm25'; "),
    ):
        status, _, err = program("--query=x", *arguments)
        assert status == 2
        assert message in err
    for family, arguments, message in (
        ("language", [], "the run is of experiments.language.Experiment, which finds nothing; allowed"),
        ("contrastive", ["--beams=2"], "--beams is for generative retrievers; "),
        ("generative", ["--adapter=x"], "--adapter is for dual encoders; "),
        ("contrastive", ["--adapter=x", "--system=bm25"], "--adapter is given with --system=bm25"),
    ):
        other = tmp_path / family
        other.mkdir(exist_ok=True)
        (other / "config.json").write_text(json.dumps({"family": f"experiments.{family}.Experiment"}))
        status, _, err = program("--query=x", *arguments, workdir=other)
        assert (status, message in err) == (2, True)


@pytest.mark.slow
def test_a_removed_document_is_found_by_no_system(run_dir, folder):
    """Neither where a run is evaluated nor where it is searched."""
    systems = ("generative", "bm25", "hybrid")
    found = lambda of: [
        {doc_id for hits in trec.read_run(of / "runs" / f"{system}.trec").values() for doc_id in hits}
        for system in systems
    ]
    removed = sorted(set.intersection(*found(run_dir)))[:2]
    assert len(removed) == 2
    copy = folder / "removed"
    shutil.copytree(run_dir, copy)
    (folder / "removed.txt").write_text("\n".join(removed))
    stored = run_dirs.load_config(run_dir)
    stored["docids"]["removed"] = str(folder / "removed.txt")
    (copy / "config.json").write_text(json.dumps(stored))
    run_dirs.reopen(copy).evaluate()
    assert not any(set(removed) & of_system for of_system in found(copy))
    hits = Searcher.load(copy, stored, k=DOCUMENTS).search(f"what is {WORDS[3]}", k=DOCUMENTS)
    assert {hit.doc_id for hit in hits} == {f"d{i}" for i in range(DOCUMENTS)} - set(removed)


def test_a_dual_encoders_program_names_the_family_it_needs(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rerank", f"--workdir={run_dir}", "--run=x"])
    with pytest.raises(SystemExit):
        rerank.main()
    assert capsys.readouterr().err == (
        "error: --workdir: the run is of experiments.generative.Experiment; allowed: a run of a dual encoder "
        "or of a cross-encoder\n"
    )
    with pytest.raises(SpecError, match="allowed: a run of a dual encoder"):
        Trained.load(run_dir, run_dirs.load_config(run_dir))


def test_docids_are_never_those_of_other_documents(run_dir, folder, tmp_path):
    stored = run_dirs.load_config(run_dir)
    stored["data"]["folder"] = str(tmp_path / "other")
    write(tmp_path / "other", 1, DOCUMENTS, ("train", "dev", "test"))
    with pytest.raises(UsageError, match=r"docids\.npz has the ids of 24 other documents"):
        _ = Experiment(stored, run_dir).docids


@pytest.fixture
def given(folder, tmp_path):
    """A run that has given its ids, and what opens it anew."""

    def opened(name="given", **changed):
        (tmp_path / name).mkdir(exist_ok=True)
        return Experiment(config(folder / "first") | changed, tmp_path / name)

    _ = opened().docids
    return tmp_path / "given", opened


def trained(run_dir):
    (run_dir / "checkpoints" / "latest" / "3").mkdir(parents=True)


def test_docids_are_those_that_the_run_gave(given):
    run_dir, opened = given
    made, of = opened().docids, opened().config
    write(run_dir.parent / "more", 0, DOCUMENTS + 1, ("train", "dev", "test"))
    more = dict(
        data=of["data"] | {"folder": str(run_dir.parent / "more")},
        docids=of["docids"] | {"extends": str(run_dir)},
    )
    for other in (made.symbols_NT[::-1], made.symbols_NT[:-1]):
        Docids(other, made.size, made.scheme).save(run_dir / "docids.npz")
        with pytest.raises(UsageError, match=r"docids\.npz has other ids than the run gave"):
            _ = opened().docids
        with pytest.raises(UsageError, match="has other ids than the run gave"):
            _ = opened("extended", **more).docids
    made.save(run_dir / "docids.npz")
    np.testing.assert_array_equal(opened().docids.symbols_NT, made.symbols_NT)


def test_a_trained_run_is_given_no_new_docids(given):
    run_dir, opened = given
    (run_dir / "docids.npz").unlink()
    assert len(opened().docids) == DOCUMENTS  # nothing has learned the lost ones
    trained(run_dir)
    (run_dir / "docids.npz").unlink()
    with pytest.raises(UsageError, match=r"docids\.npz is missing but the run is trained; restore it"):
        _ = opened().docids


@pytest.mark.parametrize("about", ["[]", '{"documents": 24}', '{"documents": "24", "of": "x"}', "{"])
def test_what_is_known_of_docids_may_be_damaged(given, about):
    run_dir, opened = given
    (run_dir / "docids.json").write_text(about)
    with pytest.raises(UsageError, match=r"docids\.json is damaged: "):
        _ = opened().docids


def test_documents_added_twice_are_embedded_as_those_of_the_first_run(folder, tmp_path):
    """And so stand where the first run's clusters are."""
    made = config(folder / "first", "semantic")
    made["docids"]["vectors"]["width"] = 4
    found = []
    for number, run_dir in enumerate((tmp_path / "gr", tmp_path / "gr2", tmp_path / "gr3")):
        run_dir.mkdir()
        if number:
            write(tmp_path / f"more{number}", DOCUMENTS + LATER * (number - 1), LATER, ("dev",))
            made["data"] = dict(
                name="corpora.extended.load", of=made["data"], documents=str(tmp_path / f"more{number}")
            )
            made["docids"] = made["docids"] | {"extends": str(tmp_path / ("gr", "gr2")[number - 1])}
        experiment = Experiment(made, run_dir)
        assert len(experiment.docids) == DOCUMENTS + LATER * number
        assert json.loads((run_dir / "docids.json").read_text())["fitted"] == DOCUMENTS
        found.append(generative_docids.documents(experiment).vectors_ND)
    np.testing.assert_allclose(found[1][:DOCUMENTS], found[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[2][: DOCUMENTS + LATER], found[1], rtol=0, atol=1e-6)


def test_settings_that_only_data_refuses_are_named(folder, tmp_path):
    made = config(folder / "first", "semantic")
    with pytest.raises(UsageError, match=r"config\.docids: width is 128; allowed: 1 to 2\d"):
        _ = Experiment(made, tmp_path).docids
    made = config(folder / "first")
    made["indexing"]["sources"]["spans"] = dict(name="generative_retrieval.indexing.random_spans", span=9)
    with pytest.raises(UsageError, match=r"config\.indexing\.sources\.spans: span is 9; allowed: 1 to 8"):
        Experiment(made, tmp_path).examples()
    spec = dict(name="generative_retrieval.indexing.generated", file="/nowhere")
    made["indexing"]["sources"] = dict(made_up=spec)
    with pytest.raises(DataError, match=r"^/nowhere: No such file"):
        Experiment(made, tmp_path).examples()


def test_a_trained_run_goes_on_only_with_the_examples_that_it_has_seen(given, monkeypatch):
    run_dir, opened = given
    lines = [json.dumps(dict(doc_id=f"d{i}", text=f"which is {WORDS[i]}")) + "\n" for i in range(9)]
    file = run_dir.parent / "generated.jsonl"
    starts = []
    monkeypatch.setattr(loop, "train", lambda *_, **__: starts.append(1))
    of = opened().config["indexing"]
    made_up = dict(name="generative_retrieval.indexing.generated", file=str(file))
    sources = of["sources"] | {"made_up": made_up}
    again = lambda: opened(indexing=of | {"sources": sources}).train()
    for count in (9, 8):  # it may change as long as nothing is learned
        file.write_text("".join(lines[:count]))
        again()
    trained(run_dir)
    again()
    assert len(starts) == 3
    for changed in (lines[:7], [lines[8], *lines[:7]], lines[1:8] + lines[:1]):
        file.write_text("".join(changed))
        with pytest.raises(UsageError, match="sources: made_up gives other examples than when the run was"):
            again()
    file.write_text("".join(lines[:8]))
    sources.pop("queries")
    with pytest.raises(UsageError, match="sources: queries gives other examples"):
        again()
    (run_dir / "indexing.json").write_text("3")
    with pytest.raises(UsageError, match=r"indexing\.json is damaged"):
        again()


@pytest.fixture(scope="module")
def extended(run_dir, folder):
    made = continual.get_config(f"run={run_dir},documents={folder / 'later'},steps=8,batch=8,rate=1e-2")
    made.schedule.best_measure = "dev/both/hits@4"
    experiment = run_dirs.start(folder / "extended", made.to_dict())
    experiment.train()
    experiment.evaluate()
    return folder / "extended"


@pytest.mark.slow
def test_added_documents_get_ids_and_earlier_ones_keep_theirs(run_dir, extended):
    before, after = (Docids.load(path / "docids.npz") for path in (run_dir, extended))
    assert len(after) == DOCUMENTS + LATER
    width = before.symbols_NT.shape[1]
    np.testing.assert_array_equal(after.symbols_NT[:DOCUMENTS, :width], before.symbols_NT)


@pytest.mark.slow
def test_both_kinds_of_queries_are_judged_before_and_after(run_dir, extended):
    read = results.read(extended)
    earlier, added = read.meta["by_documents"]["earlier"], read.meta["by_documents"]["added"]
    assert (earlier["queries"], added["queries"]) == (DOCUMENTS, LATER)
    whole = results.read(run_dir).means["generative"]
    assert earlier["before"] == pytest.approx(whole)  # as it was
    assert added["before"]["hits@4"] == 0.0  # not to be found yet
    assert len(read.per_query["ids_only"]["hits@4"]) == DOCUMENTS + LATER
    both = (
        earlier["queries"] * earlier["generative"]["mrr@4"] + added["queries"] * added["generative"]["mrr@4"]
    )
    assert both / (DOCUMENTS + LATER) == pytest.approx(read.means["generative"]["mrr@4"])
    assert "| added" in (extended / "tables" / "added.md").read_text()
    dev = [row for row in metrics(extended) if "dev/both/hits@4" in row]
    for row in dev:
        assert row["dev/both/hits@4"] == (row["dev/earlier/hits@4"] + row["dev/added/hits@4"]) / 2


@pytest.mark.slow
def test_rows_of_a_batch_are_replayed_as_the_config_says(extended, folder, run_dir):
    experiment = run_dirs.reopen(extended)
    examples, weights = experiment.examples()
    # no training query is for an added document
    assert list(examples) == ["first_tokens (added)", "first_tokens (earlier)", "queries (earlier)"]
    assert weights == [0.5, 0.25, 0.25]
    assert examples["first_tokens (added)"].document_rows.tolist() == list(
        range(DOCUMENTS, DOCUMENTS + LATER)
    )
    made = continual.get_config(f"run={run_dir},documents={folder / 'later'},replay=0").to_dict()
    made["schedule"]["best_measure"] = "dev/hits@4"
    examples, weights = Experiment(made, extended).examples()
    assert (list(examples), weights) == (["first_tokens (added)"], [1.0])


@pytest.mark.slow
def test_a_part_of_dev_has_queries_for_both_kinds_of_documents(extended, monkeypatch):
    experiment = run_dirs.reopen(extended)
    experiment.evaluation = dataclasses.replace(experiment.evaluation, dev_queries=2)
    searched = []
    found = lambda variables, query_ids, table, title: searched.extend(query_ids) or {}
    monkeypatch.setattr(experiment, "search", found)
    state = TrainState(step=0, params={"model": {}}, state={}, opt_state=())
    dict(experiment.dev_evaluator()(state))
    assert searched == ["dev0", "dev1", f"dev{DOCUMENTS}", f"dev{DOCUMENTS + 1}"]


def test_documents_without_queries_stand_for_themselves_on_dev(run_dir, folder, tmp_path):
    rows = [{"_id": "new", "title": "", "text": "sal bem"}, {"_id": "newer", "title": "", "text": "tus"}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = continual.get_config(f"run={run_dir},documents={tmp_path / 'corpus.jsonl'}").to_dict()
    made["schedule"]["best_measure"] = "dev/both/hits@4"
    experiment = Experiment(made, folder / "extended_by_file")
    assert experiment.dataset.doc_ids[DOCUMENTS:] == ["new", "newer"]
    assert list(experiment._beginnings(9).values()) == [("new", " sal bem"), ("newer", " tus")]


def test_extending_refuses_another_collection(run_dir, folder, tmp_path):
    made = continual.get_config(f"run={run_dir},documents={folder / 'later'}").to_dict()
    made["schedule"]["best_measure"] = "dev/hits@4"
    made["data"] = made["data"]["of"]
    with pytest.raises(
        UsageError, match=r"extends is .* whose 24 documents config\.data \(24\) does not begin"
    ):
        _ = Experiment(made, tmp_path).added_rows
    with pytest.raises(ValueError, match=r"there is no .*config\.json; train one first"):
        continual.get_config(f"run={tmp_path}")


@pytest.mark.slow
def test_runs_are_compared_without_naming_the_system(run_dir, extended):
    found = compare.of_runs([f"{run_dir}", f"{run_dir}:bm25"], None, ["mrr@4"], None)
    assert found.queries == DOCUMENTS


@pytest.mark.parametrize(
    "scheme",
    [
        *("semantic", "semantic2d", "random", "atomic", "titles"),
        *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("residual", "product")),
    ],
)
def test_every_scheme_of_the_config_has_room_in_the_model(folder, tmp_path, scheme):
    made = config(folder / "first", scheme)
    if scheme == "titles":
        made["docids"]["scheme"]["numbers"] = 3
        made["task"]["model"]["decoder"]["embed"]["vocab_size"] = 200
    elif scheme != "atomic" and scheme != "random":
        made["docids"]["vectors"]["width"] = 4
    (tmp_path / "run").mkdir()
    docids = Experiment(made, tmp_path / "run").docids
    assert len(docids) == DOCUMENTS
    assert Docids.load(tmp_path / "run" / "docids.npz").size == docids.size


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text.length", 0, "config.text: length is 0; it must be at least 1"),
        ("batch.batch_size", 0, "config.batch: batch_size is 0"),
        ("evaluation.beams", 0, "config.evaluation: beams is 0; it must be at least 1"),
        ("evaluation.results", 2, "results is 2; hits@4 of measures needs 4 or more"),
        ("evaluation.measures", ("mrr@4", "map"), "measures has 'map'; allowed: those cut at a rank"),
        ("evaluation.tune_measure", "mrr", "tune_measure has 'mrr'; allowed: those cut at a rank"),
        ("evaluation.tune_measure", "recall@9", "results is 4; recall@9 of tune_measure needs 9 or more"),
        ("evaluation.run_depth", 5, "run_depth is 5; allowed: 1 to 4, the documents that a query finds"),
        ("docids.removed", "/nowhere", "config.docids.removed: /nowhere: No such file"),
        ("evaluation.length_penalty", -1.0, "length_penalty is -1.0; allowed: 0 or more"),
        ("indexing.sources", {}, "config.indexing: sources is empty"),
        ("indexing.sources.queries", 3, "config.indexing: sources.queries is 3; allowed"),
        (
            "indexing.weights",
            {"queries": 1.0},
            "weights are of queries; allowed: of all sources, first_tokens, queries",
        ),
        ("indexing.replay", 0.5, "config.indexing.replay is 0.5; allowed: 0, as config.docids.extends is ''"),
        ("docids.scheme", {"name": "generative_retrieval.schemes.naive.Naiv"}, "did you mean Naive"),
        ("docids.scheme", 3, "config.docids: scheme is 3; allowed: a scheme"),
        ("schedule.best_measure", "dev/loss", "best_measure is 'dev/loss'; allowed: dev/hits@4, dev/mrr@4"),
        ("init_from.run", "/nowhere", "no best checkpoint in /nowhere/checkpoints"),
        (
            "task",
            {"name": "pathlib.Path"},
            "config.task is 'pathlib.Path'; allowed: a Task whose model spells",
        ),
    ],
)
def test_a_bad_value_names_field_value_and_what_is_allowed(folder, tmp_path, field, value, message):
    changed = config(folder / "first")
    *path, last = field.split(".")
    node = changed
    for key in path:
        node = node[key]
    node[last] = value
    with pytest.raises((SpecError, UsageError, CheckpointError), match=message):
        Experiment(changed, tmp_path)


def test_a_scheme_without_its_vectors_is_refused(folder, tmp_path):
    made = config(folder / "first", "semantic")
    made["docids"]["vectors"] = None
    with pytest.raises(SpecError, match="vectors is None; the scheme Semantic needs them"):
        Experiment(made, tmp_path)


def test_too_small_embeddings_are_refused_by_name(folder, tmp_path):
    made = config(folder / "first")
    made["task"]["model"]["encoder"]["embed"]["vocab_size"] = 20
    with pytest.raises(
        UsageError, match="vocab_size of the model's text embedding is 20, but the tokenizer has"
    ):
        _ = Experiment(made, tmp_path).tokenizer
    made = config(folder / "first")
    made["task"]["model"]["decoder"]["embed"]["vocab_size"] = 10
    (tmp_path / "second").mkdir()
    with pytest.raises(
        UsageError, match="docid embedding is 10, but the docids have 11 symbols; allowed: 11"
    ):
        _ = Experiment(made, tmp_path / "second").docids


@pytest.mark.slow
def test_a_shared_encoder_is_a_second_retriever_and_both_are_fused(folder):
    made = config(folder / "first")
    spelling = made["task"]
    model = dict(
        name="generative_retrieval.joint.SharedEncoder",
        generator=spelling["model"],
        pooler=dict(name="dual_encoder.poolers.mean"),
    )
    made["task"] = dict(name="generative_retrieval.joint.Joint", spelling=spelling | dict(model=model))
    experiment = run_dirs.start(folder / "joint", made)
    experiment.train()
    read = experiment.evaluate()
    assert set(read.means) == {"bm25_plain", "bm25", "generative", "dense", "hybrid_dense", "hybrid"}
    assert 0 <= read.meta["fusion_weight_dense"] <= 1
    assert read.means["dense"]["hits@4"] > 4 / DOCUMENTS  # better than by chance
    runs = [trec.read_run(folder / "joint" / "runs" / f"{name}.trec") for name in ("generative", "dense")]
    for query_id, hits in trec.read_run(folder / "joint" / "runs" / "hybrid_dense.trec").items():
        assert set(hits) <= set(runs[0][query_id]) | set(runs[1][query_id])
