# SPDX-License-Identifier: MIT
"""What an objective makes of a model and a guide in one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from jaxtyping import Bool, Float

Flow: TypeAlias = Literal["data", "density", "start", "force", "path"]
"""Data, log densities, where the flow starts, its first force, and where it ends."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of an objective.

    Attributes:
        loss: the loss in nats, with its gradient; on the device, which nothing has waited for.
        terms: what the loss is made of by name, in nats, without gradients.
        finite: by what has to be finite in a flow, one of :data:`Flow`, and by site: which rows
            are; empty where nothing flows.
        counts: by the names of a group that is masked, how many of its rows count.
        mutable_state: the values of NumPyro's mutable sites, those of the first particle.
    """

    loss: Float[Any, ""]
    terms: Mapping[str, Float[Any, ""]] = field(default_factory=dict)
    finite: Mapping[Flow, Mapping[str, Bool[Any, " rows"]]] = field(default_factory=dict)
    counts: Mapping[tuple[str, ...], Float[Any, ""]] = field(default_factory=dict)
    mutable_state: dict[str, Any] | None = None
