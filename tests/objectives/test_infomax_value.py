"""TraceInfoMax_ELBO's value and its gradients: the formula, over data, negatives and particles."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from tests import reference_mi
from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Case, Half, OrderedDraws
from tests.objectives.alone import in_both, slow_in_numpyro
from tests.objectives.critics import keep
from tests.objectives.statistics import averages_to, standard_error
from tests.shared_programs import CRITIC, MASK, PARAMS, X, critic, vae

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")
BOUNDS = ["nwj", "dv", "infonce", "js", "smile"]
LOC, SCALE = X @ PARAMS["encoder"], PARAMS["scale"]


def scores(x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Those of the critic of tests/shared_programs.py."""
    return np.tanh(x @ CRITIC["x_weight"] + z @ CRITIC["z_weight"]) @ CRITIC["out"]


def score_gradients(x: np.ndarray, z: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient of the weighted sum of its scores."""
    hidden = np.tanh(x @ CRITIC["x_weight"] + z @ CRITIC["z_weight"])
    back = weights[:, None] * (1 - hidden**2) * CRITIC["out"]
    return {"x_weight": x.T @ back, "z_weight": z.T @ back, "out": weights @ hidden}


class TestFormula:
    def test_equals_the_formula(self, half: Half) -> None:
        weights = (0.0, 1.0), (0.4, 0.7), (2.0, 0.0)
        elbos = [
            half.library.TraceInfoMax_ELBO(critic(half), *pair, base=half.infer.Trace_ELBO())
            for pair in weights
        ]
        steps = half.steps(elbos, vae(half), draws=OrderedDraws)

        draws = OrderedDraws()
        z = LOC + SCALE * draws.normal((12, 2))
        other = np.roll(z, -int(draws.integers(1, 12, ())), 0)
        likelihood = norm.logpdf(X, np.tanh(z) @ PARAMS["decoder"], 0.7).sum()
        kl = (norm.logpdf(z, LOC, SCALE) - norm.logpdf(z, PARAMS["prior_loc"])).sum()
        information = scores(X, z).mean() - np.exp(scores(X, other) - 1).mean()
        for (alpha, beta), step in zip(weights, steps, strict=True):
            expected = -likelihood + beta * kl - 12 * alpha * information
            assert step.loss == pytest.approx(float(expected), rel=1e-10)

    @in_both("kind", ["ConcatCritic", "SeparableCritic"], quick=[])
    def test_all_negatives_equal_a_loop(self, half: Half, kind: str) -> None:
        network, log = getattr(half.library, kind)(3, 2, hidden=(8,)), list[Any]()
        settings = {"negatives": "all", "base": half.infer.Trace_ELBO()}
        elbo = partial(half.library.TraceInfoMax_ELBO, network, 1.5, **settings)
        case = vae(half, batch=7)
        bounds = ["nwj"] if half.compiles and kind == "SeparableCritic" else BOUNDS
        values = half.above(settings["base"], [elbo(bound=b) for b in bounds], case)
        watched = elbo(regularizer=keep(log))
        (((x, z),),) = half.seen(log, watched, case)
        table = half.all_scores(watched, case, x, z)
        marginal = [[table[i, j] for j in range(7) if j != i] for i in range(7)]
        for bound, value in zip(bounds, values, strict=True):
            formula = getattr(reference_mi, bound)
            estimate, _ = formula(np.diag(table), marginal, [1.0] * 7, [[1.0] * 6] * 7)
            assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9), bound

    @in_both("name", ["one", "vectorised", "looped"], quick=[])
    def test_masked_rows_count_neither_as_data_nor_as_negatives(
        self, half: Half, name: str
    ) -> None:
        """As the loops over the rows that are not masked, in each particle on its own."""
        particles = {"one": ONE, "vectorised": VECTORISED, "looped": LOOPED}[name]
        log, bounds = list[Any](), ["nwj", "infonce"]
        settings = {"negatives": "all", "base": half.infer.Trace_ELBO(**particles)}
        elbo = partial(half.library.TraceInfoMax_ELBO, critic(half), 1.5, **settings)
        case = vae(half, mask=MASK)
        # In which the base finds out how the plates are nested.
        half.losses([settings["base"]], case, count=1)
        values = half.above(settings["base"], [elbo(bound=b) for b in bounds], case)
        (((x, z),),) = half.seen(log, elbo(regularizer=keep(log)), case)
        assert len(z) == 12 * particles.get("num_particles", 1)
        kept = [r for r in range(len(z)) if MASK[r % 12]]
        marginal = [
            scores(x[r], z[[s for s in kept if s != r and s // 12 == r // 12]]) for r in kept
        ]
        ones = [1.0] * len(kept)
        for bound, value in zip(bounds, values, strict=True):
            formula = getattr(reference_mi, bound)
            estimate, _ = formula(scores(x[kept], z[kept]), marginal, ones, [[1.0] * 7] * len(kept))
            assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9), bound

    @slow_in_numpyro
    def test_a_bound_with_an_option(self, half: Half) -> None:
        clipped = partial(half.library.mutual_information.smile, clip=1e-3)
        elbos = [
            half.library.TraceInfoMax_ELBO(critic(half), bound=bound) for bound in (clipped, "dv")
        ]
        first, second = half.losses(elbos, vae(half), count=1)[:, 0]
        assert first != pytest.approx(second)

    @slow_in_numpyro
    def test_the_expected_penalty_ignores_the_particles(self, half: Half) -> None:
        case = vae(half, x=np.random.default_rng(1).normal(size=(30, 3)))
        alone = half.penalties(half.library.TraceInfoMax_ELBO(critic(half)), case, count=60)
        for vectorize in (True, False):
            particles = {"num_particles": 8, "vectorize_particles": vectorize}
            many = half.library.TraceInfoMax_ELBO(critic(half), **particles)
            values = half.penalties(many, case, count=10)
            assert averages_to(alone, float(values.mean()))
            assert abs(float(values.mean())) > 8 * standard_error(values)

    def test_a_point_mass_guide_without_kl(self, half: Half) -> None:
        """A deterministic encoder: β=0 removes the KL, which has no value."""

        def guide(x: Any) -> None:
            z = x @ half.param("encoder", np.full((3, 2), 0.1))
            with half.plate("data", 12):
                half.sample("z", half.dist.Delta(z, event_dim=1))

        bases = None, half.infer.Trace_ELBO(), half.infer.TraceGraph_ELBO()
        elbos = [
            half.library.TraceInfoMax_ELBO(critic(half), 1.0, 0.0, base=base) for base in bases
        ]
        first, *others = half.steps(elbos, vae(half)._replace(guide=guide), draws=OrderedDraws)
        assert math.isfinite(first.loss)
        for loss, grads in others:
            assert loss == pytest.approx(first.loss)
            assert all(np.isfinite(grad).all() for grad in grads.values())


GRADIENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nwj": ({}, {}),
    "nwj all": ({"batch": 5}, {"negatives": "all", **VECTORISED}),
    "dv": ({"mask": MASK}, {"bound": "dv", **LOOPED}),
    "infonce all": ({"mask": MASK}, {"bound": "infonce", "negatives": "all"}),
}


class TestGradients:
    """The critic's, and the model's and guide's."""

    @in_both("name", GRADIENTS, quick=["infonce all"])
    def test_equal_finite_differences(self, half: Half, name: str) -> None:
        """Those of the whole loss for model and guide; over N alpha for the critic."""
        program, settings = GRADIENTS[name]
        bound = {key: settings[key] for key in ("bound", "negatives") if key in settings}
        particles = {key: value for key, value in settings.items() if "particles" in key}
        elbo = partial(half.library.TraceInfoMax_ELBO, critic(half), 0.6, 0.8, **bound)
        trials = [(program, particles)]
        if not half.compiles:
            every = [{}, {"batch": 5}, {"mask": MASK}]
            trials = [(kw, few) for kw in every for few in (ONE, VECTORISED, LOOPED)]
        for program_settings, few in trials:
            case = vae(half, **program_settings)
            slopes = half.slopes(elbo(base=half.infer.Trace_ELBO(**few)), case)
            assert len(slopes) == 4 + len(CRITIC)
            for name, (gradient, slope) in slopes.items():
                factor = 0.6 * 12 if name.startswith("critic") else 1.0
                assert gradient * factor == pytest.approx(slope, rel=1e-5, abs=1e-8), name

    @in_both("total", [12, 600], quick=[600])
    def test_the_critic_ascends_the_estimate_itself(self, half: Half, total: int) -> None:
        x = np.random.default_rng(1).normal(size=(total, 3))
        alphas = 0.0, 0.5, 300.0
        elbos = [half.library.TraceInfoMax_ELBO(critic(half), alpha) for alpha in alphas]
        steps = half.steps(elbos, vae(half, x=x, index=np.arange(12)), draws=OrderedDraws)
        draws, x = OrderedDraws(), x[:12]
        z = x @ PARAMS["encoder"] + SCALE * draws.normal((12, 2))
        other = np.roll(z, -int(draws.integers(1, 12, ())), 0)
        joint = score_gradients(x, z, np.full(12, 1 / 12))
        marginal = score_gradients(x, other, np.exp(scores(x, other) - 1) / 12)
        for step in steps:
            for name in CRITIC:
                expected = marginal[name] - joint[name]
                np.testing.assert_allclose(step.grads[f"critic.{name}"], expected, rtol=1e-9)

    @slow_in_numpyro
    def test_the_guide_feels_the_surrogate_and_the_loss_the_estimate(self, half: Half) -> None:
        information = half.library.mutual_information

        def bound(joint: Any, marginal: Any, **weights: Any) -> Any:
            surrogate = information.nwj(joint, marginal).surrogate
            return information.MutualInformationEstimate(half.xp.asarray(5.0), surrogate)

        stock = half.infer.TraceMeanField_ELBO()
        plain, ours = (
            half.library.TraceInfoMax_ELBO(critic(half), 0.5, bound=b) for b in ("nwj", bound)
        )
        base, expected, step = half.steps([stock, plain, ours], vae(half))
        assert step.loss - base.loss == pytest.approx(-12 * 0.5 * 5.0)
        for name, grad in expected.grads.items():
            np.testing.assert_allclose(step.grads[name], grad)

    @slow_in_numpyro
    def test_scores_beyond_every_bound_do_not_reach_the_guide(self, half: Half) -> None:
        infinite = half.critic(lambda params, x, z: z.sum(1) * math.inf * params["one"], ONES)
        stock = half.infer.Trace_ELBO()
        ours = half.library.TraceInfoMax_ELBO(infinite, 0.0, base=half.infer.Trace_ELBO())
        with half.unvalidated():
            (expected,) = half.steps([stock], vae(half))
            step = nan_step(half, ours, vae(half))
        assert math.isnan(step.loss)
        for name, grad in expected.grads.items():
            np.testing.assert_allclose(step.grads[name], grad)


ONES = {"one": np.ones(())}


def nan_step(half: Half, objective: Any, case: Case) -> Any:
    """A step whose loss is nan, of which Pyro warns."""
    if half.compiles:
        return half.steps([objective], case)[0]
    with pytest.warns(UserWarning, match="Encountered NaN"):
        return half.steps([objective], case)[0]
