"""What is asked of a trained critic of Pyro's."""

import numpy as np
import torch

from demo.with_pyro.training import Training
from pyro_infovae.critics import score_all_pairs
from pyro_infovae.mutual_information import js


@torch.no_grad()
def critic_bound(training: Training, images: np.ndarray, z: np.ndarray) -> float:
    """What it makes of I(x; z), in nats, from all pairs of images and codes."""
    rows = (torch.as_tensor(array, device=training.device) for array in (images, z))
    scores = score_all_pairs(training.objective.critic, *rows)
    others = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return float(js(scores.diagonal(), scores[others]).estimate)
