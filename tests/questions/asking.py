"""How a question of either half is asked of a program that is written once."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.infer.autoguide
import pyro
import pyro.infer.autoguide
import pytest
import torch
from pyro import poutine

import numpyro_backend.diagnostics
import numpyro_backend.inference_data
import pyro_infovae.diagnostics
import pyro_infovae.inference_data
from tests.halves import Case, Half
from tests.numpyro_backend.half import NumPyroHalf
from tests.pyro_infovae.half import PyroHalf

Params = Mapping[str, Any]


def data(num: int = 12, dim: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim))


class Asking(Half, ABC):
    """A half with its questions.

    Attributes:
        handlers: the framework's effect handlers.
        autoguide: its guides.
        diagnostics: the half's questions.
    """

    handlers: ModuleType
    autoguide: ModuleType
    diagnostics: ModuleType

    @abstractmethod
    def ask(
        self,
        question: Callable[..., Any] | str,
        case: Case,
        *args: Any,
        params: Params | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Any:
        """The answer about a model and a guide with the given values of their parameters."""

    @abstractmethod
    def single_precision(self) -> AbstractContextManager[Any]: ...

    @abstractmethod
    def auto_normal(self, model: Callable[..., None], loc: Any, scale: Any) -> tuple[Case, Params]:
        """An ``AutoNormal`` of a latent z, and its parameters."""

    @abstractmethod
    def array(self, values: Any) -> Any:
        """Numbers in the default precision."""

    @abstractmethod
    def noise(self) -> Any:
        """A normal number that no site draws, as dropout does."""

    def masked(self, program: Callable[..., None], mask: Any) -> Callable[..., None]:
        return self.handlers.mask(program, mask=self.array(mask))

    def scaled(self, program: Callable[..., None], scale: float) -> Callable[..., None]:
        return self.handlers.scale(program, scale=scale)

    def auxiliary(self, name: str, fn: Any) -> Any:
        """A draw of the guide alone."""
        return self._sample(name, fn, infer={"is_auxiliary": True})

    def enumerated(self, name: str, fn: Any) -> Any:
        """A latent that is summed out."""
        return self._sample(name, fn, infer={"enumerate": "parallel"})

    def _of(self, question: Callable[..., Any] | str) -> Callable[..., Any]:
        return getattr(self.diagnostics, question) if isinstance(question, str) else question


class AskingPyro(PyroHalf, Asking):
    """Parameters are put into the store."""

    handlers = poutine
    autoguide = pyro.infer.autoguide
    diagnostics = pyro_infovae.diagnostics
    _sample = staticmethod(pyro.sample)
    factor = staticmethod(pyro.factor)
    deterministic = staticmethod(pyro.deterministic)
    to_inference_data = staticmethod(pyro_infovae.inference_data.to_inference_data)

    def ask(
        self,
        question: Callable[..., Any] | str,
        case: Case,
        *args: Any,
        params: Params | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Any:
        pyro.set_rng_seed(seed)
        for name, value in (params or {}).items():
            pyro.get_param_store()[name] = self.array(value)
        return self._of(question)(*case[:2], *case.args, *args, **settings)

    def array(self, values: Any) -> torch.Tensor:
        tensor = torch.as_tensor(np.array(values))
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor

    def noise(self) -> torch.Tensor:
        return torch.randn(())

    @contextlib.contextmanager
    def single_precision(self) -> Iterator[None]:
        torch.set_default_dtype(torch.float32)
        yield

    def auto_normal(self, model: Callable[..., None], loc: Any, scale: Any) -> tuple[Case, Params]:
        guide = pyro.infer.autoguide.AutoNormal(model)
        guide()
        return Case(model, guide), {"AutoNormal.locs.z": loc, "AutoNormal.scales.z": scale}


class AskingNumPyro(NumPyroHalf, Asking):
    """Parameters are handed over with a key."""

    handlers = numpyro.handlers
    autoguide = numpyro.infer.autoguide
    diagnostics = numpyro_backend.diagnostics
    _sample = staticmethod(numpyro.sample)
    factor = staticmethod(numpyro.factor)
    deterministic = staticmethod(numpyro.deterministic)
    to_inference_data = staticmethod(numpyro_backend.inference_data.to_inference_data)

    def ask(
        self,
        question: Callable[..., Any] | str,
        case: Case,
        *args: Any,
        params: Params | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Any:
        return self._of(question)(
            jax.random.key(seed), params or {}, *case[:2], *case.args, *args, **settings
        )

    def array(self, values: Any) -> jax.Array:
        return jax.numpy.asarray(values)

    def noise(self) -> jax.Array:
        return jax.random.normal(numpyro.prng_key())

    def single_precision(self) -> AbstractContextManager[Any]:
        return jax.enable_x64(False)

    def auto_normal(self, model: Callable[..., None], loc: Any, scale: Any) -> tuple[Case, Params]:
        guide = numpyro.infer.autoguide.AutoNormal(model)
        return Case(model, guide), {"z_auto_loc": loc, "z_auto_scale": scale}


HALVES = {"pyro": AskingPyro(), "numpyro": AskingNumPyro()}
# Where the other half would show nothing else, and take its time to compile.
in_pyro = pytest.mark.parametrize("half", ["pyro"], indirect=True)
in_numpyro = pytest.mark.parametrize("half", ["numpyro"], indirect=True)
slow_in_numpyro = pytest.mark.parametrize(
    "half", ["pyro", pytest.param("numpyro", marks=pytest.mark.slow)], indirect=True
)
