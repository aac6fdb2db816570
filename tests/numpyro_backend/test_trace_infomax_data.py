"""Which data TraceInfoMax_ELBO shows the critic."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro.distributions import constraints

from numpyro_backend.critics import ConcatCritic
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.recording import CRITIC, concat, evaluate, observe
from tests.numpyro_backend.steps import PARTICLES, seeded, wrapped

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def denoising(*, num: int = 20, batch: int | None = None) -> Programs:
    """Takes x_in, of which the guide copies a part to z, and is to give x_out back."""

    def model(x_in: Array, x_out: Array) -> None:
        with numpyro.plate("data", num, subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=jnp.asarray(x_out)[index])

    def guide(x_in: Array, x_out: Array) -> None:
        with numpyro.plate("data", num, subsample_size=batch) as index:
            scale = numpyro.param("scale", 1e-9, constraint=constraints.positive)
            numpyro.sample("z", dist.Normal(jnp.asarray(x_in)[index, :2], scale).to_event(1))

    x = programs.data(num)
    return Programs(model, guide, (x, x.sum(-1)))


def _two_observed() -> Programs:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            for name in ("left", "right"):
                numpyro.sample(name, dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    return Programs(model, programs.vae().guide, (programs.data(),))


def _unobserved() -> Programs:
    """The only observation is outside the plate; a factor and a deterministic are no data."""

    def model(x: Array) -> None:
        numpyro.sample("sum", dist.Normal(0.0, 1.0), obs=x.sum())
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.factor("factor", z.sum(-1))
            numpyro.deterministic("copy", z)

    return Programs(model, programs.vae().guide, (programs.data(),))


@pytest.mark.parametrize(
    ("batch", "particles"),
    list(zip((None, 7, 7), PARTICLES.values(), strict=True)),
    ids=PARTICLES,
)
def test_a_function_of_the_arguments_goes_with_the_minibatch(
    batch: int | None, particles: dict
) -> None:
    case = denoising(batch=batch)
    seen, _ = observe(concat(), 1.0, case, data=lambda x_in, x_out: x_in, **particles)
    x, z = seen.calls[0]
    assert len(x) == (batch or 20) * particles.get("num_particles", 1)
    np.testing.assert_allclose(x[:, :2], z, rtol=0, atol=1e-6)


def test_a_function_may_give_the_minibatch_itself() -> None:
    minibatch = np.arange(7)
    seen, _ = observe(
        concat(1), 1.0, denoising(batch=7), data=lambda *args: minibatch, num_particles=2
    )
    np.testing.assert_array_equal(seen.calls[0][0], np.tile(minibatch, 2))


@pytest.mark.parametrize(
    ("source", "particles"),
    list(zip((lambda x: x, "x", lambda x: x), PARTICLES.values(), strict=True)),
    ids=PARTICLES,
)
def test_nested_plates_of_which_one_is_subsampled(source: Any, particles: dict) -> None:
    x = programs.data(24).reshape(4, 6, 3)

    def model(x: Array) -> None:
        groups = numpyro.plate("groups", 6, subsample_size=5, dim=-1)
        with groups as index, numpyro.plate("items", 4, dim=-2):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((4, 5, 2)), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=jnp.asarray(x)[:, index, 2])

    def guide(x: Array) -> None:
        scale = numpyro.param("scale", 1e-9)
        groups = numpyro.plate("groups", 6, subsample_size=5, dim=-1)
        with groups as index, numpyro.plate("items", 4, dim=-2):
            loc = jnp.asarray(x)[:, index, :2]
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    critic = concat(1 if source == "x" else 3)
    seen, _ = observe(critic, 1.0, Programs(model, guide, (x,)), data=source, **particles)
    rows, z = seen.calls[0]
    assert len(rows) == 20 * particles.get("num_particles", 1)
    found = np.abs(z[:, None] - x[..., :2].reshape(24, 2)).sum(-1).argmin(1)
    expected = x[..., 2].reshape(-1) if source == "x" else x.reshape(24, 3)
    np.testing.assert_array_equal(rows, expected[found])


def test_images_keep_their_shape_and_may_be_integers() -> None:
    class Images:
        shape: tuple[int, ...] = ()

        def init(self, rng_key: Array) -> Array:
            return jnp.ones((64, 4))

        def apply(self, params: Array, values: Array) -> Array:
            self.shape = values.shape
            return values.reshape(-1, 64) @ params

    def model(x: Array) -> None:
        with numpyro.plate("data", 16):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            logits = jnp.broadcast_to(z.sum(-1)[:, None, None, None], x.shape)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", 16):
            loc = numpyro.param("weight", jnp.ones(2)) * x.mean((-3, -2, -1))[:, None]
            numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    encoder = Images()
    critic = ConcatCritic(x_dim=4, z_dim=2, hidden=(8,), x_encoder=encoder)
    x = np.random.default_rng(0).integers(0, 2, (16, 1, 8, 8))
    objective = TraceInfoMax_ELBO(critic, num_particles=3)
    case = wrapped(objective, Programs(model, guide, (x,)))
    ((_, grads),) = seeded(objective, case=case)
    assert jnp.abs(grads[CRITIC]["x_encoder"]).max() > 0
    assert encoder.shape == (48, 1, 8, 8)


@pytest.mark.parametrize("settings", [{"data": "right"}, {"data": lambda x: x[:, 0]}])
def test_naming_the_data_settles_which(settings: dict) -> None:
    case = _two_observed()
    seen, _ = observe(concat(1), 1.0, case, **settings)
    np.testing.assert_array_equal(seen.calls[0][0], case.args[0][:, 0])


def test_factors_and_deterministic_values_are_no_data() -> None:
    with pytest.raises(ValueError, match=r"Expected one observed site .*; got \[\]: pass data="):
        evaluate(TraceInfoMax_ELBO(concat()), _unobserved())
