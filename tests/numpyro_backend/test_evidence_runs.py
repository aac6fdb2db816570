"""log_evidence: runs in chunks, parameters and arguments."""

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
from numpyro.distributions import constraints

from numpyro_backend._diagnostics.evidence import log_evidence
from tests.numpyro_backend.evidence_programs import (
    NOISE,
    WEIGHT,
    assert_exact,
    linear_gaussian,
    run,
)
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


class TestChunks:
    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_chunks_change_nothing(self) -> None:
        case, _ = linear_gaussian(num=8)
        results = [
            run(case, num_samples=50, chunk_size=chunk_size).log_weights
            for chunk_size in (None, 16, 1)
        ]
        assert len(np.unique(results[0], axis=0)) == 50
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], rtol=1e-10)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    @pytest.mark.parametrize(
        ("features", "num_samples", "chunk_size", "expected"),
        [
            (1, 8, 4, {4}),
            (1, 9, 4, {3}),
            (1, 9, None, {9}),
            (1, 9, 1, set()),
            (10**5, 6, None, {3}),
        ],
    )
    def test_memory_is_bounded(
        self, features: int, num_samples: int, chunk_size: int | None, expected: set[int]
    ) -> None:
        """At 20 · 10⁵ numbers a draw, 2²³ numbers hold 4 draws."""
        draws = set()

        @jax.custom_batching.custom_vmap
        def note(z: Array) -> Array:
            return z

        @note.def_vmap
        def _(axis_size: int, _: Any, z: Array) -> tuple[Array, bool]:
            draws.add(axis_size)
            return z, True

        def model() -> None:
            with numpyro.plate("data", 20):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                loc = jnp.broadcast_to(note(z)[:, None], (20, features)) / features
                numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=0.0)

        def guide() -> None:
            with numpyro.plate("data", 20):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        result = run(
            Programs(model, guide, ()), num_samples=num_samples, chunk_size=chunk_size
        ).log_weights
        assert result.shape == (num_samples, 20)
        assert draws == expected

    def test_a_program_that_cannot_be_vectorised(self) -> None:
        case, exact = linear_gaussian(num=2)

        @jax.custom_batching.custom_vmap
        def decode(z: Array) -> Array:
            return z @ WEIGHT.T

        def model(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(decode(z), NOISE).to_event(1), obs=x)

        @decode.def_vmap
        def _(*_: Any) -> Any:
            raise NotImplementedError("one code at a time")

        unvectorised = Programs(model, case.guide, case.args)
        with pytest.raises(NotImplementedError, match="one code at a time") as error:
            run(unvectorised, num_samples=100)
        assert any("chunk_size=1" in note for note in error.value.__notes__)
        assert_exact(run(unvectorised, num_samples=1000, chunk_size=1), exact)


class TestPrograms:
    def test_the_parameters_given_are_used(self) -> None:
        """A guide that is exact where its parameter is, and far off where it starts."""
        x = jnp.array([0.5, -1.0, 2.0])

        def model() -> None:
            scale = numpyro.param("noise", 5.0, constraint=constraints.positive)
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, scale), obs=x)

        def guide() -> None:
            slope = numpyro.param("slope", -3.0)
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Normal(slope * x, math.sqrt(0.5)))

        result = run(
            Programs(model, guide, ()), params={"noise": 1.0, "slope": 0.5}, num_samples=20
        )
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
        np.testing.assert_allclose(result.log_evidence, exact, rtol=1e-9)

    def test_keyword_arguments_reach_the_programs(self) -> None:
        case, exact = linear_gaussian()
        model: Callable[..., None] = lambda *, rows: case.model(rows)  # noqa: E731
        guide: Callable[..., None] = lambda *, rows: case.guide(rows)  # noqa: E731
        key = jax.random.key(0)
        result = log_evidence(key, {}, model, guide, rows=case.args[0], num_samples=2000)
        assert_exact(result, exact)
