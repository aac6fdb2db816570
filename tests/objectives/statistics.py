"""What is said of the mean of some samples: within four standard errors."""

import math

import numpy as np


def averages_to(samples: np.ndarray, expected: float) -> bool:
    return abs(float(samples.mean()) - expected) < 4 * standard_error(samples)


def standard_error(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1)) / math.sqrt(len(samples))
