"""Routers that look experts up: by token id, by domain, or by both. They have no scores and nothing to train.

A table is made from a seed, on the host, whenever a model is traced; it is no parameter and is not saved.
Layers that are made from one template share it. A config names a function that waits for the number of
experts:

    router=dict(
        name="moe.tables.ByToken",
        num_experts=16,
        table=dict(name="moe.tables.random", vocabulary=30522, seed=1),
    )

A token id or domain that a table does not have, such as the -1 of a position without a token, goes to no
expert.

Dimensions: G groups, S tokens of a group, D model width, E experts, K choices, V vocabulary, X domains.
"""

import heapq
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from moe.groups import Tokens
from moe.leakage import each_token_alone
from moe.routing import Choice, Routing, replayed_choices, token_choice

NO_EXPERT = -1  # in a table


def random(num_experts: int, *, vocabulary: int, seed: int = 0) -> np.ndarray:
    """Returns a table int32 [V] that gives each token id one of the experts, all equally likely.

    The random hash of Roller et al. (2021), "Hash Layers For Large Sparse Models".
    """
    return np.random.default_rng(seed).integers(num_experts, size=vocabulary, dtype=np.int32)


def balanced(num_experts: int, *, frequencies: Any) -> np.ndarray:
    """Returns a table int32 [V] in which experts have about the same number of training tokens: from the
    commonest id to the rarest, each goes to the expert that has the fewest tokens so far.

    The balanced assignment of Roller et al. (2021), "Hash Layers For Large Sparse Models". Ids that the
    training text never has weigh nothing; they go to the expert with the fewest ids.

    Args:
      num_experts: E.
      frequencies: float [V], how often each id occurs, or the path of a .npy file with them.

    Raises:
      ValueError: a frequency is negative, or they are no vector.

    >>> balanced(2, frequencies=[5, 1, 3, 3]).tolist()
    [0, 0, 1, 1]
    """
    frequency_V = _array(frequencies).astype(np.float64)
    if frequency_V.ndim != 1 or not (frequency_V >= 0).all():
        raise ValueError(
            f"frequencies have the shape {frequency_V.shape}; allowed: [V] numbers of at least 0"
        )
    table_V = np.empty(len(frequency_V), np.int32)
    loads = [(0.0, expert) for expert in range(num_experts)]  # a heap
    ids = np.zeros(num_experts, np.int64)
    for token in np.argsort(-frequency_V, kind="stable"):
        if frequency_V[token] > 0:
            load, expert = loads[0]
            heapq.heapreplace(loads, (load + frequency_V[token], expert))
        else:
            expert = int(ids.argmin())
        table_V[token] = expert
        ids[expert] += 1
    return table_V


def given(num_experts: int, *, experts: Any) -> np.ndarray:
    """Returns a table int32 [V], or [V, K] for K experts an id, as it is.

    Args:
      num_experts: E.
      experts: the table, or the path of a .npy file with it. -1 for no expert.

    Raises:
      ValueError: it is of another shape, not of integers, or names an expert that there is not.
    """
    table = _array(experts)
    if table.ndim not in (1, 2) or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"experts are {table.dtype} {table.shape}; allowed: integers [V] or [V, K]")
    if table.size and not (table.min() >= NO_EXPERT and table.max() < num_experts):
        raise ValueError(f"experts are {table.min()} to {table.max()}; allowed: -1 to {num_experts - 1}")
    return table.astype(np.int32)


class ByToken(nn.Module):
    """The expert of a token id, with the weight 1; of several, each has the same part of it.

    Roller et al. (2021), "Hash Layers For Large Sparse Models", with the table `random` or `balanced`. With a
    table of one expert an id, or a few ids, it is the routing of dos Santos et al. (2024), "Memory Augmented
    Language Models through Mixture of Word Experts", as far as the vocabulary of the model itself is their
    routing vocabulary; theirs is a larger one.

    Attributes:
      num_experts: E.
      table: from E to int [V] or [V, K], such as `random` with its vocabulary.
    """

    num_experts: int
    table: Callable[[int], np.ndarray]

    dependence = each_token_alone

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of K edges a token.

        Raises:
          ValueError: the batch has no token ids.
        """
        del x_GSD
        table = given(self.num_experts, experts=self.table(self.num_experts))
        return _look_up(table.reshape(len(table), -1), _ids(tokens), self.num_experts, replay)


class ByDomain(nn.Module):
    """All experts of a sequence's domain, each with the same weight; they add up to 1.

    The enforced routing of Hallee et al. (2024), "Contrastive Learning and Mixture of Experts Enables Precise
    Vector Embeddings", has an expert a domain. In Zhang et al. (2022), "SkillNet-NLU: A Sparsely Activated
    Model for General-Purpose Natural Language Understanding", and Liao et al. (2022), "SkillNet-NLG:
    General-Purpose Natural Language Generation with a Sparsely Activated Approach", experts are skills, a
    domain is a task, and a general skill is always active.

    Attributes:
      num_experts: E.
      experts: of each domain, in the order of their numbers; None for the expert with the domain's number.
      always: experts of every domain besides its own.
    """

    num_experts: int
    experts: Sequence[Sequence[int]] | None = None
    always: Sequence[int] = ()

    dependence = each_token_alone

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing with as many edges a token as the domain with the most experts has.

        Raises:
          ValueError: the batch has no domains, or experts of a domain are none, twice, or unknown.
        """
        del x_GSD
        own = [(expert,) for expert in range(self.num_experts)] if self.experts is None else self.experts
        sets = [[*self.always, *(e for e in experts if e not in self.always)] for experts in own]
        _check_sets("experts", sets, self.num_experts)
        table_XK = np.full((len(sets), max(map(len, sets))), NO_EXPERT, np.int32)
        for row, experts in zip(table_XK, sets, strict=True):
            row[: len(experts)] = experts
        return _look_up(table_XK, _domains(tokens), self.num_experts, replay)


class ByDomainAndToken(nn.Module):
    """Two levels: the domain of a sequence has a group of experts, and a token id one of that group, drawn at
    random once and for all, with the weight 1.

    The random routed experts of Ren et al. (2023), "PanGu-Sigma: Towards Trillion Parameter Language Model
    with Sparse Heterogeneous Computing". They draw a table for each layer; layers of one template share ours.

    Attributes:
      num_experts: E.
      groups: the experts of each domain, in the order of their numbers.
      vocabulary: V.
      seed: of the table.
    """

    num_experts: int
    groups: Sequence[Sequence[int]]
    vocabulary: int
    seed: int = 0

    dependence = each_token_alone

    @nn.compact
    def __call__(self, x_GSD: jax.Array, tokens: Tokens, replay: Choice | None = None) -> Routing:
        """Returns the routing of one edge a token.

        Raises:
          ValueError: the batch has no domains or no token ids, or experts of a group are none, twice, or
            unknown.
        """
        del x_GSD
        _check_sets("groups", self.groups, self.num_experts)
        draw = np.random.default_rng(self.seed)
        table_XV = np.stack([draw.choice(np.asarray(g), size=self.vocabulary) for g in self.groups])
        domain_GS, id_GS = _domains(tokens), _ids(tokens)
        known = _within(domain_GS, len(self.groups)) & _within(id_GS, self.vocabulary)
        row_GS = jnp.where(known, domain_GS * self.vocabulary + id_GS, NO_EXPERT)
        return _look_up(table_XV.reshape(-1, 1), row_GS, self.num_experts, replay)


def _look_up(table_XK: np.ndarray, row_GS: jax.Array, num_experts: int, replay: Choice | None) -> Routing:
    """The routing of each token to the experts in its row of the table, which may be any number."""
    known_GS = _within(row_GS, len(table_XK))
    expert_GSK = jnp.asarray(table_XK, jnp.int32)[jnp.where(known_GS, row_GS, 0)]
    keep_GSK = known_GS[..., None] & (expert_GSK != NO_EXPERT)
    weight_GS1 = 1 / jnp.maximum(keep_GSK.sum(-1, keepdims=True), 1)
    expert_GSK = jnp.maximum(expert_GSK, 0)
    if replay is not None:
        expert_GSK, keep_GSK = replayed_choices(replay, expert_GSK.shape)
    return token_choice(expert_GSK, jnp.broadcast_to(weight_GS1, expert_GSK.shape), keep_GSK, num_experts)


def _within(number: jax.Array, size: int) -> jax.Array:
    return (number >= 0) & (number < size)


def _ids(tokens: Tokens) -> jax.Array:
    if tokens.tokens is None:
        raise ValueError("the batch has no token ids, by which this router looks experts up")
    return tokens.tokens


def _domains(tokens: Tokens) -> jax.Array:
    if tokens.domains is None:
        raise ValueError("the batch has no domains, by which this router looks experts up: 'domains' [B]")
    return tokens.domains


def _array(values: Any) -> np.ndarray:
    return np.load(values) if isinstance(values, (str, os.PathLike)) else np.asarray(values)


def _check_sets(field: str, sets: Sequence[Sequence[int]], num_experts: int) -> None:
    if not sets:
        raise ValueError(f"{field} are of no domain; allowed: at least one")
    for domain, experts in enumerate(sets):
        known = all(0 <= e < num_experts for e in experts)
        if not experts or not known or len(set(experts)) < len(experts):
            raise ValueError(
                f"{field} of domain {domain} are {tuple(experts)}; "
                f"allowed: at least one of 0 to {num_experts - 1}, none twice"
            )
