"""Single steps of an objective on programs with arguments, and an objective with a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpyro
from jax import Array
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO

from tests.numpyro_backend.programs import Programs

Params = dict[str, Any]


def evaluate_shapes(objective: ELBO, case: Programs, params: Params | None = None) -> None:
    """One evaluation by shapes alone, from whatever parameters the programs start with."""
    jax.eval_shape(
        lambda key: objective.loss(key, params or {}, case.model, case.guide, *case.args),
        jax.random.key(0),
    )


class WithParameter(Trace_ELBO):
    """An objective with a parameter of its own, which it draws to 3."""

    def wrap_model(self, model: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            numpyro.param("own", 0.0)
            return model(*args, **kwargs)

        return wrapped

    def loss_with_mutable_state(
        self, rng_key: Array, param_map: Params, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        result = super().loss_with_mutable_state(rng_key, param_map, *args, **kwargs)
        return {**result, "loss": result["loss"] + (param_map["own"] - 3.0) ** 2}
