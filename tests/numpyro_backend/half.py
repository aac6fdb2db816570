"""NumPyro's half: what its programs are written with, and how its objectives are tried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.elbo import ELBO

import numpyro_backend
from tests.halves import Case, Draws, GivenNumbers, Half, Step


@dataclass(frozen=True)
class _Critic:
    score: Callable[..., Any]
    params: Mapping[str, Any]

    def init(self, rng_key: Array) -> dict[str, Array]:
        return {name: jnp.asarray(value) for name, value in self.params.items()}

    def bind(self, params: Mapping[str, Array]) -> Callable[[Array, Array], Array]:
        return partial(self.score, params)


class _Run:
    """A model, with the parameters of an objective, a guide, and what they start from."""

    def __init__(self, objective: ELBO, case: Case) -> None:
        wrap = getattr(objective, "wrap_model", None)
        self.objective = objective
        self.model = case.model if wrap is None else wrap(case.model)
        self.guide = case.guide
        guide = handlers.trace(handlers.seed(self.guide, 0)).get_trace()
        model = handlers.replay(handlers.seed(self.model, 0), guide)
        sites = {**handlers.trace(model).get_trace(), **guide}
        params = {name: site for name, site in sites.items() if site["type"] == "param"}
        self.transforms = {
            name: biject_to(site["kwargs"].get("constraint", constraints.real))
            for name, site in params.items()
        }
        self.params = {name: site["value"] for name, site in params.items()}

    def loss(self, rng_key: Array, params: Mapping[str, Any]) -> Array:
        return self.objective.loss(rng_key, dict(params), self.model, self.guide)

    def step(self, rng_key: Array, draws: Callable[[], Draws] | None) -> tuple[Array, Any]:
        def loss(unconstrained: Mapping[str, Any]) -> Array:
            params = {name: self.transforms[name](value) for name, value in unconstrained.items()}
            with contextlib.nullcontext() if draws is None else _drawing(draws()):
                return self.loss(rng_key, params)

        start = {name: self.transforms[name].inv(value) for name, value in self.params.items()}
        return jax.value_and_grad(loss)(start)


class NumPyroHalf(Half):
    """Losses and gradients in the unconstrained parameters, as NumPyro's SVI takes them."""

    library = numpyro_backend
    infer = numpyro.infer
    dist = numpyro.distributions
    xp = jnp

    def sample(self, name: str, fn: Any, *, obs: Any = None) -> Any:
        return numpyro.sample(name, fn, obs=obs)

    def param(self, name: str, value: Any, *, constraint: Any = None) -> Any:
        return numpyro.param(name, jnp.asarray(value), constraint=constraint or constraints.real)

    @contextlib.contextmanager
    def plate(
        self,
        name: str,
        size: int,
        *,
        dim: int = -1,
        batch: int | None = None,
        index: np.ndarray | None = None,
    ) -> Iterator[Any]:
        minibatch = {} if index is None else {name: jnp.asarray(index)}
        with handlers.substitute(data=minibatch):
            plate = numpyro.plate(name, size, batch if index is None else len(index), dim=dim)
        with plate as chosen:
            yield chosen

    def mask(self, mask: np.ndarray | None) -> AbstractContextManager[Any]:
        if mask is None:
            return contextlib.nullcontext()
        return handlers.mask(mask=jnp.asarray(mask))

    def critic(self, score: Callable[..., Any], params: Mapping[str, Any]) -> Any:
        return _Critic(score, params)

    def steps(
        self, objectives: Sequence[Any], case: Case, *, draws: Callable[[], Draws] | None = None
    ) -> list[Step]:
        # One program of all, for its compilation takes the time.
        steps = jax.jit(lambda key: [_Run(elbo, case).step(key, draws) for elbo in objectives])
        return [Step(float(loss), _flat(grads)) for loss, grads in steps(jax.random.key(3))]

    def losses(self, objectives: Sequence[Any], case: Case, *, count: int) -> np.ndarray:
        def losses(key: Array) -> list[Array]:
            return [run.loss(key, run.params) for run in (_Run(elbo, case) for elbo in objectives)]

        keys = jax.random.split(jax.random.key(5), count)
        return np.array(jax.jit(lambda keys: jax.lax.map(losses, keys))(keys))

    def losses_at(self, objective: Any, case: Case, noise: np.ndarray) -> np.ndarray:
        def loss(numbers: Array) -> Array:
            run = _Run(objective, case)
            with _drawing(GivenNumbers(numbers)):
                return run.loss(jax.random.key(0), run.params)

        return np.array(jax.jit(jax.vmap(loss))(noise))

    def evaluate(self, objective: Any, case: Case) -> None:
        def loss(key: Array) -> Array:
            run = _Run(objective, case)
            return run.loss(key, run.params)

        jax.eval_shape(loss, jax.random.key(0))


def _flat(grads: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Gradients by the names that Pyro's param store gives them."""
    flat = {}
    for name, value in grads.items():
        module = name.removesuffix("$params")
        parts = {name: value} if module == name else {f"{module}.{k}": v for k, v in value.items()}
        flat.update({key: np.asarray(part) for key, part in parts.items()})
    return flat


@contextlib.contextmanager
def _drawing(draws: Draws) -> Iterator[None]:
    def normal(key: Array, shape: Sequence[int] = (), *_: Any, **__: Any) -> Array:
        return jnp.asarray(draws.normal(shape))

    def randint(key: Array, shape: Sequence[int], minval: int, maxval: int, *_: Any) -> Array:
        return jnp.asarray(draws.integers(minval, maxval, shape))

    with mock.patch("jax.random.normal", normal), mock.patch("jax.random.randint", randint):
        yield


NUMPYRO = NumPyroHalf()
