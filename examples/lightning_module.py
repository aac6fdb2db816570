"""The demo's autoencoder under Lightning: its Trainer brings the processes and the checkpoints.

The loss is that of `elbo(model, guide)`, and its penalty sees the minibatches of all processes.
From the repository's root, after `pip install -e .[demo,lightning]`:

    python examples/lightning_module.py --devices 2
    python examples/lightning_module.py --devices 2 --epochs 40 --resume
    python examples/lightning_module.py --help

With several devices (on a CPU: processes) one that trains alone goes first.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from demo.cli import integer
from demo.data import load
from demo.digits import BATCH_SIZE, training_parser
from distributed_pyro import OBJECTIVES, build, make_parameters, noise_seed, print_side_by_side


class LightningVAE(LightningModule):
    """The autoencoder and its objective.

    Args:
        objective: One of `OBJECTIVES`.
        seed: Of the initial weights, the order of the data and the noise.
    """

    def __init__(self, objective: str, *, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.loss = build(objective, seed=seed)
        images = torch.as_tensor(load("digits", data_dir=None, seed=seed).train_images)
        self.register_buffer("images", images.to(torch.get_default_dtype()), persistent=False)
        make_parameters(self.loss, self.images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for the networks and for what the objective learns."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        """Rows of the images: this process's share of each minibatch."""
        world = self.trainer.world_size
        sampler = DistributedSampler(
            range(len(self.images)), world, self.trainer.global_rank, seed=self.seed, drop_last=True
        )
        return DataLoader(
            sampler.dataset,
            BATCH_SIZE // world,
            sampler=sampler,
            drop_last=True,
            # Without one of its own it would draw a seed from the generator of the noise.
            generator=torch.Generator(),
        )

    def on_train_epoch_start(self) -> None:
        """Seed the noise."""
        rank = self.trainer.global_rank
        torch.manual_seed(noise_seed(self.seed, epoch=self.current_epoch, rank=rank))

    def training_step(self, rows: Tensor) -> Tensor:
        """The objective."""
        loss = self.loss(self.images, rows)
        per_image = loss.detach() / len(self.images)
        self.log("loss", per_image, on_step=False, on_epoch=True, sync_dist=True)
        return loss


class Losses(Callback):
    """The loss of every epoch per image, averaged over the processes; a part of the checkpoint."""

    def __init__(self) -> None:
        self.history: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the loss."""
        self.history.append(trainer.callback_metrics["loss"].item())
        trainer.print(f"epoch {len(self.history)}: {self.history[-1]:.4f} nats per image")

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint holds."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history = state_dict["history"]


def train(options: argparse.Namespace, *, checkpoint: Path | None, devices: int) -> list[float]:
    """Train; the loss of every epoch per image."""
    losses = Losses()
    callbacks: list[Callback] = [losses]
    if checkpoint is not None:
        written = ModelCheckpoint(
            checkpoint.parent,
            checkpoint.stem,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        callbacks.append(written)
    trainer = Trainer(
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=options.epochs,
        callbacks=callbacks,
        enable_checkpointing=checkpoint is not None,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
    )
    resumes = options.resume and checkpoint is not None and checkpoint.exists()
    trainer.fit(
        LightningVAE(options.objective, seed=options.seed),
        ckpt_path=checkpoint if resumes else None,
        weights_only=True,
    )
    return losses.history


def compare(options: argparse.Namespace) -> None:
    """Train alone, then with several processes; print the losses side by side."""
    print("1 process")
    alone = train(options, checkpoint=None, devices=1)
    print(f"{options.devices} processes")
    together = train(options, checkpoint=options.checkpoint, devices=options.devices)
    print_side_by_side(alone, together, processes=options.devices)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit status is 0."""
    checkpoint = Path("outputs/lightning_module.ckpt")
    parser = training_parser(__doc__, OBJECTIVES, checkpoint=checkpoint)
    parser.add_argument("--devices", type=integer(at_least=1), default=1, help="default: 1")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)

    # The Trainer starts this file again for every other process, and torchrun for all.
    if options.devices > 1 and "LOCAL_RANK" not in os.environ:
        compare(options)
    else:
        train(options, checkpoint=options.checkpoint, devices=options.devices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
