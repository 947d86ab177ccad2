"""Fine-tune a pretrained checkpoint with several synapses per connection, and export a plain model.

    python examples/finetune.py --gamma 3 fuzzy_learning_rates.nu=0.3

It makes the checkpoint itself, on scikit-learn's digits; the new task is the same digits lying on their side. Splitting
the pretrained layers changes no output, nor does folding the fine-tuned ones: both are asserted and printed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bio_lightning import BioConfigError, WeightSplitting, bio_callbacks, fold
from data import Images, load
from models import Classifier
from options import positive_integer
from runs import evaluate

__all__ = ["OutputsAtStart", "main"]

#: Of the largest output; float32 sums may be added up in another order after a split or a fold.
TOLERANCE = 1e-5


class OutputsAtStart(pl.Callback):
    """Keeps what the model says of some images when training starts: all layers are split by then, none has learned.

    Args:
        images: The images.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask the split model."""
        self.outputs = pl_module(self.images)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 for success, 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("overrides", nargs="*", help="settings, such as fuzzy_learning_rates.nu=0.3")
    add("--gamma", type=positive_integer, default=3, help="synapses per connection (default: %(default)s)")
    add("--epochs", type=positive_integer, default=10, help="of either training (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/finetune"), help="folder (default: %(default)s)")
    args = parser.parse_intermixed_args(arguments)
    config = {
        "weight_splitting": {"enabled": True, "gamma": args.gamma},
        "fuzzy_learning_rates": {"enabled": True},  # the synapses of a connection differ in how fast they learn
        "bio_monitor": {"enabled": True},
    }
    torch.set_num_threads(1)  # the network is too small to gain by more
    pl.seed_everything(0, verbose=False)
    try:
        callbacks = bio_callbacks(config, args.overrides)
        if not any(isinstance(each, WeightSplitting) and each.mode == "synapses" for each in callbacks):
            raise BioConfigError("overrides", args.overrides, "those that leave weight_splitting on, in mode synapses")
        _finetune(callbacks, args)
    except (OSError, BioConfigError, MisconfigurationException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _finetune(callbacks: list[pl.Callback], args: argparse.Namespace) -> None:
    """Pretrain, split, fine-tune, fold; print what came of it, and assert that outputs are equal where they should."""
    digits = load("digits")
    lying = _on_their_side(digits)
    pixels = lying.test.tensors[0]
    model = _pretrain(digits, args)
    pretrained_outputs, pretrained_accuracy = _outputs(model, pixels), evaluate(model, lying.test)[1]
    start = OutputsAtStart(pixels)
    _fit(model, lying, [*callbacks, start], args)  # splits the layers and leaves them split
    model.eval()
    torch.save(fold(model).state_dict(), args.out / "finetuned.pt")
    plain = Classifier("mlp", digits.shape, digits.classes).eval()
    plain.load_state_dict(torch.load(args.out / "finetuned.pt"))  # a plain class, which knows of no split

    print(f"\npretrained: {pretrained_accuracy:.3f} of the lying digits right")
    _assert_equal(f"split, {_shape(model)}", start.outputs, pretrained_outputs)
    print(f"fine-tuned: {evaluate(model, lying.test)[1]:.3f} of the lying digits right")
    _assert_equal(f"folded, {_shape(plain)}", _outputs(plain, pixels), _outputs(model, pixels))
    print(f"plain checkpoint: {args.out / 'finetuned.pt'}")


def _pretrain(images: Images, args: argparse.Namespace) -> Classifier:
    """Train without synapses, save, and load into a fresh model, as one would somebody else's checkpoint."""
    trainer = _fit(Classifier("mlp", images.shape, images.classes), images, [], args)
    trainer.save_checkpoint(args.out / "pretrained.ckpt")
    model = Classifier("mlp", images.shape, images.classes)
    model.load_state_dict(torch.load(args.out / "pretrained.ckpt")["state_dict"])
    return model.eval()


def _on_their_side(images: Images) -> Images:
    def turned(part: TensorDataset) -> TensorDataset:
        pixels, labels = part.tensors
        return TensorDataset(pixels.rot90(dims=(2, 3)), labels)

    return Images(turned(images.train), turned(images.test), images.classes)


def _fit(model: Classifier, images: Images, callbacks: list[pl.Callback], args: argparse.Namespace) -> pl.Trainer:
    warnings.filterwarnings("ignore", "The '.*' does not have many workers")  # the data lie in memory already
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=args.epochs,
        callbacks=callbacks,
        logger=TensorBoardLogger(args.out, "tuning" if callbacks else "pretraining", default_hp_metric=False),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model.train(), DataLoader(images.train, 32, shuffle=True), DataLoader(images.test, batch_size=1000))
    return trainer


@torch.no_grad()
def _outputs(model: Classifier, pixels: Tensor) -> Tensor:
    return model(pixels)


def _shape(model: Classifier) -> tuple[int, ...]:
    return tuple(dict(model.named_parameters())["network.hidden1.weight"].shape)


def _assert_equal(what: str, outputs: Tensor, expected: Tensor) -> None:
    difference = float((outputs - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):  # nan is no equality either
        raise AssertionError(f"{what}: outputs differ by {difference}")
    print(f"{what}: outputs differ by at most {difference:.1e}, of up to {float(expected.abs().max()):.1f}")


if __name__ == "__main__":
    sys.exit(main())
