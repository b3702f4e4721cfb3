"""Losses that spread tokens over experts: pure functions of the sums of `moe.sums`.

Each takes the sums of a batch with any axes before [B, ...], such as the layers of an encoder, and returns a
float32 scalar, the mean over those axes. Arrays are those of the global batch under jit, and so is what is
balanced; `micro_load_balancing` and `sequence_load_balancing` balance smaller things. Weights of the losses,
and what is done with a batch that is computed in microbatches, are in `moe.auxiliary`.

    f_i = count_i / sum_j count_j        the share of the edges that expert i has; it has no gradient
    P_i = probability_i / tokens         the router's mean probability of it

The load-balancing losses are E sum_i f_i P_i: 1 at perfect balance and E when one expert has all, whatever K.
With K = 1 this is that of Switch; DeepSeek's expert-level loss is the same for any K. Implementations that
count K edges a token without dividing by K, such as Hugging Face's of Mixtral, give K times ours. GShard's
counts first choices only. Where experts choose, f is even by construction and none of them has a use.

Shazeer's load loss, a smooth estimate of f under his noise, is not here: it is a function of the noise.

Dimensions: B batch, E experts, X domains.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Sums = Mapping[str, jax.Array]


def load_balancing(sums: Sums) -> jax.Array:
    """E sum_i f_i P_i over the whole batch.

    Fedus et al. (2022), "Switch Transformers". Over a global batch, as here, it is that of Qiu et al. (2025),
    "Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert
    Models".

    Args:
      sums: with `count`, `probability` and `tokens`; `count_before`, like `count`, is added to it where it is
        given.
    """
    count_BE = of(sums, "count")
    if "count_before" in sums:
        count_BE = count_BE + sums["count_before"]
    return _product(count_BE.sum(-2), of(sums, "probability").sum(-2), sums["tokens"].sum(-1)).mean()


def micro_load_balancing(sums: Sums, *, parts: int) -> jax.Array:
    """The mean of E sum_i f_i P_i over `parts` consecutive runs of the batch's rows.

    It is what data-parallel training without an exchange of f computes, the "micro-batch" of Qiu et al.
    (2025); here the parts are a config value, and the same on any number of devices. Parts without a token
    count for nothing.

    Raises:
      ValueError: `parts` does not divide the rows.
    """
    rows = of(sums, "count").shape[-2]
    if parts < 1 or rows % parts:
        raise ValueError(f"parts is {parts}; allowed: a divisor of the batch's {rows} rows")
    cut = lambda x_BE: x_BE.reshape(*x_BE.shape[:-2], parts, rows // parts, x_BE.shape[-1]).sum(-2)
    tokens_P = cut(sums["tokens"][..., None])[..., 0]
    return _mean(_product(cut(sums["count"]), cut(of(sums, "probability")), tokens_P), tokens_P)


def sequence_load_balancing(sums: Sums) -> jax.Array:
    """The mean of E sum_i f_i P_i over the sequences of the batch that have a token.

    DeepSeek-AI (2024), "DeepSeek-V3 Technical Report", sequence-wise balance loss. Ours counts the experts
    that were chosen; with `moe.loss_free.LossFree` the bias has a say in them, where theirs counts the best K
    without it.
    """
    tokens_B = sums["tokens"]
    return _mean(_product(of(sums, "count"), of(sums, "probability"), tokens_B), tokens_B)


def device_load_balancing(sums: Sums, *, devices: int) -> jax.Array:
    """Load balancing of groups of E / devices consecutive experts rather than of experts.

    Dai et al. (2024), "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts Language
    Models", device-level balance loss. The groups are a config value, not taken from the mesh.

    Raises:
      ValueError: `devices` does not divide E.
    """
    experts = of(sums, "count").shape[-1]
    if devices < 1 or experts % devices:
        raise ValueError(f"devices is {devices}; allowed: a divisor of the {experts} experts")
    joined = lambda x_BE: x_BE.reshape(*x_BE.shape[:-1], devices, -1).sum(-1)
    by_expert = [name for name in ("count", "count_before", "probability") if name in sums]
    return load_balancing({**sums, **{name: joined(sums[name]) for name in by_expert}})


def importance(sums: Sums) -> jax.Array:
    """The squared coefficient of variation over experts of the weights that the batch gives them.

        CV(I)^2 = var(I) / mean(I)^2, I_i = sum of expert i's weights

    Shazeer et al. (2017), "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer".
    """
    weight_E = of(sums, "weight").sum(-2)
    squared_mean = jnp.square(weight_E.mean(-1))
    return (weight_E.var(-1) / jnp.maximum(squared_mean, 1e-10)).mean()


def router_z(sums: Sums) -> jax.Array:
    """The mean over tokens of (log sum_i exp logit_i)^2, which keeps logits small.

    Zoph et al. (2022), "ST-MoE: Designing Stable and Transferable Sparse Expert Models".
    """
    return (of(sums, "z").sum(-1) / jnp.maximum(sums["tokens"].sum(-1), 1)).mean()


def local_entropy(sums: Sums, *, domains: tuple[int, ...] = ()) -> jax.Array:
    """The mean over tokens of the entropy of their probabilities, summed over domains: each token should be
    sure of its experts.

    Mustafa et al. (2022), "Multimodal Contrastive Learning with LIMoE: the Language-Image Mixture of
    Experts", where a domain is a modality, and text alone has this loss.

    Args:
      sums: with `entropy`, `tokens`, and, where `domains` are asked for, `domains` int [B]: that of a row.
      domains: which ones; () makes the batch one.
    """
    mine = _of_domains(sums, domains)
    entropy_X, tokens_X = _by_domain(of(sums, "entropy"), mine), _by_domain(sums["tokens"], mine)
    return (entropy_X / jnp.maximum(tokens_X, 1)).sum(-1).mean()


def global_entropy(sums: Sums, *, domains: tuple[int, ...] = (), threshold: float | None = None) -> jax.Array:
    """Less the entropy of the mean probability, summed over domains: each should use several experts.

        -H(P of the domain), and with a threshold max(0, threshold - H(P of the domain))

    Mustafa et al. (2022), LIMoE. A threshold of log S leaves a domain alone once it uses about S experts
    evenly. A domain without a token in the batch counts for nothing.

    Args:
      sums: with `probability`, `tokens`, and, where `domains` are asked for, `domains` int [B].
      domains: which ones; () makes the batch one.
      threshold: nats, or None.
    """
    mine = _of_domains(sums, domains)
    probability_XE = jnp.einsum("...be,bx->...xe", of(sums, "probability"), mine)
    tokens_X = _by_domain(sums["tokens"], mine)
    mean_XE = probability_XE / jnp.maximum(tokens_X, 1)[..., None]
    # A mean of 0 has no gradient, where that of its entropy would be infinite: a domain without a token has
    # only such.
    positive_XE = jnp.where(mean_XE > 0, mean_XE, 1.0)
    entropy_X = -(positive_XE * jnp.log(positive_XE)).sum(-1)
    loss_X = -entropy_X if threshold is None else jnp.maximum(threshold - entropy_X, 0.0)
    return jnp.where(tokens_X > 0, loss_X, 0.0).sum(-1).mean()


def of(sums: Sums, name: str) -> jax.Array:
    """Returns one of the sums. Raises ValueError if the layers do not give it."""
    if name not in sums:
        raise ValueError(
            f"the layers give no {name!r}; allowed: losses of {', '.join(sorted(sums))} (a router without "
            "logits has no probability, z and entropy)"
        )
    return sums[name]


def _product(count_E: jax.Array, probability_E: jax.Array, tokens: jax.Array) -> jax.Array:
    """E sum_i f_i P_i, 0 where there is no token."""
    share_E = count_E / jnp.maximum(count_E.sum(-1, keepdims=True), 1)
    mean_E = probability_E / jnp.maximum(tokens, 1)[..., None]
    return count_E.shape[-1] * (share_E * mean_E).sum(-1)


def _mean(of_part: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean over the parts that have a token, and then over all axes before."""
    some = (tokens > 0).astype(jnp.float32)
    return (of_part.sum(-1) / jnp.maximum(some.sum(-1), 1)).mean()


def _of_domains(sums: Sums, domains: tuple[int, ...]) -> jax.Array:
    """float32 [B, X]: which rows are of which domain."""
    if not domains:
        return jnp.ones((sums["tokens"].shape[-1], 1), jnp.float32)
    if "domains" not in sums:
        raise ValueError(f"domains is {domains}; allowed: () where the rows of the batch have no domain")
    return (sums["domains"][:, None] == jnp.asarray(domains, jnp.int32)[None]).astype(jnp.float32)


def _by_domain(x_B: jax.Array, mine_BX: jax.Array) -> jax.Array:
    """A number of each row added up by domain, [..., X]."""
    return jnp.einsum("...b,bx->...x", x_B, mine_BX)
