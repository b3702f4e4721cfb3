"""Documents to give ids to, and what must hold when more of them come."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers

from clustering import rows
from corpora.tokenizer import Tokenizer
from generative_retrieval.docids import NONE, Docids, Documents
from training import mesh

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e")  # "a" is token 4


def word_tokenizer():
    """A tokenizer that splits at blanks and knows the letters a to e."""
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend)


def documents_of(vectors_ND=None, *, count=0, doc_ids=(), titles=(), texts=()):
    """Documents with what is given, and "" for the rest."""
    count = count or max(len(doc_ids), len(titles), len(texts), 0 if vectors_ND is None else len(vectors_ND))
    blank = [""] * count
    return Documents(doc_ids or blank, titles or blank, texts or blank, vectors_ND, word_tokenizer())


def check_extends(scheme, before, more, path):
    """Extends saved ids and checks that the old ones stay; returns all. Docids check themselves the rest."""
    before.save(path / "docids.npz")
    after = scheme.extend(Docids.load(path / "docids.npz"), more, seed=1)
    T = before.symbols_NT.shape[1]
    np.testing.assert_array_equal(after.symbols_NT[: len(before), :T], before.symbols_NT)
    assert (after.symbols_NT[: len(before), T:] == NONE).all()
    assert (len(after), after.size, after.scheme) == (len(before) + len(more), before.size, before.scheme)
    return after


def check_devices(scheme, documents, monkeypatch):
    """Gives ids over two devices, and checks that all vectors lay there and that the ids are those of one."""
    sharding = mesh.batch_sharding(mesh.data_mesh(jax.devices()[:2]))
    spread = dataclasses.replace(documents, sharding=sharding)
    alone, seen, place = scheme.assign(documents, seed=0), set(), rows.placed
    with monkeypatch.context() as patched:
        patched.setattr(rows, "placed", lambda array, where: seen.add(where) or place(array, where))
        given = scheme.assign(spread, seed=0)
        scheme.extend(given, spread, seed=0)
    assert seen == {sharding}
    np.testing.assert_array_equal(given.symbols_NT, alone.symbols_NT)


@pytest.fixture
def over_devices(monkeypatch):
    """The function `check_devices`."""
    return lambda scheme, documents: check_devices(scheme, documents, monkeypatch)


@pytest.fixture
def make_documents():
    """The function `documents_of`."""
    return documents_of


@pytest.fixture
def extended(tmp_path):
    """The function `check_extends`, with a folder to save in."""
    return lambda scheme, before, more: check_extends(scheme, before, more, tmp_path)


@pytest.fixture
def vectors():
    """The function (count, seed=0) -> float32 [count, 8], of a few far apart blobs."""

    def make(count, seed=0):
        rng = np.random.default_rng(seed)
        centers = 4 * np.random.default_rng(7).normal(size=(9, 8))
        return (centers[rng.integers(9, size=count)] + rng.normal(size=(count, 8))).astype(np.float32)

    return make
