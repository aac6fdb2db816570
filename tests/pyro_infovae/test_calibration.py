"""Simulation-based calibration of linear models, whose posteriors are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae._diagnostics.calibration import Calibration, simulation_based_calibration
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs

WEIGHT = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.8, 0.7]], dtype=torch.float64)
NOISE = 0.6


def linear(
    *,
    num: int = 150,
    batch: int | None = None,
    mask: Any = True,
    scale: float = 1.0,
    shift: float = 0.0,
    seen: Callable[[Tensor], None] = lambda x: None,
) -> Programs:
    """x_i ~ N(W z_i, 0.6² I), z_i ~ N(0, I), and the exact posterior, widened and moved.

    The user's own data are a hundred times larger than the model's.
    """
    covariance = (torch.eye(2) + WEIGHT.T @ WEIGHT / NOISE**2).inverse()
    factor = scale * torch.linalg.cholesky(covariance)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), batch) as index, pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ WEIGHT.T, NOISE).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), batch) as index, pyro.poutine.mask(mask=mask):
            seen(x[index])
            loc = x[index] @ WEIGHT @ covariance / NOISE**2 + shift
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    return Programs(model, guide, (100 * programs.data(num),))


def calibrate(case: Programs, **settings: Any) -> Calibration:
    settings = {"num_simulations": 4, "num_samples": 49, **settings}
    return simulation_based_calibration(case.model, case.guide, *case.args, **settings)


def assert_uniform(calibration: Calibration) -> None:
    assert min(calibration.p_values) > 1e-3
    ranks, largest = calibration.ranks.double(), calibration.num_samples
    error = math.sqrt(largest * (largest + 2) / 12 / len(ranks))
    assert ((ranks.mean(0) - largest / 2).abs() < 4 * error).all()


class TestRanks:
    def test_are_uniform_for_the_exact_posterior(self) -> None:
        calibration = calibrate(linear())
        assert_uniform(calibration)
        assert calibration.ranks.shape == (600, 2)
        assert (calibration.ranks.min(), calibration.ranks.max()) == (0, 49)
        assert calibration.dimensions == ("z[0]", "z[1]")

    def test_p_values_are_uniform_for_the_exact_posterior(self) -> None:
        case = linear(num=40)
        p_values = [
            p for _ in range(60) for p in calibrate(case, num_simulations=1, num_samples=9).p_values
        ]
        below = sum(p <= 0.2 for p in p_values) / len(p_values)
        assert below == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / 60))

    def test_of_a_guide_that_is_too_narrow(self) -> None:
        calibration = calibrate(linear(scale=0.5))
        assert max(calibration.p_values) < 1e-6
        extreme = (calibration.ranks < 5) | (calibration.ranks > 44)
        assert (extreme.double().mean(0) > 0.3).all(), "0.2 where uniform"

    def test_of_a_guide_that_is_too_wide(self) -> None:
        calibration = calibrate(linear(scale=2.0))
        assert max(calibration.p_values) < 1e-6
        extreme = (calibration.ranks < 5) | (calibration.ranks > 44)
        assert (extreme.double().mean(0) < 0.1).all(), "0.2 where uniform"

    def test_of_a_guide_that_is_too_high(self) -> None:
        calibration = calibrate(linear(shift=0.3))
        assert max(calibration.p_values) < 1e-6
        assert (calibration.ranks.double().mean(0) < 20).all(), "24.5 where uniform"

    def test_of_minibatches(self) -> None:
        calibration = calibrate(linear(batch=100), num_simulations=6)
        assert calibration.ranks.shape == (600, 2)
        assert_uniform(calibration)

    def test_masked_rows_have_none(self) -> None:
        calibration = calibrate(linear(mask=torch.arange(150) % 3 != 0))
        assert calibration.ranks.shape == (400, 2)
        assert_uniform(calibration)

    def test_of_the_named_latents(self) -> None:
        case = programs.two_latents(exact=True)
        calibration = calibrate(case, sites="z2", data_args=lambda drawn: (case.args, {}))
        assert calibration.dimensions == ("z2",)

    def test_a_guide_that_draws_from_the_prior_passes(self) -> None:
        """As the documentation warns."""

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        case = linear()
        assert_uniform(calibrate(Programs(case.model, guide, case.args)))


class TestData:
    def test_the_guide_sees_what_the_model_drew(self) -> None:
        """Standard deviations of the model's data, not a hundred times that."""
        seen: list[Tensor] = []
        calibrate(linear(batch=100, seen=seen.append), num_simulations=1)
        expected = (WEIGHT @ WEIGHT.T).diagonal() + NOISE**2
        assert len(seen) == 50
        for x in seen:
            assert torch.equal(x, seen[0])
        torch.testing.assert_close(seen[0].var(0), expected, rtol=0.7, atol=0.0)

    def test_keyword_arguments_images_and_labels(self) -> None:
        """Images are observed flat; labels, of the same length, stay."""
        covariates = torch.arange(20.0)
        seen = []

        def model(*, images: Tensor, labels: Tensor) -> None:
            with pyro.plate("data", 20):
                z = pyro.sample("z", dist.Normal(labels, 1.0))
                flat = images.reshape(20, -1)
                fn = dist.Bernoulli(logits=z[:, None].expand(20, 4)).to_event(1)
                pyro.sample("x", fn, obs=flat)

        def guide(*, images: Tensor, labels: Tensor) -> None:
            seen.append(images)
            assert labels is covariates
            with pyro.plate("data", 20):
                pyro.sample("z", dist.Normal(images.mean((1, 2, 3)) + labels, 1.0))

        images = 1 - torch.eye(2).expand(20, 1, 2, 2).float()
        simulation_based_calibration(
            model, guide, images=images, labels=covariates, num_simulations=1, num_samples=3
        )
        assert all(x.shape == (20, 1, 2, 2) and x.dtype == torch.float32 for x in seen)
        assert set(seen[0].flatten().tolist()) == {0.0, 1.0}
        assert not torch.equal(seen[0], images)

    def test_several_observed_sites(self) -> None:
        x, y = programs.data(30, 1)[:, 0], programs.data(30, 1, seed=2)[:, 0]
        seen = []

        def model(x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", 30):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + 1000, 0.1), obs=x)
                pyro.sample("y", dist.Normal(z - 1000, 0.1), obs=y)

        def guide(x: Tensor, y: Tensor) -> None:
            seen.append((x, y))
            with pyro.plate("data", 30):
                pyro.sample("z", dist.Normal((x + y) / 2, 0.1 / math.sqrt(2.0)))

        simulation_based_calibration(model, guide, x, y, num_simulations=1, num_samples=2)
        for x, y in seen:
            assert (x > 900).all()
            assert (y < -900).all()

    def test_arguments_that_a_function_rebuilds(self) -> None:
        """Sites x_0, x_1 of a loop are columns of the data; exact, and so uniform."""

        def model(data: dict[str, Tensor]) -> None:
            with pyro.plate("data", 100):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                for t in range(2):
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=data["x"][:, t])

        def guide(data: dict[str, Tensor]) -> None:
            with pyro.plate("data", 100):
                pyro.sample("z", dist.Normal(data["x"].sum(1) / 3, math.sqrt(1 / 3)))

        case = Programs(model, guide, ({"x": torch.zeros(100, 2)},))
        with pytest.raises(ValueError, match=r"what the site 'x_0' observes is none.*data_args"):
            calibrate(case)

        def data_args(drawn: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ({"x": torch.stack([drawn["x_0"], drawn["x_1"]], 1)},), {}

        assert_uniform(calibrate(case, data_args=data_args))

    def test_deterministic_sites_are_no_data(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                mean = pyro.deterministic("mean", 2 * z)
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.4 * x, math.sqrt(0.2)))

        assert_uniform(calibrate(Programs(model, guide, (torch.zeros(150),))))


def test_the_plot_in_the_documentation() -> None:
    arviz = pytest.importorskip("arviz", exc_type=ImportError)
    stats = pytest.importorskip("scipy.stats")
    pytest.importorskip("matplotlib").use("agg")
    calibration = calibrate(linear(num=30), num_simulations=1)
    uniform = stats.randint(0, calibration.num_samples + 1)
    axes = arviz.plot_ecdf(
        calibration.ranks[:, 0].numpy(),
        eval_points=numpy.arange(calibration.num_samples + 1),
        cdf=uniform.cdf,
        rvs=uniform.rvs,
        confidence_bands=True,
    )
    assert axes.get_lines()


def _with_factor() -> Programs:
    case = linear()

    def model(x: Tensor) -> None:
        case.model(x)
        pyro.factor("penalty", torch.tensor(-1.0))

    return Programs(model, case.guide, case.args)


def _without_data() -> Programs:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(program, program, (torch.zeros(5),))


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "simulations": (linear(), {"num_simulations": 0}, "num_simulations >= 1 .*num_simulations=0"),
    "samples": (linear(), {"num_samples": 1}, "num_samples >= 2; got .*num_samples=1"),
    "factor": (_with_factor(), {}, "calibration: the model holds the factor 'penalty'"),
    "no data": (_without_data(), {}, "calibration: the model observes nothing"),
    "other data": (
        programs.two_latents(),
        {},
        "what the site 'x' observes is none of the arguments: pass data_args",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        calibrate(case, **settings)


def test_too_few_ranks_for_a_p_value() -> None:
    calibration = calibrate(linear(num=10), num_simulations=1)
    with pytest.raises(ValueError, match=r"at least 15 ranks.*got 10 of 50"):
        _ = calibration.p_values
