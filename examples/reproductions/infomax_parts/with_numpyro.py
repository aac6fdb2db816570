"""The trainings with NumPyro."""

import jax
import jax.numpy as jnp
import numpy as np

from demo.backend import Setting
from demo.with_numpyro import training as demo_training
from demo.with_numpyro.training import Training
from infomax_parts.backends import BOUND, CRITIC_WIDTHS
from numpyro_backend import ConcatCritic, TraceInfoMax_ELBO, diagnostics
from numpyro_backend.critics import score_all_pairs
from numpyro_backend.mutual_information import js


def start(images: np.ndarray, setting: Setting, *, alpha: float) -> Training:
    """The demo's training, under another objective."""

    def objective() -> TraceInfoMax_ELBO:
        critic = ConcatCritic(setting.pixels, setting.latent_dim, CRITIC_WIDTHS)
        return TraceInfoMax_ELBO(critic, alpha, bound=BOUND)

    return demo_training.start(objective, images, setting)


def critic_bound(training: Training, images: np.ndarray, z: np.ndarray) -> float:
    """What the trained critic makes of I(x; z)."""
    critic = training.objective.bind_critic(training.params)
    scores = score_all_pairs(critic, jnp.asarray(images), jnp.asarray(z))
    others = ~np.eye(len(scores), dtype=bool)
    return float(js(jnp.diagonal(scores), scores[others]).estimate)


def active_units(training: Training, images: np.ndarray) -> int:
    """Dimensions of the code whose posterior mean varies over the images."""
    key = jax.random.key(0)  # of what is drawn besides the means
    vae, rows = training.vae, jnp.arange(len(images))
    return diagnostics.active_units(
        key, training.params, vae.model, vae.guide, jnp.asarray(images), rows
    ).num_active
