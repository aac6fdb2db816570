"""Programs that an objective refuses, written once for both halves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.halves import Case, Half
from tests.shared_programs import X


def lone(half: Half) -> Case:
    """A latent in no plate."""

    def model() -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        half.sample("x", half.dist.Normal(theta, 1.0), obs=half.xp.asarray(0.5))

    def guide() -> None:
        half.sample("theta", half.dist.Normal(half.param("m", 0.0), 1.0))

    return Case(model, guide)


def one_latent(
    half: Half,
    *,
    prior: Callable[[Any], Any] | None = None,
    posterior: Callable[[Any], Any] | None = None,
    observed: tuple[str, ...] = ("x",),
) -> Case:
    """A latent in a plate of 12 data, its distributions given by as many rows; x depends on it."""
    rows = half.xp.asarray(X)

    def normal(rows: Any) -> Any:
        return half.dist.Normal(rows, 1.0).to_event(1)

    def model() -> None:
        with half.plate("data", 12):
            z = half.sample("z", (prior or normal)(0 * rows))
            for name in observed:
                half.sample(name, half.dist.Normal(z.reshape(12, -1).sum(-1), 1.0), obs=rows[:, 0])

    def guide() -> None:
        with half.plate("data", 12):
            half.sample("z", (posterior or prior or normal)(rows + half.param("m", np.zeros(3))))

    return Case(model, guide)


def masked_features(half: Half) -> Case:
    mask = half.xp.asarray([True, False, True])
    return one_latent(half, prior=lambda rows: half.dist.Normal(rows, 1.0).mask(mask).to_event(1))


def point_mass(half: Half) -> Case:
    return one_latent(half, posterior=lambda rows: half.dist.Delta(rows, event_dim=1))


def discrete(half: Half) -> Case:
    return one_latent(half, prior=lambda rows: half.dist.Poisson(half.xp.exp(rows[:, 0])))


def undeclared(half: Half) -> Case:
    """A batch dim that belongs to no plate."""

    def model() -> None:
        with half.plate("data", 12):
            z = half.sample("z", half.dist.Normal(half.xp.asarray(np.zeros((2, 1))), 1.0))
            half.sample("x", half.dist.Normal(z.sum(0), 1.0), obs=half.xp.asarray(X[:, 0]))

    def guide() -> None:
        with half.plate("data", 12):
            half.sample("z", half.dist.Normal(half.param("m", np.zeros((2, 1))), 1.0))

    return Case(model, guide)


def two_latents(half: Half, *, guided: tuple[str, ...] = ("z1", "z2")) -> Case:
    """Two latents in one plate, and a guide that draws the given ones."""
    x = half.xp.asarray(X[:, 0])

    def model() -> None:
        with half.plate("data", 12):
            z1 = half.sample("z1", half.dist.Normal(0 * x, 1.0))
            z2 = half.sample("z2", half.dist.Normal(2 * z1, 0.5))
            half.sample("x", half.dist.Normal(z1 + z2, 1.0), obs=x)

    def guide() -> None:
        with half.plate("data", 12):
            for name in guided:
                half.sample(name, half.dist.Normal(half.param("m", 0.1) + 0 * x, 0.5))

    return Case(model, guide)


def subsampled_global(half: Half) -> Case:
    """A latent outside a plate that the model subsamples."""

    def model() -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        with half.plate("data", 12, batch=4) as chosen:
            half.sample("x", half.dist.Normal(theta, 1.0), obs=half.xp.asarray(X[:, 0])[chosen])

    def guide() -> None:
        half.sample("theta", half.dist.Normal(half.param("m", 0.1), 1.0))

    return Case(model, guide)
