"""A published encoder, as it is, on a collection in BEIR layout: with its own prompts, length, pooling and
similarity.

    python -m experiments.evaluate --config=configs/pretrained.py:path=MODEL_FOLDER,data=BEIR_FOLDER
    python -m experiments.evaluate --workdir=runs/e5 \
        --config=configs/pretrained.py:path=/models/e5-small-v2,data=scifact \
        --config.text.query_template="query: {text}" \
        --config.text.document_template="passage: {title} {text}"

`path` is a sentence-transformers folder, or a plain Hugging Face folder with `pooling` (mean, cls, lasttoken,
...) named here, since it does not say. Prompts that the folder does not have, but its authors ask for, are
given as templates. A title is put before its text, as BEIR and MTEB do. `data` is a path, or a name under
RETRIEVAX_DATA; `test` and `dev` are its splits. Without dev judgements neither BM25 nor the weight of the
fusion is tuned. A similarity is the folder's own, the cosine where it names none; `similarity=dot` is for one
that was trained for it.

What it gives is the model's published number where that was measured on the whole collection with the same
prompts; none is stated here. It costs one pass over the corpus.
"""

from pathlib import Path

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts
from dual_encoder import pretrained

SIMILARITIES = {"": None, "cosine": True, "dot": False}


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: path, data, test, dev (names of splits; dev may be empty), pooling, length, similarity, query
    and document (names of the folder's prompts)."""
    given = parse_argument(
        argument,
        dict(
            path="", data="", test="test", dev="", pooling="", length=0, similarity="", query="", document=""
        ),
    )
    folder = model_folder(given.path)
    config = ml_collections.ConfigDict()
    config.family = "experiments.published.Experiment"
    config.seed = 0
    config.data = dict(name="corpora.sources.beir_folder.load", folder=given.data, allow_missing=False)
    config.tokenizer = dict(name="dual_encoder.pretrained.tokenizer", path=folder)
    config.text = pretrained.text(
        folder,
        query_prompt=given.query or None,
        document_prompt=given.document or None,
        length=given.length or None,
    )
    config.task = dict(
        name="dual_encoder.task.Contrastive", model=model(folder, given.pooling, given.similarity)
    )
    config.init_from = parts.init_from() | dict(folder=folder)
    stems = dict(name="index.lexical.Analyzer", stop_words="english", stemmer="porter")
    config.evaluation = parts.evaluation(
        analyzers=dict(stems=stems),
        k1=(0.9, 1.5, 3.0),
        b=(0.4, 0.75, 0.9),
        title_weight=(1.0, 2.0),
        plain="stems",
    )
    evaluation = config.evaluation
    evaluation.train_split, evaluation.dev_split, evaluation.test_split = "", given.dev, given.test
    evaluation.tune_measure = "ndcg@10"
    evaluation.bm25_plain = dict(k1=0.9, b=0.4, analyzer=stems)
    return config


def model_folder(path: str) -> str:
    """The folder of a published encoder, so that the run is found from anywhere. ValueError for none."""
    if not path:
        raise ValueError("config argument path is missing; allowed: the folder of a published encoder")
    return str(Path(path).expanduser().resolve())


def model(folder: str, pooling: str, similarity: str) -> dict:
    """The spec of the encoder; "" for what the folder says."""
    if similarity not in SIMILARITIES:
        raise ValueError(f"config argument similarity={similarity!r}; allowed: cosine, dot, or none")
    return dict(
        name="dual_encoder.pretrained.model",
        path=folder,
        pooling=pooling or None,
        normalize=SIMILARITIES[similarity],
    )
