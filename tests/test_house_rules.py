"""Rules that every file of the product keeps (RELIABILITY §8): calls that are banned, sizes, docstrings, no foreign paths."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("anomaly", "registry", "alerts", "pipelines")
CODE = sorted(p for folder in (*PACKAGES, "benchmarks", "docs") for p in (ROOT / folder).rglob("*.py"))
EVERYTHING = sorted(
    path
    for path in [
        *(p for p in ROOT.iterdir() if p.suffix in (".md", ".toml", ".lock") or p.name in ("Makefile", "LICENSE")),
        *(p for folder in (*PACKAGES, "benchmarks", "docs", "tests", "notebooks", ".ci", ".github")
          for p in (ROOT / folder).rglob("*")),
    ]
    if path.is_file() and path.suffix not in (".pyc", ".nbc", ".nbi", ".png", ".woff2") and path.name != "uv.lock"
)  # fmt: skip

MOST_LINES, MOST_FUNCTION_LINES, LONGEST_WITHOUT_DOCSTRING = 450, 60, 6


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# -- banned calls ----------------------------------------------------------------------------------------------------

BANNED_MODULES = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
BANNED_CALLS = {
    "os.rename": "files appear through anomaly.files.atomic_path",
    "os.renames": "files appear through anomaly.files.atomic_path",
    "os.system": "subprocess with a list of arguments",
    "datetime.datetime.utcnow": "datetime.now(UTC)",
    "datetime.datetime.utcfromtimestamp": "datetime.fromtimestamp(…, UTC)",
    "datetime.datetime.today": "datetime.now(UTC)",
}
BANNED_ATTRIBUTES = {
    "extractall": "members are checked and read one by one",
    "enable_unsafe_deserialization": "models are data",
    "read_pickle": "models are data",
    "to_pickle": "models are data",
}
#: Keywords that may only ever be given one constant.
ONLY = {"allow_pickle": False, "shell": False, "safe_mode": True}
READERS = ("anomaly/data/readers.py", "anomaly/data/reading/sources.py", "anomaly/data/reading/verdicts.py")


class _Bans(ast.NodeVisitor):
    """Collects what is banned in one file; names are followed through imports and their aliases."""

    def __init__(self, path: str) -> None:
        self.path, self.found = path, list[str]()
        self._names: dict[str, str] = {}

    def _ban(self, node: ast.AST, what: str) -> None:
        self.found.append(f"{self.path}:{getattr(node, 'lineno', 0)} {what}")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            self._names[alias.asname or root] = alias.name if alias.asname else root
            if root in BANNED_MODULES:
                self._ban(node, f"import {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        for alias in node.names:
            self._names[alias.asname or alias.name] = f"{module}.{alias.name}"
            if module.startswith("mlflow") and alias.name == "load_model":
                self._ban(node, "mlflow load_model")
        if module.partition(".")[0] in BANNED_MODULES:
            self._ban(node, f"from {module} import …")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in BANNED_ATTRIBUTES:
            self._ban(node, f"{node.attr}: {BANNED_ATTRIBUTES[node.attr]}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._resolved(node.func)
        keywords = {k.arg: k.value for k in node.keywords if k.arg}
        if name in BANNED_CALLS:
            self._ban(node, f"{name}: {BANNED_CALLS[name]}")
        for keyword, allowed in ONLY.items():
            value = keywords.get(keyword)
            if value is not None and not (isinstance(value, ast.Constant) and value.value is allowed):
                self._ban(node, f"{keyword}={ast.unparse(value)}")
        self._check_times(node, name, keywords)
        self._check_loaders(node, name, keywords)
        self.generic_visit(node)

    def _check_times(self, node: ast.Call, name: str, keywords: dict[str, ast.expr]) -> None:
        needed = {"datetime.datetime.now": 1, "datetime.datetime.fromtimestamp": 2}.get(name)
        if needed is not None and len(node.args) < needed and "tz" not in keywords:
            self._ban(node, f"naive {name}()")

    def _check_loaders(self, node: ast.Call, name: str, keywords: dict[str, ast.expr]) -> None:
        last = name.rpartition(".")[2]
        if last == "load_model" and name.startswith("mlflow"):
            self._ban(node, "mlflow load_model")
        if name == "h5py.File" and not re.fullmatch(r"anomaly/data/store\w*\.py", self.path):
            mode = keywords.get("mode", node.args[1] if len(node.args) > 1 else ast.Constant("r"))
            if not (isinstance(mode, ast.Constant) and mode.value == "r"):
                self._ban(node, f"h5py.File mode {ast.unparse(mode)} outside the window store")
        if last == "read_csv" and self.path not in READERS:
            self._ban(node, "read_csv outside the reader")
        if last == "Environment" and "autoescape" not in keywords:
            self._ban(node, "a template environment without autoescape")

    def _resolved(self, func: ast.expr) -> str:
        text = ast.unparse(func)
        root, dot, rest = text.partition(".")
        return self._names.get(root, root) + dot + rest


def banned(source: str, path: str) -> list[str]:
    """What of the ban list stands in ``source``, as ``path:line what``."""
    bans = _Bans(path)
    bans.visit(ast.parse(source))
    return bans.found


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_nothing_banned_is_called(path: Path) -> None:
    assert banned(path.read_text(encoding="utf-8"), _name(path)) == []


BAD = [
    "import pickle",
    "import cloudpickle as cp",
    "import joblib\njoblib.load('m')",
    "from joblib import load",
    "import numpy as np\nnp.load('a.npz', allow_pickle=True)",
    "import numpy as np\nnp.load('a.npz', allow_pickle=unsure)",
    "import keras\nkeras.models.load_model('m', safe_mode=False)",
    "import keras\nkeras.config.enable_unsafe_deserialization()",
    "import mlflow\nmlflow.pyfunc.load_model('models:/a')",
    "from mlflow.pyfunc import load_model",
    "import mlflow.sklearn as ms\nms.load_model('models:/a')",
    "import h5py\nh5py.File('a.h5', 'w')",
    "import h5py\nh5py.File('a.h5', mode='a')",
    "from h5py import File\nFile('a.h5', 'r+')",
    "import pandas as pd\npd.read_csv('a.csv')",
    "import zipfile\nzipfile.ZipFile('a').extractall('b')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import os\nos.system('ls')",
    "import os\nos.rename('a', 'b')",
    "from os import rename\nrename('a', 'b')",
    "from datetime import datetime\ndatetime.now()",
    "import datetime as dt\ndt.datetime.now()",
    "from datetime import datetime\ndatetime.utcnow()",
    "from datetime import datetime\ndatetime.fromtimestamp(0)",
    "import pandas as pd\npd.read_pickle('a')",
    "from jinja2 import Environment\nEnvironment(loader=None)",
    "import jinja2\njinja2.Environment()",
]


@pytest.mark.parametrize("source", BAD)
def test_a_seeded_bad_line_is_found(source: str) -> None:
    assert banned(source, "pipelines/seeded.py") != []


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("import h5py\nh5py.File('a.h5', 'x')", "anomaly/data/store_files.py"),
        ("import h5py\nh5py.File('a.h5')", "pipelines/seeded.py"),
        ("import pandas as pd\npd.read_csv('a.csv')", "anomaly/data/readers.py"),
        ("import numpy as np\nnp.load('a.npz', allow_pickle=False)", "registry/seeded.py"),
        ("from datetime import UTC, datetime\ndatetime.now(UTC)\ndatetime.fromtimestamp(0, tz=UTC)", "a.py"),
        ("from jinja2 import Environment\nEnvironment(autoescape=True)", "a.py"),
        ("from pathlib import Path\nPath('a').rename('b')\nload_model('a')", "a.py"),
    ],
)
def test_good_lines_pass(source: str, path: str) -> None:
    assert banned(source, path) == []


# -- sizes and docstrings --------------------------------------------------------------------------------------------


def _definitions(node: ast.AST, public: bool = True) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, bool]]:
    """Functions and classes, and whether each is public; what stands inside a function is not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            own = public and not child.name.startswith("_")
            yield child, own
            yield from _definitions(child, own and isinstance(child, ast.ClassDef))


def _lines(node: ast.FunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def oversized(source: str) -> list[str]:
    """Functions of more than sixty lines."""
    found = [node for node, _ in _definitions(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [f"{node.name}: {_lines(node)} lines" for node in found if _lines(node) > MOST_FUNCTION_LINES]


def undocumented(source: str) -> list[str]:
    """Public functions and classes of more than six lines that say nothing about themselves."""
    found = [node for node, public in _definitions(ast.parse(source)) if public]
    return [n.name for n in found if _lines(n) > LONGEST_WITHOUT_DOCSTRING and not ast.get_docstring(n)]


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    assert oversized(source) == []


@pytest.mark.parametrize("path", CODE, ids=_name)
def test_what_is_public_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert undocumented(source) == []
    assert ast.get_docstring(ast.parse(source)), "a module says what it is for"


def test_the_size_and_docstring_rules_can_fail() -> None:
    body = "".join(f"    x{i} = {i}\n" for i in range(70))
    assert oversized(f"def long():\n{body}") == ["long: 71 lines"]
    assert undocumented(f"class Bare:\n    def method(self):\n{body.replace('    ', '        ')}") == ["Bare", "method"]
    assert undocumented(f"def _own():\n{body}") == []


# -- foreign paths and hosts -----------------------------------------------------------------------------------------

# The brackets keep these patterns from finding themselves.
MACHINE_PATH = re.compile(
    r"(?<![\w.}/-])/(?:h[o]me|r[o]ot|w[o]rk|U[s]ers|m[n]t|o[p]t|s[r]v|t[m]p)/\w|\b[A-Z]:\\U[s]ers"
)
REGISTRY = re.compile(
    r"p[y]pi\.|pythonh[o]sted|anaconda\.[o]rg|jfr[o]g|artifact[o]ry/|regist[r]y\.npmjs|--(?:extra-)?ind[e]x-url|--find-l[i]nks|--trusted-h[o]st"
)


@pytest.mark.parametrize("path", EVERYTHING, ids=_name)
def test_no_machine_path_and_no_package_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    found = [f"{i}: {line.strip()[:80]}" for i, line in enumerate(text.splitlines(), 1)
             if MACHINE_PATH.search(line) or REGISTRY.search(line)]  # fmt: skip
    assert found == []


def test_the_patterns_find_what_they_should() -> None:
    for text in ("/" + "home/ann/x", "see /" + "work/main", "C:" + "\\Users\\ann"):
        assert MACHINE_PATH.search(text), text
    for text in ("https://" + "py" + "pi.org/simple", "--index" + "-url x"):
        assert REGISTRY.search(text), text
    assert not MACHINE_PATH.search("home() / 'work' / name, ./work/x, a/work/x, folder/home/x")
