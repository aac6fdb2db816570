"""One contract for every objective and both halves: a subclass names the objective and the half."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from tests import reference, refusals, refused_settings
from tests.halves import Half, OrderedDraws, Step
from tests.refusals import RefusedProgram, says
from tests.refused_settings import RefusedSettings
from tests.shared_programs import (
    CRITIC,
    PROGRAMS,
    correlated_pair,
    critic,
    grid,
    linear_gaussian,
    one_datum,
    vae,
)

ONE: dict[str, Any] = {}
VECTORISED = {"num_particles": 3, "vectorize_particles": True}
LOOPED = {"num_particles": 3, "vectorize_particles": False}
LENGTHSCALES = (0.7, 2.0)


def assert_same_step(ours: Step, stock: Step, *, own_parameters: set[str]) -> None:
    assert ours.loss == pytest.approx(stock.loss, rel=1e-12)
    assert ours.grads.keys() == stock.grads.keys() | own_parameters
    assert stock.grads
    for name, grad in stock.grads.items():
        np.testing.assert_allclose(ours.grads[name], grad, rtol=1e-12, atol=1e-14, err_msg=name)
    assert all(np.abs(ours.grads[name]).max() > 0 for name in own_parameters)


def mean_and_error(samples: np.ndarray) -> tuple[float, float]:
    return float(samples.mean()), float(samples.std(ddof=1)) / math.sqrt(len(samples))


class ELBOSuite(ABC):
    """What every objective keeps.

    Attributes:
        half: the half of the library.
        elbo: the objective's class.
        own_parameters: the names of the parameters that a neutral objective adds.
    """

    half: Half
    elbo: Any
    own_parameters: ClassVar[set[str]] = set()

    @abstractmethod
    def stock(self, **particles: Any) -> Any:
        """The ELBO that the objective is with neutral settings."""

    @abstractmethod
    def neutral(self, **particles: Any) -> Any:
        """The objective with settings that make it the stock ELBO."""

    @abstractmethod
    def typical(self) -> Any:
        """The objective with settings that tell it from the stock ELBO."""

    def scaled(self) -> Sequence[tuple[Any, Any]]:
        """Objectives whose scale is tried, each behind the stock ELBO that draws as it does."""
        return [(self.stock(), self.typical())]

    def make(self, **settings: Any) -> Any:
        """The objective with some settings, and what it cannot be without."""
        return self.elbo(**settings)

    def particles(self, program: str) -> Sequence[dict[str, Any]]:
        """The particle settings to try on a program, for which the stock ELBO draws the same."""
        return ONE, VECTORISED, LOOPED

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_neutral_settings_reproduce_the_stock_elbo(self, name: str) -> None:
        pairs = [(self.neutral(**kw), self.stock(**kw)) for kw in self.particles(name)]
        steps = self.half.steps(
            [elbo for pair in pairs for elbo in pair], PROGRAMS[name](self.half)
        )
        for ours, stock in zip(steps[::2], steps[1::2], strict=True):
            assert_same_step(ours, stock, own_parameters=self.own_parameters)

    def test_the_expected_loss_grows_with_the_data_and_not_with_the_batch(self) -> None:
        """Less the stock ELBO's on the same draws, which is known to and only adds noise."""
        x = np.random.default_rng(1).normal(size=(300, 3))

        def gain(elbos: Any, x: np.ndarray, *, batch: int, count: int) -> tuple[float, float]:
            stock, ours = self.half.losses(elbos, vae(self.half, x=x, batch=batch), count=count)
            return mean_and_error(ours - stock)

        for elbos in self.scaled():
            mean, error = gain(elbos, x, batch=100, count=30)
            twice, twice_error = gain(elbos, np.concatenate([x, x]), batch=20, count=120)
            assert abs(mean) > 8 * error, "too little signal to tell"
            assert abs(twice - 2 * mean) < 4 * math.hypot(twice_error, 2 * error)

    def test_the_loss_ignores_how_the_plates_are_written(self) -> None:
        x = np.random.default_rng(1).normal(size=(4, 6, 3))
        line, square = (
            self.half.steps([self.typical()], case, draws=OrderedDraws)[0]
            for case in (vae(self.half, x=x.reshape(24, 3)), grid(self.half, x=x))
        )
        assert square.loss == pytest.approx(line.loss, rel=1e-9)
        for name, grad in line.grads.items():
            np.testing.assert_allclose(square.grads[name], grad, rtol=1e-9, atol=1e-9)

    def check_settings(self, refused: RefusedSettings) -> None:
        assert says(lambda: self.make(**refused.settings)) == refused.message

    def check_program(self, refused: RefusedProgram) -> None:
        elbo = self.make(**refused.settings(self.half))
        case = refused.program(self.half)
        assert says(lambda: self.half.evaluate(elbo, case)) == refused.message


class MMDSuite(ELBOSuite):
    """What TraceMMD_ELBO is exact about: N (alpha + lambd - 1) MMD², in closed form."""

    def stock(self, **particles: Any) -> Any:
        return self.half.infer.TraceMeanField_ELBO(**particles)

    def neutral(self, **particles: Any) -> Any:
        with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
            return self.elbo(alpha=0.0, lambd=1.0, **particles)

    def typical(self) -> Any:
        return self.elbo(0.3, 30.0, self.half.library.RBF(LENGTHSCALES))

    def scaled(self) -> Sequence[tuple[Any, Any]]:
        pooled = self.elbo(0.0, 30.0, self.half.library.RBF(LENGTHSCALES), **VECTORISED)
        return [*super().scaled(), (self.stock(**VECTORISED), pooled)]

    def test_the_exact_posterior_gives_the_evidence_and_the_mmd(self) -> None:
        case, evidence, kl, loc, scale = linear_gaussian(self.half)
        kernel = self.half.library.RBF(LENGTHSCALES)
        mmd = reference.mmd_squared_normal(
            loc, scale, np.zeros((12, 2)), np.ones((12, 2)), LENGTHSCALES, num_data=12
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


@pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
class InfoMaxSuite(ELBOSuite):
    """What TraceInfoMax_ELBO is exact about: the information that the best critic finds."""

    own_parameters: ClassVar[set[str]] = {f"critic.{name}" for name in CRITIC}

    def stock(self, **particles: Any) -> Any:
        return self.half.infer.TraceMeanField_ELBO(**particles)

    def neutral(self, **particles: Any) -> Any:
        return self.elbo(critic(self.half), 0.0, 1.0, sites=["z"], **particles)

    def typical(self) -> Any:
        return self.elbo(critic(self.half), 3.0, 0.8)

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

    @pytest.mark.parametrize("negatives", ["shift", "all"])
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

    def stock(self, **particles: Any) -> Any:
        return self.half.infer.Trace_ELBO(**particles)

    def neutral(self, **particles: Any) -> Any:
        return self.elbo(3, 0.0, tempering="none", learn=False, **particles)

    def typical(self) -> Any:
        return self.elbo(3, 0.15)

    def particles(self, program: str) -> Sequence[dict[str, Any]]:
        # Particles in a loop draw their momenta in between, so the stock ELBO draws others.
        return [kw for kw in super().particles(program) if kw is not LOOPED]

    @pytest.mark.parametrize("tempering", ["quadratic", "free", "none", "constant"])
    def test_the_weights_average_to_the_evidence(self, tempering: str) -> None:
        """Over the noise of position and momentum, by quadrature."""
        elbo = self.elbo(3, 0.15, beta_0=0.6, tempering=tempering, learn=False)
        points, weights = hermite_grid(9)
        log_ratios = []
        for is_positive in (False, True):
            case, evidence = one_datum(self.half, shift=0.3, widening=1.2, is_positive=is_positive)
            log_ratios.append(-self.half.losses_at(elbo, case, points) - evidence)
        assert weights @ np.exp(log_ratios[0]) == pytest.approx(1.0, abs=1e-4)
        assert weights @ log_ratios[0] < -1e-3, "too near to the posterior to tell"
        # The same problem in unconstrained space.
        np.testing.assert_allclose(log_ratios[1], log_ratios[0], atol=1e-9)

    def test_the_bound_rises_with_the_steps(self) -> None:
        """From a guide twice too wide; the log weights are quadratic in the noise."""
        case, evidence = one_datum(self.half, widening=2.0)
        points, weights = hermite_grid(3)
        elbos = [
            self.stock(),
            *(self.elbo(k, 0.22, beta_0=0.3, learn=False) for k in (1, 2, 4, 8, 16)),
        ]
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


def hermite_grid(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (num², 2) and weights of the expectation over two standard normals."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    return points, np.outer(weights, weights).reshape(-1) / weights.sum() ** 2
