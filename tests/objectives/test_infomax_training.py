"""Training with TraceInfoMax_ELBO, and what it warns of."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.shared_programs import critic, vae


def polynomial(params: Any, x: Any, z: Any) -> Any:
    """The log density ratio of two jointly normal numbers, up to its coefficients."""
    a, b, c, d = params["coefficients"]
    return a + b * x * x + c * x * z + d * z * z


def linear_gaussian(half: Half, x: np.ndarray, batch: int) -> Case:
    """z ~ N(0, 1), x | z ~ N(z / 2, 1), and the guide N(a x, s²) with a and s to learn."""

    def model(x: Any) -> None:
        with half.plate("data", len(x), batch=batch) as index:
            z = half.sample("z", half.dist.Normal(0 * x[index], 1.0))
            half.sample("x", half.dist.Normal(0.5 * z, 1.0), obs=x[index])

    def guide(x: Any) -> None:
        slope = half.param("slope", 0.2)
        scale = half.param("scale", 0.8, constraint=half.dist.constraints.positive)
        with half.plate("data", len(x), batch=batch) as index:
            half.sample("z", half.dist.Normal(slope * x[index], scale))

    return Case(model, guide, (half.xp.asarray(x),))


def information(slope: Any, scale: Any) -> Any:
    return 0.5 * np.log1p((slope / scale) ** 2)


def best_information(alpha: float) -> float:
    """I at the minimum of the objective itself, whose terms are all known, by a grid search."""
    slope, scale = np.meshgrid(np.linspace(0.0, 2.0, 801), np.linspace(0.02, 1.2, 801))
    reconstruction = 0.5 * ((1 - 0.5 * slope) ** 2 + 0.25 * scale**2)
    kl = 0.5 * (scale**2 + slope**2 - 1) - np.log(scale)
    loss = reconstruction + kl - alpha * information(slope, scale)
    return float(information(slope, scale).flat[loss.argmin()])


@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
@pytest.mark.slow
def test_alpha_raises_the_true_information_to_where_the_objective_is_best(half: Half) -> None:
    """Standard normal data, so that I = ½ log(1 + a²/s²), which the critic comes to know."""
    x = np.random.default_rng(1).normal(size=4000)
    x = (x - x.mean()) / x.std()
    case = linear_gaussian(half, x, batch=200)
    reached = []
    for alpha in (0.0, 0.5):
        ratio = half.critic(
            lambda params, x, z: polynomial(params, x, z[:, 0]),
            {"coefficients": np.zeros(4)},
            pairs=lambda params, x, z: polynomial(params, x[:, None], z[:, 0]),
        )
        objective = half.library.TraceInfoMax_ELBO(ratio, alpha, negatives="all")
        params = half.trained(objective, case, steps=400, lr=4e-2, decay=0.992).params
        true = float(information(params["slope"], params["scale"]))
        assert true == pytest.approx(best_information(alpha), rel=0.05)
        reached.append(true)

        noise = np.random.default_rng(3).normal(size=1000)
        z = params["slope"] * x[:1000] + params["scale"] * noise
        learned = {"coefficients": params["critic.coefficients"]}
        scores = polynomial(learned, x[:1000, None], z)
        apart = scores[~np.eye(1000, dtype=bool)]
        estimate = np.diag(scores).mean() - np.exp(apart - 1).mean()
        assert estimate == pytest.approx(true, abs=0.05)
    assert reached[0] < reached[1]


def test_few_rows_warn_once(half: Half) -> None:
    few, many = (vae(half, x=np.zeros((num, 3))) for num in (63, 64))
    objective = half.library.TraceInfoMax_ELBO(critic(half))
    with pytest.warns(UserWarning, match="from 63 rows, which is poor below 64"):
        half.evaluate(objective, few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half.evaluate(objective, few)
        half.evaluate(half.library.TraceInfoMax_ELBO(critic(half)), many)
