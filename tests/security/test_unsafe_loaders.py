"""No door for code from files stands anywhere in the tree: the package, its tools, its recipes and its tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(path for folder in ("seq2seq", "tools", "recipes", "tests") for path in (ROOT / folder).rglob("*.py"))
MAKES_PAYLOADS = {f"tests/security/{name}.py" for name in ("test_model_directory", "test_checkpoint")}
"""Tests that write what the product must refuse to read."""

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code", "pty"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "importlib.import_module"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("np.fromfile", "OmegaConf.register_new_resolver", "OmegaConf.load"),
}
METHODS = {"instantiate", "get_class", "get_method", "get_object"}
"""By the last name alone: `hydra.utils.instantiate` under any other name."""
NAMES = {"UnsafeLoader", "FullLoader", "Loader", "Unpickler"}
KEYWORDS = {"allow_pickle": "False", "shell": "False", "trust_remote_code": "False", "weights_only": "True"}
"""What may be passed, and with which value alone."""


def doors(tree: ast.AST) -> Iterator[str]:
    """The places in a file where data could become code, as `line what`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = module or [alias.name for alias in node.names]
            yield from (f"{node.lineno} import {name}" for name in names if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Attribute | ast.alias):
            name = node.attr if isinstance(node, ast.Attribute) else node.name
            if name in NAMES | METHODS:
                yield f"{node.lineno} {name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS or called in METHODS:
                yield f"{node.lineno} {called}()"
            for keyword in node.keywords:
                if keyword.arg in KEYWORDS and ast.unparse(keyword.value) != KEYWORDS[keyword.arg]:
                    yield f"{node.lineno} {ast.unparse(keyword)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_opens_one(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in MAKES_PAYLOADS:
        pytest.skip("writes payloads")
    assert not list(doors(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from pickle import loads", "import torch, dill as d", "from joblib import load"),
        *("eval(x)", "exec(x)", "__import__(x)", "os.system(x)", "importlib.import_module(x)"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "f(x, weights_only=False)", "torch.hub.load(x)"),
        *("yaml.load(x)", "yaml.load(x, yaml.SafeLoader)", "yaml.unsafe_load(x)", "f(x, Loader=yaml.FullLoader)"),
        *("hydra.utils.instantiate(x)", "from hydra.utils import instantiate", "u.instantiate(x)", "instantiate(x)"),
        *("np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=y)", "subprocess.run(x, shell=True)"),
        *("load_dataset(x, trust_remote_code=True)", "OmegaConf.register_new_resolver('x', f)", "f(io.Unpickler)"),
    ],
)
def test_each_door_would_be_seen(code: str) -> None:
    assert list(doors(ast.parse(code)))


def test_what_is_safe_is_let_through() -> None:
    safe = (
        "np.load(x, allow_pickle=False)\nyaml.safe_load(x)\nre.compile(x)\nmodel.eval()\njson.load(x)\nf(shell=False)"
    )
    assert not list(doors(ast.parse(safe)))
