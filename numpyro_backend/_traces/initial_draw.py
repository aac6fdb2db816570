# SPDX-License-Identifier: MIT
"""The draw that a flow starts from: the guide's latents, and the context each was drawn in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpyro
from jax import Array
from jaxtyping import Bool, Float
from numpyro.distributions import Delta, Distribution, Unit
from numpyro.primitives import CondIndepStackFrame, Messenger

from numpyro_backend._traces.recording import Message, copied, joint_mask, undecorated
from pyro_infovae._core.sites import Plate


@dataclass(frozen=True)
class InitialSite:
    """A latent as the guide drew it.

    Attributes:
        value: the draw.
        log_prob: its log density under the guide, in its batch shape, 0 where masked, unscaled.
        event_dim: its number of event dims.
        frames: the guide's plates around it, as NumPyro passes them.
        plates: the same with their full sizes.
        scale: the guide's scale on it, or None.
        mask: the guide's mask on it, or None.
        fn: its distribution.
        infer: what the guide says of its inference.
        intermediates: what the draw was computed from, as NumPyro passes it.
    """

    value: Array
    log_prob: Float[Array, "*batch"]
    event_dim: int
    frames: tuple[CondIndepStackFrame, ...]
    plates: tuple[Plate, ...]
    scale: Any
    mask: Bool[Array, "*batch"] | None
    fn: Distribution
    infer: dict[str, Any]
    intermediates: Any

    @property
    def is_point_mass(self) -> bool:
        """Whether its density is that of other sites."""
        return _is_point_mass(self.fn)

    @property
    def batch_dim(self) -> int:
        """Its number of batch dims."""
        return self.value.ndim - self.event_dim


class DrawRecord(Messenger):
    """Records the guide's draw.

    Args:
        sites: the latents that flow, or None for all.
        moves_auxiliary: whether the auxiliary sites move that point masses are computed from.

    Attributes:
        flowing: the latents that flow, by name.
        auxiliary: the auxiliary sites that may move, by name.
        given: the values of the other latents, by name.
        unmoved: the values of all auxiliary sites that are no point masses, by name.
        minibatches: the indices of every plate, by its name.
        keys: the random keys that the guide asked for, in order.
        state: the guide's parameters and mutable state as they were before, by name.
    """

    def __init__(self, sites: frozenset[str] | None, *, moves_auxiliary: bool = False) -> None:
        super().__init__()
        self.sites = sites
        self.moves_auxiliary = moves_auxiliary
        self.flowing: dict[str, InitialSite] = {}
        self.auxiliary: dict[str, InitialSite] = {}
        self.given: dict[str, Array] = {}
        self.unmoved: dict[str, Array] = {}
        self.keys: list[Array] = []
        self.state: dict[str, Any] = {}
        self.minibatches: dict[str, Array] = {}
        self._auxiliary_size = 0
        self._full_sizes: dict[str, int] = {}

    def check(self) -> None:
        """Refuse a draw that nothing can flow from.

        Raises:
            ValueError: naming the site and saying what to do.
        """
        unknown = sorted((self.sites or frozenset()) - self.flowing.keys())
        if unknown:
            raise ValueError(
                f"TraceHamiltonian_ELBO: sites names '{unknown[0]}', which the guide does not "
                f"draw; it draws {[*self.flowing, *self.given]}"
            )
        if not self.flowing:
            raise ValueError(
                "TraceHamiltonian_ELBO: the guide draws no latent that could flow: use Trace_ELBO()"
            )

    def check_densities(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse point masses of more numbers than the guide has drawn for them.

        Args:
            shapes: those of the unconstrained values of the latents that flow.

        Raises:
            ValueError: naming one of them and saying what to do.
        """
        masses = [name for name, site in self.flowing.items() if site.is_point_mass]
        if sum(math.prod(shapes[name]) for name in masses) > self._auxiliary_size:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{masses[0]}' is a point mass in the guide, which "
                "has no density for a flow to carry; give it one, as AutoNormal does, or name "
                "others in sites"
            )

    def process_message(self, msg: Message) -> None:
        """Refuse what no flow can carry."""
        is_observed = msg["type"] == "sample" and msg["is_observed"]
        if is_observed and not isinstance(undecorated(msg["fn"]), Unit):
            raise NotImplementedError(
                f"TraceHamiltonian_ELBO: the guide observes '{msg['name']}', and the density "
                f"of no latent: hide it by handlers.block(guide, hide=['{msg['name']}'])"
            )

    def postprocess_message(self, msg: Message) -> None:
        """Keep what was drawn."""
        if msg["type"] == "plate":
            self.minibatches[msg["name"]] = msg["value"]
            self._full_sizes[msg["name"]] = msg["args"][0]
        elif msg["type"] == "prng_key":
            self.keys.append(msg["value"])
        elif msg["type"] in ("param", "mutable"):
            self.state.setdefault(msg["name"], copied(msg["value"]))
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if msg["infer"].get("is_auxiliary"):
            if not _is_point_mass(msg["fn"]):
                self._auxiliary_size += msg["value"].size
                self.unmoved[msg["name"]] = msg["value"]
            if self._moves(msg):
                self.auxiliary[msg["name"]] = self._site(msg)
        elif self._moves(msg):
            self.flowing[msg["name"]] = self._site(msg)
        else:
            self.given[msg["name"]] = msg["value"]

    def _moves(self, msg: Message) -> bool:
        if msg["infer"].get("is_auxiliary"):
            is_drawn = msg["fn"].has_rsample and not _is_point_mass(msg["fn"])
            return self.moves_auxiliary and is_drawn
        return self.sites is None or msg["name"] in self.sites

    def _site(self, msg: Message) -> InitialSite:
        fn, value = msg["fn"], msg["value"]
        if not fn.has_rsample:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{msg['name']}' is not reparameterised "
                f"({type(undecorated(fn)).__name__}), and only continuous latents drawn by rsample "
                "can flow: name others in sites"
            )
        density_arguments = (value, msg["intermediates"]) if msg["intermediates"] else (value,)
        return InitialSite(
            value=value,
            log_prob=fn.log_prob(*density_arguments),
            event_dim=fn.event_dim,
            frames=tuple(msg["cond_indep_stack"]),
            plates=tuple(
                Plate(frame.name, frame.dim, frame.size, self._full_size(frame))
                for frame in msg["cond_indep_stack"]
            ),
            scale=msg["scale"],
            mask=joint_mask(fn),
            fn=fn,
            infer=dict(msg["infer"]),
            intermediates=msg["intermediates"],
        )

    def _full_size(self, frame: CondIndepStackFrame) -> int:
        return self._full_sizes.get(frame.name, frame.size)


class InitialDraw(DrawRecord):
    """Records the guide's draw and hides what moves, which is drawn again at the end."""

    def process_message(self, msg: Message) -> None:
        """Hide a site that moves from the handlers around the guide."""
        super().process_message(msg)
        if msg["type"] != "sample" or msg["is_observed"] or not self._moves(msg):
            return
        msg["stop"] = True
        if msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            num_keys = len(self.keys)
            msg["kwargs"]["rng_key"] = numpyro.prng_key()
            del self.keys[num_keys:]  # not the guide's


def _is_point_mass(fn: Distribution) -> bool:
    return isinstance(undecorated(fn), Delta)
