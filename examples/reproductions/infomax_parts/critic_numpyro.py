"""What is asked of a trained critic of NumPyro's."""

import jax.numpy as jnp
import numpy as np

from demo.with_numpyro.training import Training
from numpyro_backend.critics import score_all_pairs
from numpyro_backend.mutual_information import js


def critic_bound(training: Training, images: np.ndarray, z: np.ndarray) -> float:
    """What it makes of I(x; z), in nats, from all pairs of images and codes."""
    critic = training.objective.bind_critic(training.params)
    scores = score_all_pairs(critic, jnp.asarray(images), jnp.asarray(z))
    others = ~np.eye(len(scores), dtype=bool)
    return float(js(jnp.diagonal(scores), scores[others]).estimate)
