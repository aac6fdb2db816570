# SPDX-License-Identifier: MIT
"""A model that also declares the parameters of a critic, for SVI to find and train them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpyro
from jax import Array

from numpyro_backend._objectives.critic_parameters import CriticParameters
from numpyro_backend._traces.recording import Record
from numpyro_backend.groups import Group
from pyro_infovae._core.programs import Program
from pyro_infovae._core.rows import Selection, groups_of
from pyro_infovae._core.sites import Run, Site

CriticInputs: TypeAlias = Callable[[list[Group]], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)  # hashed as itself, as a function is
class ModelWithCritic:
    """A model that declares the parameters of a critic, a single pytree, once it has run.

    Attributes:
        fn: the model.
        name: the name of the parameters.
        critic: draws them.
        selection: the latents that the critic sees.
        inputs: the rows of x and z of the critic, in the groups of these latents.
    """

    fn: Program
    name: str
    critic: CriticParameters
    selection: Selection
    inputs: CriticInputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; where the parameters have no value yet, one is drawn."""
        record = Record()

        def draw(rng_key: Array | None) -> Any:
            key = jax.random.key(0) if rng_key is None else rng_key
            return self.critic.init(key, lambda: self.inputs(self._groups(record, args, kwargs)))

        with record:
            value = self.fn(*args, **kwargs)
        numpyro.param(self.name, draw)  # after the model, whose own keys stay as they are
        return value

    def _groups(self, record: Record, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Group]:
        """The selected latents as the model alone knows them."""
        sites = OrderedDict(
            (name, _as_drawn_by_a_guide(site)) for name, site in record.sites.items()
        )
        run = Run(sites, sites, record.indices, selected=self.selection.select(sites, sites))
        runs = jax.tree.map(lambda leaf: leaf[None], run)
        return [
            Group(names, runs, jax.random.key(0), {}, self.fn, args, kwargs)
            for names in groups_of(run)
        ]


def _as_drawn_by_a_guide(site: Site) -> Site:
    """A site whose prior need not be reparameterised, as a mixture is not, if its guide is."""
    return replace(site, is_reparameterised=jnp.issubdtype(site.value.dtype, jnp.inexact))
