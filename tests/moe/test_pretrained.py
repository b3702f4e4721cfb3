"""Published blocks equal those of transformers on tiny random weights; see golden/make_moe_blocks.py."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import pretrained
from moe.feed_forward import Context

PREFIX = "model.layers.0.mlp"
LOADERS = {
    "mixtral": pretrained.mixtral,
    "qwen2": pretrained.qwen_moe,
    "qwen3": pretrained.qwen_moe,
    "olmoe": pretrained.olmoe,
    "deepseek_v2_lite": pretrained.deepseek,
    "deepseek_v2": pretrained.deepseek,
    "deepseek_v3": pretrained.deepseek,
}


def golden(name):
    """Returns (state under PREFIX, config, arrays) of tests/golden/moe_<name>.npz."""
    file = pathlib.Path(__file__).parents[1] / "golden" / f"moe_{name}.npz"
    with np.load(file) as arrays:
        arrays = dict(arrays)
    state = {
        f"{PREFIX}.{key.removeprefix('state.')}": value
        for key, value in arrays.items()
        if key.startswith("state.")
    }
    return state, json.loads(str(arrays["config"])), arrays


@functools.partial(jax.jit, static_argnums=0)
def run(mixture, variables, x_BLD):
    context = Context(valid=jnp.ones(x_BLD.shape[:2], bool))
    (y_BLD, _, aux), recorded = mixture.apply(variables, x_BLD, context, (), mutable=["routing"])
    return y_BLD, aux, recorded["routing"]["choice"]


@pytest.mark.parametrize("name", LOADERS)
def test_a_block_equals_the_published_one(name):
    state, config, arrays = golden(name)
    mixture, variables = LOADERS[name](state, PREFIX, config)
    y_BLD, _, choice = run(mixture, variables, arrays["input"])

    assert choice.keep.all()
    chosen_TK = np.sort(np.asarray(choice.expert).reshape(arrays["experts"].shape), axis=-1)
    np.testing.assert_array_equal(chosen_TK, arrays["experts"])
    expected = arrays["output"]
    assert np.abs(y_BLD - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", LOADERS)
def test_the_parameters_are_those_of_a_new_layer(name):
    """So that what is loaded can be trained, sharded by the same rules and saved as any other."""
    state, config, arrays = golden(name)
    mixture, variables = LOADERS[name](state, PREFIX, config)
    x_BLD = arrays["input"]
    context = Context(valid=jnp.ones(x_BLD.shape[:2], bool))
    fresh = jax.eval_shape(mixture.init, jax.random.key(0), x_BLD, context, ())
    of = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert of(variables) == of(fresh)


@pytest.mark.parametrize("name", LOADERS)
def test_every_tensor_counts(name):
    """A changed tensor changes the output: none is read and then left aside."""
    state, config, arrays = golden(name)
    mixture, variables = LOADERS[name](state, PREFIX, config)
    before = run(mixture, variables, arrays["input"])[0]
    for key in sorted(state):
        if ".experts." in key and ".experts.0." not in key:
            continue
        changed = {**state, key: -2 * state[key]}
        after = run(*LOADERS[name](changed, PREFIX, config), arrays["input"])[0]
        assert not np.array_equal(before, after), key


def test_a_tensor_that_is_missing_is_named():
    state, config, _ = golden("mixtral")
    del state[f"{PREFIX}.experts.3.w2.weight"]
    with pytest.raises(ValueError, match=r"state has no 'model.layers.0.mlp.experts.3.w2.weight'"):
        pretrained.mixtral(state, PREFIX, config)


def test_a_tensor_that_is_left_over_is_named():
    state, config, _ = golden("qwen2")
    del config["shared_expert_intermediate_size"]
    with pytest.raises(ValueError, match=r"mlp.shared_expert.down_proj.weight', which is no part"):
        pretrained.qwen_moe(state, PREFIX, config)


def test_other_layers_of_the_checkpoint_are_left_alone():
    state, config, arrays = golden("olmoe")
    state["model.layers.0.mlp_norm.weight"] = np.ones(8, np.float32)
    state["model.layers.1.mlp.gate.weight"] = np.ones((8, 8), np.float32)
    mixture, variables = pretrained.olmoe(state, PREFIX + ".", config)
    assert run(mixture, variables, arrays["input"])[0].shape == arrays["output"].shape


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_experts", None, "config has no 'num_experts'"),
        ("num_experts", 0, "num_experts is 0; allowed: an integer of at least 1"),
        ("num_experts", 7, r"gate.weight has the shape \(8, 8\); allowed: 7 rows"),
        ("norm_topk_prob", "no", "norm_topk_prob is 'no'; allowed: True, False"),
        ("hidden_act", "relu", "hidden_act is 'relu'; allowed: 'silu'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(field, value, said):
    state, config, _ = golden("olmoe")
    config[field] = value
    if value is None:
        del config[field]
    with pytest.raises(ValueError, match=said):
        pretrained.olmoe(state, PREFIX, config)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("deepseek_v2", {"topk_method": "best"}, "topk_method is 'best'; allowed: 'greedy', 'group_limited"),
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; allowed: 'softmax'"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True; allowed: False"),
        ("deepseek_v2", {"n_shared_experts": 3}, r"gate_proj.weight has the shape .* allowed: 18 rows"),
        ("deepseek_v2", {"topk_group": 5}, "topk_groups is 5; allowed: 1 to num_groups, 4"),
        ("deepseek_v3", {"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False},
         "e_score_correction_bias', which is no part"),
    ],
)  # fmt: skip
def test_a_deepseek_config_that_does_not_fit_is_refused(name, changed, said):
    state, config, _ = golden(name)
    with pytest.raises(ValueError, match=said):
        pretrained.deepseek(state, PREFIX, {**config, **changed})


def test_the_fields_of_the_first_deepseek_config():
    """DeepSeekMoE 16B's config.json has no topk_method and no routed_scaling_factor."""
    state, config, arrays = golden("deepseek_v2_lite")
    for field in ("topk_method", "routed_scaling_factor"):
        del config[field]
    y_BLD = run(*pretrained.deepseek(state, PREFIX, config), arrays["input"])[0]
    assert np.abs(y_BLD - arrays["output"]).max() <= 1e-5 * np.abs(arrays["output"]).max()
