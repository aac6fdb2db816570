# SPDX-License-Identifier: MIT
"""The draw that a flow starts from: the guide's latents, and the context each was drawn in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from pyro.distributions import Delta
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_infovae._traces.recording import is_data, is_latent, undecorated


@dataclass(frozen=True)
class InitialSite:
    """A latent as the guide drew it.

    Attributes:
        value: the draw.
        log_prob: its log density under the guide, in its batch shape, without scale or mask.
        event_dim: its number of event dims.
        plates: the guide's plates around it.
        scale: the guide's scale on it.
        mask: the guide's mask on it.
        is_point_mass: whether its density is that of other sites.
    """

    value: Tensor
    log_prob: Float[Tensor, ...]
    event_dim: int
    plates: tuple[CondIndepStackFrame, ...]
    scale: Any
    mask: Any
    is_point_mass: bool

    @property
    def batch_dim(self) -> int:
        """Its number of batch dims."""
        return self.value.dim() - self.event_dim


class InitialDraw(Messenger):
    """Records the guide's draw and hides the latents that flow, which are drawn again at the end.

    They are marked as auxiliary and not traced, rather than blocked, so that plates around the
    guide still broadcast them.

    Args:
        sites: the latents that flow, or None for all.
    """

    def __init__(self, sites: frozenset[str] | None) -> None:
        super().__init__()
        self.sites = sites
        self.flowing: dict[str, InitialSite] = {}
        self.others: dict[str, Tensor] = {}
        self.minibatches: dict[str, Tensor] = {}
        self.outer: tuple[CondIndepStackFrame, ...] = ()
        self._auxiliary: dict[str, int] = {}  # the size of each, by the name of its latent
        self._context: dict[str, tuple[Any, Any, Any]] = {}

    @property
    def given(self) -> dict[str, Tensor]:
        """What a run of the model is given besides the latents that flow."""
        return {**self.others, **self.minibatches}

    def check(self) -> None:
        """Refuse a draw that nothing can flow from.

        Raises:
            ValueError: naming the site and saying what to do.
        """
        unknown = sorted((self.sites or frozenset()) - self.flowing.keys())
        if unknown:
            raise ValueError(
                f"TraceHamiltonian_ELBO: sites names '{unknown[0]}', which the guide does not "
                f"draw; it draws {[*self.flowing, *self.others]}"
            )
        if not self.flowing:
            raise ValueError(
                "TraceHamiltonian_ELBO: the guide draws no latent that could flow: use Trace_ELBO()"
            )

    def check_densities(self, positions: Mapping[str, Tensor]) -> None:
        """Refuse point masses of more numbers than the guide has drawn for them.

        Args:
            positions: the unconstrained values of the latents that flow.

        Raises:
            ValueError: naming one of them and saying what to do.
        """
        own = self._auxiliary.keys() & (self.flowing.keys() | self.others.keys())
        drawn = sum(size for name, size in self._auxiliary.items() if name not in own)
        masses = [n for n, site in self.flowing.items() if site.is_point_mass and n not in own]
        if sum(positions[name].numel() for name in masses) > drawn:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{masses[0]}' is a point mass in the guide, which "
                "has no density for a flow to carry; give it one, as AutoNormal does, or name "
                "others in sites"
            )

    def _pyro_sample(self, msg: Message) -> None:
        if is_data(msg):
            raise NotImplementedError(
                f"TraceHamiltonian_ELBO: the guide observes '{msg['name']}', and the density of no "
                f"latent: hide it by poutine.block(guide, hide=['{msg['name']}'])"
            )
        if not is_latent(msg):
            return
        self._context[msg["name"]] = msg["cond_indep_stack"], msg["scale"], msg["mask"]
        if self._flows(msg):
            msg["infer"] = {**msg["infer"], "is_auxiliary": True, "_do_not_trace": True}

    def _pyro_post_sample(self, msg: Message) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            self.minibatches[name] = msg["value"]
        elif not is_latent(msg):
            return
        elif msg["infer"].get("_do_not_trace"):
            self._add(msg, *self._context[name])
        elif msg["infer"].get("is_auxiliary"):
            if not isinstance(undecorated(msg["fn"]), Delta):
                self._auxiliary[name.removesuffix("_unconstrained")] = msg["value"].numel()
        else:
            self.others[name] = msg["value"]

    def _flows(self, msg: Message) -> bool:
        if msg["infer"].get("is_auxiliary"):
            return False
        return self.sites is None or msg["name"] in self.sites

    def _add(
        self, msg: Message, plates: tuple[CondIndepStackFrame, ...], scale: Any, mask: Any
    ) -> None:
        fn = msg["fn"]
        if not fn.has_rsample:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{msg['name']}' is not reparameterised "
                f"({type(undecorated(fn)).__name__}), and only continuous latents drawn by rsample "
                "can flow: name others in sites"
            )
        self.outer = tuple(frame for frame in msg["cond_indep_stack"] if frame not in plates)
        self.flowing[msg["name"]] = InitialSite(
            value=msg["value"],
            log_prob=fn.log_prob(msg["value"]),
            event_dim=fn.event_dim,
            plates=plates,
            scale=scale,
            mask=mask,
            is_point_mass=isinstance(undecorated(fn), Delta),
        )
