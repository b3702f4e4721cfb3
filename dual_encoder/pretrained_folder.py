"""What the JSON files of a published encoder's folder say: its modules, prompts, lengths and similarity.

Two kinds of folder are read. A sentence-transformers folder (Reimers and Gurevych, 2019, "Sentence-BERT") has

    modules.json                        the steps, each with its class and its own folder
    config_sentence_transformers.json   prompts by name, the default one, the similarity
    sentence_bert_config.json           maximum length, whether texts are lowered (of the Transformer)
    1_Pooling/config.json               how the vectors of tokens become one
    2_Dense/config.json                 a product and an activation, with weights beside it

A plain Hugging Face folder has config.json and no modules.json: it says nothing of pooling. Whatever stands
in these files and cannot be done here is an error that names it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backbones.pretrained.folder import PretrainedError, read_config
from corpora import pretrained_tokenizer

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
MODULE_CONFIG = "config.json"
# The name of today, and those that old releases gave it by the model.
TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
    "sentence_camembert_config.json", "sentence_xlm-roberta_config.json",
)  # fmt: skip
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
_SIMILARITIES = ("cosine", "dot")
_UNLIMITED = 10**9  # tokens: what a tokenizer that knows no length says is more
_QUERY_PROMPTS, _DOCUMENT_PROMPTS = ("query",), ("document", "passage", "corpus")
# Of a Transformer; what they could ask for is not supported.
_UNUSED = (
    "query_expansion", "processing_kwargs", "tokenizer_name_or_path", "model_args", "tokenizer_args",
    "config_args", "model_kwargs", "processor_kwargs", "config_kwargs",
)  # fmt: skip
# What a field may hold beside the values that are read, since it says no more than that.
_EMPTY = (None, {}, [], ())


@dataclasses.dataclass(frozen=True)
class Projection:
    """A module Dense.

    Attributes:
      folder: where its weights lie.
      width_in, width: of the vectors before and after it.
      use_bias: whether a bias is added.
      activation: one of the values of `ACTIVATIONS`.
    """

    folder: Path
    width_in: int
    width: int
    use_bias: bool
    activation: str


@dataclasses.dataclass(frozen=True)
class Described:
    """What a folder says.

    Attributes:
      transformer: the folder of the Transformer and its tokenizer.
      query_length, document_length: tokens a text is cut to, its frame included; None where nothing says so.
      lower_case: whether texts are lowered before they are tokenized.
      pooling: of `POOLINGS`, concatenated in this order; () in a plain Hugging Face folder.
      include_prompt: whether the tokens of a prompt are pooled too.
      projections: after the pooling.
      normalized: whether the last module scales vectors to length 1.
      similarity: "cosine" or "dot".
      prompts: by name.
      default_prompt: the name of the prompt of a text that has none of its own, or None.
    """

    transformer: Path
    query_length: int | None
    document_length: int | None
    lower_case: bool = False
    pooling: tuple[str, ...] = ()
    include_prompt: bool = True
    projections: tuple[Projection, ...] = ()
    normalized: bool = False
    similarity: str = "cosine"
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None

    def query_prompt(self, name: str | None = None) -> str:
        """Returns the prompt of queries: the one of this name, "query", or the default one; "" for none.

        Raises:
          PretrainedError: there is none of this name.
        """
        return self._prompt(name, _QUERY_PROMPTS)

    def document_prompt(self, name: str | None = None) -> str:
        """Returns the prompt of documents: the one of this name, "document", "passage" or "corpus", or the
        default one; "" for none. Errors as in `query_prompt`."""
        return self._prompt(name, _DOCUMENT_PROMPTS)

    def _prompt(self, name: str | None, names: Sequence[str]) -> str:
        if name is not None and name not in self.prompts:
            raise PretrainedError(
                f"there is no prompt {name!r}; allowed: "
                f"{', '.join(self.prompts) or 'none, there are no prompts'}"
            )
        wanted = [name] if name is not None else [*names, self.default_prompt]
        return next((self.prompts[known] for known in wanted if known in self.prompts), "")


def describe(path: str | Path) -> Described:
    """Reads the JSON files of a folder.

    Raises:
      PretrainedError: a file is missing or malformed, or has what is not supported; file and field are named.
    """
    folder = Path(path).expanduser()
    modules = _read(folder / MODULES, kind=list)
    if modules is None:
        length = _length(folder, None)
        return Described(folder, query_length=length, document_length=length)
    kinds = [_kind(folder, module) for module in modules]
    order = [kind for kind, _ in kinds]
    dense = order[2 : len(order) - (order[-1:] == ["Normalize"])]
    if order[:2] != ["Transformer", "Pooling"] or any(kind != "Dense" for kind in dense):
        raise PretrainedError(
            f"{folder / MODULES} has {', '.join(order) or 'no modules'}; allowed: Transformer, Pooling, any "
            "number of Dense, and Normalize or not, in this order"
        )
    return Described(
        **_transformer(kinds[0][1]),
        **_pooling(kinds[1][1]),
        projections=tuple(_projection(module) for kind, module in kinds if kind == "Dense"),
        normalized=order[-1] == "Normalize",
        **_settings(folder / SETTINGS),
    )


def _kind(folder: Path, module: Any) -> tuple[str, Path]:
    """The class and the folder of a module."""
    kind, place = (module.get(field) if isinstance(module, Mapping) else None for field in ("type", "path"))
    if not isinstance(kind, str) or not isinstance(place, str):
        raise PretrainedError(f"{folder / MODULES} has {module!r}; allowed: objects with type and path")
    _only(folder / MODULES, module, name=..., idx=..., type=..., path=..., kwargs=_EMPTY)
    name = kind.rpartition(".")[2]
    if not kind.startswith("sentence_transformers.") or name not in (
        "Transformer", "Pooling", "Dense", "Normalize"
    ):  # fmt: skip
        raise PretrainedError(
            f"{folder / MODULES}: type is {kind!r}; allowed: Transformer, Pooling, Dense and Normalize of "
            "sentence_transformers"
        )
    return name, folder / place


def _transformer(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in TRANSFORMER_CONFIGS if (folder / name).exists()), None)
    found = {} if file is None else _read(file)
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    _only(
        file,
        found,
        max_seq_length=...,
        do_lower_case=...,
        query_length=...,
        document_length=...,
        unpad_inputs=...,  # how it is computed, not what
        transformer_task=("feature-extraction",),
        modality_config=(text,),
        module_output_name=("token_embeddings",),
        **dict.fromkeys(_UNUSED, _EMPTY),
    )  # fmt: skip
    length = _length(folder, found.get("max_seq_length"))
    return dict(
        transformer=folder,
        query_length=found.get("query_length") or length,
        document_length=found.get("document_length") or length,
        lower_case=bool(found.get("do_lower_case", False)),
    )


def _length(folder: Path, given: int | None) -> int | None:
    """The longest text: as given, or what the tokenizer and the positions of the model allow."""
    config = read_config(folder)
    positions = config.get("max_position_embeddings")
    if positions and config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= config.get("pad_token_id", 1) + 1  # rows of the table that no token has
    if given is not None:
        return min(given, positions or given)
    limits = [pretrained_tokenizer.read_config(folder).get("model_max_length"), positions]
    return min((int(limit) for limit in limits if limit and limit < _UNLIMITED), default=None)


def _pooling(folder: Path) -> dict[str, Any]:
    file = folder / MODULE_CONFIG
    found = _read(file, needed=True)
    _only(
        file,
        found,
        pooling_mode=...,
        include_prompt=...,
        embedding_dimension=...,
        word_embedding_dimension=...,
        **dict.fromkeys(POOLING_FLAGS, ...),
    )
    given = found.get("pooling_mode", [mode for flag, mode in POOLING_FLAGS.items() if found.get(flag)])
    modes = (given,) if isinstance(given, str) else tuple(given) or ("mean",)
    check_pooling(modes, str(file))
    return dict(pooling=modes, include_prompt=bool(found.get("include_prompt", True)))


def check_pooling(modes: Sequence[str], where: str) -> None:
    """Raises PretrainedError for a pooling that there is not."""
    for mode in modes:
        if mode not in POOLINGS:
            raise PretrainedError(f"{where}: pooling is {mode!r}; allowed: {', '.join(POOLINGS)}")


def _projection(folder: Path) -> Projection:
    file = folder / MODULE_CONFIG
    found = _read(file, needed=True)
    vector = ("sentence_embedding", None)
    _only(
        file,
        found,
        in_features=...,
        out_features=...,
        bias=...,
        activation_function=tuple(ACTIVATIONS),
        module_input_name=vector,
        module_output_name=vector,
        use_residual=(False,),
    )
    activation = found.get("activation_function", "torch.nn.modules.activation.Tanh")
    try:
        return Projection(
            folder,
            int(found["in_features"]),
            int(found["out_features"]),
            bool(found.get("bias", True)),
            ACTIVATIONS[activation],
        )
    except KeyError as error:
        raise PretrainedError(f"{file} has no {error}") from None


def _settings(file: Path) -> dict[str, Any]:
    found = _read(file) or {}
    _only(
        file,
        found,
        __version__=...,
        prompts=...,
        default_prompt_name=...,
        similarity_fn_name=(*_SIMILARITIES, None),
        model_type=("SentenceTransformer",),
        truncate_dim=_EMPTY,
    )
    prompts = {name: prompt or "" for name, prompt in (found.get("prompts") or {}).items()}
    default = found.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise PretrainedError(
            f"{file}: default_prompt_name is {default!r}; allowed, of the prompts: "
            f"{', '.join(prompts) or 'none'}"
        )
    return dict(
        prompts=prompts,
        default_prompt=default,
        similarity=found.get("similarity_fn_name") or "cosine",
    )


def _only(file: Path | None, found: Mapping[str, Any], **allowed: Any) -> None:
    """Raises PretrainedError for a field that is not named here, or has none of the values that are (... for
    any)."""
    for field, value in found.items():
        if field not in allowed:
            raise PretrainedError(f"{file}: {field} is {value!r}, which is not supported")
        values = allowed[field]
        if values is not ... and value not in values:
            shown = ", ".join(repr(value) for value in values)
            raise PretrainedError(f"{file}: {field} is {value!r}; allowed: {shown}")


def _read(file: Path, *, kind: type = dict, needed: bool = False) -> Any:
    """A file's JSON; None where there is none that need not be."""
    if not file.exists():
        if needed:
            raise PretrainedError(f"{file.parent} has no {file.name}")
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PretrainedError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, kind):
        raise PretrainedError(f"{file} holds {type(found).__name__}; allowed: {kind.__name__}")
    return found
