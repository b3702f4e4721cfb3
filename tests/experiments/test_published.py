"""A published encoder's folder: evaluated as it is, fine-tuned, written back, and given to others."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import pretrained as pretrained_config
from configs.dual_encoder import finetune
from corpora import pretrained_tokenizer
from corpora import tokenizer as tokenizers
from dual_encoder import poolers, towers
from dual_encoder.pretrained_pooling import Pooling
from dual_encoder.task import documents, queries, smallest_batch
from dual_encoder.trained import Trained
from experiments import adapters, export, run_dirs
from experiments.cli import UsageError
from training import warm_start
from training.build import SpecError, build

BERT = Path(__file__).parents[1] / "golden" / "pretrained" / "bert"
WORDS = ["ab", "ba", "abba", "b", "aabb", "abab", "bb", "aab"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A plain Hugging Face folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    shutil.copytree(BERT, folder)
    made = tokenizers.train_wordpiece(["abba ab ba"] * 5, vocab_size=29)
    pretrained_tokenizer.save(folder, made, max_length=12, special_tokens=True)
    return folder


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Eight documents, and a query for each, of test alone."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "qrels").mkdir()
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    documents = [dict(_id=f"d{n}", title="ab", text=word) for n, word in enumerate(WORDS)]
    (folder / "corpus.jsonl").write_text(lines(documents))
    queries = [dict(_id=f"q{n}", text=f"ab {word}") for n, word in enumerate(WORDS)]
    (folder / "queries.jsonl").write_text(lines(queries))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(len(WORDS)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.fixture(scope="module")
def run(model, collection, tmp_path_factory):
    """The run directory of an evaluation, and what it found."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = pretrained_config.get_config(f"path={model},data={collection},pooling=mean").to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder.parent / "cache"))
        found = run_dirs.start(folder, config).evaluate()
    return folder, config, found


def test_queries_that_are_documents_find_them_without_dev(run):
    folder, config, found = run
    assert list(found.means) == ["bm25_plain", "bm25", "dual_encoder", "hybrid"]
    assert found.means["dual_encoder"]["mrr@10"] == 1.0  # "ab" and the text is what a document is
    assert (found.meta["tuned_on_dev"], found.meta["fusion_weight"], found.meta["best_step"]) == (
        False,
        0.5,
        0,
    )
    assert config["text"]["document_template"] == "{title} {text}"
    assert json.loads((folder / "init_from.json").read_text())["new"] == []


def test_both_packages_get_the_run_s_vectors(run):
    folder, config, _ = run
    encoder, trained = adapters.Encoder.load(folder), Trained.load(folder, config)
    queries_ND, _ = trained.queries(WORDS)
    np.testing.assert_array_equal(encoder.encode_queries(WORDS, batch_size=3), queries_ND)
    np.testing.assert_array_equal(encoder.encode([{"text": WORDS[:3]}, {"text": WORDS[3:]}]), queries_ND)
    titled = [{"title": "ab", "text": word} for word in WORDS]
    documents_ND = encoder.encode_corpus(titled)
    joined = {"text": [f"ab {word}" for word in WORDS]}
    np.testing.assert_allclose(documents_ND, encoder.encode_corpus(joined), atol=1e-6)
    batch = joined | {"title": ["ab"] * len(WORDS), "body": WORDS}
    np.testing.assert_array_equal(encoder.encode([batch], prompt_type="document"), documents_ND)
    scores = encoder.similarity(documents_ND, documents_ND)
    np.testing.assert_allclose(np.diag(scores), encoder.similarity_pairwise(documents_ND, documents_ND), 1e-5)
    with pytest.raises(ValueError, match="prompt_type is 'x'; allowed: query, document"):
        encoder.encode([], prompt_type="x")


def test_a_run_is_written_as_a_folder(run, tmp_path, monkeypatch, capsys):
    folder, _, _ = run
    monkeypatch.setenv("RETRIEVAX_PROCESSES", "1")
    monkeypatch.setattr("sys.argv", ["export", str(folder), f"--out={tmp_path / 'out'}"])
    export.main()
    assert "16 wide, of step 0" in capsys.readouterr().out
    kinds = [
        module["type"].rpartition(".")[2]
        for module in json.loads((tmp_path / "out/modules.json").read_text())
    ]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    monkeypatch.setattr("sys.argv", ["export", str(folder)])
    with pytest.raises(SystemExit):
        export.main()
    assert "--out is not given" in capsys.readouterr().err


def test_an_encoder_from_nowhere_cannot_be_written():
    with pytest.raises(UsageError, match="the run's encoder came from no folder"):
        export._source({"model": {"name": "dual_encoder.towers.tied"}}, "query")


def _tower(model, **fields):
    spec = dict(name="dual_encoder.pretrained.tower", path=str(model), pooling="mean")
    return build(spec).clone(head=nn.Dense(4), **fields)


@pytest.mark.parametrize("share", ["separate", "shared_encoder", "shared_embedding"])
def test_a_side_has_the_parameters_that_it_shares(model, share):
    both = getattr(towers, share)(_tower(model), _tower(model))
    batch = smallest_batch(both)
    init = lambda of, *given: of.init(jax.random.key(0), *given)["params"]
    params = jax.eval_shape(lambda: init(both, queries(batch), documents(batch)))
    assert ("encoder" in params["document"]) == (share != "shared_encoder")
    for side in ("query", "document"):
        expected = jax.eval_shape(lambda: init(getattr(both, side), documents(batch)))  # noqa: B023
        found = export._parameters(both, side, params)
        assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, expected)
    ours, theirs = (export._parameters(both, side, params) for side in ("document", "query"))
    table = lambda of: of["encoder"]["embed"]["table"]
    assert (table(ours) is table(theirs)) == (share != "separate")
    assert ours["head"]["kernel"] is params["document"]["head"]["kernel"]
    with pytest.raises(UsageError, match="--side is not given, and the run has two towers"):
        export._side(both, None)


def test_towers_that_differ_in_their_prompts_alone_are_one(model):
    tower = _tower(model)
    with_ = lambda **fields: towers.separate(tower, tower.clone(**fields))
    assert export._side(with_(pooler=Pooling(("mean",), skip=3)), None) == "query"
    mean = functools.partial(poolers.mean)  # as a config names it
    assert export._side(towers.separate(tower.clone(pooler=mean), tower.clone(pooler=poolers.mean)), None)
    for fields in (dict(pooler=Pooling(("cls",))), dict(normalize=False), dict(unpooled=(0, 2))):
        with pytest.raises(UsageError, match="--side is not given"):
            export._side(with_(**fields), None)
        assert export._side(with_(**fields), "document") == "document"


def test_the_config_to_fine_tune_one(model):
    config = finetune.get_config(f"path={model},folder=x,pooling=cls,steps=7,negatives=0").to_dict()
    assert config["init_from"]["folder"] == str(model)
    task = build(config["task"])
    assert (task.temperature, task.model.query.pooler.modes) == (0.05, ("cls",))
    assert finetune.get_config(f"path={model},folder=x,pooling=cls,similarity=dot").task.temperature == 1.0
    with pytest.raises(ValueError, match="path is missing"):
        finetune.get_config("folder=x")


def test_a_module_s_parameters_go_to_every_place_that_has_them_all():
    source = {"encoder": {"a": np.ones(2), "b": np.ones(3)}, "head": {"w": np.ones(1)}}
    place = {"encoder": {"a": np.zeros(2), "b": np.zeros(3), "adapter": np.zeros(1)}}
    params = {"model": {"query": place, "document": place | {"head": {"w": np.zeros(1)}}}, "t": np.zeros(())}
    merged, report = warm_start.everywhere(params, [source, source["encoder"]])
    for side in ("query", "document"):
        encoder = merged["model"][side]["encoder"]
        assert (encoder["a"].sum(), encoder["b"].sum(), encoder["adapter"].sum()) == (2, 3, 0)
    assert merged["model"]["document"]["head"]["w"] == 1
    assert (len(report.loaded), report.skipped) == (5, {})
    assert report.new == ("model/document/encoder/adapter", "model/query/encoder/adapter", "t")
    with pytest.raises(SpecError, match=r"nearest, under x/: x/b has the shape \(4,\), theirs \(3,\)"):
        warm_start.everywhere({"x": {"a": np.zeros(2), "b": np.zeros(4)}}, [source["encoder"]])


@pytest.mark.bench
def test_the_evaluators_of_beir_and_mteb_agree_with_ours(run, collection):
    for name in ("beir", "mteb"):
        pytest.importorskip(name)
    import mteb
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    folder, _, found = run
    expected = found.means["dual_encoder"]["ndcg@10"]
    encoder = adapters.Encoder.load(folder)
    corpus, queries, qrels = GenericDataLoader(str(collection)).load(split="test")
    search = EvaluateRetrieval(DenseRetrievalExactSearch(encoder), score_function="dot", k_values=[10])
    ndcg, *_ = search.evaluate(qrels, search.retrieve(corpus, queries), [10])
    assert ndcg["NDCG@10"] == pytest.approx(expected, abs=1e-4)

    none = [
        "dialect",
        "date",
        "domains",
        "task_subtypes",
        "license",
        "annotations_creators",
        "sample_creation",
        "reference",
    ]

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Local",
            description="eight documents",
            dataset=dict(path="local", revision="1"),
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            bibtex_citation="",
            **dict.fromkeys(none),
        )

        def load_data(self, **options):
            self.corpus, self.queries = {"test": corpus}, {"test": queries}
            self.relevant_docs = {"test": qrels}
            self.convert_v1_dataset_format_to_v2(num_proc=None)
            self.data_loaded = True

    assert isinstance(encoder, mteb.EncoderProtocol)
    scores = mteb.evaluate(encoder, Local(), cache=None).task_results[0].scores["test"][0]
    assert scores["ndcg_at_10"] == pytest.approx(expected, abs=1e-4)
