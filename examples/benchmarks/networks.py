"""The networks that the benchmark trains, with one batch for each; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

__all__ = ["GPT", "Batch", "ResNet18", "Workload", "chain", "gpt", "mlp", "resnet18", "weight_count"]

Batch = tuple[Tensor, Tensor]


class Workload(NamedTuple):
    """What is trained.

    Args:
        name: For the tables.
        build: Makes the network; call it under a seed of your own.
        batch: Inputs and class labels.
        optimizer: ``sgd`` or ``adamw``.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Batch
    optimizer: str = "sgd"


def weight_count(network: nn.Module) -> int:
    """Weights of a network that may be synapses: biases and norms are none."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.ndim > 1)


def mlp(hidden: int = 1000, batch: int = 64) -> Workload:
    """784-1000-10, as for MNIST."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    return Workload(f"MLP 784-{hidden}-10, batch {batch}", build, (torch.randn(batch, 784), labels(10, batch)))


def chain(layers: int, width: int) -> Workload:
    """Square linear layers one behind the other: ``layers * width ** 2`` weights."""

    def build() -> nn.Module:
        blocks = [module for _ in range(layers) for module in (nn.Linear(width, width, bias=False), nn.ReLU())]
        return nn.Sequential(*blocks[:-1])

    return Workload(f"{layers} layers of {width * width} weights", build, (torch.randn(2, width), labels(width, 2)))


def resnet18(width: int = 64, batch: int = 32) -> Workload:
    """ResNet-18 for 32x32 images."""
    images = torch.randn(batch, 3, 32, 32)
    return Workload(f"ResNet-18, width {width}, batch {batch}", lambda: ResNet18(width), (images, labels(10, batch)))


def gpt(layers: int, width: int, vocabulary: int, batch: int, length: int) -> Workload:
    """A decoder in GPT-2's shape, with AdamW."""
    tokens = labels(vocabulary, batch, length + 1)
    name = f"GPT-2, {layers} layers of width {width}, batch {batch} x {length}"
    data = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    return Workload(name, lambda: GPT(layers, width, vocabulary, length), data, "adamw")


def labels(classes: int, *shape: int) -> Tensor:
    """Random class numbers."""
    return torch.randint(classes, shape)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps, shape (N, outputs, H / stride, W / stride)."""
        hidden = relu(self.norm1(self.conv1(images)))
        return relu(self.norm2(self.conv2(hidden)) + self.shortcut(images))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no pooling behind it, as is usual for 32x32 images; 11.2 M weights at width 64.

    Args:
        width: Channels of the first stage.
        classes: Number of outputs.
    """

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for stage in range(4):
            blocks.append(BasicBlock(channels[stage], channels[stage + 1], stride=1 if stage == 0 else 2))
            blocks.append(BasicBlock(channels[stage + 1], channels[stage + 1], stride=1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (N, classes)."""
        features: Tensor = self.blocks(relu(self.norm(self.conv(images))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class Decoder(nn.Module):
    """A pre-norm block: causal attention with heads of 64 channels, then a perceptron of four times the width.

    Args:
        width: Of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.activation = nn.GELU(approximate="tanh")

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, shape (N, length, width)."""
        packed = self.attend(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind()
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        tokens = tokens + self.project(seen.transpose(1, 2).flatten(2))
        changed: Tensor = tokens + self.contract(self.activation(self.expand(self.norm2(tokens))))
        return changed


class GPT(nn.Module):
    """GPT-2's shape: learned positions, head tied to the embedding; 124 M weights with 12 layers of width 768.

    Args:
        layers: Number of blocks.
        width: Of a token.
        vocabulary: Number of different tokens.
        length: Tokens in a sequence.
    """

    def __init__(self, layers: int, width: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Decoder(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape (N, length, vocabulary)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(tokens) + self.position)))
        return logits
