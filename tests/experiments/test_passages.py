"""Long documents end to end: trained, evaluated and searched by their passages, found as documents."""

import json

import numpy as np
import pytest

from configs.dual_encoder import beir_folder
from dual_encoder.retriever import Retriever
from eval import trec
from experiments.contrastive import Experiment

TOPICS = ("iron", "silk", "corn", "salt", "wool", "coal", "rice", "gold")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on documents whose topic is named only beyond the first 16 tokens, and its experiment."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "data" / "qrels").mkdir(parents=True)
    documents = [
        {
            "_id": f"d{n}",
            "title": f"part {n}",
            "text": f"{'the old town ' * (8 + n % 3)} {topic} {topic} trade",
        }
        for n, topic in enumerate(TOPICS)
    ]
    queries = [{"_id": f"q{n}", "text": f"trade of {topic}"} for n, topic in enumerate(TOPICS)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ("train", "dev", "test"):
        lines = "".join(f"q{n}\td{n}\t1\n" for n in range(len(TOPICS)))
        (folder / "data" / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    config = beir_folder.get_config(f"folder={folder / 'data'},steps=4,batch=8")
    config.text.update(document_length=16, passage_stride=8, query_template="query: {text}")
    config.batch.length_window = 2
    config.schedule.update(eval_every=4, save_every=4)
    config.tokenizer.vocab_size = 200
    for side in ("query", "document"):
        config.task.model[side].encoder.embed.update(vocab_size=200, width=16)
    config.evaluation.bm25_grid.update(k1=(0.9,), b=(0.4,), title_weight=(1.0,))
    config = config.to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRIEVAX_CACHE", str(folder / "cache"))
        experiment = Experiment(config, folder / "run")
        (folder / "run").mkdir()
        (folder / "run" / "config.json").write_text(json.dumps(config))
        experiment.train()
        experiment.evaluate()
    return folder / "run", experiment


def test_a_document_is_found_by_its_best_passage(run):
    run_dir, experiment = run
    table = experiment.document_tokens
    assert len(table) > 2 * len(TOPICS)
    retriever = Retriever.load(run_dir)
    found = trec.read_run(run_dir / "runs" / "dual_encoder.trec")
    # The oracle: every passage scored, and the best taken by hand.
    variables = experiment.encoder.place(retriever._trained.variables)
    vectors_ND = experiment.encoder.documents(variables, table, 16)
    query_tokens = experiment.query_tokens([f"q{n}" for n in range(len(TOPICS))])
    vectors_QD = experiment.encoder.queries(variables, query_tokens, 32)
    scores_QN = vectors_QD @ vectors_ND.T
    assert (~np.isin(scores_QN.argmax(axis=1), table.first_row)).any()  # no first passage
    for n in range(len(TOPICS)):
        best = {
            f"d{document}": scores_QN[n, table.document_of_row == document].max()
            for document in range(len(TOPICS))
        }
        assert set(found[f"q{n}"]) == set(best)
        for doc_id, score in best.items():
            np.testing.assert_allclose(found[f"q{n}"][doc_id], score, rtol=1e-4, atol=1e-5)
        hits = retriever.search(f"trade of {TOPICS[n]}", k=8, system="dual_encoder")
        assert sorted(hit.doc_id for hit in hits) == sorted(best)
        np.testing.assert_allclose([hit.score for hit in hits], sorted(best.values())[::-1], rtol=1e-4)
