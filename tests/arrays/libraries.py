"""The array floor of either half: its modules, its arrays, and its derivatives."""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pyro_infovae._core.arrays import namespace

Function = Callable[..., Sequence[Any]]


class Derivatives(NamedTuple):
    """What a function returns, and the gradients of each of its scalars in all arguments."""

    values: list[np.ndarray]
    gradients: list[list[np.ndarray]]


class Library(ABC):
    """A half, with the library of its arrays."""

    package: str
    xp: ModuleType
    float32: Any

    def module(self, name: str) -> Any:
        """A module of the half."""
        return importlib.import_module(f"{self.package}.{name}")

    @abstractmethod
    def array(self, value: Any) -> Any:
        """An array of the library, in the dtype of NumPy's."""

    @abstractmethod
    def differentiate(
        self, function: Function, *samples: Sequence[np.ndarray]
    ) -> list[Derivatives]:
        """The derivatives of a function at several samples of its arguments, all of one shape."""

    def active(self) -> AbstractContextManager[Any]:
        """Settings of the library for a test."""
        return contextlib.nullcontext()


class Torch(Library):
    package, xp, float32 = "pyro_infovae", torch, torch.float32

    def array(self, value: Any) -> torch.Tensor:
        return torch.tensor(value)

    def differentiate(
        self, function: Function, *samples: Sequence[np.ndarray]
    ) -> list[Derivatives]:
        return [self._derivatives(function, sample) for sample in samples]

    def _derivatives(self, function: Function, sample: Sequence[np.ndarray]) -> Derivatives:
        tensors = [torch.tensor(array, requires_grad=True) for array in sample]
        values = function(*tensors)
        zero = sum(0 * tensor.sum() for tensor in tensors)  # reached by every input
        gradients = [
            torch.autograd.grad(value + zero, tensors, retain_graph=True) for value in values
        ]
        return Derivatives(
            [value.detach().numpy() for value in values],
            [[gradient.numpy() for gradient in each] for each in gradients],
        )


class Jax(Library):
    package, xp, float32 = "numpyro_backend", jnp, jnp.float32

    def array(self, value: Any) -> jax.Array:
        return jnp.asarray(value)

    def differentiate(
        self, function: Function, *samples: Sequence[np.ndarray]
    ) -> list[Derivatives]:
        def values(*arrays: jax.Array) -> list[jax.Array]:
            return list(function(*arrays))

        @jax.jit
        def both(*arrays: jax.Array) -> Any:
            argnums = tuple(range(len(arrays)))
            return values(*arrays), jax.jacrev(values, argnums)(*arrays)

        return [Derivatives(*jax.tree.map(np.asarray, both(*sample))) for sample in samples]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Double precision, compiled quickly; no array but a scalar is broadcast to a rank."""
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
            yield
        jax.config.update("jax_disable_most_optimizations", before)


TORCH, JAX = Torch(), Jax()
LIBRARIES = {"torch": TORCH, "jax": JAX}


def assert_agree(
    first: Sequence[Derivatives], second: Sequence[Derivatives], *, tolerance: float = 1e-12
) -> None:
    """Values and gradients are the same to rounding."""
    for a, b in zip(first, second, strict=True):
        for got, want in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


def message_of(call: Callable[[], Any]) -> str:
    """What an error says."""
    with pytest.raises(ValueError, match=r"^Expected .*; *got ") as error:
        call()
    return str(error.value)


def gaussian(x: Any, y: Any) -> Any:
    """``RBF()`` as a user would write it, in either library."""
    return namespace(x, y).exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * x.shape[1]))
