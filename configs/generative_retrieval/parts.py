"""What the generative-retrieval configs of this folder are made of: plain dicts, to be read and varied."""

from configs.dual_encoder import parts
from configs.language_model import parts as language_parts

SCHEMES = (
    "semantic", "semantic2d", "semantic_balanced", "residual", "product", "naive", "random", "atomic",
    "titles", "urls", "first_tokens",
)  # fmt: skip
OF_VECTORS = ("semantic", "semantic_balanced", "semantic2d", "residual", "product")
OF_WORDS = ("titles", "urls", "first_tokens")
_POSITIONS = 8  # that have symbols of their own in semantic2d


def scheme(name: str, *, vocab_size: int, capacity: int, branching: int = 30) -> tuple[dict, int, int]:
    """The spec of a scheme by a short name, how many symbols a model must have for it, and how long ids are
    for programs that read no data: the longest, if clusters were even and few documents shared a code.

    Args:
      name: one of SCHEMES.
      vocab_size: of the tokenizer, for ids that are texts.
      capacity: documents there may ever be, for atomic ids and for how long ids are.
      branching: clusters of a node; leaves and codebooks are as large.
    """
    if name not in SCHEMES:
        raise ValueError(f"config argument scheme={name!r}; allowed: {', '.join(SCHEMES)}")
    of = "generative_retrieval.schemes"
    tree = dict(name=f"{of}.semantic.Semantic", branching=branching, leaf_size=branching)
    tree_size, depth = branching + 2, 1  # the number in a leaf
    while branching**depth < capacity:
        depth += 1
    return {
        "semantic": (tree, tree_size, depth),
        "semantic_balanced": (tree | dict(balanced=True), tree_size, depth),
        "semantic2d": (
            dict(name=f"{of}.by_position.ByPosition", scheme=tree, positions=_POSITIONS),
            _POSITIONS * (tree_size - 1) + 1,
            depth,
        ),
        "residual": (dict(name=f"{of}.quantized.Residual", steps=3, k=branching), branching + 1, 4),
        "product": (dict(name=f"{of}.quantized.Product", parts=4, k=branching), branching + 1, 5),
        "naive": (dict(name=f"{of}.naive.Naive", base=10), 11, len(str(capacity - 1)) + 1),
        "random": (dict(name=f"{of}.random_codes.RandomCodes", length=4, base=branching), branching + 1, 4),
        "atomic": (dict(name=f"{of}.atomic.Atomic", capacity=capacity), capacity + 1, 1),
        "titles": (dict(name=f"{of}.text.Titles", length=12, numbers=100), vocab_size + 102, 13),
        "urls": (dict(name=f"{of}.text.Urls", length=12, numbers=100), vocab_size + 102, 13),
        "first_tokens": (dict(name=f"{of}.text.FirstTokens", length=8, numbers=100), vocab_size + 102, 9),
    }[name]


def encoder_decoder(
    *, vocab_size: int, docid_size: int, width: int, encoder_layers: int, decoder_layers: int, dropout: float
) -> dict:
    """Pre-norm Transformers with rotary positions and SwiGLU; heads of 64."""
    encoder = parts.transformer_tower(vocab_size, width, encoder_layers)["encoder"]
    encoder["block"] |= dict(dropout=dropout)
    encoder |= dict(dropout=dropout)
    decoder = language_parts.decoder(docid_size, width, decoder_layers, language_parts.gated(width))
    attention = dict(name="backbones.cached_attention.CachedAttention", heads=max(1, width // 64))
    decoder["block"] |= dict(cross_attention=attention, dropout=dropout)
    decoder |= dict(dropout=dropout)
    return dict(name="generative_retrieval.models.EncoderDecoder", encoder=encoder, decoder=decoder)


def spelling(model: dict, label_smoothing: float = 0.0) -> dict:
    """The likelihood of a document's id, of a dense model."""
    return dict(
        name="generative_retrieval.task.SequenceToSequence", model=model, label_smoothing=label_smoothing
    )


def indexing(generated: str = "", *, span: int = 0) -> dict:
    """The beginnings of documents, training queries, queries of a file if one is given, and random spans of
    so many tokens; each as often as it has examples."""
    of = "generative_retrieval.indexing"
    sources = dict(
        first_tokens=dict(name=f"{of}.first_tokens"),
        queries=dict(name=f"{of}.queries"),
    )
    if span:
        sources["spans"] = dict(name=f"{of}.random_spans", span=span)
    if generated:
        sources["generated"] = dict(name=f"{of}.generated", file=generated)
    return dict(sources=sources, weights={}, replay=0.0)


def mesh() -> dict:
    """All devices on the axis `data`; with rules by which `fsdp` and `tensor` split both Transformers where
    they are used, the symbols of ids as the words of texts."""
    return language_parts.mesh()


def evaluation(*, beams: int = 10, results: int = 10, length_penalty: float = 0.0) -> dict:
    """Hits and reciprocal ranks, and the grid that BM25 is tuned over on dev."""
    stems = dict(name="index.lexical.Analyzer", stop_words="english", stemmer="porter")
    of_encoders = parts.evaluation(
        analyzers=dict(words=dict(name="index.lexical.Analyzer", stop_words="english"), stems=stems),
        k1=(0.9, 1.5, 3.0),
        b=(0.4, 0.75, 0.9),
        title_weight=(1.0, 2.0, 4.0),
        plain="words",
    )
    return of_encoders | dict(
        measures=("hits@1", "hits@10", "mrr@10", "ndcg@10"),
        dev_measures=("hits@10", "hits@1", "mrr@10"),
        beams=beams,
        results=results,
        length_penalty=length_penalty,
        search=dict(name="generative_retrieval.beam.search"),
        batch_size=64,
        dev_queries=0,
        run_depth=results,
    )
