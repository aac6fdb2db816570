"""The suggested weight against the terms of the objective it is for."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_infovae import RBF, TraceMMD_ELBO
from pyro_infovae._diagnostics.suggested_lambd import suggest_lambd
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs


def linear(x: Tensor, *, batch: int | None = None, scale: float = 0.1) -> Programs:
    """z ~ N(0, 1), x ~ N(2 z, 0.5²), and q(z | x) = N(x, scale²)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), batch) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(2 * z, 0.5), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), batch) as index:
            pyro.sample("z", dist.Normal(x[index], scale))

    return Programs(model, guide, (x,))


def mmd_squared_of_normals(variance: float) -> float:
    """MMD² of N(0, variance) and N(0, 1) under an RBF kernel of lengthscale 1."""
    return 1 / math.sqrt(1 + 2 * variance) + 1 / math.sqrt(3) - 2 / math.sqrt(2 + variance)


@pytest.mark.parametrize("batch", [None, 300])
def test_of_a_linear_model(batch: int | None) -> None:
    """Both terms are known, for x ~ N(0, 3²)."""
    x = 3 * torch.randn(1000)
    case = linear(x, batch=batch)
    suggested = suggest_lambd(case.model, case.guide, x, share=0.3, alpha=0.25)
    squares = (x**2).sum() + 4 * 1000 * 0.01  # E (x - 2 z)² = x² + 4 s²
    log_likelihood = float(-(squares / 2 / 0.25) - 1000 * math.log(0.5 * math.sqrt(2 * math.pi)))
    assert suggested.log_likelihood == pytest.approx(log_likelihood, rel=0.02 if batch else 0.01)
    assert suggested.num_data == 1000
    weight = 0.3 * abs(suggested.log_likelihood) / (1000 * suggested.mmd_squared)
    assert suggested.lambd == pytest.approx(0.75 + weight, rel=1e-12)
    expected = 0.75 + 0.3 * abs(log_likelihood) / (1000 * mmd_squared_of_normals(9.01))
    assert 0 < suggested.standard_error < 0.15 * expected
    assert suggested.lambd == pytest.approx(expected, abs=4 * suggested.standard_error)


def test_the_share_is_that_of_the_objective() -> None:
    """The loss at the suggested weight less the loss without: s times the reconstruction."""
    x = 3 * torch.randn(800)
    case = linear(x)
    kernel = RBF(2.0)
    suggested = suggest_lambd(case.model, case.guide, x, share=0.5, kernel=kernel)
    losses = []
    for objective in (TraceMMD_ELBO(lambd=suggested.lambd, kernel=kernel), Trace_ELBO()):
        pyro.set_rng_seed(1)
        losses.append(objective.loss(case.model, case.guide, x))
    share = (losses[0] - losses[1]) / abs(suggested.log_likelihood)
    assert share == pytest.approx(0.5, rel=0.2)


def test_standard_errors_are_the_spread_over_data_sets() -> None:
    weights = []
    for _ in range(80):
        x = 4 * torch.randn(150)
        case = linear(x)
        weights.append(suggest_lambd(case.model, case.guide, x))
    spread = torch.tensor([w.lambd * w.num_data / abs(w.log_likelihood) for w in weights]).std()
    claimed = torch.tensor(
        [w.standard_error * w.num_data / abs(w.log_likelihood) for w in weights]
    ).square()
    assert float(claimed.mean().sqrt() / spread) == pytest.approx(1.0, abs=0.35)


def test_masks_and_scales_count_as_in_the_loss() -> None:
    model, guide, (x,) = linear(3 * torch.randn(200))
    mask = torch.arange(200) % 2 == 0
    masked = [pyro.poutine.mask(p, mask=mask) for p in (model, guide)]
    scaled = [pyro.poutine.scale(p, scale=10.0) for p in masked]
    plain, tenfold = (suggest_lambd(*case, x).log_likelihood for case in (masked, scaled))
    exact = dist.Normal(2 * x, 0.5).log_prob(x)[mask].sum()
    assert plain == pytest.approx(float(exact), rel=0.1)
    assert tenfold == pytest.approx(10 * plain, rel=0.05)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "share": ({"share": 0.0}, "share > 0; got 0.0"),
    "alpha": ({"alpha": 1.5}, "alpha <= 1; got 1.5"),
    "max_data": ({"max_data": 2}, "max_data >= 4; got 2"),
}


@pytest.mark.parametrize(("settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(settings: dict[str, Any], match: str) -> None:
    case = programs.vae()
    with pytest.raises(ValueError, match=match):
        suggest_lambd(case.model, case.guide, *case.args, **settings)


def test_refuses_an_estimate_that_is_not_positive() -> None:
    """A kernel to which all codes look alike."""
    case = programs.vae()
    with pytest.raises(ValueError, match=r"Expected a positive MMD²; got the estimate 0: q\(z\)"):
        suggest_lambd(case.model, case.guide, *case.args, kernel=lambda x, y: x @ y.T * 0 + 1)


def test_refuses_a_model_that_observes_nothing() -> None:
    def program() -> None:
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="suggest_lambd: the model observes nothing"):
        suggest_lambd(program, program)
