"""Models and guides that questions are asked about, written once for both halves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.halves import Case
from tests.questions.asking import Asking, data

WEIGHT = np.random.default_rng(2).normal(size=(3, 2))


def in_plate(half: Asking, num: int, draw: Callable[[Any], None], **plate: Any) -> Any:
    """A program that draws in a plate of data, or of a minibatch, some of them masked."""
    mask = plate.pop("mask", None)

    def program() -> None:
        with half.plate("data", num, **plate) as index, half.mask(mask):
            draw(index)

    return program


def pair(half: Asking, posterior: Any, prior: Any, *, num: int = 4) -> Case:
    """q(z | x_i) and p(z)."""

    def drawing(fn: Any) -> Any:
        return in_plate(half, num, lambda _: half.sample("z", fn))

    return Case(drawing(prior), drawing(posterior))


def vae(
    half: Asking, *, num: int = 12, batch: int | None = None, mask: Any = None, spread: float = 1.0
) -> Case:
    """q(z | x) = N(x W, 0.4²) with p(z) = N(0, I), and x ~ N(tanh(z) V, 0.7²)."""
    x = half.array(spread * data(num))
    encoder, decoder = half.array(WEIGHT), half.array(WEIGHT.T)

    def model(index: Any) -> None:
        zeros = half.xp.zeros_like(x[index, :2])
        z = half.sample("z", half.dist.Normal(zeros, 1.0).to_event(1))
        half.sample("x", half.dist.Normal(half.xp.tanh(z) @ decoder, 0.7).to_event(1), obs=x[index])

    def guide(index: Any) -> None:
        half.sample("z", half.dist.Normal(x[index] @ encoder, 0.4).to_event(1))

    return Case(*(in_plate(half, num, draw, batch=batch, mask=mask) for draw in (model, guide)))


def nested(half: Asking) -> Case:
    """A latent per group and one per item of a group: two stacks of plates."""
    x = half.array(data(24, 2).reshape(4, 6, 2))

    def program(observe: bool) -> Any:
        def run() -> None:
            with half.plate("groups", 6):
                outer = half.sample("outer", half.dist.Normal(x.mean(0), 1.0).to_event(1))
                with half.plate("items", 4, dim=-2):
                    loc = outer + half.xp.zeros_like(x)
                    z = half.sample("z", half.dist.Normal(loc, 1.0).to_event(1))
                    if observe:
                        half.sample("x", half.dist.Normal(z, 1.0).to_event(1), obs=x)

        return run

    return Case(program(True), program(False))


def two_latents(half: Asking, *, num: int = 12, slope: float = 2.0) -> Case:
    """z1 ~ N(0, 1) and z2 | z1 ~ N(2 z1, 1), of which the guide draws z2 with the given slope."""
    x = half.array(data(num, 1)[:, 0])
    zeros = half.xp.zeros_like(x)

    def program(slope: float, observe: bool) -> Any:
        def draw(_: Any) -> None:
            z1 = half.sample("z1", half.dist.Normal(zeros, 1.0))
            z2 = half.sample("z2", half.dist.Normal(slope * z1, 1.0))
            if observe:
                half.sample("x", half.dist.Normal(z2, 1.0), obs=x)

        return in_plate(half, num, draw)

    return Case(program(2.0, True), program(slope, False))


def several_subsampled(half: Asking) -> Case:
    def program() -> None:
        with half.plate("rows", 6, batch=3, dim=-2), half.plate("columns", 6, batch=3):
            half.sample("z", half.dist.Normal(half.array(0.0), 1.0))

    return Case(program, program)


def correlated(
    half: Asking, x: np.ndarray, *, information: float, batch: int | None = None, kept: Any = None
) -> Case:
    """A guide whose code has the given information in nats about standard normal data."""
    num, dims = x.shape
    rho = math.sqrt(1 - math.exp(-2 * information / dims))
    rows = half.array(x)
    mask = half.array(np.ones(num, bool) if kept is None else kept)

    def program(draw: Callable[[Any], None]) -> Any:
        def run() -> None:
            with half.plate("data", num, batch=batch) as index, half.mask(mask[index]):
                draw(rows[index])

        return run

    def model(x: Any) -> None:
        z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0).to_event(1))
        half.sample("x", half.dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Any) -> None:
        slope = half.param("slope", rho)
        half.sample("z", half.dist.Normal(slope * x, math.sqrt(1 - rho**2)).to_event(1))

    return Case(program(model), program(guide))
