# SPDX-License-Identifier: MIT
"""The InfoMax objective: an ELBO with the mutual information of data and code, by a critic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jaxtyping import Float, Shaped
from numpyro.infer.elbo import ELBO

from numpyro_backend._arrays.negatives import SCORERS, bound_information, by_particle
from numpyro_backend._objectives.critic_parameters import check_params, critic_parameters
from numpyro_backend._objectives.model_with_critic import ModelWithCritic
from numpyro_backend._traces.critic_data import DataSource, critic_rows, only_group
from numpyro_backend.critics import Critic
from numpyro_backend.groups import Group, Rows
from numpyro_backend.mutual_information import Bound, get_bound
from numpyro_backend.penalised_elbo import PenalisedELBO, Regularizer
from pyro_infovae._core import objectives
from pyro_infovae._core.docstrings import documented
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import Selection


@documented(
    objectives.INFOMAX,
    storage=(
        'The critic\'s parameters are one site of the model, ``"critic$params"``, so one ``SVI``\n'
        "trains everything: that of :mod:`numpyro_backend`, or NumPyro's with\n"
        "``elbo.wrap_model(model)`` for its model. An optimiser that is told the name can give\n"
        "the critic a learning rate of its own: ``optax.multi_transform({True: optax.adam(1e-4),\n"
        'False: optax.adam(1e-3)}, lambda params: {name: name == "critic$params" for name in\n'
        "params})``."
    ),
    critic=(
        "a network from data (rows, \\*event) and codes (rows, features) to scores (rows,):\n"
        "        one of :mod:`numpyro_backend.critics`, a module of flax.linen, flax.nnx or\n"
        "        equinox, or an object with ``init(rng_key)`` and ``bind(params)``; without state\n"
        "        of its own."
    ),
    named='the critic\'s name among the parameters, before ``"$params"``.',
)
class TraceInfoMax_ELBO(PenalisedELBO):
    """The InfoMax-VAE objective for any model and guide.

    Example:
        $trained
        >>> from numpyro_backend import SVI, TraceInfoMax_ELBO
        >>> from numpyro_backend.critics import ConcatCritic
        >>> elbo = TraceInfoMax_ELBO(ConcatCritic(x_dim=2, z_dim=2, hidden=(16,)))
        >>> svi = SVI(model, guide, numpyro.optim.Adam(1e-2), loss=elbo)
        >>> x = jax.random.normal(jax.random.key(0), (64, 2))
        >>> result = svi.run(jax.random.key(1), 5, x, progress_bar=False)
        >>> result.losses.shape
        (5,)
        >>> elbo.bind_critic(result.params)(x, x).shape
        (64,)
    """

    def __init__(
        self,
        critic: Any,
        alpha: float = 1.0,
        beta: float = 1.0,
        *,
        bound: str | Bound = "nwj",
        negatives: str = "shift",
        data: DataSource = None,
        sites: Iterable[str] | None = None,
        name: str = "critic",
        regularizer: Regularizer | None = None,
        regularizer_weight: float = 1.0,
        base: ELBO | None = None,
        num_particles: int = 1,
        vectorize_particles: bool | Callable[..., Any] = True,
    ) -> None:
        super().__init__(
            sites=sites,
            regularizer=regularizer,
            regularizer_weight=regularizer_weight,
            base=base,
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
        )
        objectives.check_infomax(alpha, beta, negatives, SCORERS)
        self.critic = critic
        self.alpha = alpha
        self.beta = beta
        self.bound = get_bound(bound)
        self.negatives = negatives
        self.data = data
        self.name = name
        self._parameters = critic_parameters(critic)
        self._has_warned = False

    @property
    def kl_weight(self) -> float:
        """The factor on the KL of the selected latents: beta."""
        return self.beta

    def wrap_model(self, model: Program) -> Program:
        """The model with the parameters that the critic and the base declare.

        Args:
            model: the model; where it has them already, it is returned as it is.
        """
        if isinstance(model, ModelWithCritic) and model.critic is self._parameters:
            return model
        return ModelWithCritic(
            super().wrap_model(model),
            name=self._params_name,
            critic=self._parameters,
            selection=Selection(type(self).__name__, self.sites, self.num_particles),
            inputs=lambda groups: self._inputs(only_group(groups, caller=type(self).__name__)),
        )

    def bind_critic(self, params: dict[str, Any]) -> Critic:
        """The critic with its parameters: a function critic(x, z).

        Args:
            params: the values of parameters by name, such as ``svi.get_params(state)``.

        Raises:
            ValueError: when the critic's are not among them.
        """
        if self._params_name not in params:
            raise ValueError(
                f"{type(self).__name__}: Expected the critic's parameters '{self._params_name}'; "
                f"got {list(params)}: use numpyro_backend.SVI, or pass elbo.wrap_model(model) for "
                "the model"
            )
        return self._parameters.bind(params[self._params_name])

    def penalty(self, groups: list[Group]) -> Float[Array, ""]:
        """-N alpha Î in nats, with the gradient of -Î for the critic."""
        group = only_group(groups, caller=type(self).__name__)
        rows = self._rows(group)
        assert rows.batch_size is not None
        if rows.batch_size == 1:
            objectives.warn_of_single_row(type(self).__name__, group.names)
            return jnp.zeros((), rows.values.dtype)
        arrange = partial(by_particle, batch_size=rows.batch_size)
        self._warn_if_few(len(rows.values))
        weight = rows.num_data * self.alpha
        inputs = rows.data["x"], rows.values
        critic = self._checked_critic(group.params, inputs)
        x, z = (arrange(_scale_gradient(array, weight)) for array in inputs)
        weights = None if rows.weights is None else arrange(rows.weights)
        scores = SCORERS[self.negatives](group.rng_key, critic, x, z, weights)
        information = bound_information(self.bound, scores, weights)
        surrogate = information.surrogate
        return stop_gradient(surrogate) - surrogate - weight * stop_gradient(information.estimate)

    @property
    def _params_name(self) -> str:
        return f"{self.name}$params"

    def _inputs(
        self, group: Group
    ) -> tuple[Shaped[Array, " rows *event"], Float[Array, "rows features"]]:
        rows = self._rows(group)
        return rows.data["x"], rows.values

    def _rows(self, group: Group) -> Rows:
        return critic_rows(self.data, group, caller=type(self).__name__)

    def _checked_critic(self, params: dict[str, Any], inputs: tuple[Array, Array]) -> Critic:
        critic = self.bind_critic(params)
        expected = jax.eval_shape(
            lambda rng_key, *inputs: self._parameters.init(rng_key, lambda: inputs),
            jax.random.key(0),
            *inputs,
        )
        check_params(expected, params[self._params_name], name=self._params_name)
        return critic

    def _warn_if_few(self, rows: int) -> None:
        if rows < objectives.FEW_ROWS and not self._has_warned:
            self._has_warned = True
            objectives.warn_of_few_rows(type(self).__name__, rows)


def _scale_gradient(array: Array, factor: float) -> Array:
    """The array itself, with its gradient multiplied: exact forward, whatever the factor."""
    if factor == 0 or not jnp.issubdtype(array.dtype, jnp.inexact):
        return stop_gradient(array)
    return _with_scaled_tangent(array, factor)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _with_scaled_tangent(array: Array, factor: float) -> Array:
    return array


@_with_scaled_tangent.defjvp
def _scale_tangent(
    factor: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    return primals[0], factor * tangents[0]
