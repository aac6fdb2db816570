# SPDX-License-Identifier: MIT
"""NumPyro's SVI for objectives that have parameters of their own."""

from __future__ import annotations

from typing import Any

import jax
import numpyro.infer
from numpyro.infer.elbo import ELBO

from numpyro_backend._objectives.annealed_parameters import MONITOR
from pyro_infovae._core import step_scale
from pyro_infovae._core.programs import Program


class SVI(numpyro.infer.SVI):
    """:class:`numpyro.infer.SVI` that also trains the parameters of the objective.

    NumPyro initialises the parameters that model and guide declare, so those of an objective are
    declared by ``loss.wrap_model(model)`` and ``loss.wrap_guide(guide)``, which this class calls.
    For any other objective it is NumPyro's own.

    Args:
        model: the model.
        guide: the guide.
        optim: the optimiser.
        loss: the objective.
        **static_kwargs: keyword arguments of model and guide that stay the same.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import numpyro_backend
        >>> def model():
        ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> def guide():
        ...     numpyro.sample("z", dist.Normal(numpyro.param("loc", 1.0), 1.0))
        >>> loss = numpyro.infer.Trace_ELBO()
        >>> svi = numpyro_backend.SVI(model, guide, numpyro.optim.Adam(0.1), loss)
        >>> svi.run(jax.random.key(0), 3, progress_bar=False).losses.shape
        (3,)
    """

    def __init__(
        self, model: Program, guide: Program, optim: Any, loss: ELBO, **static_kwargs: Any
    ) -> None:
        programs = _wrapped(loss, "wrap_model", model), _wrapped(loss, "wrap_guide", guide)
        super().__init__(*programs, optim, loss, **static_kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """NumPyro's ``run``, which tells at its end of a flow that did harm on the way.

        Args:
            *args: as of NumPyro's.
            **kwargs: as of NumPyro's.
        """
        result = super().run(*args, **kwargs)
        for name, value in (result.state.mutable_state or {}).items():
            is_known = name.endswith(MONITOR) and not isinstance(value["state"], jax.core.Tracer)
            if is_known and step_scale.did_harm(value["state"]):
                step_scale.warn_of_harm(stacklevel=3)
        return result

    def evaluate(self, svi_state: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss at a state, with its mutable sites as they are, which NumPyro starts afresh.

        Args:
            svi_state: the state.
            *args: positional arguments of both programs.
            **kwargs: keyword arguments of both.
        """
        _, rng_key = jax.random.split(svi_state.rng_key)
        params = {**self.get_params(svi_state), **(svi_state.mutable_state or {})}
        kwargs = {**kwargs, **self.static_kwargs}
        return self.loss.loss(rng_key, params, self.model, self.guide, *args, **kwargs)


def _wrapped(loss: ELBO, wrap: str, program: Program) -> Program:
    wrapped: Program = getattr(loss, wrap, lambda program: program)(program)
    return wrapped
