"""What a user sees: TensorBoard, started on a finished run and asked over HTTP, and the table of tags in the README."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bio_lightning import BioMonitor, SynapticScaling, WeightSplitting, load_config
from bio_lightning.callbacks import REGISTRY
from bio_lightning.monitoring import dashboard
from tests.cases import all_on
from tests.models import MLP, fit, make_model
from tests.test_documentation import README, sections, table

LAYERS = ("net.0.weight", "net.2.weight", "net.4.weight")
KINDS = {"number": "scalars", "histogram": "histograms", "image": "images", "text": "tensors"}


class WithHyperparameters(MLP):
    """Has some of its own, as most modules do."""

    def __init__(self, optimizer="sgd"):
        super().__init__(optimizer)
        self.save_hyperparameters()


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A finished run with all mechanisms, and one that is a control."""
    folder = tmp_path_factory.mktemp("logs")
    for name, mechanisms in (("bio", all_on()), ("control", [])):
        run(folder, name, mechanisms)
    return folder


def run(folder, name, mechanisms):
    logger = TensorBoardLogger(folder, name=name, version=0)
    monitor = BioMonitor(alerts=False, histogram_every_n_steps=2, rank_every_n_steps=3, figure_every_n_epochs=1)
    fit(make_model(WithHyperparameters), [*mechanisms, monitor], logger=logger, log_every_n_steps=1)
    logger.experiment.close()


@pytest.fixture(scope="module")
def ask(logdir):
    """Asks a TensorBoard that runs in a process of its own, as JSON."""
    call = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", "--load_fast", "false"]
    server = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = ""
        while "http://" not in said:
            line = server.stdout.readline()
            assert line, f"TensorBoard ended: {said}"
            said += line
        url = re.search(r"http://[^\s)]+/", said)[0]

        def answer(path, body=None, **query):
            data = None if body is None else json.dumps(body).encode()
            address = f"{url}data/{path}?{urllib.parse.urlencode(query)}"
            request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310 - ours
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return json.load(response)

        yield answer
    finally:
        server.terminate()
        server.communicate()


@pytest.fixture(scope="module")
def events(logdir):
    return read(logdir / "bio" / "version_0")


def read(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def patterns():
    """Tags of the README's table by kind, as patterns."""
    header, rows = table(sections(README)["In TensorBoard"])
    assert header[:2] == ["tag", "kind"]
    return [
        (KINDS[kind], tag.replace("<layer>", "*").replace("<mechanism>", "*"))
        for cell, kind, _ in rows
        for tag in re.findall(r"`([^`]+)`", cell)
    ]


@pytest.fixture(scope="module")
def tags_by_kind(events, tmp_path_factory):
    """Of the run with all mechanisms, and of one with the other rule of synaptic scaling."""
    other = tmp_path_factory.mktemp("other")
    run(other, "bio", [SynapticScaling(rule="tetzlaff")])
    runs = [events.Tags(), read(other / "bio" / "version_0").Tags()]
    return {kind: [t.removesuffix("/text_summary") for tags in runs for t in tags[kind]] for kind in KINDS.values()}


# ---- the README's table ----------------------------------------------------------------------------------------------


def test_every_tag_of_the_table_is_in_the_event_file(tags_by_kind):
    missing = [(kind, pattern) for kind, pattern in patterns() if not fnmatch.filter(tags_by_kind[kind], pattern)]
    assert missing == []


def test_every_tag_of_the_event_file_is_in_the_table(tags_by_kind):
    known = patterns()
    for kind, tags in tags_by_kind.items():
        ours = [tag for tag in tags if tag.startswith("bio/")]
        assert ours
        assert [t for t in ours if not any(k == kind and fnmatch.fnmatchcase(t, p) for k, p in known)] == []


def test_bins_lie_between_smallest_and_largest_value(events):
    for layer in LAYERS:
        shown = events.Histograms(f"bio/plasticity/multiplier/{layer}")[-1].histogram_value
        assert (shown.bucket_limit[0], shown.bucket_limit[-1]) == (shown.min, shown.max)
        assert shown.bucket[0] == 0, "a bucket ends at its limit"
        assert shown.bucket[1] > 0
        assert shown.bucket[-1] > 0
        assert shown.num == sum(shown.bucket)


# ---- over HTTP -------------------------------------------------------------------------------------------------------


def test_scalars_have_their_points(ask):
    tags = ask("plugin/scalars/tags")
    assert set(tags) >= {"bio/version_0", "control/version_0"}
    groups = {tag.split("/")[1] for tag in tags["bio/version_0"] if tag.startswith("bio/")}
    assert groups == REGISTRY.keys() - {"bio_monitor"} | {"plasticity", "weights", "activity"}
    points = ask("plugin/scalars/scalars", run="bio/version_0", tag="bio/plasticity/multiplier_mean/overall")
    assert [step for _, step, _ in points] == [0, 1, 2, 3, 4, 5]
    assert all(0 < value < 10 for *_, value in points)
    control = {tag.split("/")[1] for tag in tags["control/version_0"] if tag.startswith("bio/")}
    assert control == {"weights", "activity"}


@pytest.mark.parametrize("what", ["plasticity/multiplier", "weights/weight", "activity/firing_rate",
                                  "weight_rejuvenation/age"])  # fmt: skip
def test_histograms_have_every_value(ask, what):
    tags = [f"bio/{what}/{layer}" for layer in LAYERS]
    assert set(tags) <= set(ask("plugin/histograms/tags")["bio/version_0"])
    sizes = (16, 12, 4) if "rate" in what else (2 * 96, 2 * 192, 2 * 48)  # synapses of a connection: two
    for tag, size in zip(tags, sizes, strict=True):
        series = ask("plugin/histograms/histograms", run="bio/version_0", tag=tag)
        assert [step for _, step, _ in series] == [1, 3, 5]
        assert all(sum(count for _, _, count in bins) == pytest.approx(size) for *_, bins in series)


def test_dashboard_shows_what_is_there(ask):
    layout = ask("plugin/custom_scalars/layout")
    titles = [category["title"] for category in layout["category"]]
    assert set(titles) == REGISTRY.keys() - {"bio_monitor"} | {"plasticity", "activity", "weights"}
    assert "mean multiplier" in [chart["title"] for chart in layout["category"][titles.index("plasticity")]["chart"]]
    for category in layout["category"]:
        for chart in category["chart"]:
            for pattern in chart["multiline"]["tag"]:
                lines = ask("plugin/custom_scalars/scalars", run="bio/version_0", tag=pattern)
                assert lines["regex_valid"]
                assert lines["tag_to_events"], f"{category['title']}, {chart['title']}: {pattern}"


def test_dashboard_shows_what_a_rule_does_that_moves_weights():
    charts = dashboard.layout([SynapticScaling(rule="tetzlaff")])["synaptic_scaling"]
    assert ["Multiline", [r"^bio/synaptic_scaling/update_ratio/.*$"]] in charts.values()
    assert not any("multiplier" in title for title in charts)
    assert "how far homeostasis moves the weights" not in dashboard.layout([SynapticScaling()])["synaptic_scaling"]


def test_dashboard_has_no_empty_chart_for_grouped_units():
    assert "weight_splitting" in dashboard.layout([WeightSplitting()])
    assert dashboard.layout([WeightSplitting(mode="grouped")]) == dashboard.layout([])


def test_hyperparameters_of_module_and_mechanisms_compare(ask):
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"optimizer", "crystallization.floor", "fuzzy_learning_rates.include", "apply_to"} <= names
    assert not any(name.startswith("bio_monitor") for name in names), "it changes no result"
    groups = ask("plugin/hparams/session_groups", {
        "experimentName": "", "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
        "colParams": [{"metric": info["name"]} for info in experiment["metricInfos"]], "startIndex": 0, "sliceSize": 9,
    })  # fmt: skip
    by_run = {group["sessions"][0]["name"].split("/")[0]: group for group in groups["sessionGroups"]}
    assert by_run["bio"]["hparams"]["crystallization.floor"] == 0.05
    assert "crystallization.floor" not in by_run["control"]["hparams"]
    shown = {value["name"]["tag"]: value["value"] for value in by_run["bio"]["metricValues"]}
    assert shown["bio/plasticity/multiplier_mean/overall"] > 0
    assert shown["bio/weights/rank_effective/overall"] > 1


def test_configuration_loads_again(ask, events):
    assert ask("plugin/text/tags")["bio/version_0"] == ["bio/configuration/text_summary"]
    (event,) = events.Tensors("bio/configuration/text_summary")
    text = event.tensor_proto.string_val[0].decode().removeprefix("```yaml\n").removesuffix("\n```")
    config = load_config(yaml.safe_load(text))
    for callback in all_on():
        for key, value in callback.arguments().items():
            loaded = config[callback.name][key]
            assert (list(loaded) if isinstance(value, list) else loaded) == value or value is None, key
        assert config[callback.name].enabled
    assert config.bio_monitor.histogram_every_n_steps == 2


def test_figures_are_images(ask, events):
    names = {"overview", "excitation_and_inhibition", "weight_against_multiplier", "turnover"}
    assert {tag.rsplit("/")[-1] for tag in ask("plugin/images/tags")["bio/version_0"]} == names
    (image,) = events.Images("bio/figures/overview")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (960, 640)
    assert image.step == 5
