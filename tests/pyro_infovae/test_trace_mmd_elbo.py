"""TraceMMD_ELBO: its value, its scale, its estimators and what it refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.kernels import IMQ, RBF
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs


def seeded(objective: ELBO, case: Programs, *, seed: int = 3) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step from fresh parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    loss = objective.loss_and_grads(case.model, case.guide, *case.args)
    store = pyro.get_param_store()
    grads = {name: store._params[name].grad for name in store}
    return loss, {name: grad.clone() for name, grad in grads.items() if grad is not None}


def penalty(objective: TraceMMD_ELBO, case: Programs, *, seed: int) -> float:
    """The penalty alone: the loss without what the base says of the same draws."""
    if objective.base.max_plate_nesting == math.inf:
        objective.base.loss(case.model, case.guide, *case.args)  # it guesses the nesting by a run
    with pyro.validation_enabled(False), torch.no_grad():
        pyro.set_rng_seed(seed)
        loss = objective.loss(case.model, case.guide, *case.args)
        pyro.set_rng_seed(seed)
        return loss - objective.base.loss(case.model, case.guide, *case.args)


def averages_to(samples: list[float], expected: float) -> bool:
    values = torch.tensor(samples)
    error = values.std() / math.sqrt(len(values))
    return abs(float(values.mean()) - expected) < 4 * float(error)


NEUTRAL_BASES: dict[str, Callable[..., ELBO]] = {
    "trace": lambda **kw: Trace_ELBO(**kw),
    "mean field": lambda **kw: TraceMeanField_ELBO(**kw),
    "graph": lambda **kw: TraceGraph_ELBO(**kw),
    "renyi": lambda **kw: RenyiELBO(alpha=0.3, **{"num_particles": 2, **kw}),
}
NEUTRAL_CASES = {
    "plain": programs.vae(),
    "subsampled": programs.vae(num=20, batch=7),
    "masked": programs.masked_vae(),
    "ragged": programs.sequences(),
    "nested": programs.nested(),
    "hierarchical": programs.hierarchical(),
}
PARTICLES: dict[str, dict[str, Any]] = {
    "one": {},
    "three": {"num_particles": 3},
    "vectorised": {"num_particles": 3, "vectorize_particles": True},
}


class TestZeroWeight:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize("case", NEUTRAL_CASES.values(), ids=NEUTRAL_CASES)
    @pytest.mark.parametrize("base", NEUTRAL_BASES.keys())
    def test_reproduces_the_base(self, base: str, case: Programs, particles: dict) -> None:
        stock = NEUTRAL_BASES[base](**particles)
        with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
            ours = TraceMMD_ELBO(alpha=0.0, lambd=1.0, base=NEUTRAL_BASES[base](**particles))
        expected, expected_grads = seeded(stock, case)
        loss, grads = seeded(ours, case)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert grads.keys() == expected_grads.keys()
        assert grads
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[name], rtol=1e-6, atol=1e-12)
        pyro.set_rng_seed(3)
        value = ours.loss(case.model, case.guide, *case.args)
        pyro.set_rng_seed(3)
        assert value == pytest.approx(stock.loss(case.model, case.guide, *case.args), rel=1e-6)

    def test_default_base_samples_the_kl_where_the_order_differs(self) -> None:
        def model(x: Tensor) -> None:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 4):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 4):
                b = pyro.sample("b", dist.Normal(pyro.param("m", torch.tensor(0.3)), 1.0))
            pyro.sample("a", dist.Normal(b.mean(), 1.0))

        case = Programs(model, guide, (torch.arange(4.0),))
        with pytest.warns(UserWarning, match="weight"):
            ours = TraceMMD_ELBO(0.0, 1.0)
        assert seeded(ours, case)[0] == pytest.approx(seeded(Trace_ELBO(), case)[0], rel=1e-12)


class TestValue:
    """Against the formula, written out for a case whose every draw is known."""

    @pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
    def test_equals_the_formula(self, alpha: float) -> None:
        model, guide, (x,) = programs.vae()
        objective = TraceMMD_ELBO(alpha, 7.0, RBF(1.3), estimator="biased", base=Trace_ELBO())
        loss, _ = seeded(objective, Programs(model, guide, (x,)))

        pyro.set_rng_seed(3)
        loc = x @ pyro.param("encoder").detach()
        scale = pyro.param("scale").detach()
        z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        prior = torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        standard = dist.Normal(0.0, 1.0)
        likelihood = dist.Normal(torch.tanh(z) @ pyro.param("decoder").detach(), 0.7)
        kl = (dist.Normal(loc, scale).log_prob(z) - standard.log_prob(z)).sum()

        def mean_kernel(a: Tensor, b: Tensor) -> float:
            pairs = [math.exp(-float(((p - q) ** 2).sum()) / (2 * 1.3**2)) for p in a for q in b]
            return sum(pairs) / len(pairs)

        mmd = mean_kernel(z, z) + mean_kernel(prior, prior) - 2 * mean_kernel(z, prior)
        expected = -likelihood.log_prob(x).sum() + (1 - alpha) * kl + 12 * (alpha + 6) * mmd
        assert loss == pytest.approx(float(expected), rel=1e-10)

    def test_subsampled_kl_is_weighted_at_full_scale(self) -> None:
        case = programs.vae(num=20, batch=5)
        zero, one = (
            seeded(TraceMMD_ELBO(alpha, 1.0 - alpha + 1e-9), case)[0] for alpha in (0.0, 0.5)
        )
        pyro.set_rng_seed(3)
        index = torch.randperm(20)[:5]
        loc = case.args[0][index] @ pyro.param("encoder").detach()
        q = dist.Normal(loc, pyro.param("scale").detach())
        kl = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum() * 20 / 5
        assert zero - one == pytest.approx(0.5 * float(kl), rel=1e-6)

    def test_a_weight_of_zero_removes_an_infinite_kl(self) -> None:
        def guide(x: Tensor) -> None:
            weight = pyro.param("weight", torch.ones(3, 2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(x @ weight, event_dim=1))

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                prior = dist.Uniform(-1e-3 * torch.ones(2), 1e-3, validate_args=False).to_event(1)
                z = pyro.sample("z", prior)
                pyro.sample(
                    "x", dist.Normal(z.sum(-1, True), 1.0).expand((12, 3)).to_event(1), obs=x
                )

        case = Programs(model, guide, (programs.data(),))
        pyro.enable_validation(False)
        loss, grads = seeded(TraceMMD_ELBO(1.0, 5.0), case)
        assert math.isfinite(loss)
        assert torch.isfinite(grads["weight"]).all()
        assert grads["weight"].abs().max() > 0


class TestScale:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_expected_penalty_ignores_the_batch_size(self, particles: dict) -> None:
        means, errors = [], []
        for batch, repeats in ((32, 150), (256, 20)):
            objective = TraceMMD_ELBO(0.0, 2.0, **particles)
            case = programs.vae(num=1000, batch=batch)
            values = torch.tensor([penalty(objective, case, seed=i) for i in range(repeats)])
            means.append(float(values.mean()))
            errors.append(float(values.std()) / math.sqrt(repeats))
        assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
        assert min(means) > 8 * max(errors), "too little signal to tell the batch sizes apart"

    def test_expected_penalty_doubles_with_the_data(self) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        model, guide, (x,) = programs.vae(num=1000, batch=200)
        single, double = (
            torch.tensor(
                [penalty(objective, Programs(model, guide, (d,)), seed=i) for i in range(30)]
            )
            for d in (x, x.repeat(2, 1))
        )
        error = math.hypot(2 * float(single.std()), float(double.std())) / math.sqrt(30)
        assert abs(2 * float(single.mean()) - float(double.mean())) < 4 * error
        assert float(double.mean()) > 8 * error

    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        case = programs.vae()
        scaled = Programs(
            pyro.poutine.scale(case.model, 0.1), pyro.poutine.scale(case.guide, 0.1), case.args
        )
        objective = TraceMMD_ELBO(0.0, 3.0)
        seeded(objective, case)
        assert penalty(objective, case, seed=5) == pytest.approx(penalty(objective, scaled, seed=5))

    def test_masked_rows_count_for_nothing(self) -> None:
        model, guide, (x,) = programs.masked_vae()
        objective = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form")
        seeded(objective, Programs(model, guide, (x,)))
        moved = x.clone()
        moved[::3] += 100.0
        first, second = (
            penalty(objective, Programs(model, guide, (d,)), seed=5) for d in (x, moved)
        )
        assert first == pytest.approx(second, rel=1e-12)
        assert first != pytest.approx(penalty(objective, Programs(model, guide, (2 * x,)), seed=5))


class TestEstimators:
    def test_closed_form_is_the_mean_of_the_unbiased_one(self) -> None:
        case = programs.vae(num=16)
        closed = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=4, num_particles=8, vectorize_particles=True)
        values = [penalty(sampled, case, seed=i) for i in range(150)]
        first, second = (penalty(closed, case, seed=i) for i in range(2))
        assert first == second
        assert averages_to(values, first)

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_closed_form_ignores_particles(self, particles: dict) -> None:
        case = programs.vae()
        one = penalty(TraceMMD_ELBO(0.0, 2.0, estimator="closed_form"), case, seed=1)
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form", **particles)
        assert penalty(objective, case, seed=1) == pytest.approx(one, rel=1e-9)

    def test_biased_is_not_negative(self) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, IMQ(), estimator="biased")
        assert min(penalty(objective, programs.vae(), seed=i) for i in range(50)) >= 0

    def test_prior_draws_lower_the_variance(self) -> None:
        one, many = (
            torch.tensor(
                [
                    penalty(TraceMMD_ELBO(0.0, 2.0, prior_draws=k), programs.vae(), seed=i)
                    for i in range(80)
                ]
            )
            for k in (1, 16)
        )
        assert many.var() < 0.7 * one.var()


class TestMethods:
    def test_differentiable_loss_does_not_wait_for_the_device(self) -> None:
        case = programs.vae(num=20, batch=7)
        pyro.enable_validation(False)
        for kwargs in ({}, {"base": Trace_ELBO(num_particles=2)}, {"estimator": "closed_form"}):
            objective = TraceMMD_ELBO(0.3, **kwargs)
            objective.differentiable_loss(case.model, case.guide, *case.args)
            with _NoSync():
                loss = objective.differentiable_loss(case.model, case.guide, *case.args)
            assert loss.requires_grad

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_the_dtype(self, dtype: torch.dtype) -> None:
        torch.set_default_dtype(dtype)
        model, guide, (x,) = programs.vae()
        loss = TraceMMD_ELBO().differentiable_loss(model, guide, x.to(dtype))
        assert loss.dtype == dtype

    def test_a_base_without_differentiable_loss_says_so(self) -> None:
        case = programs.vae()
        objective = TraceMMD_ELBO(base=TraceGraph_ELBO())
        with pytest.raises(NotImplementedError, match="TraceGraph_ELBO has no differentiable_loss"):
            objective.differentiable_loss(case.model, case.guide, *case.args)

    @pytest.mark.parametrize(
        "base",
        [TraceGraph_ELBO(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)],
    )
    def test_the_penalty_reaches_the_gradient_over_any_base(self, base: ELBO) -> None:
        case = programs.vae()
        expected_loss, expected = seeded(TraceMMD_ELBO(0.3, 9.0, base=Trace_ELBO()), case)
        loss, grads = seeded(TraceMMD_ELBO(0.3, 9.0, base=base), case)
        assert loss == pytest.approx(expected_loss, rel=1e-9)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected[name])

    def test_composes_with_itself(self) -> None:
        case = programs.vae()
        inner = TraceMMD_ELBO(0.0, 3.0, RBF(1.0), estimator="closed_form")
        outer = TraceMMD_ELBO(0.0, 5.0, IMQ(), base=inner)
        pyro.set_rng_seed(0)
        total = outer.loss(case.model, case.guide, *case.args)
        pyro.set_rng_seed(0)
        value = TraceMMD_ELBO(0.0, 5.0, IMQ()).loss(case.model, case.guide, *case.args)
        assert total - value == pytest.approx(penalty(inner, case, seed=0), rel=1e-9)

    def test_nan_in_the_loss_warns(self) -> None:
        model, guide, (x,) = programs.vae()
        pyro.enable_validation(False)
        x = x.clone()
        x[0] = math.nan
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=TraceMMD_ELBO())
        with pytest.warns(UserWarning, match="Encountered NaN: loss"):
            svi.step(x)
        with pytest.warns(UserWarning, match="Encountered NaN"):
            svi.evaluate_loss(x)


class _NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a value"
        return func(*args, **(kwargs or {}))


def _bernoulli() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def _gamma() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), 1.0))

    return Programs(model, guide, (programs.data(),))


def _unsized() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(12), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    return Programs(model, guide, (programs.data(),))


REFUSED_SETTINGS = {
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        r"particle settings in base; got TraceMMD_ELBO\(base=..., num_particles=3.*Trace_ELBO\(",
    ),
    "compiled base": ({"base": JitTrace_ELBO()}, "runs model and guide in every step.*JitTrace"),
}

REFUSED_PROGRAMS: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "not in the guide": (
        programs.mixture(enumerate_in_model=True),
        {"sites": ["y"], "base": TraceEnum_ELBO(max_plate_nesting=1)},
        "'y', which the guide does not draw",
    ),
    "not reparameterised": (
        _bernoulli(),
        {"sites": ["y", "z"]},
        r"'y', which is not reparameterised \(Bernoulli\): leave it out of sites",
    ),
    "closed form": (
        _gamma(),
        {"estimator": "closed_form"},
        "diagonal normal at site 'z'; the guide has LogNormal.*use estimator='unbiased'",
    ),
    "closed form, mixture": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {"estimator": "closed_form", "base": TraceEnum_ELBO(max_plate_nesting=1)},
        "prior of 'z' is a mixture over a latent that the model sums out",
    ),
    "unsized plate": (_unsized(), {}, "Plate 'data' of site 'z' has no size"),
    "mixture prior": (
        programs.mixture(learned_prior=True, enumerate_in_model=True),
        {"alpha": 0.5, "base": TraceEnum_ELBO(max_plate_nesting=1)},
        "KL of 'z' cannot be weighted by 0.5: its prior depends on 'y'",
    ),
    "sequential": (
        Programs(
            programs.mixture().model,
            pyro.infer.config_enumerate(programs.mixture().guide, "sequential"),
            programs.mixture().args,
        ),
        {"base": TraceEnum_ELBO(max_plate_nesting=1)},
        "'y' is enumerated sequentially",
    ),
    "parallel draws": (
        Programs(
            programs.vae().model,
            pyro.infer.config_enumerate(
                programs.vae().guide, "parallel", num_samples=3, expand=True
            ),
            programs.vae().args,
        ),
        {"base": TraceEnum_ELBO(max_plate_nesting=1)},
        r"'z' is drawn several times in parallel \(num_samples\)",
    ),
}


class TestErrors:
    @pytest.mark.parametrize(("settings", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
    def test_settings(self, settings: dict, match: str) -> None:
        with pytest.raises((ValueError, NotImplementedError), match=match):
            TraceMMD_ELBO(**settings)

    @pytest.mark.parametrize(
        ("case", "settings", "match"), REFUSED_PROGRAMS.values(), ids=REFUSED_PROGRAMS
    )
    def test_programs(self, case: Programs, settings: dict, match: str) -> None:
        objective = TraceMMD_ELBO(**settings)
        with pytest.raises((ValueError, NotImplementedError), match=match):
            objective.loss_and_grads(case.model, case.guide, *case.args)

    def test_one_density_for_several_latents_cannot_be_reweighted(self) -> None:
        model, _, args = programs.two_latents()
        guide = AutoMultivariateNormal(model)
        TraceMMD_ELBO(0.0).loss(model, guide, *args)
        with pytest.raises(
            NotImplementedError, match=r"KL of 'z1' cannot be weighted by 0.5: .*'_"
        ):
            TraceMMD_ELBO(0.5).loss(model, guide, *args)

    def test_a_model_that_catches_exceptions_is_still_left_after_its_latents(self) -> None:
        reached = []

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                try:
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                except Exception:
                    z = torch.zeros(len(x))
                reached.append("likelihood")
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

        TraceMMD_ELBO().loss(model, guide, programs.data())
        assert reached == ["likelihood"]
        with warnings.catch_warnings():
            TraceMMD_ELBO(prior_draws=3).loss(model, guide, programs.data())
        assert reached == ["likelihood"] * 2
