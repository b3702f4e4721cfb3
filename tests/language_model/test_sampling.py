"""Sampling: greedy against decoding without a cache, prompts of several lengths, and what is drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.language_model import parts
from language_model import sampling
from language_model.causal import Causal
from moe.leakage import DependenceError
from training.build import build

V, NEW, NO_END = 11, 5, -1
PROMPTS = np.array([[1, 5, 7, 3], [1, 9, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32)


@functools.cache
def model():
    return build(parts.decoder(V, 16, 1, parts.gated(16)))


@functools.cache
def variables():
    made = jax.jit(model().init)(jax.random.key(3), {"tokens": PROMPTS, "mask": MASK})
    return jax.tree.map(lambda x: 1.5 * x, made)  # so that likeliest tokens stand out


@functools.cache
def compiled(**numbers):
    return jax.jit(functools.partial(sampling.sample, model(), **{"length": NEW, **numbers}))


def sample(tokens=PROMPTS, mask=MASK, seed=0, end_id=NO_END, **numbers):
    made, found = compiled(**numbers)(variables(), tokens, mask, jax.random.key(seed), end_id=end_id)
    return np.asarray(made), np.asarray(found)


@functools.cache
def compiled_logits():
    def logits(tokens):
        read = {"tokens": tokens, "mask": jnp.ones_like(tokens)}
        return model().apply(variables(), read).logits[0]

    return jax.jit(logits)


def logits(text):
    """Those after each token of a text, [L, V]; it is filled up, since what is later is not seen."""
    return compiled_logits()(np.array([[*text, *[0] * (9 - len(text))]], np.int32))[: len(text)]


def greedy(prompt):
    """Without a cache, the whole text anew for each token."""
    text, found = list(prompt), []
    for _ in range(NEW):
        last_V = jax.nn.log_softmax(logits(text)[-1])
        text.append(int(last_V.argmax()))
        found.append(float(last_V.max()))
    return text[len(prompt) :], found


def test_greedy_equals_decoding_without_a_cache_for_prompts_of_any_length():
    made, found = sample(temperature=0.0)
    for row, (prompt, mask) in enumerate(zip(PROMPTS, MASK, strict=True)):
        tokens, log_likelihood = greedy(prompt[mask.astype(bool)].tolist())
        assert made[row].tolist() == tokens
        np.testing.assert_allclose(found[row], log_likelihood, atol=1e-4)


def test_the_end_token_ends_a_text():
    made, found = sample(temperature=0.0)
    end = int(made[0, 1])
    first = [row.tolist().index(end) if end in row else NEW for row in made]
    ended, left = sample(temperature=0.0, end_id=end)
    for row, place in enumerate(first):
        assert ended[row, :place].tolist() == made[row, :place].tolist()
        assert (ended[row, place:] == end).all()
        np.testing.assert_allclose(left[row, : place + 1], found[row, : place + 1], atol=1e-5)
        assert not left[row, place + 1 :].any()


def test_draws():
    """They depend on the row and the seed, follow what is left, and are scored by the model as it is."""
    numbers = dict(temperature=3.0, top_k=6, top_p=0.9)
    prompts, mask = (np.repeat(x[:1], 4_000, 0) for x in (PROMPTS, MASK))
    one, _ = sample(PROMPTS[:1], MASK[:1], seed=5, **numbers)
    many, found = sample(prompts, mask, seed=5, **numbers)
    np.testing.assert_array_equal(one, many[:1])
    assert (sample(prompts, mask, seed=6, **numbers)[0] != many).any()
    scores_LV = jax.nn.log_softmax(logits([*PROMPTS[0], *many[7]]))
    np.testing.assert_allclose(found[7], scores_LV[np.arange(3, 3 + NEW), many[7]], atol=1e-4)
    left_1V = sampling.restrict(logits(PROMPTS[0])[-1:], **numbers)
    probability_V = np.asarray(jax.nn.softmax(left_1V))[0]
    shares_V = np.bincount(many[:, 0], minlength=V) / len(many)
    assert 1 < (probability_V > 0).sum() <= 6
    assert (shares_V[probability_V == 0] == 0).all()
    assert np.abs(shares_V - probability_V).max() < 4 * 0.5 / np.sqrt(len(many))


LOGITS = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.3, 0.2]]))


@pytest.mark.parametrize(
    ("numbers", "left"),
    [
        (dict(top_k=2), [[1, 1, 0, 0], [1, 1, 1, 0]]),  # two tie for the second place
        (dict(top_k=9), [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (dict(top_p=0.65), [[1, 1, 0, 0], [1, 1, 1, 0]]),  # .4 + .3; .3 + .25 + .25
        (dict(top_p=0.01), [[1, 0, 0, 0], [0, 0, 1, 0]]),
        (dict(top_k=3, top_p=0.7), [[1, 1, 0, 0], [1, 1, 1, 0]]),  # .44 + .33; .375 + .31 + .31
        (dict(temperature=0.5, top_p=0.5), [[1, 0, 0, 0], [1, 1, 1, 0]]),  # 16 / 30; .09 + .0625 of .255
    ],
)
def test_restrict_by_hand(numbers, left):
    found = sampling.restrict(LOGITS, **numbers)
    assert np.isfinite(found).astype(int).tolist() == left
    kept = np.isfinite(found)
    np.testing.assert_allclose(found[kept], (LOGITS / numbers.get("temperature", 1.0))[kept], rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (dict(length=0), "length is 0; it must be at least 1"),
        (dict(temperature=-0.1), "temperature is -0.1; allowed: 0 or more"),
        (dict(top_k=-1), "top_k is -1; allowed: 0 or more"),
        (dict(top_p=0.0), "top_p is 0.0; allowed: above 0 and up to 1"),
    ],
)
def test_errors(numbers, message):
    with pytest.raises(ValueError, match=message):
        sample(**numbers)


def test_a_model_whose_texts_depend_on_each_other_is_refused_unless_allowed():
    capacity = {"name": "moe.capacity.Capacity", "factor": 1.0, "tokens": 4}
    layer = {
        "name": "moe.mixture.Mixture",
        "router": {"name": "moe.routers.TopK", "num_experts": 2, "k": 1},
        "experts": {"name": "moe.experts.Gated", "width": 8},
        "dispatcher": {"name": "moe.one_hot.OneHot", "capacity": capacity},
        "group_rows": None,
    }
    task = Causal(build(parts.decoder(V, 16, 1, layer)))
    numbers = dict(length=2, end_id=NO_END)

    def shapes(**allowed):
        params, state = task.init(jax.random.key(0), {"tokens": PROMPTS, "mask": MASK})
        given = task.variables(params, state), PROMPTS, MASK, jax.random.key(0)
        return sampling.sample(task.model, *given, **numbers, **allowed)

    with pytest.raises(DependenceError, match="depends on the other texts of its batch"):
        jax.eval_shape(shapes)
    made, _ = jax.eval_shape(functools.partial(shapes, allow_batch_dependence=True))
    assert made.shape == (2, 2)


def test_a_model_that_routes_by_domain_is_given_the_domain_of_each_text():
    """Greedily, each row goes on as the whole text would, read in its domain."""
    layer = {
        "name": "moe.mixture.Mixture",
        "router": {"name": "moe.tables.ByDomain", "num_experts": 2},
        "experts": {"name": "moe.experts.Gated", "width": 8},
        "dispatcher": {"name": "moe.one_hot.OneHot"},
    }
    by_domain = build(parts.decoder(V, 16, 1, layer))
    tokens, mask = np.repeat(PROMPTS[:1], 2, 0), np.ones((2, 4), np.int32)
    domains = np.array([0, 1], np.int32)
    read = {"tokens": tokens, "mask": mask, "domains": domains}
    shapes, rng = jax.eval_shape(by_domain.init, jax.random.key(0), read), np.random.default_rng(0)
    held = jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(x.dtype), shapes)
    run = functools.partial(sampling.sample, by_domain, length=NEW, end_id=NO_END, temperature=0.0)
    made, _ = jax.jit(run)(held, tokens, mask, jax.random.key(0), domains_B=domains)
    whole = np.concatenate([tokens, made], axis=1)
    read |= {"tokens": whole, "mask": np.ones_like(whole)}
    logits_BLV = jax.jit(by_domain.apply)(held, read).logits
    np.testing.assert_array_equal(logits_BLV[:, 3:-1].argmax(-1), made)
    assert made[0].tolist() != made[1].tolist()
    with pytest.raises(ValueError, match="the batch has no domains"):
        jax.eval_shape(run, held, tokens, mask, jax.random.key(0))
