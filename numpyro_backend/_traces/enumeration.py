# SPDX-License-Identifier: MIT
"""A model whose enumerated latents are summed out, as NUTS and TraceEnum_ELBO sum them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import ImproperUniform, Unit
from numpyro.infer.util import _guess_max_plate_nesting
from numpyro.primitives import Messenger

from numpyro_backend._traces.recording import Message
from pyro_infovae._core.programs import Program

MARGINAL = "_marginal"
"""The name of the factor with the log density of what is summed."""


def check_funsor(caller: str) -> None:
    """Raise, where funsor is not installed.

    Raises:
        ImportError: naming who needs it.
    """
    if find_spec("funsor") is None:
        raise ImportError(
            f"Expected funsor, by which {caller} sums latents out; it is not installed: "
            "pip install 'pyro-infovae[enum]'"
        )


@dataclass(frozen=True, eq=False)
class SummedOut:
    """A model in which the latents are summed out that it enumerates and the guide does not draw.

    A factor has the log density of these and of all sites that depend on them.

    Attributes:
        fn: the model.
        guide: the guide.
    """

    fn: Program
    guide: Program
    _found: list[tuple[frozenset[str], int]] = field(default_factory=list, init=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, and add up its log density."""
        enumerated, nesting = self._enumerated(args, kwargs)
        if not enumerated:
            return self.fn(*args, **kwargs)
        check_funsor("TraceHamiltonian_ELBO")
        import funsor
        from numpyro.contrib.funsor import enum
        from numpyro.contrib.funsor.infer_util import _enum_log_density

        model = enum(_Asking(self.fn, enumerated), first_available_dim=-1 - nesting)
        factored = _Factored(enumerated, nesting)
        with factored:
            density, _, _ = _enum_log_density(
                model, args, kwargs, {}, funsor.ops.logaddexp, funsor.ops.add
            )
        factored.check()
        with handlers.scale(scale=1.0 if factored.scale is None else factored.scale):
            numpyro.factor(MARGINAL, jnp.asarray(density.data))
        return None

    def _enumerated(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[frozenset[str], int]:
        """The latents that are summed out, and the depth of the plates; found by a run."""
        if not self._found:
            sites = _sites(self.fn, args, kwargs)
            asking = frozenset(
                name
                for name, site in sites.items()
                if not site["is_observed"] and site["infer"].get("enumerate") == "parallel"
            )
            drawn = _sites(self.guide, args, kwargs).keys() if asking else set()
            self._found.append((asking - drawn, _guess_max_plate_nesting(sites)))
        return self._found[0]


class _Asking(Messenger):
    """Asks for the enumeration of some latents and of no other."""

    def __init__(self, fn: Program, enumerated: frozenset[str]) -> None:
        super().__init__(fn)
        self.enumerated = enumerated

    def process_message(self, msg: Message) -> None:
        """Ask, in a dictionary that no other site has; NumPyro writes into it."""
        if msg["type"] == "sample":
            asks = "parallel" if msg["name"] in self.enumerated else None
            msg["infer"] = {**msg["infer"], "enumerate": asks}


def _sites(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The sample sites of a program; nobody is asked or told, nothing computed or drawn."""
    found: dict[str, Any] = {}

    def run(key: Array) -> None:
        seeded = handlers.seed(rng_seed=key)
        with handlers.block(), seeded, handlers.trace() as trace, _Undrawn():
            program(*args, **kwargs)
        sites = {n: site for n, site in trace.items() if site["type"] == "sample"}
        found.update(sites)

    jax.eval_shape(run, jax.random.key(0))
    return found


class _Undrawn(Messenger):
    """Gives latents a value of their shape."""

    def process_message(self, msg: Message) -> None:
        """Give it."""
        if msg["type"] == "sample" and msg["value"] is None:
            fn = msg["fn"]
            dtype = int if fn.support is not None and fn.support.is_discrete else float
            msg["value"] = jnp.zeros(fn.shape(msg["kwargs"].get("sample_shape", ())), dtype)


class _Factored(Messenger):
    """Takes the enumerated latents, and what depends on them, out of what is around.

    The handlers around see no enumerated site. They see the others that depend on one with their
    plates, without a density, and the rest as it is. The handlers within, which sum, see the
    density of the first two, without a scale: that of a sum is outside of its logarithm.

    Attributes:
        scales: of the sites that are summed, as far as the model itself scales them.
        scale: of all of them.
    """

    def __init__(self, enumerated: frozenset[str], nesting: int) -> None:
        super().__init__()
        self.enumerated = enumerated
        self.nesting = nesting
        self.scales: dict[str, Any] = {}
        self.scale: Any = None
        self._own: dict[str, Message] = {}

    def process_message(self, msg: Message) -> None:
        """Show the handlers around what is left of a site."""
        if msg["type"] != "sample":
            return
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if name not in self.enumerated and len(fn.batch_shape) <= self.nesting:
            return
        self.scales[name] = 1.0 if msg["scale"] is None else msg["scale"]
        if name in self.enumerated:
            msg["stop"] = True
            msg["scale"] = None
            return
        self._own[name] = {"fn": fn, "value": value}
        if msg["is_observed"]:
            log_prob = fn.log_prob(value)
            rows = log_prob.sum(tuple(range(log_prob.ndim - self.nesting)))
            # What it depends on is still to be seen.
            msg["fn"] = Unit(jnp.where(jnp.zeros((), bool), rows, 0.0))
            msg["value"] = jnp.zeros((*rows.shape, 0))
        else:
            plates = fn.batch_shape[len(fn.batch_shape) - self.nesting :]
            msg["fn"] = ImproperUniform(fn.support, plates, fn.event_shape)

    def postprocess_message(self, msg: Message) -> None:
        """Give the handlers within what they sum."""
        if msg["type"] != "sample" or msg["name"] in self.enumerated:
            return
        own = self._own.pop(msg["name"], None)
        if own is None:
            msg["fn"] = msg["fn"].mask(False)
            return
        msg["fn"] = own["fn"]
        if msg["is_observed"]:
            msg["value"] = own["value"]
        self.scale, msg["scale"] = msg["scale"], None

    def check(self) -> None:
        """Refuse a sum of terms that are scaled apart.

        Raises:
            ValueError: naming two of its sites.
        """
        sites = iter(self.scales.items())
        name, scale = next(sites)
        for other, others in sites:
            if not isinstance(others - scale, Array) and others != scale:
                raise ValueError(
                    f"Expected one scale of '{name}' and '{other}', which are summed together; got "
                    f"{scale} and {others}: draw them in the same subsampled plates"
                )
