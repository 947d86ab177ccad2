"""Small image data sets, as tensors: scikit-learn's digits, and any data set in the four IDX files of MNIST."""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["ImageData", "Images", "load", "load_digits", "load_idx_folder", "read_idx"]

#: Images and labels, of training and test.
IDX_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HOW_TO_GET = (
    "on Debian and Ubuntu install the package dataset-fashion-mnist; elsewhere take the four files from the repository"
    " zalandoresearch/fashion-mnist and name their folder with --data-dir"
)
#: Numbers in IDX files are big-endian; the third byte of the file says what they are.
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set: images (N, channels, height, width) in [0, 1] as float32, and labels (N,) as int64.

    Args:
        train: For training.
        test: For testing.
        classes: Number of labels.
    """

    train: TensorDataset
    test: TensorDataset
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.tensors[0].shape[1:]
        return channels, height, width


class ImageData(pl.LightningDataModule):
    """A data set for a Trainer.

    Args:
        name: ``digits`` or ``fashion-mnist``.
        data_dir: See :func:`load`.
        batch_size: Images per step.
    """

    def __init__(self, name: str = "digits", data_dir: Path | None = None, batch_size: int = 32) -> None:
        super().__init__()
        self.images = load(name, data_dir)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        """Training images in random order."""
        return DataLoader(self.images.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Test images; they choose nothing."""
        return DataLoader(self.images.test, batch_size=1000)


def load(name: str, data_dir: Path | None = None) -> Images:
    """Load a data set by name. Nothing is ever downloaded.

    Args:
        name: ``digits`` or ``fashion-mnist``.
        data_dir: Folder of the four IDX files, or the folder above torchvision's ``FashionMNIST/raw``. Another data
            set in files of the same names, MNIST for one, is read just as well.

    Raises:
        FileNotFoundError: A file is missing; the message says how to get it.
        ValueError: A file is not what its name says, the name is unknown, or the digits are looked for in a folder.
    """
    if name == "digits" and data_dir is None:
        return load_digits()
    if name == "digits":
        raise ValueError("digits come with scikit-learn; leave out --data-dir, or ask for --data fashion-mnist")
    if name != "fashion-mnist":
        raise ValueError(f"unknown data set {name!r}; known: digits, fashion-mnist")
    return load_idx_folder([data_dir, data_dir / "FashionMNIST" / "raw"] if data_dir else [DEBIAN_FOLDER])


def load_digits() -> Images:
    """1,797 handwritten digits of 8x8 pixels, bundled with scikit-learn; every fifth is a test image."""
    from sklearn.datasets import load_digits as bundled
    from sklearn.model_selection import train_test_split

    pixels, labels = bundled(return_X_y=True)
    parts = train_test_split(pixels / 16.0, labels, test_size=0.2, stratify=labels, random_state=0)
    train_pixels, test_pixels, train_labels, test_labels = (torch.from_numpy(part) for part in parts)
    return Images(
        train=TensorDataset(train_pixels.float().reshape(-1, 1, 8, 8), train_labels),
        test=TensorDataset(test_pixels.float().reshape(-1, 1, 8, 8), test_labels),
        classes=10,
    )


def load_idx_folder(folders: list[Path]) -> Images:
    """Load a data set from the first of ``folders`` that holds all four IDX files, gzipped or not.

    Raises:
        FileNotFoundError: No folder holds all of them.
        ValueError: A file is corrupt, or images and labels do not match.
    """
    for folder in folders:
        found = [[_find(folder, name) for name in names] for names in IDX_FILES]
        if all(path for pair in found for path in pair):
            train, test = (_read_part(*pair) for pair in found)
            return Images(train, test, classes=int(train.tensors[1].max()) + 1)
    names = ", ".join(name for pair in IDX_FILES for name in pair)
    looked = " and ".join(str(folder) for folder in folders)
    raise FileNotFoundError(f"no folder with {names} (plain or .gz); looked in {looked}; {HOW_TO_GET}")


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, gzipped or not: two zero bytes, type, number of dimensions, their sizes, the numbers.

    Raises:
        ValueError: The file is not a complete IDX file.
    """
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(f"{path} is not an IDX file: it starts with {content[:4].hex(' ')}; {HOW_TO_GET}")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], dtype=">u4") if len(content) >= start else np.array([], dtype=">u4")
    dtype = np.dtype(IDX_TYPES[content[2]])
    expected = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(shape) != content[3] or len(content) != expected:
        raise ValueError(f"{path} is damaged: {len(content)} bytes where its header asks for {expected}; {HOW_TO_GET}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape.astype(np.int64))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}; {HOW_TO_GET}") from error


def _read_part(images_path: Path, labels_path: Path) -> TensorDataset:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if (
        images.ndim != 3
        or images.dtype != np.uint8
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"{images_path} holds {images.dtype} numbers of shape {images.shape} and {labels_path} {labels.dtype} of"
            f" {labels.shape}; expected bytes of shape (N, height, width) and N whole numbers"
        )
    return TensorDataset(_tensor(images, np.float32).div_(255.0).unsqueeze(1), _tensor(labels, np.int64))


def _tensor(array: np.ndarray, dtype: type) -> Tensor:
    return torch.from_numpy(array.astype(dtype))
