# SPDX-License-Identifier: MIT
"""A handler that records the sites of a program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import jax.numpy as jnp
from jax import Array
from numpyro.primitives import Messenger

from numpyro_backend._traces.row_weights import mask_of, masks_features
from numpyro_backend.rows import normal_parameters
from numpyro_backend.sites import Plate, Site, Sites, undecorated

Message: TypeAlias = dict[str, Any]


class Record(Messenger):
    """Records one run of a program.

    Attributes:
        sites: its sample sites by name, in order.
        drawn: the sample site that is being drawn, without its value.
        indices: the minibatch of every subsampled plate, by its name.
        mutable: the values of its mutable sites, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: Sites = OrderedDict()
        self.indices: dict[str, Array] = {}
        self.mutable: dict[str, Any] = {}
        self._full_sizes: dict[str, int] = {}
        self.drawn: dict[str, Site] = {}

    def process_message(self, msg: Message) -> None:
        """Note what is about to be drawn, before an objective touches it."""
        if msg["type"] == "sample":
            self.drawn[msg["name"]] = _site(msg, self._full_sizes)

    def postprocess_message(self, msg: Message) -> None:
        """Keep what was drawn."""
        if msg["type"] == "sample":
            site = replace(self.drawn.pop(msg["name"]), value=jnp.asarray(msg["value"]))
            self.sites[msg["name"]] = site
        elif msg["type"] == "plate":
            full_size, size = msg["args"][0], len(msg["value"])
            self._full_sizes[msg["name"]] = full_size
            if size != full_size:
                self.indices[msg["name"]] = msg["value"]
        elif msg["type"] == "mutable":
            self.mutable[msg["name"]] = msg["value"]


def _site(msg: Message, full_sizes: Mapping[str, int]) -> Site:
    """A sample message as it is before an objective touches it; a value not drawn yet is None."""
    fn = msg["fn"]
    frames = sorted(msg["cond_indep_stack"], key=lambda frame: frame.dim)
    return Site(
        value=msg["value"],
        mask=mask_of(fn),
        normal=normal_parameters(fn),
        name=msg["name"],
        plates=tuple(
            Plate(frame.name, frame.dim, frame.size, full_sizes.get(frame.name, frame.size))
            for frame in frames
        ),
        event_dim=fn.event_dim,
        kind=type(undecorated(fn)).__name__,
        is_observed=msg["is_observed"],
        is_auxiliary=msg["infer"].get("is_auxiliary", False),
        is_reparameterised=fn.has_rsample,
        masks_features=masks_features(fn),
    )
