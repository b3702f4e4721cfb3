"""Harvest documented Python functions from source files with `ast`: the CodeSearchNet task.

A query is the first paragraph of a docstring; its document is the function's source without that
docstring and without those of the functions and classes nested in it, so that no query stands
word for word in its own document. The filters are those of CodeSearchNet (Husain et al., 2019,
"CodeSearchNet Challenge: Evaluating the State of Semantic Code Search"): a query has three words
or more, an implementation three lines or more, and names with "test", constructors and other
double-underscore methods are left out.
"""

import ast
import hashlib
import itertools
import os
import re
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

SKIPPED_FOLDERS = frozenset({
    "test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "node_modules",
    "build", "dist", "venv", "env", "__pycache__", "_vendor", "vendored", "externals", "third_party",
})  # fmt: skip
MIN_QUERY_WORDS = 3
MIN_CODE_LINES = 3
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_AFTER_DOCSTRING = re.compile(rb"(?:[ \t\f;]|\\\n)*")  # what separates it from a statement on its line
_FORM_FEED_INDENT = re.compile(r"^[ \t\f]*\f", re.MULTILINE)  # Python counts indentation after it


class Function(NamedTuple):
    """One documented function: `path` is relative to the harvested root, `line` counts from 1."""

    path: str
    line: int
    qualified_name: str
    query: str
    code: str


def python_files(root: Path) -> Iterator[Path]:
    """Yields the Python files below `root` in sorted order, without tests, vendored and hidden folders."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name for name in subfolders if name not in SKIPPED_FOLDERS and not name.startswith(".")
        )
        for name in sorted(names):
            path = Path(folder, name)  # a file: not a pipe, nor a link that leads nowhere
            if name.endswith(".py") and not name.startswith(("test_", ".")) and path.is_file():
                yield path


def harvest_source(source: str, path: str) -> list[Function]:
    """Returns the documented functions and methods of one file's source text.

    Args:
      source: the text of a Python file.
      path: what to call the file in the result.

    Raises:
      SyntaxError, ValueError: if `source` is not Python that this interpreter can parse.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    lines = source.encode().split(b"\n")  # not splitlines: ast counts no other line ends
    found = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, _FUNCTIONS):
                function = _function(node, prefix, lines, path)
                if function is not None:
                    found.append(function)
            elif isinstance(node, (ast.If, ast.Try, ast.TryStar, ast.With)):
                for branch in ("body", "orelse", "finalbody"):
                    visit(getattr(node, branch, []), prefix)
                for handler in getattr(node, "handlers", []):
                    visit(handler.body, prefix)

    visit(tree.body, "")
    return found


def first_paragraph(docstring: str) -> str:
    """Returns the text up to the first blank line, white space collapsed to single spaces."""
    paragraph = []
    for line in docstring.strip().splitlines():
        if not line.strip():
            break
        paragraph.append(line)
    return " ".join(" ".join(paragraph).split())


def _function(node, prefix: str, lines: list[bytes], path: str) -> Function | None:
    docstring = ast.get_docstring(node)
    name = node.name
    if not docstring or "test" in name.lower() or (name.startswith("__") and name.endswith("__")):
        return None
    # An escape in a docstring can spell half a surrogate pair, which no file can hold.
    query = first_paragraph(docstring).encode(errors="replace").decode()
    if len(query.split()) < MIN_QUERY_WORDS:
        return None
    code = _source_without_docstrings(node, lines)
    if code.count("\n") + 1 < MIN_CODE_LINES:
        return None
    return Function(path, node.lineno, prefix + name, query, code)


def _source_without_docstrings(node, lines: list[bytes]) -> str:
    """Cuts the function's lines out of its file, less every docstring in it; dedented, no blank lines."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    while node.decorator_list and not lines[first - 1].lstrip().startswith(b"@"):
        first -= 1  # `@(`, with the expression on a later line
    kept = lines[first - 1 : node.end_lineno]
    starts = list(itertools.accumulate((len(line) + 1 for line in kept), initial=0))
    docstrings = [
        inner.body[0]
        for inner in ast.walk(node)
        if isinstance(inner, (*_FUNCTIONS, ast.ClassDef)) and ast.get_docstring(inner) is not None
    ]
    code = b"\n".join(kept)
    for string in sorted(docstrings, key=lambda s: s.lineno, reverse=True):
        begin = starts[string.lineno - first] + string.col_offset
        end = starts[string.end_lineno - first] + string.end_col_offset
        code = code[:begin] + code[_AFTER_DOCSTRING.match(code, end).end() :]
    text = _FORM_FEED_INDENT.sub("", code.decode())
    margin = len(text) - len(text.lstrip())
    return "\n".join(
        line[margin:] if not line[:margin].strip() else line.lstrip()
        for line in text.split("\n")
        if line.strip()
    )


def harvest(files: Mapping[str, Path]) -> tuple[list[Function], dict[str, int]]:
    """Harvests files, dropping exact duplicates of a query or of a document.

    Args:
      files: by the path that functions are to carry, the file on disk; read in this order.

    Returns:
      functions in the order of `files`; and counts: files read, files that could not be parsed,
      functions found, and how many were dropped as duplicates.
    """
    counts = {"files": 0, "unreadable_files": 0, "found": 0, "duplicates": 0}
    functions, queries, codes = [], set(), set()
    shown = tqdm(files.items(), desc="reading", unit="file", leave=False, disable=None)  # on a terminal
    for path, file in shown:
        try:
            with tokenize.open(file) as handle:
                found = harvest_source(handle.read(), path)
        # ValueError: null bytes, bad encoding. RecursionError, MemoryError: nested too deeply.
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            counts["unreadable_files"] += 1
            continue
        counts["files"] += 1
        counts["found"] += len(found)
        for function in found:
            code = hashlib.sha256(function.code.encode()).digest()
            if function.query in queries or code in codes:
                counts["duplicates"] += 1
                continue
            queries.add(function.query)
            codes.add(code)
            functions.append(function)
    return functions, counts
