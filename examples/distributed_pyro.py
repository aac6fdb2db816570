"""The demo's autoencoder on several processes, whose penalties see the minibatches of all.

Every process trains on its share of each minibatch, under DistributedDataParallel. From the
repository's root, after `pip install -e .[demo]`:

    python examples/distributed_pyro.py --simulate 2
    torchrun --nproc-per-node 4 examples/distributed_pyro.py --resume
    python examples/distributed_pyro.py --help

With `--simulate` the processes are on this machine, and one that trains alone goes first. Without
it or torchrun there is one process.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyro
import torch
import torch.distributed as dist
from pyro.infer import ELBO
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from demo.cli import integer
from demo.data import load
from demo.digits import BATCH_SIZE, LATENT_DIM, PIXELS, digits_setting, training_parser
from demo.with_pyro.training import build_vae
from demo.with_pyro.vae import VAE
from pyro_infovae import ConcatCritic, TraceHamiltonian_ELBO, TraceInfoMax_ELBO, TraceMMD_ELBO

OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "mmd": lambda: TraceMMD_ELBO(lambd=100.0, gather=True),
    "infomax": lambda: TraceInfoMax_ELBO(
        ConcatCritic(PIXELS, LATENT_DIM, hidden=(64,)), gather=True
    ),
    # Its rows do not see each other: there is nothing to gather.
    "hamiltonian": lambda: TraceHamiltonian_ELBO(num_steps=2, step_size=0.05),
}


class Part(nn.Module):
    """The autoencoder's model or guide, as a module of its own.

    Args:
        vae: The autoencoder.
        name: `model` or `guide`.
    """

    def __init__(self, vae: VAE, name: str) -> None:
        super().__init__()
        self.vae, self.name = vae, name

    def forward(self, images: Tensor, rows: Tensor) -> None:
        """Run it."""
        getattr(self.vae, self.name)(images, rows)


def build(objective: str, *, seed: int) -> nn.Module:
    """Model, guide and objective as one module whose call is the loss."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    vae = build_vae(digits_setting(seed))
    return OBJECTIVES[objective]()(Part(vae, "model"), Part(vae, "guide"))


def make_parameters(module: nn.Module, images: Tensor) -> None:
    """Call an objective once: a flow makes its step sizes then, for optimisers to find."""
    with torch.no_grad():
        module(images, torch.arange(BATCH_SIZE, device=images.device))


def noise_seed(seed: int, *, epoch: int, rank: int) -> int:
    """The seed of a rank's noise in an epoch, so that a restart needs no more than the epoch."""
    return int(np.random.default_rng((seed, epoch, rank)).integers(2**63))


def print_side_by_side(
    alone: Sequence[float], together: Sequence[float], *, processes: int
) -> None:
    """Print the loss of every epoch."""
    print(f"\nepoch   1 process   {processes} processes   (nats per image)")
    for epoch, (one, several) in enumerate(zip(alone, together, strict=False), start=1):
        print(f"{epoch:5}   {one:9.4f}   {several:11.4f}")


def train(options: argparse.Namespace, *, checkpoint: Path | None) -> list[float]:
    """Train as one of the process group's ranks, or alone; the loss of every epoch per image."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    images = load("digits", data_dir=None, seed=options.seed).train_images
    images = torch.as_tensor(images, device=device)
    module = build(options.objective, seed=options.seed).to(device)
    make_parameters(module, images)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    losses: list[float] = []
    if options.resume and checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(saved["module"])
        optimiser.load_state_dict(saved["optimiser"])
        losses = saved["losses"]
    objective = DistributedDataParallel(module) if world > 1 else module

    for epoch in range(len(losses), options.epochs):
        # The order of the data is that of every rank, the noise is not.
        order = np.random.default_rng((options.seed, epoch)).permutation(len(images))
        torch.manual_seed(noise_seed(options.seed, epoch=epoch, rank=rank))
        # Every rank has as many rows: the last images of an order that do not fill a minibatch
        # are left to other epochs.
        share = BATCH_SIZE // world
        count = len(order) // (world * share)
        minibatches = order[: count * world * share].reshape(count, world, share)
        total = torch.zeros((), device=device)
        for rows in torch.as_tensor(minibatches[:, rank], device=device):
            optimiser.zero_grad()
            loss = objective(images, rows)
            loss.backward()
            optimiser.step()
            total += loss.detach()
        if world > 1:
            dist.all_reduce(total)
        losses.append(float(total) / (world * count * len(images)))
        if rank == 0 and checkpoint is not None:
            save(checkpoint, module=module, optimiser=optimiser, losses=losses)
            print(f"epoch {epoch + 1}: {losses[-1]:.4f} nats per image", flush=True)
    return losses


def save(
    path: Path, *, module: nn.Module, optimiser: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Write a checkpoint, leaving the last one where that fails."""
    state = {
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "losses": losses,
    }
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.replace(path)


def run_rank(options: argparse.Namespace, **rendezvous: object) -> None:
    """Train as one of several processes."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group(
        # Through gloo the ranks agree on sizes without waiting for their devices.
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=datetime.timedelta(seconds=options.timeout),
        **rendezvous,
    )
    try:
        train(options, checkpoint=options.checkpoint)
    finally:
        dist.destroy_process_group()


def run_simulated_rank(rank: int, options: argparse.Namespace, store: str) -> None:
    """Train as one of several processes of this machine."""
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    torch.set_num_threads(1)
    run_rank(options, init_method=f"file://{store}", rank=rank, world_size=options.simulate)


def simulate(options: argparse.Namespace) -> None:
    """Train alone, then with several processes; print the losses side by side."""
    if torch.cuda.device_count() < options.simulate:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU for every process, or for none
    alone = train(options, checkpoint=None)
    with TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        multiprocessing.spawn(run_simulated_rank, (options, store), nprocs=options.simulate)
    together = torch.load(options.checkpoint, weights_only=True)["losses"]
    print_side_by_side(alone, together, processes=options.simulate)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit status is 0."""
    checkpoint = Path("outputs/distributed_pyro.pt")
    parser = training_parser(__doc__, OBJECTIVES, checkpoint=checkpoint)
    parser.add_argument(
        "--timeout",
        type=integer(at_least=1),
        default=60,
        metavar="S",
        help="seconds to wait for another process before giving up (default: 60)",
    )
    parser.add_argument(
        "--simulate", type=integer(at_least=2), metavar="N", help="start N processes here"
    )
    options = parser.parse_args(argv)
    options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:  # by torchrun
        run_rank(options)
    elif options.simulate is not None:
        simulate(options)
    else:
        train(options, checkpoint=options.checkpoint)
    return 0


if __name__ == "__main__":
    sys.exit(main())
