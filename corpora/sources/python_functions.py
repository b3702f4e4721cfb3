"""`python_functions`: docstring-to-code search over the Python source that is already installed.

The task of CodeSearchNet (Husain et al., 2019) without a download: the standard library and the
packages that Retrievax itself depends on, or any folder of Python files. Query ids and document ids
are both `path:line`; a document's title is its dotted path, module and class included. Files are
split 80/10/10 into train, dev and test in the order of a hash of their paths: no file feeds two.
"""

import contextlib
import functools
import hashlib
import importlib.util
import platform
import sysconfig
from collections.abc import Iterable
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
RULES = 3


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
            with contextlib.suppress(OSError):  # the harvest counts it as unreadable
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
        split = split_files({function.path for function in functions})
        qrels = {"train": [], "dev": [], "test": []}
        for ident, function in zip(ids, functions, strict=True):
            qrels[split[function.path]].append(Judgement(ident, ident, 1))
        return Tables(
            documents=[Document(i, title_of(f), f.code) for i, f in zip(ids, functions, strict=True)],
            queries=[Query(i, f.query) for i, f in zip(ids, functions, strict=True)],
            qrels=qrels,
            counts=counts,
        )


def load(*, root: str = "", packages: tuple[str, ...] = PACKAGES) -> dataset.Dataset:
    """Returns the prepared collection; the arguments are those of `PythonFunctions`."""
    return dataset.load(PythonFunctions, root=root, packages=packages)


def title_of(function: harvest.Function) -> str:
    """Returns a function's dotted path: `json.decoder.JSONDecoder.decode`."""
    module = function.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return f"{module}.{function.qualified_name}"


def split_files(paths: Iterable[str]) -> dict[str, str]:
    """Assigns source files to splits: 80% train, 10% dev, 10% test, in the order of their hashes.

    Raises:
      DataError: there are fewer than three files, so that a split would be empty.
    """
    ordered = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())
    if len(ordered) < 3:
        raise DataError(
            f"data.root: documented functions are in {len(ordered)} file(s); at least 3 are needed, "
            "for train, dev and test are split by file"
        )
    held_out = max(1, round(len(ordered) / 10))
    names = ["dev"] * held_out + ["test"] * held_out + ["train"] * (len(ordered) - 2 * held_out)
    return dict(zip(ordered, names, strict=True))


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
