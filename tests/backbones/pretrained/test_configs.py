"""What a config.json may say: settings that are not ours are refused by name, older spellings mean the
same."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from backbones import masks
from backbones.pretrained import models, modernbert, rope, t5
from backbones.pretrained.fields import Fields
from backbones.pretrained.folder import PretrainedError, read_config
from moe.feed_forward import Context

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "pretrained"
YARN = {"rope_type": "yarn", "factor": 2.0}


def encoder(tmp_path, name, changed):
    """The encoder of a golden config with changes; `...` takes a field away."""
    config = read_config(GOLDEN / name) | changed
    config = {field: value for field, value in config.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return models.encoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("bert", {"model_type": "nomic_bert"}, "model_type is 'nomic_bert' .* allowed: 'bert', "),
        ("bert", {"model_type": ...}, "its config.json has no 'model_type'"),
        ("bert", {"hidden_act": "mish"}, "hidden_act is 'mish' in its config.json; allowed: 'gelu', "),
        ("bert", {"position_embedding_type": "relative_key"}, "is 'relative_key' .* allowed: 'absolute'"),
        ("bert", {"is_decoder": True}, "is_decoder is True in its config.json; allowed: False"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("bert", {"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0 .* allowed: an integer of at least 1"),
        ("bert", {"num_attention_heads": 3}, "num_attention_heads is 3 .* a divisor of hidden_size, 16"),
        ("bert", {"layer_norm_eps": "small"}, "layer_norm_eps is 'small' .* allowed: a number"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id is -1 .* allowed: an integer of at least 0"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings is 2 .* allowed: more than 2"),
        ("distilbert", {"activation": "sin"}, "activation is 'sin'"),
        ("distilbert", {"n_heads": 5}, "n_heads is 5 .* allowed: a divisor of dim, 16"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "attention_num_buckets is 16 .* allowed: 32"),
        ("modernbert", {"norm_bias": 1}, "norm_bias is 1 .* allowed: True, False"),
        ("modernbert", {"layer_types": ["sliding_attention"] * 5}, "layer_types is .* for every n-th of 5"),
        ("modernbert", {"rope_parameters": {"full_attention": YARN}}, "full_attention: rope_type is 'yarn'"),
        ("modernbert", {"rope_parameters": {"full_attention": dict(rope_type="linear", factor=2)}},
         "rope_type is 'linear' .* allowed: 'default'"),
        ("modernbert", {"rope_scaling": YARN, "rope_parameters": ...}, "rope_scaling is .* allowed: None"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'gated-mish'"),
        ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu' in its config.json; allowed: 'relu'"),
        ("t5", {"is_gated_act": True}, "is_gated_act is True in its config.json; allowed: False"),
        ("llama", {"rope_parameters": YARN}, "rope_type is 'yarn' .* allowed: 'default', 'linear', 'llama3'"),
        ("llama", {"rope_parameters": ..., "rope_scaling": {"type": "dynamic"}}, "type is 'dynamic'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "config.json has no 'factor'"),
        ("llama", {"rope_parameters": 3}, "rope_parameters is 3 in its config.json; allowed: an object"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5 .* allowed: 1.0"),
        ("llama", {"num_key_value_heads": 3}, "heads is 3 .* a divisor of num_attention_heads, 4"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "allowed: .'full_attention', 'full_att"),
        ("mistral", {"num_key_value_heads": ...}, "its config.json has no 'num_key_value_heads'"),
        ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "one type for all layers"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "layer_types": ...},
         "max_window_layers is 1 .* allowed: 0, or at least num_hidden_layers, 2"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types is"),
        ("qwen3", {"head_dim": ...}, "head_dim is None .* allowed: an integer of at least 1"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_ours_is_refused(tmp_path, name, changed, said):
    with pytest.raises(PretrainedError, match=said):
        encoder(tmp_path, name, changed)


def test_a_decoder_that_begins_otherwise_is_refused(tmp_path):
    config = read_config(GOLDEN / "t5") | {"decoder_start_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=r"decoder_start_token_id is 2 .* allowed: 0"):
        models.encoder_decoder(tmp_path)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
        ({"rope_theta": 7.0, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 7}}),
        (
            {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 4.0}},
        ),
        (
            {
                "max_position_embeddings": 64,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                },
            },
            {
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8, "low_freq_factor": 1,
                    "high_freq_factor": 4, "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
)  # fmt: skip
def test_both_spellings_of_rotary_positions(older, newer):
    x_BHLd = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 5, 8)), jnp.float32)
    positions_BL = jnp.asarray([[0, 1, 5, 30, 90]])
    turned = [
        rope.rotary(Fields(config, "here"), 10_000.0)(x_BHLd, positions_BL) for config in (older, newer)
    ]
    np.testing.assert_array_equal(*turned)


def test_both_spellings_of_alternating_layers():
    older = {"num_hidden_layers": 7, "global_attn_every_n_layers": 2, "local_rope_theta": 9.0}
    kinds = ["full_attention", "sliding_attention"] * 4
    newer = {
        "num_hidden_layers": 7,
        "layer_types": kinds[:7],
        "rope_parameters": {
            "full_attention": {"rope_theta": 160_000},
            "sliding_attention": {"rope_theta": 9},
        },
    }
    for config in (older, newer):
        assert modernbert._every(Fields(config, "here")) == 2
        assert modernbert._bases(Fields(config, "here")) == (160_000.0, 9.0)
    one = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    assert modernbert._every(Fields(one, "here")) == 1


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({"model_type": "t5"}, True),
        ({"model_type": "t5", "tie_word_embeddings": False}, False),  # as published
        ({"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # newer
        ({"model_type": "mt5", "tie_word_embeddings": True}, False),  # newer releases write so
    ],
)
def test_which_t5_scales_its_output(config, scales):
    assert t5.scales_output(Fields(config, "here")) == scales


@pytest.mark.parametrize(
    ("name", "changed", "before", "after"),
    [
        ("llama", {}, 9, 0),
        ("llama", {"is_causal": False}, 9, 9),
        ("mistral", {}, 2, 0),  # a window of 3 is a position and the 2 before it
        ("mistral", {"is_causal": False}, 3, 3),
        ("mistral", {"sliding_window": None}, 9, 0),
        ("qwen2", {"sliding_window": 3}, 9, 0),  # not used
        (
            "qwen2",
            {"sliding_window": 3, "use_sliding_window": True, "layer_types": ...},
            9,
            0,
        ),  # from layer 28
        (
            "qwen2",
            {"sliding_window": 3, "use_sliding_window": True, "layer_types": ..., "max_window_layers": 0},
            2,
            0,
        ),
        (
            "qwen3",
            {"sliding_window": 3, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2},
            2,
            0,
        ),
        ("qwen3", {"sliding_window": 3, "use_sliding_window": True}, 9, 0),
    ],
)
def test_who_sees_whom_in_a_decoder(tmp_path, name, changed, before, after):
    valid = np.ones((2, 6), bool)
    valid[1, 4:] = False
    context = Context(valid=jnp.asarray(valid))
    visible = encoder(tmp_path, name, changed).visible(context)
    ahead = np.arange(6)[None, :] - np.arange(6)[:, None]
    expected = ((-before <= ahead) & (ahead <= after))[None, None] & valid[:, None, None, :]
    np.testing.assert_array_equal(np.broadcast_to(visible, expected.shape), expected)
    assert masks.padding(context).shape == (2, 1, 1, 6)
