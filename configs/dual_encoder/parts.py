"""What the dual-encoder configs of this folder are made of: plain dicts, to be read and varied."""


def bag_tower(vocab_size: int, width: int, segment_weights: tuple[float, ...] = ()) -> dict:
    """A weighted bag of subwords: minutes on two cores."""
    return dict(
        name="dual_encoder.towers.Tower",
        encoder=dict(
            name="backbones.bag.BagOfSubwords",
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=vocab_size, width=width),
            segment_weights=segment_weights,
            token_dropout=0.0,
        ),
        pooler=dict(name="dual_encoder.poolers.mean"),
    )


def transformer_tower(vocab_size: int, width: int, num_layers: int, dtype: str = "float32") -> dict:
    """A pre-norm Transformer with rotary positions and SwiGLU; heads of 64."""
    norm = dict(name="backbones.norms.RMSNorm")
    return dict(
        name="dual_encoder.towers.Tower",
        encoder=dict(
            name="backbones.encoder.TransformerEncoder",
            num_layers=num_layers,
            unroll=num_layers,  # on a CPU a quarter less time; fewer compile faster where there are many
            embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=vocab_size, width=width),
            block=dict(
                name="backbones.blocks.PreNorm",
                attention=dict(
                    name="backbones.attention.SelfAttention",
                    heads=max(1, width // 64),
                    rotate=dict(name="backbones.positions.rotary"),
                ),
                feed_forward=dict(name="moe.feed_forward.Gated", width=width * 8 // 3),
                norm=norm,
                dropout=0.1,
            ),
            norm=norm,
            dropout=0.1,
            dtype=dtype,
        ),
        pooler=dict(name="dual_encoder.poolers.mean"),
    )


def contrastive(model: dict, objective: str = "whole") -> dict:
    """InfoNCE in both directions with a learned temperature; the matrix of all scores of a batch is there
    `whole`, and MRR@10 within the batch is logged, or it is never there, and made `blockwise`."""
    if objective not in ("whole", "blockwise"):
        raise ValueError(f"config argument objective={objective!r}; allowed: whole, blockwise")
    whole = objective == "whole"
    module = "dual_encoder.objectives.softmax" if whole else "dual_encoder.blockwise"
    return dict(
        name="dual_encoder.task.Contrastive",
        model=model,
        objective=dict(name=f"{module}.symmetric_info_nce"),
        temperature=0.05,
        learn_temperature=True,
        measures={"mrr@10": dict(name="eval.on_device.mrr", topn=10)} if whole else {},
        chunks=1,
    )


def text(query_length: int, document_length: int, *, special_tokens: bool, lead_length: int = 0) -> dict:
    """Lengths and framing, without prompts or passages; see corpora.tokens.TextSettings."""
    return dict(
        query_length=query_length,
        document_length=document_length,
        special_tokens=special_tokens,
        lead_length=lead_length,
        query_template="",
        document_template="",
        passage_stride=0,
    )


def adam(peak: float, steps: int, weight_decay: float = 0.0) -> dict:
    """AdamW, clipped, warmed up over the first twentieth and then down a cosine to zero; only tables and
    kernels decay."""
    if steps < 2:
        raise ValueError(f"config argument steps={steps}; it must be at least 2")
    return dict(
        name="training.optimizers.clipped",
        max_norm=1.0,
        optimizer=dict(
            name="optax.adamw",
            weight_decay=weight_decay,
            mask=dict(name="training.optimizers.matrices"),
            learning_rate=dict(
                name="training.schedules.cosine",
                peak=peak,
                warmup_steps=max(1, steps // 20),
                total_steps=steps,
            ),
        ),
    )


def mesh(parameters: tuple = (), activations: tuple = ()) -> dict:
    """All devices on the axis `data`; the sizes of all five are there to override."""
    return dict(
        axes=dict(replica=1, data=-1, fsdp=1, tensor=1, expert=1),
        parameters=parameters,
        activations=activations,
    )


def transformer_mesh() -> dict:
    """As `mesh`, with rules for a Transformer, by which `fsdp` and `tensor` split it where they are used."""
    return mesh(
        parameters=(
            ("embed/table", ("tensor", "fsdp")),
            ("attention/(query|key|value)/kernel", ("fsdp", "tensor")),
            ("attention/out/kernel", ("tensor", "fsdp")),
            ("feed_forward/(in|gate)/kernel", ("fsdp", "tensor")),
            ("feed_forward/out/kernel", ("tensor", "fsdp")),
        ),
        activations=(
            ("table", ("tensor", None)),  # its columns are gathered: what is looked up lies by rows
            ("embedded|residual", ("batch", None, None)),
            ("heads", ("batch", "tensor", None, None)),
            ("hidden", ("batch", None, "tensor")),
            ("vectors", ("batch", None)),
        ),
    )


def init_from() -> dict:
    """No other run and no published encoder: parameters begin at random."""
    return dict(run="", rules=(), folder="")


def schedule(steps: int, evaluations: int) -> dict:
    """Evaluated and saved `evaluations` times; the best MRR@10 on dev is kept."""
    return dict(
        total_steps=steps,
        log_every=max(1, steps // 12),
        eval_every=max(1, steps // evaluations),
        save_every=max(1, steps // evaluations),
        best_measure="dev/mrr@10",
        keep_checkpoints=2,
        microbatches=1,
        average_decay=0.0,
    )


def evaluation(analyzers: dict, k1: tuple, b: tuple, title_weight: tuple, plain: str) -> dict:
    """Splits, measures, and the grid that BM25 is tuned over on dev; `plain` names its analyzer untuned."""
    return dict(
        train_split="train",
        dev_split="dev",
        test_split="test",
        measures=("ndcg@10", "mrr@10", "recall@10", "recall@100"),
        dev_measures=("mrr@10", "ndcg@10"),
        run_depth=100,
        tune_measure="mrr@10",
        fusion_weights=tuple(i / 10 for i in range(11)),
        bm25_plain=dict(k1=1.5, b=0.75, analyzer=analyzers[plain]),
        bm25_grid=dict(k1=k1, b=b, title_weight=title_weight, analyzers=analyzers),
        drop_same_id=False,
        widths=(),
        funnel=(),
    )
