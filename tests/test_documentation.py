"""README and cards say what the code does: snippets run, tables match, links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import bio_lightning
from bio_lightning import BioMonitor, bio_callbacks, functional, load_config, metrics
from bio_lightning.callbacks import REGISTRY, Mechanism
from bio_lightning.config import presets
from bio_lightning.parameters import default_of, describe, parameters
from tests.cases import CASES
from tests.line_links import LINK, corrected

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CARDS = {stem: ROOT / "bio_lightning" / "cards" / f"{stem}.md" for stem in REGISTRY}
DOCUMENTS = [README, *CARDS.values()]
SECTIONS = [
    "The biology",
    "The formula",
    "How to use it",
    "Parameters",
    "Neutral setting",
    "Which layers",
    "However it is run",
    "What it costs",
    "When it hurts",
    "Papers",
]


def blocks(document: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def all_blocks(language: str) -> list:
    return [
        pytest.param(document, block, id=f"{document.stem}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(blocks(document, language))
    ]


def sections(document: Path) -> dict[str, str]:
    """Text under each heading of the second and third level."""
    pieces = re.split(r"^#{2,3} (.*)\n", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def table(text: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the first table in a text."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[0], rows[2:]


def primitive(value):
    """A default as YAML spells it."""
    return [primitive(item) for item in value] if isinstance(value, tuple) else value


# ---- snippets --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:The '.*' does not have many workers",
    "ignore:.*isinstance\\(treespec, LeafSpec\\).*is deprecated",
    "ignore:Checkpoint directory",
    "ignore::bio_lightning.SynapseWarning",  # networks that learn nothing
)
@pytest.mark.parametrize(("document", "code"), all_blocks("python"))
def test_python_snippet_runs_on_its_own(document, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        exec(compile(code, str(document), "exec"), {"__name__": "snippet"})  # noqa: S102 - our own documents


@pytest.mark.parametrize(("document", "code"), all_blocks("python"))
def test_python_snippet_calls_what_it_defines(document, code):
    tree = ast.parse(code)
    definitions = (ast.FunctionDef, ast.ClassDef)
    defined = {node.name for node in tree.body if isinstance(node, definitions)}
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    assert defined | imported <= used


@pytest.mark.parametrize(("document", "text"), all_blocks("yaml"))
def test_yaml_snippet_loads(document, text):
    config = OmegaConf.create(text)
    if "trainer" in config:  # LightningCLI's
        for entry in config.trainer.callbacks:
            pkgutil.resolve_name(entry.class_path)(**entry.get("init_args", {}))
    elif "bio" in config:  # BioCLI's
        assert bio_callbacks(config.bio.pop("preset"), config.bio)
    elif "_target_" in config:  # Hydra's
        pkgutil.resolve_name(config.pop("_target_"))(**config)
    else:
        assert load_config(config)
        assert bio_callbacks(config)


@pytest.mark.parametrize("stem", CARDS)
def test_card_shows_all_three_ways(stem):
    function, callback = blocks(CARDS[stem], "python")
    imported = re.search(r"from (bio_lightning\.\w+) import", function)
    assert imported is not None
    assert imported[1] in ("bio_lightning.functional", "bio_lightning.metrics")
    assert "lightning as L" not in function
    assert f"{REGISTRY[stem].__name__}(" in callback
    (text,) = blocks(CARDS[stem], "yaml")
    assert OmegaConf.create(text)[stem].enabled


# ---- cards -----------------------------------------------------------------------------------------------------------


def test_one_card_for_each_callback():
    assert sorted(CARDS.values()) == sorted((ROOT / "bio_lightning" / "cards").glob("*.md"))


@pytest.mark.parametrize("stem", CARDS)
def test_card_has_all_sections_in_order(stem):
    assert list(sections(CARDS[stem])) == SECTIONS
    assert all(text.strip() for text in sections(CARDS[stem]).values())


@pytest.mark.parametrize("stem", CARDS)
def test_card_lists_the_parameters(stem):
    callback = REGISTRY[stem]
    header, rows = table(sections(CARDS[stem])["Parameters"])
    assert header == ["name", "default", "range or choices", "meaning"]
    shown = {name.strip("`"): (yaml.safe_load(default.strip("`")), allowed) for name, default, allowed, _ in rows}
    assert all(meaning for *_, meaning in rows)
    declared = {field.name: (primitive(default_of(field)), describe(field)) for field in parameters(callback)}
    assert shown == declared


@pytest.mark.parametrize("stem", [stem for stem in CARDS if issubclass(REGISTRY[stem], Mechanism)])
def test_card_names_the_neutral_setting(stem):
    text = sections(CARDS[stem])["Neutral setting"]
    stated = {key: yaml.safe_load(value) for key, value in re.findall(r"`(\w+): ([^`]+)`", text)}
    assert CASES[stem].neutral.items() <= stated.items()
    REGISTRY[stem](**stated)


def test_monitor_card_lists_the_statistics():
    documented = re.findall(r"^ *``([\w*]+)``  ", BioMonitor.__doc__, re.MULTILINE)
    _, rows = table(sections(CARDS["bio_monitor"])["The formula"])
    assert [name for row in rows for name in re.findall(r"`([\w*]+)`", row[0])] == documented


# ---- README ----------------------------------------------------------------------------------------------------------


def test_readme_lists_every_callback():
    _, rows = table(sections(README)["Mechanisms"])
    cards = {name.strip("`"): card for name, _, card in rows}
    assert cards == {callback.__name__: f"[card](bio_lightning/cards/{stem}.md)" for stem, callback in REGISTRY.items()}


def test_readme_lists_every_preset():
    _, rows = table(sections(README)["YAML"])
    assert {name for name, _ in rows} == {f"[{name}](configs/{name}.yaml)" for name in presets()}


def test_readme_lists_the_layers_of_every_mechanism():
    (_, *kinds), rows = table(sections(README)["Which layers"])
    shown = {name.strip("`"): {kind for kind, cell in zip(kinds, cells, strict=True) if cell == "yes"}
             for name, *cells in rows}  # fmt: skip
    mechanisms = [callback for callback in REGISTRY.values() if issubclass(callback, Mechanism)]
    assert shown == {mechanism.__name__: set(mechanism.kinds) for mechanism in mechanisms}


def test_readme_commands_name_files_that_exist():
    commands = " ".join(blocks(README, "sh"))
    named = re.findall(r"(?<![\w./])(?:tests|examples)/[\w./]+", commands)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda document: document.stem)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8"))
    relative = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [target for target in relative if not (document.parent / target).exists()] == []


def test_links_to_lines_lead_to_what_they_name():
    text = README.read_text(encoding="utf-8")
    assert len(LINK.findall(text)) == len(re.findall(r"#L\d", text)) >= 20
    wrong = [pair for pair in zip(text.splitlines(), corrected(text).splitlines(), strict=True) if pair[0] != pair[1]]
    assert wrong == [], "python -m tests.line_links puts the line numbers right"


def test_readme_lists_every_example():
    _, rows = table(sections(README)["Examples"])
    listed = {re.search(r"\((.*)\)", example)[1] for example, *_ in rows}
    scripts = {path for path in (ROOT / "examples").rglob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    scripts.remove(ROOT / "examples" / "benchmarks" / "isolated.py")  # which overhead.py runs
    assert listed == {str(path.relative_to(ROOT)) for path in scripts}


# ---- docstrings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [bio_lightning, functional, metrics], ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module):
    for name in module.__all__:
        doc = inspect.cleandoc(getattr(module, name).__doc__ or "")
        assert doc, name
        assert not doc.startswith(f"{name}("), f"{name}: a docstring made by dataclasses says nothing"
