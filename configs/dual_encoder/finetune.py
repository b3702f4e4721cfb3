"""A published encoder, fine-tuned with InfoNCE on a collection in BEIR layout with train, dev and test
judgements.

    python -m experiments.train --workdir=runs/tuned \
        --config=configs/dual_encoder/finetune.py:path=MODEL_FOLDER,folder=BEIR_FOLDER
    python -m experiments.export runs/tuned --out=models/tuned

In-batch negatives, and with `negatives=1` (the default) one of the 30 documents that BM25 ranks highest and
that are not judged relevant, drawn anew at each step (Karpukhin et al., 2020, "Dense Passage Retrieval for
Open-Domain Question Answering"). Prompts, length, pooling and similarity are the folder's own; `length` cuts
texts shorter, for speed. The temperature is 0.05 for a cosine and 1 for a dot product. A large batch at the
memory of a small one: --config.task.chunks=8.

No paper's number is reproduced here: what a model reaches depends on the folder. Evaluate it as it is first,
with configs/pretrained.py.
"""

import ml_collections

from configs import pretrained as published
from configs.arguments import parse_argument
from configs.dual_encoder import beir_folder, parts
from dual_encoder import pretrained


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: path (of the model), folder (of the collection), pooling, length, similarity, steps, batch,
    rate (learning rate), negatives."""
    given = parse_argument(
        argument,
        dict(
            path="",
            folder="",
            pooling="",
            length=0,
            similarity="",
            steps=500,
            batch=64,
            rate=2e-5,
            negatives=1,
        ),
    )
    folder = published.model_folder(given.path)
    config = beir_folder.get_config(
        f"folder={given.folder},encoder=transformer,steps={given.steps},batch={given.batch},"
        f"negatives={given.negatives}"
    )
    config.tokenizer = dict(name="dual_encoder.pretrained.tokenizer", path=folder)
    config.text = pretrained.text(folder, length=given.length or None)
    model = published.model(folder, given.pooling, given.similarity)
    cosine = pretrained.tower(folder, pooling=model["pooling"], normalize=model["normalize"]).normalize
    config.task = parts.contrastive(model)
    config.task.objective = dict(name="dual_encoder.objectives.softmax.info_nce")
    config.task.learn_temperature = False
    config.task.temperature = 0.05 if cosine else 1.0
    config.optimizer = parts.adam(given.rate, given.steps, weight_decay=0.01)
    config.init_from.folder = folder
    return config
