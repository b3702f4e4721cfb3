"""Code search on a laptop: a bag-of-subwords dual encoder that learns docstring -> function."""

import ml_collections

from configs.arguments import parse_argument

VOCAB_SIZE = 8_000
WIDTH = 1_024


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: `root=FOLDER` searches the Python files below it; `steps=` the length of training."""
    given = parse_argument(argument, {"root": "", "steps": 144})
    config = ml_collections.ConfigDict()
    config.family = "experiments.contrastive.Experiment"
    config.seed = 0
    config.data = dict(name="corpora.sources.python_functions.load", root=given.root)
    config.tokenizer = dict(name="corpora.tokenizer.train_bpe", vocab_size=VOCAB_SIZE, punctuation=False)
    config.text = dict(query_length=48, document_length=224, special_tokens=False)
    config.batch = dict(batch_size=1_024)
    config.task = dict(
        name="dual_encoder.task.Contrastive",
        model=dict(
            name="dual_encoder.towers.shared_embedding",
            query=tower(segment_weights=()),
            # A title (the dotted path) is short and says most: its tokens count six times at first.
            document=tower(segment_weights=(1.0, 6.0)),
        ),
        objective=dict(name="dual_encoder.objectives.symmetric_info_nce"),
        temperature=0.05,
        learn_temperature=True,
    )
    config.optimizer = dict(
        name="training.optimizers.clipped",
        max_norm=1.0,
        optimizer=dict(
            name="optax.adam",
            learning_rate=dict(
                name="optax.warmup_cosine_decay_schedule",
                init_value=0.0,
                peak_value=2e-3,
                warmup_steps=max(1, given.steps // 20),
                decay_steps=given.steps,
            ),
        ),
    )
    config.schedule = dict(
        total_steps=given.steps,
        log_every=12,
        eval_every=max(1, given.steps // 6),
        save_every=max(1, given.steps // 3),
        best_measure="dev/mrr@10",
    )
    config.evaluation = evaluation()
    return config


def tower(segment_weights: tuple[float, ...]) -> dict:
    embed = dict(name="backbones.embedding.TokenEmbedding", vocab_size=VOCAB_SIZE, width=WIDTH)
    return dict(
        name="dual_encoder.towers.Tower",
        encoder=dict(name="backbones.bag.BagOfSubwords", embed=embed, segment_weights=segment_weights),
        pooler=dict(name="dual_encoder.poolers.mean"),
    )


def evaluation() -> dict:
    words = dict(name="index.lexical.Analyzer", split_identifiers=True)
    return dict(
        train_split="train",
        dev_split="dev",
        test_split="test",
        measures=("ndcg@10", "mrr@10", "recall@10", "recall@100"),
        dev_measures=("mrr@10", "ndcg@10"),
        dev_depth=10,
        tune_measure="mrr@10",
        fusion_weights=tuple(i / 10 for i in range(11)),
        bm25_plain=dict(k1=1.5, b=0.75, analyzer=words),
        bm25_grid=dict(
            k1=(0.9, 1.5, 3.0),
            b=(0.75, 0.9, 1.0),
            title_weight=(0.0, 1.0, 2.0, 4.0),
            analyzers=dict(
                words=words,
                stems=words | dict(stemmer="english"),
                content_words=words | dict(stop_words="english"),
                content_stems=words | dict(stop_words="english", stemmer="english"),
            ),
        ),
    )
