"""``RenyiELBO`` as a base: a bound with all data, and in NumPyro with a minibatch of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_numpyro, in_pyro, slow_in_numpyro
from tests.objectives.statistics import averages_to
from tests.refusals import says

X = math.sqrt(2) * np.random.default_rng(0).normal(size=40)
EVIDENCE = float(-0.25 * (X**2).sum() - 20 * math.log(4 * math.pi))


def wide_guide(half: Half, *, batch: int | None = None) -> Case:
    """z ~ N(0, 1) and x | z ~ N(z, 1), and a guide that is wider than the posterior."""
    x = half.xp.asarray(X)

    def model() -> None:
        with half.plate("data", 40, batch=batch) as chosen:
            z = half.sample("z", half.dist.Normal(0 * x[chosen], 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=x[chosen])

    def guide() -> None:
        scale = half.param("scale", 1.0)
        with half.plate("data", 40, batch=batch) as chosen:
            half.sample("z", half.dist.Normal(0.5 * x[chosen], scale))

    return Case(model, guide)


def over(half: Half, base: Any) -> Any:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        return half.library.TraceMMD_ELBO(lambd=1.0, base=base)


def expected_bound(draws: int) -> float:
    """E[log mean of the weights of all data], from weights drawn by themselves."""
    noise = np.random.default_rng(1).normal(size=(4000, draws, 40))
    z = 0.5 * X + noise
    log_w = -0.5 * (z**2 + (X - z) ** 2) - 0.5 * math.log(2 * math.pi) + 0.5 * noise**2
    return float(np.log(np.exp(log_w).mean(1)).sum(-1).mean())


@in_pyro
@pytest.mark.parametrize("vectorised", [False, True], ids=["loop", "vector"])
def test_a_minibatch_is_refused_by_its_plate(half: Half, vectorised: bool) -> None:
    base = half.infer.RenyiELBO(
        num_particles=3, vectorize_particles=vectorised, max_plate_nesting=1
    )
    objective = half.library.TraceMMD_ELBO(base=base)
    assert says(lambda: half.evaluate(objective, wide_guide(half, batch=10))) == (
        "Expected whole plates below RenyiELBO of several particles, for its bound would be lost; "
        "got plate 'data' with 10 of 40 data: pass them all, or use base=Trace_ELBO()"
    )
    half.evaluate(objective, wide_guide(half))
    other = half.library.TraceMMD_ELBO(base=half.infer.Trace_ELBO())
    half.evaluate(other, wide_guide(half, batch=10))


@in_pyro
def test_one_particle_is_the_elbo_on_a_minibatch_too(half: Half) -> None:
    elbos = [over(half, half.infer.RenyiELBO(num_particles=1)), half.infer.Trace_ELBO()]
    assert_same_step(*half.steps(elbos, wide_guide(half, batch=10)), own_parameters=set())


@slow_in_numpyro
def test_all_data_give_the_bound(half: Half) -> None:
    losses = half.losses(
        [over(half, half.infer.RenyiELBO(num_particles=5))], wide_guide(half), count=100
    )
    assert averages_to(-losses[0], expected_bound(5))
    assert -losses.mean() < EVIDENCE


@in_numpyro
@pytest.mark.slow
def test_a_minibatch_gives_the_bound_of_all_data(half: Half) -> None:
    """NumPyro scales outside the logarithm, and draws the minibatch once for all particles."""
    base, case = half.infer.RenyiELBO(num_particles=5), wide_guide(half, batch=10)
    ours, stock = half.losses([over(half, base), base], case, count=400)
    np.testing.assert_allclose(ours, stock, rtol=1e-12)
    assert averages_to(-ours, expected_bound(5))


@in_numpyro
def test_a_minibatch_of_data_that_share_a_latent_is_refused_by_numpyro(half: Half) -> None:
    case = wide_guide(half, batch=10)

    def with_global(program: Any) -> Any:
        def run() -> None:
            half.sample("theta", half.dist.Normal(0.0, 1.0))
            program()

        return run

    shared = Case(with_global(case.model), with_global(case.guide))
    objective = half.library.TraceMMD_ELBO(base=half.infer.RenyiELBO(num_particles=3))
    with pytest.raises(ValueError, match="only supports subsampling in plates that are common"):
        half.evaluate(objective, shared)
