"""What the language-model configs of this folder are made of: plain dicts, to be read and varied."""

from configs.dual_encoder import parts


def decoder(vocab_size: int, width: int, num_layers: int, feed_forward: dict, dtype: str = "float32") -> dict:
    """A pre-norm Transformer decoder with rotary positions; heads of 64. `feed_forward` is any layer's spec,
    such as `gated(width)`."""
    norm = dict(name="backbones.norms.RMSNorm")
    return dict(
        name="backbones.decoder.TransformerDecoder",
        num_layers=num_layers,
        unroll=num_layers,  # on a CPU a quarter less time; fewer compile faster where there are many
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=vocab_size, width=width),
        block=dict(
            name="backbones.decoder_blocks.PreNorm",
            attention=dict(
                name="backbones.cached_attention.CachedAttention",
                heads=max(1, width // 64),
                rotate=dict(name="backbones.positions.rotary"),
            ),
            feed_forward=feed_forward,
            norm=norm,
            dropout=0.0,
        ),
        norm=norm,
        dropout=0.0,
        dtype=dtype,
    )


def gated(width: int) -> dict:
    """The dense SwiGLU layer with about as many weights as a plain one of 4 times the model's width."""
    return dict(name="moe.feed_forward.Gated", width=width * 8 // 3)


def mixture_of_experts(
    *, experts: int, k: int, width: int, shared: int = 0, capacity: float = 0.0, length: int = 0
) -> dict:
    """SwiGLU experts of a width, of which each token takes the best k. `shared` is the width of one that all
    tokens share, 0 for none; `capacity` the factor of an expert's places in a text of `length`, 0 to serve
    all."""
    if capacity:
        places = dict(name="moe.capacity.Capacity", factor=capacity, tokens=length)
        dispatcher = dict(name="moe.sorted.Sorted", capacity=places)
    else:
        dispatcher = dict(name="moe.dropless.Dropless")
    return dict(
        name="moe.mixture.Mixture",
        router=dict(name="moe.routers.TopK", num_experts=experts, k=k),
        experts=dict(name="moe.experts.Gated", width=width),
        dispatcher=dispatcher,
        shared=dict(name="moe.feed_forward.Gated", width=shared) if shared else None,
    )


def auxiliary(balance: float, parts: int = 0) -> dict:
    """Load balancing of a weight, over the whole batch or each of so many parts of it, and the router
    z-loss."""
    if parts:
        loss = dict(name="moe.balance.micro_load_balancing", parts=parts)
    else:
        loss = dict(name="moe.balance.load_balancing")
    return dict(
        name="moe.auxiliary.Auxiliary",
        losses=dict(balance=loss, z=dict(name="moe.balance.router_z")),
        weights=dict(balance=balance, z=0.001),
    )


def causal(model: dict, auxiliary: dict | None = None) -> dict:
    """Next-token prediction; a model with sparse layers needs an `auxiliary`."""
    return dict(name="language_model.causal.Causal", model=model, auxiliary=auxiliary)


def beir(folder: str) -> dict:
    """The documents of a folder in BEIR layout: a path, or a name under RETRIEVAX_DATA."""
    return dict(name="corpora.sources.beir_folder.load", folder=folder, allow_missing=False)


def domains(collections: dict, dev: float = 0.02, test: float = 0.02) -> dict:
    """Collections by domain, each with its share of the chunks; some documents of each are held out."""
    return dict(
        name="language_model.domains.held_out", collections=collections, dev=dev, test=test, weights={}
    )


def mesh() -> dict:
    """All devices on the axis `data`; with rules by which `fsdp` and `tensor` split a Transformer where they
    are used, its logits over the vocabulary."""
    layout = parts.transformer_mesh()
    rules = tuple(rule for rule in layout["activations"] if rule[0] != "vectors")  # a tower's
    return layout | dict(activations=(*rules, ("logits", ("batch", None, "tensor"))))


def expert_mesh(*, shared: bool) -> dict:
    """As `mesh`, with experts in all layers: `expert` splits them, and `fsdp` and `tensor` each of them.
    `shared` says whether there is a shared one.

    Dispatchers without capacity and `moe.sorted.Sorted`, which `mixture_of_experts` takes, refuse a mesh with
    `tensor` above 1; `moe.buffered.Buffered` and `moe.expert_parallel.AllToAll` take one."""
    layout = mesh()
    dense = ("feed_forward/", "hidden")
    rules = {field: [rule for rule in layout[field] if not rule[0].startswith(dense)] for field in layout
             if field != "axes"}  # fmt: skip
    parameters = [
        ("experts/(in|gate)", ("expert", "fsdp", "tensor")),
        ("experts/out", ("expert", "tensor", "fsdp")),
    ]
    if shared:
        parameters += [
            ("shared/(in|gate)/kernel", ("fsdp", "tensor")),
            ("shared/out/kernel", ("tensor", "fsdp")),
        ]
    activations = [("hidden", ("batch", None, "tensor"))] if shared else []
    return layout | dict(
        parameters=(*parameters, *rules["parameters"]), activations=(*rules["activations"], *activations)
    )


def schedule(steps: int, evaluations: int) -> dict:
    """Evaluated and saved `evaluations` times; the parameters of the lowest loss on dev are kept."""
    of_encoders = parts.schedule(steps, evaluations)
    return of_encoders | dict(log_every=max(1, steps // 20), best_measure="dev/log_likelihood")
