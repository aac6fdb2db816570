"""Which latents are penalised, and which of them together, in programs that other people wrote."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyro
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide

from tests import reference
from tests.halves import Case, Half, NumbersOfShape
from tests.objectives.alone import in_both, in_numpyro, in_pyro, slow_in_numpyro

T, N = 4, 8
LENGTHS = np.array([4, 3, 1, 4, 2, 3, 4, 2])
X = np.random.default_rng(0).normal(size=(N, T))


def groups(half: Half, case: Case, **settings: Any) -> dict[str, Any]:
    """The rows of each group by the names of its latents: values, weights and N."""
    log: list[Any] = []

    def keep(rows: Any) -> Any:
        log.append({" ".join(rows.latents): (rows.values, rows.dense_weights, rows.num_data)})
        return half.xp.zeros(())

    objective = half.library.TraceMMD_ELBO(lambd=3.0, regularizer=keep, **settings)
    (seen,) = half.seen(log, objective, case)
    return {name: rows for group in seen for name, rows in group.items()}


def loop_over_time(half: Half, lengths: np.ndarray) -> Case:
    """A sequence model, whose padding is masked step by step."""
    mask = half.xp.asarray(np.arange(T) < lengths[:, None])
    normal = half.dist.Normal

    def model(x: Any) -> None:
        z = half.xp.zeros(N)
        with half.plate("sequences", N):
            for t in range(T):
                with half.mask(mask[:, t]):
                    z = half.sample(f"z{t}", normal(z, 1.0))
                    half.sample(f"x{t}", normal(z, 0.5), obs=x[:, t])

    def guide(x: Any) -> None:
        shift = half.param("shift", 1.0)
        with half.plate("sequences", N):
            for t in range(T):
                with half.mask(mask[:, t]):
                    half.sample(f"z{t}", normal(x[:, t] + shift, 0.5))

    return Case(model, guide, (half.xp.asarray(X),))


class TestLoopOverTime:
    @slow_in_numpyro
    def test_has_a_group_for_each_mask(self, half: Half) -> None:
        seen = groups(half, loop_over_time(half, LENGTHS))
        assert list(seen) == [f"z{t}" for t in range(T)]
        for t in range(T):
            _, weights, num_data = seen[f"z{t}"]
            np.testing.assert_array_equal(weights, t < LENGTHS)
            assert num_data == N

    @pytest.mark.slow
    def test_its_penalty_is_the_sum_over_time_of_the_rows_that_count(self, half: Half) -> None:
        case, rng = loop_over_time(half, LENGTHS), np.random.default_rng(1)
        elbo = half.library.TraceMMD_ELBO(lambd=3.0, kernel=half.library.RBF(1.0))
        penalties = half.penalties(elbo, case, count=200)

        def mean_penalty(previous: np.ndarray, t: int) -> float:
            counts = t < LENGTHS
            locs, scales = (X[counts, t, None] + 1.0, previous[counts, None]), (0.5, 1.0)
            q, p = ((loc, np.full_like(loc, s)) for loc, s in zip(locs, scales, strict=True))
            return N * 2.0 * reference.mmd_squared_normal(*q, *p, [1.0])

        chains = X[:, :-1] + 1.0 + 0.5 * rng.normal(size=(30, N, T - 1))
        chains = np.concatenate([np.zeros((30, N, 1)), chains], -1)
        exact = [sum(mean_penalty(chain[:, t], t) for t in range(T)) for chain in chains]
        error = np.hypot(np.std(exact) / np.sqrt(30), penalties.std() / np.sqrt(200))
        assert abs(penalties.mean() - np.mean(exact)) < 4 * error

    @slow_in_numpyro
    def test_a_step_with_a_single_row_has_no_penalty_and_warns(self, half: Half) -> None:
        case = loop_over_time(half, np.array([1, 1, 1, 4, 1, 1, 1, 1]))
        elbo = half.library.TraceMMD_ELBO()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = half.loss(elbo, case)
            jax.effects_barrier()
            assert loss != half.loss(elbo.base, case)  # the first step has its rows
        told = {t for t in range(T) for w in caught if f"two rows of ['z{t}']" in str(w.message)}
        assert told == {1, 2, 3}


def missing_data(half: Half) -> Case:
    """A model that imputes what is missing, and a guide that does so too."""
    mask, normal = half.xp.asarray(np.arange(N) % 4 > 0), half.dist.Normal

    def model(x: Any) -> None:
        with half.plate("data", N):
            z = half.sample("z", normal(0.0, 1.0))
            half.sample("x", normal(z, 0.5), obs=x, obs_mask=mask)

    def guide(x: Any) -> None:
        loc = half.param("loc", 0.3)
        with half.plate("data", N):
            half.sample("z", normal(x + loc, 0.4))
            half.sample("x_unobserved", normal(x, 1.0))

    return Case(model, guide, (half.xp.asarray(X[:, 0]),))


def test_what_is_imputed_is_no_latent_and_masks_none(half: Half) -> None:
    seen = groups(half, missing_data(half))
    assert list(seen) == ["z"]
    np.testing.assert_array_equal(seen["z"][1], np.ones(N))


def mixture(half: Half, *, components: int = 5) -> Case:
    """A mixture of normals with its assignments summed out, and a code per datum beside it."""
    dist = half.dist

    def model(x: Any) -> None:
        with half.plate("components", components):
            locs = half.sample("locs", dist.Normal(0.0, 10.0))
        with half.plate("data", N):
            z = half.sample("z", dist.Normal(0.0, 1.0))
            mixing = dist.Categorical(probs=half.xp.ones(components) / components)
            fn = dist.MixtureSameFamily(mixing, dist.Normal(locs + z[:, None], 1.0))
            half.sample("x", fn, obs=x)

    def guide(x: Any) -> None:
        loc = half.param("loc", np.linspace(-3.0, 3.0, components))
        with half.plate("components", components):
            half.sample("locs", dist.Normal(loc, 0.1))
        with half.plate("data", N):
            half.sample("z", dist.Normal(0.2 * x, 0.5))

    return Case(model, guide, (half.xp.asarray(X[:, 0]),))


class TestPlatesThatHoldNoData:
    def test_are_left_alone(self, half: Half) -> None:
        assert list(groups(half, mixture(half))) == ["z"]

    def test_are_penalised_if_named(self, half: Half) -> None:
        assert list(groups(half, mixture(half), sites=["locs", "z"])) == ["locs", "z"]

    @pytest.mark.parametrize("weight", [0.0, 0.5])
    def test_keep_their_kl(self, half: Half, weight: float) -> None:
        """Only the KL of the code is weighted: a sum over data, in closed form."""
        case = mixture(half)
        base = half.infer.TraceMeanField_ELBO()
        objective = half.library.TraceMMD_ELBO(1 - weight, weight + 1e-12, base=base)
        plain, weighted = half.steps([base, objective], case, draws=NumbersOfShape)
        loc, scale = 0.2 * X[:, 0], 0.5
        kl = 0.5 * (scale**2 + loc**2 - 1 - np.log(scale**2))
        assert weighted.loss - plain.loss == pytest.approx((weight - 1) * kl.sum(), rel=1e-9)

    def test_of_several_objectives_that_weight_a_kl(self, half: Half) -> None:
        case, library = mixture(half), half.library
        base = half.infer.TraceMeanField_ELBO()
        inner = library.TraceMMD_ELBO(0.5, 0.5 + 1e-12, base=base)
        outer = library.TraceMMD_ELBO(0.5, 0.5 + 1e-12, base=inner)
        loc, scale = 0.2 * X[:, 0], 0.5
        kl = 0.5 * (scale**2 + loc**2 - 1 - np.log(scale**2))
        plain, weighted = half.steps([base, outer], case, draws=NumbersOfShape)
        assert weighted.loss - plain.loss == pytest.approx((0.25 - 1) * kl.sum(), rel=1e-9)


@in_numpyro
def test_the_kl_of_a_guide_without_plates_is_weighted(half: Half) -> None:
    case = minibatch(half, N)

    def guide(x: Any) -> None:
        loc = half.param("loc", 0.3)
        half.sample("z", half.dist.Normal(x + loc, 0.4))

    case = case._replace(guide=guide)
    base = half.infer.TraceMeanField_ELBO()
    objective = half.library.TraceMMD_ELBO(0.5, 0.5 + 1e-12, base=base)
    plain, weighted = half.steps([base, objective], case, draws=NumbersOfShape)
    kl = 0.5 * (0.4**2 + (X[:, 0] + 0.3) ** 2 - 1 - np.log(0.4**2))
    assert weighted.loss - plain.loss == pytest.approx(-0.5 * kl.sum(), rel=1e-9)


def test_every_plate_holds_data_where_nothing_is_observed(half: Half) -> None:
    normal = half.dist.Normal

    def model() -> None:
        with half.plate("rows", N):
            half.sample("z", normal(0.0, 1.0))

    def guide() -> None:
        loc = half.param("loc", 0.3)
        with half.plate("rows", N):
            half.sample("z", normal(loc, 1.0))

    assert list(groups(half, Case(model, guide))) == ["z"]


def test_a_factor_observes_its_plates(half: Half) -> None:
    normal = half.dist.Normal

    def model() -> None:
        with half.plate("weights", 3):
            half.sample("w", normal(0.0, 1.0))
        with half.plate("rows", N):
            z = half.sample("z", normal(0.0, 1.0))
            half.factor("energy", -(z**2))

    def guide() -> None:
        loc = half.param("loc", 0.3)
        with half.plate("weights", 3):
            half.sample("w", normal(loc, 1.0))
        with half.plate("rows", N):
            half.sample("z", normal(loc, 1.0))

    assert list(groups(half, Case(model, guide))) == ["z"]


def with_a_parent(half: Half) -> Case:
    """z given t; the guide draws z from its marginal under the prior."""
    normal = half.dist.Normal

    def model() -> None:
        t = half.sample("t", normal(0.0, 1.0))
        with half.plate("data", 50):
            half.sample("z", normal(t, 0.3))

    def guide() -> None:
        half.sample("t", normal(0.0, 1.0))
        scale = half.param("scale", np.sqrt(1.09))
        with half.plate("data", 50):
            half.sample("z", normal(half.xp.zeros(50), scale))

    return Case(model, guide)


@pytest.mark.parametrize(
    "sites",
    [
        pytest.param("z 1", marks=pytest.mark.slow),
        "z 4",
        pytest.param("t z 4", marks=pytest.mark.slow),
    ],
)
@slow_in_numpyro
def test_more_particles_do_not_change_the_penalty(half: Half, sites: str) -> None:
    """The mean over t of the MMD² between N(0, 1.09) and N(t, .09), by quadrature.

    What the parent adds has a mean of 0.
    """
    *names, number = sites.split()
    particles = int(number)
    t, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def kernel(variance: float, shift: Any) -> Any:
        return np.exp(-(shift**2) / (2 * (1 + variance))) / np.sqrt(1 + variance)

    exact = kernel(2 * 1.09, 0.0) + kernel(0.18, 0.0) - 2 * weights @ kernel(1.18, t)
    objective = half.library.TraceMMD_ELBO(
        0.0, 2.0, half.library.RBF(1.0), sites=names, num_particles=particles
    )
    values = half.penalties(objective, with_a_parent(half), count=300 // particles) / 50
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values))


@in_pyro
@pytest.mark.slow
def test_vectorised_particles_do_not_change_it_either(half: Half) -> None:
    settings = {"sites": "z", "num_particles": 6, "estimator": "closed_form"}
    single = half.library.TraceMMD_ELBO(0.0, 2.0, **settings)
    vectorised = half.library.TraceMMD_ELBO(
        0.0, 2.0, vectorize_particles=True, max_plate_nesting=1, **settings
    )
    case = with_a_parent(half)
    one, other = (half.penalties(elbo, case, count=60) for elbo in (single, vectorised))
    error = np.hypot(one.std(), other.std()) / np.sqrt(60)
    assert abs(one.mean() - other.mean()) < 4 * error


@slow_in_numpyro
def test_a_minibatch_of_one_row_has_a_biased_penalty(half: Half) -> None:
    case = minibatch(half, 1)
    assert half.penalty(half.library.TraceMMD_ELBO(estimator="biased"), case) > 0


def minibatch(half: Half, rows: int) -> Case:
    normal = half.dist.Normal

    def model(x: Any) -> None:
        with half.plate("data", rows):
            z = half.sample("z", normal(half.xp.zeros(rows), 1.0))
            half.sample("x", normal(z, 0.5), obs=x)

    def guide(x: Any) -> None:
        loc = half.param("loc", 0.3)
        with half.plate("data", rows):
            half.sample("z", normal(x + loc, 0.4))

    return Case(model, guide, (half.xp.asarray(X[:rows, 0]),))


def infomax(half: Half) -> Any:
    critic = half.critic(lambda p, x, z: p["w"] * x * z[:, 0], {"w": np.array(0.2)})
    return half.library.TraceInfoMax_ELBO(critic)


OBJECTIVES: dict[str, Callable[[Half], Any]] = {
    "MMD": lambda half: half.library.TraceMMD_ELBO(),
    "InfoMax": infomax,
}


@in_both("objective", list(OBJECTIVES), quick=["MMD"])
def test_a_last_minibatch_of_one_row_warns(half: Half, objective: str) -> None:
    elbo, case = OBJECTIVES[objective](half), minibatch(half, 1)
    with pytest.warns(UserWarning, match=r"a single row of \['z'\].*drop_last=True"):
        loss = half.loss(elbo, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert loss == pytest.approx(half.loss(elbo.base, case), abs=1e-12)


class TestPyroAlone:
    @in_pyro
    def test_a_mask_of_one_column_masks_rows(self, half: Half) -> None:
        mask = torch.arange(N) < 5

        def model() -> None:
            with pyro.plate("data", N):
                fn = pyro.distributions.Normal(torch.zeros(N, 2), 1.0)
                pyro.sample("z", fn.mask(mask[:, None]).to_event(1))

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(2))
            with pyro.plate("data", N):
                fn = pyro.distributions.Normal(loc.expand(N, 2), 1.0)
                pyro.sample("z", fn.mask(mask[:, None]).to_event(1))

        (rows,) = groups(half, Case(model, guide)).values()
        np.testing.assert_array_equal(rows[1], mask)

    @in_pyro
    @pytest.mark.parametrize("sites", [None, ["z"]])
    def test_a_plate_without_a_size_has_as_many_data_as_rows(self, half: Half, sites: Any) -> None:
        def model(x: Any) -> None:
            with pyro.plate("unrelated", dim=-2):
                pyro.sample("w", pyro.distributions.Normal(torch.zeros(3, 1), 1.0))
            with pyro.plate("data", dim=-1):
                z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(N), 1.0))
                pyro.sample("x", pyro.distributions.Normal(z, 0.5), obs=x)

        def guide(x: Any) -> None:
            loc = pyro.param("loc", torch.zeros(N))
            with pyro.plate("unrelated", dim=-2):
                pyro.sample("w", pyro.distributions.Normal(torch.zeros(3, 1), 1.0))
            with pyro.plate("data", dim=-1):
                pyro.sample("z", pyro.distributions.Normal(loc, 1.0))

        seen = groups(half, Case(model, guide, (torch.as_tensor(X[:, 0]),)), sites=sites)
        assert list(seen) == ["z"]
        assert seen["z"][2] == N

    @in_pyro
    def test_the_sizes_are_the_models_where_an_easy_guide_has_none(self, half: Half) -> None:
        def model(x: Any) -> None:
            with pyro.plate("data", 100, subsample_size=N):
                z = pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))
                pyro.sample("x", pyro.distributions.Normal(z, 0.5), obs=x)

        class Guide(EasyGuide):
            def guide(self, x: Any) -> None:
                group = self.group(match="z")
                with self.plate("data", 100, subsample_size=N):
                    loc = pyro.param("loc", torch.zeros(N, 1))
                    group.sample("aux", pyro.distributions.Normal(loc, 1.0).to_event(1))

        case = Case(model, Guide(model), (torch.as_tensor(X[:, 0]),))
        assert groups(half, case)["z"][2] == 100

    @in_pyro
    @pytest.mark.parametrize("parts", [False, True], ids=["AutoNormal", "AutoGuideList"])
    def test_autonormal_of_a_hierarchy_has_its_kl_weighted(self, half: Half, parts: bool) -> None:
        autoguide = pyro.infer.autoguide

        def model(x: Any) -> None:
            mu = pyro.sample("mu", pyro.distributions.Normal(0.0, 1.0))
            with pyro.plate("data", N):
                z = pyro.sample("z", pyro.distributions.Normal(mu, 1.0))
                pyro.sample("x", pyro.distributions.Normal(z, 0.5), obs=x)

        if parts:
            guide = autoguide.AutoGuideList(model)
            for name in ("mu", "z"):
                guide.append(autoguide.AutoNormal(pyro.poutine.block(model, expose=[name, "x"])))
        else:
            guide = autoguide.AutoNormal(model)
        case = Case(model, guide, (torch.as_tensor(X[:, 0]),))
        guide(*case.args)
        base = pyro.infer.Trace_ELBO()
        weighted = half.library.TraceMMD_ELBO(0.5, 0.5 + 1e-12, base=base)

        def half_of_the_kl() -> float:
            trace = pyro.poutine.trace(guide).get_trace(*case.args)
            replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace)).get_trace(*case.args)
            trace.compute_log_prob()
            replayed.compute_log_prob()
            log_q = sum(
                site["log_prob_sum"]
                for name, site in trace.nodes.items()
                if name in ("z", "z_unconstrained")
            )
            return float((log_q - replayed.nodes["z"]["log_prob_sum"]).detach()) / 2

        pyro.set_rng_seed(3)
        plain = base.loss(model, guide, *case.args)
        pyro.set_rng_seed(3)
        loss = weighted.loss(model, guide, *case.args)
        pyro.set_rng_seed(3)
        assert plain - loss == pytest.approx(half_of_the_kl(), rel=1e-9)
