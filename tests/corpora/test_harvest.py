"""Tests of corpora.sources.harvest: the cut of docstrings, what is kept, and what is counted."""

import ast
import json
import os
import sysconfig
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora.sources import harvest

# Filler that brings a document to three lines.
BODY = "    first = 1\n    return first\n"


def only(source):
    """Returns the one function that is harvested from `source`."""
    (function,) = harvest.harvest_source(source, "module.py")
    return function


# By what is tried: source, and the document that it must become.
CUTS = {
    "ordinary": (
        'def f(a):\n    """Says it all twice.\n\n    More of it.\n    """\n    x = a\n\n    return x\n',
        "def f(a):\n    x = a\n    return x",
    ),
    "statement after the docstring": (
        'def f(\n    a,\n    b,\n): "Says it all."; return 1\n',
        "def f(\n    a,\n    b,\n): return 1",
    ),
    "semicolon between tabs": (
        'def f(a):\n    "Says it all."\t;\tx = 1\n    return x + a + 1\n    # end\n    return 2\n',
        "def f(a):\n    x = 1\n    return x + a + 1\n    # end\n    return 2",
    ),
    "line continued after the docstring": (
        'def f(a):\n    "Says it all." \\\n    ; x = 1\n    return x\n',
        "def f(a):\n    x = 1\n    return x",
    ),
    "line continued before the docstring": (
        'def f(a): \\\n    "Says it all."; \\\n    x = \\\n  1; return x\n',
        "def f(a): \\\n    x = \\\n  1; return x",
    ),
    "comment after the docstring": (
        f'def f(a):\n    """Says it all."""  # noqa\n{BODY}',
        f"def f(a):\n    # noqa\n{BODY.rstrip()}",
    ),
    "implicit concatenation": (
        f'def f(a):\n    "Says " r"it " \\\n  "all."\n{BODY}',
        f"def f(a):\n{BODY.rstrip()}",
    ),
    "in parentheses": (
        f'def f(a):\n    (\n        "Says "\n        "it all."\n    )\n{BODY}',
        f"def f(a):\n{BODY.rstrip()}",
    ),
    "raw": (f'def f(a):\n    r"""Says it \\all."""\n{BODY}', f"def f(a):\n{BODY.rstrip()}"),
    "non-ASCII before the docstring on its line": (
        "def f(a='é→😀',\n    b=2,\n    c=3): 'Says it all.'; x = '→'; return x\n",
        "def f(a='é→😀',\n    b=2,\n    c=3): x = '→'; return x",
    ),
    "non-ASCII docstring": (
        f'def f(a):\n    """Says it äll → 😀."""; y = 2\n{BODY}',
        f"def f(a):\n    y = 2\n{BODY.rstrip()}",
    ),
    "nested functions and classes": (
        'def f(a):\n    """Says it all."""\n    def g():\n        """Inner."""\n        return 1\n'
        '    class C:\n        """Inner class."""\n        async def m(self): "Innermost."; return 2\n'
        "    return g\n",
        "def f(a):\n    def g():\n        return 1\n"
        "    class C:\n        async def m(self): return 2\n    return g",
    ),
    "decorators": (
        f'@one\n@two(\n    3,\n)\ndef f(a):\n    """Says it all."""\n{BODY}',
        f"@one\n@two(\n    3,\n)\ndef f(a):\n{BODY.rstrip()}",
    ),
    "decorator in parentheses": (
        f'@(\n    one\n    @ two\n)\ndef f(a):\n    """Says it all."""\n{BODY}',
        f"@(\n    one\n    @ two\n)\ndef f(a):\n{BODY.rstrip()}",
    ),
    "async": (
        f'async def f(a):\n    """Says it all."""\n{BODY}',
        f"async def f(a):\n{BODY.rstrip()}",
    ),
    "tabs": (
        'class C:\n\tdef f(a):\n\t\t"""Says it all."""\n\t\tif a:\n\t\t\treturn 1\n\t\treturn 2\n',
        "def f(a):\n\tif a:\n\t\treturn 1\n\treturn 2",
    ),
    "form feeds": (
        "import os\n\x0c\nclass C:\n\x0c    def f(a):\n        '''Says it all.'''\n"
        "\x0c        x = 1\n\x0c\n        return x\n",
        "def f(a):\n    x = 1\n    return x",
    ),
    "line ends of others in strings": (
        "def f(a):\n    '''Says\u2028it all.'''\n    x = 'a\u2028b\x0cc\x85d'\n    return x\n",
        "def f(a):\n    x = 'a\u2028b\x0cc\x85d'\n    return x",
    ),
    "CR LF": (
        'def f(a):\r\n    """Says\r\n    it all."""\r\n    x = a\r\n    return x\r\n',
        "def f(a):\n    x = a\n    return x",
    ),
    "CR": (
        'def f(a):\r    """Says it all."""\r    x = a\r    return x\r',
        "def f(a):\n    x = a\n    return x",
    ),
    "other strings stay": (
        'def f(a):\n    """Says it all."""\n    x = """Not\n  this."""\n    return x\n',
        'def f(a):\n    x = """Not\n  this."""\n    return x',
    ),
    "less indented comments": (
        'class C:\n    def f(a):\n        """Says it all."""\n# note\n        x = a\n        return x\n',
        "def f(a):\n# note\n    x = a\n    return x",
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_docstrings_are_cut_exactly(name):
    source, code = CUTS[name]
    function = only(source)
    assert function.code == code
    assert function.query.startswith("Says")
    ast.parse(function.code)


def test_names_lines_and_paths():
    source = textwrap.dedent('''
        class A:
            """Documents a class, not harvested."""
            class B:
                @property
                def f(self):
                    """Says it all."""
                    x = 1
                    return x
    ''')
    assert only(source) == harvest.Function(
        path="module.py",
        line=6,
        qualified_name="A.B.f",
        query="Says it all.",
        code="@property\ndef f(self):\n    x = 1\n    return x",
    )


def test_functions_under_if_try_and_with_are_found_those_in_functions_not():
    function = '{0}def {1}(a):\n{0}    """Says {1} at last."""\n{0}    x = a\n{0}    return x\n'
    source = (
        "if a:\n" + function.format("    ", "in_if")
        + "elif b:\n" + function.format("    ", "in_elif")
        + "else:\n" + function.format("    ", "in_else")
        + "try:\n" + function.format("    ", "in_try")
        + "except A:\n" + function.format("    ", "in_except")
        + "else:\n" + function.format("    ", "in_try_else")
        + "finally:\n" + function.format("    ", "in_finally")
        + "try:\n" + function.format("    ", "in_try_star")
        + "except* A:\n    pass\n"
        + "with c:\n" + function.format("    ", "in_with")
        + function.format("", "outer")
        + function.format("    ", "inner")
    )  # fmt: skip
    names = {function.qualified_name for function in harvest.harvest_source(source, "module.py")}
    branches = "if elif else try except try_else finally try_star with"
    assert names == {*(f"in_{branch}" for branch in branches.split()), "outer"}


@pytest.mark.parametrize(
    ("name", "docstring", "body", "kept"),
    [
        ("f", '"""Has three words."""', BODY, True),
        ("f", '"""Two words.\n\n    More words below."""', BODY, False),
        ("f", '""""""', BODY, False),
        ("f", 'f"""Has {three} words."""', BODY, False),
        ("f", 'b"""Has three words."""', BODY, False),
        ("f", '"""Has three words."""', "    return 1\n", False),  # two lines
        ("f", '"""Has three words."""', "    return 1\n\n\n", False),  # blank ones do not count
        ("f", '"""Has three words."""', "    # why\n    return 1\n", True),
        ("test_f", '"""Has three words."""', BODY, False),
        ("latest", '"""Has three words."""', BODY, False),  # CodeSearchNet's rule: "test" anywhere
        ("__init__", '"""Has three words."""', BODY, False),
        ("__f", '"""Has three words."""', BODY, True),
    ],
)
def test_filters(name, docstring, body, kept):
    assert len(harvest.harvest_source(f"def {name}(a):\n    {docstring}\n{body}", "p")) == kept


@pytest.mark.parametrize(
    ("docstring", "paragraph"),
    [
        ("One line.", "One line."),
        ("\n  First  line\n\tsecond line.\n   \t\n  Next paragraph.", "First line second line."),
        ("Ends\n\x20\nhere", "Ends"),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_first_paragraph(docstring, paragraph):
    assert harvest.first_paragraph(docstring) == paragraph


def test_half_a_surrogate_pair_in_a_query_becomes_a_question_mark():
    assert only(f'def f(a):\n    """Says it \\ud800."""\n{BODY}').query == "Says it ?."


def test_a_body_of_nothing_but_the_docstring_leaves_the_signature():
    # Abstract methods: searched by their signature. The document is then no whole function.
    code = only('@abc.abstractmethod\ndef f(\n    self,\n):\n    """Says it all."""\n').code
    assert code == "@abc.abstractmethod\ndef f(\n    self,\n):"


def function_source(name, words):
    return f'def {name}(a):\n    """{words}"""\n    x = "{name}"\n    return x\n'


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_python_files_are_sorted_and_leave_out_tests_vendored_and_hidden(tmp_path):
    kept = ["a.py", "z.py", "b/c.py", "b/d/e.py", "b-c/a.py"]
    left_out = [
        "test_a.py", ".hidden.py", "a.pyi", "a.txt", "tests/a.py", "b/test/a.py", "_vendor/a.py", ".git/a.py",
        "venv/a.py", "b/node_modules/a.py", "__pycache__/a.py", "x/site-packages/a.py",
    ]  # fmt: skip
    for name in reversed(kept + left_out):
        write(tmp_path / name, "")
    (tmp_path / "broken.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    files = list(harvest.python_files(tmp_path))
    # A folder's own files come before those of its folders.
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "a.py", "z.py", "b/c.py", "b/d/e.py", "b-c/a.py",
    ]  # fmt: skip


def test_harvest_drops_duplicates_and_counts_what_it_cannot_read(tmp_path):
    same_code = function_source("one", "Other words, the same code.")
    sources = {
        "a.py": function_source("one", "Says it all."),
        "b.py": function_source("two", "Says it all.") + function_source("three", "Three kept words."),
        "c.py": same_code,
        "broken.py": "def f(:\n",
        "null.py": b"x = 1\0\n",
        "encoding.py": b"# -*- coding: no-such-encoding -*-\n",
        "not_utf8.py": b"x = '\xe9'\n",
        "deep.py": "-" * 100_000 + "1\n",
        "long.py": "x" + ".a" * 100_000 + "\n",
    }
    files = {name: write(tmp_path / name, source) for name, source in sources.items()}
    files["gone.py"] = tmp_path / "gone.py"
    functions, counts = harvest.harvest(files)
    assert [(f.path, f.line, f.qualified_name) for f in functions] == [
        ("a.py", 1, "one"),
        ("b.py", 5, "three"),
    ]
    assert counts == {"files": 3, "unreadable_files": 7, "found": 4, "duplicates": 2}
    assert harvest.harvest(files) == (functions, counts)
    # The earlier file wins.
    assert harvest.harvest({"c.py": files["c.py"], "a.py": files["a.py"]})[0][0].path == "c.py"


def test_harvest_reads_files_in_their_own_encoding(tmp_path):
    source = "# -*- coding: latin-1 -*-\n" + function_source("f", "Wörter über alles.").replace("x", "é")
    files = {
        "latin.py": write(tmp_path / "latin.py", source.encode("latin-1")),
        "bom.py": write(tmp_path / "bom.py", "\ufeff" + function_source("g", "Says it all.")),
    }
    latin, bom = harvest.harvest(files)[0]
    assert latin.query == "Wörter über alles."
    assert latin.code == 'def f(a):\n    é = "f"\n    return é'
    assert bom.code == 'def g(a):\n    x = "g"\n    return x'


def docstrings(code):
    """Returns the docstrings of all that is defined in `code`; raises SyntaxError if it does not parse."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]
    return [docstring for docstring in found if docstring is not None]


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
DOCSTRINGS = st.builds(lambda words: repr(f"Says it {words}"), WORDS) | st.builds(
    lambda words: '"""Says it all.\n\n  ' + words.replace("\\", "").replace('"', "") + '\n"""', WORDS
)
DECORATORS = st.sampled_from([[], ["@one"], ["@two(\n  3)"]])
HEADERS = st.sampled_from(["def f(a='é'):", "async def f(a, b='→'):", "def f(\n  a,\n  b):"])
SEPARATORS = st.sampled_from(["; ", " ;\t", " \\\n  ;"])
STATEMENTS = st.sampled_from(
    ["x = 1", "", "# comment", "if a: x = {\n 1: 2}", "\x0c", "y = '\u2028'", "x = '😀'; y = 2  # why"]
)


@st.composite
def function_lines(draw, depth=0):
    """Draws a documented function, perhaps with others and classes in it, as lines yet to be indented."""
    header, docstring = draw(HEADERS), draw(DOCSTRINGS)
    if draw(st.booleans()):
        return [*draw(DECORATORS), f"{header} {docstring}{draw(SEPARATORS)}x = '→'"]
    body = [docstring + draw(st.sampled_from(["", "  # noqa"]) | SEPARATORS.map(lambda s: f"{s}z = '→'"))]
    for _ in range(draw(st.integers(1, 3))):
        inner = [draw(STATEMENTS)]
        if depth < 2 and draw(st.booleans()):
            inner = draw(function_lines(depth=depth + 1))
            if draw(st.booleans()):
                inner = ["class C:", *(f"    {line}" for line in [draw(DOCSTRINGS), *inner])]
        body += inner
    indent = draw(st.sampled_from(["    ", "  ", "\t"]))
    return [*draw(DECORATORS), header, *(indent + line for line in [*body, "return a"])]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(function_lines())
def test_documents_parse_and_hold_no_docstring(lines):
    for function in harvest.harvest_source("\n".join(lines), "module.py"):
        assert docstrings(function.code) == []
        assert "Says" not in function.code


def test_a_sample_of_the_standard_library():
    stdlib = Path(sysconfig.get_path("stdlib"))
    names = ["argparse.py", "ast.py", "dataclasses.py", "datetime.py", "inspect.py", "json", "typing.py"]
    files = {}
    for name in names:
        path = stdlib / name
        for file in [path] if path.is_file() else harvest.python_files(path):
            files[file.relative_to(stdlib).as_posix()] = file
    found, counts = harvest.harvest(files)
    assert counts["unreadable_files"] == 0
    assert len(found) > 150
    for function in found:
        assert docstrings(function.code) == []
        assert function.query not in " ".join(function.code.split())
        line = files[function.path].read_text(encoding="utf-8").splitlines()[function.line - 1]
        assert function.qualified_name.rpartition(".")[2] in line
    by_name = {function.qualified_name: function for function in found}
    dumps = by_name["dumps"]
    assert dumps.path == "json/__init__.py"
    assert dumps.query == " ".join(json.dumps.__doc__.split("\n\n")[0].split())
    assert dumps.line == json.dumps.__code__.co_firstlineno
