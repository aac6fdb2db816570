"""TraceInfoMax_ELBO on the programs people write: plates, data, enumeration, training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_infovae import (
    ConcatCritic,
    SeparableCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)
from pyro_infovae.rows import Rows
from tests import reference_mi
from tests.pyro_infovae import programs
from tests.pyro_infovae.programs import Programs
from tests.pyro_infovae.test_trace_infomax_elbo import Recording, score
from tests.pyro_infovae.test_trace_mmd_elbo import PARTICLES, penalty, seeded

pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


def scattered(*, num: int = 12, batch: int | None = None) -> Programs:
    """z holds noise and a global latent, by which the particle of a code can be told."""
    x = torch.arange(float(num))[:, None].expand(num, 3)

    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num, subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(theta[..., None], torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, True), torch.ones(3)).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))
        with pyro.plate("data", num, subsample_size=batch) as index:
            noise = torch.tensor([1.0, 1e-9])
            loc = torch.stack(torch.broadcast_tensors(x[index, 0], theta), -1)
            pyro.sample("z", dist.Normal(loc, noise).to_event(1))

    return Programs(model, guide, (x,))


class TestNegatives:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize("batch", [None, 5])
    def test_are_codes_of_other_data_of_the_same_particle(
        self, batch: int | None, particles: dict
    ) -> None:
        critic, case = Recording(), scattered(batch=batch)
        objective = TraceInfoMax_ELBO(critic, **particles)
        for seed in range(30):
            critic.calls.clear()
            pyro.set_rng_seed(seed)
            objective.loss(case.model, case.guide, *case.args)
            (x, own), (same_x, other) = critic.calls
            assert len(own) == (batch or 12) * particles.get("num_particles", 1)
            assert torch.equal(x, same_x)
            matches = (other[:, None] == own).all(-1)
            torch.testing.assert_close(matches.sum(1), torch.ones(len(own), dtype=torch.long))
            source = matches.long().argmax(1)
            assert (x[source, 0] != x[:, 0]).all(), "a negative is another datum's"
            torch.testing.assert_close(own[source, 1], own[:, 1], rtol=0, atol=1e-7)
            jumps = own[:, 1].sort().values.diff() > 1e-7
            assert jumps.sum() == particles.get("num_particles", 1) - 1

    def test_every_other_datum_is_met_equally_often(self) -> None:
        critic, case = Recording(), scattered()
        objective = TraceInfoMax_ELBO(critic)
        offsets = torch.zeros(12)
        for seed in range(300):
            critic.calls.clear()
            pyro.set_rng_seed(seed)
            objective.loss(case.model, case.guide, *case.args)
            (x, own), (_, other) = critic.calls
            source = (other[0] == own).all(-1).long().argmax()
            offsets[int(x[source, 0] - x[0, 0]) % 12] += 1
        assert offsets[0] == 0
        chi_squared = ((offsets[1:] - 300 / 11) ** 2 / (300 / 11)).sum()
        assert chi_squared < 10 + 4 * math.sqrt(2 * 10)

    @pytest.mark.parametrize("case", [programs.masked_vae(), programs.sequences()])
    @pytest.mark.parametrize("negatives", ["shift", "all"])
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_masked_data_may_be_anything(
        self, case: Programs, negatives: str, particles: dict
    ) -> None:
        model, guide, (x,) = case
        objective = TraceInfoMax_ELBO(Recording(), negatives=negatives, **particles)
        seeded(objective, case)
        masked = x.new_zeros(x.shape[:-1])
        masked[tuple([slice(None, None, 3)] if x.dim() == 2 else [4, slice(1, None)])] = 1.0
        values = [
            penalty(objective, Programs(model, guide, (x + far * masked[..., None],)), seed=5)
            for far in (0.0, 1e6)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-12)
        moved = penalty(objective, Programs(model, guide, (x + 1 - masked[..., None],)), seed=5)
        assert values[0] != pytest.approx(moved)

    def test_where_all_is_masked_nothing_can_be_told(self) -> None:
        model, guide, args = programs.vae()
        case = Programs(pyro.poutine.mask(model, False), pyro.poutine.mask(guide, False), args)
        loss, grads = seeded(TraceInfoMax_ELBO(Recording(), 3.0), case)
        assert loss == 0
        assert all(grad.abs().max() == 0 for grad in grads.values())


class TestEnumeration:
    """z | y with y enumerated in the guide: the codes of every y, weighted by q(y | x)."""

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize("bound", ["nwj", "dv", "infonce"])
    def test_equals_loops_over_the_values(self, bound: str, particles: dict) -> None:
        model, guide, (x,) = programs.mixture()
        kept: list[Rows] = []

        def keep(rows: Rows) -> Tensor:
            kept.append(rows)
            return torch.zeros(())

        critic = Recording(x_dim=1, z_dim=1)
        base = TraceEnum_ELBO(max_plate_nesting=1, **particles)
        objective = TraceInfoMax_ELBO(
            critic, 1.5, bound=bound, negatives="all", regularizer=keep, base=base
        )
        case = Programs(model, config_enumerate(guide, "parallel"), (x,))
        seeded(objective, case)
        kept.clear()
        value = penalty(objective, case, seed=0)

        draws = particles.get("num_particles", 1)
        codes = kept[0].values
        # Rows of particles run in turn are below one another, vectorised ones within a value of y.
        order = "vrd" if "vectorize_particles" in particles else "rvd"
        sizes = {"v": 3, "r": draws, "d": 12}
        z = codes.view([sizes[axis] for axis in order]).permute([order.index(a) for a in "rvd"])
        weight = float(pyro.param("weight").detach())
        q = (torch.stack([x[:, 0], 0 * x[:, 0], -x[:, 1]], -1) * weight).softmax(-1)
        joint, joint_weights, marginal, marginal_weights = [], [], [], []
        for r in range(draws):
            for i in range(12):
                pairs = [
                    (score(critic, x[i, 0], z[r, v, j : j + 1]), float(q[j, v]))
                    for j in range(12)
                    for v in range(3)
                    if j != i
                ]
                for v in range(3):
                    joint.append(score(critic, x[i, 0], z[r, v, i : i + 1]))
                    joint_weights.append(float(q[i, v]))
                    marginal.append([t for t, _ in pairs])
                    marginal_weights.append([w for _, w in pairs])
        formula = getattr(reference_mi, bound)
        estimate, _ = formula(joint, marginal, joint_weights, marginal_weights)
        assert value == pytest.approx(-12 * 1.5 * estimate, rel=1e-9)

    def test_shifted_negatives_average_to_all(self) -> None:
        model, guide, args = programs.mixture()
        case = Programs(model, config_enumerate(guide, "parallel"), args)
        shifted, every = (
            TraceInfoMax_ELBO(
                Recording(x_dim=1, z_dim=1),
                negatives=negatives,
                base=TraceEnum_ELBO(max_plate_nesting=1),
            )
            for negatives in ("shift", "all")
        )
        seeded(shifted, case)
        gaps = torch.tensor(
            [penalty(shifted, case, seed=i) - penalty(every, case, seed=i) for i in range(150)]
        )
        assert gaps.std() > 0
        assert abs(gaps.mean()) < 4 * gaps.std() / math.sqrt(150)

    def test_trains(self) -> None:
        model, guide, args = programs.mixture(learned_prior=True)
        objective = TraceInfoMax_ELBO(
            Recording(x_dim=1, z_dim=1), 0.3, base=TraceEnum_ELBO(max_plate_nesting=1)
        )
        svi = SVI(
            model,
            config_enumerate(guide, "parallel"),
            pyro.optim.Adam({"lr": 1e-2}),
            loss=objective,
        )
        losses = [svi.step(*args) for _ in range(60)]
        assert sum(losses[-10:]) < sum(losses[:10])


def denoising(*, num: int = 20, batch: int | None = None) -> Programs:
    """Takes x_in, and is to give x_out back."""

    def model(x_in: Tensor, x_out: Tensor) -> None:
        with pyro.plate("data", num, subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x_out[index])

    def guide(x_in: Tensor, x_out: Tensor) -> None:
        with pyro.plate("data", num, subsample_size=batch) as index:
            scale = pyro.param("scale", torch.tensor(1e-9), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(x_in[index, :2], scale).to_event(1))

    x = programs.data(num)
    return Programs(model, guide, (x, x.sum(-1)))


class TestData:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    @pytest.mark.parametrize("batch", [None, 7])
    def test_a_function_of_the_arguments_goes_with_the_minibatch(
        self, batch: int | None, particles: dict
    ) -> None:
        """The guide copies x_in to z, so that each row of the data can be told by its code."""
        case, critic = denoising(batch=batch), Recording()
        objective = TraceInfoMax_ELBO(critic, data=lambda x_in, x_out: x_in, **particles)
        objective.loss(case.model, case.guide, case.args[0], x_out=case.args[1])
        x, z = critic.calls[0]
        assert len(x) == (batch or 20) * particles.get("num_particles", 1)
        torch.testing.assert_close(x[:, :2], z, rtol=0, atol=1e-6)

    def test_a_function_may_give_the_minibatch_itself(self) -> None:
        case, critic = denoising(batch=7), Recording(x_dim=1)
        minibatch = torch.arange(7.0)
        objective = TraceInfoMax_ELBO(critic, data=lambda *args: minibatch)
        objective.loss(case.model, case.guide, *case.args)
        assert torch.equal(critic.calls[0][0], minibatch)

    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_nested_plates_of_which_one_is_subsampled(self, particles: dict) -> None:
        x = programs.data(24).reshape(4, 6, 3)

        def model(x: Tensor) -> None:
            groups = pyro.plate("groups", 6, subsample_size=5, dim=-1)
            with groups as index, pyro.plate("items", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, index, 2])

        def guide(x: Tensor) -> None:
            scale = pyro.param("scale", torch.tensor(1e-9))
            groups = pyro.plate("groups", 6, subsample_size=5, dim=-1)
            with groups as index, pyro.plate("items", 4, dim=-2):
                pyro.sample("z", dist.Normal(x[:, index, :2], scale).to_event(1))

        for source in ("x", lambda x: x):
            pyro.clear_param_store()
            critic = Recording(x_dim=1 if source == "x" else 3)
            TraceInfoMax_ELBO(critic, data=source, **particles).loss(model, guide, x)
            seen, z = critic.calls[0]
            assert len(seen) == 20 * particles.get("num_particles", 1)
            found = (z[:, None] - x[..., :2].reshape(24, 2)).abs().sum(-1).argmin(1)
            expected = x[..., 2].flatten() if source == "x" else x.reshape(24, 3)
            assert torch.equal(seen, expected[found])

    def test_images_keep_their_shape(self) -> None:
        class Images(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.convolution = nn.Conv2d(1, 4, 3, stride=2)
                self.shapes: set[tuple[int, ...]] = set()

            def forward(self, x: Tensor) -> Tensor:
                self.shapes.add(tuple(x.shape))
                return self.convolution(x).relu().flatten(1)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 16):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], 1, 8, 8)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 16):
                weight = pyro.param("weight", torch.ones(2))
                pyro.sample(
                    "z", dist.Normal(weight * x.mean((-3, -2, -1))[:, None], 1.0).to_event(1)
                )

        encoder = Images()
        critic = ConcatCritic(x_dim=36, z_dim=2, hidden=(8,), x_encoder=encoder)
        case = Programs(model, guide, (torch.rand(16, 1, 8, 8).round(),))
        for settings in PARTICLES.values():
            _, grads = seeded(TraceInfoMax_ELBO(critic, **settings), case)
            assert grads["critic$$$x_encoder.convolution.weight"].abs().max() > 0
        assert encoder.shapes == {(16, 1, 8, 8), (48, 1, 8, 8)}


class Quadratic(nn.Module):
    """The log density ratio of two jointly normal numbers, up to its coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.polynomial(x, z[:, 0])

    def all_pairs(self, x: Tensor, z: Tensor) -> Tensor:
        return self.polynomial(x[:, None], z[:, 0])

    def polynomial(self, x: Tensor, z: Tensor) -> Tensor:
        a, b, c, d = self.coefficients
        return a + b * x * x + c * x * z + d * z * z


def linear_gaussian(x: Tensor, batch: int) -> Programs:
    """z ~ N(0, 1), x | z ~ N(z / 2, 1), and the guide N(a x, s²) with a and s to learn."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(0.5 * z, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.2))
        scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x), subsample_size=batch) as index:
            pyro.sample("z", dist.Normal(slope * x[index], scale))

    return Programs(model, guide, (x,))


def information(slope: Any, scale: Any) -> Any:
    return 0.5 * torch.log1p((slope / scale) ** 2)


def best_information(alpha: float) -> float:
    """I at the minimum of the objective itself, whose terms are all known, by a grid search."""
    slope, scale = torch.meshgrid(
        torch.linspace(0.0, 2.0, 801), torch.linspace(0.02, 1.2, 801), indexing="ij"
    )
    reconstruction = 0.5 * ((1 - 0.5 * slope) ** 2 + 0.25 * scale**2)
    kl = 0.5 * (scale**2 + slope**2 - 1) - scale.log()
    loss = reconstruction + kl - alpha * information(slope, scale)
    best = loss.argmin()
    return float(information(slope, scale).flatten()[best])


class TestTraining:
    def test_alpha_raises_the_true_information_to_where_the_objective_is_best(self) -> None:
        """Standard normal data, so that I = ½ log(1 + a²/s²)."""
        x = programs.data(4000, 1)[:, 0]
        x = (x - x.mean()) / x.std()
        reached = []
        for alpha in (0.0, 0.3, 0.5):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            case = linear_gaussian(x, batch=200)
            objective = TraceInfoMax_ELBO(Quadratic(), alpha, negatives="all")
            optim = pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.Adam, "optim_args": {"lr": 4e-2}, "gamma": 0.99}
            )
            svi = SVI(case.model, case.guide, optim, loss=objective)
            for _ in range(300):
                svi.step(*case.args)
                optim.step()
            slope, scale = (pyro.param(name).detach() for name in ("slope", "scale"))
            reached.append(float(information(slope, scale)))
            assert reached[-1] == pytest.approx(best_information(alpha), rel=0.05)
        assert reached[0] < reached[1] < reached[2]

    @pytest.mark.parametrize("frozen", ["critic", "guide"])
    def test_each_parameter_has_its_own_learning_rate(self, frozen: str) -> None:
        case = programs.vae()
        start = {n: g.clone() for n, g in _params_after(case, steps=0, lr=lambda name: 0.0).items()}

        def settings(name: str) -> dict[str, float]:
            return {"lr": 0.0 if name.startswith("critic.") == (frozen == "critic") else 1e-2}

        end = _params_after(case, steps=3, lr=lambda name: settings(name)["lr"])
        assert start.keys() == end.keys()
        for name, value in end.items():
            stays = name.startswith("critic$$$") == (frozen == "critic")
            assert torch.equal(value, start[name]) == stays, name

    def test_save_load_and_resume_with_a_fresh_critic(self, tmp_path: Path) -> None:
        case = programs.vae(num=80, batch=64)

        def start() -> tuple[SVI, pyro.optim.PyroOptim]:
            pyro.clear_param_store()
            optim = pyro.optim.Adam({"lr": 1e-2})
            objective = TraceInfoMax_ELBO(ConcatCritic(3, 2, hidden=(8,)))
            return SVI(case.model, case.guide, optim, loss=objective), optim

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

    @pytest.mark.parametrize("negatives", ["shift", "all"])
    def test_as_a_module_with_a_torch_optimiser(self, negatives: str) -> None:
        x = programs.data(64)
        critic = SeparableCritic(3, 2, hidden=(8,))
        before = [parameter.detach().clone() for parameter in critic.parameters()]
        with pyro.settings.context(module_local_params=True):
            module = TraceInfoMax_ELBO(critic, negatives=negatives)(Decoder(), Encoder())
            assert {id(p) for p in critic.parameters()} <= {id(p) for p in module.parameters()}
            assert len(list(module.parameters())) == 4 + len(before)
            optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
            losses = []
            for _ in range(60):
                optimiser.zero_grad()
                loss = module(x)
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
        assert sum(losses[-10:]) < sum(losses[:10])
        pairs = zip(critic.parameters(), before, strict=True)
        assert all(not torch.equal(now, then) for now, then in pairs)
        assert not list(pyro.get_param_store())
        assert any(name.startswith("critic.") for name in module.state_dict())

    def test_as_a_module_below_and_above_other_objectives(self) -> None:
        x = programs.data(64)
        with pyro.settings.context(module_local_params=True):
            critic = SeparableCritic(3, 2, hidden=(8,))
            over = TraceMMD_ELBO(base=TraceInfoMax_ELBO(critic))(Decoder(), Encoder())
            over(x).backward()
            flow = TraceHamiltonian_ELBO(num_steps=2)
            below = TraceInfoMax_ELBO(critic, base=flow)(Decoder(), Encoder())
            below(x).backward()
        learned = {id(parameter) for parameter in critic.parameters()}
        assert learned < {id(parameter) for parameter in over.parameters()}
        learned |= {id(parameter) for parameter in flow.flow.parameters()}
        assert learned < {id(parameter) for parameter in below.parameters()}
        assert all(parameter.grad is not None for parameter in over.parameters())
        assert not list(pyro.get_param_store())

    def test_composes_with_the_other_penalised_objective(self) -> None:
        case = programs.vae()
        inner = TraceMMD_ELBO(0.0, 3.0, estimator="closed_form")
        both = TraceInfoMax_ELBO(Recording(), 0.7, base=inner)
        loss, grads = seeded(both, case)
        alone, alone_grads = seeded(TraceInfoMax_ELBO(Recording(), 0.7), case)
        _, stock = seeded(inner.base, case)
        _, mmd = seeded(inner, case)
        assert loss - alone == pytest.approx(penalty(inner, case, seed=3), rel=1e-9)
        for name in ("encoder", "scale"):
            expected = alone_grads[name] + mmd[name] - stock[name]
            torch.testing.assert_close(grads[name], expected)


def _params_after(case: Programs, *, steps: int, lr: Callable[[str], float]) -> dict[str, Tensor]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective = TraceInfoMax_ELBO(Recording())
    svi = SVI(
        case.model, case.guide, pyro.optim.Adam(lambda name: {"lr": lr(name)}), loss=objective
    )
    for _ in range(steps):
        svi.step(*case.args)
    svi.evaluate_loss(*case.args)
    return {name: value.detach() for name, value in pyro.get_param_store().items()}


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


OBJECTIVES: dict[str, Callable[..., Any]] = {
    "mmd": lambda **settings: TraceMMD_ELBO(0.0, 1.0 + 1e-9, **settings),
    "infomax": lambda **settings: TraceInfoMax_ELBO(Recording(), 0.0, **settings),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
class TestRegularizer:
    @pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES)
    def test_sees_the_rows(self, objective: Callable[..., Any], particles: dict) -> None:
        model, guide, (x,) = programs.masked_vae()
        kept: list[Rows] = []

        def keep(rows: Rows) -> Tensor:
            kept.append(rows)
            return torch.zeros(())

        objective(regularizer=keep, **particles).loss(model, guide, x)
        (rows,) = kept
        draws = particles.get("num_particles", 1)
        assert list(rows.latents) == ["z"]
        assert rows.latents["z"].shape == rows.values.shape == (12 * draws, 2)
        assert torch.equal(rows.data["x"], x.repeat(draws, 1))
        assert rows.weights is not None
        assert rows.weights.tolist() == [float(i % 3 != 0) for i in range(12)] * draws
        assert (rows.num_data, rows.total) == (12, 12)

    def test_knows_the_size_of_the_data_set(self, objective: Callable[..., Any]) -> None:
        case = programs.vae(num=20, batch=7)
        total = objective(regularizer=lambda rows: torch.tensor(float(rows.total)))
        assert penalty(total, case, seed=0) == pytest.approx(20.0, abs=1e-4)

    def test_each_group_is_regularised(self, objective: Callable[..., Any]) -> None:
        case = programs.nested()
        names: list[str] = []

        def keep(rows: Rows) -> Tensor:
            names.extend(rows.latents)
            return torch.zeros(())

        sites = ["z"] if objective is OBJECTIVES["infomax"] else None
        objective(regularizer=keep, sites=sites).loss(case.model, case.guide, *case.args)
        assert names == (["z"] if sites else ["outer", "z"])

    def test_its_gradient_is_that_of_the_penalty_it_computes(
        self, objective: Callable[..., Any]
    ) -> None:
        """A decorrelation of the code and of code and data, against a finite difference."""

        def regularizer(rows: Rows) -> Tensor:
            z = rows.values - rows.values.mean(0)
            return rows.total * (
                (z[:, 0] * z[:, 1]).mean() ** 2 + (z.T @ rows.data["x"]).abs().sum()
            )

        case = programs.vae(num=20, batch=7)
        ours = objective(regularizer=regularizer, regularizer_weight=2.5, base=Trace_ELBO())
        without = objective(base=Trace_ELBO())
        loss, grads = seeded(ours, case)
        plain_loss, plain = seeded(without, case)
        assert abs(loss - plain_loss) > 1
        value = pyro.param("encoder").unconstrained()
        direction = torch.ones_like(value)
        sides = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                value.add_(step * direction)
            pyro.set_rng_seed(3)
            total = ours.loss(case.model, case.guide, *case.args)
            pyro.set_rng_seed(3)
            sides.append(total - without.loss(case.model, case.guide, *case.args))
        slope = (sides[0] - sides[1]) / 2e-6
        gap = (grads["encoder"] - plain["encoder"]).sum()
        assert float(gap) == pytest.approx(slope, rel=1e-5)

    @pytest.mark.parametrize(
        ("regularizer", "got"),
        [(lambda rows: rows.values, r"\(12, 2\)"), (lambda rows: torch.zeros(1), r"\(1,\)")],
    )
    def test_must_give_a_scalar(
        self, objective: Callable[..., Any], regularizer: Callable[[Rows], Tensor], got: str
    ) -> None:
        case = programs.vae()
        with pytest.raises(ValueError, match=rf"regularizer\(rows\) to be a scalar; got .*{got}"):
            objective(regularizer=regularizer).loss(case.model, case.guide, *case.args)
