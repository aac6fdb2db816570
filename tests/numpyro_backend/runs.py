"""Runs of an objective of NumPyro, compiled: their parameters, their draws and their critics."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.elbo import ELBO

from tests.halves import Case, Draws

QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""Options by which XLA compiles in half the time; what it makes is slower."""

jit: Callable[..., Any] = partial(jax.jit, compiler_options=QUICK)


@dataclass(frozen=True)
class Critic:
    score: Callable[..., Any]
    params: Mapping[str, Any]
    pairs: Callable[..., Any] | None = None

    def init(self, rng_key: Array) -> dict[str, Array]:
        return {name: jnp.asarray(value) for name, value in self.params.items()}

    def bind(self, params: Mapping[str, Array]) -> Callable[[Array, Array], Array]:
        bound = partial(self.score, params)
        return bound if self.pairs is None else _BoundToPairs(bound, partial(self.pairs, params))


@dataclass(frozen=True)
class _BoundToPairs:
    score: Callable[[Array, Array], Array]
    all_pairs: Callable[[Array, Array], Array]

    def __call__(self, x: Array, z: Array) -> Array:
        return self.score(x, z)


class Run:
    """A model, with the parameters of an objective, a guide, and what they start from."""

    def __init__(self, objective: ELBO, case: Case) -> None:
        self.objective, self.case = objective, case
        self.model = _wrapped(objective, "wrap_model", case.model)
        self.guide = _wrapped(objective, "wrap_guide", case.guide)
        guide = handlers.trace(handlers.seed(self.guide, 0)).get_trace(*case.args, **case.kwargs)
        model = handlers.replay(handlers.seed(self.model, 0), guide)
        sites = {**handlers.trace(model).get_trace(*case.args, **case.kwargs), **guide}
        params = {name: site for name, site in sites.items() if site["type"] == "param"}
        self.transforms = {
            name: biject_to(site["kwargs"].get("constraint", constraints.real))
            for name, site in params.items()
        }
        self.params = {name: site["value"] for name, site in params.items()}

    def loss(self, rng_key: Array, params: Mapping[str, Any] | None = None) -> Array:
        params = dict(self.params if params is None else params)
        programs = self.model, self.guide
        return self.objective.loss(rng_key, params, *programs, *self.case.args, **self.case.kwargs)

    def start(self) -> dict[str, Any]:
        """The parameters, unconstrained."""
        return {name: self.transforms[name].inv(value) for name, value in self.params.items()}

    def loss_at(self, rng_key: Array, unconstrained: Mapping[str, Any]) -> Array:
        params = {name: self.transforms[name](value) for name, value in unconstrained.items()}
        return self.loss(rng_key, params)

    def step(self, rng_key: Array, draws: Callable[[], Draws] | None) -> tuple[Array, Any]:
        def loss(unconstrained: Mapping[str, Any]) -> Array:
            with contextlib.nullcontext() if draws is None else drawing(draws()):
                return self.loss_at(rng_key, unconstrained)

        return jax.value_and_grad(loss)(self.start())


def _wrapped(objective: ELBO, wrap: str, program: Any) -> Any:
    return getattr(objective, wrap, lambda program: program)(program)


@functools.lru_cache(maxsize=8)
def compiled_losses(objectives: tuple[Any, ...], model: Any, guide: Any) -> Callable[..., Any]:
    """Compiled once for all arguments of the programs."""

    def losses(keys: Array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Array]:
        runs = [Run(elbo, Case(model, guide, args, kwargs)) for elbo in objectives]
        return jax.lax.map(lambda key: [run.loss(key) for run in runs], keys)

    return jit(losses)


def by_name(grads: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Gradients by the names that Pyro's param store gives them."""
    flat = {}
    for name, value in grads.items():
        module = name.removesuffix("$params")
        parts = {name: value} if module == name else {f"{module}.{k}": v for k, v in value.items()}
        flat.update({key: np.asarray(part) for key, part in parts.items()})
    return flat


@contextlib.contextmanager
def drawing(draws: Draws) -> Iterator[None]:
    def normal(key: Array, shape: Sequence[int] = (), *_: Any, **__: Any) -> Array:
        return jnp.asarray(draws.normal(shape))

    def randint(key: Array, shape: Sequence[int], minval: int, maxval: int, *_: Any) -> Array:
        return jnp.asarray(draws.integers(minval, maxval, shape))

    with mock.patch("jax.random.normal", normal), mock.patch("jax.random.randint", randint):
        yield
