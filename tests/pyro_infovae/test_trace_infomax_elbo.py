"""TraceInfoMax_ELBO: its value, its two gradients, its negatives and what it refuses."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae import ConcatCritic, SeparableCritic, TraceInfoMax_ELBO, TraceMMD_ELBO
from pyro_infovae.mutual_information import BOUNDS, MutualInformationEstimate, nwj, smile
from pyro_infovae.rows import Rows
from tests import reference_mi
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.test_trace_mmd_elbo import (
    NEUTRAL_BASES,
    PARTICLES,
    _NoSync,
    averages_to,
    penalty,
    seeded,
)

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")

CASES: dict[str, Programs] = {
    "plain": programs.vae(),
    "subsampled": programs.vae(num=20, batch=7),
    "masked": programs.masked_vae(),
    "ragged": programs.sequences(),
    "nested": programs.nested(),
    "hierarchical": programs.hierarchical(),
}
SITES = {"sites": ["z"]}


class Recording(nn.Module):
    """A critic that keeps what it was shown."""

    def __init__(self, x_dim: int = 3, z_dim: int = 2, *, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.critic = ConcatCritic(x_dim, z_dim, hidden=(width,), activation=nn.Tanh)
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        self.calls.append((x.detach(), z.detach()))
        return self.critic(x, z)


def recording(case: Programs) -> Recording:
    return Recording(z_dim=1 if case is CASES["hierarchical"] else 2)


def keep(rows: list[Rows]) -> Callable[[Rows], Tensor]:
    """A regulariser that adds nothing and keeps the rows."""

    def regularizer(given: Rows) -> Tensor:
        rows.append(given)
        return given.values.new_zeros(())

    return regularizer


@torch.no_grad()
def score(critic: nn.Module, x: Tensor, z: Tensor) -> float:
    """The critic's score of one pair."""
    return float(critic(x[None], z[None]))


class TestZeroWeight:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    @pytest.mark.parametrize("base", NEUTRAL_BASES.keys())
    def test_reproduces_the_base(self, base: str, case: Programs, particles: dict) -> None:
        stock = NEUTRAL_BASES[base](**particles)
        kept = NEUTRAL_BASES[base](**particles)
        ours = TraceInfoMax_ELBO(recording(case), 0.0, 1.0, **SITES, base=kept)
        expected, expected_grads = seeded(stock, case)
        loss, grads = seeded(ours, case)
        assert loss == pytest.approx(expected, rel=1e-6)
        critics = {name for name in grads if name.startswith("critic$$$")}
        assert grads.keys() - critics == expected_grads.keys()
        for name, grad in expected_grads.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-6, atol=1e-12)
        assert all(grads[name].abs().max() > 0 for name in critics)
        assert len(critics) == 4

    def test_scores_beyond_every_bound_do_not_reach_the_guide(self) -> None:
        class Infinite(nn.Module):
            def forward(self, x: Tensor, z: Tensor) -> Tensor:
                return z.sum(1) * math.inf

        case = CASES["plain"]
        expected = seeded(Trace_ELBO(), case)[1]
        pyro.enable_validation(False)
        ours = TraceInfoMax_ELBO(Infinite(), 0.0, base=Trace_ELBO())
        with pytest.warns(UserWarning, match="Encountered NaN"):
            grads = seeded(ours, case)[1]
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad)


class TestValue:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.4, 0.7), (2.0, 0.0)])
    def test_equals_the_formula(self, alpha: float, beta: float) -> None:
        model, guide, (x,) = programs.vae()
        critic = Recording()
        objective = TraceInfoMax_ELBO(critic, alpha, beta, base=Trace_ELBO())
        loss, _ = seeded(objective, Programs(model, guide, (x,)))

        pyro.set_rng_seed(3)
        loc = x @ pyro.param("encoder").detach()
        scale = pyro.param("scale").detach()
        z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        offset = int(torch.randint(1, 12, ()))
        likelihood = dist.Normal(torch.tanh(z) @ pyro.param("decoder").detach(), 0.7)
        kl = (dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).sum()
        joint = [score(critic, x[i], z[i]) for i in range(12)]
        marginal = [score(critic, x[i], z[(i + offset) % 12]) for i in range(12)]
        information = sum(joint) / 12 - sum(math.exp(t - 1) for t in marginal) / 12
        expected = -likelihood.log_prob(x).sum() + beta * kl - 12 * alpha * information
        assert loss == pytest.approx(float(expected), rel=1e-10)

    @pytest.mark.parametrize("bound", BOUNDS)
    @pytest.mark.parametrize("critic", [ConcatCritic, SeparableCritic])
    def test_all_negatives_equal_a_loop(self, bound: str, critic: type[nn.Module]) -> None:
        case = programs.vae(num=20, batch=7)
        network = critic(3, 2, (8,))
        rows: list[Rows] = []
        objective = TraceInfoMax_ELBO(
            network, 1.5, bound=bound, negatives="all", regularizer=keep(rows)
        )
        seeded(objective, case)
        rows.clear()
        value = penalty(objective, case, seed=5)
        x, z = rows[0].data["x"], rows[0].values
        joint = [score(network, x[i], z[i]) for i in range(7)]
        marginal = [[score(network, x[i], z[j]) for j in range(7) if j != i] for i in range(7)]
        estimate, _ = getattr(reference_mi, bound)(joint, marginal, [1.0] * 7, [[1.0] * 6] * 7)
        assert value == pytest.approx(-20 * 1.5 * estimate, rel=1e-9)

    @pytest.mark.parametrize("bound", ["nwj", "infonce"])
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_masked_rows_count_neither_as_data_nor_as_negatives(
        self, bound: str, particles: dict
    ) -> None:
        """As the loops over the rows that are not masked, in each particle on its own."""
        critic, rows = Recording(), list[Rows]()
        objective = TraceInfoMax_ELBO(
            critic, 1.5, bound=bound, negatives="all", regularizer=keep(rows), **particles
        )
        case = programs.masked_vae()
        seeded(objective, case)
        rows.clear()
        value = penalty(objective, case, seed=5)
        x, z = rows[0].data["x"], rows[0].values
        kept = [r for r in range(len(z)) if r % 12 % 3]
        joint = [score(critic, x[r], z[r]) for r in kept]
        marginal = [
            [score(critic, x[r], z[s]) for s in kept if s != r and s // 12 == r // 12] for r in kept
        ]
        ones = [1.0] * len(kept)
        estimate, _ = getattr(reference_mi, bound)(joint, marginal, ones, [[1.0] * 7] * len(kept))
        assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9)


class TestGradients:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize("case", ["plain", "subsampled", "masked"])
    @pytest.mark.parametrize(
        "settings",
        [{}, {"negatives": "all"}, {"bound": "dv"}, {"bound": "infonce", "negatives": "all"}],
        ids=["nwj", "nwj all", "dv", "infonce all"],
    )
    def test_equal_finite_differences(self, settings: dict, case: str, particles: dict) -> None:
        """Those of the whole loss for model and guide; over N alpha for the critic."""
        program = CASES[case]
        objective = TraceInfoMax_ELBO(
            Recording(), 0.6, 0.8, base=Trace_ELBO(max_plate_nesting=1, **particles), **settings
        )
        _, grads = seeded(objective, program)
        total = len(program.args[0])
        for name, grad in grads.items():
            value = pyro.get_param_store()._params[name]
            direction = torch.randn_like(value)
            losses = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    value.add_(step * direction)
                pyro.set_rng_seed(3)
                losses.append(objective.loss(program.model, program.guide, *program.args))
                with torch.no_grad():
                    value.sub_(step * direction)
            slope = (losses[0] - losses[1]) / 2e-5
            factor = 0.6 * total if name.startswith("critic") else 1.0
            assert float((grad * direction).sum()) * factor == pytest.approx(slope, rel=1e-5)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 300.0])
    @pytest.mark.parametrize("num", [12, 600])
    def test_the_critic_ascends_the_estimate_itself(self, alpha: float, num: int) -> None:
        critic = Recording()
        case = programs.vae(num=num, batch=12)
        _, grads = seeded(TraceInfoMax_ELBO(critic, alpha), case)
        (x, z), (same_x, other) = critic.calls
        assert torch.equal(x, same_x)
        assert sum(torch.equal(other, z.roll(s, 0)) for s in range(1, 12)) == 1
        copied = copy.deepcopy(critic.critic)
        copied.zero_grad()
        ((copied(x, other) - 1).exp().mean() - copied(x, z).mean()).backward()
        for name, parameter in copied.named_parameters():
            torch.testing.assert_close(grads[f"critic$$$critic.{name}"], parameter.grad)

    def test_the_guide_feels_the_surrogate_and_the_loss_the_estimate(self) -> None:
        def bound(joint: Tensor, marginal: Tensor, **weights: Any) -> MutualInformationEstimate:
            return MutualInformationEstimate(joint.new_tensor(5.0), nwj(joint, marginal).surrogate)

        case = CASES["plain"]
        _, expected = seeded(TraceInfoMax_ELBO(Recording(), 0.5), case)
        objective = TraceInfoMax_ELBO(Recording(), 0.5, bound=bound)
        _, grads = seeded(objective, case)
        assert penalty(objective, case, seed=0) == pytest.approx(-12 * 0.5 * 5.0)
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad)

    @pytest.mark.parametrize("bound", BOUNDS)
    def test_huge_scores_in_single_precision_stay_finite(self, bound: str) -> None:
        class Huge(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = nn.Parameter(torch.tensor(1e4))

            def forward(self, x: Tensor, z: Tensor) -> Tensor:
                return self.factor * torch.sign(x[:, 0]) * (1 + 1e-3 * torch.tanh(z[:, 0]))

        torch.set_default_dtype(torch.float32)
        model, guide, (x,) = programs.vae(num=60_000, batch=100)
        case = Programs(model, guide, (x.float(),))
        loss, grads = seeded(TraceInfoMax_ELBO(Huge(), bound=bound), case)
        assert math.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in grads.values())
        assert {grad.dtype for grad in grads.values()} == {torch.float32}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_the_dtype(self, dtype: torch.dtype) -> None:
        torch.set_default_dtype(dtype)
        model, guide, (x,) = programs.vae()
        objective = TraceInfoMax_ELBO(Recording())
        assert objective.differentiable_loss(model, guide, x.to(dtype)).dtype == dtype

    def test_single_precision_at_full_scale_keeps_the_codes_exactly(self) -> None:
        torch.set_default_dtype(torch.float32)
        critic, rows = Recording(), list[Rows]()
        model, guide, (x,) = programs.vae(num=60_000, batch=100)
        objective = TraceInfoMax_ELBO(critic, 10.0, regularizer=keep(rows))
        objective.loss_and_grads(model, guide, x.float())
        assert torch.equal(critic.calls[0][1], rows[0].values)


class TestScale:
    @pytest.mark.parametrize("settings", [{}, {"negatives": "all"}], ids=["shift", "all"])
    def test_the_expected_penalty_ignores_the_batch_size(self, settings: dict) -> None:
        means, errors = [], []
        for batch, repeats in ((32, 150), (256, 20)):
            objective = TraceInfoMax_ELBO(Recording(), **settings)
            case = programs.vae(num=1000, batch=batch)
            values = torch.tensor([penalty(objective, case, seed=i) for i in range(repeats)])
            means.append(float(values.mean()))
            errors.append(float(values.std()) / math.sqrt(repeats))
        assert abs(means[0] - means[1]) < 4 * math.hypot(*errors)
        assert abs(means[1]) > 8 * max(errors), "too little signal to tell the batch sizes apart"

    @pytest.mark.parametrize("vectorize", [False, True])
    def test_the_expected_penalty_ignores_the_particles(self, vectorize: bool) -> None:
        case = programs.vae(num=30)
        one = [penalty(TraceInfoMax_ELBO(Recording()), case, seed=i) for i in range(200)]
        many = TraceInfoMax_ELBO(Recording(), num_particles=8, vectorize_particles=vectorize)
        values = torch.tensor([penalty(many, case, seed=i) for i in range(60)])
        assert averages_to(one, float(values.mean()))
        assert abs(float(values.mean())) > 8 * float(values.std()) / math.sqrt(60)

    def test_a_scale_of_the_users_reaches_the_base_alone(self) -> None:
        case = programs.vae()
        scaled = Programs(
            pyro.poutine.scale(case.model, 0.1), pyro.poutine.scale(case.guide, 0.1), case.args
        )
        objective = TraceInfoMax_ELBO(Recording())
        seeded(objective, case)
        assert penalty(objective, case, seed=5) == pytest.approx(penalty(objective, scaled, seed=5))


def _infomax(base: ELBO) -> ELBO:
    return TraceInfoMax_ELBO(Recording(), 0.3, base=base)


def _mmd(base: ELBO) -> ELBO:
    return TraceMMD_ELBO(0.0, 9.0, base=base)


class TestMethods:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"negatives": "all"}, {"num_particles": 3, "vectorize_particles": True}],
        ids=["shift", "all", "particles"],
    )
    @pytest.mark.parametrize("case", ["subsampled", "masked"])
    def test_differentiable_loss_does_not_wait_for_the_device(
        self, case: str, settings: dict
    ) -> None:
        model, guide, args = CASES[case]
        pyro.enable_validation(False)
        objective = TraceInfoMax_ELBO(Recording(), **settings)
        objective.differentiable_loss(model, guide, *args)
        with _NoSync():
            loss = objective.differentiable_loss(model, guide, *args)
        assert loss.requires_grad

    @pytest.mark.parametrize(
        "base",
        [TraceGraph_ELBO(), TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)],
    )
    def test_the_penalty_reaches_the_gradient_over_any_base(self, base: ELBO) -> None:
        case = CASES["plain"]
        loss, expected = seeded(TraceInfoMax_ELBO(Recording(), 0.3, base=Trace_ELBO()), case)
        value, grads = seeded(TraceInfoMax_ELBO(Recording(), 0.3, base=base), case)
        assert value == pytest.approx(loss, rel=1e-9)
        for name, grad in expected.items():
            torch.testing.assert_close(grads[name], grad)

    @pytest.mark.parametrize("particles", [PARTICLES["three"], PARTICLES["vectorised"]])
    @pytest.mark.parametrize("objective", [_infomax, _mmd])
    def test_a_base_that_frees_its_graph(
        self, objective: Callable[[ELBO], ELBO], particles: dict
    ) -> None:
        """Its gradient and the penalty's add up, whatever the base."""
        case = CASES["plain"]
        grads = {
            (name, base): seeded(wrap(base(max_plate_nesting=1, **particles)), case)[1]
            for base in (Trace_ELBO, RenyiELBO)
            for name, wrap in (("stock", lambda base: base), ("ours", objective))
        }
        added = {
            base: {name: grads["ours", base][name] - grad for name, grad in stock.items()}
            for base, stock in ((base, grads["stock", base]) for base in (Trace_ELBO, RenyiELBO))
        }
        for name, grad in added[Trace_ELBO].items():
            torch.testing.assert_close(added[RenyiELBO][name], grad)
        assert added[RenyiELBO]["encoder"].abs().max() > 0

    def test_the_graph_is_kept_where_the_base_keeps_it(self) -> None:
        case, kept = CASES["plain"], list[Tensor]()

        def regularizer(rows: Rows) -> Tensor:
            kept.append(rows.values.square().sum())
            return kept[0]

        for base in (Trace_ELBO(retain_graph=True), TraceGraph_ELBO(retain_graph=True)):
            kept.clear()
            objective = TraceInfoMax_ELBO(Recording(), regularizer=regularizer, base=base)
            objective.loss_and_grads(case.model, case.guide, *case.args)
            kept[0].backward()

    def test_evaluate_loss_leaves_no_gradient(self) -> None:
        model, guide, args = CASES["plain"]
        objective = TraceInfoMax_ELBO(Recording())
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
        assert math.isfinite(svi.evaluate_loss(*args))
        assert all(parameter.grad is None for parameter in objective.critic.parameters())

    def test_few_rows_warn_once(self) -> None:
        few, many = programs.vae(num=63), programs.vae(num=64)
        objective = TraceInfoMax_ELBO(Recording())
        with pytest.warns(UserWarning, match="from 63 rows, which is poor below 64"):
            objective.loss_and_grads(few.model, few.guide, *few.args)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            objective.loss_and_grads(few.model, few.guide, *few.args)
            TraceInfoMax_ELBO(Recording()).loss(many.model, many.guide, *many.args)


def _two_observed() -> Programs:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            for name in ("left", "right"):
                pyro.sample(name, dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    return Programs(model, programs.vae().guide, (programs.data(),))


def _unobserved() -> Programs:
    """The only observation is outside the plate; a factor and a deterministic are no data."""

    def model(x: Tensor) -> None:
        pyro.sample("sum", dist.Normal(0.0, 1.0), obs=x.sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.factor("factor", z.sum(-1))
            pyro.deterministic("copy", z, event_dim=1)

    return Programs(model, programs.vae().guide, (programs.data(),))


REFUSED_SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "function": ({"critic": lambda x, z: z}, TypeError, "Expected critic to be a torch.nn.Module"),
    "class": ({"critic": ConcatCritic}, TypeError, "torch.nn.Module; got <class"),
    "particles twice": (
        {"base": Trace_ELBO(), "num_particles": 3},
        ValueError,
        "particle settings in base",
    ),
}


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "error", "match"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS
    )
    def test_settings(self, settings: dict, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            TraceInfoMax_ELBO(**{"critic": Recording(), **settings})

    def test_factors_and_deterministic_values_are_no_data(self) -> None:
        case = _unobserved()
        with pytest.raises(
            ValueError, match=r"Expected one observed site .*; got \[\]: pass data="
        ):
            TraceInfoMax_ELBO(Recording()).loss(case.model, case.guide, *case.args)

    @pytest.mark.parametrize("settings", [{"data": "right"}, {"data": lambda x: x[:, 0]}])
    def test_naming_the_data_settles_which(self, settings: dict) -> None:
        case = _two_observed()
        critic = Recording(x_dim=1)
        TraceInfoMax_ELBO(critic, **settings).loss(case.model, case.guide, *case.args)
        assert torch.equal(critic.calls[0][0], case.args[0][:, 0])

    def test_an_earlier_critic_of_another_shape(self) -> None:
        case = CASES["plain"]
        TraceInfoMax_ELBO(Recording()).loss(case.model, case.guide, *case.args)
        wider = TraceInfoMax_ELBO(Recording(width=9))
        with pytest.raises(
            ValueError,
            match=r"'critic\$\$\$critic.first.weight' of shape \(9, 5\) in the param store; got "
            r"\(8, 5\) of an earlier critic: pyro.clear_param_store\(\), or pass another name=",
        ):
            wider.loss(case.model, case.guide, *case.args)
        elsewhere = TraceInfoMax_ELBO(Recording(width=9), name="other")
        assert math.isfinite(elsewhere.loss(case.model, case.guide, *case.args))

    def test_a_bound_with_an_option(self) -> None:
        case = CASES["plain"]
        clipped, plain = (
            TraceInfoMax_ELBO(Recording(), bound=bound)
            for bound in (partial(smile, clip=1e-3), "dv")
        )
        assert penalty(clipped, case, seed=0) != pytest.approx(penalty(plain, case, seed=0))
