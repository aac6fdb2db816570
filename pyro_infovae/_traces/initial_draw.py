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
        fn: its distribution.
        infer: what the guide says of its inference.
    """

    value: Tensor
    log_prob: Float[Tensor, ...]
    event_dim: int
    plates: tuple[CondIndepStackFrame, ...]
    scale: Any
    mask: Any
    fn: Any
    infer: dict[str, Any]

    @property
    def batch_dim(self) -> int:
        """Its number of batch dims."""
        return self.value.dim() - self.event_dim

    @property
    def is_point_mass(self) -> bool:
        """Whether its density is that of other sites."""
        return isinstance(undecorated(self.fn), Delta)


class InitialDraw(Messenger):
    """Records the guide's draw and hides the latents that flow, which are drawn again at the end.

    They are marked as auxiliary and not traced, rather than blocked, so that plates around the
    guide still broadcast them.

    Args:
        sites: the latents that flow, or None for all.
        moves_auxiliary: whether the auxiliary sites move that point masses are computed from.

    Attributes:
        flowing: the latents that flow, by name.
        auxiliary: the auxiliary sites that move, by name.
        others: the values of the other latents, by name.
        staying: the point masses among these.
        minibatches: the indices of the plates that are subsampled, by their names.
        outer: the plates around the whole guide.
    """

    def __init__(self, sites: frozenset[str] | None, *, moves_auxiliary: bool = False) -> None:
        super().__init__()
        self.sites = sites
        self.moves_auxiliary = moves_auxiliary
        self.flowing: dict[str, InitialSite] = {}
        self.auxiliary: dict[str, InitialSite] = {}
        self.others: dict[str, Tensor] = {}
        self.minibatches: dict[str, Tensor] = {}
        self.outer: tuple[CondIndepStackFrame, ...] = ()
        self.staying: set[str] = set()
        self._sizes: dict[str, int] = {}  # of the auxiliary sites, by the names of their latents
        self._context: dict[str, Message] = {}

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

    def lacks_density(self, positions: Mapping[str, Tensor]) -> bool:
        """Whether point masses have more numbers than the guide has drawn for them.

        Args:
            positions: the values of the latents that flow.
        """
        own = self._sizes.keys() & (self.flowing.keys() | self.others.keys())
        drawn = sum(size for name, size in self._sizes.items() if name not in own)
        return sum(positions[name].numel() for name in self._masses) > drawn

    def check_densities(self, positions: Mapping[str, Tensor]) -> None:
        """Refuse point masses of more numbers than the guide has drawn for them.

        Args:
            positions: the unconstrained values of the latents that flow.

        Raises:
            ValueError: naming one of them and saying what to do.
        """
        if self.lacks_density(positions):
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{self._masses[0]}' is a point mass in the guide, "
                "which has no density for a flow to carry; give it one, as AutoNormal does, or "
                "name others in sites"
            )

    @property
    def _masses(self) -> list[str]:
        """The point masses that flow and have no auxiliary site of their own."""
        flowing = self.flowing.items()
        return [n for n, site in flowing if site.is_point_mass and n not in self._sizes]

    def _pyro_sample(self, msg: Message) -> None:
        if is_data(msg):
            raise NotImplementedError(
                f"TraceHamiltonian_ELBO: the guide observes '{msg['name']}', and the density of no "
                f"latent: hide it by poutine.block(guide, hide=['{msg['name']}'])"
            )
        if not is_latent(msg):
            return
        if self._moves(msg):
            self._context[msg["name"]] = msg.copy()
            msg["infer"] = {**msg["infer"], "is_auxiliary": True, "_do_not_trace": True}

    def _pyro_post_sample(self, msg: Message) -> None:
        name = msg["name"]
        if site_is_subsample(msg):
            self.minibatches[name] = msg["value"]
            return
        if not is_latent(msg):
            return
        context = self._context.get(name)
        if (context or msg)["infer"].get("is_auxiliary"):
            if not isinstance(undecorated(msg["fn"]), Delta):
                self._sizes[name.removesuffix("_unconstrained")] = msg["value"].numel()
            if context is not None:
                self.auxiliary[name] = self._site(msg, context)
        elif context is not None:
            self.flowing[name] = self._site(msg, context)
        else:
            self.others[name] = msg["value"]
            if isinstance(undecorated(msg["fn"]), Delta):
                self.staying.add(name)

    def _moves(self, msg: Message) -> bool:
        name, fn = msg["name"], msg["fn"]
        is_auxiliary = msg["infer"].get("is_auxiliary")
        if is_auxiliary and not self.moves_auxiliary:
            return False
        if is_auxiliary and (not fn.has_rsample or isinstance(undecorated(fn), Delta)):
            return False
        if self.sites is None or name in self.sites:
            return True
        own = name.removesuffix("_unconstrained")
        return bool(is_auxiliary) and (own == name or own in self.sites)

    def _site(self, msg: Message, context: Message) -> InitialSite:
        fn, plates = msg["fn"], context["cond_indep_stack"]
        if not fn.has_rsample:
            raise ValueError(
                f"TraceHamiltonian_ELBO: site '{msg['name']}' is not reparameterised "
                f"({type(undecorated(fn)).__name__}), and only continuous latents drawn by rsample "
                "can flow: name others in sites"
            )
        self.outer = tuple(frame for frame in msg["cond_indep_stack"] if frame not in plates)
        return InitialSite(
            value=msg["value"],
            log_prob=fn.log_prob(msg["value"]),
            event_dim=fn.event_dim,
            plates=plates,
            scale=context["scale"],
            mask=context["mask"],
            fn=fn,
            infer=context["infer"],
        )
