"""BM25 on real collections, against figures that bm25s gave for the same setting."""

import gzip
import json

import numpy as np
import pytest
import pytrec_eval

from index import lexical

# k1 and b: nDCG@10, R@100, MRR@10, MAP. Title + text, Porter stems, English stop words, "lucene".
REFERENCE = {
    ("cranfield", "test"): {
        (0.9, 0.4): (0.3440, 0.7210, 0.5041, 0.2816),
        (1.5, 0.75): (0.3626, 0.7334, 0.5179, 0.2996),
    },
    ("fairytaleqa", "train"): {
        (0.9, 0.4): (0.6810, 0.9372, 0.6457, 0.6349),
        (1.5, 0.75): (0.6656, 0.9372, 0.6272, 0.6162),
    },
    ("fairytaleqa", "dev"): {
        (0.9, 0.4): (0.6332, 0.9176, 0.6011, 0.5881),
        (1.5, 0.75): (0.6321, 0.9192, 0.5963, 0.5823),
    },
    ("fairytaleqa", "test"): {
        (0.9, 0.4): (0.6361, 0.9250, 0.5981, 0.5899),
        (1.5, 0.75): (0.6164, 0.9189, 0.5774, 0.5697),
    },
    ("medquad", "train"): {
        (0.9, 0.4): (0.6054, 0.9484, 0.5268, 0.5189),
        (1.5, 0.75): (0.5976, 0.9568, 0.5124, 0.5068),
    },
    ("medquad", "dev"): {
        (0.9, 0.4): (0.5970, 0.9424, 0.5136, 0.5072),
        (1.5, 0.75): (0.5915, 0.9504, 0.5047, 0.4990),
    },
    ("medquad", "test"): {
        (0.9, 0.4): (0.5951, 0.9515, 0.5109, 0.5042),
        (1.5, 0.75): (0.5815, 0.9634, 0.4915, 0.4893),
    },
    ("limit-small", "test"): {
        (0.9, 0.4): (0.9921, 1.0, 0.9909, 0.9877),
        (1.5, 0.75): (0.9921, 1.0, 0.9909, 0.9877),
    },
}
TOLERANCE = 0.005


def read_jsonl(folder, name):
    plain = folder / f"{name}.jsonl"
    opener, path = (open, plain) if plain.exists() else (gzip.open, folder / f"{name}.jsonl.gz")
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_qrels(folder, split):
    qrels = {}
    for line in (folder / "qrels" / f"{split}.tsv").read_text("utf-8").splitlines()[1:]:
        query_id, doc_id, relevance = line.split("\t")
        qrels.setdefault(query_id, {})[doc_id] = int(relevance)
    return qrels


def evaluate(qrels, run):
    """Means over all judged queries of nDCG@10, R@100, MRR@10, MAP."""
    names = {"ndcg_cut.10", "recall.100", "map"}
    deep = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    # trec_eval has no cut for reciprocal rank; the run is cut in its order, by score and then document id.
    shallow = {
        query: dict(sorted(hits.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)[:10])
        for query, hits in run.items()
    }
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(shallow)

    def mean(results, name):
        return sum(results.get(query, {}).get(name, 0.0) for query in qrels) / len(qrels)

    return mean(deep, "ndcg_cut_10"), mean(deep, "recall_100"), mean(first, "recip_rank"), mean(deep, "map")


@pytest.fixture(scope="module")
def analyzed(collections):
    """By name: the documents' counts and ids, and the queries' texts; each collection is read once."""
    made = {}

    def get(name):
        if name not in made:
            documents = read_jsonl(collections / name, "corpus")
            counts = lexical.analyze(
                [document["text"] for document in documents],
                titles=[document["title"] for document in documents],
            )
            queries = {query["_id"]: query["text"] for query in read_jsonl(collections / name, "queries")}
            made[name] = counts, [document["_id"] for document in documents], queries
        return made[name]

    return get


def split_param(name, split):
    return pytest.param(name, split, marks=[pytest.mark.slow] if split == "train" else [])


@pytest.mark.parametrize(("name", "split"), [split_param(*key) for key in REFERENCE])
def test_agrees_with_the_reference(collections, analyzed, name, split):
    counts, doc_ids, queries = analyzed(name)
    qrels = read_qrels(collections / name, split)
    for (k1, b), expected in REFERENCE[name, split].items():
        index = lexical.BM25.from_analyzed(counts, k1=k1, b=b)
        scores, rows = index.search([queries[query] for query in qrels], 1000)
        run = {
            query: {doc_ids[row]: float(score) for score, row in zip(*hits, strict=True) if row >= 0}
            for query, *hits in zip(qrels, scores, rows, strict=True)
        }
        measured = evaluate(qrels, run)
        np.testing.assert_allclose(measured, expected, rtol=0, atol=TOLERANCE, err_msg=f"k1={k1} b={b}")
