"""The trainings with Pyro: its SVI, compiled."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from demo.backend import Setting
from demo.with_pyro import training as demo_training
from demo.with_pyro.training import Training
from demo.with_pyro.vae import VAE, Decoder
from infovae_parts import two_points
from infovae_parts.two_points import Snapshot
from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI


def start(objective: Callable[[], ELBO], images: np.ndarray, setting: Setting) -> Training:
    """The demo's training."""
    return _compiled(demo_training.start(objective, images, setting), setting.learning_rate)


def start_deterministic(
    objective: Callable[[], ELBO], images: np.ndarray, setting: Setting
) -> Training:
    """The demo's training with a point mass as its guide."""
    pyro.clear_param_store()
    pyro.set_rng_seed(setting.seed)
    with torch.device(setting.device or "cpu"):
        vae = DeterministicVAE(
            Decoder(pixels=setting.pixels, latent_dim=setting.latent_dim),
            pixels=setting.pixels,
            levels=setting.levels,
            latent_dim=setting.latent_dim,
        )
        training = Training(vae, objective(), torch.as_tensor(images), setting.learning_rate)
    return _compiled(training, setting.learning_rate)


class DeterministicVAE(VAE):
    """The demo's model, with a guide that gives every image one code."""

    def posterior(self, images: Tensor) -> dist.Delta:
        """A point mass where the demo has the mean of q(z|x)."""
        return dist.Delta(super().posterior(images).mean, event_dim=1)


class TwoPoints:
    """Model and guide of the two points.

    Args:
        x: The data, of shape (n,), each of them one of the two points.
    """

    def __init__(self, x: Tensor) -> None:
        hidden = two_points.HIDDEN
        self.point = (x > 0).long()
        self.decoder = nn.Sequential(
            nn.Linear(1, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 2),
        )

    def likelihood(self, z: Tensor) -> dist.Normal:
        """p(x|z) for codes of shape (n,)."""
        loc, log_scale = self.decoder(z[:, None]).unbind(-1)
        return dist.Normal(loc, log_scale.exp())

    def model(self, x: Tensor) -> None:
        """Draw a code for every datum, and score the datum given its code."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw a code for every datum, from the normal of its point."""
        loc = pyro.param("loc", x.new_tensor(two_points.INITIAL_LOC))
        log_scale = pyro.param("log_scale", x.new_full((2,), math.log(two_points.INITIAL_SCALE)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc[self.point], log_scale.exp()[self.point]))

    @torch.no_grad()
    def decode(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and scales of p(x|z)."""
        normal = self.likelihood(torch.as_tensor(z, dtype=torch.float32, device=self.point.device))
        return normal.loc.double().cpu().numpy(), normal.scale.double().cpu().numpy()


def train_two_points(
    objective: str, *, steps: tuple[int, ...], seed: int, device: str
) -> Iterator[Snapshot]:
    """Train on the two points, and stop at these steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    loss = {
        "elbo": TraceMeanField_ELBO,
        "mmd": partial(TraceMMD_ELBO, lambd=two_points.LAMBD, estimator="closed_form"),
    }[objective]()
    x = torch.as_tensor(two_points.DATA, dtype=torch.float32, device=device)
    with torch.device(device):
        points = TwoPoints(x)
    svi = CompiledSVI(points.model, points.guide, _adam(two_points.LEARNING_RATE), loss)
    svi.evaluate_loss(x)  # declares the parameters
    taken = 0
    for step in steps:
        for _ in range(step - taken):
            svi.step(x)
        taken = step
        loc, scale = (value.detach().double().cpu().numpy() for value in _posterior())
        yield Snapshot(step, loc.copy(), scale, points.decode)


def _posterior() -> tuple[Tensor, Tensor]:
    return pyro.param("loc"), pyro.param("log_scale").exp()


def _compiled(training: Training, learning_rate: float) -> Training:
    vae = training.vae
    training.svi = CompiledSVI(vae.model, vae.guide, _adam(learning_rate), training.objective)
    return training


def _adam(learning_rate: float) -> partial[torch.optim.Adam]:
    return partial(torch.optim.Adam, lr=learning_rate, fused=True)
