"""TraceHamiltonian_ELBO under plates: each row has a flow of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers

from tests.numpyro_backend import programs
from tests.numpyro_backend.flows import assert_evidence, fixed, log_normal
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.steps import evaluate_shapes

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestPlates:
    """Draws are made equal by noise that depends on the row alone."""

    @pytest.fixture(autouse=True)
    def equal_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def noise(key: Array, shape: tuple[int, ...] = (), dtype: Any = float) -> Array:
            size = math.prod(shape)
            return jnp.sin(1.7 * jnp.arange(size, dtype=dtype) ** 1.3).reshape(shape)

        monkeypatch.setattr(jax.random, "normal", noise)

    def test_the_bound_per_datum_ignores_batch_and_data_size(self) -> None:
        x = programs.data(64)

        def loss_per_row(batch: int, total: int) -> Array:
            index = jnp.arange(batch)

            def model() -> None:
                with numpyro.plate("data", total, subsample_size=batch):
                    z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                    loc = programs._decode(z, 3)
                    numpyro.sample(
                        "x", dist.Normal(loc, 0.3).to_event(1), obs=jnp.asarray(x)[index]
                    )

            def guide() -> None:
                with numpyro.plate("data", total, subsample_size=batch):
                    loc, scale = programs._encoder(jnp.asarray(x)[index], 2)
                    numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

            refined = handlers.seed(fixed(5).refine(model, guide), 0)
            trace = handlers.trace(refined).get_trace()
            replayed = handlers.trace(handlers.replay(handlers.seed(model, 0), trace)).get_trace()
            rows = (site["fn"].log_prob(site["value"]) for site in (replayed["z"], replayed["x"]))
            own = trace["z"]
            return sum(rows) - own["fn"].log_prob(own["value"])

        sizes = [(16, 16), (16, 6400), (4, 6400)]
        rows = jax.jit(lambda: [loss_per_row(*size) for size in sizes])()
        np.testing.assert_allclose(rows[1], rows[0], rtol=1e-12)
        np.testing.assert_allclose(rows[2], rows[0][:4], rtol=1e-12)


class TestStacks:
    def test_nested_plates_with_masked_items(self) -> None:
        """a_j ~ N(0, 1), z_ij ~ N(a_j, 1), x_ij ~ N(z_ij, 1), of which some are missing."""
        x, present = programs.data(3, 2), np.array([[True, True], [False, True], [True, False]])

        def model() -> None:
            with numpyro.plate("groups", 2, dim=-1):
                a = numpyro.sample("a", dist.Normal(0.0, 1.0))
                with numpyro.plate("items", 3, dim=-2), handlers.mask(mask=jnp.array(present)):
                    z = numpyro.sample("z", dist.Normal(a, 1.0))
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with numpyro.plate("groups", 2, dim=-1):
                a = numpyro.sample("a", dist.Normal(x.mean(0) / 2, 0.8))
                with numpyro.plate("items", 3, dim=-2), handlers.mask(mask=jnp.array(present)):
                    numpyro.sample("z", dist.Normal((a + x) / 2, 0.9))

        evidence = sum(
            log_normal(x[rows, j], 2 * np.eye(rows.sum()) + 1) for j, rows in enumerate(present.T)
        )
        assert_evidence(fixed(), Programs(model, guide, ()), evidence)

    def test_two_plates_subsampled_apart(self) -> None:
        """Labelled and unlabelled rows: neither latent depends on the other's minibatch."""

        def program(is_model: bool, tie: bool) -> Callable[[], None]:
            def run() -> None:
                theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
                for name, size in (("labelled", 10), ("unlabelled", 20)):
                    with numpyro.plate(name, size, subsample_size=5):
                        z = numpyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
                        if is_model:
                            numpyro.sample(f"x_{name}", dist.Normal(z, 0.5), obs=jnp.ones(5))
                            numpyro.factor(f"y_{name}", jnp.ones(5) * (theta if tie else 1.0))

            return run

        apart, tied = (
            Programs(program(True, tie), program(False, tie), ()) for tie in (False, True)
        )
        evaluate_shapes(fixed(), apart)
        with pytest.raises(ValueError, match="'theta' is outside plate 'labelled'"):
            evaluate_shapes(fixed(), tied)
