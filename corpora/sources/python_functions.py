"""`python_functions`: docstring-to-code search over the Python source that is already installed.

The task of CodeSearchNet (Husain et al., 2019) without a download: the standard library and the
packages that Retrievax itself depends on, or any folder of Python files. Query ids and document
ids are both `path:line`; a document's title is its module path. Files are split 80/10/10 into
train, dev and test by a hash of their path, so that no file feeds two splits.
"""

import functools
import hashlib
import importlib.util
import platform
import sysconfig
from pathlib import Path

from corpora import dataset
from corpora.sources import harvest
from corpora.sources.builder import TablesBuilder
from corpora.tables import DataError, Document, Judgement, Query, Tables

# The standard library is always read; these are import names of pinned run-time dependencies.
PACKAGES = (
    "absl", "anyio", "attr", "bm25s", "chex", "click", "cloudpickle", "contourpy", "dateutil", "etils",
    "filelock", "flax", "fontTools", "fsspec", "google.protobuf", "grain", "huggingface_hub", "humanize",
    "jax", "markdown_it", "matplotlib", "ml_collections", "mpl_toolkits", "numpy", "opt_einsum", "optax",
    "orbax.checkpoint", "packaging", "PIL", "prometheus_client", "psutil", "pyarrow", "pygments",
    "pyparsing", "requests", "rich", "scipy", "simple_parsing", "tensorboardX", "tensorflow_datasets",
    "toolz", "tqdm", "treescope", "urllib3", "wrapt",
)  # fmt: skip
# Raise when the harvest of an unchanged file changes, so that prepared folders are made anew.
RULES = 1


class PythonFunctions(TablesBuilder):
    """Builder `python_functions`.

    Args:
      root: a folder (or one file) of Python source to search instead; "" for the standard library
        and `packages`.
      packages: import names of installed packages, read when `root` is "".
    """

    def __init__(self, *, root: str = "", packages: tuple[str, ...] = PACKAGES, **kwargs):
        self._roots = _roots(root, tuple(packages))
        super().__init__(**kwargs)

    @functools.cached_property
    def _files(self) -> dict[str, Path]:
        return {
            prefix + (file.relative_to(root).as_posix() if root.is_dir() else file.name): file
            for prefix, root in self._roots.items()
            for file in ([root] if root.is_file() else harvest.python_files(root))
        }

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.VERSION} {RULES} {platform.python_version()}".encode())
        for name, file in self._files.items():
            digest.update(name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def tables(self) -> Tables:
        functions, counts = harvest.harvest(self._files)
        if not functions:
            raise DataError(
                f"data.root: no documented function of {harvest.MIN_CODE_LINES} lines or more in "
                f"{counts['files']} Python files under {', '.join(map(str, self._roots.values()))}"
            )
        ids = [f"{f.path}:{f.line}" for f in functions]
        qrels = {"train": [], "dev": [], "test": []}
        for ident, function in zip(ids, functions, strict=True):
            qrels[split_of(function.path)].append(Judgement(ident, ident, 1))
        return Tables(
            documents=[Document(i, module_of(f.path), f.code) for i, f in zip(ids, functions, strict=True)],
            queries=[Query(i, f.query) for i, f in zip(ids, functions, strict=True)],
            qrels=qrels,
            counts=counts,
        )


def load(*, root: str = "", packages: tuple[str, ...] = PACKAGES) -> dataset.Dataset:
    """Returns the prepared collection; the arguments are those of `PythonFunctions`."""
    return dataset.load(PythonFunctions, root=root, packages=packages)


def module_of(path: str) -> str:
    """Returns the dotted module of a file: `json/decoder.py` -> `json.decoder`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def split_of(path: str) -> str:
    """Returns the split of a source file: 80% train, 10% dev, 10% test, by a hash of its path."""
    bucket = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10
    return "test" if bucket == 9 else "dev" if bucket == 8 else "train"


def source_line(root: str, doc_id: str) -> tuple[Path, int]:
    """Returns the file and the line on this machine that a document id stands for."""
    path, _, line = doc_id.rpartition(":")
    if root:
        base = Path(root).expanduser()
        return (base if base.is_file() else base / path), int(line)
    for base in (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))):
        if (base / path).is_file():
            return base / path, int(line)
    return Path(path), int(line)


def _roots(root: str, packages: tuple[str, ...]) -> dict[str, Path]:
    if root:
        folder = Path(root).expanduser()
        if not folder.exists():
            raise DataError(f"data.root: no such file or folder: {root!r}")
        return {"": folder}
    roots = {"": Path(sysconfig.get_path("stdlib"))}
    for package in packages:
        spec = importlib.util.find_spec(package.split(".")[0])
        spec = spec and importlib.util.find_spec(package)
        if spec is None:
            raise DataError(f"data.packages: package {package!r} is not installed")
        folders = list(spec.submodule_search_locations or [])
        roots[package.replace(".", "/") + "/"] = Path(folders[0] if folders else spec.origin)
    return roots
