"""A speller that needs no training: logits that depend on the query and on all symbols so far."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.constrained_sampling import draw_world
from generative_retrieval.docids import NONE
from generative_retrieval.speller import Speller


def logits_of(seed, path_T, size, scale):
    """The logits behind a path, float32 [V]; its symbols behind the end are NONE."""
    key = jax.random.key(seed)
    for symbol in path_T:
        key = jax.random.wrap_key_data(
            jnp.where(
                symbol == NONE,
                jax.random.key_data(key),
                jax.random.key_data(jax.random.fold_in(key, symbol.astype(jnp.uint32))),
            )
        )
    return scale * jax.random.normal(key, (size,))


class Tables:
    """Random logits for every path, as a Speller and as a log-probability of whole ids.

    Args:
      size: V.
      length: T.
      scale: of the logits.
    """

    def __init__(self, size, length, scale=2.0):
        self.size, self.length, self.scale = size, length, scale

    def speller(self, seeds_B):
        """The speller of queries, whose tables differ by their seeds."""
        batch = len(seeds_B)

        def start(slots):
            empty = jnp.full((batch, slots), NONE, jnp.int32)
            return {"symbols": empty, "depths": empty, "taken": jnp.zeros((), jnp.int32)}

        def step(symbols_BK, depth, visible_BKM, cache):
            put = lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new, cache["taken"], axis=1)
            symbols_BM = put(cache["symbols"], symbols_BK)
            depths_BM = put(cache["depths"], jnp.full_like(symbols_BK, depth))
            paths_BKT = []
            for place in range(1, self.length):  # the symbol read at each depth but the first, which is END
                there_BKM = visible_BKM & (depths_BM == place)[:, None]
                read_BK = jnp.where(there_BKM, symbols_BM[:, None], NONE).max(axis=2)
                paths_BKT.append(read_BK)
            paths_BKT = jnp.stack(paths_BKT, axis=2) if paths_BKT else symbols_BK[:, :, :0]
            of_one = lambda seed, path: logits_of(seed, path, self.size, self.scale)
            logits_BKV = jax.vmap(jax.vmap(of_one, (None, 0)))(jnp.asarray(seeds_B), paths_BKT)
            cache = {
                "symbols": symbols_BM,
                "depths": depths_BM,
                "taken": cache["taken"] + symbols_BK.shape[1],
            }
            return logits_BKV, cache

        return Speller(batch, start, step)

    def scores(self, seeds_B, symbols_NT):
        """log p of every id by walking it, float32 [B, N]."""
        symbols_NT = np.asarray(symbols_NT)
        # The symbols before each place of each id.
        before_NTT = np.where(np.tri(self.length, self.length - 1, -1, bool), symbols_NT[:, None, :-1], NONE)
        log_p_BNTV = [self.log_p(seed, before_NTT) for seed in np.asarray(seeds_B)]
        taken_BNT = np.take_along_axis(np.stack(log_p_BNTV), symbols_NT[None, :, :, None], axis=3)[..., 0]
        return np.where(symbols_NT == NONE, np.float32(0), taken_BNT).sum(axis=2)

    def log_p(self, seed, paths):
        """Log-probabilities of the symbols behind paths [..., T - 1] with NONE behind their end: [..., V]."""
        flat_PT = paths.reshape(-1, self.length - 1).astype(np.int32)
        rows = -(-len(flat_PT) // 256) * 256  # so that few shapes are compiled
        held_PT = np.full((rows, self.length - 1), NONE, np.int32)
        held_PT[: len(flat_PT)] = flat_PT
        log_p_PV = np.asarray(_log_p(np.int32(seed), held_PT, self.size, self.scale))
        return log_p_PV[: len(flat_PT)].reshape(*paths.shape[:-1], self.size)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _log_p(seed, paths_PT, size, scale):
    return jax.vmap(lambda path_T: jax.nn.log_softmax(logits_of(seed, path_T, size, scale)))(paths_PT)


@pytest.fixture
def tables():
    """The class `Tables`."""
    return Tables


def random_ids(rng, count, size, length, *, closed=True):
    """`count` different ids at most: with END behind lengths that vary, or all of one length."""
    found = {}
    for _ in range(count):
        codes = rng.integers(1, size, rng.integers(1, length) if closed else length)
        found[(*codes.tolist(), 0) if closed else tuple(codes.tolist())] = None
    symbols_NT = np.full((len(found), length), NONE, np.int32)
    for row, symbols in enumerate(found):
        symbols_NT[row, : len(symbols)] = symbols
    return symbols_NT


@pytest.fixture
def make_ids():
    """The function `random_ids`."""
    return random_ids


def reference(model, seed, symbols_NT, rows, *, beams, results, length_penalty=0.0, groups=1, penalty=0.0):
    """A beam search of one query in plain Python, to the end: [(document, score)], the best first.

    Args:
      model: `Tables`.
      rows: the documents that may be found.
      groups, penalty: of a diverse search.
    """
    ids = {tuple(symbols_NT[row][symbols_NT[row] != NONE].tolist()): int(row) for row in rows}
    begun = {symbols[:depth] for symbols in ids for depth in range(len(symbols) + 1)}
    paths = sorted(begun - set(ids))
    behind_PT = np.array([[*path, *[NONE] * (model.length - 1 - len(path))] for path in paths])
    log_p = dict(zip(paths, model.log_p(seed, behind_PT), strict=True))
    # Of each group: (score, score with penalties, symbols), the best first.
    held, found = [[(np.float32(0), np.float32(0), ())] for _ in range(groups)], {}
    for _ in range(model.length):
        taken = np.zeros(model.size, np.float32)
        for group in range(groups):
            ways = [
                (score + gain[s], wanted + gain[s] - np.float32(penalty) * taken[s], (*path, s))
                for score, wanted, path in held[group]
                for gain in [log_p[path]]
                for s in range(model.size)
                if (*path, s) in begun
            ]
            best = sorted(ways, key=lambda way: -way[1])[: beams // groups]  # stable: ties stay in order
            for *_, path in best:
                taken[path[-1]] += 1
            for score, _, path in best:
                if path in ids:
                    found[ids[path]] = score / len(path) ** length_penalty
            held[group] = [way for way in best if way[2] not in ids]
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))[:results]


@pytest.fixture
def python_search():
    """The function `reference`."""
    return reference


def pair_spec(words=20, symbols=5, width=8, dropout=0.1, decoder_layers=1, bias=None):
    """The config of a small `models.EncoderDecoder`; `bias` has fields of `RelativeBias`, None is none."""
    biases = [None, None]
    if bias is not None:
        both = dict(name="backbones.relative.RelativeBias", heads=2) | bias
        biases = [both, both | dict(bidirectional=False)]
    attention = dict(name="backbones.cached_attention.CachedAttention", heads=2)
    feed_forward = dict(name="moe.feed_forward.Dense", width=12)
    embed = dict(name="backbones.embedding.TokenEmbedding", width=width)
    return dict(
        name="generative_retrieval.models.EncoderDecoder",
        encoder=dict(
            name="backbones.encoder.TransformerEncoder",
            num_layers=1,
            embed=embed | dict(vocab_size=words),
            block=dict(
                name="backbones.blocks.PreNorm",
                attention=dict(name="backbones.attention.SelfAttention", heads=2),
                feed_forward=feed_forward,
                dropout=dropout,
            ),
            bias=biases[0],
        ),
        decoder=dict(
            name="backbones.decoder.TransformerDecoder",
            num_layers=decoder_layers,
            embed=embed | dict(vocab_size=symbols),
            block=dict(
                name="backbones.decoder_blocks.PreNorm",
                attention=attention,
                cross_attention=attention,
                feed_forward=feed_forward,
                dropout=dropout,
            ),
            bias=biases[1],
        ),
    )


@pytest.fixture(scope="session")
def make_pair():
    """The function `pair_spec`."""
    return pair_spec


def padded(built, documents):
    """The trie in arrays that hold so many documents, so that one compiled program serves many tries."""
    nodes = 1 + documents * built.length

    def pad(x, size):
        x = np.asarray(x)
        return np.concatenate([x, np.full((size - len(x), *x.shape[1:]), x[-1])])

    return built.replace(
        symbols=pad(built.symbols, nodes),
        children=pad(built.children, nodes + 1),
        begins=pad(built.begins, nodes),
        ends=pad(built.ends, nodes),
        order_N=pad(built.order_N, documents),
        table=pad(built.table, 1 if built.depths == 1 else nodes),
        fan_out=built.size,
        widest=built.size,
    )


@pytest.fixture
def pad_trie():
    """The function `padded`."""
    return padded


@pytest.fixture(scope="session")
def quick_jit():
    """jax.jit for programs that run so little that compiling them is what takes time."""
    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def world():
    """24 ids of one to three symbols and END, with logits behind each beginning."""
    made = draw_world(documents=24, size=5, length=4, seed=1, closed=True)
    assert len(set((made.symbols_NT >= 0).sum(axis=1))) == 3
    assert made.trie.num_documents == 24  # built here, not within a function that is traced
    return made
