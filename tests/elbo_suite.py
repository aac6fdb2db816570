"""One contract for every objective and both halves: a subclass names the objective and the half."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyro
import pytest
import torch

from tests.halves import Half, OrderedDraws, Step
from tests.objectives.alone import in_both, in_pyro, slow_in_numpyro
from tests.pyro_infovae.half import PYRO
from tests.refusals import RefusedProgram, says
from tests.refused_settings import RefusedSettings
from tests.shared_programs import (
    MASK,
    PROGRAMS,
    RAGGED,
    grid,
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


def base_elbo(half: Half, kind: str, **particles: Any) -> Any:
    """A stock ELBO beside the default one."""
    if kind == "renyi":
        if half.compiles:
            particles.pop("vectorize_particles", None)
        return half.infer.RenyiELBO(alpha=0.3, **{"num_particles": 2, **particles})
    if kind == "hamiltonian":
        return half.library.TraceHamiltonian_ELBO(2, 0.1, **particles)
    kinds = {"trace": half.infer.Trace_ELBO, "graph": half.infer.TraceGraph_ELBO}
    return kinds[kind](**particles)


class ELBOSuite(ABC):
    """What every objective keeps, in both halves.

    Attributes:
        name: that of the objective in its half's library.
        own_parameters: the names of the parameters that a neutral objective adds.
        batches: two sizes of a minibatch at which the expected loss is the same.
        half: the half of the library, set by a fixture.
        elbo: the objective's class there.
    """

    name: ClassVar[str]
    own_parameters: ClassVar[set[str]] = set()
    batches: ClassVar[tuple[int, int]] = (100, 20)
    half: Half
    elbo: Any

    @pytest.fixture(autouse=True)
    def in_half(self, half: Half) -> None:
        self.half, self.elbo = half, getattr(half.library, self.name)

    @abstractmethod
    def stock(self, **particles: Any) -> Any:
        """The ELBO that the objective is with neutral settings."""

    @abstractmethod
    def neutral(self, **settings: Any) -> Any:
        """The objective with settings that make it the stock ELBO."""

    @abstractmethod
    def typical(self, **settings: Any) -> Any:
        """The objective with settings that tell it from the stock ELBO."""

    def scaled(self) -> Sequence[tuple[Any, Any]]:
        """Objectives whose scale is tried, each behind the stock ELBO that draws as it does."""
        return [(self.stock(), self.typical())]

    def make(self, **settings: Any) -> Any:
        """The objective with some settings, and what it cannot be without."""
        return self.elbo(**settings)

    def particles(self, program: str) -> Sequence[dict[str, Any]]:
        """The particle settings to try on a program, for which the stock ELBO draws the same.

        Where each has to be compiled, some on one program and the other on all others.
        """
        if self.half.compiles:
            return [ONE, LOOPED] if program == "subsampled" else [VECTORISED]
        return ONE, VECTORISED, LOOPED

    @in_both("name", PROGRAMS, quick=["masked"])
    def test_neutral_settings_reproduce_the_stock_elbo(self, name: str) -> None:
        pairs = [(self.neutral(**kw), self.stock(**kw)) for kw in self.particles(name)]
        steps = self.half.steps(
            [elbo for pair in pairs for elbo in pair], PROGRAMS[name](self.half)
        )
        for ours, stock in zip(steps[::2], steps[1::2], strict=True):
            assert_same_step(ours, stock, own_parameters=self.own_parameters)

    @slow_in_numpyro
    def test_the_expected_loss_grows_with_the_data_and_not_with_the_batch(self) -> None:
        """Less the stock ELBO's on the same draws, which is known to and only adds noise."""
        x = np.random.default_rng(1).normal(size=(300, 3))

        def gain(elbos: Any, x: np.ndarray, *, batch: int, count: int) -> tuple[float, float]:
            stock, ours = self.half.losses(elbos, vae(self.half, x=x, batch=batch), count=count)
            return mean_and_error(ours - stock)

        for elbos in self.scaled():
            first, other = self.batches
            mean, error = gain(elbos, x, batch=first, count=30)
            twice, twice_error = gain(elbos, np.concatenate([x, x]), batch=other, count=60)
            assert abs(mean) > 8 * error, "too little signal to tell"
            assert abs(twice - 2 * mean) < 4 * math.hypot(twice_error, 2 * error)

    @slow_in_numpyro
    def test_the_loss_ignores_how_the_plates_are_written(self) -> None:
        x = np.random.default_rng(1).normal(size=(4, 6, 3))
        line, square = (
            self.half.steps([self.typical()], case, draws=OrderedDraws)[0]
            for case in (vae(self.half, x=x.reshape(24, 3)), grid(self.half, x=x))
        )
        assert square.loss == pytest.approx(line.loss, rel=1e-9)
        for name, grad in line.grads.items():
            np.testing.assert_allclose(square.grads[name], grad, rtol=1e-9, atol=1e-9)

    @in_pyro
    def test_all_methods_give_the_same_loss(self) -> None:
        cases = [
            (self.neutral(**kw), PROGRAMS[n](PYRO)) for n in PROGRAMS for kw in self.particles(n)
        ]
        for elbo, case in [*cases, (self.typical(), vae(PYRO, batch=5))]:
            self.half.loss(elbo, case)  # in which it finds out how the plates are nested
            losses = []
            for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
                pyro.set_rng_seed(3)
                loss = torch.as_tensor(method(case.model, case.guide, *case.args))
                losses.append(float(loss.detach()))
            assert losses == [pytest.approx(losses[0], rel=1e-12)] * 3

    def check_settings(self, refused: RefusedSettings) -> None:
        assert says(lambda: self.make(**refused.settings)) == refused.message

    def check_program(self, refused: RefusedProgram) -> None:
        elbo = self.make(**refused.settings(self.half))
        case = refused.program(self.half)
        assert says(lambda: self.half.evaluate(elbo, case)) == refused.message


class PenalisedSuite(ELBOSuite):
    """What every penalised objective keeps: it adds its penalty to whatever the base is."""

    @abstractmethod
    def without_kl(self, **settings: Any) -> Any:
        """The objective whose weight of the KL is 0, on which all bases agree."""

    @abstractmethod
    def added(self, **settings: Any) -> Any:
        """The objective that leaves the KL as it is: all that it does is to add its penalty."""

    masked: ClassVar[Sequence[dict[str, Any]]]
    """The settings that are tried on masked rows."""

    def stock(self, **particles: Any) -> Any:
        return self.half.infer.TraceMeanField_ELBO(**particles)

    @in_both("kind", ["trace", "graph", "renyi", "hamiltonian"], quick=[])
    def test_neutral_settings_reproduce_any_base(self, kind: str) -> None:
        takes_long = self.half.compiles or kind == "hamiltonian"
        # Pyro's RenyiELBO is no bound on a minibatch, and refused there.
        others = PROGRAMS.keys() - ({"subsampled"} if kind == "renyi" else set())
        for name in ["masked"] if takes_long else sorted(others):
            pairs = [
                (self.neutral(base=base_elbo(self.half, kind, **kw), sites=["z"]), stock)
                for kw in self.particles(name)
                for stock in [base_elbo(self.half, kind, **kw)]
            ]
            steps = self.half.steps(
                [elbo for pair in pairs for elbo in pair], PROGRAMS[name](self.half)
            )
            for ours, stock in zip(steps[::2], steps[1::2], strict=True):
                assert_same_step(ours, stock, own_parameters=self.own_parameters)

    @slow_in_numpyro
    def test_the_penalty_reaches_the_gradient_over_any_base(self) -> None:
        infer = self.half.infer
        sampled = [infer.Trace_ELBO(), infer.TraceGraph_ELBO()]
        if self.half.library.__name__ == "pyro_infovae":
            settings = {"max_plate_nesting": 1, "strict_enumeration_warning": False}
            sampled.append(infer.TraceEnum_ELBO(**settings))
        expected, *alike, bare, other = self.half.steps(
            [
                *(self.typical(base=base) for base in sampled),
                self.without_kl(base=infer.Trace_ELBO()),
                self.without_kl(base=infer.TraceMeanField_ELBO()),
            ],
            vae(self.half),
        )
        for step, stock in [*((step, expected) for step in alike), (other, bare)]:
            assert step.loss == pytest.approx(stock.loss, rel=1e-9)
            for name, grad in stock.grads.items():
                np.testing.assert_allclose(step.grads[name], grad, 1e-9, 1e-12, err_msg=name)

    @slow_in_numpyro
    def test_adds_its_penalty_to_another(self) -> None:
        """Above and below it."""
        stock, library = self.stock(), self.half.library
        # In Pyro both would draw, in another order than each by itself.
        estimator = "unbiased" if self.half.compiles else "closed_form"
        mmd = partial(library.TraceMMD_ELBO, 0.0, 3.0, library.RBF(1.0), estimator=estimator)
        alone = self.typical(base=stock)
        nested = [self.typical(base=mmd(base=stock))]
        if not self.half.compiles:
            nested.append(mmd(base=alone))
        elbos = [stock, mmd(base=stock), alone, *nested]
        plain, inner, own, *both = self.half.steps(elbos, vae(self.half))
        assert abs(inner.loss - plain.loss) > 1e-3
        for step in both:
            assert step.loss == pytest.approx(inner.loss + own.loss - plain.loss, rel=1e-9)
            assert step.grads.keys() == own.grads.keys()
            for name, grad in own.grads.items():
                added = inner.grads[name] - plain.grads[name] if name in plain.grads else 0.0
                np.testing.assert_allclose(step.grads[name], grad + added, 1e-9, 1e-10)

    @slow_in_numpyro
    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        case, objective = vae(self.half), self.added()

        def scaled(program: Any) -> Any:
            def run(*args: Any) -> None:
                with self.half.scale(0.1):
                    program(*args)

            return run

        weighted = case._replace(model=scaled(case.model), guide=scaled(case.guide))
        values = [self.half.penalty(objective, program) for program in (case, weighted)]
        assert values[0] == pytest.approx(values[1])
        assert abs(values[0]) > 1e-3

    @in_both("name", ["masked", "ragged"], quick=[])
    def test_masked_data_may_be_anything(self, name: str) -> None:
        case = PROGRAMS[name](self.half)
        masked = self.half.xp.asarray(1.0 - (MASK if name == "masked" else RAGGED)[..., None])
        (x,) = case.args
        for kw in self.particles(name):
            ours = [self.added(**settings, **kw) for settings in self.masked]
            elbos = [elbo for objective in ours for elbo in (objective, objective.base)]
            losses = [
                self.half.losses(elbos, case._replace(args=(data,)), count=1)[:, 0]
                for data in (x, x + 1e6 * masked, x + 1 - masked)
            ]
            same, far, moved = (each[::2] - each[1::2] for each in losses)
            np.testing.assert_allclose(far, same, rtol=1e-12)
            assert (np.abs(moved - same) > 1e-6 * np.abs(same)).all()
