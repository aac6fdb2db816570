"""mutual_information by a critic, against normals of known information."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_infovae import ConcatCritic
from pyro_infovae.diagnostics import aggregated_posterior, mutual_information
from pyro_infovae.mutual_information import BOUNDS, nwj
from tests.pyro_infovae import programs
from tests.pyro_infovae.information_programs import correlated
from tests.pyro_infovae.param_store import assert_untouched
from tests.pyro_infovae.programs import Programs


class Exact(nn.Module):
    """The best NWJ critic of `correlated`: 1 + log q(z | x) / q(z)."""

    def __init__(self, information: float, dims: int) -> None:
        super().__init__()
        rho = math.sqrt(1 - math.exp(-2 * information / dims))
        self.slope = nn.Parameter(torch.tensor(rho))
        self.information = information

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale = (1 - self.slope**2).sqrt()
        own = -0.5 * ((z - self.slope * x) / scale) ** 2
        return 1 + self.information + (own + 0.5 * z**2).sum(-1)


class Recorder(nn.Module):
    """Keeps which data it was shown, in training and after it; copies share the record."""

    seen: dict[bool, list[float]]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))
        Recorder.seen = {True: [], False: []}

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        Recorder.seen[self.training].extend(x[:, 0].tolist())
        return self.weight * z[:, 0]


class TestMutualInformation:
    @pytest.mark.parametrize("information", [1.0, 2.0])
    def test_a_trained_critic_finds_the_information(self, information: float) -> None:
        case = correlated(programs.data(1000, 2), information=information)
        report = mutual_information(case.model, case.guide, *case.args, num_steps=300)
        assert 0 < report.standard_error < 0.06
        tolerance = 0.05 * information + 4 * report.standard_error
        assert report.estimate == pytest.approx(information, abs=tolerance)
        assert report.num_data == 500
        assert report.bound == "nwj"

    @pytest.mark.parametrize("bound", BOUNDS)
    @pytest.mark.parametrize("batch", [None, 200])
    def test_the_best_critic_gives_the_information(self, bound: str, batch: int | None) -> None:
        case = correlated(programs.data(2000, 2), information=1.0, batch=batch)
        critic = Exact(1.0, 2)
        if bound == "js":
            critic.information -= 1.0  # its best critic is the log ratio itself
        report = mutual_information(
            *case[:2], *case.args, critic=critic, bound=bound, num_steps=0, num_samples=6000
        )
        assert report.estimate == pytest.approx(1.0, abs=4 * report.standard_error + 0.02)
        assert report.standard_error < 0.06

    def test_minibatches_with_too_few_rows_of_a_part_are_left_out(self) -> None:
        """Of 3 rows at random, 2 or more are held out in half the minibatches."""
        case = correlated(programs.data(2000, 1), information=0.5, batch=3)
        report = mutual_information(
            *case[:2], *case.args, critic=Exact(0.5, 1), num_steps=3, num_samples=1000
        )
        assert report.estimate == pytest.approx(0.5, abs=4 * report.standard_error)
        assert report.standard_error < 0.1

    def test_standard_errors_are_the_spread_over_data_sets(self) -> None:
        reports = []
        for seed in range(40):
            case = correlated(programs.data(200, 1, seed=seed), information=0.5)
            reports.append(
                mutual_information(
                    *case[:2], *case.args, critic=Exact(0.5, 1), num_steps=0, num_samples=300
                )
            )
        spread = torch.tensor([report.estimate for report in reports]).std()
        claimed = torch.tensor([report.standard_error for report in reports]).square().mean().sqrt()
        assert float(claimed / spread) == pytest.approx(1.0, abs=4 / math.sqrt(2 * 40))

    def test_what_the_critic_memorises_does_not_count(self) -> None:
        """A code that has nothing to do with x, but is always the same for a datum."""
        x, hidden = programs.data(120, 2), programs.data(120, 2, seed=9)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 120):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 120):
                pyro.sample("z", dist.Normal(hidden, 0.1).to_event(1))

        report = mutual_information(model, guide, x, num_steps=300, num_samples=500)
        assert aggregated_posterior(model, guide, x).mutual_information > 3.0
        assert report.estimate < 4 * report.standard_error

    def test_training_and_evaluation_share_no_datum(self) -> None:
        x = torch.arange(100.0)[:, None]
        case = correlated(x, information=1.0, batch=40)
        critic = Recorder()
        mutual_information(
            *case[:2], x, critic=critic, num_steps=50, num_samples=500, batch_size=8, held_out=0.3
        )
        trained, evaluated = (set(Recorder.seen[mode]) for mode in (True, False))
        assert not trained & evaluated
        assert trained | evaluated == set(range(100))
        assert len(evaluated) == 30

    def test_masked_data_are_not_shown(self) -> None:
        x = torch.arange(40.0)[:, None]
        model, guide, _ = correlated(x, information=1.0)
        mask = torch.arange(40) % 4 != 0
        critic = Recorder()
        report = mutual_information(
            pyro.poutine.mask(model, mask=mask),
            pyro.poutine.mask(guide, mask=mask),
            x,
            critic=critic,
            num_steps=20,
            num_samples=200,
        )
        assert set(Recorder.seen[True]) | set(Recorder.seen[False]) <= set(
            torch.arange(40)[mask].tolist()
        )
        assert report.num_data <= 20

    def test_data_may_be_a_function_and_of_any_shape(self) -> None:
        class Images(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.critic = ConcatCritic(4, 2, hidden=(8,), x_encoder=nn.Flatten())

            def forward(self, x: Tensor, z: Tensor) -> Tensor:
                assert x.shape[1:] == (1, 2, 2)
                return self.critic(x, z)

        x = programs.data(60, 2)
        model, guide, _ = correlated(x, information=1.0, batch=20)
        report = mutual_information(
            model,
            guide,
            x,
            critic=Images(),
            data=lambda x: torch.cat([x, x], -1).reshape(60, 1, 2, 2),
            bound=nwj,
            num_steps=5,
            num_samples=50,
        )
        assert math.isfinite(report.estimate)
        assert report.bound == "nwj"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_counts_and_constant_features(self, dtype: torch.dtype) -> None:
        """Integers, and a pixel that is always 0, as the default critic may meet them."""
        torch.set_default_dtype(dtype)
        x = torch.stack([torch.arange(200) % 16, torch.zeros(200, dtype=torch.long)], -1)

        def model(x: Tensor) -> None:
            with pyro.plate("data", 200):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Poisson(z[:, None].exp().expand(-1, 2)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", 200):
                pyro.sample("z", dist.Normal(x[:, 0].to(dtype) / 5, 0.1))

        report = mutual_information(model, guide, x, num_steps=300, num_samples=2000)
        assert report.estimate > 1.0

    def test_leaves_parameters_and_critic_alone(self) -> None:
        case = programs.vae(num=20, batch=15)
        critic = ConcatCritic(3, 2, hidden=(8,))
        before = [parameter.detach().clone() for parameter in critic.parameters()]
        assert_untouched(
            case,
            lambda: mutual_information(
                *case[:2], *case.args, critic=critic, num_steps=5, num_samples=20
            ),
        )
        assert all(map(torch.equal, critic.parameters(), before))
        assert all(parameter.grad is None for parameter in critic.parameters())

    def test_shows_a_bar_where_tqdm_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = []

        def bar(steps: Any, **settings: Any) -> Any:
            shown.append(settings["total"])
            return steps

        case = correlated(programs.data(40, 1), information=0.5)
        monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bar))
        mutual_information(*case[:2], *case.args, num_steps=3, num_samples=20)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        mutual_information(*case[:2], *case.args, num_steps=3, num_samples=20)
        assert shown == [3]


REFUSED_BY_CRITIC: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "nothing held out": (programs.vae(), {"held_out": 0.0}, "held_out between 0 and 1; got 0.0"),
    "all held out": (programs.vae(), {"held_out": 1.0}, "held_out between 0 and 1; got 1.0"),
    "one held out": (
        programs.vae(num=10),
        {"held_out": 0.1},
        r"at least 2 rows of each run to train the critic on.*got 1: use more data",
    ),
    "batch": (programs.vae(), {"batch_size": 1}, r"batch_size >= 2.*got .*batch_size=1"),
    "steps": (programs.vae(), {"num_steps": -1}, r"num_steps >= 0.*got num_steps=-1"),
    "samples": (programs.vae(), {"num_samples": 1}, r"num_samples >= 2; got .*num_samples=1"),
    "bound": (programs.vae(), {"bound": "mine"}, "got 'mine'"),
    "data": (
        programs.vae(),
        {"data": "y"},
        r"mutual_information: Expected the observed site 'y' .*got \['x'\]",
    ),
    "several plates": (programs.nested(), {}, "mutual_information: the latents .*different plates"),
}


@pytest.mark.parametrize(
    ("case", "settings", "match"), REFUSED_BY_CRITIC.values(), ids=REFUSED_BY_CRITIC
)
def test_mutual_information_refuses(case: Programs, settings: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mutual_information(case.model, case.guide, *case.args, **settings)
