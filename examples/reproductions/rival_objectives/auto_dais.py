"""NumPyro's AutoDAIS, whose weights and draws are to be had from the guide itself."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoDAIS

from halves import with_numpyro
from rival_objectives.posteriors import MAX_STEP_SIZE, STEP_SIZE


def guide(model: Callable[[], None], num_steps: int, **start: Any) -> AutoDAIS:
    """With the step sizes of ours."""
    return AutoDAIS(model, K=num_steps, eta_init=STEP_SIZE, eta_max=MAX_STEP_SIZE, **start)


class Fitting(with_numpyro.Fitting):
    """A fit of this guide."""

    def log_weights(self, count: int) -> np.ndarray:
        """Log importance weights of draws, over all that the guide draws on the way."""
        elbo = Trace_ELBO()

        def log_weight(key: Array, params: dict[str, Array]) -> Array:
            return -elbo.loss(key, params, self.svi.model, self.svi.guide)

        return np.asarray(self._vmapped(log_weight, count))

    def draws(self, count: int) -> dict[str, np.ndarray]:
        """Draws of the trained guide."""
        return jax.device_get(self._vmapped(self.guide.sample_posterior, count))

    def _vmapped(self, function: Callable[..., Any], count: int) -> Any:
        keys = jax.random.split(self.next_key(), count)
        return jax.jit(jax.vmap(function, in_axes=(0, None)))(keys, self.params)
