"""The config `medquad.py` with another model, or another loss beside that of spelling, without copying and
without a penalty of length:

decoder_only    the text is the prompt of a decoder, all of which every word of it sees
one_vector      DynamicRetriever (Zhou et al., 2022): an encoder and one vector a document
prefix_aware    the decoder of the Neural Corpus Indexer (Wang et al., 2022)
consistency     its consistency regularization, at twice the computation of a step
joint           the encoder is a dual encoder's as well
distilled       candidates' log-probabilities are held to the scores of a dual encoder, `teacher`

Each is to be compared with `medquad.py:penalty=0,copy=0`; consistency with the same and `dropout=0.1`,
without which it has nothing to even out; prefix_aware with `medquad.py:scheme=semantic2d`, ids as in its
paper; and one_vector with `medquad.py:scheme=atomic`.

python -m experiments.train --config=configs/generative_retrieval/variants.py:variant=joint --workdir=runs/gr
"""

import ml_collections

from configs.arguments import parse_argument
from configs.generative_retrieval import medquad

VARIANTS = ("decoder_only", "one_vector", "prefix_aware", "consistency", "joint", "distilled")


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
    """Argument: variant, teacher (a dual encoder's run, for distilled), and of medquad.py folder, scheme
    ("" for the one above), steps, batch, width, documents (how many there are, for one_vector, which all
    must fit), capacity (how many there may ever be)."""
    given = parse_argument(
        argument,
        dict(
            variant="prefix_aware", teacher="runs/dual", folder="medquad", scheme="", steps=1000, batch=64,
            width=128, documents=15_790, capacity=20_000,
        ),
    )  # fmt: skip
    if given.variant not in VARIANTS:
        raise ValueError(f"config argument variant={given.variant!r}; allowed: {', '.join(VARIANTS)}")
    if given.variant == "one_vector":
        given.scheme = "atomic"
    given.scheme = given.scheme or ("semantic2d" if given.variant == "prefix_aware" else "titles")
    shared = ("folder", "scheme", "steps", "batch", "width", "capacity")
    dropout = 0.1 if given.variant == "consistency" else 0.0
    plain = ["penalty=0", "copy=0", f"dropout={dropout}"]
    config = medquad.get_config(",".join([*plain, *(f"{name}={given[name]}" for name in shared)]))
    config.task = _task(given, config.task.to_dict())
    rules = config.mesh.parameters
    if given.variant == "one_vector":
        config.mesh.parameters = (*rules, ("rows/table", ("fsdp", None)))
    if given.variant == "decoder_only":
        config.mesh.parameters = [
            (rule.replace("embed/", "embed/(text|docid)/"), spec) for rule, spec in rules
        ]
    return config


def _task(given: ml_collections.ConfigDict, spelling: dict) -> dict:
    """The Task of a variant, made of the plain one."""
    of, model = "generative_retrieval", spelling["model"]
    pooler = dict(name="dual_encoder.poolers.mean")
    encoder, decoder = model["encoder"], model["decoder"]
    if given.variant == "decoder_only":
        tables = dict(name=f"{of}.decoder_only.TwoTables", text=encoder["embed"], docid=decoder["embed"])
        alone = decoder | dict(
            embed=tables,
            block=decoder["block"] | dict(cross_attention=None),
            visible=dict(name="backbones.masks.prefix_lm"),
        )
        return spelling | dict(model=dict(name=f"{of}.decoder_only.DecoderOnly", decoder=alone))
    if given.variant == "one_vector":
        tower = dict(name="dual_encoder.towers.Tower", encoder=encoder, pooler=pooler, normalize=False)
        of_documents = dict(
            name=f"{of}.dynamic_retriever.DynamicRetriever",
            tower=tower,
            documents=given.documents,
            spare=given.capacity - given.documents,
        )
        return spelling | dict(model=of_documents)
    if given.variant == "prefix_aware":
        adaptor = dict(
            adaptor_block=decoder["block"],
            adaptor_layers=decoder["num_layers"],
            adaptor_norm=decoder["norm"],
        )
        return spelling | dict(model=model | adaptor | dict(name=f"{of}.pawa.PrefixAware"))
    if given.variant == "consistency":
        return spelling | dict(consistency=dict(name=f"{of}.consistency.Consistency", weight=0.15))
    if given.variant == "joint":
        shared = dict(name=f"{of}.joint.SharedEncoder", generator=model, pooler=pooler)
        return dict(name=f"{of}.joint.Joint", spelling=spelling | dict(model=shared), weight=1.0)
    return dict(
        name=f"{of}.distillation.Distilled",
        spelling=spelling,
        teacher=dict(name=f"{of}.distillation.dense", run=given.teacher, count=16),
        objective=dict(name="training.ranking.list_net", temperature=0.05),
    )
