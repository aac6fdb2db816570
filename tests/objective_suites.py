"""What each objective is exact about, beside the contract of tests/elbo_suite.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from tests import reference, refusals, refused_settings
from tests.elbo_suite import (
    LENGTHSCALES,
    LOOPED,
    ONE,
    VECTORISED,
    ELBOSuite,
    PenalisedSuite,
    mean_and_error,
)
from tests.objectives.alone import in_both, slow_in_numpyro
from tests.shared_programs import CRITIC, correlated_pair, critic, linear_gaussian, one_datum


class MMDSuite(PenalisedSuite):
    """What TraceMMD_ELBO is exact about: N (alpha + lambd - 1) MMD², in closed form."""

    name = "TraceMMD_ELBO"
    masked = ({"estimator": "closed_form"},)

    def neutral(self, **settings: Any) -> Any:
        with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
            return self.elbo(alpha=0.0, lambd=1.0, **settings)

    def typical(self, **settings: Any) -> Any:
        return self.elbo(0.3, 30.0, self.half.library.RBF(LENGTHSCALES), **settings)

    def without_kl(self, **settings: Any) -> Any:
        return self.elbo(1.0, 9.0, **settings)

    def added(self, **settings: Any) -> Any:
        return self.elbo(0.0, 3.0, **settings)

    def scaled(self) -> Sequence[tuple[Any, Any]]:
        def pair(particles: dict[str, Any], **settings: Any) -> tuple[Any, Any]:
            kernel = self.half.library.RBF(LENGTHSCALES)
            return self.stock(**particles), self.elbo(0.0, 30.0, kernel, **particles, **settings)

        if self.half.compiles:
            return [pair(VECTORISED)]
        others = [pair(VECTORISED), pair(LOOPED), pair(ONE, estimator="closed_form")]
        return [*super().scaled(), *others]

    def test_the_exact_posterior_gives_the_evidence_and_the_mmd(self) -> None:
        case, evidence, kl, loc, scale = linear_gaussian(self.half)
        kernel = self.half.library.RBF(LENGTHSCALES)
        mmd = reference.mmd_squared_normal(
            loc, scale, np.zeros((12, 2)), np.ones((12, 2)), LENGTHSCALES, estimator="biased"
        )
        alphas = 0.0, 0.4, 1.0
        sampled, analytic, *ours = self.half.steps(
            [
                self.elbo(
                    lambd=8.0,
                    kernel=kernel,
                    estimator="closed_form",
                    base=self.half.infer.Trace_ELBO(),
                ),
                self.stock(),
                *(self.elbo(alpha, 8.0, kernel, estimator="closed_form") for alpha in alphas),
            ],
            case,
        )
        assert sampled.loss == pytest.approx(-evidence + 12 * 7 * mmd, rel=1e-9)
        for alpha, step in zip(alphas, ours, strict=True):
            expected = analytic.loss - alpha * kl + 12 * (alpha + 7) * mmd
            assert step.loss == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("name", refused_settings.MMD_SETTINGS)
    def test_settings_are_refused(self, name: str) -> None:
        self.check_settings(refused_settings.MMD_SETTINGS[name])

    @pytest.mark.filterwarnings("ignore:Missing a plate statement")
    @pytest.mark.parametrize("name", refusals.MMD_PROGRAMS)
    def test_programs_are_refused(self, name: str) -> None:
        self.check_program(refusals.MMD_PROGRAMS[name])


class FeaturesSuite(MMDSuite):
    """The same of the estimate by random frequencies."""

    masked = ({"estimator": "features"},)

    def neutral(self, **settings: Any) -> Any:
        return super().neutral(**{"estimator": "features", **settings})

    def typical(self, **settings: Any) -> Any:
        return super().typical(estimator="features", **settings)

    def without_kl(self, **settings: Any) -> Any:
        return super().without_kl(estimator="features", **settings)

    def added(self, **settings: Any) -> Any:
        return super().added(**{"estimator": "features", **settings})

    def scaled(self) -> Sequence[tuple[Any, Any]]:
        return [(self.stock(**kw), self.typical(**kw)) for kw in (VECTORISED,)]


@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
class InfoMaxSuite(PenalisedSuite):
    """What TraceInfoMax_ELBO is exact about: the information that the best critic finds."""

    name = "TraceInfoMax_ELBO"
    masked = ({"negatives": "shift"}, {"negatives": "all"})
    own_parameters: ClassVar[set[str]] = {f"critic.{name}" for name in CRITIC}

    def neutral(self, **settings: Any) -> Any:
        return self.elbo(critic(self.half), 0.0, 1.0, **{"sites": ["z"], **settings})

    def typical(self, **settings: Any) -> Any:
        return self.elbo(critic(self.half), 3.0, 0.8, **settings)

    def without_kl(self, **settings: Any) -> Any:
        return self.elbo(critic(self.half), 0.3, 0.0, **settings)

    def added(self, **settings: Any) -> Any:
        return self.elbo(critic(self.half), **settings)

    def scaled(self) -> Sequence[tuple[Any, Any]]:
        pairs = super().scaled()
        every = self.stock(), self.typical(negatives="all")
        return pairs if self.half.compiles else [*pairs, every]

    def make(self, **settings: Any) -> Any:
        return super().make(**{"critic": critic(self.half), **settings})

    def test_the_exact_posterior_gives_the_evidence_and_the_kl(self) -> None:
        case, evidence, kl = linear_gaussian(self.half)[:3]
        sampled, analytic, ours = self.half.steps(
            [
                self.elbo(critic(self.half), 0.0, base=self.half.infer.Trace_ELBO()),
                self.stock(),
                self.elbo(critic(self.half), 0.0, 0.7),
            ],
            case,
        )
        assert sampled.loss == pytest.approx(-evidence, rel=1e-9)
        assert ours.loss == pytest.approx(analytic.loss - 0.3 * kl, rel=1e-9)
        assert sampled.grads.keys() == self.own_parameters
        assert all(np.abs(grad).max() > 0 for grad in sampled.grads.values())

    @in_both("negatives", ["shift", "all"], quick=[])
    def test_the_best_critic_finds_the_mutual_information(self, negatives: str) -> None:
        correlation, num, alpha = 0.8, 4000, 2.0
        information = -0.5 * math.log(1 - correlation**2)

        def log_ratio(params: Any, x: Any, z: Any) -> Any:
            """1 + log p(x, z) / p(x) p(z), which maximises the NWJ bound."""
            square = correlation * (2 * x * z - correlation * (x * x + z * z))
            return params["shift"] + information + (square / (2 * (1 - correlation**2)))[:, 0]

        def elbo(weight: float) -> Any:
            best = self.half.critic(log_ratio, {"shift": np.array(1.0)})
            return self.elbo(best, weight, negatives=negatives)

        case = correlated_pair(self.half, correlation=correlation, num=num, batch=100)
        weighted, unweighted = self.half.losses([elbo(alpha), elbo(0.0)], case, count=150)
        estimate, error = mean_and_error((unweighted - weighted) / (num * alpha))
        assert abs(estimate - information) < 4 * error
        assert error < 0.05 * information, "too few draws to tell"

    @pytest.mark.parametrize("name", refused_settings.INFOMAX_SETTINGS)
    def test_settings_are_refused(self, name: str) -> None:
        self.check_settings(refused_settings.INFOMAX_SETTINGS[name])

    @pytest.mark.parametrize("name", refusals.INFOMAX_PROGRAMS)
    def test_programs_are_refused(self, name: str) -> None:
        self.check_program(refusals.INFOMAX_PROGRAMS[name])


class HamiltonianSuite(ELBOSuite):
    """What TraceHamiltonian_ELBO is exact about: weights that average to the evidence."""

    name = "TraceHamiltonian_ELBO"

    def stock(self, **particles: Any) -> Any:
        return self.half.infer.Trace_ELBO(**particles)

    def neutral(self, **settings: Any) -> Any:
        return self.elbo(3, 0.0, learn=False, **settings)

    def typical(self, **settings: Any) -> Any:
        return self.elbo(3, 0.15, **settings)

    def particles(self, program: str) -> Sequence[dict[str, Any]]:
        # Particles in a loop draw their momenta in between, so the stock ELBO draws others.
        return [kw for kw in super().particles(program) if kw is not LOOPED]

    @in_both("precondition", ["guide", "none"], quick=["guide"])
    def test_the_weights_average_to_the_evidence(self, precondition: str) -> None:
        """Without refreshment: over the noise of position and momentum, by quadrature."""
        flow = {"persistence": 1.0, "precondition": precondition, "learn": False}
        self.check_weights(self.elbo(3, 0.2, **flow))

    @slow_in_numpyro
    def test_the_bound_rises_with_the_steps(self) -> None:
        """From a guide twice too wide; the log weights are quadratic in the noise."""
        self.check_rise(
            [self.elbo(k, 0.2, persistence=1.0, learn=False) for k in self.numbers_of_steps]
        )

    @property
    def numbers_of_steps(self) -> Sequence[int]:
        return (1, 4, 16) if self.half.compiles else (1, 2, 4, 8, 16)

    def check_weights(self, elbo: Any) -> None:
        points, weights = hermite_grid(8)

        def log_ratios(points: np.ndarray, *, is_positive: bool) -> np.ndarray:
            case, evidence = one_datum(self.half, shift=0.3, widening=1.2, is_positive=is_positive)
            return -self.half.losses_at(elbo, case, points) - evidence

        real = log_ratios(points, is_positive=False)
        assert weights @ np.exp(real) == pytest.approx(1.0, abs=1e-4)
        assert weights @ real < -1e-3, "too near to the posterior to tell"
        # The same problem in unconstrained space, draw by draw.
        few = slice(None, None, 7)
        np.testing.assert_allclose(log_ratios(points[few], is_positive=True), real[few], atol=1e-9)

    def check_rise(self, flows: Sequence[Any]) -> None:
        case, evidence = one_datum(self.half, widening=2.0)
        points, weights = hermite_grid(3)
        elbos = [self.stock(), *flows]
        gaps = [evidence + weights @ self.half.losses_at(elbo, case, points) for elbo in elbos]
        assert gaps[0] == pytest.approx(1.5 - math.log(2.0), rel=1e-9)
        assert (np.diff(gaps) < 0).all()
        assert 0 < gaps[-1] < 0.5 * gaps[0]

    @pytest.mark.parametrize("name", refused_settings.HAMILTONIAN_SETTINGS)
    def test_settings_are_refused(self, name: str) -> None:
        self.check_settings(refused_settings.HAMILTONIAN_SETTINGS[name])

    @pytest.mark.parametrize("name", refusals.HAMILTONIAN_PROGRAMS)
    def test_programs_are_refused(self, name: str) -> None:
        self.check_program(refusals.HAMILTONIAN_PROGRAMS[name])


class PosteriorPathSuite(HamiltonianSuite):
    """The same of the path along the posterior, with a momentum that cools."""

    def neutral(self, **settings: Any) -> Any:
        return self.elbo(3, 0.0, path="posterior", tempering="none", learn=False, **settings)

    def typical(self, **settings: Any) -> Any:
        return self.elbo(3, 0.15, path="posterior", **settings)

    @in_both("tempering", ["quadratic", "free", "none", "constant"], quick=["free"])
    def test_the_weights_average_to_the_evidence(self, tempering: str) -> None:
        """Over the noise of position and momentum, by quadrature."""
        schedule = {"path": "posterior", "beta_0": 0.6, "tempering": tempering}
        self.check_weights(self.elbo(3, 0.15, learn=False, **schedule))

    @slow_in_numpyro
    def test_the_bound_rises_with_the_steps(self) -> None:
        """From a guide twice too wide; the log weights are quadratic in the noise."""
        schedule = {"path": "posterior", "beta_0": 0.3}
        flows = [self.elbo(k, 0.22, learn=False, **schedule) for k in self.numbers_of_steps]
        self.check_rise(flows)


def hermite_grid(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (num², 2) and weights of the expectation over two standard normals."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    return points, np.outer(weights, weights).reshape(-1) / weights.sum() ** 2
