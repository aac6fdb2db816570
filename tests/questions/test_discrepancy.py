"""The MMD test and the suggested weight: their values in closed form, the data they compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from pyro_infovae._core.discrepancy import ask_mmd_test, ask_suggest_lambd, pair_contrasts
from pyro_infovae._core.pair_statistics import mean_of_pairs
from tests.halves import Case
from tests.questions.asking import Asking, data, in_pyro, slow_in_numpyro
from tests.questions.programs import in_plate, two_latents, vae
from tests.questions.runs import runs_of_arrays


def linear(half: Asking, num: int, *, shift: float = 0.0, scale: float = 1.0) -> Case:
    """z ~ N(0, 1), x ~ N(z, 1), of data that the model would draw, and the exact posterior."""
    x = half.array(math.sqrt(2.0) * data(num, 1)[:, 0])

    def model(_: Any) -> None:
        z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
        half.sample("x", half.dist.Normal(z, 1.0), obs=x)

    def guide(_: Any) -> None:
        half.sample("z", half.dist.Normal(scale * (x / 2 + shift), scale * math.sqrt(0.5)))

    return Case(*(in_plate(half, num, draw) for draw in (model, guide)))


def covariate_prior(half: Asking, num: int) -> Case:
    """Codes far apart from one another, each from its own prior."""
    loc = half.array(3.0 * data(num, 1)[:, 0])
    program = in_plate(half, num, lambda _: half.sample("z", half.dist.Normal(loc, 1.0)))
    return Case(program, program)


def expected_mmd_squared(loc: float, variance: float, *, lengthscale: float) -> float:
    """MMD² of N(loc, variance) and N(0, 1) under an RBF kernel."""

    def mean_kernel(difference: float, total: float) -> float:
        width = lengthscale**2 + total
        return lengthscale / math.sqrt(width) * math.exp(-(difference**2) / (2 * width))

    return (
        mean_kernel(0.0, 2 * variance) + mean_kernel(0.0, 2.0) - 2 * mean_kernel(loc, 1 + variance)
    )


def rbf(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((x[:, None] - y) ** 2).sum(-1))


class TestContrasts:
    @slow_in_numpyro
    def test_are_the_estimator_that_leaves_out_pairs_of_a_datum(self, half: Asking) -> None:
        x, y = half.array(data(9, 2)), half.array(data(9, 2, seed=5))
        expected = half.library.mmd_squared(x, y, half.library.IMQ(), batch_size=9)
        h = pair_contrasts(x, y, half.library.IMQ())
        assert not h.diagonal().any()
        np.testing.assert_allclose(h, h.T)
        assert mean_of_pairs(h) == pytest.approx(float(expected), rel=1e-12)

    def test_standard_errors_are_the_spread_over_data_sets(self) -> None:
        """Of a test, and of a weight for data of as much log likelihood."""
        rng = np.random.default_rng(0)
        codes = [(0.6 + rng.normal(size=(60, 1)), rng.normal(size=(60, 1))) for _ in range(300)]
        runs = runs_of_arrays(60, lambda: None)
        tests = [
            ask_mmd_test(runs, pair, rbf, rng, num_permutations=1, max_data=60) for pair in codes
        ]
        settings = {"share": 0.1, "alpha": 0.0, "max_data": 150}
        wide = [(4 * rng.normal(size=(150, 1)), rng.normal(size=(150, 1))) for _ in range(300)]
        runs = runs_of_arrays(150, lambda: None)
        weights = [
            ask_suggest_lambd(runs, [(*pair, np.array(-9.0))], rbf, rng, **settings)
            for pair in wide
        ]
        for values, errors, tolerance in (
            ([t.mmd_squared for t in tests], [t.standard_error for t in tests], 0.17),
            ([w.lambd for w in weights], [w.standard_error for w in weights], 0.35),
        ):
            claimed = math.sqrt(np.mean(np.square(errors)))
            assert claimed / np.std(values) == pytest.approx(1.0, abs=tolerance)

    @pytest.mark.parametrize("spread", [0.0, 3.0])
    def test_p_values_are_uniform_where_the_laws_are_equal(self, spread: float) -> None:
        """Also where the prior of a datum is its own: swaps within a datum hold."""
        rng, runs = np.random.default_rng(0), runs_of_arrays(25, lambda: None)

        def p_value(shift: float) -> float:
            loc = spread * rng.normal(size=(25, 1))
            codes = loc + shift + rng.normal(size=(25, 1)), loc + rng.normal(size=(25, 1))
            return ask_mmd_test(runs, codes, rbf, rng, num_permutations=99, max_data=25).p_value

        p_values = np.array([p_value(0.0) for _ in range(600)])
        for level in (0.05, 0.2, 0.5, 0.8):
            error = math.sqrt(level * (1 - level) / 600)
            assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * error)
        if not spread:
            assert np.mean([p_value(1.3) <= 0.05 for _ in range(60)]) > 0.9


class TestMMDTest:
    @pytest.mark.parametrize(
        ("half", "shift", "scale"),
        [("pyro", 0.7, 1.0), ("pyro", 0.0, 1.8), ("numpyro", 0.3, 1.5)],
        indirect=["half"],
    )
    def test_closed_form(self, half: Asking, shift: float, scale: float) -> None:
        kernel = half.library.RBF(0.8)
        case = linear(half, 1500, shift=shift, scale=scale)
        test = half.ask("mmd_test", case, kernel=kernel, num_permutations=200)
        expected = expected_mmd_squared(scale * shift, scale**2, lengthscale=0.8)
        assert expected > 8 * test.standard_error, "too few data to tell"
        assert test.mmd_squared == pytest.approx(expected, abs=4 * test.standard_error)
        assert test.p_value == 1 / 201
        assert (test.num_data, test.num_permutations) == (1500, 200)

    @slow_in_numpyro
    def test_of_the_exact_posterior(self, half: Asking) -> None:
        """And the seed determines all of it."""
        first, second = (half.ask("mmd_test", linear(half, 400)) for _ in range(2))
        assert first == second
        assert first.p_value > 0.01
        assert abs(first.mmd_squared) < 4 * first.standard_error

    def test_a_prior_that_depends_on_the_datum(self, half: Asking) -> None:
        assert half.ask("mmd_test", covariate_prior(half, 100)).p_value > 0.01

    @slow_in_numpyro
    def test_at_most_max_data_in_single_precision(self, half: Asking) -> None:
        with half.single_precision():
            case = vae(half, num=13, batch=5)
            assert half.ask("mmd_test", case, max_data=9).num_data == 9

    def test_masked_data_are_left_out(self, half: Asking) -> None:
        case = vae(half, mask=np.arange(12) % 3 != 0)
        assert half.ask("mmd_test", case).num_data == 8

    @in_pyro
    def test_the_data_of_all_minibatches(self, half: Asking) -> None:
        assert half.ask("mmd_test", vae(half, num=13, batch=5)).num_data == 13

    @slow_in_numpyro
    def test_only_the_named_latents(self, half: Asking) -> None:
        """z1 is from the prior; z2 and both together are not."""
        case = two_latents(half, num=300, slope=0.0)
        p_values = [half.ask("mmd_test", case, sites=s).p_value for s in ("z1", ["z2"], None)]
        assert p_values[0] > 0.01
        assert max(p_values[1:]) < 0.01


def wide(half: Asking, num: int, *, batch: int | None = None, scale: float = 0.1) -> Case:
    """z ~ N(0, 1), x ~ N(2 z, 0.5²), and q(z | x) = N(x, scale²), for data of scale 3."""
    x = half.array(3 * data(num, 1)[:, 0])

    def model(index: Any) -> None:
        z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x[index]), 1.0))
        half.sample("x", half.dist.Normal(2 * z, 0.5), obs=x[index])

    def guide(index: Any) -> None:
        half.sample("z", half.dist.Normal(x[index], scale))

    return Case(*(in_plate(half, num, draw, batch=batch) for draw in (model, guide)))


class TestSuggestedLambd:
    @pytest.mark.parametrize(
        ("half", "batch"),
        [("pyro", None), ("pyro", 300), pytest.param("numpyro", 300, marks=pytest.mark.slow)],
        indirect=["half"],
    )
    def test_of_a_linear_model(self, half: Asking, batch: int | None) -> None:
        """Both terms are known, for x ~ N(0, 3²); the last minibatch is filled from the start."""
        case, x = wide(half, 1000, batch=batch), 3 * data(1000, 1)[:, 0]
        suggested = half.ask("suggest_lambd", case, share=0.3, alpha=0.25)
        squares = (x**2).sum() + 4 * 1000 * 0.01  # E (x - 2 z)² = x² + 4 s²
        log_likelihood = -squares / 2 / 0.25 - 1000 * math.log(0.5 * math.sqrt(2 * math.pi))
        tolerance = 0.03 if batch else 0.01
        assert suggested.log_likelihood == pytest.approx(log_likelihood, rel=tolerance)
        assert suggested.num_data == 1000
        weight = 0.3 * abs(suggested.log_likelihood) / (1000 * suggested.mmd_squared)
        assert suggested.lambd == pytest.approx(0.75 + weight, rel=1e-12)
        exact = expected_mmd_squared(0.0, 9.01, lengthscale=1.0)
        expected = 0.75 + 0.3 * abs(log_likelihood) / (1000 * exact)
        assert 0 < suggested.standard_error < 0.15 * expected
        assert suggested.lambd == pytest.approx(expected, abs=4 * suggested.standard_error)

    @slow_in_numpyro
    def test_the_share_is_that_of_the_objective(self, half: Asking) -> None:
        """The loss at the suggested weight less the loss without: s times the reconstruction."""
        case, kernel = wide(half, 800), half.library.RBF(2.0)
        suggested = half.ask("suggest_lambd", case, share=0.5, kernel=kernel)
        objectives = [
            half.library.TraceMMD_ELBO(lambd=suggested.lambd, kernel=kernel),
            half.infer.Trace_ELBO(),
        ]
        with_mmd, without = half.losses(objectives, case, count=1)[:, 0]
        share = (with_mmd - without) / abs(suggested.log_likelihood)
        assert share == pytest.approx(0.5, rel=0.2)

    @slow_in_numpyro
    def test_masks_and_scales_count_as_in_the_loss(self, half: Asking) -> None:
        """A scale of 10 on all, and another of a hundredth on a second observation."""
        model, guide = wide(half, 200, scale=1e-6)[:2]
        x, mask = 3 * data(200, 1)[:, 0], np.arange(200) % 2 == 0
        normal, rows = half.dist.Normal(half.array(0.0), 1.0), half.array(x)
        again = half.scaled(in_plate(half, 200, lambda _: half.sample("y", normal, obs=rows)), 0.01)

        def both() -> None:
            model()
            again()

        case = Case(*(half.masked(half.scaled(p, 10.0), mask) for p in (both, guide)))
        suggested = half.ask("suggest_lambd", case)
        exact = norm.logpdf(x, 2 * x, 0.5) + 0.01 * norm.logpdf(x)
        assert suggested.log_likelihood == pytest.approx(10 * exact[mask].sum(), rel=1e-4)


def _without_data(half: Asking) -> Case:
    normal = half.dist.Normal(half.array(0.0), 1.0)
    program = in_plate(half, 5, lambda _: half.sample("z", normal))
    return Case(program, program)


def _constant(x: Any, y: Any) -> Any:
    return (x @ y.T) * 0 + 1


def _no_matrix(x: Any, y: Any) -> Any:
    return (x @ y.T)[..., None] + x[0]


REFUSED: dict[str, tuple[str, Callable[..., Case], dict[str, Any], str]] = {
    "permutations": ("mmd_test", vae, {"num_permutations": 0}, "num_permutations >= 1; got 0"),
    "max_data": ("mmd_test", vae, {"max_data": 3}, "max_data >= 4; got 3"),
    "kernel": (
        "mmd_test",
        vae,
        {"kernel": _no_matrix},
        r"Expected kernel\(x, y\) of shape \(12, 12\); got \(12, 12, 2\)",
    ),
    "few data": (
        "mmd_test",
        lambda half: vae(half, num=3),
        {},
        "mmd_test: Expected at least 4 data; got 3",
    ),
    "share": ("suggest_lambd", vae, {"share": 0.0}, "share > 0; got 0.0"),
    "alpha": ("suggest_lambd", vae, {"alpha": 1.5}, "alpha <= 1; got 1.5"),
    "few to weigh": ("suggest_lambd", vae, {"max_data": 2}, "max_data >= 4; got 2"),
    "not positive": (
        "suggest_lambd",
        vae,
        {"kernel": _constant},
        r"Expected a positive MMD²; got the estimate 0: q\(z\)",
    ),
    "no data": ("suggest_lambd", _without_data, {}, "suggest_lambd: the model observes nothing"),
}


@pytest.mark.parametrize(("question", "case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(
    half: Asking, question: str, case: Any, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        half.ask(question, case(half), **settings)
