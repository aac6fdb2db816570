"""Which codes TraceInfoMax_ELBO shows the critic as another datum's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import Recording, concat
from tests.numpyro_backend.steps import (
    PARTICLES,
    Params,
    compiled_penalty,
    initial,
    seeded,
    wrapped,
)

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def scattered(*, num: int = 12, batch: int | None = None) -> Programs:
    """z holds noise and a global latent, by which the particle of a code can be told."""
    x = np.broadcast_to(np.arange(float(num))[:, None], (num, 3))

    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", num, subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(theta, jnp.ones(2)).to_event(1))
            likelihood = dist.Normal(z.sum(-1, keepdims=True), jnp.ones(3)).to_event(1)
            numpyro.sample("x", likelihood, obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(numpyro.param("loc", 0.3), 1.0))
        with numpyro.plate("data", num, subsample_size=batch) as index:
            rows = jnp.asarray(x)[index, 0]
            loc = jnp.stack([rows, jnp.full_like(rows, theta)], -1)
            numpyro.sample("z", dist.Normal(loc, jnp.array([1.0, 1e-9])).to_event(1))

    return Programs(model, guide, (x,))


class Shown(NamedTuple):
    """What the critic saw of own codes and of others', a leading axis of keys."""

    x: np.ndarray
    own: np.ndarray
    same_x: np.ndarray
    other: np.ndarray


def shown(case: Programs, count: int, **settings: Any) -> Shown:
    recording = Recording(concat())
    objective = TraceInfoMax_ELBO(recording, **settings)

    def step(key: Array, params: Params) -> tuple[Array, ...]:
        recording.calls.clear()
        objective.loss(key, params, case.model, case.guide, *case.args)
        (x, own), (same_x, other) = recording.calls
        return x, own, same_x, other

    keys = jax.random.split(jax.random.key(1), count)
    params = initial(wrapped(objective, case))
    return Shown(*map(np.asarray, jax.jit(jax.vmap(step, (0, None)))(keys, params)))


@pytest.mark.parametrize(
    ("batch", "particles"),
    list(zip((None, 5, 5), PARTICLES.values(), strict=True)),
    ids=PARTICLES,
)
def test_are_codes_of_other_data_of_the_same_particle(batch: int | None, particles: dict) -> None:
    draws = particles.get("num_particles", 1)
    for x, own, same_x, other in zip(*shown(scattered(batch=batch), 30, **particles), strict=True):
        assert len(own) == (batch or 12) * draws
        np.testing.assert_array_equal(x, same_x)
        matches = (other[:, None] == own).all(-1)
        np.testing.assert_array_equal(matches.sum(1), 1)
        source = matches.argmax(1)
        assert (x[source, 0] != x[:, 0]).all(), "a negative is another datum's"
        np.testing.assert_allclose(own[source, 1], own[:, 1], rtol=0, atol=1e-7)
        assert (np.diff(np.sort(own[:, 1])) > 1e-7).sum() == draws - 1


def test_every_other_datum_is_met_equally_often() -> None:
    offsets = np.zeros(12)
    for x, own, _, other in zip(*shown(scattered(), 300), strict=True):
        source = (other[0] == own).all(-1).argmax()
        offsets[int(x[source, 0] - x[0, 0]) % 12] += 1
    assert offsets[0] == 0
    chi_squared = ((offsets[1:] - 300 / 11) ** 2 / (300 / 11)).sum()
    assert chi_squared < 10 + 4 * math.sqrt(2 * 10)


def test_particles_have_offsets_of_their_own() -> None:
    _, own, _, other = shown(scattered(), 30, num_particles=2)
    sources = (other[:, [0, 12], None] == own[:, None]).all(-1).argmax(-1)
    offsets = sources - np.array([0, 12])
    assert 15 < (offsets[:, 0] != offsets[:, 1]).sum() < 30


@pytest.mark.parametrize("case", [programs.masked_vae(), programs.sequences()])
@pytest.mark.parametrize("negatives", ["shift", "all"])
def test_masked_data_may_be_anything(case: Programs, negatives: str) -> None:
    model, guide, (x,) = case
    objective = TraceInfoMax_ELBO(concat(), negatives=negatives, num_particles=2)
    start = wrapped(objective, case)
    compiled = compiled_penalty(objective, model, guide)
    masked = np.zeros((*x.shape[:-1], 1))
    masked[(slice(None, None, 3),) if x.ndim == 2 else (4, slice(1, None))] = 1.0
    keys, params = jax.random.split(jax.random.key(5), 1), initial(start)
    near, far, moved = (
        float(compiled(keys, params, (data,))[0]) for data in (x, x + 1e6 * masked, x + 1 - masked)
    )
    assert near == pytest.approx(far, rel=1e-12)
    assert near != pytest.approx(moved)


def test_where_all_is_masked_nothing_can_be_told() -> None:
    model, guide, args = programs.vae()
    masked = (handlers.mask(program, mask=False) for program in (model, guide))
    objective = TraceInfoMax_ELBO(concat(), 3.0)
    ((loss, grads),) = seeded(objective, case=wrapped(objective, Programs(*masked, args)))
    assert loss == 0
    assert all(jnp.abs(grad).max() == 0 for grad in jax.tree.leaves(grads))
