# SPDX-License-Identifier: MIT
"""A base ELBO plus a penalty on the rows of its latents: what the penalised objectives share."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial, reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jaxtyping import Float, Key
from numpyro.infer.elbo import ELBO, TraceEnum_ELBO

from numpyro_backend._objectives.objective import Objective, TraceAnalyticKL_ELBO, evaluate_recorded
from numpyro_backend._traces.enumeration import check_funsor
from numpyro_backend._traces.recording import Recorder
from numpyro_backend.groups import Group, Rows
from pyro_infovae._core.evaluation import Evaluation
from pyro_infovae._core.objectives import check_scalar, warn_of_counts, warn_of_enumeration
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import (
    Selection,
    drawn_not_enumerated,
    groups_of,
    recorded,
    share_parents,
)
from pyro_infovae._core.sites import Run

Regularizer: TypeAlias = Callable[[Rows], Array]


class PenalisedELBO(Objective):
    r"""A base ELBO with a weight :math:`w` on the KL of some latents, plus a penalty on their rows.

    .. math::
        \mathrm{loss} = -E_q[\log p(x \mid z)] + w \, \mathrm{KL}(q(z \mid x) \| p(z))
        + \mathrm{penalty}

    in nats, summed over the data set. A subclass supplies ``kl_weight`` and ``penalty``.

    Args:
        sites: the latents, by name; None selects the reparameterised ones in plates of data.
        regularizer: a further penalty of the user's: a function of each group's
            :class:`~numpyro_backend.groups.Rows`, observed data included, to a scalar in nats.
        regularizer_weight: the factor on it.
        base: the ELBO below the penalty. Its particle settings are the objective's.
        num_particles: draws per datum of the default base.
        vectorize_particles: how the default base maps over its particles: True for
            :func:`jax.vmap`, False for :func:`jax.lax.map`, or a callable (function, keys).

    Raises:
        ValueError: when both ``base`` and particle settings are given.
        NotImplementedError: for a base whose runs cannot be recorded.
        ImportError: for ``TraceEnum_ELBO`` where funsor is not installed.
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
        super().__init__(
            num_particles=base.num_particles, vectorize_particles=base.vectorize_particles
        )
        self.can_infer_discrete = base.can_infer_discrete
        self.base = base
        self.sites = Selection.of(type(self).__name__, sites).names
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

    def wrap_guide(self, guide: Program) -> Program:
        """The guide with the parameters that the base declares, if it has any.

        Args:
            guide: the guide.
        """
        wrap = getattr(self.base, "wrap_guide", None)
        return guide if wrap is None else wrap(guide)

    def evaluate(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> Evaluation:
        """Evaluate the base on the recorded programs, and add the penalties on their rows."""
        selection = Selection(type(self).__name__, self.sites, self.num_particles)
        _, (base, runs) = recorded(
            partial(Recorder, selection, self.kl_weight),
            lambda recorder: evaluate_recorded(
                self.base,
                recorder,
                self.vectorize_particles_fn,
                rng_key,
                param_map,
                model,
                guide,
                args,
                kwargs,
            ),
        )
        if marked := drawn_not_enumerated(runs):
            warn_of_enumeration(marked)
        names = groups_of(runs)

        def penalties_of(part: Run, rng_key: Key[Array, ""]) -> dict[str, Float[Array, ""]]:
            keys = jax.random.split(rng_key, len(names))
            # Outside plates the particles are the rows, and stay together.
            held_by = [part if runs.model[group[0]].plates else runs for group in names]
            groups = [
                Group(group, held, key, param_map, model, args, kwargs)
                for group, held, key in zip(names, held_by, keys, strict=True)
            ]
            return self._penalties(groups)

        key = penalty_key(rng_key, self.num_particles)
        if self.num_particles > 1 and any(share_parents(group, runs) for group in names):
            particles = jax.tree.map(lambda leaf: leaf[:, None], runs)
            keys = jax.random.split(key, self.num_particles)
            values = jax.vmap(penalties_of)(particles, keys)
            penalties = jax.tree.map(lambda value: value.mean(0), values)
        else:
            penalties = penalties_of(runs, key)
        return replace(
            base,
            loss=reduce(operator.add, penalties.values(), base.loss),
            terms={**base.terms, **{n: stop_gradient(p) for n, p in penalties.items()}},
        )

    def _penalties(self, groups: list[Group]) -> dict[str, Float[Array, ""]]:
        """By name, in nats."""
        _count_rows(groups)
        penalties = {type(self).__name__: self.penalty(groups)}
        if self.regularizer is not None:
            values = jnp.stack([self._regularizer_of(group) for group in groups])
            penalties["regularizer"] = self.regularizer_weight * values.sum()
        return penalties

    def _regularizer_of(self, group: Group) -> Float[Array, ""]:
        assert self.regularizer is not None
        return check_scalar(self.regularizer(group.with_data(group.data)), group.names)


def _count_rows(groups: list[Group]) -> None:
    """Warn, once the step has run, of groups of which their masks leave less than two rows."""
    for group in groups:
        if (weights := group.posterior.weights) is not None:
            warn = partial(_warn_of_count, group.names)
            count = (weights > 0).sum()
            jax.lax.cond(count < 2, partial(jax.debug.callback, warn), lambda _: None, count)


def _warn_of_count(names: tuple[str, ...], count: Any) -> None:
    warn_of_counts({names: count})


def penalty_key(rng_key: Key[Array, ""], num_particles: int) -> Key[Array, ""]:
    """A key for the penalty that the base has no use for.

    The base splits ``rng_key`` into a key per particle, or into two for a single one; a split into
    more keys begins with the same.
    """
    return jax.random.split(rng_key, max(num_particles, 2) + 1)[-1]


def _check_can_be_recorded(base: ELBO) -> None:
    name = type(base).__name__
    if isinstance(base, TraceEnum_ELBO):
        check_funsor(name)
    for setting, default in (("multi_sample_guide", False), ("sum_sites", True)):
        if getattr(base, setting, default) is not default:
            raise NotImplementedError(
                f"Expected a base ELBO with {setting}={default}; got {name}({setting}="
                f"{not default}): leave it out"
            )
