# SPDX-License-Identifier: MIT
"""The InfoMax objective: an ELBO with the mutual information of data and code, by a critic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jaxtyping import Float, Shaped
from numpyro.infer.elbo import ELBO

from numpyro_backend._objectives.critic_parameters import check_params, critic_parameters
from numpyro_backend._objectives.model_with_critic import ModelWithCritic
from numpyro_backend._traces.critic_data import DataSource, critic_data, only_group
from numpyro_backend._traces.runs import Program
from numpyro_backend.critics import Critic
from numpyro_backend.groups import Group
from numpyro_backend.mutual_information import Bound, get_bound
from numpyro_backend.negatives import SCORERS, bound_information, by_particle
from numpyro_backend.penalised_elbo import PenalisedELBO, Regularizer
from numpyro_backend.sites import Selection

FEW_ROWS = 64
"""Below this many rows the estimate of mutual information is poor."""


class TraceInfoMax_ELBO(PenalisedELBO):
    r"""The InfoMax-VAE objective for any model and guide.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)] + \beta \, \mathrm{KL}(q(z \mid x) \| p(z))
        - N \alpha \, \hat I(x; z)

    in nats, summed over the data set of :math:`N` data. A critic :math:`T(x, z)` estimates the
    mutual information; with the default bound

    .. math:: \hat I = \mathrm{mean}\, T(x, z) - \mathrm{mean}\, e^{T(x, \tilde z) - 1}

    where :math:`\tilde z` is the code of another datum. Critic and guide both maximise it: the
    critic's gradient is that of :math:`-\hat I`, whatever :math:`\alpha` and :math:`N`, and the
    guide's is :math:`N \alpha` times it. With :math:`\alpha = 0` the critic only monitors.

    The critic's parameters are one site of the model, ``"critic$params"``, so one ``SVI`` trains
    everything: that of :mod:`numpyro_backend`, or NumPyro's with ``elbo.wrap_model(model)`` for its
    model. An optimiser that is told the name can give the critic a learning rate of its own:
    ``optax.multi_transform({True: optax.adam(1e-4), False: optax.adam(1e-3)}, lambda params:
    {name: name == "critic$params" for name in params})``.

    Args:
        critic: a network from data (rows, \*event) and codes (rows, features) to scores (rows,):
            one of :mod:`numpyro_backend.critics`, a module of flax.linen, flax.nnx or equinox, or
            an object with ``init(rng_key)`` and ``bind(params)``.
        alpha: the weight :math:`\alpha \ge 0` of the mutual information.
        beta: the weight :math:`\beta \ge 0` of the KL.
        bound: ``"nwj"``, ``"dv"``, ``"infonce"``, ``"js"`` or ``"smile"``, see
            :mod:`numpyro_backend.mutual_information`, or a function like them.
        negatives: ``"shift"`` pairs each datum with one other code of its particle, ``"all"`` with
            every other.
        data: the data the critic sees: the name of an observed site, or a function of the model's
            arguments to an array (data, \*event). By default the observed site in the latents'
            plates.
        sites: the latents, by name, in one stack of plates. By default every reparameterised
            latent in plates.
        name: the critic's name among the parameters, before ``"$params"``.
        regularizer: a further penalty of yours: a function of the group's
            :class:`~numpyro_backend.rows.Rows` (latents, data, weights, N) to a scalar in nats.
        regularizer_weight: the factor on it.
        base: the ELBO that the penalty is added to; by default the closed-form KL where it is
            valid, a sampled one otherwise. Its particle settings are the objective's.
        num_particles: draws per datum of the default base; their scores are pooled.
        vectorize_particles: how the default base maps over its particles: True for
            :func:`jax.vmap`, False for :func:`jax.lax.map`, or a callable (function, keys).

    Raises:
        ValueError: for negative weights, an unknown bound or kind of negatives, a critic with state
            beside its parameters; when used, for a model that does not declare the critic's
            parameters, scores of the wrong shape, data that cannot be found, or latents in several
            stacks of plates.
        TypeError: for a critic of no known library.

    References:
        Rezaabad, Vishwanath, *Learning Representations by Maximizing Mutual Information in
        Variational Autoencoders*, arXiv 1912.13361.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> from numpyro_backend import SVI, TraceInfoMax_ELBO
        >>> from numpyro_backend.critics import ConcatCritic
        >>> def model(x):
        ...     with numpyro.plate("data", len(x)):
        ...         z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ...         numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     loc = numpyro.param("loc", jnp.zeros(2))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))
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
        if not (alpha >= 0 and beta >= 0):
            raise ValueError(f"Expected alpha >= 0 and beta >= 0; got alpha={alpha}, beta={beta}")
        if negatives not in SCORERS:
            raise ValueError(f"Expected negatives to be one of {list(SCORERS)}; got {negatives!r}")
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
            inputs=lambda groups: self._inputs(only_group(groups, asker=type(self).__name__)),
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
        group = only_group(groups, asker=type(self).__name__)
        rows = group.posterior
        assert rows.num_data is not None
        arrange = partial(by_particle, num_data=rows.num_data)
        self._warn_if_few(len(rows.values))
        weight = rows.total * self.alpha
        inputs = self._inputs(group)
        critic = self._checked_critic(group.params, inputs)
        x, z = (arrange(_scale_gradient(array, weight)) for array in inputs)
        scores = SCORERS[self.negatives](group.rng_key, critic, x, z)
        weights = None if rows.weights is None else arrange(rows.weights)
        information = bound_information(self.bound, scores, weights)
        surrogate = information.surrogate
        return stop_gradient(surrogate) - surrogate - weight * stop_gradient(information.estimate)

    @property
    def _params_name(self) -> str:
        return f"{self.name}$params"

    def _inputs(
        self, group: Group
    ) -> tuple[Shaped[Array, " rows *event"], Float[Array, "rows features"]]:
        return critic_data(self.data, group, asker=type(self).__name__), group.posterior.values

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
        if rows < FEW_ROWS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{type(self).__name__} estimates mutual information from {rows} rows, which is "
                f"poor below {FEW_ROWS}: use a larger minibatch",
                stacklevel=2,
            )


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
