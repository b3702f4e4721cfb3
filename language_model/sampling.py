"""Text from a language model, a token at a time with a cache, in one compiled loop.

Letters: B texts, P tokens of the longest prompt, N new tokens, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def sample(
    model: nn.Module,
    variables: Any,
    tokens_BP: jax.Array,
    mask_BP: jax.Array,
    key: jax.Array,
    *,
    length: int,
    end_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    domains_B: jax.Array | None = None,
    allow_batch_dependence: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Goes on with each prompt until the end token or the length. A pure function; give it to jax.jit with
    everything from `length` on but `domains_B`, and the model, fixed.

    The token at a place depends on the key, the number of its row and the place: not on how many other rows
    there are, as far as the model's logits do not.

    Args:
      model: such as `backbones.decoder.TransformerDecoder`, with `start` and `step`.
      variables: what it is applied with.
      tokens_BP: int32, prompts with their begin token, filled up behind.
      mask_BP: True or 1 where there is a token: one at least in each row, and none behind a gap.
      key: random.
      length: N, new tokens at most.
      end_id: the token that ends a text; another than any in the vocabulary, such as -1, for none.
      temperature, top_k, top_p: see `restrict`; a temperature of 0 takes the likeliest token.
      domains_B: int32, the domain of each text, for a model that reads it, such as one with the router
        `moe.tables.ByDomain`; None for none.
      allow_batch_dependence: whether a text may depend on the others, see `moe.leakage`.

    Returns:
      tokens int32 [B, N], `end_id` behind the end of a text; and their log-likelihood under the model as it
      is (temperature 1, nothing left out), float32 [B, N], 0 behind the end.

    Raises:
      ValueError: a number is out of range, or the model reads domains and there are none.
      DependenceError: a text depends on the others in the batch, and that is not allowed.
    """
    check(length=length, temperature=temperature, top_k=top_k, top_p=top_p)
    batch, prompt = tokens_BP.shape
    rows_B = jnp.arange(batch)
    domains = {} if domains_B is None else {"domains": domains_B}

    def choose(logits_BV: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        if temperature == 0:
            token_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        else:
            keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), place))(rows_B)
            left_BV = restrict(logits_BV, temperature=temperature, top_k=top_k, top_p=top_p)
            token_B = jax.vmap(jax.random.categorical)(keys, left_BV).astype(jnp.int32)
        own_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
        return token_B, own_B - jax.nn.logsumexp(logits_BV, axis=-1)

    def step(tokens_BL: jax.Array, mask_BL: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        read = {"tokens": tokens_BL, "mask": mask_BL, **domains}
        decoded, cache = model.apply(variables, read, cache, method="step")
        return decoded.logits, cache

    cache = model.apply(
        variables,
        batch,
        prompt + length,
        allow_batch_dependence=allow_batch_dependence,
        method="start",
    )
    logits_BPV, cache = step(tokens_BP, mask_BP, cache)
    last_B = mask_BP.astype(jnp.int32).sum(axis=1) - 1
    logits_BV = jnp.take_along_axis(logits_BPV, last_B[:, None, None], axis=1)[:, 0]

    def going_on(carry):
        place, ended_B, *_ = carry
        return (place < length) & ~ended_B.all()

    def one(carry):
        place, ended_B, logits_BV, cache, made_BN, found_BN = carry
        token_B, found_B = choose(logits_BV, place)
        token_B = jnp.where(ended_B, end_id, token_B)
        made_BN = made_BN.at[:, place].set(token_B)
        found_BN = found_BN.at[:, place].set(jnp.where(ended_B, 0.0, found_B))
        ended_B = ended_B | (token_B == end_id)
        logits_B1V, cache = step(jnp.where(ended_B, 0, token_B)[:, None], ~ended_B[:, None], cache)
        return place + 1, ended_B, logits_B1V[:, 0], cache, made_BN, found_BN

    made_BN = jnp.full((batch, length), end_id, jnp.int32)
    first = (0, jnp.zeros(batch, bool), logits_BV, cache, made_BN, jnp.zeros((batch, length), jnp.float32))
    *_, made_BN, found_BN = jax.lax.while_loop(going_on, one, first)
    return made_BN, found_BN


def restrict(
    logits_BV: jax.Array, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> jax.Array:
    """The logits that tokens are drawn by: divided by the temperature, and -inf for what is left out.

    Args:
      logits_BV: float32.
      temperature: above 0; below 1 the likely become likelier.
      top_k: the k likeliest stay, more where the last ones tie (Fan et al., 2018, "Hierarchical Neural Story
        Generation"); 0 for all.
      top_p: of those, the likeliest stay that are together as likely as p: the fewest, but more where the
        last ones tie (Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration"); 1 for all.
    """
    logits_BV = logits_BV / temperature
    vocabulary = logits_BV.shape[-1]
    if 0 < top_k < vocabulary:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if top_p < 1:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        stays_BV = before_BV < top_p  # the likeliest always does
        least_B1 = jnp.min(jnp.where(stays_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return logits_BV


def check(*, length: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raises ValueError where a number that sampling is asked for is out of range."""
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; allowed: 0 or more")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; allowed: 0 or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; allowed: above 0 and up to 1")
