"""The suggested weight against the terms of the objective it is for."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer import Trace_ELBO
from scipy.stats import norm

from numpyro_backend import RBF, TraceMMD_ELBO
from numpyro_backend._diagnostics.suggested_lambd import SuggestedLambd, suggest_lambd
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def run(case: Programs, *, params: dict[str, Any] | None = None, **settings: Any) -> SuggestedLambd:
    key = jax.random.key(0)
    return suggest_lambd(key, params or {}, case.model, case.guide, *case.args, **settings)


def linear(num: int, *, batch: int | None = None) -> Programs:
    """z ~ N(0, 1), x ~ N(2 z, 0.5²), and q(z | x) = N(x, scale²), for data of scale 3."""

    def model(x: Array) -> None:
        with numpyro.plate("data", num, subsample_size=batch) as index:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(2 * z, 0.5), obs=jnp.asarray(x)[index])

    def guide(x: Array) -> None:
        scale = numpyro.param("scale", 10.0)
        with numpyro.plate("data", num, subsample_size=batch) as index:
            numpyro.sample("z", dist.Normal(jnp.asarray(x)[index], scale))

    return Programs(model, guide, (3 * programs.data(num, 1)[:, 0],))


def mmd_squared_of_normals(variance: float) -> float:
    """MMD² of N(0, variance) and N(0, 1) under an RBF kernel of lengthscale 1."""
    return 1 / math.sqrt(1 + 2 * variance) + 1 / math.sqrt(3) - 2 / math.sqrt(2 + variance)


def test_of_a_linear_model() -> None:
    """Both terms are known, for x ~ N(0, 3²); of minibatches, the last filled from the start."""
    case = linear(1000, batch=300)
    suggested = run(case, params={"scale": 0.1}, share=0.3, alpha=0.25)
    (x,) = case.args
    squares = (x**2).sum() + 4 * 1000 * 0.01  # E (x - 2 z)² = x² + 4 s²
    log_likelihood = -squares / 2 / 0.25 - 1000 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert suggested.log_likelihood == pytest.approx(log_likelihood, rel=0.03)
    assert suggested.num_data == 1000
    weight = 0.3 * abs(suggested.log_likelihood) / (1000 * suggested.mmd_squared)
    assert suggested.lambd == pytest.approx(0.75 + weight, rel=1e-12)
    expected = 0.75 + 0.3 * abs(log_likelihood) / (1000 * mmd_squared_of_normals(9.01))
    assert 0 < suggested.standard_error < 0.15 * expected
    assert suggested.lambd == pytest.approx(expected, abs=4 * suggested.standard_error)


def test_the_share_is_that_of_the_objective() -> None:
    """The loss at the suggested weight less the loss without: s times the reconstruction."""
    case, params, kernel = linear(800), {"scale": 0.1}, RBF(2.0)
    suggested = run(case, params=params, share=0.5, kernel=kernel)

    @jax.jit
    def losses(key: Array) -> list[Array]:
        return [
            objective.loss(key, params, case.model, case.guide, *case.args)
            for objective in (TraceMMD_ELBO(lambd=suggested.lambd, kernel=kernel), Trace_ELBO())
        ]

    with_mmd, without = losses(jax.random.key(1))
    share = (with_mmd - without) / abs(suggested.log_likelihood)
    assert float(share) == pytest.approx(0.5, rel=0.2)


def test_masks_and_scales_count_as_in_the_loss() -> None:
    """A scale of 10 on all, and another of a hundredth on a second observation."""
    model, guide, (x,) = linear(200)
    mask = np.arange(200) % 2 == 0

    def both(x: Array) -> None:
        model(x)
        with numpyro.plate("data", 200), handlers.scale(scale=0.01):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=x)

    case = Programs(
        *(handlers.mask(handlers.scale(p, scale=10.0), mask=mask) for p in (both, guide)), (x,)
    )
    suggested = run(case, params={"scale": 1e-6})
    exact = norm.logpdf(x, 2 * x, 0.5) + 0.01 * norm.logpdf(x)
    assert suggested.log_likelihood == pytest.approx(10 * exact[mask].sum(), rel=1e-4)


def _all_alike(x: Array, y: Array) -> Array:
    return jnp.ones((len(x), len(y)))


def _without_data() -> Programs:
    def program() -> None:
        with numpyro.plate("data", 5):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(program, program, ())


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "share": (programs.vae(), {"share": 0.0}, "share > 0; got 0.0"),
    "alpha": (programs.vae(), {"alpha": 1.5}, "alpha <= 1; got 1.5"),
    "max_data": (programs.vae(), {"max_data": 2}, "max_data >= 4; got 2"),
    "not positive": (
        programs.vae(),
        {"kernel": _all_alike},
        r"Expected a positive MMD²; got the estimate 0: q\(z\)",
    ),
    "no data": (_without_data(), {}, "suggest_lambd: the model observes nothing"),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(case, **settings)
