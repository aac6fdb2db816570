# SPDX-License-Identifier: MIT
"""A guide that also declares the parameters of its flow, for SVI to find and train them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpyro_backend._traces.annealed_guide import Settings, map_of
from numpyro_backend._traces.initial_draw import DrawRecord
from pyro_infovae._core.programs import Program
from pyro_infovae._core.step_scale import scale_of


@dataclass(frozen=True, eq=False)  # hashed as itself, as a function is
class GuideWithFlow:
    """A guide that declares what the flow of its sites learns, once it has run.

    Attributes:
        fn: the guide.
        settings: declares them.
        sites: the latents that flow, or None for all.
    """

    fn: Program
    settings: Settings
    sites: frozenset[str] | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide, and declare the parameters and the state."""
        draw = DrawRecord(self.sites, moves_auxiliary=True)
        with draw:
            value = self.fn(*args, **kwargs)
        guide_map = map_of(self.fn, args, kwargs, draw, self.settings.options)
        scale = scale_of(self.settings.monitor()["state"])
        self.settings(guide_map.start, guide_map.event_dims, scale)
        return value


def without_flow(guide: Program) -> Program:
    """The user's own guide."""
    while isinstance(guide, GuideWithFlow):
        guide = guide.fn
    return guide
