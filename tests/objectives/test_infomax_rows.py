"""Which data TraceInfoMax_ELBO shows the critic, and which codes as another datum's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Case, Half
from tests.objectives.alone import in_both, in_numpyro, slow_in_numpyro
from tests.objectives.critics import recording
from tests.objectives.programs import masked
from tests.refused_programs import one_latent
from tests.shared_programs import SEQUENCES, X, critic, vae

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
PARTICLES = {"one": ONE, "vectorised": VECTORISED, "looped": LOOPED}


def some_particles(half: Half, *few: str) -> list[dict[str, Any]]:
    """All settings, or a few where each has to be compiled."""
    return [PARTICLES[name] for name in (few if half.compiles else PARTICLES)]


def denoising(half: Half, *, batch: int | None = None) -> Case:
    """Takes x_in, of which the guide copies a part to z, and is to give x_out back."""

    def model(x_in: Any, x_out: Any) -> None:
        with half.plate("data", 12, batch=batch) as index:
            z = half.sample("z", half.dist.Normal(half.xp.zeros(2), 1.0).to_event(1))
            half.sample("x", half.dist.Normal(z.sum(-1), 1.0), obs=x_out[index])

    def guide(x_in: Any, x_out: Any) -> None:
        positive = half.dist.constraints.positive
        scale = half.param("scale", 1e-9, constraint=positive)
        with half.plate("data", 12, batch=batch) as index:
            half.sample("z", half.dist.Normal(x_in[index, :2], scale).to_event(1))

    x = half.xp.asarray(X)
    return Case(model, guide, (x,), {"x_out": x.sum(-1)})


class TestData:
    @in_both("batch", [None, 7], quick=[])
    def test_a_function_of_the_arguments_goes_with_the_minibatch(
        self, half: Half, batch: int | None
    ) -> None:
        """The guide copies x_in to z, so that each row of the data can be told by its code."""
        for particles in some_particles(half, "vectorised" if batch else "one"):
            log = list[Any]()
            objective = half.library.TraceInfoMax_ELBO(
                recording(half, log), data=lambda x_in, x_out: x_in, **particles
            )
            (((x, z), *_),) = half.seen(log, objective, denoising(half, batch=batch))
            assert len(x) == (batch or 12) * particles.get("num_particles", 1)
            np.testing.assert_allclose(x[:, :2], z, rtol=0, atol=1e-6)

    @slow_in_numpyro
    def test_a_function_may_give_the_minibatch_itself(self, half: Half) -> None:
        log, minibatch = list[Any](), np.arange(7.0)
        objective = half.library.TraceInfoMax_ELBO(
            recording(half, log, x_dim=1),
            data=lambda x_in, x_out: half.xp.asarray(minibatch),
            **LOOPED,
        )
        (((x, _), *_),) = half.seen(log, objective, denoising(half, batch=7))
        np.testing.assert_array_equal(x, np.tile(minibatch, 3))

    @in_both("source", ["x", "function"], quick=["function"])
    def test_nested_plates_of_which_one_is_subsampled(self, half: Half, source: str) -> None:
        def model(x: Any) -> None:
            with half.plate("groups", 6, batch=5) as index, half.plate("items", 4, dim=-2):
                zeros = half.xp.zeros((4, 5, 2))
                z = half.sample("z", half.dist.Normal(zeros, 1.0).to_event(1))
                half.sample("x", half.dist.Normal(z.sum(-1), 1.0), obs=x[:, index, 2])

        def guide(x: Any) -> None:
            scale = half.param("scale", 1e-9)
            with half.plate("groups", 6, batch=5) as index, half.plate("items", 4, dim=-2):
                half.sample("z", half.dist.Normal(x[:, index, :2], scale).to_event(1))

        case = Case(model, guide, (half.xp.asarray(SEQUENCES),))
        for particles in some_particles(half, "vectorised" if source == "x" else "looped"):
            log = list[Any]()
            objective = half.library.TraceInfoMax_ELBO(
                recording(half, log, x_dim=1 if source == "x" else 3),
                data="x" if source == "x" else lambda x: x,
                **particles,
            )
            (((seen, z), *_),) = half.seen(log, objective, case)
            assert len(seen) == 20 * particles.get("num_particles", 1)
            flat = SEQUENCES.reshape(24, 3)
            found = np.abs(z[:, None] - flat[:, :2]).sum(-1).argmin(1)
            np.testing.assert_array_equal(seen, (flat[:, 2] if source == "x" else flat)[found])

    def test_images_keep_their_shape_and_may_be_integers(self, half: Half) -> None:
        log = list[Any]()
        images = np.random.default_rng(0).integers(0, 2, (12, 1, 4, 4))
        x = half.xp.asarray(images if half.compiles else images.astype(float))

        def model() -> None:
            with half.plate("data", 12):
                z = half.sample("z", half.dist.Normal(half.xp.zeros((12, 2)), 1.0).to_event(1))
                logits = z.sum(-1)[..., None, None, None] + half.xp.zeros((1, 4, 4))
                half.sample("x", half.dist.Bernoulli(logits=logits).to_event(3), obs=x)

        def guide() -> None:
            with half.plate("data", 12):
                loc = half.param("weight", np.ones(2)) * (1.0 * x).mean((-3, -2, -1))[:, None]
                half.sample("z", half.dist.Normal(loc, 1.0).to_event(1))

        for particles in some_particles(half, "vectorised"):
            shown = recording(half, log, x_dim=16)
            objective = half.library.TraceInfoMax_ELBO(shown, **particles)
            (step,) = half.steps([objective], Case(model, guide))
            assert np.abs(step.grads["critic.x_weight"]).max() > 0
            rows = 12 * particles.get("num_particles", 1)
            assert {tuple(x.shape) for x, _ in log} == {(rows, 1, 4, 4)}
            log.clear()

    @pytest.mark.parametrize("by_name", [True, False])
    def test_naming_the_data_settles_which(self, half: Half, by_name: bool) -> None:
        log, first = list[Any](), half.xp.asarray(X[:, 0])
        objective = half.library.TraceInfoMax_ELBO(
            recording(half, log, x_dim=1, z_dim=3), data="right" if by_name else lambda: first
        )
        (((x, _), *_),) = half.seen(log, objective, one_latent(half, observed=("left", "right")))
        np.testing.assert_array_equal(x, X[:, 0])

    def test_factors_and_deterministic_values_are_no_data(self, half: Half) -> None:
        """The only observation is outside the plate."""

        def model(x: Any) -> None:
            half.sample("sum", half.dist.Normal(0.0, 1.0), obs=x.sum())
            with half.plate("data", 12):
                z = half.sample("z", half.dist.Normal(0 * x[:, :2], 1.0).to_event(1))
                half.factor("factor", z.sum(-1))
                half.deterministic("copy", z, event_dim=1)

        case = vae(half)._replace(model=model)
        objective = half.library.TraceInfoMax_ELBO(critic(half))
        with pytest.raises(ValueError, match=r"one observed site .*; got none: pass data="):
            half.evaluate(objective, case)


def scattered(half: Half, *, batch: int | None = None) -> Case:
    """z holds noise and a global latent, by which the particle of a code can be told."""
    x = half.xp.asarray(np.repeat(np.arange(12.0)[:, None], 3, 1))

    def model() -> None:
        with half.plate("data", 12, batch=batch) as index:
            z = half.sample("z", half.dist.Normal(half.xp.zeros(2), 1.0).to_event(1))
            loc = z.sum(-1)[..., None] + half.xp.zeros(3)
            half.sample("x", half.dist.Normal(loc, 1.0).to_event(1), obs=x[index])

    def guide() -> None:
        shift = half.param("loc", 0.3)
        with half.plate("data", 12, batch=batch) as index:
            half.sample("z", half.dist.Normal(x[index, :2] + shift, 1.0).to_event(1))

    return Case(model, guide)


def shown(half: Half, case: Case, *, count: int, **settings: Any) -> list[Any]:
    """Data and own codes, and the same data and others' codes, run by run."""
    log = list[Any]()
    objective = half.library.TraceInfoMax_ELBO(recording(half, log), **settings)
    return half.seen(log, objective, case, count=count)


class TestNegatives:
    @in_both("batch", [None, 5], quick=[None])
    def test_are_codes_of_other_data_of_the_same_particle(
        self, half: Half, batch: int | None
    ) -> None:
        for particles in some_particles(half, *(("vectorised", "looped") if batch else ("one",))):
            draws = particles.get("num_particles", 1)
            case = scattered(half, batch=batch)
            for (x, own), (same_x, other) in shown(half, case, count=30, **particles):
                assert len(own) == (batch or 12) * draws
                np.testing.assert_array_equal(x, same_x)
                matches = (other[:, None] == own).all(-1)
                np.testing.assert_array_equal(matches.sum(1), 1)
                source, particle = matches.argmax(1), np.arange(len(own)) // (batch or 12)
                assert (x[source, 0] != x[:, 0]).all(), "a negative is another datum's"
                np.testing.assert_array_equal(particle[source], particle)

    @slow_in_numpyro
    def test_every_other_datum_is_met_equally_often(self, half: Half) -> None:
        offsets = np.zeros(12)
        for (x, own), (_, other) in shown(half, scattered(half), count=300):
            source = (other[0] == own).all(-1).argmax()
            offsets[int(x[source, 0] - x[0, 0]) % 12] += 1
        assert offsets[0] == 0
        chi_squared = ((offsets[1:] - 300 / 11) ** 2 / (300 / 11)).sum()
        assert chi_squared < 10 + 4 * math.sqrt(2 * 10)

    @in_numpyro
    def test_particles_have_offsets_of_their_own(self, half: Half) -> None:
        runs = shown(half, scattered(half), count=30, num_particles=2)
        own, other = (np.array([run[i][1] for run in runs]) for i in range(2))
        sources = (other[:, [0, 12], None] == own[:, None]).all(-1).argmax(-1)
        offsets = sources - np.array([0, 12])
        assert 15 < (offsets[:, 0] != offsets[:, 1]).sum() < 30

    @pytest.mark.filterwarnings("ignore:Fewer than two rows")
    def test_where_all_is_masked_nothing_can_be_told(self, half: Half) -> None:
        case = masked(half, vae(half), np.zeros(12, bool))
        (step,) = half.steps([half.library.TraceInfoMax_ELBO(critic(half), 3.0)], case)
        assert step.loss == 0
        assert all(np.abs(grad).max() == 0 for grad in step.grads.values())
