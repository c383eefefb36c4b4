"""The plan of the house: rooms import only from left to right, and nothing untyped stands in them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from seq2seq.config.schema import KINDS

PACKAGE = Path(__file__).parent.parent / "seq2seq"
ORDER = ["cli", "train", "translate", "search", "model", "evaluate", "data", "ops", "config", "support"]
FILES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
MODULES = {"seq2seq." + name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in FILES}


def imports(tree: ast.AST) -> Iterator[str]:
    """All modules that a file imports, also inside functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            assert node.module is not None
            yield node.module
            # `from seq2seq.config import compose` imports a module too.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """All calls, with what is called as written."""
    return ((ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def found(function_name: str, tree: ast.AST) -> Iterator[ast.Call]:
    """The calls of a function or method of this name."""
    return (node for called, node in calls(tree) if called.rpartition(".")[2] == function_name)


def test_the_rooms_are_the_ones_of_the_plan() -> None:
    assert {name.partition("/")[0] for name in FILES if "/" in name} <= set(ORDER)
    assert len(FILES) > 30


def test_only_rooms_to_the_left_import() -> None:
    wrong = [
        f"{name} imports {module}"
        for name, tree in FILES.items()
        for module in imports(tree)
        if "/" in name and module.startswith("seq2seq.")
        for room in [module.split(".")[1]]
        if room in ORDER and ORDER.index(room) < ORDER.index(name.partition("/")[0])
    ]
    assert not wrong


def test_modules_do_not_import_one_another_in_circles() -> None:
    graph = {name: {MODULES[module] for module in imports(tree) if module in MODULES} for name, tree in FILES.items()}
    del graph["__init__.py"]
    assert graph["cli/rank.py"] >= {"data/prepare.py", "train/trainer.py"}
    TopologicalSorter({name: needed - {"__init__.py"} for name, needed in graph.items()}).prepare()


def test_kinds_are_told_apart_by_the_registry_alone() -> None:
    kinds = {kind.__name__ for kind in KINDS.values()} | {
        node.name
        for name, tree in FILES.items()
        if name.startswith("model/")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    assert "TransformerEncoder" in kinds
    for name, tree in FILES.items():
        for test in ("isinstance", "issubclass"):
            for node in found(test, tree):
                words = {word.id for word in ast.walk(node.args[1]) if isinstance(word, ast.Name)}
                assert not words & kinds, f"{name}:{node.lineno}"
        assert not {ast.unparse(node.cls) for node in ast.walk(tree) if isinstance(node, ast.MatchClass)} & kinds, name


def test_text_is_split_on_newlines_only() -> None:
    for name, tree in FILES.items():
        for method in ("splitlines", "readlines"):
            assert not list(found(method, tree)), name
        for node in found("load_dataset", tree):
            assert "'text'" not in map(ast.unparse, node.args), f"{name}:{node.lineno}"
        for node in found("open", tree):
            written = ast.unparse(node)
            if "'w'" in written or "'a'" in written:
                assert "newline='\\n'" in written, f"{name}:{node.lineno}: Windows would write other line ends"


def test_model_and_search_pass_no_keywords_through() -> None:
    for name, tree in FILES.items():
        if name.startswith(("model/", "search/")):
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef) and function.args.kwarg:
                    passed = [
                        ast.unparse(keyword.value)
                        for _, node in calls(function)
                        for keyword in node.keywords
                        if keyword.arg is None
                    ]
                    assert function.args.kwarg.arg not in passed, f"{name}: {function.name}"
