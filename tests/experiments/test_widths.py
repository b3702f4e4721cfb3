"""Search by the first numbers of vectors, as an evaluation sees it."""

import types

import numpy as np
import pytest

from experiments import widths
from experiments.settings import Evaluation, evaluation
from training.build import SpecError

FIELDS = dict(
    train_split="train", dev_split="dev", test_split="test", measures=("ndcg@10",), dev_measures=("mrr@10",),
    run_depth=10, tune_measure="mrr@10", fusion_weights=(0.5,), bm25_plain={},
    bm25_grid=dict(
        k1=(0.9,), b=(0.4,), title_weight=(1.0,), analyzers=dict(words=dict(name="index.lexical.Analyzer"))
    ),
)  # fmt: skip


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_a_width_searches_what_is_cut_and_scales_it_where_all_have_length_1(length):
    rng = np.random.default_rng(0)
    document_ND, query_QD = (length * unit(rng.normal(size=(n, 8))).astype(np.float32) for n in (30, 5))
    settings = types.SimpleNamespace(widths=(3,), funnel=((2, 30),))
    found = widths.systems(settings, document_ND)
    assert list(found) == ["dual_encoder@3", widths.FUNNEL]
    cut = unit if length == 1 else (lambda x: x)
    expected = np.argsort(-(cut(query_QD[:, :3]) @ cut(document_ND[:, :3]).T), axis=1)[:, :4]
    np.testing.assert_array_equal(found["dual_encoder@3"](query_QD, 4)[1], expected)
    whole = np.argsort(-(query_QD @ document_ND.T), axis=1)[:, :4]
    np.testing.assert_array_equal(found[widths.FUNNEL](query_QD, 4)[1], whole)  # the first stage keeps all


def test_an_empty_document_does_not_change_how_others_are_cut():
    document_ND = np.array([[0.6, 0, 0.8], [0.48, 0.64, 0.6], [0, 0, 0]], np.float32)
    found = widths.systems(types.SimpleNamespace(widths=(2,), funnel=()), document_ND)
    scores, rows = found["dual_encoder@2"](np.array([[1, 0, 0]], np.float32), 3)
    np.testing.assert_array_equal(rows, [[0, 1, 2]])
    np.testing.assert_allclose(scores, [[1, 0.6, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(widths=(8, 4)), r"widths is \(8, 4\); allowed: ascending positive numbers"),
        (dict(widths=(0, 4)), r"widths is \(0, 4\); allowed: ascending"),
        (dict(funnel=((8,),)), r"funnel is \(\(8,\),\); allowed: \(width, documents kept\) pairs"),
        (dict(funnel=((8, 10), (4, 5))), "a stage of width 4 that keeps 5 follows one of 8"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    assert isinstance(evaluation(FIELDS, "config.evaluation"), Evaluation)
    with pytest.raises(SpecError, match=message):
        evaluation({**FIELDS, **fields}, "config.evaluation")


def test_the_plot_has_every_width(tmp_path):
    settings = types.SimpleNamespace(widths=(4, 8), funnel=((4, 20),), measures=("ndcg@10",))
    names = ("dual_encoder@4", "dual_encoder@8", "dual_encoder", widths.FUNNEL)
    per_query = {name: {"ndcg@10": {"a": 0.5, "b": 0.1 * n}} for n, name in enumerate(names)}
    widths.plot(tmp_path / "plots" / "widths.png", settings, per_query, 16, "a title")
    assert (tmp_path / "plots" / "widths.png").read_bytes()[:4] == b"\x89PNG"
