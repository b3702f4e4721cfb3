"""Mixtures of experts from published checkpoints: Mixtral, Qwen-MoE, OLMoE and DeepSeek.

    mixture, variables = mixtral(state, "model.layers.0.block_sparse_moe", config)
    y_BLD, _, _ = mixture.apply(variables, x_BLD, context, ())

`state` maps the names of a checkpoint in the format of Hugging Face to arrays, each expert under a name of
its own (`experts.0.gate_proj.weight`), as the checkpoints are published; `config` holds the values of its
config.json. Each function says which fields it reads. All tensors under the prefix are used, or the first
that is left over is named; none may be missing. The published blocks serve every token, and so does the
default dispatcher.

A linear layer of theirs is [outputs, inputs], a kernel of ours [inputs, outputs].

Dimensions: B batch, L length, D model width, E experts, F width of an expert.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from moe import experts, feed_forward
from moe.dispatch import Dispatcher
from moe.dropless import Dropless
from moe.group_limit import GroupLimit
from moe.loss_free import COLLECTION, LossFree
from moe.mixture import Mixture
from moe.routers import TopK
from moe.shared import Weighted

SERVES_ALL = Dropless()

State = Mapping[str, Any]
Loaded = tuple[Mixture, dict[str, Any]]

_METHODS = {"greedy": "softmax", "group_limited_greedy": "softmax", "noaux_tc": "sigmoid"}
_GATED = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}


def mixtral(
    state: State, prefix: str, config: Mapping[str, Any], dispatcher: Dispatcher = SERVES_ALL
) -> Loaded:
    """The block `block_sparse_moe` of Jiang et al. (2024), "Mixtral of Experts".

    Softmax, the best K, their probabilities divided by their sum.

    Args:
      state: checkpoint name -> array.
      prefix: of the block's names, such as "model.layers.0.block_sparse_moe".
      config: read are num_local_experts, num_experts_per_tok and hidden_act.
      dispatcher: see `moe.dispatch`.

    Returns:
      the layer, and its variables, float32.

    Raises:
      ValueError: a field of config, or a tensor, is missing or not as expected; a tensor is left over.
    """
    fields, tensors = _Fields(config), _Tensors(state, prefix)
    num_experts = fields.count("num_local_experts")
    router = TopK(num_experts, fields.count("num_experts_per_tok"), renormalize=True)
    return _mixture(fields, tensors, router, dispatcher, names={"gate": "w1", "in": "w3", "out": "w2"})


def qwen_moe(
    state: State, prefix: str, config: Mapping[str, Any], dispatcher: Dispatcher = SERVES_ALL
) -> Loaded:
    """The block `mlp` of Qwen1.5-MoE, Qwen2-MoE (Yang et al., 2024, "Qwen2 Technical Report") and Qwen3-MoE
    (Yang et al., 2025, "Qwen3 Technical Report").

    Softmax and the best K; beside them, in the first two, a shared expert with a gate of its own.

    Args:
      state, prefix, dispatcher: see `mixtral`; a prefix is such as "model.layers.0.mlp".
      config: read are num_experts, num_experts_per_tok, norm_topk_prob, hidden_act, and
        shared_expert_intermediate_size, without which nothing is shared.

    Returns, Raises: see `mixtral`.
    """
    fields, tensors = _Fields(config), _Tensors(state, prefix)
    router = _top_k(fields)
    shared, shared_params = None, None
    if config.get("shared_expert_intermediate_size"):
        width = fields.count("shared_expert_intermediate_size")
        shared = Weighted(feed_forward.Gated(width, activation=fields.activation()))
        shared_params = {
            "layer": _dense(tensors, "shared_expert", width),
            "weight": {"kernel": tensors.take("shared_expert_gate.weight", rows=1).T},
        }
    return _mixture(fields, tensors, router, dispatcher, shared=shared, shared_params=shared_params)


def olmoe(
    state: State, prefix: str, config: Mapping[str, Any], dispatcher: Dispatcher = SERVES_ALL
) -> Loaded:
    """The block `mlp` of Muennighoff et al. (2024), "OLMoE: Open Mixture-of-Experts Language Models".

    Softmax and the best K.

    Args:
      state, prefix, dispatcher: see `mixtral`; a prefix is such as "model.layers.0.mlp".
      config: read are num_experts, num_experts_per_tok, norm_topk_prob and hidden_act.

    Returns, Raises: see `mixtral`.
    """
    fields, tensors = _Fields(config), _Tensors(state, prefix)
    return _mixture(fields, tensors, _top_k(fields), dispatcher)


def deepseek(
    state: State, prefix: str, config: Mapping[str, Any], dispatcher: Dispatcher = SERVES_ALL
) -> Loaded:
    """The block `mlp` of DeepSeekMoE (Dai et al., 2024), DeepSeek-V2 and DeepSeek-V3 (DeepSeek-AI, 2024).

    `topk_method` says which: "greedy", the best K of a softmax (DeepSeekMoE, DeepSeek-V2-Lite);
    "group_limited_greedy", those of the best groups (DeepSeek-V2); "noaux_tc", of the best groups by sigmoid
    scores with a bias, which is no part of the weights (DeepSeek-V3). The bias is the variable
    "router/bias" of the collection "balance". Beside them stand the shared experts, as one of their widths
    together.

    Experts outside of a token's groups are out of the question, as in the authors' code; transformers gives
    them the score 0, which a score with a negative bias may be below.

    Args:
      state, prefix, dispatcher: see `mixtral`; a prefix is such as "model.layers.1.mlp".
      config: read are n_routed_experts, num_experts_per_tok, norm_topk_prob, hidden_act; topk_method,
        scoring_func, routed_scaling_factor and n_shared_experts, which are "greedy", "softmax", 1 and none
        where they are not there; moe_intermediate_size where experts are shared, n_group and topk_group where
        groups are limited.

    Returns, Raises: see `mixtral`.
    """
    fields, tensors = _Fields(config), _Tensors(state, prefix)
    method = fields.one_of("topk_method", *_METHODS, default="greedy")
    fields.one_of("scoring_func", _METHODS[method], default="softmax")
    chosen = dict(
        num_experts=fields.count("n_routed_experts"),
        k=fields.count("num_experts_per_tok"),
        scaling=float(fields.get("routed_scaling_factor", 1.0)),
    )
    balance = None
    if method == "noaux_tc":
        router = LossFree(
            **chosen,
            renormalize=fields.one_of("norm_topk_prob", True, False),
            limit=GroupLimit(fields.count("n_group"), fields.count("topk_group"), best=2),
        )
        bias_E = tensors.take("gate.e_score_correction_bias", rows=chosen["num_experts"])
        balance = {COLLECTION: {"router": {"bias": bias_E}}}
    else:
        fields.one_of("norm_topk_prob", False)
        limit = None
        if method == "group_limited_greedy":
            limit = GroupLimit(fields.count("n_group"), fields.count("topk_group"))
        router = TopK(**chosen, renormalize=False, limit=limit)
    shared, shared_params = None, None
    if fields.get("n_shared_experts", None):
        width = fields.count("n_shared_experts") * fields.count("moe_intermediate_size")
        shared = feed_forward.Gated(width, activation=fields.activation())
        shared_params = _dense(tensors, "shared_experts", width)
    return _mixture(
        fields, tensors, router, dispatcher, shared=shared, shared_params=shared_params, state=balance
    )


def _top_k(fields: "_Fields") -> TopK:
    return TopK(
        fields.count("num_experts"),
        fields.count("num_experts_per_tok"),
        renormalize=fields.one_of("norm_topk_prob", True, False),
    )


def _mixture(
    fields: "_Fields",
    tensors: "_Tensors",
    router: nn.Module,
    dispatcher: Dispatcher,
    *,
    names: Mapping[str, str] = _GATED,
    shared: nn.Module | None = None,
    shared_params: Any = None,
    state: Mapping[str, Any] | None = None,
) -> Loaded:
    """Puts the layer together, when all of its parts but router kernel and experts have been read.

    Args:
      names: our kernel -> theirs.
      state: of the collections besides params.
    """
    params = {
        "router": {"score": {"kernel": tensors.take("gate.weight", rows=router.num_experts).T}},
        "experts": _stacked(tensors, router.num_experts, names),
    }
    if shared is not None:
        params["shared"] = shared_params
    tensors.finish()
    width = params["experts"]["in"].shape[-1]
    mixture = Mixture(
        router=router,
        experts=experts.Gated(width, activation=fields.activation()),
        dispatcher=dispatcher,
        shared=shared,
    )
    return mixture, {"params": params, **(state or {})}


def _stacked(tensors: "_Tensors", num_experts: int, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The kernels of all experts, "gate" and "in" [E, D, F], "out" [E, F, D]."""
    return {
        ours: np.stack([tensors.take(f"experts.{e}.{theirs}.weight").T for e in range(num_experts)])
        for ours, theirs in names.items()
    }


def _dense(tensors: "_Tensors", name: str, width: int) -> dict[str, Any]:
    """The parameters of a gated perceptron of the given width that every token goes through."""
    rows = {"gate": width, "in": width, "out": None}
    return {
        ours: {"kernel": tensors.take(f"{name}.{theirs}.weight", rows=rows[ours]).T}
        for ours, theirs in _GATED.items()
    }


class _Fields:
    """The values of a config.json, by name."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def get(self, name: str, *default: Any) -> Any:
        if name not in self._config and not default:
            raise ValueError(f"config has no {name!r}")
        return self._config.get(name, *default)

    def count(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"config: {name} is {value!r}; allowed: an integer of at least 1")
        return value

    def one_of(self, name: str, *allowed: Any, **default: Any) -> Any:
        value = self.get(name, *default.values())
        if value not in allowed:
            raise ValueError(f"config: {name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        return value

    def activation(self) -> Any:
        self.one_of("hidden_act", "silu")
        return nn.silu


class _Tensors:
    """The tensors under a prefix, each taken once."""

    def __init__(self, state: State, prefix: str):
        self._state = state
        self._prefix = prefix.removesuffix(".") + "." if prefix else ""
        self._left = {name for name in state if name.startswith(self._prefix)}

    def take(self, name: str, rows: int | None = None) -> np.ndarray:
        """Returns a tensor as float32. Raises ValueError if it is missing, or has not that many rows."""
        full = self._prefix + name
        if full not in self._left:
            raise ValueError(f"state has no {full!r}")
        self._left.remove(full)
        array = np.asarray(self._state[full], np.float32)
        if rows is not None and len(array) != rows:
            raise ValueError(f"{full} has the shape {array.shape}; allowed: {rows} rows")
        return array

    def finish(self) -> None:
        """Raises ValueError if a tensor has not been taken."""
        if self._left:
            raise ValueError(f"state has {min(self._left)!r}, which is no part of such a block")
