"""BM25 on real collections, against figures that bm25s gave for the same setting."""

import numpy as np
import pytest

from corpora.sources import beir_folder
from eval import measures, runs
from index import lexical

MEASURES = ("ndcg@10", "recall@100", "mrr@10", "map")
# k1 and b: MEASURES. Title + text, Porter stems, English stop words, "lucene".
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


@pytest.fixture(scope="module")
def collection(collections, tmp_path_factory):
    """By name: the prepared collection and its documents' counts; each is read once."""
    made = {}
    cache = tmp_path_factory.mktemp("cache")

    def get(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RETRIEVAX_CACHE", str(cache))
                data = beir_folder.load(folder=str(collections / name))
            titles, texts = zip(*((d.title, d.text) for d in data.documents), strict=True)
            made[name] = data, lexical.analyze(texts, titles=titles)
        return made[name]

    return get


def split_param(name, split):
    slow = split == "train" or name == "medquad"
    return pytest.param(name, split, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("name", "split"), [split_param(*key) for key in REFERENCE])
def test_agrees_with_the_reference(collection, name, split):
    data, counts = collection(name)
    qrels = data.split(split)
    for (k1, b), expected in REFERENCE[name, split].items():
        index = lexical.BM25.from_analyzed(counts, k1=k1, b=b)
        found = index.search([data.queries[query_id] for query_id in qrels], 1000)
        run = runs.from_rows(list(qrels), data.doc_ids, *found)
        measured = measures.means(measures.evaluate(qrels, run, MEASURES))
        np.testing.assert_allclose(
            list(measured.values()), expected, rtol=0, atol=TOLERANCE, err_msg=f"k1={k1} b={b}"
        )
