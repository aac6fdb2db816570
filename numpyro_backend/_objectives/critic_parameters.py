# SPDX-License-Identifier: MIT
"""The parameters of a critic, apart from it: drawn before training, and given back to score with.

NumPyro keeps every parameter beside the network that uses it. The libraries that critics come from
do it each in their own way; none of them is imported here, for a critic that needs one has
imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Key

from numpyro_backend.critics import Critic

Inputs: TypeAlias = Callable[[], tuple[Array, Array]]


@runtime_checkable
class FunctionalCritic(Protocol):
    """A critic that keeps no parameters, such as those of :mod:`numpyro_backend.critics`."""

    def init(self, rng_key: Key[Array, ""]) -> Any:
        """Draw parameters, a pytree of arrays."""

    def bind(self, params: Any) -> Critic:
        """Make a function critic(x, z) of them."""


class CriticParameters(Protocol):
    """How the parameters of a critic are drawn, and how it scores with them."""

    def init(self, rng_key: Key[Array, ""], inputs: Inputs) -> Any:
        """Draw parameters, a pytree of arrays, for rows of x and z such as ``inputs()`` gives."""

    def bind(self, params: Any) -> Critic:
        """Make a function critic(x, z) of them."""


def critic_parameters(critic: Any) -> CriticParameters:
    """The parameters of a critic of any library.

    Args:
        critic: a module of flax.linen, flax.nnx or equinox that takes x (rows, *event) and z
            (rows, features) to scores (rows,), or an object with ``init(rng_key)`` and
            ``bind(params)`` such as :class:`~numpyro_backend.critics.ConcatCritic`.

    Raises:
        TypeError: for anything else.
        ValueError: for a module with state beside its parameters.

    Example:
        >>> from numpyro_backend.critics import ConcatCritic
        >>> parameters = critic_parameters(ConcatCritic(x_dim=3, z_dim=2, hidden=(8,)))
        >>> x, z = jnp.zeros((5, 3)), jnp.zeros((5, 2))
        >>> params = parameters.init(jax.random.key(0), lambda: (x, z))
        >>> parameters.bind(params)(x, z).shape
        (5,)
    """
    for library, parameters in _LIBRARIES.items():
        module = sys.modules.get(library)
        if module is not None and isinstance(critic, module.Module):
            return parameters(critic, module)
    if isinstance(critic, FunctionalCritic) and not isinstance(critic, type):
        return _Functional(critic)
    raise TypeError(
        "Expected critic to be a module of flax.linen, flax.nnx or equinox, or an object with "
        f"init(rng_key) and bind(params) such as ConcatCritic; got {critic!r}"
    )


def check_params(expected: Any, params: Any, *, name: str) -> None:
    """Check that parameters are such as a critic draws.

    Args:
        expected: those it draws, or their shapes.
        params: those it is given.
        name: the name of the parameters.

    Raises:
        ValueError: if an array is missing, there is one too many, or one has another shape.

    Example:
        >>> check_params({"bias": jnp.zeros(3)}, {"bias": jnp.ones(3)}, name="critic$params")
    """
    wanted, given = (_shapes(tree) for tree in (expected, params))
    for path in wanted | given:
        if wanted.get(path) != given.get(path):
            raise ValueError(
                f"Expected '{name}' with {_describe(wanted.get(path))} at {path}; got "
                f"{_describe(given.get(path))} of an earlier critic: initialise SVI anew, or pass "
                "another name="
            )


@dataclass(frozen=True)
class _Functional:
    critic: FunctionalCritic

    def init(self, rng_key: Array, inputs: Inputs) -> Any:
        return self.critic.init(rng_key)

    def bind(self, params: Any) -> Critic:
        return self.critic.bind(params)


@dataclass(frozen=True)
class _Linen:
    critic: Any
    linen: Any

    def init(self, rng_key: Array, inputs: Inputs) -> Any:
        variables = dict(self.critic.init(rng_key, *inputs()))
        params = variables.pop("params", {})
        _refuse_state([repr(collection) for collection in variables])
        return params

    def bind(self, params: Any) -> Critic:
        return partial(self.critic.apply, {"params": params})


@dataclass(frozen=True)
class _NNX:
    critic: Any
    nnx: Any

    def __post_init__(self) -> None:
        _refuse_state(
            [
                f"'{'.'.join(map(str, path))}' ({type(variable).__name__})"
                for path, variable in self.nnx.to_flat_state(self.nnx.state(self.critic))
                if isinstance(variable, self.nnx.Variable)
                and not isinstance(variable, self.nnx.Param)
            ]
        )

    def init(self, rng_key: Array, inputs: Inputs) -> Any:
        return self.nnx.to_pure_dict(self.nnx.state(self.critic, self.nnx.Param))

    def bind(self, params: Any) -> Critic:
        graph, state, constants = self.nnx.split(self.critic, self.nnx.Param, ...)
        self.nnx.replace_by_pure_dict(state, params)
        critic: Critic = self.nnx.merge(graph, state, constants)
        return critic


@dataclass(frozen=True)
class _Equinox:
    critic: Any
    equinox: Any

    def init(self, rng_key: Array, inputs: Inputs) -> Any:
        return self.equinox.filter(self.critic, self.equinox.is_inexact_array)

    def bind(self, params: Any) -> Critic:
        rest = self.equinox.filter(self.critic, self.equinox.is_inexact_array, inverse=True)
        critic: Critic = self.equinox.combine(params, rest)
        return critic


_LIBRARIES: dict[str, Callable[[Any, Any], CriticParameters]] = {
    "flax.linen": _Linen,
    "flax.nnx": _NNX,
    "equinox": _Equinox,
}


def _refuse_state(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"Expected a critic with parameters alone; got the state {', '.join(names)}, which "
            "nothing would update: use layers without any, LayerNorm instead of BatchNorm say"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}


def _describe(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"shape {shape}"
