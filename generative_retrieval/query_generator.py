"""A query generator: a document goes in, a query that it answers comes out, word by word.

It is a model that spells (see `models`), with words in place of a docid's symbols, trained by
`task.SequenceToSequence` on pairs of a relevant document and its query, as in Nogueira et al. (2019),
"Document Expansion by Query Prediction". A symbol is the tokenizer's own id of a subword, so that encoder and
decoder can share one table; END is 0, as is the id of [PAD], which no text holds.

Letters: B rows of a batch, S length of a document, T subwords of a query with its END.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from backbones.decoder import TransformerDecoder
from backbones.encoder import TransformerEncoder
from corpora import tokens
from corpora.lengths import bucket, ladder
from corpora.tables import DataError, Document
from corpora.tokenizer import Tokenizer
from corpora.tokens import PassageTable, TokenTable
from generative_retrieval.copying import CopyingEncoderDecoder
from generative_retrieval.docids import END
from generative_retrieval.models import EncoderDecoder

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How texts become what the model reads and writes: the field `text` of a config.

    Attributes:
      document_length: subwords that a document is cut to, its title first, [CLS] and [SEP]s included.
      query_length: T, subwords of a query at most, END included.

    Raises:
      ValueError: a length leaves no room for a subword.
    """

    document_length: int
    query_length: int

    def __post_init__(self):
        for field, least in (("document_length", 4), ("query_length", 2)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {least}")

    def documents(self, tokenizer: Tokenizer, documents: Iterable[Document]) -> PassageTable:
        """Tokenizes the beginnings of documents, a row each: [CLS] title [SEP] text [SEP]."""
        pairs = ((document.title, document.text) for document in documents)
        return tokens.tokenize(tokenizer, pairs, max_length=self.document_length, special_tokens=True)

    def queries(self, tokenizer: Tokenizer, texts: Iterable[str]) -> TokenTable:
        """Tokenizes queries, without END.

        Raises:
          DataError: the tokenizer's [PAD] is not END.
        """
        check_tokenizer(tokenizer)
        pairs = (("", text) for text in texts)
        return tokens.tokenize(tokenizer, pairs, max_length=self.query_length - 1, special_tokens=False)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises DataError unless the id that a decoder takes for END is that of [PAD]."""
    if tokenizer.pad_id != END:
        raise DataError(f"the tokenizer's [PAD] has the id {tokenizer.pad_id}; a query generator needs {END}")


def batches(
    document_tokens: TokenTable,
    query_tokens: TokenTable,
    document_rows: np.ndarray,
    query_rows: np.ndarray,
    text: TextSettings,
) -> Callable[..., Batch]:
    """Returns the function `(examples [B] of the whole batch, step, part=all) -> batch of that part`.

    The batch has `tokens`, `mask` and `segments` [B, S], and `targets` and `target_mask` [B, T], all int32. S
    and T are the shortest of `corpora.lengths.ladder` that hold the whole batch, whatever the `part`. An
    example of -1 has no token and no target.

    Args:
      document_tokens, query_tokens: from `TextSettings`.
      document_rows, query_rows: int [examples], a document and a query of it.
      text: the lengths.
    """
    document_ladder, query_ladder = ladder(text.document_length), ladder(text.query_length)

    def batch(examples_B: np.ndarray, step: int, part: slice | np.ndarray = slice(None)) -> Batch:
        del step  # nothing is drawn
        there_B = np.asarray(examples_B) >= 0
        documents_B = np.where(there_B, document_rows[examples_B], -1)
        queries_B = np.where(there_B, query_rows[examples_B], -1)
        length = bucket(document_tokens.longest(documents_B), document_ladder)
        read = document_tokens.rectangle(documents_B[part], length)
        return {**read, **_targets(query_tokens, queries_B, part, query_ladder)}

    return batch


def _targets(
    query_tokens: TokenTable, rows_B: np.ndarray, part: slice | np.ndarray, rungs: Sequence[int]
) -> Batch:
    """The subwords of queries, with END behind them."""
    length = bucket(query_tokens.longest(rows_B) + 1, rungs)
    words = query_tokens.rectangle(rows_B[part], length)
    closed_BT = np.arange(length) <= words["mask"].sum(axis=1, keepdims=True)
    shown_BT = closed_BT & (rows_B[part] >= 0)[:, None]
    targets_BT = np.where(words["mask"], words["tokens"], END)
    return {"targets": targets_BT.astype(np.int32), "target_mask": shown_BT.astype(np.int32)}


def shared_embedding(encoder: TransformerEncoder, decoder: TransformerDecoder) -> EncoderDecoder:
    """An encoder-decoder in which one table, the encoder's, has the subwords that are read, those that are
    written, and their logits, as in T5 (Raffel et al., 2020, "Exploring the Limits of Transfer Learning with
    a Unified Text-to-Text Transformer"). What of a document's words is in the query need not be learned word
    by word. The decoder's own `embed` is not used.
    """
    return EncoderDecoder(encoder=encoder, decoder=decoder.clone(embed=encoder.embed))


def copying(encoder: TransformerEncoder, decoder: TransformerDecoder) -> CopyingEncoderDecoder:
    """As `shared_embedding`, and it can copy words of the document, see `copying.CopyingEncoderDecoder`."""
    return CopyingEncoderDecoder(encoder=encoder, decoder=decoder.clone(embed=encoder.embed))
