"""The MMD test: its level where q(z) = p(z), its power where not, its value in closed form."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_infovae import IMQ, RBF, mmd_squared
from pyro_infovae._core.pair_statistics import mean_of_pairs
from pyro_infovae._diagnostics.mmd_test import mmd_test, pair_contrasts
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs


def linear(x: Tensor, *, shift: float = 0.0, scale: float = 1.0) -> Programs:
    """z ~ N(0, 1), x ~ N(z, 1), and the exact posterior, moved and widened."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(scale * (x / 2 + shift), scale * math.sqrt(0.5)))

    return Programs(model, guide, (x,))


def expected_mmd_squared(loc: float, variance: float, *, lengthscale: float) -> float:
    """MMD² of N(loc, variance) and N(0, 1) under an RBF kernel."""

    def mean_kernel(difference: float, total: float) -> float:
        width = lengthscale**2 + total
        return lengthscale / math.sqrt(width) * math.exp(-(difference**2) / (2 * width))

    return (
        mean_kernel(0.0, 2 * variance) + mean_kernel(0.0, 2.0) - 2 * mean_kernel(loc, 1 + variance)
    )


def test_contrasts_are_the_estimator_that_leaves_out_pairs_of_a_datum() -> None:
    x, y = programs.data(9, 2), programs.data(9, 2, seed=5)
    expected = mmd_squared(x, y, IMQ(), num_data=9)
    h = pair_contrasts(x, y, IMQ())
    assert not h.diagonal().any()
    assert mean_of_pairs(h.numpy()) == pytest.approx(float(expected), rel=1e-12)


class TestValue:
    @pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.0, 1.8)])
    def test_closed_form(self, shift: float, scale: float) -> None:
        x = math.sqrt(2.0) * torch.randn(1500)
        case = linear(x, shift=shift, scale=scale)
        test = mmd_test(case.model, case.guide, x, kernel=RBF(0.8), num_permutations=200)
        expected = expected_mmd_squared(scale * shift, scale**2, lengthscale=0.8)
        assert expected > 8 * test.standard_error, "too few data to tell"
        assert test.mmd_squared == pytest.approx(expected, abs=4 * test.standard_error)
        assert test.p_value == 1 / 201
        assert (test.num_data, test.num_permutations) == (1500, 200)

    def test_standard_errors_are_the_spread_over_data_sets(self) -> None:
        tests = []
        for _ in range(100):
            x = math.sqrt(2.0) * torch.randn(60)
            case = linear(x, shift=0.6)
            tests.append(mmd_test(case.model, case.guide, x, num_permutations=1))
        spread = torch.tensor([test.mmd_squared for test in tests]).std()
        claimed = torch.tensor([test.standard_error for test in tests]).square().mean().sqrt()
        assert float(claimed / spread) == pytest.approx(1.0, abs=4 / math.sqrt(2 * 100))


class TestLevel:
    def p_values(self, cases: list[Programs]) -> Tensor:
        tests = [mmd_test(c.model, c.guide, *c.args, num_permutations=99) for c in cases]
        return torch.tensor([test.p_value for test in tests])

    def test_p_values_are_uniform_for_the_exact_posterior(self) -> None:
        """Of data from the model: then q(z) is the prior."""
        cases = [linear(math.sqrt(2.0) * torch.randn(25)) for _ in range(400)]
        p_values = self.p_values(cases)
        for level in (0.05, 0.2, 0.5, 0.8):
            error = math.sqrt(level * (1 - level) / 400)
            got = float((p_values <= level).double().mean())
            assert got == pytest.approx(level, abs=4 * error)

    def test_a_prior_that_depends_on_the_datum(self) -> None:
        """Codes far apart from one another, each from its own prior: swaps within a datum hold."""
        cases = [programs.covariate_prior(num=25, exact=True) for _ in range(200)]
        p_values = self.p_values(cases)
        for level in (0.05, 0.5):
            error = math.sqrt(level * (1 - level) / 200)
            assert float((p_values <= level).double().mean()) == pytest.approx(level, abs=4 * error)

    def test_a_difference_is_found(self) -> None:
        cases = [linear(math.sqrt(2.0) * torch.randn(40), shift=1.0) for _ in range(30)]
        assert (self.p_values(cases) <= 0.05).double().mean() > 0.9


class TestData:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_minibatches(self, dtype: torch.dtype) -> None:
        torch.set_default_dtype(dtype)
        case = programs.vae(num=13, batch=5)
        assert mmd_test(case.model, case.guide, case.args[0].to(dtype)).num_data == 13

    def test_masked_data_are_left_out(self) -> None:
        case = programs.masked_vae()
        assert mmd_test(case.model, case.guide, *case.args).num_data == 8

    def test_at_most_max_data(self) -> None:
        case = linear(torch.randn(50))
        assert mmd_test(case.model, case.guide, *case.args, max_data=20).num_data == 20

    def test_only_the_named_latents(self) -> None:
        """z1 is from the prior; z2 and both together are not."""
        case = programs.two_latents(num=300)
        pyro.param("weight", torch.tensor(0.0))
        p_values = [
            mmd_test(case.model, case.guide, *case.args, sites=sites).p_value
            for sites in ("z1", ["z2"], None)
        ]
        assert p_values[0] > 0.01
        assert max(p_values[1:]) < 0.01

    def test_is_reproducible(self) -> None:
        case = linear(torch.randn(20))
        tests = []
        for _ in range(2):
            pyro.set_rng_seed(3)
            tests.append(mmd_test(case.model, case.guide, *case.args))
        assert tests[0] == tests[1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "permutations": ({"num_permutations": 0}, "num_permutations >= 1; got 0"),
    "max_data": ({"max_data": 3}, "max_data >= 4; got 3"),
    "kernel": (
        {"kernel": lambda x, y: torch.zeros(len(x), len(y), 2)},
        r"Expected kernel\(x, y\) of shape \(12, 12\); got \(12, 12, 2\)",
    ),
}


@pytest.mark.parametrize(("settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(settings: dict[str, Any], match: str) -> None:
    case = programs.vae()
    with pytest.raises(ValueError, match=match):
        mmd_test(case.model, case.guide, *case.args, **settings)


def test_refuses_fewer_than_four_data() -> None:
    case = programs.vae(num=3)
    with pytest.raises(ValueError, match="mmd_test: Expected at least 4 data; got 3"):
        mmd_test(case.model, case.guide, *case.args)
