"""Runs in TensorBoard's event files."""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from lightning.pytorch.core.saving import load_hparams_from_yaml
from tensorboard.backend.event_processing import event_accumulator, event_file_loader
from tensorboard.backend.event_processing.directory_watcher import DirectoryWatcher
from tensorboard.backend.event_processing.io_wrapper import IsSummaryEventsFile
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from bio_lightning.errors import BioConfigError

__all__ = ["Run", "find_runs"]

_PATTERN = "events.out.tfevents.*"
#: A record is its length and a checksum of that, the event, and a checksum of the event.
_HEAD, _FOOT = struct.Struct("<QI"), struct.Struct("<I")
#: Points kept of a series, evenly chosen; more cannot be told apart in a panel.
_POINTS = 1000


class Run(NamedTuple):
    """What one folder of event files holds.

    Args:
        name: The folder, as far as it tells the runs apart.
        scalars: Steps and values by tag.
        images: The last image of every tag, encoded as in the file.
        hyperparameters: What the run was started with.
        seconds: From the first to the last scalar.
    """

    name: str
    scalars: dict[str, list[tuple[int, float]]]
    images: dict[str, bytes]
    hyperparameters: dict[str, object]
    seconds: float


def find_runs(folders: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """All runs in the folders and below, by path.

    Raises:
        BioConfigError: A folder does not exist, or holds no event files.
    """
    found: dict[Path, None] = {}
    for given in folders:
        folder = Path(given)
        if not os.fspath(given) or not folder.is_dir():
            raise BioConfigError("logdir", os.fspath(given), "a folder that exists")
        below = sorted({path.parent.resolve() for path in folder.rglob(_PATTERN) if path.is_file()})
        if not below:
            raise BioConfigError("logdir", str(folder), f"a folder with TensorBoard's event files, {_PATTERN}")
        found.update(dict.fromkeys(below))
    return [_read(path, name) for path, name in zip(found, _names(list(found)), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths without what is common to all."""
    if len(paths) == 1:
        return [paths[0].name if not paths[0].name.startswith("version_") else "/".join(paths[0].parts[-2:])]
    common = Path(os.path.commonpath(paths))
    return [str(path.relative_to(common)) if path != common else path.name for path in paths]


def _read(path: Path, name: str) -> Run:
    events = _events(path)
    tags = events.Tags()
    series = {tag: events.Scalars(tag) for tag in sorted(tags["scalars"])}
    times = [event.wall_time for points in series.values() for event in points]
    return Run(
        name,
        {tag: [(event.step, event.value) for event in points] for tag, points in series.items()},
        {tag: events.Images(tag)[-1].encoded_image_string for tag in sorted(tags["images"])},
        {**_hyperparameters(events), **_beside(path)},
        max(times) - min(times) if times else math.nan,
    )


def _events(path: Path) -> Any:
    """What TensorBoard reads in a folder, with a warning of what it cannot read."""
    sizes = {event_accumulator.SCALARS: _POINTS, event_accumulator.IMAGES: 1, event_accumulator.TENSORS: _POINTS}
    events: Any = event_accumulator.EventAccumulator(str(path), size_guidance=sizes)
    files: dict[str, _EventFile] = {}

    def opened(file: str) -> _EventFile:
        return files.setdefault(file, _EventFile(file))

    events._generator = DirectoryWatcher(str(path), opened, IsSummaryEventsFile)
    events.Reload()
    try:
        events.FirstEventTimestamp()  # also a run that logged nothing has one
    except ValueError:
        warnings.warn(f"{path}: no event can be read there, the files are empty or damaged", UserWarning, stacklevel=3)
        return events
    for name, file in files.items():
        if file.is_damaged():
            text = f"{name}: damaged at byte {file.end:,}; what was logged behind that is not shown"
            warnings.warn(text, UserWarning, stacklevel=3)
    return events


class _EventFile(event_file_loader.RawEventFileLoader):  # type: ignore[misc] # has no types
    """Reads an event file as TensorBoard does, which stops at a record that it cannot read and does not say so."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path, self.end = path, 0
        self._holds_no_event = False

    def Load(self) -> Iterator[Any]:  # noqa: N802 - TensorBoard's name
        """Events, as far as they can be read; ``end`` is the byte behind them."""
        if self._holds_no_event:  # asked again, TensorBoard's loader would go on behind that record
            return
        for record in super().Load():
            try:
                event = Event.FromString(record)
            except DecodeError:  # its checksum is right all the same
                self._holds_no_event = True
                return
            self.end += _HEAD.size + len(record) + _FOOT.size
            yield event

    def is_damaged(self) -> bool:
        """Whether the next record is wrong, and not just unfinished, as a killed run leaves its last one."""
        if self._holds_no_event:
            return True
        with open(self.path, "rb") as file:
            file.seek(self.end)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return False
            length, checksum = _HEAD.unpack(head)
            if masked_crc32c(head[:8]) != checksum:
                return True
            event, foot = file.read(length), file.read(_FOOT.size)
        return len(foot) == _FOOT.size and masked_crc32c(event) != _FOOT.unpack(foot)[0]


def _beside(path: Path) -> dict[str, object]:
    """Hyperparameters from Lightning's own file; into the event file they go only together with a metric."""
    file = path / "hparams.yaml"
    try:
        return _flat(load_hparams_from_yaml(file, use_omegaconf=False)) if file.is_file() else {}
    except Exception:  # objects of classes that are not at hand
        return {}


def _flat(values: Mapping[str, Any]) -> dict[str, object]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": item for inner, item in _flat(value).items()}
        else:
            found[str(key)] = value
    return found


def _hyperparameters(events: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for content in _hparams_content(events).values():
        data = HParamsPluginData.FromString(content)
        if data.HasField("session_start_info"):
            for key, value in data.session_start_info.hparams.items():
                kind = value.WhichOneof("kind")
                found[key] = getattr(value, kind) if kind else None
    return found


def _hparams_content(events: Any) -> dict[str, bytes]:
    try:
        return dict(events.PluginTagToContent("hparams"))
    except KeyError:  # no such plugin in these files
        return {}
