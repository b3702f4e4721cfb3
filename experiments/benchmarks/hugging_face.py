"""T5 of Hugging Face's transformers, as a peer in constrained beam search, used as its users use it.

The constraint is a `prefix_allowed_tokens_fn` that looks the prefix up in a dict made beforehand (as GENRE's
and DSI's public code does, with tries of dicts). The decoder has a small vocabulary of its own, docids,
beside the encoder's of words, and one table embeds and scores, as T5 ties them.

Letters: B queries, S length of a query, N documents, T symbols of a docid, V docid symbols, K beams.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

START = 0  # the decoder's first token; no docid has it


def random_t5(
    torch: ModuleType, transformers: ModuleType, *, words: int, symbols: int, seed: int, **sizes: Any
) -> Any:
    """A T5ForConditionalGeneration with the weights T5 starts with, ReLU, its tables tied.

    Args:
      words: entries of the encoder's vocabulary.
      symbols: V, entries of the decoder's.
      seed: of all weights.
      **sizes: fields of T5Config: d_model, d_ff, d_kv, num_heads, num_layers.
    """
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=words,
        feed_forward_proj="relu",
        decoder_start_token_id=START,
        pad_token_id=START,
        eos_token_id=None,  # docids of one length need no end
        dropout_rate=0.0,
        **sizes,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    table = torch.nn.Embedding(symbols, config.d_model)  # standard normal, as T5's
    model.decoder.embed_tokens = table
    model.lm_head = torch.nn.Linear(config.d_model, symbols, bias=False)
    model.lm_head.weight = table.weight
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("layer_norm.weight"):  # all ones would hide a scale in the wrong place
                weight.uniform_(0.5, 1.5)
    return model


def state_of(model: Any) -> dict[str, np.ndarray]:
    """The weights under their own names, as NumPy."""
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def allowed_after(symbols_NT: np.ndarray) -> dict[tuple[int, ...], list[int]]:
    """The symbols that may follow each prefix of a docid."""
    after: dict[tuple[int, ...], set[int]] = {}
    for docid in symbols_NT.tolist():
        for depth, symbol in enumerate(docid):
            after.setdefault(tuple(docid[:depth]), set()).add(symbol)
    return {prefix: sorted(symbols) for prefix, symbols in after.items()}


class Peer:
    """Constrained beam search; each call returns the docids [B, K, T] and their scores [B, K].

    Args:
      torch: the module.
      model: from `random_t5`.
      tokens_BS: int, words of the queries.
      allowed: from `allowed_after`.
      beams: K.
      length: T.
      mask_BS: int, where there is a word; None: everywhere.
    """

    def __init__(
        self,
        torch: ModuleType,
        model: Any,
        tokens_BS: np.ndarray,
        allowed: Mapping[tuple[int, ...], Sequence[int]],
        *,
        beams: int,
        length: int,
        mask_BS: np.ndarray | None = None,
    ):
        self._torch, self._model, self._length = torch, model, length
        self._tokens_BS = torch.from_numpy(tokens_BS).long()
        self._mask_BS = (
            torch.ones_like(self._tokens_BS) if mask_BS is None else torch.from_numpy(mask_BS).long()
        )
        self._settings = dict(
            num_beams=beams,
            num_return_sequences=beams,
            min_new_tokens=None,
            max_new_tokens=length,
            length_penalty=0.0,  # the score is the sum
            do_sample=False,
            use_cache=True,
            prefix_allowed_tokens_fn=lambda _, prefix: allowed[tuple(prefix.tolist()[1:])],
            return_dict_in_generate=True,
            output_scores=True,  # else none are returned
        )

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        with self._torch.inference_mode():
            found = self._model.generate(self._tokens_BS, attention_mask=self._mask_BS, **self._settings)
        batch = len(self._tokens_BS)
        docids_BKT = found.sequences.numpy()[:, 1:].reshape(batch, -1, self._length)
        return docids_BKT, found.sequences_scores.numpy().reshape(batch, -1)
