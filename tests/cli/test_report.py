"""The page that compares runs: complete, correct, and readable without a server."""

from __future__ import annotations

import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from bio_lightning import bio_callbacks
from bio_lightning.cli import main
from bio_lightning.cli.charts import chart
from bio_lightning.cli.event_files import find_runs
from tests.models import fit, make_model

#: Elements without an end.
VOID = {"meta", "img", "line", "polyline", "circle", "br"}


def write_run(folder: Path, scalars: dict[str, list[float]], images: tuple[str, ...] = (), hparams=None) -> None:
    """An event file."""
    with SummaryWriter(str(folder)) as writer:
        for tag, values in scalars.items():
            for step, value in enumerate(values):
                writer.add_scalar(tag, value, 10 * step)
        for tag in images:
            writer.add_image(tag, np.zeros((3, 4, 5), dtype=np.uint8), 0)
        if hparams is not None:
            from torch.utils.tensorboard.summary import hparams as summarise

            for summary in summarise(hparams, {}):
                writer.file_writer.add_summary(summary)


class Page(HTMLParser):
    """What a page holds; fails where elements do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.text, self.rows, self.captions, self.attributes = [], "", [], [], []
        self.lines = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.lines += tag in ("polyline", "circle")
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.attributes += attrs
        self.lines += tag in ("polyline", "circle")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] == ["figcaption"]:
            self.captions.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1].append(data)

    @property
    def cells(self) -> dict[str, list[str]]:
        return {row[0]: row[1:] for row in self.rows if row}


def report(tmp_path, *folders) -> Page:
    out = tmp_path / "report.html"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two real runs: plain, and with synapses."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("none", "default"):
        logger = TensorBoardLogger(folder, name, version="", default_hp_metric=False)
        logger.log_hyperparams({"preset": name, "lr": 0.1, "net": {"width": len(name)}})
        model = make_model("MLP")
        model.training_step = lambda batch, index, step=model.training_step, model=model: _logged(
            model, step(batch, index)
        )
        fit(model, bio_callbacks(name), steps=6, logger=logger, log_every_n_steps=1)
    return folder


def _logged(model, loss):
    model.log("loss", loss)
    return loss


def test_compares_real_runs(trained, tmp_path, capsys):
    page = report(tmp_path, trained)
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    events = EventAccumulator(str(trained / "default"))
    events.Reload()
    tags = events.Tags()["scalars"]
    overall = [tag for tag in tags if tag.startswith("bio/") and tag.endswith("/overall")]
    assert len(overall) > 10
    assert page.rows[0] == ["default", "none"]
    assert page.cells["loss"] == [f"{events.Scalars('loss')[-1].value:.4g}",
                                  f"{find_runs([trained])[1].scalars['loss'][-1][1]:.4g}"]  # fmt: skip
    assert page.cells["replaced_fraction"][1] == "-"
    shown = [caption for caption in page.captions if caption != "loss"]
    assert sorted(shown) == sorted(tag.split("/")[2] for tag in overall)
    assert "net.0.weight" not in page.text


def test_shows_the_settings_that_differ(trained, tmp_path):
    cells = report(tmp_path, trained).cells
    assert cells["preset"] == ["default", "none"]
    assert cells["net.width"] == ["7", "4"]
    assert "lr" not in cells


def test_settings_come_from_the_event_files_too(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        write_run(tmp_path / name, {"loss": [1.0]}, hparams={"lr": lr, "width": 4})
    (tmp_path / "a" / "hparams.yaml").write_text("model: !!python/object:nowhere.Model {}", encoding="utf-8")
    cells = report(tmp_path, tmp_path).cells
    assert cells["lr"] == ["0.1", "0.2"]
    assert "width" not in cells


def test_needs_nothing_from_elsewhere(tmp_path):
    write_run(tmp_path / "run", {"loss": [1.0, 0.5]}, images=("bio/overview", "bio/weights", "samples"))
    page = report(tmp_path, tmp_path / "run")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert re.findall(r"(?:https?:)?//\w", text) == []
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1, "the overview, but no other image"
    assert sources[0].startswith("data:image/png;base64,")


def test_what_runs_log_cannot_break_the_page(tmp_path):
    write_run(tmp_path / "a<b>&", {"loss <i>&\"'": [1.0, math.nan, 2.0, 3.0], "void": [math.nan], "same": [2.0, 2.0]})
    page = report(tmp_path, tmp_path)
    assert page.rows[0] == ["a<b>&"]
    assert page.cells["loss <i>&\"'"] == ["3"]
    assert page.cells["void"] == ["nan"]
    assert "no finite value" in page.text


def test_many_runs_are_told_apart(tmp_path):
    for number in range(10):
        write_run(tmp_path / f"run_{number}", {"loss": [float(number), 0.0]})
    report(tmp_path, tmp_path)
    lines = re.findall(r"<li>.*?(<polyline.*?/>)", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(set(lines)) == len(lines) == 10


def test_same_folder_twice_is_one_run(tmp_path):
    write_run(tmp_path / "runs" / "a", {"loss": [1.0]})
    assert [run.name for run in find_runs([tmp_path, tmp_path / "runs", tmp_path / "runs" / "a"])] == ["a"]


def test_names_are_as_short_as_they_can_be(tmp_path):
    for name in ("plain/version_0", "bio/version_0"):
        write_run(tmp_path / "logs" / name, {"loss": [1.0]})
    assert [run.name for run in find_runs([tmp_path])] == ["bio/version_0", "plain/version_0"]
    assert [run.name for run in find_runs([tmp_path / "logs" / "bio"])] == ["bio/version_0"]


def test_folders_without_runs_are_refused(tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    for words, part in (
        (["report", nowhere], f"logdir: got {nowhere!r}; allowed: a folder that exists"),
        (["report", str(tmp_path)], "a folder with TensorBoard's event files, events.out.tfevents.*"),
        (["report", ""], "logdir: got ''; allowed: a folder that exists"),
        (["report"], "logdir: got None; allowed: at least one folder"),
    ):
        assert main(words) == 2
        assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"hello world", bytes(range(256)) * 4])
def test_files_without_an_event_are_warned_of(tmp_path, content):
    for name in ("whole", "broken", "folders/events.out.tfevents.folder"):
        (tmp_path / name).mkdir(parents=True)
    with SummaryWriter(tmp_path / "whole") as writer:
        writer.add_scalar("loss", 1.0, 1)
    (tmp_path / "broken" / "events.out.tfevents.1.here").write_bytes(content)
    with pytest.warns(UserWarning, match="broken: no event can be read there"):
        runs = find_runs([tmp_path])
    assert [run.name for run in runs] == ["broken", "whole"]
    assert runs[1].scalars == {"loss": [(1, 1.0)]}


def records(file):
    """Where each record of an event file begins, and where the last one ends."""
    content, starts = file.read_bytes(), [0]
    while starts[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, starts[-1])
        starts.append(starts[-1] + 8 + 4 + length + 4)
    return starts


def event_file(folder):
    """Of a run of twenty steps."""
    write_run(folder, {"loss": [float(step) for step in range(20)]})
    (file,) = folder.glob("events.*")
    return file


@pytest.mark.parametrize("at", [0, 3, 9, 12, 20, -1, -4], ids=lambda at: f"byte {at} of a record")
def test_damage_in_the_middle_is_warned_of(tmp_path, at):
    file = event_file(tmp_path)
    content, starts = bytearray(file.read_bytes()), records(file)
    assert len(starts) == 22, "the first record is the version"
    content[starts[11] + at if at >= 0 else starts[12] + at] ^= 4
    file.write_bytes(content)
    expected = re.escape(f"{file}: damaged at byte {starts[11]:,}; what was logged behind that is not shown")
    with pytest.warns(UserWarning, match=f"^{expected}$") as caught:
        (run,) = find_runs([tmp_path])
    assert len(caught) == 1
    assert run.scalars == {"loss": [(10 * step, float(step)) for step in range(10)]}


@pytest.mark.parametrize("files", [1, 2])
def test_a_record_that_holds_no_event_is_damage(tmp_path, files):
    file = event_file(tmp_path)
    content, starts = file.read_bytes(), records(file)
    length = (1).to_bytes(8, "little")
    record = b"".join(part + int(masked_crc32c(part)).to_bytes(4, "little") for part in (length, b"\xff"))
    file.write_bytes(content[: starts[11]] + record + content[starts[12] :])
    if files == 2:  # before it goes on to the next file, TensorBoard asks for more of this one
        (tmp_path / "events.out.tfevents.9999999999.later").write_bytes(content[: starts[1]])
    expected = re.escape(f"{file}: damaged at byte {starts[11]:,}; what was logged behind that is not shown")
    with pytest.warns(UserWarning, match=f"^{expected}$") as caught:
        (run,) = find_runs([tmp_path])
    assert len(caught) == 1
    assert run.scalars == {"loss": [(10 * step, float(step)) for step in range(10)]}


def test_the_next_file_of_a_folder_is_read_all_the_same(tmp_path, capsys):
    first, second = tmp_path / "events.out.tfevents.1.here", tmp_path / "events.out.tfevents.2.here"
    file = event_file(tmp_path / "made")
    content = file.read_bytes()
    second.write_bytes(content)
    first.write_bytes(content[: records(file)[5]] + bytes(100))
    file.unlink()
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert capsys.readouterr().err == (
        f"warning: {first}: damaged at byte {records(second)[5]:,}; what was logged behind that is not shown\n"
    )
    assert Page(out.read_text(encoding="utf-8")).cells["last step"] == ["190"]


def test_a_last_record_that_a_killed_run_did_not_finish_is_no_damage(tmp_path):
    file = event_file(tmp_path)
    content, starts = file.read_bytes(), records(file)
    for end in (starts[-2] + 1, starts[-2] + 11, starts[-2] + 12, starts[-2] + 20, starts[-1] - 5, starts[-1] - 1):
        file.write_bytes(content[:end])
        assert find_runs([tmp_path])[0].scalars["loss"][-1] == (180, 18.0)


def test_line_runs_from_corner_to_corner_and_has_gaps():
    drawn = chart("x", {0: [(0.0, 1.0), (10.0, 3.0)]})
    (points,) = re.findall(r'points="(.*?)"', drawn)
    assert points == "52.0,178.0 330.0,8.0"
    drawn = chart("x", {0: [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 1.0)]})
    assert (drawn.count("<polyline"), drawn.count("<circle")) == (1, 1)
    assert re.findall(r">([\d.]+)</text>", chart("x", {0: [(0.0, 0.0), (100.0, 1.0)]})) == [
        "0", "0.2", "0.4", "0.6", "0.8", "1", "0", "25", "50", "75", "100",
    ]  # fmt: skip
