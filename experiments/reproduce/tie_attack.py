"""The attack on expert choice by its ties: a toy model, a server that answers batches, and an attacker.

    Yona et al. (2024), "Stealing User Prompts from Mixture of Experts", algorithm 1 and appendices B to F

An attacker whose texts share a batch with a victim's sends a probe, the part of the prompt that is known and
a guess of the next token. If the guess is right, probe and victim have a token in common whose scores are
equal with every expert. Blocking texts fill an expert up to its last place but one, and that token falls on
the last place: whichever of the two stands first in the batch is served. So the attacker asks twice, with the
probe before the victim and behind it, and reads off the probe's output whether the expert served it.

What is not known is how many of the victim's further tokens the expert prefers to the guess; all numbers are
tried. And outputs may differ for other reasons (another expert's last place), so that each output is compared
with those of all 2^(layers x experts) ways that the guess may have gone, by a local copy of the model.

The attacker knows the model, the length of the prompt, and where in the batch each text stands; it sees the
outputs of its own texts alone.

Dimensions: Q queries, B texts of a batch, A = B - 1 those of the attacker, L length, V vocabulary, E experts,
Y layers, C tokens that an expert serves, N texts, P paths.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backbones.attention import SelfAttention
from backbones.blocks import PreNorm
from backbones.embedding import TokenEmbedding
from backbones.encoder import TransformerEncoder
from backbones.masks import causal
from backbones.positions import rotary
from moe import expert_choice
from moe.capacity import Capacity
from moe.dropless import Dropless
from moe.expert_choice import ExpertChoice
from moe.experts import Gated
from moe.mixture import RECORDED, REPLAYED, Mixture
from moe.one_hot import OneHot
from moe.routers import TopK
from moe.routing import Choice

DIGITS = 5  # of the scores, as in the paper, so that equal tokens have equal ones
BEGIN = 0  # the token that every text begins with; the letters of prompts follow it
_CHUNK = 16  # guesses that are computed at once, though they are counted one by one


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model and the batch.

    Attributes:
      rows, length: B, L.
      vocabulary: V; blocking texts are of all tokens.
      width, heads, experts, hidden, layers: of the model.
      factor: experts that a token has on average.
    """

    rows: int = 16
    length: int = 12
    vocabulary: int = 256
    width: int = 32
    heads: int = 4
    experts: int = 4
    hidden: int = 32
    layers: int = 2
    factor: float = 1.0


def by_position(score_GES: jax.Array, slots: int, keys: expert_choice.Keys) -> jax.Array:
    """Of tokens whose scores agree in five digits, those that come first in the batch."""
    return expert_choice.by_position(jnp.round(score_GES, DIGITS), slots, keys)


def at_random(score_GES: jax.Array, slots: int, keys: expert_choice.Keys) -> jax.Array:
    """Of tokens whose scores agree in five digits, any."""
    return expert_choice.at_random(jnp.round(score_GES, DIGITS), slots, keys)


def mixtures(sizes: Sizes) -> dict[str, Mixture]:
    """Returns by name the layer that is attacked, and those that are to withstand. Their parameters have the
    same shapes."""
    experts, serve_chosen = Gated(sizes.hidden), OneHot(Capacity(1.0, 1))

    def choice(rows: int, **fields: Any) -> ExpertChoice:
        return ExpertChoice(sizes.experts, rows * sizes.length, sizes.factor, **fields)

    return {
        "expert choice": Mixture(choice(sizes.rows, tie=by_position), experts, serve_chosen, None),
        "random ties": Mixture(choice(sizes.rows, tie=at_random), experts, serve_chosen, None),
        "groups of one text": Mixture(choice(1, tie=by_position), experts, serve_chosen, 1),
        "token choice": Mixture(TopK(sizes.experts, 1, renormalize=False), experts, Dropless(), None),
    }


def language_model(sizes: Sizes, mixture: Mixture) -> TransformerEncoder:
    """Returns a causal model of that layer. It is an encoder with a causal mask, since `TransformerDecoder`
    refuses a layer in which tokens depend on later ones."""
    attention = SelfAttention(heads=sizes.heads, rotate=rotary)
    return TransformerEncoder(
        embed=TokenEmbedding(sizes.vocabulary, sizes.width),
        block=PreNorm(attention=attention, feed_forward=mixture),
        num_layers=sizes.layers,
        visible=causal,
    )


def random_weights(sizes: Sizes, seed: int) -> Any:
    """Returns parameters at their start, but for larger embeddings (a norm of sqrt(D), so that a token weighs
    as much as its context) and router kernels (so that experts differ in what they prefer)."""
    model = language_model(sizes, mixtures(sizes)["token choice"])
    tokens = jnp.zeros((sizes.rows, sizes.length), jnp.int32)
    batch = {"tokens": tokens, "mask": tokens == 0}
    params = jax.jit(model.init)(jax.random.key(seed), batch)["params"]

    def scaled(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return leaf * (sizes.width**0.5 if "embed" in name else 3.0 if "router" in name else 1.0)

    return jax.tree_util.tree_map_with_path(scaled, params)


class Server:
    """Answers batches in which the victim's prompt stands among the attacker's texts.

    Attributes:
      queries: batches answered so far.
    """

    def __init__(self, sizes: Sizes, mixture: Mixture, params: Any, prompt: Sequence[int], seed: int):
        self._model = language_model(sizes, mixture)
        self._answer = _answer(self._model)
        self._params, self._key = params, jax.random.key(seed)
        self._victim = np.zeros(sizes.length, np.int32)
        self._victim[1 : len(prompt) + 1] = prompt
        self._length = len(prompt) + 1
        self.queries = 0

    def ask(self, own_QAL: np.ndarray, lengths_QA: np.ndarray, victim_at_Q: np.ndarray) -> np.ndarray:
        """Returns float32 [Q, V]: the logits at the last token of the attacker's first text.

        Args:
          own_QAL: int32, the attacker's texts.
          lengths_QA: of each; 0 for none.
          victim_at_Q: where in each batch the victim's text stands, 0 or 1.
        """
        keys_Q = jax.random.split(self._key, len(own_QAL) + 1)
        self._key = keys_Q[0]
        self.queries += len(own_QAL)
        whole = _insert(own_QAL, lengths_QA, self._victim, self._length, victim_at_Q)
        return np.asarray(self._answer(self._params, *whole, 1 - victim_at_Q, keys_Q[1:]))


class Attacker:
    """Knows the model. Prepares what does not depend on a prompt: the texts that block each expert.

    Args:
      sizes, mixture, params: of the model under attack.
      seed: of the blocking texts.
    """

    def __init__(self, sizes: Sizes, mixture: Mixture, params: Any, seed: int):
        self._sizes, self._params = sizes, params
        model = language_model(sizes, mixture)
        # Before the first layer of experts, texts do not touch: one at a time will do.
        alone = language_model(sizes, mixtures(sizes)["groups of one text"])
        self._score = jax.jit(functools.partial(_first_scores, alone))
        self._simulate = jax.jit(functools.partial(_served, model))
        self._by_path = jax.jit(jax.vmap(functools.partial(_forced, alone), (None, None, None, 0)))
        bits = itertools.product((False, True), repeat=sizes.layers * sizes.experts)
        self._paths_PYE = np.array(list(bits)).reshape(-1, sizes.layers, sizes.experts)
        self._places = int(np.ceil(sizes.factor * sizes.rows * sizes.length / sizes.experts))
        self._blockers = [self._block(expert, np.random.default_rng((seed, expert)))
                          for expert in range(sizes.experts)]  # fmt: skip

    def steal(
        self, server: Server, alphabet: Sequence[int], length: int, rng: np.random.Generator
    ) -> list[tuple[int, bool]]:
        """Returns the prompt token by token, each with whether a query showed it; the others are random.

        Args:
          server: to ask.
          alphabet: tokens that the prompt is of.
          length: M, of the prompt.
          rng: draws a token where none was shown.
        """
        found: list[tuple[int, bool]] = []
        while len(found) < length:
            prefix = [token for token, _ in found]
            token = self._next(server, prefix, alphabet, length)
            found.append((int(rng.choice(alphabet)), False) if token is None else (token, True))
        return found

    def confirms(self, server: Server, prompt: Sequence[int]) -> bool:
        """Whether two queries show that the prompt is this one, by the first expert for which the blocking
        texts suffice. The paper calls it the oracle attack."""
        for expert in range(self._sizes.experts):
            attempts = list(self._attempts(list(prompt[:-1]), [prompt[-1]], expert, unknown=0))
            if attempts:
                return self._try(server, attempts, expert) is not None
        return False

    def _next(self, server: Server, prefix: list[int], alphabet: Sequence[int], length: int) -> int | None:
        """The token after a prefix, by all experts in turn."""
        unknown = length - len(prefix) - 1
        for expert in range(self._sizes.experts):
            attempts = self._attempts(prefix, alphabet, expert, unknown)
            while chunk := list(itertools.islice(attempts, _CHUNK)):
                token = self._try(server, chunk, expert)
                if token is not None:
                    return token
        return None

    def _attempts(
        self, prefix: list[int], alphabet: Sequence[int], expert: int, unknown: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (guess, texts [A, L], lengths [A]): each guess with each number of the victim's `unknown`
        further tokens that the expert may prefer to it. What cannot be blocked is left out."""
        sizes, last = self._sizes, len(prefix) + 1
        probes_NL = np.zeros((len(alphabet), sizes.length), np.int32)
        probes_NL[:, 1:last] = prefix
        probes_NL[:, last] = alphabet
        scores_NL = self._scores(probes_NL)[:, :, expert]
        blockers_AL, block_scores_AL = self._blockers[expert]
        for probe_L, score_L, guess in zip(probes_NL, scores_NL, alphabet, strict=True):
            known = 2 * int(
                (score_L[:last] > score_L[last]).sum()
            )  # the prefix, the probe's and the victim's
            above = np.cumsum(block_scores_AL > score_L[last])
            for preferred in range(unknown + 1):
                wanted = self._places - 1 - known - preferred
                if not 0 <= wanted <= above[-1]:
                    continue
                tokens = int(np.searchsorted(above, wanted)) + 1 if wanted else 0
                block_lengths = np.clip(tokens - np.arange(sizes.rows - 2) * sizes.length, 0, sizes.length)
                yield (
                    guess,
                    np.concatenate([probe_L[None], blockers_AL]),
                    np.concatenate([[last + 1], block_lengths]).astype(np.int32),
                )

    def _try(
        self, server: Server, attempts: Sequence[tuple[int, np.ndarray, np.ndarray]], expert: int
    ) -> int | None:
        """The first guess that is shown. Queries behind it are not counted: they need not have been asked."""
        filled = [*attempts, *[attempts[-1]] * (_CHUNK - len(attempts))]  # one shape to compile
        own = np.repeat(np.stack([texts for _, texts, _ in filled]), 2, axis=0)
        lengths = np.repeat(np.stack([lengths for _, _, lengths in filled]), 2, axis=0)
        before = server.queries
        answers_QV = server.ask(own, lengths, np.tile([1, 0], len(filled)))
        for number, (guess, texts_AL, lengths_A) in enumerate(attempts):
            server.queries = before + 2 * (number + 1)
            pair_2V = answers_QV[2 * number : 2 * number + 2]
            if np.abs(pair_2V[0] - pair_2V[1]).max() > 1e-5 * np.abs(pair_2V).max():
                first, second = (
                    self._was_served(texts_AL, lengths_A, victim_at, answer_V)[expert]
                    for victim_at, answer_V in zip((1, 0), pair_2V, strict=True)
                )
                if first and not second:
                    return guess
        return None

    def _was_served(
        self, texts_AL: np.ndarray, lengths_A: np.ndarray, victim_at: int, answer_V: np.ndarray
    ) -> np.ndarray:
        """Bool [E]: which experts of the first layer served the guess, by the path whose output is the
        nearest. The prefix goes as in a local batch whose victim is the probe."""
        probe_L, last = texts_AL[0], int(lengths_A[0]) - 1
        at = np.array([victim_at])
        whole = _insert(texts_AL[None], lengths_A[None], probe_L, last + 1, at)
        tokens_BL, lengths_B = (array[0] for array in whole)
        served_YLE = np.array(self._simulate(self._params, tokens_BL, lengths_B, 1 - victim_at))
        served_PYLE = np.repeat(served_YLE[None], len(self._paths_PYE), axis=0)
        served_PYLE[:, :, last] = self._paths_PYE
        outputs_PV = self._by_path(self._params, probe_L, last, served_PYLE)
        nearest = int(np.abs(np.asarray(outputs_PV) - answer_V).max(axis=1).argmin())
        return self._paths_PYE[nearest, 0]

    def _scores(self, texts_NL: np.ndarray) -> np.ndarray:
        """Float32 [N, L, E]: how much each expert of the first layer wants a token, rounded as there."""
        return np.asarray(self._score(self._params, texts_NL))

    def _block(self, expert: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Texts [A - 1, L] whose tokens an expert wants, and how much: token by token the best of 64."""
        sizes, rows, tried = self._sizes, self._sizes.rows - 2, 64
        texts_AL = np.zeros((rows, sizes.length), np.int32)
        for at in range(1, sizes.length):
            candidates = np.repeat(texts_AL[:, None], tried, axis=1)
            candidates[:, :, at] = rng.integers(1, sizes.vocabulary, (rows, tried))
            scores = self._scores(candidates.reshape(-1, sizes.length))[:, at, expert]
            best = scores.reshape(rows, tried).argmax(axis=1)
            texts_AL = candidates[np.arange(rows), best]
        return texts_AL, self._scores(texts_AL)[:, :, expert]


def _insert(own_QAL, lengths_QA, victim_L, length, victim_at_Q) -> tuple[np.ndarray, np.ndarray]:
    """The texts of whole batches int32 [Q, B, L], and their lengths [Q, B]."""
    tokens = [np.insert(own, at, victim_L, axis=0) for own, at in zip(own_QAL, victim_at_Q, strict=True)]
    lengths = [np.insert(own, at, length) for own, at in zip(lengths_QA, victim_at_Q, strict=True)]
    return np.stack(tokens), np.stack(lengths)


def _batch(tokens_BL: jax.Array, lengths_B: jax.Array) -> dict[str, jax.Array]:
    return {"tokens": tokens_BL, "mask": jnp.arange(tokens_BL.shape[1])[None] < lengths_B[:, None]}


def _logits(params: Any, last_D: jax.Array) -> jax.Array:
    return params["embed"]["table"] @ last_D


@functools.lru_cache(maxsize=8)
def _answer(model: TransformerEncoder):
    """The compiled function of a server: `params, tokens [Q, B, L], lengths [Q, B], rows [Q], keys [Q]` to
    the logits [Q, V] at the last token of one row of each batch."""

    def answer(params, *queries):
        def one(query):
            tokens_BL, lengths_B, row, key = query
            encoded = model.apply({"params": params}, _batch(tokens_BL, lengths_B), rngs={"router": key})
            return _logits(params, encoded.last[row, lengths_B[row] - 1])

        return jax.lax.map(one, queries)

    return jax.jit(answer)


def _first_scores(model, params, texts_NL):
    """Float32 [N, L, E] of the first layer; `model` takes texts one by one."""
    lengths_N = jnp.full(len(texts_NL), texts_NL.shape[1])
    _, found = model.apply(
        {"params": params},
        _batch(texts_NL, lengths_N),
        capture_intermediates=lambda module, _: isinstance(module, ExpertChoice),
        mutable=["intermediates"],
    )
    routing = found["intermediates"]["block"]["feed_forward"]["router"]["__call__"][0]
    return jnp.round(routing.probabilities[0], DIGITS)


def _served(model, params, tokens_BL, lengths_B, row):
    """Bool [Y, L, E]: which experts serve the tokens of one row."""
    _, recorded = model.apply(
        {"params": params},
        _batch(tokens_BL, lengths_B),
        mutable=[RECORDED],
        rngs={"router": jax.random.key(0)},
    )
    choice = recorded[RECORDED]["block"]["feed_forward"]["choice"]
    layers, groups, _ = choice.token.shape
    experts = params["block"]["feed_forward"]["router"]["score"]["kernel"].shape[-1]
    first_G1 = (jnp.arange(groups) * (tokens_BL.size // groups))[:, None]
    token_YR = (choice.token + first_G1[None]).reshape(layers, -1)
    expert_YR, keep_YR = choice.expert.reshape(layers, -1), choice.keep.reshape(layers, -1)
    layer_Y1 = jnp.arange(layers)[:, None]
    served = jnp.zeros((layers, tokens_BL.size, experts), bool).at[layer_Y1, token_YR, expert_YR].max(keep_YR)
    return served.reshape(layers, *tokens_BL.shape, experts)[:, row]


def _forced(model, params, text_L, last, served_YLE):
    """The logits [V] at a text's token `last` where its tokens go to these experts, whatever they score."""
    layers, length, experts = served_YLE.shape
    tokens_YLE = jnp.broadcast_to(jnp.arange(length)[None, :, None], served_YLE.shape)
    experts_YLE = jnp.broadcast_to(jnp.arange(experts)[None, None], served_YLE.shape)
    flat = lambda x: x.reshape(layers, 1, length * experts)
    choice = Choice(flat(tokens_YLE), flat(experts_YLE), flat(served_YLE), experts)
    variables = {"params": params, REPLAYED: {"block": {"feed_forward": {"choice": choice}}}}
    encoded = model.apply(variables, _batch(text_L[None], last[None] + 1))
    return _logits(params, encoded.last[0, last])
