"""Programs that an objective refuses, written once for both halves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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


def masked_rows(half: Half) -> Case:
    mask = half.xp.asarray(np.arange(12) > 0)
    return one_latent(half, prior=lambda rows: half.dist.Normal(rows, 1.0).to_event(1).mask(mask))


def undeclared(half: Half, *, mended: str = "") -> Case:
    """A batch dim that belongs to no plate, or one for which there is a plate, or an event dim."""
    is_event = mended == "event"
    x = half.xp.asarray(X[:, :2] if is_event else X[:, :2].T)

    @contextlib.contextmanager
    def plates() -> Iterator[None]:
        parts = half.plate("parts", 2, dim=-2) if mended == "plate" else contextlib.nullcontext()
        with half.plate("data", 12), parts:
            yield

    def normal(loc: Any) -> Any:
        return half.dist.Normal(loc, 1.0).to_event(int(is_event))

    def model() -> None:
        with plates():
            z = half.sample("z", normal(0 * x))
            half.sample("x", normal(z), obs=x)

    def guide() -> None:
        with plates():
            half.sample("z", normal(x + half.param("m", 0.0)))

    return Case(model, guide)


def two_latents(
    half: Half,
    *,
    guided: tuple[str, ...] = ("z1", "z2"),
    auxiliary: tuple[str, ...] = (),
    posterior: str = "Normal",
    is_observed: bool = False,
) -> Case:
    """Two latents in one plate, and a guide that draws the given ones.

    The second one may be observed, or counted, or a point mass in the guide.
    """
    x = half.xp.asarray(X[:, 0])

    def model() -> None:
        with half.plate("data", 12):
            z1 = half.sample("z1", half.dist.Normal(0 * x, 1.0))
            if posterior == "Poisson":
                z2 = half.sample("z2", half.dist.Poisson(half.xp.exp(z1)))
            else:
                seen = x if is_observed else None
                z2 = half.sample("z2", half.dist.Normal(2 * z1, 0.5), obs=seen)
            half.sample("x", half.dist.Normal(z1 + z2, 1.0), obs=x)

    def guide() -> None:
        loc = half.param("m", 0.1) + 0 * x
        families = {
            "Normal": lambda: half.dist.Normal(loc, 0.5),
            "Delta": lambda: half.dist.Delta(loc),
            "Poisson": lambda: half.dist.Poisson(half.xp.exp(loc)),
        }
        with half.plate("data", 12):
            for name in (*auxiliary, *guided):
                family = posterior if name == "z2" else "Normal"
                infer = {"is_auxiliary": True} if name in auxiliary else None
                half.sample(name, families[family](), infer=infer)

    return Case(model, guide)


def subsampled_global(half: Half, *, batch: int | None = 4) -> Case:
    """A latent outside a plate that the model subsamples, and one inside."""

    def model() -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        with half.plate("data", 12, batch=batch) as chosen:
            z = half.sample("z", half.dist.Normal(theta, 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=half.xp.asarray(X[:, 0])[chosen])

    def guide() -> None:
        half.sample("theta", half.dist.Normal(half.param("m", 0.1), 1.0))
        with half.plate("data", 12, batch=batch):
            half.sample("z", half.dist.Normal(0.0, 1.0))

    return Case(model, guide)


def global_mean(
    half: Half,
    *,
    batch: int | None = 4,
    is_indexed: bool = True,
    plates: tuple[str, ...] = ("data",),
    is_mixed: bool = False,
) -> Case:
    """A latent outside plates of data, which the model looks up or takes as they come."""

    def model() -> None:
        theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
        for name in plates:
            with half.plate(name, 12, batch=batch) as chosen:
                if is_mixed:
                    infer = {"enumerate": "parallel"}
                    theta = theta + half.sample("k", half.dist.Bernoulli(0.5), infer=infer)
                rows = chosen if is_indexed else slice(batch)
                x = half.xp.asarray(X[:, 0])[rows]
                half.sample(f"x of {name}", half.dist.Normal(theta, 1.0), obs=x)

    def guide() -> None:
        half.sample("theta", half.dist.Normal(half.param("m", 0.1), 1.0))

    return Case(model, guide)
