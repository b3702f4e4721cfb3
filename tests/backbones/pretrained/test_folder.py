"""Folders of Hugging Face: shards, half precision, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from backbones.pretrained.folder import PretrainedError, open_folder, read_config, write_folder

CONFIG = {"model_type": "bert"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def sharded(folder, shards, weight_map=None):
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    listed = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": listed if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_what_is_written_is_read(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([-1.5])}
    write_folder(tmp_path / "new" / "folder", CONFIG, tensors)
    found = open_folder(tmp_path / "new" / "folder")
    assert (found.config, set(found.tensors), len(found.tensors)) == (CONFIG, {"a", "b"}, 2)
    np.testing.assert_array_equal(found.tensors["a"], tensors["a"])
    np.testing.assert_array_equal(found.tensors["b"], tensors["b"])
    with pytest.raises(PretrainedError, match=r"has a model.safetensors already; allowed: a folder without"):
        write_folder(tmp_path / "new" / "folder", CONFIG, tensors)


def test_shards_are_one_checkpoint(folder):
    shards = {"one.safetensors": {"a": np.float32([1, 2])}, "two.safetensors": {"b": np.float32([[3]])}}
    sharded(folder, shards)
    tensors = open_folder(folder).tensors
    assert {name: tensors[name].tolist() for name in tensors} == {"a": [1, 2], "b": [[3]]}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_widths_are_read_as_float32(folder, dtype):
    save_file({"a": np.asarray([1.5, -2.0, 0.25], dtype)}, folder / "model.safetensors")
    found = open_folder(folder).tensors["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2.0, 0.25])


def test_integers_are_no_weights(folder):
    """A quantized checkpoint, say; a buffer of positions is never read."""
    save_file({"a": np.arange(3)}, folder / "model.safetensors")
    tensors = open_folder(folder).tensors
    with pytest.raises(PretrainedError, match=r"a is I64; allowed: F64, F32, F16, BF16"):
        tensors["a"]


def test_pickled_weights_are_refused_with_the_reason(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        PretrainedError, match=r"pytorch_model.bin alone, a pickle, which can run any program"
    ):
        open_folder(folder)
    save_file({"a": np.float32([1])}, folder / "model.safetensors")
    assert set(open_folder(folder).tensors) == {"a"}  # beside safetensors it is left alone


def test_a_folder_without_what_is_needed(tmp_path):
    with pytest.raises(PretrainedError, match=r"nowhere is no folder; allowed: a local folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(PretrainedError, match=r"has no config.json"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PretrainedError, match=r"holds a list; allowed: an object"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(PretrainedError, match=r"config.json is not JSON"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PretrainedError, match=r"has no weights; allowed: model.safetensors"):
        open_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(PretrainedError, match=r"model.safetensors is no safetensors file"):
        open_folder(tmp_path)


def test_shards_that_do_not_fit_their_index(folder):
    shards = {"one.safetensors": {"a": np.float32([1]), "b": np.float32([2])}}
    sharded(folder, shards, weight_map={"a": "one.safetensors"})
    with pytest.raises(PretrainedError, match=r"disagree about 'b'"):
        open_folder(folder)
    sharded(folder, shards, weight_map={"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(PretrainedError, match=r"disagree about 'b'|has no shard 'two.safetensors'"):
        open_folder(folder)
    sharded(folder, shards, weight_map={"a": "../one.safetensors", "b": "../one.safetensors"})
    with pytest.raises(PretrainedError, match=r"has no shard '../one.safetensors'"):
        open_folder(folder)
    sharded(folder, shards, weight_map=[])
    with pytest.raises(PretrainedError, match=r"has no weight_map"):
        open_folder(folder)
