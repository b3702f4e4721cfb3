"""placeholder"""

import ml_collections


def get_config(arg=None):
    c = ml_collections.ConfigDict()
    c.family = "experiments.contrastive.Experiment"
    c.seed = 0
    c.data = dict(name="corpora.sources.python_functions.load", root="")
    c.tokenizer = dict(name="corpora.tokenizer.train_bpe", vocab_size=8_000)
    c.text = dict(query_length=48, document_length=192, special_tokens=False)
    c.batch = dict(batch_size=512)
    bag = dict(
        name="backbones.bag.BagOfSubwords",
        vocab_size=8_000,
        num_segments=2,
        token_dropout=0.15,
        embed=dict(name="backbones.embedding.TokenEmbedding", vocab_size=8_000, width=256),
    )
    c.task = dict(
        name="dual_encoder.task.Contrastive",
        model=dict(
            name="dual_encoder.towers.tied",
            tower=dict(
                name="dual_encoder.towers.Tower", encoder=bag, pooler=dict(name="dual_encoder.poolers.mean")
            ),
        ),
        objective=dict(name="dual_encoder.objectives.symmetric_info_nce"),
        temperature=0.05,
        learn_temperature=True,
    )
    c.optimizer = dict(
        name="training.optimizers.clipped",
        max_norm=1.0,
        optimizer=dict(
            name="optax.adamw",
            weight_decay=0.0,
            learning_rate=dict(
                name="optax.warmup_cosine_decay_schedule",
                init_value=0.0,
                peak_value=2e-3,
                warmup_steps=20,
                decay_steps=280,
                end_value=0.0,
            ),
        ),
    )
    c.schedule = dict(
        total_steps=280, log_every=20, eval_every=140, save_every=140, best_measure="dev/mrr@10"
    )
    c.evaluation = dict(
        train_split="train",
        dev_split="dev",
        test_split="test",
        measures=("ndcg@10", "mrr@10", "recall@10", "recall@100"),
        dev_measures=("mrr@10", "ndcg@10"),
        dev_depth=10,
        tune_measure="mrr@10",
        fusion_weights=tuple(i / 10 for i in range(11)),
        bm25_plain=dict(k1=1.5, b=0.75, analyzer=dict(name="index.lexical.Analyzer", split_identifiers=True)),
        bm25_grid=dict(
            k1=(0.9, 1.5, 3.0),
            b=(0.75, 0.9),
            title_weight=(0.0, 1.0, 2.0),
            analyzers=dict(
                words=dict(name="index.lexical.Analyzer", split_identifiers=True),
                stems=dict(
                    name="index.lexical.Analyzer",
                    split_identifiers=True,
                    stop_words="english",
                    stemmer="english",
                ),
            ),
        ),
    )
    return c
