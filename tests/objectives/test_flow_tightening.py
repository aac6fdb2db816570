"""How much nearer to the posterior the flow brings a guide."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest

from tests.halves import Case, GivenArrays, Half
from tests.objectives.flows import flow


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TraceHamiltonian_ELBO. the flow of")  # on the way to the least
def test_more_steps_close_the_gap(half: Half) -> None:
    """A normal with correlation 0.9 under a diagonal guide, whose own gap is 0.83 nats.

    The log weight is quadratic in the four standard normals of a draw, so that eight points
    with their second moments give its expectation exactly: no noise hides a gap.
    """
    points = 2 * np.concatenate([np.eye(4), -np.eye(4)])
    numbers = points[:, :2], points[:, 2:]
    draws = partial(GivenArrays, *numbers, *numbers)  # again, where a row diverges on the way
    tril = np.linalg.cholesky(np.array([[1.0, 0.27], [0.27, 0.09]]))
    scale = np.array([1.0, 0.3]) * math.sqrt(1 - 0.9**2)

    def model() -> None:
        loc, root = half.xp.zeros((8, 2)), half.xp.asarray(tril)
        with half.plate("points", 8):
            half.sample("z", half.dist.MultivariateNormal(loc, scale_tril=root))

    def guide() -> None:
        spread = half.param("scale", scale, constraint=half.dist.constraints.positive)
        with half.plate("points", 8):
            half.sample("z", half.dist.Normal(half.xp.zeros((8, 2)), spread).to_event(1))

    case = Case(model, guide)
    plain = -0.5 * math.log(1 - 0.9**2)
    (stock,) = half.steps([half.infer.Trace_ELBO()], case, draws=draws)
    gaps, step_size = [stock.loss / 8], np.empty((0, 2))
    assert gaps[0] == pytest.approx(plain, rel=1e-6)
    for num_steps in (1, 3, 10):
        more = np.full((num_steps - len(step_size), 2), 0.3)
        start = half.xp.asarray(np.concatenate([step_size, more]))
        settings = {"tempering": "free", "max_step_size": 0.8, "beta_0": 0.95}
        elbo = flow(half, num_steps, start, per_step=True, **settings)
        loss, params = half.minimised(elbo, case, draws=draws)
        gaps.append(loss / 8)
        scale, step_size = params["scale"], params["hamiltonian.step_size"]
    assert all(after < before for before, after in itertools.pairwise(gaps))
    assert -1e-9 < gaps[-1] < 0.05 * plain, "a gap below 0 would be no bound"
