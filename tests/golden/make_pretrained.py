"""Makes pretrained/<name>/: a tiny random model of each family of encoders and decoders, as its reference
implementation writes it, with what it computes.

    make bench  # installs transformers and PyTorch, the `bench` extra
    python tests/golden/make_pretrained.py

A folder holds config.json and model.safetensors, as `save_pretrained` writes them, and expected.npz:

    tokens, mask      int32 [B, L], padded behind
    last              f32 [B, L, D], the last hidden states
    layers            f32 [Y - 1, B, L, D], the hidden states of all layers but the last
    bidirectional     f32 [B, L, D], of a decoder that is shown all of a text
    logits            f32 [B, T, V], of a model with an output table; `targets` int32 [B, T] where it has an
    encoder

Every weight is off the value that it would be initialized with. No test imports this file.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers
from transformers import AutoConfig

VERSION = "5.23.0"
WORDS, PAD, LENGTHS = 29, 1, (9, 5, 1)
BERT = dict(
    vocab_size=WORDS,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_hidden_layers=2,
    max_position_embeddings=12,
    pad_token_id=PAD,
)
DISTILBERT = dict(
    vocab_size=WORDS,
    dim=16,
    hidden_dim=24,
    n_heads=4,
    n_layers=2,
    max_position_embeddings=12,
    pad_token_id=PAD,
)
LLAMA = dict(
    vocab_size=WORDS,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=PAD,
)
# Each kind of frequency: kept, mixed and divided.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=20.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
T5 = dict(
    vocab_size=WORDS,
    d_model=16,
    d_ff=24,
    d_kv=6,
    num_heads=4,
    num_layers=2,
    num_decoder_layers=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=6,
    decoder_start_token_id=0,
    pad_token_id=0,
)
# Name -> (class, model_type, values of its config).
ENCODERS = {
    "bert": (transformers.BertModel, "bert", BERT),
    "roberta": (transformers.RobertaModel, "roberta", dict(BERT, type_vocab_size=1, layer_norm_eps=1e-5)),
    "xlm_roberta": (transformers.XLMRobertaModel, "xlm-roberta", dict(BERT, type_vocab_size=1)),
    "distilbert": (transformers.DistilBertModel, "distilbert", DISTILBERT),
    "mpnet": (transformers.MPNetModel, "mpnet", dict(BERT, layer_norm_eps=1e-5)),
    "modernbert": (
        transformers.ModernBertModel,
        "modernbert",
        dict(
            BERT, num_hidden_layers=5, local_attention=4, max_position_embeddings=64
        ),  # layers 0 and 3 are wide
    ),
    "modernbert_biases": (
        transformers.ModernBertModel,
        "modernbert",
        dict(BERT, local_attention=4, attention_bias=True, mlp_bias=True, norm_bias=True),
    ),
}
DECODERS = {
    "llama": (
        transformers.LlamaForCausalLM,
        "llama",
        dict(LLAMA, head_dim=8, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    ),
    "mistral": (
        transformers.MistralModel,
        "mistral",
        dict(
            LLAMA,
            sliding_window=3,
            rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.0),
        ),
    ),
    "qwen2": (transformers.Qwen2ForCausalLM, "qwen2", dict(LLAMA, tie_word_embeddings=True)),
    "qwen3": (transformers.Qwen3Model, "qwen3", dict(LLAMA, head_dim=6)),
}
PAIRS = {
    "t5": (transformers.T5ForConditionalGeneration, "t5", T5),
    "t5_v1_1": (
        transformers.T5ForConditionalGeneration,
        "t5",
        dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "mt5": (transformers.MT5ForConditionalGeneration, "mt5", dict(T5, num_decoder_layers=1)),
}


def main() -> None:
    if transformers.__version__ != VERSION:
        raise SystemExit(f"transformers is {transformers.__version__}; allowed: {VERSION}")
    torch.set_num_threads(1)
    root = pathlib.Path(__file__).with_name("pretrained")
    shutil.rmtree(root, ignore_errors=True)
    for name, (kind, model_type, values) in ENCODERS.items():
        save(root / name, *encoder(kind, model_type, values))
    for name, (kind, model_type, values) in DECODERS.items():
        save(root / name, *decoder(kind, model_type, values))
    for name, (kind, model_type, values) in PAIRS.items():
        save(root / name, *pair(kind, model_type, values))
    print(root.name, sum(file.stat().st_size for file in root.rglob("*") if file.is_file()), "bytes")


def save(folder: pathlib.Path, model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> None:
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(folder / "expected.npz", **arrays)


def made(kind: type, model_type: str, values: dict) -> torch.nn.Module:
    """A model with random weights, all of them off their initial values."""
    torch.manual_seed(0)
    model = kind(AutoConfig.for_model(model_type, attn_implementation="eager", **values)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and name.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(std=0.3 if weight.ndim == 2 else 0.1)
    return model


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """tokens and mask, int32 [B, L]."""
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
    tokens = np.random.default_rng(seed).integers(PAD + 1, WORDS, mask.shape, dtype=np.int32)
    return np.where(mask, tokens, PAD).astype(np.int32), mask


def encoder(kind: type, model_type: str, values: dict) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    model, (tokens, mask) = made(kind, model_type, values), batch()
    return model, {"tokens": tokens, "mask": mask, **hidden(model, tokens, mask)}


def decoder(kind: type, model_type: str, values: dict) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    model, (tokens, mask) = made(kind, model_type, values), batch()
    base = getattr(model, "model", model)
    arrays = {"tokens": tokens, "mask": mask, **hidden(base, tokens, mask)}
    if base is not model:
        with torch.inference_mode():
            found = model(input_ids=torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask))
        arrays["logits"] = found.logits.numpy()
    base.config.is_causal = False
    arrays["bidirectional"] = hidden(base, tokens, mask)["last"]
    del base.config.is_causal
    return model, arrays


def pair(kind: type, model_type: str, values: dict) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    model, (tokens, mask) = made(kind, model_type, values), batch()
    if model_type == "mt5" or values.get("tie_word_embeddings") is False:  # as the published weights have it
        torch.manual_seed(1)
        model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.lm_head.weight))
    targets, _ = batch(seed=1)
    targets = targets[:, :4]
    with torch.inference_mode():
        found = model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(targets).long(),
        )
    arrays = {"tokens": tokens, "mask": mask, "targets": targets, "logits": found.logits.numpy()}
    return model, {**arrays, **hidden(model.encoder, tokens, mask)}


def hidden(model: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        found = model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(mask),
            output_hidden_states=True,
        )
    layers = torch.stack(found.hidden_states[1:-1])
    return {"last": found.last_hidden_state.numpy(), "layers": layers.numpy()}


if __name__ == "__main__":
    main()
