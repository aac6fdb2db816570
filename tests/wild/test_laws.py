"""Three laws on random programs: the identity at zero weight, and batches, and particles."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from pyro.distributions import constraints, transforms
from torch import Tensor
from torch.distributions import transform_to

from tests.halves import Case, Half
from tests.objectives.alone import in_numpyro, in_pyro
from tests.pyro_infovae.half import PYRO
from tests.wild.fuzzed import N, Spec, Support, program, specs

EXAMPLES = pytest.mark.parametrize(
    "examples", [pytest.param(10, id="quick"), pytest.param(300, id="all", marks=pytest.mark.slow)]
)
MEANT = "Fewer than two rows|mutual information from|a single row|MMD a weight|enumerat|discrete"


def holds(law: Callable[[Spec], None], strategy: Any, examples: int) -> None:
    """Check a law on so many examples, the same in every run."""

    def on(spec: Spec) -> None:
        pyro.clear_param_store()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"(?s).*({MEANT})")
            law(spec)

    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    quiet = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=checks,
    )
    quiet(given(strategy)(on))()


def enumerating(half: Half, spec: Spec, **particles: Any) -> Any:
    return half.infer.TraceEnum_ELBO(max_plate_nesting=spec.nesting, **particles)


def base(half: Half, spec: Spec, **particles: Any) -> dict[str, Any]:
    """Particles of the default base, or one that sums out the labels."""
    if spec.enumeration == "none":
        return particles
    return {"base": enumerating(half, spec, **particles)}


def stock(half: Half, spec: Spec, **particles: Any) -> Any:
    if spec.enumeration == "none":
        return half.infer.TraceMeanField_ELBO(**particles)
    return enumerating(half, spec, **particles)


def critic(half: Half, spec: Spec) -> dict[str, Any]:
    """That sees the first number of a datum and the first of its codes."""
    xp = half.xp

    def score(params: Any, x: Any, z: Any) -> Any:
        return params["w"] * x.reshape(len(x), -1)[:, 0] * xp.tanh(z.sum(-1))

    whole = (lambda x: x.T) if spec.plates == "loop" else None
    return {"critic": half.critic(score, {"w": np.array(0.4)}), "data": whole}


def flowing(spec: Spec, *, batch: bool) -> list[str]:
    """The latents that a flow may move: under a minibatch those of its plate alone."""
    parents = ["t"] if spec.parent else []
    return spec.local if batch else parents + spec.latents


class TestIdentityAtZeroWeight:
    @EXAMPLES
    @in_pyro
    def test_pyro(self, half: Half, examples: int) -> None:
        holds(lambda spec: self.check(half, spec), specs(), examples)

    @pytest.mark.slow
    @in_numpyro
    def test_numpyro(self, half: Half) -> None:
        """Labels that the model sums out are left out: NumPyro's flow refuses them."""
        strategy = specs().filter(lambda spec: spec.enumeration != "model")
        holds(lambda spec: self.check(half, spec), strategy, 12)

    @in_numpyro
    @pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO", "ignore:alpha=0.0, lambd=1.0")
    @pytest.mark.slow
    def test_data_of_arguments_beside_labels_summed_out_in_numpyros_guide(self, half: Half) -> None:
        self.check(half, Spec("loop", ("real", "unit"), False, 4, "none", 1.0, "guide"))

    def check(self, half: Half, spec: Spec) -> None:
        library, case = half.library, program(half, spec)
        alone = spec.plates == "none"
        particles = {"num_particles": 2} if alone else {}
        mmd = {"sites": spec.latents} if alone else {}
        expected = stock(half, spec, **particles)
        ours = [library.TraceMMD_ELBO(0.0, 1.0, **mmd, **base(half, spec, **particles))]
        if not alone:
            ours.append(
                library.TraceInfoMax_ELBO(
                    **critic(half, spec), alpha=0.0, sites=spec.together, **base(half, spec)
                )
            )
        pairs = [(expected, elbo) for elbo in ours]
        sites = flowing(spec, batch=spec.batch is not None)
        still = library.TraceHamiltonian_ELBO(2, 0.0, learn=False, sites=sites)
        sampled = half.infer.Trace_ELBO()
        pairs.append((enumerating(half, spec) if spec.enumeration == "model" else sampled, still))
        losses = half.losses([elbo for pair in pairs for elbo in pair], case, count=1)
        assert np.isfinite(losses).all()
        np.testing.assert_allclose(losses[1::2], losses[::2], rtol=1e-9)


class GivenNormal(dist.Normal):
    """A normal whose draws are given numbers of standard deviations from its mean.

    ``noise`` is a function of the batch shape.
    """

    def __init__(self, loc: Tensor, noise: Callable[[torch.Size], Tensor]) -> None:
        self.noise = noise
        super().__init__(loc, torch.full_like(torch.as_tensor(loc), 0.7), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GivenNormal:
        return GivenNormal(self.loc.expand(batch_shape), self.noise)


class GivenDraws:
    """Draws that depend on the datum alone, and those of the parent on the particle alone.

    Attributes:
        index: the minibatch.
        parents: the parent's, a number per particle.
    """

    def __init__(self, index: Any = slice(None), parents: tuple[float, ...] = (0.3,)) -> None:
        self.index = index
        self.parents = parents
        self.particle = -1

    def __call__(self, name: str, support: Support, score: Any) -> Any:
        score = torch.as_tensor(score)
        normal = GivenNormal(score, lambda shape: self.noise(name, shape))
        if support == "real":
            return normal
        if support == "simplex":
            wide = GivenNormal(
                torch.stack([score, 0 * score], -1),
                lambda shape: self.noise(name, shape[:-1])[..., None],
            )
            return dist.TransformedDistribution(
                wide.to_event(1), [transforms.StickBreakingTransform()]
            )
        onto = constraints.positive if support == "positive" else constraints.unit_interval
        return dist.TransformedDistribution(normal, [transform_to(onto)])

    def noise(self, name: str, shape: torch.Size) -> Tensor:
        if name == "t":
            given = torch.tensor(self.parents)
            if len(shape) == 0:  # each particle draws it once
                self.particle += 1
                return given[self.particle % len(given)]
            return given.reshape(-1, *(1,) * (len(shape) - 1))
        rng = np.random.default_rng(int(name[1:]) + 1)
        numbers = torch.as_tensor(rng.normal(size=N))
        if shape and shape[-1] > 1:
            return numbers[self.index]
        return numbers[0]


@torch.no_grad()
def loss(elbo: Any, case: Case) -> float:
    return elbo.loss(case.model, case.guide, *case.args)


@contextmanager
def resting() -> Iterator[None]:
    """Momenta of zero, so that a flow is a function of its draw."""
    with mock.patch("torch.randn_like", torch.zeros_like):
        yield


def typical(spec: Spec, *, batch: bool, **particles: Any) -> list[Any]:
    """Objectives whose loss is a function of the draws, and a mean over pairs of rows."""
    library, elbos = PYRO.library, []
    own = base(PYRO, spec, **particles)
    if spec.plates in ("one", "loop") or not batch:
        if spec.enumeration != "model":  # where the label of a fresh draw is random
            kernel = library.RBF(1.0)
            elbos.append(library.TraceMMD_ELBO(0.5, 3.0, kernel, sites=spec.together, **own))
        information = library.TraceInfoMax_ELBO(
            **critic(PYRO, spec), alpha=0.7, negatives="all", sites=spec.together, **own
        )
        elbos.append(information)
    if spec.enumeration != "guide":
        flow = library.TraceHamiltonian_ELBO(
            2, 0.1, learn=False, sites=flowing(spec, batch=batch), **particles
        )
        elbos.append(flow)
    return elbos


class TestBatches:
    @EXAMPLES
    def test_the_mean_over_all_minibatches_is_the_loss_of_all_data(self, examples: int) -> None:
        strategy = specs(plates=("one", "nested", "loop"), batch=None, mask="none")
        holds(self.check, strategy.filter(lambda spec: typical(spec, batch=True)), examples)

    def check(self, spec: Spec) -> None:
        size, few = 3, 2
        elbos = typical(spec, batch=True)

        def losses(index: list[int]) -> list[float]:
            draws = GivenDraws(index)
            case = program(PYRO, spec, draws=draws, index=np.array(index), size=size)
            return [loss(elbo, case) for elbo in elbos]

        with resting():
            whole = losses(list(range(size)))
            parts = [losses(list(b)) for b in itertools.combinations(range(size), few)]
        assert (np.ptp(parts, 0) > 1e-6).all()
        np.testing.assert_allclose(np.mean(parts, 0), whole, rtol=1e-9)


class TestParticles:
    @EXAMPLES
    def test_the_loss_of_several_is_the_mean_of_their_own(self, examples: int) -> None:
        holds(self.check, specs(plates=("one", "nested", "loop"), batch=None), examples)

    @pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
    def test_holds_where_a_flow_diverges(self) -> None:
        self.check(Spec("nested", ("positive", "real"), False, None, "none", 1.0, "model"))

    def check(self, spec: Spec) -> None:
        parents = (0.3, -1.2)

        def losses(parents: tuple[float, ...], **particles: Any) -> np.ndarray:
            values = []
            for elbo in typical(spec, batch=False, **particles):
                draws = GivenDraws(parents=parents)
                case = program(PYRO, spec, draws=draws)
                values.append(loss(elbo, case))
            return np.array(values)

        nesting = {"max_plate_nesting": spec.nesting}
        with resting():
            alone = [losses((parent,)) for parent in parents]
            looped = losses(parents, num_particles=2)
            np.testing.assert_allclose(looped, np.mean(alone, 0), rtol=1e-9)
            if spec.enumeration == "none":
                vectorised = losses(parents, num_particles=2, vectorize_particles=True, **nesting)
                np.testing.assert_allclose(vectorised, looped, rtol=1e-9)
