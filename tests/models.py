"""The zoo: small models over which the sweeps run, each with its own batches."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.data import DataLoader

BATCH = 8
CLASSES = 4

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd_decay": lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.5),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2),
}


class ZooModel(pl.LightningModule):
    """A classifier of random data; subclasses define ``net`` and the shape of an input."""

    shape: tuple[int, ...] = (6,)
    integers = False

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.optimizer = optimizer
        self.seen_random: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        self.seen_random.append(torch.rand(()).item())
        return fn.cross_entropy(self(x), y)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer]([p for p in self.parameters() if p.requires_grad])

    def batches(self, count: int, size: int = BATCH, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        if self.integers:
            x = torch.randint(0, 11, (count * size, *self.shape), generator=generator)
        else:
            x = torch.randn(count * size, *self.shape, generator=generator, dtype=self.dtype)
        y = torch.randint(0, CLASSES, (count * size,), generator=generator)
        return list(zip(x.split(size), y.split(size), strict=True))


class MLP(ZooModel):
    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, CLASSES))


class CNN(ZooModel):
    """Grouped, strided, one- to three-dimensional and transposed convolutions, norms, dropout."""

    shape = (2, 6, 6)

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net = nn.Sequential(
            nn.Conv2d(2, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.ConvTranspose2d(8, 4, 2, groups=2),
            nn.ReLU(),
            nn.Flatten(2),
            nn.Conv1d(4, 6, 3),
            nn.ReLU(),
            nn.Unflatten(2, (7, 1, 1)),
            nn.Conv3d(6, 4, (3, 1, 1)),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20, CLASSES),
        )


class Transformer(ZooModel):
    shape = (5,)
    integers = True

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(dim=1))


class Recurrent(ZooModel):
    shape = (5, 6)

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.rnn = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(self.rnn(x)[0])[0][:, -1])


class Frozen(MLP):
    """The middle layer is frozen, and one layer takes no part in the forward pass."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.net[2].requires_grad_(False)
        self.unused = nn.Linear(3, 3)


class Tied(ZooModel):
    """The output layer reads out with the embedding's weights."""

    shape = (5,)
    integers = True

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.embed = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.readout = nn.Linear(8, 11, bias=False)
        self.readout.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(self.embed(x)).relu().mean(dim=1))[:, :CLASSES]


class TwoOptimizers(ZooModel):
    """Manual optimization; the second optimizer steps every other batch."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        make = OPTIMIZERS[self.optimizer]
        return [make(self.body.parameters()), make(self.head.parameters())]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        body, head = self.optimizers()
        self.seen_random.append(torch.rand(()).item())
        loss = fn.cross_entropy(self(batch[0]), batch[1])
        body.zero_grad()
        head.zero_grad()
        self.manual_backward(loss)
        body.step()
        if batch_idx % 2:
            head.step()


ZOO: dict[str, type[ZooModel]] = {
    model.__name__: model for model in (MLP, CNN, Transformer, Recurrent, Frozen, Tied, TwoOptimizers)
}


def make_trainer(callbacks: list[pl.Callback], **arguments) -> pl.Trainer:
    """A quiet Trainer on the CPU."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=callbacks, **{**quiet, **arguments})


def make_model(kind: str | type[ZooModel], optimizer: str = "sgd", seed: int = 0, double: bool = False) -> ZooModel:
    """A model with reproducible initial weights."""
    torch.manual_seed(seed)
    model = (ZOO[kind] if isinstance(kind, str) else kind)(optimizer)
    return model.double() if double else model


def fit(
    model: ZooModel, callbacks: list[pl.Callback] = (), *, steps: int = 6, ckpt_path: str | None = None, **arguments
) -> pl.Trainer:
    """Train for ``steps`` batches in one epoch, from a fixed random state."""
    torch.manual_seed(5)
    trainer = make_trainer(list(callbacks), **{"max_epochs": 1, **arguments})
    trainer.fit(model, DataLoader(model.batches(steps), batch_size=None), ckpt_path=ckpt_path)
    return trainer


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def identical(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def different(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit."""
    return [name for name in first if not torch.equal(first[name], second[name])]
