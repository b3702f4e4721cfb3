import math
import random

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import measures, trec

# One query by hand. By score: b (grade 0), d (unjudged), a (grade 1), e (unjudged), c (grade 3); f (grade 2)
# is not retrieved. Relevant: a, c, f.
QRELS = {"q": {"a": 1, "b": 0, "c": 3, "f": 2}}
RUN = {"q": {"a": 0.7, "b": 0.9, "c": 0.5, "d": 0.8, "e": 0.6}}
IDEAL = 3 + 2 / math.log2(3) + 1 / math.log2(4)  # grades 3, 2, 1 at ranks 1, 2, 3
BY_HAND = {
    "ndcg": (1 / math.log2(4) + 3 / math.log2(6)) / IDEAL,
    "ndcg@1": 0.0,
    "ndcg@3": (1 / math.log2(4)) / IDEAL,
    "ndcg@5": (1 / math.log2(4) + 3 / math.log2(6)) / IDEAL,
    "mrr": 1 / 3,
    "mrr@2": 0.0,
    "mrr@3": 1 / 3,
    "map": (1 / 3 + 2 / 5) / 3,
    "map@4": (1 / 3) / 3,
    "recall@2": 0.0,
    "recall@3": 1 / 3,
    "recall@1000": 2 / 3,
    "precision@3": 1 / 3,
    "precision@5": 2 / 5,
    "precision@10": 2 / 10,  # of ten places, though only five are filled
    "hits@2": 0.0,
    "hits@3": 1.0,
    "r_precision": 1 / 3,  # three are relevant, one of them in the first three
}

# trec_eval's name -> ours
OFFICIAL = {"ndcg": "ndcg", "recip_rank": "mrr", "map": "map", "Rprec": "r_precision"}
OFFICIAL_CUT = {"ndcg_cut": "ndcg", "map_cut": "map", "recall": "recall", "P": "precision", "success": "hits"}


def value(run, measure="mrr", qrels=None, **options):
    return measures.evaluate(qrels or {"q": {"a": 1}}, {"q": run}, [measure], **options)[measure]["q"]


@pytest.mark.parametrize("measure", BY_HAND)
def test_by_hand(measure):
    assert value(RUN["q"], measure, QRELS) == pytest.approx(BY_HAND[measure], abs=1e-12)


def test_relevance_level_by_hand():
    # At level 2 only c, at rank 5, and f are relevant; nDCG keeps all its gains.
    expected = {"mrr": 1 / 5, "map": (1 / 5) / 2, "recall@5": 1 / 2, "hits@4": 0.0, "ndcg": BY_HAND["ndcg"]}
    per_query = measures.evaluate(QRELS, RUN, list(expected), relevance_level=2)
    assert measures.means(per_query) == pytest.approx(expected)


def official(path):
    """{topic: {our name: text}} of the measures both have; "all" is the mean."""
    values = {}
    for line in path.read_text().splitlines():
        name, topic, text = line.split()
        base, _, cut = name.rpartition("_")
        ours = OFFICIAL.get(name) or (OFFICIAL_CUT.get(base) and f"{OFFICIAL_CUT[base]}@{cut}")
        if ours:
            values.setdefault(topic, {})[ours] = text
    return values


@pytest.mark.parametrize(
    ("output", "qrels", "run", "level", "count"),
    [
        ("out.test", "qrels.test", "results.test", 1, 12),
        ("out.test.a", "qrels.test", "results.test", 1, 43),
        ("out.test.aq", "qrels.test", "results.test", 1, 43),
        ("out.test.aqc", "qrels.test", "results.trunc", 1, 43),
        ("out.test.aql", "qrels.rel_level", "results.test", 2, 43),
        # The rest of meas_params we do not offer: iprec_at_recall and 11pt_avg (whose recall cuts version 10
        # rounds otherwise than version 9, on which pytrec_eval is built), Rprec_mult, utility, and ndcg with
        # gains given on the command line.
        ("out.test.meas_params", "qrels.test", "results.test", 1, 11),
    ],
)
def test_equals_the_official_program(collections, output, qrels, run, level, count):
    folder = collections / "trec_eval"
    expected = official(folder / output)
    names = list(expected["all"])
    assert len(names) == count, names
    # results.trunc has no topic 302, which -c counts as 0.
    read = trec.read_qrels(folder / qrels), trec.read_run(folder / run)
    per_query = measures.evaluate(*read, names, relevance_level=level)
    assert all(set(column) == {"301", "302", "303"} for column in per_query.values())
    means = measures.means(per_query)
    for topic, values in expected.items():
        for name, text in values.items():
            ours = means[name] if topic == "all" else per_query[name][topic]
            assert f"{ours:.4f}" == text, (topic, name)


def test_rank_cuts_as_the_official_program_does(collections):
    # trec_eval -M100 looks at the first 100 documents of each topic.
    folder = collections / "trec_eval"
    run = trec.read_run(folder / "results.trunc")
    cut = {topic: {doc_id: run[topic][doc_id] for doc_id in measures.rank(run[topic])[:100]} for topic in run}
    expected = official(folder / "out.test.aqcM")["all"]
    per_query = measures.evaluate(trec.read_qrels(folder / "qrels.test"), cut, list(expected))
    assert {name: f"{mean:.4f}" for name, mean in measures.means(per_query).items()} == expected


@pytest.mark.parametrize("output", ["out.test.aq", "out.test.aqc", "out.test.aql"])
def test_mrr_at_k_follows_from_official_values(collections, output):
    # trec_eval has no MRR at a cut, but success_k says whether its first relevant document stands within k.
    folder = collections / "trec_eval"
    level = 2 if output.endswith("l") else 1
    qrels = trec.read_qrels(folder / ("qrels.rel_level" if level == 2 else "qrels.test"))
    run = trec.read_run(folder / ("results.trunc" if output.endswith("c") else "results.test"))
    per_query = measures.evaluate(qrels, run, ["mrr@1", "mrr@5", "mrr@10"], relevance_level=level)
    for topic, values in official(folder / output).items():
        for k in (1, 5, 10):
            if topic != "all" and topic in run:
                expected = float(values["mrr"]) * float(values[f"hits@{k}"])
                assert per_query[f"mrr@{k}"][topic] == pytest.approx(expected, abs=5e-5)


def test_mrr_is_cut_where_pytrec_eval_is_not():
    run = {f"d{i:02}": float(-i) for i in range(1, 30)}
    qrels = {"q": {"d11": 1}}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank.10"}).evaluate({"q": run})
    assert theirs == {"q": {"recip_rank": 1 / 11}}  # the trap
    assert value(run, "mrr@10", qrels) == 0.0
    assert value(run, "mrr@11", qrels) == 1 / 11


@pytest.mark.parametrize(("doc_id", "expected"), [("b", 1 / 2), ("c", 1.0)])
def test_ties_go_to_the_greater_doc_id(doc_id, expected):
    run = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert value(run, "mrr@2", {"q": {doc_id: 1}}) == expected
    assert value(run, "mrr@2", {"q": {"a": 1}}) == 0.0


def test_scores_are_compared_as_float32():
    run = {"a": 1.00000002, "b": 1.00000001}  # apart in float64, one float32
    assert measures.rank(run) == ["b", "a"]
    assert value(run, "mrr@1") == 0.0
    assert value({"a": 1e300, "b": math.inf}) == 1 / 2  # both infinite
    assert value({"a": 0.0, "b": -0.0}) == 1 / 2
    assert value({"a": -math.inf, "b": -5.0}) == 1 / 2


@pytest.mark.parametrize("pair", [("z", "é"), ("Z", "a"), ("\uffff", "\U0001f600"), ("a", "ab"), ("9", "10")])
def test_doc_ids_are_compared_by_their_bytes(pair):
    lower, upper = sorted(pair, key=str.encode)
    assert measures.rank(dict.fromkeys(pair, 1.0)) == [upper, lower]
    assert value(dict.fromkeys(pair, 1.0), qrels={"q": {upper: 1}}) == 1.0


scores = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(allow_nan=False), st.integers(-3, 3))
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.dictionaries(ids, scores, min_size=1, max_size=12), st.data())
def test_rank_is_the_order_of_pytrec_eval(run, data):
    doc_id = data.draw(st.sampled_from(sorted(run)))
    position = measures.rank(run).index(doc_id) + 1
    cut = data.draw(st.integers(1, 13))
    qrels = {"q": {doc_id: 1}}
    assert value(run, "mrr", qrels) == 1 / position
    assert value(run, f"mrr@{cut}", qrels) == (1 / position if position <= cut else 0.0)
    assert value(run, f"hits@{cut}", qrels) == float(position <= cut)


def test_queries_missing_from_the_run_count_as_zero():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    run = {"q1": {"a": 1.0}, "q3": {}, "other": {"a": 1.0}}
    assert "q2" not in pytrec_eval.RelevanceEvaluator(qrels, {"map"}).evaluate(run)  # the trap
    per_query = measures.evaluate(qrels, run, ["map", "mrr@5"])
    assert per_query == {name: {"q1": 1.0, "q2": 0.0, "q3": 0.0} for name in ("map", "mrr@5")}
    assert list(per_query["map"]) == list(qrels)
    assert measures.means(per_query) == {"map": 1 / 3, "mrr@5": 1 / 3}
    assert measures.evaluate(qrels, {}, ["map"]) == {"map": dict.fromkeys(qrels, 0.0)}


def test_queries_without_a_relevant_document_count_as_zero():
    qrels = {"q1": {"a": 1}, "none": {"a": 0}, "negative": {"a": -1, "b": -7}}
    run = {query_id: {"a": 1.0} for query_id in qrels}
    names = [name for name in BY_HAND if name != "precision@10"]
    per_query = measures.evaluate(qrels, run, names)
    for name in names:
        assert per_query[name]["none"] == per_query[name]["negative"] == 0.0
    assert measures.means(per_query)["ndcg"] == 1 / 3


def test_negative_grades_are_not_relevant():
    qrels = {"q": {"a": -1, "b": 2, "c": 1}}
    # ranks a, b, c: the gains 0, 2, 1 against 2, 1
    expected = (2 / math.log2(3) + 1 / math.log2(4)) / (2 + 1 / math.log2(3))
    assert value({"a": 3, "b": 2, "c": 1}, "ndcg", qrels) == pytest.approx(expected)


def test_number_types():
    run = {"a": 2, "b": np.float32(3), "c": np.float64(1), "d": np.int64(0), "e": True}
    assert value(run) == 1 / 2  # pytrec_eval refuses NumPy's float32
    assert value({"a": 1.0}, qrels={"q": {"a": np.int64(1)}}) == 1.0  # and NumPy's integers


@pytest.mark.parametrize("query_id", ["no query", "no_query", "", "a\0b"])
def test_query_ids_that_trec_eval_cannot_tell_apart(query_id):
    qrels, run = {query_id: {"a": 1}}, {query_id: {"a": 1.0}}
    if query_id in ("", "a\0b"):
        with pytest.raises(ValueError, match="query_id"):
            measures.evaluate(qrels, run, ["map"])
    else:  # stale values, then an endless loop, if they reached trec_eval
        for _ in range(2):
            assert measures.evaluate(qrels, run, ["map"]) == {"map": {query_id: 1.0}}


@pytest.mark.parametrize(
    ("qrels", "run", "message"),
    [
        ({}, {}, "qrels is empty"),
        ({"q": {}}, {}, r"qrels\['q'\] has no judgments"),
        ({"q": {"a": 1.0}}, {}, r"qrels\['q'\]\['a'\] is 1.0"),
        ({"q": {"a": 2**31}}, {}, "2147483648; a grade is an integer <= 10000"),
        ({"q": {"a\0": 1}}, {}, r"doc_id 'a\\x00' in qrels"),
        ({"q": {"a": 1}}, {"q": {"b": 1.0, "a": math.nan}}, "of query 'q' of document 'a' is nan"),
        ({"q": {"a": 1}}, {"q": {"a": None}}, "of query 'q' of document 'a' is None"),
        ({"q": {"a": 1}}, {"q": {"a": "high"}}, "of query 'q' is not a number"),
        ({"q": {"a": 1}}, {"q": {"a": 10**400}}, "of query 'q' is not a number"),
        ({"q": {"a": 1}}, {"q": {"": 1.0}}, r"doc_id '' in run\['q'\]"),
        ({"q": {"a": 1}}, {"q": {"b": 1.0, "a\0b": 1.0}}, r"doc_id 'a\\x00b' in run\['q'\]"),
        ({"q": {"a": 1}}, {"q": {"b": 1.0, "\ud800": 1.0}}, r"doc_id '\\ud800' in run"),
        ({"q": {"a": 1}}, {"q": {"b": 1.0, 7: 1.0}}, r"doc_id 7 in run"),
    ],
)
def test_bad_input_is_refused_by_name(qrels, run, message):
    with pytest.raises(ValueError, match=message):
        measures.evaluate(qrels, run, ["map"])


def test_nan_of_an_unjudged_query_is_ignored_with_it():
    assert measures.evaluate({"q": {"a": 1}}, {"z": {"a": math.nan}}, ["map"]) == {"map": {"q": 0.0}}


@pytest.mark.parametrize(
    "measure",
    ["ndgc@10", "recall", "hits", "precision", "r_precision@5", "ndcg@0", "ndcg@-1", "ndcg@010", "ndcg@",
     "ndcg@1.5", "ndcg@10,20", "ndcg_cut.10", "mrr@99999999999", "mrr@2147483648", "NDCG@10", "ndcg@١٠",
     "ndcg@10\n", "", 10, None],
)  # fmt: skip
def test_unknown_measures_are_refused_with_the_valid_ones(measure):
    with pytest.raises(ValueError, match=r"is unknown; valid: ndcg, mrr, .*hits@k") as error:
        measures.evaluate({"q": {"a": 1}}, {}, ["map", measure])
    assert repr(measure) in str(error.value)


def test_measures_as_one_string_are_refused():
    with pytest.raises(ValueError, match="measures is the string 'map'"):
        measures.evaluate({"q": {"a": 1}}, {}, "map")


@pytest.mark.parametrize("level", [0, -1, 1.0, True, None])
def test_bad_relevance_level(level):
    with pytest.raises(ValueError, match=f"relevance_level is {level}"):
        value({"a": 1.0}, relevance_level=level)


def test_many_cuts_at_once_and_no_measure():
    rng = random.Random(0)
    run = {f"q{i}": {f"d{rng.randrange(500)}": round(rng.random(), 1) for _ in range(200)} for i in range(20)}
    qrels = {f"q{i}": {f"d{rng.randrange(500)}": rng.randrange(4) for _ in range(20)} for i in range(20)}
    names = [
        f"{name}@{k}" for name in ("ndcg", "mrr", "map", "recall", "precision", "hits") for k in (1, 7, 30)
    ]
    together = measures.evaluate(qrels, run, names)
    assert list(together) == names
    for name in names:
        # By its own and beside an uncut measure, which decides how much of the ranking is looked at.
        assert measures.evaluate(qrels, run, [name])[name] == together[name]
        assert measures.evaluate(qrels, run, [name, "map"])[name] == together[name]
    for k in (1, 7, 30):  # MRR at a cut from `rank` alone
        for query_id, judged in qrels.items():
            first = measures.rank(run[query_id])[:k]
            found = [i for i, doc_id in enumerate(first, start=1) if judged.get(doc_id, 0) > 0]
            assert together[f"mrr@{k}"][query_id] == (1 / found[0] if found else 0.0)
    assert measures.evaluate(qrels, run, []) == {}


def test_means_need_queries():
    with pytest.raises(ValueError, match=r"no queries for \['map'\]"):
        measures.means({"map": {}})
