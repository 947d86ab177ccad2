"""The example: its data loader, and short runs of its command line."""

import gzip
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data
import report
import runs
import train
from bio_lightning import bio_callbacks, load_config
from bio_lightning.callbacks import Mechanism

RNG = np.random.default_rng(0)
QUICK = ("--epochs", "1", "--batch-size", "128")


def idx_bytes(array: np.ndarray) -> bytes:
    codes = {np.dtype(text): code for code, text in data.IDX_TYPES.items()}
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    header = struct.pack(f">HBB{array.ndim}I", 0, codes[big_endian.dtype], array.ndim, *array.shape)
    return header + big_endian.tobytes()


def write_idx_folder(folder: Path, compress: bool, train: int = 200, test: int = 50) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for count, names in zip((train, test), data.IDX_FILES, strict=True):
        arrays[names[0]] = RNG.integers(0, 256, (count, 12, 8), dtype=np.uint8)
        arrays[names[1]] = np.arange(count, dtype=np.uint8) % 5
    for name, array in arrays.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        else:
            (folder / name).write_bytes(idx_bytes(array))
    return arrays


def cells(table: str, row: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


# ---- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", data.IDX_TYPES.values())
@pytest.mark.parametrize("compress", [False, True])
def test_idx_round_trip(tmp_path, dtype, compress):
    array = (100 * RNG.random((3, 4, 2))).astype(dtype)
    content = idx_bytes(array)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(content) if compress else content)
    read = data.read_idx(path)
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, array)


def test_idx_worked_example(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("00000801 00000003 050004"))
    assert data.read_idx(path).tolist() == [5, 0, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file"),
        (b"PK\3\4 something else", "is not an IDX file: it starts with 50 4b 03 04"),
        (bytes.fromhex("00000a01 00000001 05"), "is not an IDX file"),
        (bytes.fromhex("00000803 0000"), "is damaged"),
        (bytes.fromhex("00000801 00000003 0500"), "is damaged: 10 bytes where its header asks for 11"),
        (bytes.fromhex("00000801 00000001 0500"), "is damaged: 10 bytes where its header asks for 9"),
        # Without the time of day in its header: the same name in every process that runs the tests.
        (gzip.compress(bytes.fromhex("00000801 00000001 05"), mtime=0)[:-9], "is damaged"),
        (b"\x1f\x8bnot gzip", "is damaged"),
    ],
)
def test_corrupt_idx_files_are_refused(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"images {message}.*dataset-fashion-mnist"):
        data.read_idx(path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("subfolder", ["", "FashionMNIST/raw"])
def test_idx_folder(tmp_path, compress, subfolder):
    arrays = write_idx_folder(tmp_path / subfolder, compress)
    images = data.load("fashion-mnist", tmp_path)
    assert (images.shape, images.classes, len(images.train), len(images.test)) == ((1, 12, 8), 5, 200, 50)
    for part, names in zip((images.train, images.test), data.IDX_FILES, strict=True):
        pixels, labels = part.tensors
        assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
        np.testing.assert_allclose(pixels[:, 0].numpy(), arrays[names[0]] / 255, rtol=1e-6)
        np.testing.assert_array_equal(labels.numpy(), arrays[names[1]])


def test_missing_files_are_named_with_where_to_get_them(tmp_path):
    write_idx_folder(tmp_path, compress=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        data.load("fashion-mnist", tmp_path)
    message = str(caught.value)
    for part in (*sum(data.IDX_FILES, ()), str(tmp_path), "dataset-fashion-mnist", "zalandoresearch/fashion-mnist"):
        assert part in message


def test_images_and_labels_must_match(tmp_path):
    write_idx_folder(tmp_path, compress=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(49, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"of \(49,\); expected"):
        data.load("fashion-mnist", tmp_path)


def test_unknown_data_set():
    with pytest.raises(ValueError, match="unknown data set 'cifar'; known: digits"):
        data.load("cifar")


def test_digits_are_split_alike_every_time():
    first, second = data.load("digits"), data.load("digits")
    assert (first.shape, first.classes, len(first.train), len(first.test)) == ((1, 8, 8), 10, 1437, 360)
    assert torch.equal(first.test.tensors[0], second.test.tensors[0])
    assert first.train.tensors[0].aminmax() == (0.0, 1.0)
    assert first.test.tensors[1].bincount().min() >= 34


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """One short run with everything: two seeds, an override, the default preset."""
    folder = tmp_path_factory.mktemp("runs") / "default"
    override = "weight_rejuvenation.every_n_steps=3"
    status = train.main([*QUICK, override, "--seeds", "2", "--out", str(folder), "bio_monitor.exclude=[]"])
    assert status == 0
    return folder


def test_table(default_run):
    table = (default_run / "table.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(report.ROWS)
    for row in ("multiplier std", "turnover (share of synapses)", "crystallized share"):
        plain, bio = cells(table, row)
        assert plain == "-"
        assert re.fullmatch(r"\d\.\d{3} ± \d\.\d{3}", bio)
        assert float(bio.split()[0]) > 0
    assert cells(table, "Dale violations corrected") == ["-", "-"]
    assert float(cells(table, "time per step (ms)")[1].split()[0]) > 0


def test_config_is_kept(default_run):
    config = load_config(default_run / "config.yaml")
    assert config == load_config("default", [*train.PACE, "weight_rejuvenation.every_n_steps=3"])


def test_picture(default_run):
    picture = imread(default_run / "overview.png")
    assert picture.shape[:2] == (900, 1600)
    assert picture[..., :3].std() > 0.05


def test_picture_of_a_run_that_diverged(tmp_path):
    weights = {"weight": torch.tensor([[0.1, torch.nan]])}
    run = runs.Run([1, 2], [2.0, torch.nan], [0.1, 0.1], {"train loss": torch.nan}, weights, multipliers={})
    report.save_figure(tmp_path / "overview.png", [run], [run], "no multipliers")
    assert imread(tmp_path / "overview.png").shape[:2] == (900, 1600)
    assert cells(report.table([run], [run]), "train loss") == ["nan", "nan"]


@pytest.mark.parametrize("seed", [0, 1])
def test_tensorboard(default_run, seed):
    first_losses = {}
    for name in ("plain", "bio"):
        events = EventAccumulator(str(default_run / name / f"version_{seed}"))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"loss/train", "accuracy/train", "loss/test", "accuracy/test"} <= tags
        assert any(tag.startswith("bio/crystallization/") for tag in tags) == (name == "bio")
        assert len(events.Scalars("accuracy/test")) >= 10
        first_losses[name] = events.Scalars("loss/train")[0]
    assert first_losses["plain"].step == first_losses["bio"].step
    assert first_losses["plain"].value == pytest.approx(first_losses["bio"].value, rel=0.1)


@pytest.mark.parametrize("model", ["mlp", "cnn", "transformer"])
def test_without_mechanisms_both_runs_are_equal(tmp_path, model):
    """Same initialisation, same batches, no trace of the monitor."""
    images = data.load("digits")
    settings = runs.Settings(model=model, epochs=1, batch_size=256)
    callbacks = train.bio_callbacks("none")
    plain, bio = (runs.train(settings, images, c, 5, tmp_path, n) for c, n in (([], "plain"), (callbacks, "bio")))
    assert plain.weights.keys() == bio.weights.keys()
    assert all(torch.equal(weight, bio.weights[name]) for name, weight in plain.weights.items())
    assert plain.train_losses == bio.train_losses
    other = runs.train(settings, images, [], 6, tmp_path, "other")
    assert other.train_losses != plain.train_losses


def test_trains_on_idx_files_of_any_shape(tmp_path, capsys):
    write_idx_folder(tmp_path / "data", compress=True)
    options = ("--data", "fashion-mnist", "--data-dir", str(tmp_path / "data"), "--config", "all", "--model", "cnn")
    assert train.main([*options, *QUICK, "--optimizer", "adam", "--lr", "0.01", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") in printed
    assert float(cells(printed, "Dale violations corrected")[1]) > 0


def test_default_folder_is_never_used_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsed = train._parser().parse_args([])
    first = train._output_folder(parsed)
    assert first == Path("runs/digits-mlp-default-1")
    first.mkdir(parents=True)
    assert train._output_folder(parsed) == Path("runs/digits-mlp-default-2")


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "defualt"], "error: .*Did you mean 'default'"),
        (["fuzzy_learning_rates.nuu=0.3"], "error: fuzzy_learning_rates.nuu: .*Did you mean 'nu'"),
        (["fuzzy_learning_rates.nu=-1"], "error: fuzzy_learning_rates.nu: got -1"),
        (["--data-dir", "nowhere"], "error: digits come with scikit-learn"),
        (["--data", "fashion-mnist", "--data-dir", "nowhere"], "error: no folder with train-images.*--data-dir"),
        (["crystallization.include=nothing"], "error: crystallization.include: got .*nothing"),
    ],
)
def test_one_line_for_what_the_user_can_put_right(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert train.main([*arguments, *QUICK]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.match(message, lines[0])


def test_a_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train.main([*QUICK, "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_pairs_have_seeds_of_their_own_also_in_sections_that_set_one():
    config = load_config("none", ["crystallization.enabled=true", "crystallization.seed=5",
                                  "fuzzy_learning_rates.enabled=true", "seed=1"])  # fmt: skip
    for pair in (0, 1):
        callbacks = bio_callbacks(config, train._seeds(config, pair))
        seeds = {callback.name: callback.seed for callback in callbacks if isinstance(callback, Mechanism)}
        assert seeds == {"fuzzy_learning_rates": 1 + pair, "crystallization": 5 + pair}


def test_a_refused_run_leaves_no_log(tmp_path):
    assert train.main(["--out", str(tmp_path), "crystallization.include=nothing"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_results_are_not_mixed(default_run, capsys):
    assert train.main(["--out", str(default_run)]) == 2
    assert "already holds results" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--seeds", "0"], ["--epochs", "-1"], ["--model", "rnn"], ["--lr", "-1"], ["--lr", "fast"]]
)
def test_bad_options(arguments):
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2
