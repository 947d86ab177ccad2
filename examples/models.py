"""A small image classifier to try the callbacks on: perceptron, convolutional network, or vision transformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

__all__ = ["LEARNING_RATES", "NETWORKS", "Classifier", "VisionTransformer", "cnn", "mlp"]

#: Optimizers, with the learning rate that is used where none is asked for.
LEARNING_RATES = {"sgd": 0.02, "adam": 1e-3}


def mlp(shape: tuple[int, int, int], classes: int, width: int = 120) -> nn.Module:
    """Two hidden layers."""
    channels, height, size = shape
    layers = {
        "flatten": nn.Flatten(),
        "hidden1": nn.Linear(channels * height * size, width),
        "relu1": nn.ReLU(),
        "hidden2": nn.Linear(width, width),
        "relu2": nn.ReLU(),
        "output": nn.Linear(width, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def cnn(shape: tuple[int, int, int], classes: int, width: int = 24) -> nn.Module:
    """Two convolutions with batch norm, each at half the resolution of the one before."""
    layers = {
        "conv1": nn.Conv2d(shape[0], width, kernel_size=3, padding=1, bias=False),
        "norm1": nn.BatchNorm2d(width),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(width, 2 * width, kernel_size=3, padding=1, bias=False),
        "norm2": nn.BatchNorm2d(2 * width),
        "relu2": nn.ReLU(),
        "pool2": nn.AdaptiveAvgPool2d(2),
        "flatten": nn.Flatten(),
        "output": nn.Linear(8 * width, classes),
    }
    return nn.Sequential(OrderedDict(layers))


class VisionTransformer(nn.Module):
    """Patches of a quarter of the image's side, two pre-norm encoder layers, the mean over patches.

    Args:
        shape: Channels, height and width of an image.
        classes: Number of outputs.
        width: Of a token.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 48) -> None:
        super().__init__()
        channels, height, size = shape
        patch = (max(1, height // 4), max(1, size // 4))
        self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        tokens = (height // patch[0]) * (size // patch[1])
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.block1, self.block2 = (
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, classes)."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.block2(self.block1(tokens))).mean(dim=1))


NETWORKS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": VisionTransformer,
}


class Classifier(pl.LightningModule):
    """An ordinary LightningModule: nothing in it knows of synapses.

    Args:
        model: ``mlp``, ``cnn`` or ``transformer``.
        shape: Channels, height and width of an image.
        classes: Number of labels.
        optimizer: ``sgd`` (momentum 0.9) or ``adam``.
        lr: Learning rate; None for the optimizer's usual one.
    """

    def __init__(
        self, model: str, shape: tuple[int, int, int], classes: int, optimizer: str = "sgd", lr: float | None = None
    ) -> None:
        super().__init__()
        self.network = NETWORKS[model](shape, classes)
        self.train_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(classes, average="micro")
        self.example_input_array = torch.zeros(2, *shape)
        self.optimizer = optimizer
        self.lr = LEARNING_RATES[optimizer] if lr is None else lr

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, classes)."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels)
        self.train_accuracy(logits, labels)
        self.log("loss/train", loss, prog_bar=True)
        self.log("accuracy/train", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Test loss and accuracy; they choose nothing, so test images may be used."""
        images, labels = batch
        logits = self(images)
        self.test_accuracy(logits, labels)
        self.log("loss/test", cross_entropy(logits, labels), batch_size=len(labels))
        self.log("accuracy/test", self.test_accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD with momentum, or Adam."""
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.lr)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
