"""The borders of the library: who imports whom, which files a mechanism has, how large they may grow."""

from __future__ import annotations

import ast
import fnmatch
import sys
from pathlib import Path

import pytest

from bio_lightning.callbacks import REGISTRY, Mechanism

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bio_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
TOP_LEVEL = {
    "CHANGELOG.md", "LICENSE", "README.md", "bio_lightning", "configs", "examples", "pyproject.toml", "tests",
}  # fmt: skip
MAX_BODY, MAX_FILE = 40, 350
#: What a user may do without, and the modules that may ask for it.
OPTIONAL = {
    "bio_lightning.monitoring.figures": ("matplotlib",),
    "bio_lightning.monitoring.loggers": ("matplotlib", "wandb"),
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions; ``from package import module`` counts as the module."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
    return found


def inside(folder: str) -> list[str]:
    return [name for name in MODULES if name.startswith(f"bio_lightning.{folder}")]


def foreign(name: str, allowed: tuple[str, ...]) -> set[str]:
    """Imports of a module that are neither of the standard library nor at or below one of the allowed names."""
    return {
        imported
        for imported in imports(MODULES[name])
        if imported.partition(".")[0] not in sys.stdlib_module_names
        and not any(imported == root or imported.startswith(f"{root}.") for root in allowed)
    }


def code_lines(path: Path, node: ast.AST) -> int:
    """Lines of code, without docstrings, comments and blank lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    counted = set(range(node.lineno, node.end_lineno + 1)) if hasattr(node, "lineno") else set(range(1, len(lines) + 1))
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            text = body[0].value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                counted -= set(range(text.lineno, text.end_lineno + 1))
    return sum(1 for number in counted if (line := lines[number - 1].strip()) and not line.startswith("#"))


# ---- imports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", inside("functional"))
def test_functional_needs_torch_alone(name):
    assert foreign(name, ("torch", "bio_lightning.functional")) == set()


@pytest.mark.parametrize("name", inside("metrics"))
def test_metrics_know_nothing_of_callbacks(name):
    assert foreign(name, ("torch", "torchmetrics", "bio_lightning.functional", "bio_lightning.metrics")) == set()


@pytest.mark.parametrize("name", [name for name in inside("callbacks.") if not name.endswith(".base")])
def test_callback_imports_no_sibling(name):
    siblings = {imported for imported in imports(MODULES[name]) if imported.startswith("bio_lightning.callbacks")}
    assert siblings <= {"bio_lightning.callbacks.base", "bio_lightning.callbacks.mechanism"}


@pytest.mark.parametrize("name", MODULES)
def test_only_config_knows_yaml_and_only_package_and_command_line_know_config(name):
    found = imports(MODULES[name])
    if name != "bio_lightning.config":
        assert not any(imported.partition(".")[0] in ("omegaconf", "yaml") for imported in found)
    if name != "bio_lightning" and not name.startswith("bio_lightning.cli"):
        assert "bio_lightning.config" not in found
        assert not any(imported.startswith("bio_lightning.cli") for imported in found)


@pytest.mark.parametrize("name", MODULES)
def test_imports_what_is_installed_with_it(name):
    declared = ("bio_lightning", "lightning", "omegaconf", "torch", "torchmetrics", "typing_extensions", "yaml")
    # protobuf is imported as google
    of_command_line = ("google", "jsonargparse", "tensorboard") if name.startswith("bio_lightning.cli") else ()
    assert foreign(name, declared + of_command_line + OPTIONAL.get(name, ())) == set()


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_dependencies_are_imported_where_they_are_needed(name):
    """Within functions, or for type checkers alone."""
    at_once = {
        alias.name.partition(".")[0]
        for node in tree(MODULES[name]).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in ([ast.alias(node.module)] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert at_once.isdisjoint(OPTIONAL[name])


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", REGISTRY)
def test_stem_is_complete(stem):
    wanted = [
        PACKAGE / "callbacks" / f"{stem}.py",
        PACKAGE / "cards" / f"{stem}.md",
        ROOT / "tests" / "callbacks" / f"test_{stem}.py",
    ]
    if issubclass(REGISTRY[stem], Mechanism):
        wanted += [PACKAGE / "functional" / f"{stem}.py", ROOT / "tests" / "functional" / f"test_{stem}.py"]
    assert [str(path.relative_to(ROOT)) for path in wanted if not path.is_file()] == []


def test_registry_names_match_files():
    files = {path.stem for path in (PACKAGE / "callbacks").glob("*.py")} - {"__init__", "base", "mechanism"}
    assert files == set(REGISTRY)
    assert all(callback.__module__ == f"bio_lightning.callbacks.{stem}" for stem, callback in REGISTRY.items())


def test_top_level_holds_nothing_else():
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    kept = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert kept == TOP_LEVEL


# ---- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_says_what_is_public(path):
    assigned = {
        target.id
        for node in tree(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_rebinding_of_data_and_no_item(path):
    for node in ast.walk(tree(path)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            assert not (isinstance(target, ast.Attribute) and target.attr == "data"), f"line {node.lineno}: .data ="
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "item", f"line {node.lineno}: .item() waits for the device"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_and_files_stay_small(path):
    module = tree(path)
    assert code_lines(path, module) <= MAX_FILE
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            statements = node.body[1:] if ast.get_docstring(node) else node.body
            body = sum(code_lines(path, statement) for statement in statements)
            assert body <= MAX_BODY, f"{node.name}: {body} lines"
