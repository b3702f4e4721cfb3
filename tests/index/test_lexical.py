import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import lexical

PLAIN = lexical.Analyzer()


def test_scores_by_hand():
    index = lexical.BM25.build(["cat sat", "cat cat dog", "dog"], k1=1.5, b=0.75, analyzer=PLAIN)
    scores, rows = index.search(["cat"], 3)
    # N = 3, mean length 2, n_cat = 2: idf = ln(1 + 1.5 / 2.5) = 0.470004.
    # Row 1: f = 2, 3 terms: 2 / (2 + 1.5 * (0.25 + 0.75 * 1.5)) = 2 / 4.0625.
    # Row 0: f = 1, 2 terms: 1 / (1 + 1.5) = 0.4.
    idf = 0.4700036292457356
    np.testing.assert_array_equal(rows, [[1, 0, -1]])
    np.testing.assert_allclose(scores, [[idf * 2 / 4.0625, idf * 0.4, -np.inf]], atol=1e-6)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int32


def test_repeated_query_terms_count_each_time():
    index = lexical.BM25.build(["cat sat", "dog"], analyzer=PLAIN)
    once, _ = index.search(["cat"], 1)
    twice, _ = index.search(["cat cat"], 1)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
def test_equals_bm25s(method):
    import bm25s

    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 30))) for _ in range(80)]
    queries = [" ".join(rng.choice(words, 4)) for _ in range(10)]
    peer = bm25s.BM25(method=method, k1=1.2, b=0.6)
    peer.index([text.split() for text in texts], show_progress=False)
    index = lexical.BM25.build(texts, k1=1.2, b=0.6, analyzer=PLAIN, method=method)
    scores, rows = index.search(queries, len(texts))
    for query, row_scores, row_ids in zip(queries, scores, rows, strict=True):
        expected = peer.get_scores(query.split())
        found = np.zeros(len(texts), np.float32)
        found[row_ids[row_ids >= 0]] = row_scores[row_ids >= 0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ties_go_to_the_lower_row():
    texts = ["dog", *["cat"] * 40, "cat cat", *["cat"] * 40]
    scores, rows = lexical.BM25.build(texts, b=0.0, analyzer=PLAIN).search(["cat"], 50)
    np.testing.assert_array_equal(rows[0], [41, *range(1, 41), *range(42, 51)])
    assert len(set(scores[0, 1:])) == 1


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1e-30, 3.0]), min_size=1, max_size=40),
    k=st.integers(1, 50),
)
def test_top_is_a_stable_sort_without_zeros(scores, k):
    scores_N = np.array(scores, np.float32)
    expected = [row for row in np.argsort(-scores_N, kind="stable") if scores_N[row] > 0][:k]
    found_scores, found_rows = lexical._top(scores_N, k)
    np.testing.assert_array_equal(found_rows, expected)
    np.testing.assert_array_equal(found_scores, scores_N[expected])


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text("ab cd", max_size=12), min_size=1, max_size=12),
    queries=st.lists(st.text("ab ce", max_size=8), max_size=4),
    k=st.integers(1, 15),
)
def test_hits_are_the_documents_that_share_a_term(texts, queries, k):
    scores, rows = lexical.BM25.build(texts, analyzer=PLAIN).search(queries, k)
    assert scores.shape == rows.shape == (len(queries), k)
    for query, row_scores, row_ids in zip(queries, scores, rows, strict=True):
        sharing = {i for i, text in enumerate(texts) if set(PLAIN(text)) & set(PLAIN(query))}
        hits = row_ids[row_ids >= 0]
        assert set(hits) <= sharing
        assert len(hits) == min(k, len(sharing))
        assert (row_scores[: len(hits)] > 0).all()
        assert (row_scores[len(hits) :] == -np.inf).all()


def test_empty_documents_and_unknown_terms():
    index = lexical.BM25.build(["", "cat", ""], analyzer=PLAIN)
    scores, rows = index.search(["", "zebra", "cat zebra"], 2)
    np.testing.assert_array_equal(rows, [[-1, -1], [-1, -1], [1, -1]])
    assert np.isneginf(scores[:2]).all()
    _, rows = lexical.BM25.build(["", ""]).search(["cat"], 1)  # no terms at all
    np.testing.assert_array_equal(rows, [[-1]])


@pytest.mark.parametrize(
    ("analyzer", "text", "expected"),
    [
        (lexical.CODE, "parseIsoDate parse_iso_date", "parse iso date parse iso date"),
        (lexical.CODE, "HTTPServer2 getURL x", "http server 2 get url x"),
        (PLAIN, "parseIsoDate Déjà a b2", "parseisodate déjà b2"),
        (lexical.PROSE, "The relational flights", "relat flight"),
        (lexical.Analyzer(stemmer="english"), "the generous skies", "the generous sky"),
        (lexical.Analyzer(stemmer="porter"), "the generous skies", "the gener ski"),
        (lexical.Analyzer(split_identifiers=True, stemmer="porter"), "parsedDates", "pars date"),
    ],
)
def test_analyzer(analyzer, text, expected):
    assert analyzer(text) == expected.split()
    assert sorted(lexical.analyze([text], analyzer=analyzer).vocabulary.columns) == sorted(
        set(expected.split())
    )


def test_the_scores_of_given_documents_are_those_of_the_search():
    texts = ["red cat", "cat cat dog", "dog", "blue sky"]
    index = lexical.BM25.build(texts, analyzer=PLAIN)
    queries = ["cat dog", "nothing", "sky sky"]
    found, rows = index.search(queries, 4)
    asked = np.array([[3, 0, -1, 1], [0, 1, 2, 3], [3, 3, -1, 0]])
    scores = index.score(queries, asked)
    by_row = [dict(zip(r, s, strict=True)) for r, s in zip(rows.tolist(), found.tolist(), strict=True)]
    for query, rows_M in enumerate(asked.tolist()):
        for place, row in enumerate(rows_M):
            expected = by_row[query].get(row, 0.0) if row >= 0 else np.nan
            np.testing.assert_equal(float(scores[query, place]), expected)
    assert scores.dtype == np.float32
    with pytest.raises(ValueError, match="rows_QM has 3 rows; allowed: one a query, 1"):
        index.score(["cat"], asked)


def test_whole_title_weight_is_repetition():
    titles, texts = ["red cat", "dog", ""], ["a cat sat", "red dog", "cat"]
    weighted = lexical.BM25.build(texts, titles=titles, title_weight=3, analyzer=PLAIN)
    repeated = lexical.BM25.build(
        [f"{title} {title} {title} {text}" for title, text in zip(titles, texts, strict=True)], analyzer=PLAIN
    )
    plain = lexical.BM25.build(texts, titles=titles, title_weight=0, analyzer=PLAIN)
    for one, other in ((weighted, repeated), (plain, lexical.BM25.build(texts, analyzer=PLAIN))):
        for mine, theirs in zip(one.search(["red cat"], 3), other.search(["red cat"], 3), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_fractional_title_weight():
    # f = 0.5 of 1.5 terms in row 0 beside 1.5 terms on average.
    index = lexical.BM25.build(["cat", "dog"], titles=["red", "cat"], title_weight=0.5, k1=1, analyzer=PLAIN)
    scores, _ = index.search(["red"], 1)
    np.testing.assert_allclose(scores, [[np.log(1 + 1.5 / 1.5) * 0.5 / (0.5 + 1)]], rtol=1e-6)


def test_tune_returns_the_best_setting_and_all():
    analyzed = lexical.analyze(["cat dog bird", "cat", "fish"], analyzer=PLAIN)
    settings_ = lexical.grid(k1=[0.9, 1.5], b=[0.0, 0.4])
    seen = []

    def evaluate(scores, rows):
        seen.append((scores, rows))
        return float(rows[0, 0] == 1) - len(seen) / 100

    best, table = lexical.tune(analyzed, ["cat"], settings_, evaluate, k=2)
    # With b = 0 both documents tie and row 0 comes first; with b = 0.4 the shorter one wins.
    assert best == lexical.Setting(k1=0.9, b=0.4)
    assert list(table) == settings_
    np.testing.assert_allclose(list(table.values()), [-0.01, 0.98, -0.03, 0.96])
    built = lexical.BM25.build(["cat dog bird", "cat", "fish"], k1=1.5, b=0.4, analyzer=PLAIN)
    for mine, theirs in zip(seen[-1], built.search(["cat"], 2), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_silent_unless_asked(capfd):
    lexical.BM25.build(["cat"]).search(["cat"], 1)
    assert capfd.readouterr() == ("", "")
    lexical.BM25.build(["cat"], progress=True)
    assert "counting terms" in capfd.readouterr().err


def test_import_leaves_jax_alone():
    # bm25s starts jax's backends when imported, after which jax.distributed cannot be initialized.
    code = "import index.lexical, sys; assert 'bm25s' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lexical.BM25.build([]), "texts is empty"),
        (lambda: lexical.BM25.build("cat"), "texts is one string, 'cat'"),
        (lambda: lexical.BM25.build(["cat"], titles=[]), "titles has 0 entries for 1 texts"),
        (lambda: lexical.BM25.build(["cat"], k1=-1), "k1 is -1; allowed: 0 or more"),
        (lambda: lexical.BM25.build(["cat"], b=1.5), "b is 1.5; allowed: 0 to 1"),
        (lambda: lexical.BM25.build(["cat"], title_weight=float("nan")), "title_weight is nan"),
        (lambda: lexical.BM25.build(["cat"], method="bm25l"), "method is 'bm25l'; allowed: lucene"),
        (lambda: lexical.BM25.build(["cat"]).search("cat", 1), "queries is one string"),
        (lambda: lexical.BM25.build(["cat"]).search(["cat"], 0), "k is 0"),
        (lambda: lexical.Analyzer(stemmer="lovins"), "stemmer is 'lovins'; allowed: none, porter, english"),
        (lambda: lexical.Analyzer(stop_words="french"), "stop_words is 'french'; allowed: none, english"),
        (lambda: lexical.tune(lexical.analyze(["a"]), [], [], max, k=1), "settings is empty"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_saved_and_loaded_it_searches_alike(tmp_path):
    texts = ["the parseIsoDate function", "écoute les données", "", "parse a date, then a date"]
    analyzer = lexical.Analyzer(split_identifiers=True, stop_words="english", stemmer="english")
    made = lexical.BM25.build(
        texts, k1=1.2, b=0.6, analyzer=analyzer, titles=["", "date", "", ""], title_weight=2
    )
    made.save(tmp_path / "bm25")
    loaded = lexical.BM25.load(tmp_path / "bm25")
    for a, b in zip(
        made.search(["parsing dates", "nothing"], 4),
        loaded.search(["parsing dates", "nothing"], 4),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
