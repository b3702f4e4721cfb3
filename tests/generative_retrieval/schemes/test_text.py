import pytest

from generative_retrieval.docids import DocidsError, Documents, spelled
from generative_retrieval.schemes.text import FirstTokens, Titles, Urls

# The tokenizer has nine words; "a" is token 4, so symbol 5. Numbers begin at symbol 1 + 9 = 10.


def test_titles_by_hand(make_documents):
    docids = Titles(length=2, numbers=2).assign(
        make_documents(titles=["a", "a b", "a", "", "a b c", "a", "x"]), seed=0
    )
    assert [spelled(row) for row in docids.symbols_NT] == [
        [5, 10], [5, 6, 10], [5, 11],
        [10],  # no title
        [5, 6, 11],  # cut to two tokens
        [5, 12, 10, 10],  # the third of its title: MORE and two digits
        [2, 10],  # [UNK]
    ]  # fmt: skip
    assert docids.collisions == pytest.approx(5 / 7)
    assert docids.size == 1 + 9 + 2 + 1


@pytest.mark.parametrize(
    ("scheme", "field"), [(Titles(4), "titles"), (Urls(4), "doc_ids"), (FirstTokens(4), "texts")]
)
def test_each_scheme_reads_its_field_and_extends_as_if_all_were_there(
    scheme, field, make_documents, extended
):
    texts = ["a b", "c", "a b", "a", "c", "b", "a b", "d d d d d", "d d d d"]
    docids = extended(
        scheme, scheme.assign(make_documents(**{field: texts[:4]}), 0), make_documents(**{field: texts[4:]})
    )
    whole = scheme.assign(make_documents(**{field: texts}), 0)
    assert docids.symbols_NT.tolist() == whole.symbols_NT.tolist()
    assert docids.collisions == whole.collisions == pytest.approx(7 / 9)
    assert spelled(docids.symbols_NT[6]) == [5, 6, 12]  # the third "a b"


def test_long_texts_have_the_tokens_that_they_have_as_a_whole(make_documents):
    # 24 characters hold two tokens or more: cut inside a word, no blank at all, mostly blanks, and enough.
    texts = ["a b" + "c" * 40 + " d", "e" * 50, " " * 40 + "a b c", "a " * 30, "a b c"]
    docids = FirstTokens(2).assign(make_documents(texts=texts), 0)
    # The second word and "eee..." are unknown: symbol 2.
    assert [spelled(row) for row in docids.symbols_NT] == [
        [5, 2, 10], [2, 10], [5, 6, 10], [5, 5, 10], [5, 6, 11],
    ]  # fmt: skip


def test_errors(make_documents):
    with pytest.raises(ValueError, match="length is 0; it must be at least 1"):
        Titles(0)
    with pytest.raises(ValueError, match="numbers is 0; it must be at least 1"):
        Titles(4, numbers=0)
    with pytest.raises(DocidsError, match="'titles' needs a tokenizer; there is none"):
        Titles(4).assign(Documents(["x"], ["a"], [""]), 0)
    docids = Titles(4).assign(make_documents(titles=["a"]), 0)
    with pytest.raises(DocidsError, match="'titles' with 111 symbols; allowed: 'first tokens' with 111"):
        FirstTokens(4).extend(docids, make_documents(texts=["a"]), 0)
    with pytest.raises(DocidsError, match="with 111 symbols; allowed: 'titles' with 61"):
        Titles(4, numbers=50).extend(docids, make_documents(titles=["a"]), 0)
