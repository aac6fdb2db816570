"""The inverse temperatures of each schedule, ten steps from β₀ = 0.3."""

import matplotlib.pyplot as plt
import torch

from pyro_infovae.tempering import free_inverse_temperatures, inverse_temperatures

BETA_0, STEPS = 0.3, 10

figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name in ("quadratic", "none", "constant"):
    axes.plot(inverse_temperatures(BETA_0, STEPS, name), marker=".", label=name)
factors = torch.full((STEPS,), BETA_0 ** (0.5 / STEPS))
axes.plot(free_inverse_temperatures(factors), marker=".", label="free, as it starts")
axes.set(xlabel="leapfrog steps done", ylabel="β")
axes.legend()
