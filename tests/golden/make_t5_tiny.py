"""Makes t5_tiny.npz: a tiny random T5, the logits it computes and what its constrained beam search finds.

    make bench  # installs transformers
    python tests/golden/make_t5_tiny.py

A file holds

    state.<name>   the state dict, f32, under its own names
    tokens, mask   int32 [B, S], words of the queries, and where there is one
    targets        int32 [B, T], docids whose logits are given
    logits         f32 [B, T, V]
    docids         int32 [N, T], all that are allowed
    found, scores  int32 [B, K, T] and f32 [B, K], of a beam search of width K

No test imports this file.
"""

import pathlib

import numpy as np
import torch
import transformers

from experiments.benchmarks import hugging_face

VERSION = "5.23.0"
WORDS, SYMBOLS, LENGTH, DOCUMENTS, BEAMS = 23, 6, 4, 90, 5
SIZES = dict(d_model=16, d_ff=24, d_kv=4, num_heads=4, num_layers=2)
# Queries longer than the 16 distances that have a bucket of their own, one of them padded.
LENGTHS = (40, 22, 7)


def main() -> None:
    if transformers.__version__ != VERSION:
        raise SystemExit(f"transformers is {transformers.__version__}; allowed: {VERSION}")
    path = pathlib.Path(__file__).with_name("t5_tiny.npz")
    np.savez_compressed(path, **record())
    print(path.name, path.stat().st_size, "bytes")


def record() -> dict[str, np.ndarray]:
    """Returns what the file holds."""
    random = np.random.default_rng(0)
    model = hugging_face.random_t5(torch, transformers, words=WORDS, symbols=SYMBOLS, seed=0, **SIZES)
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
    tokens = random.integers(1, WORDS, mask.shape, dtype=np.int32) * mask
    codes = random.choice((SYMBOLS - 1) ** LENGTH, DOCUMENTS, replace=False)
    docids = 1 + np.stack(np.unravel_index(codes, (SYMBOLS - 1,) * LENGTH), axis=1).astype(np.int32)
    targets = docids[: len(tokens)]
    with torch.inference_mode():
        logits = model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(targets).long(),
        ).logits.numpy()
    peer = hugging_face.Peer(
        torch, model, tokens, hugging_face.allowed_after(docids), beams=BEAMS, length=LENGTH, mask_BS=mask
    )
    found, scores = peer()
    if (gap := -np.diff(scores).max()) < 1e-4:
        raise SystemExit(f"scores are too close ({gap}); take another seed")
    return {
        **{f"state.{name}": value for name, value in hugging_face.state_of(model).items()},
        "tokens": tokens,
        "mask": mask,
        "targets": targets,
        "logits": logits,
        "docids": docids,
        "found": found.astype(np.int32),
        "scores": scores,
    }


if __name__ == "__main__":
    main()
