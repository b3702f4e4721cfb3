"""The table between our parameters and their tensors, by hand."""

import numpy as np
import pytest

from backbones.pretrained.folder import PretrainedError
from backbones.pretrained.names import Layout, Tensor, linear, norm, read, table, write

LAYOUT = Layout(
    (
        table(("words.weight", "copy.weight"), "embed", 3, 2),
        *linear("layer.{layer}.up", "block/in", 4, 2, 2, bias=True),
        Tensor(("layer.{layer}.qk",), (4, 2), ("block/query", "block/key"), 2, transpose=True),
        *norm("layer.{layer}.norm", "block/norm", 2, 2, first=1),
        *norm("last", "final_norm", 2, None, bias=True, scale=0.5),
        table("out.weight", "output", 3, 2, prefixed=False, otherwise=("words.weight",)),
    ),
    left_out=(r"pooler\.(weight|bias)", r"head\.\d+"),
    prefix="model.",
)


def numbers(*shape, start=0):
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def tensors(prefix=""):
    found = {
        "words.weight": numbers(3, 2),
        "last.weight": numbers(2, start=4),
        "last.bias": numbers(2, start=6),
        "layer.1.norm.weight": numbers(2, start=8),
    }
    for layer in range(2):
        found[f"layer.{layer}.up.weight"] = numbers(4, 2, start=100 * layer)
        found[f"layer.{layer}.up.bias"] = numbers(4, start=10 * layer)
        found[f"layer.{layer}.qk"] = numbers(4, 2, start=20 + 100 * layer)
    return {prefix + name: array for name, array in found.items()} | {"out.weight": numbers(3, 2, start=50)}


def test_by_hand():
    params = read(LAYOUT, tensors(), "here")
    np.testing.assert_array_equal(params["embed"]["table"], [[0, 1], [2, 3], [4, 5]])
    # [outputs, inputs] of two layers becomes [layers, inputs, outputs].
    np.testing.assert_array_equal(params["block"]["in"]["kernel"][0], [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(
        params["block"]["in"]["kernel"][1], [[100, 102, 104, 106], [101, 103, 105, 107]]
    )
    np.testing.assert_array_equal(params["block"]["in"]["bias"], [[0, 1, 2, 3], [10, 11, 12, 13]])
    # The first two rows are of the query, the others of the key.
    np.testing.assert_array_equal(params["block"]["query"][0], [[20, 22], [21, 23]])
    np.testing.assert_array_equal(params["block"]["key"][0], [[24, 26], [25, 27]])
    # Layer 0 has no norm.
    np.testing.assert_array_equal(params["block"]["norm"]["scale"], [[1, 1], [8, 9]])
    np.testing.assert_array_equal(params["final_norm"]["scale"], [2, 2.5])
    np.testing.assert_array_equal(params["final_norm"]["bias"], [3, 3.5])
    np.testing.assert_array_equal(params["output"]["table"], [[50, 51], [52, 53], [54, 55]])


@pytest.mark.parametrize("prefix", ["", "model.", "a.b."])
def test_names_may_all_begin_alike(prefix):
    expected = tensors("model.")
    written = write(LAYOUT, read(LAYOUT, tensors(prefix), "here"))
    assert set(written) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(written[name], expected[name])
        assert written[name].dtype == np.float32


def test_first_names_of_a_norm_are_known():
    found = tensors()
    found["last.gamma"], found["last.beta"] = found.pop("last.weight"), found.pop("last.bias")
    np.testing.assert_array_equal(read(LAYOUT, found, "here")["final_norm"]["bias"], [3, 3.5])


def test_heads_are_left_out():
    more = {"pooler.weight": numbers(1), "head.7": numbers(2)}
    inside = {f"model.{name}": array for name, array in more.items()}
    read(LAYOUT, tensors("model.") | inside | more, "here")


def test_a_table_that_is_there_twice_is_one_table():
    read(LAYOUT, tensors() | {"copy.weight": numbers(3, 2)}, "here")
    with pytest.raises(PretrainedError, match=r"here: tensors 'words.weight' and 'copy.weight' differ"):
        read(LAYOUT, tensors() | {"copy.weight": numbers(3, 2, start=1)}, "here")
    alone = tensors() | {"copy.weight": numbers(3, 2)}
    del alone["words.weight"]
    np.testing.assert_array_equal(read(LAYOUT, alone, "here")["embed"]["table"], numbers(3, 2))


def test_another_table_stands_in():
    found = tensors("model.")
    del found["out.weight"]
    np.testing.assert_array_equal(read(LAYOUT, found, "here")["output"]["table"], numbers(3, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("layer.1.up.bias"), "here: tensor 'layer.1.up.bias' is missing"),
        (lambda t: t.pop("words.weight"), "here: tensor 'words.weight' is missing"),
        (lambda t: t.update({"layer.2.up.bias": numbers(4)}), "here: tensor 'layer.2.up.bias' is no part of"),
        (lambda t: t.update({"layer.0.norm.weight": numbers(2)}), "'layer.0.norm.weight' is no part of"),
        (lambda t: t.update({"pooler.weights": numbers(4)}), "'pooler.weights' is no part of"),
        (
            lambda t: t.update({"layer.0.qk": numbers(2, 4)}),
            r"'layer.0.qk' has shape \(2, 4\); allowed: \(4, 2\)",
        ),
        (
            lambda t: t.update({"other.words.weight": numbers(3, 2)}),
            "'words.weight' and 'other.words.weight'; all",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said):
    found = tensors()
    change(found)
    with pytest.raises(PretrainedError, match=said):
        read(LAYOUT, found, "here")


def test_parameters_that_do_not_fit_are_named():
    params = read(LAYOUT, tensors(), "here")
    with pytest.raises(PretrainedError, match=r"parameter 'lora/kernel' is no part"):
        write(LAYOUT, params | {"lora": {"kernel": numbers(2)}})
    with pytest.raises(PretrainedError, match=r"parameter 'embed/table' has shape \(2,\); allowed: \(3, 2\)"):
        write(LAYOUT, params | {"embed": {"table": numbers(2)}})
    del params["output"]
    with pytest.raises(PretrainedError, match=r"parameter 'output/table' is missing"):
        write(LAYOUT, params)
