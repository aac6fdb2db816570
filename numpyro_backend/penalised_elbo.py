# SPDX-License-Identifier: MIT
"""A base ELBO plus a penalty on the rows of its latents: what the penalised objectives share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import jax
from jax import Array
from jaxtyping import Float, Key
from numpyro.infer.elbo import ELBO, TraceEnum_ELBO

from numpyro_backend._objectives.base_elbo import TraceAnalyticKL_ELBO, score
from numpyro_backend._traces.runs import Program, Recorder
from numpyro_backend.groups import Group
from numpyro_backend.rows import Rows, group_by_plates
from numpyro_backend.sites import Selection

Regularizer: TypeAlias = Callable[[Rows], Array]


class PenalisedELBO(ELBO):
    r"""A base ELBO with a weight :math:`w` on the KL of some latents, plus a penalty on their rows.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z))
        + \mathrm{penalty}

    in nats, summed over the data set. A subclass supplies ``kl_weight`` and ``penalty``.

    Args:
        sites: the latents, by name; None selects every reparameterised latent in plates.
        regularizer: a further penalty of the user's: a function of each group's
            :class:`~numpyro_backend.rows.Rows`, observed data included, to a scalar in nats.
        regularizer_weight: the factor on it.
        base: the ELBO below the penalty. Its particle settings are the objective's.
        num_particles: draws per datum of the default base.
        vectorize_particles: how the default base maps over its particles: True for
            :func:`jax.vmap`, False for :func:`jax.lax.map`, or a callable (function, keys).

    Raises:
        ValueError: when both ``base`` and particle settings are given.
        NotImplementedError: for a base whose runs cannot be recorded.
    """

    def __init__(
        self,
        *,
        sites: Iterable[str] | None = None,
        regularizer: Regularizer | None = None,
        regularizer_weight: float = 1.0,
        base: ELBO | None = None,
        num_particles: int = 1,
        vectorize_particles: bool | Callable[..., Any] = True,
    ) -> None:
        if base is None:
            base = TraceAnalyticKL_ELBO(
                num_particles=num_particles, vectorize_particles=vectorize_particles
            )
        elif (num_particles, vectorize_particles) != (1, True):
            raise ValueError(
                f"Expected particle settings in base; got {type(self).__name__}(base=..., "
                f"num_particles={num_particles}, vectorize_particles={vectorize_particles}): "
                f"pass them to {type(base).__name__}(...)"
            )
        _check_can_be_recorded(base)
        if isinstance(sites, str):
            sites = (sites,)
        super().__init__(
            num_particles=base.num_particles, vectorize_particles=base.vectorize_particles
        )
        self.can_infer_discrete = base.can_infer_discrete
        self.base = base
        self.sites = None if sites is None else frozenset(sites)
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight

    @property
    @abstractmethod
    def kl_weight(self) -> float:
        """The factor on the KL of the selected latents."""

    @abstractmethod
    def penalty(self, groups: list[Group]) -> Float[Array, ""]:
        """The penalty in nats: a differentiable scalar."""

    def wrap_model(self, model: Program) -> Program:
        """The model with the parameters that the base declares, if it has any.

        Args:
            model: the model.
        """
        wrap = getattr(self.base, "wrap_model", None)
        return model if wrap is None else wrap(model)

    def loss_with_mutable_state(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in nats and the values of the mutable sites, those of the first particle.

        Args:
            rng_key: the key to draw with.
            param_map: the values of parameters and mutable sites, by name.
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        selection = Selection(type(self).__name__, self.sites, self.num_particles)
        recorder = Recorder(selection, self.kl_weight)
        scored = score(
            self.base,
            recorder,
            self.vectorize_particles_fn,
            rng_key,
            param_map,
            model,
            guide,
            args,
            kwargs,
        )
        names = group_by_plates(scored.runs.model, scored.runs.selected)
        keys = jax.random.split(penalty_key(rng_key, self.num_particles), len(names))
        groups = [
            Group(group, scored.runs, key, param_map, model, args, kwargs)
            for group, key in zip(names, keys, strict=True)
        ]
        loss = scored.loss + self._penalties(groups)
        return {"loss": loss, "mutable_state": scored.mutable_state}

    def _penalties(self, groups: list[Group]) -> Float[Array, ""]:
        penalty = self.penalty(groups)
        if self.regularizer is not None:
            for group in groups:
                penalty = penalty + self.regularizer_weight * self._regularize(group)
        return penalty

    def _regularize(self, group: Group) -> Float[Array, ""]:
        assert self.regularizer is not None
        value = self.regularizer(replace(group.posterior, data=group.data))
        if value.shape != ():
            raise ValueError(
                f"Expected regularizer(rows) to be a scalar; got shape {value.shape} for "
                f"the rows of {list(group.names)}: sum or average over the rows"
            )
        return value


def penalty_key(rng_key: Key[Array, ""], num_particles: int) -> Key[Array, ""]:
    """A key for the penalty that the base has no use for.

    The base splits ``rng_key`` into a key per particle, or into two for a single one; a split into
    more keys begins with the same.
    """
    return jax.random.split(rng_key, max(num_particles, 2) + 1)[-1]


def _check_can_be_recorded(base: ELBO) -> None:
    name = type(base).__name__
    if isinstance(base, TraceEnum_ELBO):
        raise NotImplementedError(
            f"Expected a base ELBO that draws every latent; got {name}, which sums latents out: "
            "use one such as TraceGraph_ELBO()"
        )
    for setting, default in (("multi_sample_guide", False), ("sum_sites", True)):
        if getattr(base, setting, default) is not default:
            raise NotImplementedError(
                f"Expected a base ELBO with {setting}={default}; got {name}({setting}="
                f"{not default}): leave it out"
            )
