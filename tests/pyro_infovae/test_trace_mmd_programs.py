"""TraceMMD_ELBO on the programs people write: plates, groups, priors, guides, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.test_trace_mmd_elbo import PARTICLES, averages_to, penalty, seeded


class TestUnbiased:
    """Where the guide draws from the prior, the penalty averages to 0."""

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize(
        "case",
        [
            programs.hierarchical(exact=True),
            programs.two_latents(exact=True),
            programs.covariate_prior(exact=True),
        ],
        ids=["hierarchical", "two latents", "covariates"],
    )
    def test_exact_conditional_prior(self, case: Programs, particles: dict) -> None:
        objective = TraceMMD_ELBO(0.0, 2.0, **particles)
        values = [penalty(objective, case, seed=i) for i in range(250)]
        assert averages_to(values, 0.0)
        assert torch.tensor(values).std() > 0

    def test_the_prior_is_drawn_for_the_same_minibatch(self) -> None:
        """Guide and prior are all but the same points, so that even the biased MMD² is 0."""

        def narrow(x: Tensor) -> None:
            with pyro.plate("data", len(x), subsample_size=5) as index:
                pyro.sample("z", dist.Normal(x[index, 0], 1e-6))

        case = Programs(narrow, narrow, (programs.data(200),))
        objective = TraceMMD_ELBO(0.0, 2.0, estimator="biased")
        assert penalty(objective, case, seed=0) == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("estimator", ["unbiased", "biased", "closed_form"])
    def test_masked_rows_of_the_prior_count_for_nothing(self, estimator: str) -> None:
        model, guide, (x,) = programs.covariate_prior()
        mask = torch.arange(len(x)) % 3 != 0
        model, guide = (pyro.poutine.mask(program, mask=mask) for program in (model, guide))
        moved = torch.where(mask.unsqueeze(-1), x, x + 50.0)
        objective = TraceMMD_ELBO(0.0, 2.0, estimator=estimator)
        first, second = (
            penalty(objective, Programs(model, guide, (data,)), seed=0) for data in (x, moved)
        )
        assert first == pytest.approx(second, rel=1e-9)

    def test_a_joint_mismatch_is_seen_that_no_marginal_shows(self) -> None:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(0.0, 1.0))
                z2 = pyro.sample("z2", dist.Normal(0.9 * z1, math.sqrt(1 - 0.81)))
                pyro.sample("x", dist.Normal(z1 + z2, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z1", dist.Normal(0.0, 1.0))
                pyro.sample("z2", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, (programs.data(60),))
        objective = TraceMMD_ELBO(0.0, 2.0)
        values = torch.tensor([penalty(objective, case, seed=i) for i in range(60)])
        assert values.mean() > 8 * values.std() / math.sqrt(60)

    def test_particles_of_a_global_latent(self) -> None:
        """Outside plates N is 1 and the particles are the rows: θ ~ N(1.5, 0.8) against N(0, 1)."""
        case = programs.hierarchical(exact=True)
        settings = {"sites": ["theta"], "num_particles": 6}
        closed, sampled = (
            TraceMMD_ELBO(0.0, 2.0, estimator=estimator, **settings)
            for estimator in ("closed_form", "unbiased")
        )
        expected = (
            math.sqrt(1 / (1 + 2 * 0.64))
            + math.sqrt(1 / 3)
            - 2 * math.sqrt(1 / 2.64) * math.exp(-(1.5**2) / (2 * 2.64))
        )
        assert penalty(closed, case, seed=0) == pytest.approx(expected, rel=1e-9)
        assert averages_to([penalty(sampled, case, seed=i) for i in range(150)], expected)

    def test_several_groups_add_up(self) -> None:
        case = programs.nested()
        seeded(TraceMMD_ELBO(), case)
        settings = {"estimator": "closed_form"}
        both, outer, inner = (
            penalty(TraceMMD_ELBO(0.0, 2.0, sites=sites, **settings), case, seed=4)
            for sites in (None, ["outer"], ["z"])
        )
        assert both == pytest.approx(outer + inner, rel=1e-9)
        assert outer > 0
        assert inner > 0


class TestNestedPlates:
    def test_each_group_has_its_own_scale(self) -> None:
        """N is 6 for the groups and 24 for the items; for a point mass at 0 the MMD is known."""

        def guide(x: Tensor) -> None:
            with pyro.plate("groups", 6, dim=-1):
                zero = torch.zeros(6, 2) * pyro.param("one", torch.tensor(1.0))
                pyro.sample("outer", dist.Delta(zero, event_dim=1))
                with pyro.plate("items", 4, dim=-2):
                    pyro.sample("z", dist.Delta(zero.expand(4, 6, 2), event_dim=1))

        model, _, args = programs.nested()
        case = Programs(model, guide, args)
        # d=2 and ℓ²=2; the items' prior, N(outer, 1), is the standard normal here as well.
        expected = 1 + 2 / (2 + 2) - 2 * 2 / (2 + 1)
        for site, total in (("outer", 6), ("z", 24)):
            objective = TraceMMD_ELBO(0.0, 2.0, sites=[site], estimator="closed_form")
            assert penalty(objective, case, seed=0) == pytest.approx(total * expected, rel=1e-9)

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_gradients_are_finite(self, particles: dict) -> None:
        for case in (programs.nested(), programs.sequences()):
            loss, grads = seeded(TraceMMD_ELBO(0.5, 10.0, **particles), case)
            assert math.isfinite(loss)
            assert all(torch.isfinite(grad).all() for grad in grads.values())


class TestPriors:
    def test_a_learned_prior_feels_the_penalty(self) -> None:
        def model(x: Tensor) -> None:
            loc = pyro.param("prior_loc", torch.tensor(3.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(loc, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

        case = Programs(model, guide, (programs.data(),))
        for estimator in ("unbiased", "biased", "closed_form"):
            _, grads = seeded(TraceMMD_ELBO(1.0, 5.0, estimator=estimator), case)
            assert grads["prior_loc"] > 0, "the prior should move towards the posterior"
            assert grads["loc"] != 0

    def test_the_penalty_reaches_the_latents_that_the_prior_depends_on(self) -> None:
        case = programs.hierarchical()
        base = seeded(Trace_ELBO(), case)[1]["theta_loc"]
        ours = seeded(TraceMMD_ELBO(0.0, 50.0, base=Trace_ELBO()), case)[1]["theta_loc"]
        assert ours != pytest.approx(float(base))

    def test_the_likelihood_is_not_computed_for_the_prior(self) -> None:
        calls: list[str] = []

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                calls.append("decoder")
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, 0], 1.0))

        TraceMMD_ELBO(prior_draws=5).loss(model, guide, programs.data())
        assert calls == ["decoder"]


class TestEnumeration:
    def test_rows_are_weighted_by_the_guide(self) -> None:
        """z | y with y enumerated: the penalty is that of weights q(y | x), written out."""
        case = programs.mixture()
        guide = config_enumerate(case.guide, "parallel")
        objective = TraceMMD_ELBO(
            0.0, 4.0, estimator="closed_form", base=TraceEnum_ELBO(max_plate_nesting=1)
        )
        value = penalty(objective, Programs(case.model, guide, case.args), seed=0)
        x = case.args[0]
        weight = float(pyro.param("weight").detach())
        logits = torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 1]], -1) * weight
        q = logits.softmax(-1)
        locs = weight * x[:, 0, None] + torch.arange(3.0) - 1
        total = pairs = 0.0
        for i in range(12):
            for j in range(12):
                for a in range(3):
                    for b in range(3):
                        if i != j:
                            w = float(q[i, a] * q[j, b])
                            s = 1 + 2 * 0.16
                            gap = float(locs[i, a] - locs[j, b])
                            total += w * math.sqrt(1 / s) * math.exp(-(gap**2) / (2 * s))
                            pairs += w
        cross = sum(
            float(q[i, a])
            / 12
            * math.sqrt(1 / 2.16)
            * math.exp(-(float(locs[i, a]) ** 2) / (2 * 2.16))
            for i in range(12)
            for a in range(3)
        )
        expected = total / pairs + math.sqrt(1 / 3) - 2 * cross
        assert value == pytest.approx(12 * 3 * expected, rel=1e-9)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_trains_under_enumeration(self, alpha: float) -> None:
        case = programs.mixture(learned_prior=True)
        guide = config_enumerate(case.guide, "parallel")
        objective = TraceMMD_ELBO(alpha, base=TraceEnum_ELBO(max_plate_nesting=1))
        svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
        losses = [svi.step(*case.args) for _ in range(30)]
        assert all(math.isfinite(loss) for loss in losses)
        assert sum(losses[-5:]) < sum(losses[:5])

    def test_a_mixture_prior_summed_out_in_the_model(self) -> None:
        case = programs.mixture(learned_prior=True, enumerate_in_model=True)
        objective = TraceMMD_ELBO(0.0, 2.0, base=TraceEnum_ELBO(max_plate_nesting=1))
        seeded(objective, case)
        values = torch.tensor([penalty(objective, case, seed=i) for i in range(50)])
        assert values.std() > 0

    def test_enumerated_kl_weight_scales_only_the_continuous_latent(self) -> None:
        case = programs.mixture()
        guide = config_enumerate(case.guide, "parallel")
        base = TraceEnum_ELBO(max_plate_nesting=1)
        losses = {
            alpha: seeded(
                TraceMMD_ELBO(alpha, 1 - alpha + 1e-12, base=base),
                Programs(case.model, guide, case.args),
            )[0]
            for alpha in (0.0, 0.5, 1.0)
        }
        assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, rel=1e-9)


class TestGuides:
    def test_a_point_mass_guide_without_kl(self) -> None:
        """The deterministic encoder of a WAE: α=1 removes the KL."""
        model, _, (x,) = programs.vae(num=60)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = x @ pyro.param("encoder", torch.full((3, 2), 2.0))
                pyro.sample("z", dist.Delta(z, event_dim=1))

        objective = TraceMMD_ELBO(1.0, 1000.0)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), loss=objective)
        for _ in range(150):
            svi.step(x)
        codes = x @ pyro.param("encoder").detach()
        assert codes.var(0).mean() == pytest.approx(1.0, abs=0.45), "towards the prior's variance"

    def test_auto_normal(self) -> None:
        model, _, args = programs.vae()
        guide = AutoNormal(model)
        guide(*args)
        closed = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
        sampled = TraceMMD_ELBO(0.0, 2.0, prior_draws=8, num_particles=8, vectorize_particles=True)
        case = Programs(model, guide, args)
        exact = penalty(closed, case, seed=0)
        assert averages_to([penalty(sampled, case, seed=i) for i in range(100)], exact)

    @pytest.mark.parametrize("sites", [None, ["z"]])
    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_auto_normal_kl_is_reweighted_whole(
        self, alpha: float, sites: list[str] | None
    ) -> None:
        model, _, args = programs.vae()
        guide = AutoNormal(model)
        guide(*args)
        case = Programs(model, guide, args)
        kls = []
        for weight in (0.0, alpha):
            pyro.set_rng_seed(0)
            objective = TraceMMD_ELBO(weight, 1 - weight + 1e-12, sites=sites)
            kls.append(objective.loss(model, guide, *case.args))
        pyro.set_rng_seed(0)
        draw = pyro.poutine.trace(guide).get_trace(*args)
        z = draw.nodes["z"]["value"]
        q = draw.nodes["z_unconstrained"]["fn"].log_prob(z)
        kl = (q - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).sum()
        assert kls[0] - kls[1] == pytest.approx(alpha * kl.item(), rel=1e-6)

    def test_auto_delta(self) -> None:
        model, _, args = programs.vae()
        guide = AutoDelta(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceMMD_ELBO(1.0, 10.0))
        assert all(math.isfinite(svi.step(*args)) for _ in range(3))

    def test_a_denoising_model(self) -> None:
        def model(x_in: Tensor, x_out: Tensor) -> None:
            with pyro.plate("data", len(x_out)):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x_out)

        def guide(x_in: Tensor, x_out: Tensor) -> None:
            with pyro.plate("data", len(x_in)):
                weight = pyro.param("weight", torch.tensor(0.1))
                pyro.sample("z", dist.Normal(weight * x_in, 0.5).to_event(1))

        x = programs.data(40)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=TraceMMD_ELBO(0.0, 10.0))
        losses = [svi.step(x + 0.3 * torch.randn_like(x), x_out=x) for _ in range(60)]
        assert sum(losses[-10:]) < sum(losses[:10])


class _VAE(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 3)
        self.noise = PyroSample(dist.LogNormal(0.0, 0.1))

    def forward(self, x: Tensor) -> None:
        noise = self.noise
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)


class _Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


class TestTraining:
    def test_as_a_module_with_a_torch_optimiser(self) -> None:
        x = programs.data(64)
        with pyro.settings.context(module_local_params=True):
            module = TraceMMD_ELBO(lambd=10.0)(_VAE(), _Encoder())
            optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
            losses = []
            for _ in range(60):
                optimiser.zero_grad()
                loss = module(x)
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        assert sum(losses[-10:]) < sum(losses[:10])
        assert len(list(module.parameters())) == 4

    def test_save_load_and_resume(self, tmp_path: Path) -> None:
        case = programs.vae(num=20, batch=7)

        def start() -> tuple[SVI, pyro.optim.PyroOptim]:
            pyro.clear_param_store()
            optim = pyro.optim.Adam({"lr": 1e-2})
            return SVI(case.model, case.guide, optim, loss=TraceMMD_ELBO()), optim

        svi, optim = start()
        for _ in range(5):
            svi.step(*case.args)
        pyro.get_param_store().save(tmp_path / "params")
        optim.save(tmp_path / "optim")
        pyro.set_rng_seed(7)
        expected = [svi.step(*case.args) for _ in range(4)]

        svi, optim = start()
        pyro.get_param_store().load(tmp_path / "params")
        optim.load(tmp_path / "optim")
        pyro.set_rng_seed(7)
        assert [svi.step(*case.args) for _ in range(4)] == expected

    def test_the_penalty_moves_the_aggregated_posterior_to_the_prior(self) -> None:
        x = 4 + programs.data(200)

        def train(objective: TraceMMD_ELBO) -> float:
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            model, guide, _ = programs.vae(num=200)
            svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), loss=objective)
            for _ in range(200):
                svi.step(x)
            measure = TraceMMD_ELBO(0.0, 2.0, estimator="closed_form")
            return penalty(measure, Programs(model, guide, (x,)), seed=0)

        with pytest.warns(UserWarning, match="weight"):
            stock = TraceMMD_ELBO(0.0, 1.0)
        assert train(TraceMMD_ELBO(0.0, 1000.0)) < 0.5 * train(stock)
