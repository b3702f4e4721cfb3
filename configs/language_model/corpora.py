"""A small causal language model on the documents of several collections, each a domain with its perplexity.

    python -m experiments.train --config=configs/language_model/corpora.py --workdir=runs/lm
    python -m experiments.train --workdir=runs/mine \
        --config=configs/language_model/corpora.py:folders=fairytaleqa+/data/mine,width=512,layers=8,steps=5000

Folders are in BEIR layout: paths, or names under RETRIEVAX_DATA; docs/language_models.md has more.

On two cores of an AMD EPYC, one seed: 4,194,560 parameters; 400 steps, 1.5 a second (0.9 with other work on
the machine), which read 1.3 of 5.7 million tokens. Perplexity on the 426 test documents, a token being one of
the run's own 4,096:

    all          63.9     of single tokens by their counts: 767
    cranfield   200.5
    fairytaleqa 148.6
    medquad      48.2
"""

from pathlib import Path

import ml_collections

from configs.arguments import parse_argument
from configs.dual_encoder import parts as common
from configs.language_model import parts

VOCAB_SIZE = 4_096


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: folders (joined by +; a domain has the name of its folder, its
    dots as underscores), width, layers, length, batch,
    steps."""
    given = parse_argument(
        argument,
        {
            "folders": "fairytaleqa+medquad+cranfield",
            "width": 256,
            "layers": 4,
            "length": 128,
            "batch": 32,
            "steps": 400,
        },
    )
    folders = [folder for folder in given.folders.split("+") if folder]
    names = [Path(folder).name.replace(".", "_") for folder in folders]  # a dot parts fields
    if not folders or len(set(names)) < len(names):
        raise ValueError(
            f"config argument folders={given.folders!r}; allowed: folders of different names, joined by +"
        )
    config = ml_collections.ConfigDict()
    config.family = "experiments.language.Experiment"
    config.seed = 0
    config.data = parts.domains(
        {name: parts.beir(folder) for name, folder in zip(names, folders, strict=True)}
    )
    config.tokenizer = dict(
        name="corpora.tokenizer.train_wordpiece", vocab_size=VOCAB_SIZE, split_identifiers=False
    )
    config.batch = dict(batch_size=given.batch, length=given.length, domain_rows=1)
    config.task = parts.causal(parts.decoder(VOCAB_SIZE, given.width, given.layers, parts.gated(given.width)))
    config.optimizer = common.adam(2e-3, given.steps, weight_decay=0.01)
    config.mesh = parts.mesh()
    config.init_from = common.init_from()
    config.schedule = parts.schedule(given.steps, evaluations=5)
    config.evaluation = dict(batch_size=given.batch)
    return config
