"""A small character-level GPT with mechanisms on all linear layers of its blocks.

    python examples/transformer_lm.py --config paper --steps 1000 fuzzy_learning_rates.nu=0.3

It reads chapters 1 to 17 of Jane Austen's Pride and Prejudice (1813, in the public domain; the transcription of Project
Gutenberg), and ends with its validation loss beside those of models that know letter frequencies alone, and a sample.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader

from bio_lightning import BioConfigError, bio_callbacks
from options import positive_integer

__all__ = ["Block", "CharacterGPT", "counted_loss", "main"]

TEXT = Path(__file__).with_name("pride_and_prejudice.txt")
CONTEXT = 48


class Block(nn.Module):
    """Causal self-attention and a perceptron, each behind a norm and beside a residual connection.

    Args:
        width: Of a token.
        heads: Of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.join = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens after the block, shape (N, length, width) as before."""
        normed = self.norm1(tokens)
        query, key, value = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        read = scaled_dot_product_attention(query, key, value, is_causal=True)
        tokens = tokens + self.join(read.transpose(1, 2).flatten(-2))
        return tokens + self.narrow(torch.relu(self.widen(self.norm2(tokens))))


class CharacterGPT(pl.LightningModule):
    """An ordinary LightningModule that predicts the next character.

    Args:
        characters: Number of different characters.
        width: Of a token.
        depth: Number of blocks.
        heads: Of the attention.
        lr: Learning rate of AdamW.
    """

    def __init__(self, characters: int, width: int = 64, depth: int = 2, heads: int = 4, lr: float = 3e-3) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(characters, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)
        self.lr = lr
        self.example_input_array = torch.zeros(1, CONTEXT, dtype=torch.long)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the next character at every place, shape (N, length, characters)."""
        places = torch.arange(text.shape[1], device=text.device)
        return self.head(self.norm(self.blocks(self.embed(text) + self.position(places))))

    def loss(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per character."""
        return cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self.loss(batch)
        self.log("loss/train", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Loss on the text that is kept back."""
        self.log("loss/validation", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, under which multipliers scale the update."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)

    @torch.no_grad()
    def sample(self, start: Tensor, length: int, seed: int = 0) -> Tensor:
        """Go on writing.

        Args:
            start: Beginning, shape (length,).
            length: How many characters to add.
            seed: Of the choice among likely characters.
        """
        generator = torch.Generator().manual_seed(seed)
        written = start
        for _ in range(length):
            odds = self(written[None, -CONTEXT:])[0, -1].softmax(dim=-1)
            written = torch.cat([written, torch.multinomial(odds, 1, generator=generator)])
        return written


def counted_loss(train: Tensor, validation: Tensor, characters: int, order: int) -> float:
    """Validation loss of predicting from counts alone, in nats per character.

    Args:
        train: Text that is counted.
        validation: Text that is predicted.
        characters: Number of different characters.
        order: 1 for the frequency of characters, 2 for that of pairs.
    """
    before = torch.zeros_like if order == 1 else torch.clone
    counts = torch.ones(characters, characters)  # as if each pair had been seen once
    counts.index_put_((before(train[:-1]), train[1:]), torch.ones(len(train) - 1), accumulate=True)
    odds = counts / counts.sum(dim=1, keepdim=True)
    return -float(odds[before(validation[:-1]), validation[1:]].log().mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 for success, 2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="settings of the config, such as fuzzy_learning_rates.nu=0.3")
    parser.add_argument("--config", default="default", help="preset or path of a YAML file (default: %(default)s)")
    parser.add_argument("--steps", type=positive_integer, default=800, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/transformer-lm"), help="folder of the TensorBoard log")
    args = parser.parse_intermixed_args(arguments)
    try:
        switched_on = [callback.name for callback in bio_callbacks(args.config, args.overrides)]
        blocks_only = [f"{name}.include=blocks.*" for name in switched_on]
        callbacks = bio_callbacks(args.config, [*blocks_only, *args.overrides])
    except BioConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = TEXT.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    encoded = torch.tensor([alphabet.index(character) for character in text])
    train, validation = encoded[: len(encoded) * 9 // 10], encoded[len(encoded) * 9 // 10 :]
    pl.seed_everything(0, verbose=False)
    model = CharacterGPT(len(alphabet))
    loss = fit(model, train, validation, args.steps, callbacks, args.out)
    for name, value in (
        ("character frequencies", counted_loss(train, validation, len(alphabet), 1)),
        ("the character before", counted_loss(train, validation, len(alphabet), 2)),
        (f"the GPT, after {args.steps} steps", loss),
    ):
        print(f"validation loss of {name:<28}{value:.3f} nats per character")
    written = model.sample(encoded[:CONTEXT], 400)
    print("\n" + "".join(alphabet[index] for index in written))
    return 0


def fit(
    model: CharacterGPT, train: Tensor, validation: Tensor, steps: int, callbacks: list[pl.Callback], out: Path
) -> float:
    """Train a model, and give its validation loss.

    Args:
        model: The model.
        train: Text to learn.
        validation: Text to predict.
        steps: Number of optimizer steps.
        callbacks: The synapses.
        out: Folder of the TensorBoard log.
    """
    warnings.filterwarnings("ignore", "The '.*' does not have many workers")  # the text lies in memory already
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        logger=TensorBoardLogger(out, name=None, default_hp_metric=False),
        log_every_n_steps=10,
        val_check_interval=min(steps, 100),
        enable_checkpointing=False,
    )
    every_window, side_by_side = train.unfold(0, CONTEXT + 1, 1), validation.unfold(0, CONTEXT + 1, CONTEXT)
    validation_loader = DataLoader(side_by_side, batch_size=64)
    trainer.fit(model, DataLoader(every_window, batch_size=32, shuffle=True), validation_loader)
    return float(trainer.validate(model, validation_loader, verbose=False)[0]["loss/validation"])


if __name__ == "__main__":
    sys.exit(main())
