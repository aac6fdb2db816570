# SPDX-License-Identifier: MIT
"""The draw that a flow starts from: the guide's latents, and the context each was drawn in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpyro
from jax import Array
from jaxtyping import Bool, Float
from numpyro.distributions import Delta, Unit
from numpyro.primitives import CondIndepStackFrame, Messenger

from numpyro_backend._traces.recording import Message, joint_mask, undecorated
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
        is_point_mass: whether its density is that of other sites.
    """

    value: Array
    log_prob: Float[Array, "*batch"]
    event_dim: int
    frames: tuple[CondIndepStackFrame, ...]
    plates: tuple[Plate, ...]
    scale: Any
    mask: Bool[Array, "*batch"] | None
    is_point_mass: bool

    @property
    def batch_dim(self) -> int:
        """Its number of batch dims."""
        return self.value.ndim - self.event_dim


class InitialDraw(Messenger):
    """Records the guide's draw and hides the latents that flow, which are drawn again at the end.

    Args:
        sites: the latents that flow, or None for all.

    Attributes:
        flowing: the latents that flow, by name.
        given: the values of the others, by name.
        minibatches: the indices of every plate, by its name.
    """

    def __init__(self, sites: frozenset[str] | None) -> None:
        super().__init__()
        self.sites = sites
        self.flowing: dict[str, InitialSite] = {}
        self.given: dict[str, Array] = {}
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

    def check_densities(self, positions: Mapping[str, Array]) -> None:
        """Refuse point masses of more numbers than the guide has drawn for them.

        Args:
            positions: the unconstrained values of the latents that flow.

        Raises:
            ValueError: naming one of them and saying what to do.
        """
        masses = [name for name, site in self.flowing.items() if site.is_point_mass]
        if sum(positions[name].size for name in masses) > self._auxiliary_size:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{masses[0]}' is a point mass in the guide, which "
                "has no density for a flow to carry; give it one, as AutoNormal does, or name "
                "others in sites"
            )

    def process_message(self, msg: Message) -> None:
        """Hide a latent that flows from the handlers around the guide."""
        if msg["type"] != "sample":
            return
        if msg["is_observed"]:
            if not isinstance(undecorated(msg["fn"]), Unit):
                raise NotImplementedError(
                    f"TraceHamiltonian_ELBO: the guide observes '{msg['name']}', and the density "
                    f"of no latent: hide it by handlers.block(guide, hide=['{msg['name']}'])"
                )
        elif self._flows(msg):
            msg["stop"] = True
            if msg["value"] is None and msg["kwargs"]["rng_key"] is None:
                msg["kwargs"]["rng_key"] = numpyro.prng_key()

    def postprocess_message(self, msg: Message) -> None:
        """Keep what was drawn."""
        if msg["type"] == "plate":
            self.minibatches[msg["name"]] = msg["value"]
            self._full_sizes[msg["name"]] = msg["args"][0]
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if self._flows(msg):
            self._add(msg)
        elif not msg["infer"].get("is_auxiliary"):
            self.given[msg["name"]] = msg["value"]
        elif not _is_point_mass(msg):
            self._auxiliary_size += msg["value"].size

    def _flows(self, msg: Message) -> bool:
        if msg["infer"].get("is_auxiliary"):
            return False
        return self.sites is None or msg["name"] in self.sites

    def _add(self, msg: Message) -> None:
        fn, value = msg["fn"], msg["value"]
        if not fn.has_rsample:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{msg['name']}' is not reparameterised "
                f"({type(undecorated(fn)).__name__}), and only continuous latents drawn by rsample "
                "can flow: name others in sites"
            )
        density_arguments = (value, msg["intermediates"]) if msg["intermediates"] else (value,)
        self.flowing[msg["name"]] = InitialSite(
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
            is_point_mass=_is_point_mass(msg),
        )

    def _full_size(self, frame: CondIndepStackFrame) -> int:
        return self._full_sizes.get(frame.name, frame.size)


def _is_point_mass(msg: Message) -> bool:
    return isinstance(undecorated(msg["fn"]), Delta)
