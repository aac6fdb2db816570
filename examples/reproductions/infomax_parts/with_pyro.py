"""The trainings with Pyro: its SVI, compiled."""

from functools import partial

import numpy as np
import torch

from demo.backend import Setting
from demo.with_pyro import training as demo_training
from demo.with_pyro.training import Training
from infomax_parts.backends import BOUND, CRITIC_WIDTHS
from pyro_infovae import ConcatCritic, TraceInfoMax_ELBO, diagnostics
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.critics import score_all_pairs
from pyro_infovae.mutual_information import js


def start(images: np.ndarray, setting: Setting, *, alpha: float) -> Training:
    """The demo's training, under another objective."""

    def objective() -> TraceInfoMax_ELBO:
        critic = ConcatCritic(setting.pixels, setting.latent_dim, CRITIC_WIDTHS)
        return TraceInfoMax_ELBO(critic, alpha, bound=BOUND)

    training = demo_training.start(objective, images, setting)
    vae = training.vae
    adam = partial(torch.optim.Adam, lr=setting.learning_rate, fused=True)
    training.svi = CompiledSVI(vae.model, vae.guide, adam, loss=training.objective)
    return training


@torch.no_grad()
def critic_bound(training: Training, images: np.ndarray, z: np.ndarray) -> float:
    """What the trained critic makes of I(x; z)."""
    rows = (torch.as_tensor(array, device=training.device) for array in (images, z))
    scores = score_all_pairs(training.objective.critic, *rows)
    others = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return float(js(scores.diagonal(), scores[others]).estimate)


def active_units(training: Training, images: np.ndarray) -> int:
    """Dimensions of the code whose posterior mean varies over the images."""
    data = torch.as_tensor(images, device=training.device)
    rows = torch.arange(len(images), device=training.device)
    return diagnostics.active_units(training.vae.model, training.vae.guide, data, rows).num_active
