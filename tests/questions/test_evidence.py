"""log_evidence: the evidence of every row where it is known, which plates become rows, chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from tests.halves import Case
from tests.questions.asking import Asking, data, slow_in_numpyro
from tests.questions.evidence import FLOW, assert_exact, exact_evidence, linear_gaussian, run
from tests.questions.programs import in_plate, vae


@pytest.fixture(params=[False, True], ids=["guide", "refined"])
def elbo(request: pytest.FixtureRequest, half: Asking) -> Any:
    return half.library.TraceHamiltonian_ELBO(**FLOW) if request.param else None


class TestRows:
    def test_every_row_has_its_evidence(self, half: Asking, elbo: Any) -> None:
        result = run(half, linear_gaussian(half), elbo=elbo)
        assert_exact(result, exact_evidence())
        assert float(result.total) == pytest.approx(float(result.log_evidence.sum()))

    @slow_in_numpyro
    def test_masked_rows_are_0(self, half: Asking, elbo: Any) -> None:
        mask = np.arange(8) % 3 != 0
        result = run(half, linear_gaussian(half, mask=mask), elbo=elbo)
        np.testing.assert_allclose(result.log_evidence[~mask], 0, atol=1e-12)
        np.testing.assert_allclose(result.standard_error[~mask], 0, atol=1e-6)
        np.testing.assert_array_equal(result.pareto_k[~mask], 0)
        np.testing.assert_allclose(result.effective_sample_size[~mask], 4000)
        errors = abs(np.asarray(result.log_evidence) - exact_evidence())
        assert (errors[mask] < 4 * np.asarray(result.standard_error)[mask]).all()

    @slow_in_numpyro
    def test_a_minibatch_has_the_evidence_of_its_rows(self, half: Asking, elbo: Any) -> None:
        rows = np.array([3, 0, 14, 7, 8])
        case = linear_gaussian(half, num=16, total=1000, index=rows)
        assert_exact(run(half, case, elbo=elbo), exact_evidence(16)[rows])

    @slow_in_numpyro
    def test_a_random_minibatch_is_drawn_once(self, half: Asking) -> None:
        """Else each chunk would be of other rows."""
        x = np.linspace(-3.0, 3.0, 20)
        values, exact = half.array(x), norm.logpdf(x, scale=math.sqrt(2))

        def model(index: Any) -> None:
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(values[index]), 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=values[index])

        def guide(index: Any) -> None:
            half.sample("z", half.dist.Normal(values[index] / 2, math.sqrt(0.5)))

        case = Case(*(in_plate(half, 20, draw, batch=4) for draw in (model, guide)))
        rows = []
        for seed in range(2):
            result = run(half, case, num_samples=60, chunk_size=10, seed=seed)
            weights = np.asarray(result.log_weights)
            found = np.asarray(result.log_evidence)
            np.testing.assert_allclose(weights, np.broadcast_to(found, (60, 4)), rtol=1e-9)
            rows.append(np.sort(found))
            assert np.isclose(exact[:, None], found).any(0).all()
        assert len(np.unique(np.stack(rows), axis=0)) > 1, "the seed chooses it"

    def test_a_users_scale_is_left_out(self, half: Asking) -> None:
        case = Case(*(half.scaled(program, 0.2) for program in linear_gaussian(half)[:2]))
        assert_exact(run(half, case), exact_evidence())

    @slow_in_numpyro
    def test_single_precision(self, half: Asking) -> None:
        with half.single_precision():
            result = run(half, linear_gaussian(half), num_samples=1000)
            dtypes = {str(v.dtype) for v in (result.log_weights, result.pareto_k, result.total)}
            assert {dtype.split(".")[-1] for dtype in dtypes} == {"float32"}
            assert_exact(result, exact_evidence())


class TestPlates:
    @slow_in_numpyro
    def test_inner_plates_are_summed_out(self, half: Asking) -> None:
        """Groups of items: outer_g ~ N(0, 1), z_ig ~ N(outer_g, 1), x_ig ~ N(z_ig, 1)."""
        x = data(3, 4)
        values = half.array(x)

        def model() -> None:
            with half.plate("groups", 4):
                outer = half.sample("outer", half.dist.Normal(half.xp.zeros_like(values[0]), 1.0))
                with half.plate("items", 3, dim=-2):
                    z = half.sample("z", half.dist.Normal(outer, 1.0))
                    half.sample("x", half.dist.Normal(z, 1.0), obs=values)

        def guide() -> None:
            with half.plate("groups", 4):
                outer = half.sample("outer", half.dist.Normal(values.sum(0) / 5, 0.8))
                with half.plate("items", 3, dim=-2):
                    half.sample("z", half.dist.Normal((values + outer) / 2, 0.8))

        exact = multivariate_normal.logpdf(x.T, cov=np.ones((3, 3)) + 2 * np.eye(3))
        assert_exact(run(half, Case(model, guide), num_samples=10_000), exact)

    @pytest.mark.filterwarnings("ignore:log_evidence")
    def test_rows_in_two_plates_keep_their_shape(self, half: Asking) -> None:
        mask = np.arange(5)[:, None] < np.array([5, 3, 1, 4])
        x = half.array(data(20, 1).reshape(5, 4))

        def program(observe: bool) -> Any:
            def run() -> None:
                with half.plate("data", 4), half.plate("time", 5, dim=-2), half.mask(mask):
                    z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
                    if observe:
                        half.sample("x", half.dist.Normal(z, 1.0), obs=x)

            return run

        result = run(half, Case(program(True), program(False)), num_samples=100)
        np.testing.assert_array_equal(np.asarray(result.log_evidence) == 0, ~mask)

    @slow_in_numpyro
    def test_sites_without_a_density_are_no_rows_fault(self, half: Asking) -> None:
        case = linear_gaussian(half)

        def model() -> None:
            half.deterministic("answer", half.array(42.0))
            case.model()

        assert_exact(run(half, case._replace(model=model)), exact_evidence())

        def with_factor() -> None:
            case.model()
            with half.plate("again", 8):
                half.factor("bonus", half.array(np.zeros(8)))

        result = run(half, case._replace(model=with_factor))
        assert result.log_evidence.shape == (), "the factor is in another plate"
        assert_exact(result, exact_evidence().sum())

    def test_discrete_latents(self, half: Asking) -> None:
        x, prior = np.array([0.1, 1.2, 2.2]), np.array([0.2, 0.3, 0.5])
        values = half.array(x)

        def model(_: Any) -> None:
            y = half.sample("y", half.dist.Categorical(half.array(prior)))
            half.sample("x", half.dist.Normal(y + 0 * values, 0.7), obs=values)

        def guide(_: Any) -> None:
            half.sample("y", half.dist.Categorical(half.array([0.3, 0.4, 0.3])))

        case = Case(*(in_plate(half, 3, draw) for draw in (model, guide)))
        components = norm.logpdf(x[:, None], np.arange(3.0), 0.7)
        assert_exact(run(half, case), np.log((np.exp(components) * prior).sum(-1)))


class TestRuns:
    @pytest.mark.filterwarnings("ignore:log_evidence")
    @slow_in_numpyro
    def test_chunks_change_nothing(self, half: Asking) -> None:
        """Multiples of 16 numbers come from Pyro's generator alike in one chunk and in several."""
        case = linear_gaussian(half)
        results = [
            np.asarray(run(half, case, num_samples=48, chunk_size=size).log_weights)
            for size in (None, 16, 1)
        ]
        assert len(np.unique(results[0], axis=0)) == 48
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], rtol=1e-10)

    def test_keyword_arguments_reach_the_programs(self, half: Asking) -> None:
        case = linear_gaussian(half)
        model, guide = (lambda *, unused, p=program: p() for program in case[:2])
        result = run(half, Case(model, guide), unused=half.array(1.0))
        assert_exact(result, exact_evidence())


class TestReliability:
    def test_a_bad_guide_is_told(self, half: Asking) -> None:
        """A guide of a third of the posterior's scale: its weights have no variance."""
        case = linear_gaussian(half, guide_scale=0.3)
        with pytest.warns(UserWarning, match=r"k > 0\.7 in \d of 8 rows.*do not believe") as record:
            result = run(half, case)
        assert len(record) == 1
        assert record[0].filename.endswith("asking.py"), "it points at the caller"
        assert (result.pareto_k > 0.7).any()

    def test_a_good_guide_is_not(self, half: Asking) -> None:
        assert (run(half, linear_gaussian(half, guide_scale=1.6)).pareto_k < 0.5).all()

    def test_an_exact_guide(self, half: Asking) -> None:
        """Equal weights have no tail: the evidence of a single draw is exact."""
        x = half.array([0.5, -1.0])

        def model(_: Any) -> None:
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
            half.sample("x", half.dist.Normal(z, 1.0), obs=x)

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(x / 2, math.sqrt(0.5)))

        case = Case(*(in_plate(half, 2, draw) for draw in (model, guide)))
        result = run(half, case, num_samples=100)
        exact = norm.logpdf([0.5, -1.0], scale=math.sqrt(2))
        np.testing.assert_allclose(result.log_evidence, exact, rtol=1e-9)
        np.testing.assert_allclose(result.effective_sample_size, 100.0)
        np.testing.assert_allclose(result.standard_error, 0, atol=1e-7)
        assert (result.pareto_k == 0).all()

    @slow_in_numpyro
    def test_a_flow_that_diverges_is_told(self, half: Asking) -> None:
        ones = half.array(np.ones(3))

        def model(_: Any) -> None:
            z = half.sample("z", half.dist.Normal(0 * ones, 1.0))
            half.sample("x", half.dist.Normal(half.xp.exp(3 * z), 1e-3), obs=ones)

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(0 * ones, 1.0))

        case = Case(*(in_plate(half, 3, draw) for draw in (model, guide)))
        elbo = half.library.TraceHamiltonian_ELBO(10, 0.4, path="posterior", learn=False)
        with pytest.warns(UserWarning, match=r"no draw has a weight in 3 of 3 rows.*step_size"):
            result = run(half, case, num_samples=50, elbo=elbo)
        assert np.isneginf(np.asarray(result.log_evidence)).all()


def _global_latent(half: Asking) -> Case:
    normal, x = half.dist.Normal(half.array(0.0), 1.0), half.array(data(12, 1)[:, 0])

    def model() -> None:
        theta = half.sample("theta", normal)
        with half.plate("data", 12, batch=4) as index:
            half.sample("x", half.dist.Normal(theta + 0 * x[index], 1.0), obs=x[index])

    return Case(model, lambda: half.sample("theta", normal))


def _with_guide(half: Asking, draw: Callable[[Asking], Any], *, alone: bool) -> Case:
    case = vae(half)

    def guide() -> None:
        if not alone:
            case.guide()
        draw(half)

    return case._replace(guide=guide)


def _point_mass(half: Asking) -> None:
    zeros = half.array(np.zeros((12, 2)))
    in_plate(half, 12, lambda _: half.sample("z", half.dist.Delta(zeros, event_dim=1)))()


def _observing(half: Asking) -> None:
    half.sample("x", half.dist.Normal(half.array(0.0), 1.0), obs=half.array(0.0))


REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "one draw": (vae, {"num_samples": 1}, "num_samples >= 2; got 1"),
    "no chunk": (vae, {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "global latent": (
        _global_latent,
        {},
        "plate 'data' is subsampled, but site 'theta' is outside of it.*whole plate",
    ),
    "point mass": (
        partial(_with_guide, draw=_point_mass, alone=True),
        {},
        "'z' is a point mass.*AutoNormal",
    ),
    "not drawn": (
        partial(_with_guide, draw=lambda half: None, alone=True),
        {},
        "'z' is a latent of the model that the guide does not draw",
    ),
    "no latent": (
        partial(
            _with_guide,
            draw=lambda half: half.sample("w", half.dist.Normal(half.array(0.0), 1.0)),
            alone=False,
        ),
        {},
        "the guide draws 'w', which is no latent of the model",
    ),
    "observing guide": (
        partial(_with_guide, draw=_observing, alone=False),
        {},
        "guide observes 'x'.*block",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(half: Asking, case: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(half, case(half), **settings)
