"""One line in YAML, one flag in LightningCLI, one override in Hydra: each switches one callback and nothing else."""

import functools
import importlib.util
import re
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from omegaconf import DictConfig, OmegaConf

from bio_lightning import Crystallization, bio_callbacks, load_config
from bio_lightning.callbacks import REGISTRY, BioCallback
from bio_lightning.cli.lightning_cli import BioCLI
from bio_lightning.parameters import parameters
from data import ImageData
from models import Classifier

# what Lightning still calls of jsonargparse
pytestmark = pytest.mark.filterwarnings(
    "ignore:\\s*By default only one JsonargparseDeprecationWarning", "ignore:(?s).* deprecated in v4"
)
EXAMPLES = Path(__file__).parents[2] / "examples"
SECTIONS = pytest.mark.parametrize("section", REGISTRY)
SWITCHES = pytest.mark.parametrize("turned_on", [True, False], ids=["on", "off"])


def listed(callbacks) -> list[tuple]:
    """Callbacks in their order, with all arguments of ours."""
    return [
        (type(callback).__name__, repr(callback) if isinstance(callback, BioCallback) else None)
        for callback in callbacks
    ]


def assert_switched(before, after, section, turned_on) -> None:
    """Both lists of callbacks are equal, but for the one of a section, which has come or gone."""
    name = REGISTRY[section].__name__
    more, fewer = (after, before) if turned_on else (before, after)
    assert [callback_name for callback_name, _ in listed(more)].count(name) == 1
    assert [entry for entry in listed(more) if entry[0] != name] == listed(fewer)


def yes_or_no(value) -> str:
    return "true" if value else "false"


# ---- YAML -----------------------------------------------------------------------------------------------------------


@SECTIONS
@SWITCHES
def test_one_line_of_yaml(tmp_path, section, turned_on):
    """All sections are on but for the one that is switched."""
    configs = []
    for switch in (not turned_on, turned_on):
        lines = [f"{name}: {{enabled: {yes_or_no(name != section or switch)}}}" for name in REGISTRY]
        file = tmp_path / f"{switch}.yaml"
        file.write_text("seed: 3\n" + "\n".join(lines), encoding="utf-8")
        configs.append(load_config(file))
    before, after = configs
    assert_switched(bio_callbacks(before), bio_callbacks(after), section, turned_on)
    before[section].enabled = turned_on
    assert before == after


@SECTIONS
@SWITCHES
def test_one_line_more_or_less_of_yaml(tmp_path, section, turned_on):
    """All sections are off but for the one that is switched, and the file says nothing of them."""
    lines = ["seed: 3", f"{section}: {{enabled: true}}"]
    files = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for file, count in zip(files, (1, 2) if turned_on else (2, 1), strict=True):
        file.write_text("\n".join(lines[:count]), encoding="utf-8")
    assert_switched(*(bio_callbacks(file) for file in files), section, turned_on)


# ---- LightningCLI ---------------------------------------------------------------------------------------------------

OTHERS = [{"class_path": "LearningRateMonitor"}, {"class_path": "EarlyStopping", "init_args": {"monitor": "loss/test"}}]


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts the app of the example, up to its Trainer."""
    app = yaml.safe_load((EXAMPLES / "lightning_cli" / "callbacks.yaml").read_text(encoding="utf-8"))

    def start(callbacks, *flags, bio=None, cli=BioCLI):
        config = {**app, "trainer": {"max_epochs": 7, "callbacks": OTHERS + callbacks}}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config if bio is None else {**config, "bio": bio}), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["main.py", f"--config={file}", *flags])
        return cli(Classifier, ImageData, run=False)

    return start


@SECTIONS
@SWITCHES
def test_one_flag(start, section, turned_on):
    bio = {"seed": 3, **{name: {"enabled": name != section or not turned_on} for name in REGISTRY}}
    before, after = start([], bio=bio), start([], f"--bio.{section}.enabled={yes_or_no(turned_on)}", bio=bio)
    assert_switched(before.trainer.callbacks, after.trainer.callbacks, section, turned_on)
    assert {"LearningRateMonitor", "EarlyStopping"} <= {name for name, _ in listed(after.trainer.callbacks)}
    assert [app.config.bio[section].pop("enabled") for app in (before, after)] == [not turned_on, turned_on]
    assert before.config.as_dict() == after.config.as_dict()


@pytest.mark.parametrize(
    ("preset", "section", "turned_on"),
    [(*case, switch) for switch, preset in ((True, "none"), (False, "all")) for case in [
        (preset, section) for section in REGISTRY if section != "bio_monitor"
    ]],
)  # fmt: skip
def test_one_flag_on_top_of_a_preset(start, preset, section, turned_on):
    flags = [f"--bio.preset={preset}", f"--bio.{section}.enabled={yes_or_no(turned_on)}"]
    before, after = start([], flags[0]), start([], *flags)
    assert_switched(before.trainer.callbacks, after.trainer.callbacks, section, turned_on)


def entry(section) -> dict[str, str]:
    return {"class_path": f"bio_lightning.{REGISTRY[section].__name__}"}


@SECTIONS
@SWITCHES
@pytest.mark.parametrize("cli", [LightningCLI, BioCLI])
def test_one_line_with_a_class_path(start, section, turned_on, cli):
    lists = [[entry(name) for name in REGISTRY if name != section or switch] for switch in (not turned_on, turned_on)]
    before, after = (start(callbacks, cli=cli) for callbacks in lists)
    assert_switched(before.trainer.callbacks, after.trainer.callbacks, section, turned_on)
    for app in (before, after):
        del app.config.trainer.callbacks
    assert before.config.as_dict() == after.config.as_dict()


@pytest.mark.parametrize("cli", [LightningCLI, BioCLI])
@pytest.mark.parametrize("include", ["network.hidden1", "net*", ["network.hidden1", "*2"]], ids=str)
def test_patterns_with_a_class_path_may_be_a_bare_string(start, include, cli):
    patterns = (include,) if isinstance(include, str) else tuple(include)
    settings = {"include": include, "forward_order": include}
    in_file = start([{**entry("crystallization"), "init_args": settings}], cli=cli)
    flags = [f"--trainer.callbacks+={entry('crystallization')['class_path']}"]
    flags += [f"--trainer.callbacks.{key}={value}" for key, value in settings.items()]
    for app in (in_file, start([], *flags, cli=cli)):
        (found,) = (callback for callback in app.trainer.callbacks if isinstance(callback, Crystallization))
        assert (found.include, found.exclude, found.forward_order) == (patterns, (), patterns)


@SECTIONS
@pytest.mark.parametrize("cli", [LightningCLI, BioCLI])
def test_one_flag_with_a_class_path(start, section, cli):
    flag = f"--trainer.callbacks+={entry(section)['class_path']}"
    before, after = start([], cli=cli), start([], flag, cli=cli)
    assert_switched(before.trainer.callbacks, after.trainer.callbacks, section, turned_on=True)


def last_line(capsys):
    """Of an error: all that it says, behind a tip."""
    tip, line = capsys.readouterr().err.splitlines()
    assert tip.startswith("tip: ")
    return line


def test_an_error_of_lightning_is_as_brief(start, capsys):
    with pytest.raises(SystemExit) as caught:
        start([], "--trainer.max_stepps=3")
    assert caught.value.code == 2
    assert last_line(capsys) == "error: unrecognized arguments: --trainer.max_stepps=3"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bio.preset=defualt"], "bio.preset: got 'defualt'; allowed: .* Did you mean 'default'?"),
        (["--bio.crystallization.enabled=maybe"], "bio.crystallization.enabled: got 'maybe'; allowed: true or false"),
        (["--bio.crystallization.floor=0.1"], "bio.crystallization.enabled: got None; allowed: true or false; the"),
        (
            ["--bio.crystallization.enabled=true", "--bio.crystallization.floor=2"],
            r"bio.crystallization.floor: got 2.0; allowed: a number in \(0, 1\]",
        ),
        (
            ["--bio.cristallization.enabled=true"],
            r"bio.cristallization: got {'enabled': 'true'}; allowed: preset, .*\. Did you mean 'crystallization'?",
        ),
        (
            ["--bio.crystallization.flor", "0.1"],
            r"bio.crystallization.flor: got '0.1'; allowed: enabled, .*\. Did you mean 'floor'?",
        ),
        (["--bio.prest=paper"], r"bio.prest: got 'paper'; allowed: preset, seed, .*\. Did you mean 'preset'?"),
        (["--bio.floor=0.1"], r"bio.floor: got '0.1'; .*\. Did you mean 'crystallization.floor'?"),
        (
            ["--bio.crystallization=null"],
            r"bio.crystallization: got 'null'; allowed: .* --bio.crystallization.enabled=",
        ),
        (["--bio=paper"], r"bio: got 'paper'; allowed: a YAML file; a preset is chosen by --bio.preset=paper"),
        (["--bio", "paper"], r"bio: got 'paper'; allowed: a YAML file; a preset is chosen by --bio.preset=paper"),
    ],
)
def test_error_of_the_command_line(start, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        start([], *flags)
    assert caught.value.code == 2
    assert re.search(f"^error: {message}", last_line(capsys))


@pytest.mark.parametrize(
    ("bio", "message"),
    [
        (
            {"cristallization": {"enabled": True}},
            r"bio.cristallization: got {'enabled': True}; allowed: preset, seed, .*",
        ),
        ({"crystallization": {"flor": 0.1}}, r"bio.crystallization.flor: got 0.1; .*\. Did you mean 'floor'\?"),
        ({"crystallization": None}, r"bio.crystallization: got None; allowed: a mapping, as in "),
        ([1], r"bio: got \[1\]; allowed: a mapping of sections, as in "),
    ],
)
@pytest.mark.parametrize("command", [[], ["fit"]], ids=["no-subcommand", "fit"])
def test_error_in_a_file(monkeypatch, capsys, tmp_path, bio, message, command):
    app = yaml.safe_load((EXAMPLES / "lightning_cli" / "bio.yaml").read_text(encoding="utf-8"))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**app, "bio": bio}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["main.py", *command, f"--config={file}"])
    with pytest.raises(SystemExit) as caught:
        BioCLI(Classifier, ImageData, run=bool(command))
    assert caught.value.code == 2
    assert re.search(f"^error: {message}", last_line(capsys))


def test_error_of_a_callback_with_a_class_path(start, capsys):
    with pytest.raises(SystemExit) as caught:
        start([{**entry("crystallization"), "init_args": {"floor": 3}}])
    assert caught.value.code == 2
    assert last_line(capsys) == "error: floor: got 3.0; allowed: a number in (0, 1]"


def test_an_error_of_another_class_stays_what_it_is(start, monkeypatch):
    def fail(self, *arguments, **keywords):
        raise ValueError("of the model")

    monkeypatch.setattr(Classifier, "__init__", functools.wraps(Classifier.__init__)(fail))
    with pytest.raises(ValueError, match="of the model"):
        start([])


def test_one_callback_in_two_places_is_an_error(start, capsys):
    twice = entry("crystallization")
    with pytest.raises(SystemExit) as caught:
        start([twice], "--bio.crystallization.enabled=true")
    assert caught.value.code == 2
    assert "bio: Crystallization is on here and in trainer.callbacks" in capsys.readouterr().err
    elsewhere = ("--bio.crystallization.enabled=true", "--bio.crystallization.include=network.output")
    both = start([twice], *elsewhere).trainer.callbacks
    assert [type(callback).__name__ for callback in both].count("Crystallization") == 2


def test_error_in_a_file_under_bio(start, capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("crystallization: {flor: 0.1}", encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        start([], f"--bio={file}")
    assert caught.value.code == 2
    assert last_line(capsys).startswith("error: bio.crystallization.flor: got 0.1; allowed: enabled, ")


def test_whole_file_under_bio(start, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("crystallization: {enabled: true, include: conv*, end_step: null}", encoding="utf-8")
    app = start([], f"--bio={file}", "--bio.crystallization.floor=0.1", "--bio.seed=4")
    expected = bio_callbacks({"seed": 4, "crystallization": {"enabled": True, "include": "conv*", "floor": 0.1}})
    assert [found for found in listed(app.trainer.callbacks) if found[1]] == listed(expected)


def test_help_describes_every_key(start, capsys):
    with pytest.raises(SystemExit):
        start([], "--help")
    text = capsys.readouterr().out
    for section, callback in REGISTRY.items():
        for key in ("enabled", *(field.name for field in parameters(callback))):
            assert f"--bio.{section}.{key} " in text


# ---- Hydra ----------------------------------------------------------------------------------------------------------


ENTRIES = yaml.safe_load((EXAMPLES / "hydra" / "configs" / "callbacks" / "default.yaml").read_text(encoding="utf-8"))


@functools.cache
def hydra_app():
    spec = importlib.util.spec_from_file_location("hydra_app", EXAMPLES / "hydra" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def composed(tmp_path):
    """Composes the configuration of the example, and builds its Trainer."""
    app = hydra_app()

    def compose(*overrides):
        config = hydra.compose("train", [f"trainer.default_root_dir={tmp_path}", *overrides])
        return config, app.build(config)

    with hydra.initialize_config_dir(str(EXAMPLES / "hydra" / "configs"), version_base="1.3"):
        yield compose


@SECTIONS
@SWITCHES
def test_one_override(composed, section, turned_on):
    others = [f"bio.{name}.enabled=true" for name in REGISTRY if name != section]
    base = ["~callbacks", "bio.seed=3", *others, f"bio.{section}.enabled={yes_or_no(not turned_on)}"]
    switch = f"bio.{section}.enabled={yes_or_no(turned_on)}"
    (before, trainer), (after, switched) = composed(*base), composed(*base, switch)
    assert_switched(trainer.callbacks, switched.callbacks, section, turned_on)
    assert (before.bio[section].enabled, after.bio[section].enabled) == (not turned_on, turned_on)
    before.bio[section].enabled = turned_on
    assert before == after


def test_a_preset_is_one_override(composed):
    _, trainer = composed("~callbacks", "bio=paper")
    assert [found for found in listed(trainer.callbacks) if found[1]] == listed(bio_callbacks("paper"))


@SECTIONS
@SWITCHES
def test_one_override_of_targets(composed, section, turned_on):
    targets = {name: f"++callbacks.{name}._target_=bio_lightning.{REGISTRY[name].__name__}" for name in REGISTRY}
    add, remove = targets.pop(section), f"~callbacks.{section}"
    base = ["bio.bio_monitor.enabled=false", *targets.values()]
    if turned_on:
        base, switch = [*base, *([remove] if section in ENTRIES else [])], add
    else:
        base, switch = [*base, add], remove
    (before, trainer), (after, switched) = composed(*base), composed(*base, switch)
    assert_switched(trainer.callbacks, switched.callbacks, section, turned_on)
    configs = [OmegaConf.to_container(config) for config in (before, after)]
    assert section in configs[turned_on]["callbacks"]
    del configs[turned_on]["callbacks"][section]
    assert configs[0] == configs[1]


# ---- lightning-hydra-template ---------------------------------------------------------------------------------------


def instantiate_callbacks(callbacks_cfg):
    """The template's own, in src/utils/instantiators.py, less its types and the log."""
    callbacks = []
    if not callbacks_cfg:
        return callbacks
    if not isinstance(callbacks_cfg, DictConfig):
        raise TypeError("Callbacks config must be a DictConfig!")
    for _, cb_conf in callbacks_cfg.items():  # noqa: PERF102 - not ours
        if isinstance(cb_conf, DictConfig) and "_target_" in cb_conf:
            callbacks.append(hydra.utils.instantiate(cb_conf))
    return callbacks


@pytest.fixture
def cfg(tmp_path):
    """A configuration as the template composes it, with all our callbacks among others."""
    config = yaml.safe_load((EXAMPLES / "hydra" / "configs" / "train.yaml").read_text(encoding="utf-8"))
    ours = {section: {"_target_": f"bio_lightning.{callback.__name__}"} for section, callback in REGISTRY.items()}
    ours["weight_rejuvenation"] |= {"select": "activity", "readers": {"network.hidden1": ["network.hidden2"]}}
    others = {"model_checkpoint": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "save_last": True}}
    loggers = {"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path)}}
    trainer = {**config["trainer"], "default_root_dir": str(tmp_path), "max_steps": 2, "log_every_n_steps": 1}
    return OmegaConf.create({**config, "trainer": trainer, "callbacks": {**others, **ours}, "logger": loggers})


def test_code_of_the_template_trains_the_callbacks_that_it_built(cfg):
    callbacks = instantiate_callbacks(cfg.callbacks)
    logger = [hydra.utils.instantiate(entry) for entry in cfg.logger.values()]
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks, logger=logger)
    ours = [callback for callback in callbacks if isinstance(callback, BioCallback)]
    assert [type(callback) for callback in ours] == list(REGISTRY.values())
    held = [callback for callback in trainer.callbacks if isinstance(callback, BioCallback)]
    assert len(held) == len(ours)
    assert all(first is second for first, second in zip(held, ours, strict=True))
    trainer.fit(hydra.utils.instantiate(cfg.model), datamodule=hydra.utils.instantiate(cfg.data))
    assert [callback.state_dict()["steps"] for callback in ours if callback.is_mechanism] == [[2]] * (len(ours) - 1)
