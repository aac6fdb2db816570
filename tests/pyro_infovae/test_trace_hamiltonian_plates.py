"""TraceHamiltonian_ELBO under plates: each row has a flow of its own."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_infovae import TraceHamiltonian_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.flows import (
    X,
    assert_bound,
    assert_gradients,
    flow,
    normal_hierarchy,
    trained,
)
from tests.pyro_infovae.programs import Programs

# Guides here are hardly trained; the standard error tells what is known.
pytestmark = pytest.mark.filterwarnings("ignore:log_evidence")


class TestPlates:
    """Draws are made equal by noise that depends on the row alone."""

    @pytest.fixture(autouse=True)
    def equal_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def noise(shape: Any, dtype: torch.dtype = torch.float64, device: Any = "cpu") -> Tensor:
            size = torch.Size(shape)
            return torch.sin(1.7 * torch.arange(size.numel(), dtype=dtype) ** 1.3).reshape(size)

        monkeypatch.setattr("torch.distributions.normal._standard_normal", noise)
        monkeypatch.setattr(
            "pyro_infovae._traces.refined_guide.torch.randn_like",
            lambda u: 0.8 * noise(u.shape).flip(-1),
        )

    def rows(self, batch: int, total: int, *, mask: Tensor | None = None) -> tuple[Tensor, float]:
        """Log weight per row, without the scale N / B, and the loss per datum."""
        x = programs.data(64)
        pyro.clear_param_store()
        kept = torch.ones(batch, dtype=torch.bool) if mask is None else mask

        def model(x: Tensor) -> None:
            plate = pyro.plate("data", total, subsample=torch.arange(batch))
            with plate as index, poutine.mask(mask=kept):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                loc = programs._decode(z, 3)
                pyro.sample("x", dist.Normal(loc, 0.3).to_event(1), obs=x[index])

        def guide(x: Tensor) -> None:
            plate = pyro.plate("data", total, subsample=torch.arange(batch))
            with plate as index, poutine.mask(mask=kept):
                loc, sd = programs._encoder(x[index], 2)
                pyro.sample("z", dist.Normal(loc, sd).to_event(1))

        objective = TraceHamiltonian_ELBO(5, 0.15, learn=False)
        loss = objective.loss(model, guide, x)
        guide_trace = poutine.trace(objective.refine(model, guide)).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        row = sum(model_trace.nodes[name]["log_prob"] for name in ("z", "x"))
        return (row - guide_trace.nodes["z"]["log_prob"]).detach() * batch / total, loss / total

    def test_the_bound_per_datum_ignores_the_data_size(self) -> None:
        expected, loss = self.rows(32, 32)
        for total in (64, 6400):
            rows, per_datum = self.rows(32, total)
            torch.testing.assert_close(rows, expected)
            assert per_datum == pytest.approx(loss)

    def test_the_bound_per_datum_ignores_the_batch_size(self) -> None:
        expected, _ = self.rows(32, 6400)
        rows, _ = self.rows(8, 6400)
        # The momentum's noise is flipped within a row, so that it depends on the row alone too.
        torch.testing.assert_close(rows, expected[:8])

    def test_masked_rows_contribute_nothing(self) -> None:
        full, _ = self.rows(12, 12)
        mask = torch.arange(12) % 3 != 0
        rows, _ = self.rows(12, 12, mask=mask)
        torch.testing.assert_close(rows, torch.where(mask, full, 0.0))

    def test_a_scale_of_the_users_on_a_latent_keeps_the_time_scale(self) -> None:
        """The dynamics see ℓ = log p(x | z) + c log p(z): c does not slow or hasten the rest."""
        x = programs.data(8)
        pyro.clear_param_store()
        ends = {}
        for scale in (1.0, 1e-9):

            def model(x: Tensor, scale: float = scale) -> None:
                with pyro.plate("data", 100, subsample=torch.arange(8)) as index:
                    with poutine.scale(scale=scale):
                        z = pyro.sample("z", dist.Normal(0.0, 1e6))
                    pyro.sample("x", dist.Normal(z, 0.5), obs=x[index, 0])

            def guide(x: Tensor, scale: float = scale) -> None:
                with pyro.plate("data", 100, subsample=torch.arange(8)), poutine.scale(scale=scale):
                    pyro.sample("z", dist.Normal(torch.zeros(8), 1.0))

            objective = TraceHamiltonian_ELBO(5, 0.15, learn=False)
            ends[scale] = objective.refine(model, guide)(x)["z"].detach()
        torch.testing.assert_close(ends[1.0], ends[1e-9])


class TestStacks:
    def test_a_sequential_plate_and_a_global_latent(self) -> None:
        _, exact = normal_hierarchy()

        def model() -> None:
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            for i in pyro.plate("data", 3):
                z = pyro.sample(f"z_{i}", dist.Normal(theta, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=X[i])

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(3))
            theta = pyro.sample("theta", dist.Normal(0.0, 0.8))
            for i in pyro.plate("data", 3):
                pyro.sample(f"z_{i}", dist.Normal(loc[i] + theta / 2, 0.9))

        case = Programs(model, guide, ())
        assert_bound(case, exact)
        assert_gradients(case)

    def test_a_subsampled_sequential_plate(self) -> None:
        def model() -> None:
            for i in pyro.plate("data", 6, subsample_size=2):
                z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=torch.tensor(0.1 * i))

        def guide() -> None:
            loc = pyro.param("loc", torch.zeros(6))
            for i in pyro.plate("data", 6, subsample_size=2):
                pyro.sample(f"z_{i}", dist.Normal(loc[i], 0.8))

        assert_gradients(Programs(model, guide, ()))

    def test_crossed_plates(self) -> None:
        x = programs.data(3, 2)

        def model() -> None:
            rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
            with rows:
                u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with columns:
                v = pyro.sample("v", dist.Normal(0.0, 1.0))
            with rows, columns:
                pyro.sample("x", dist.Normal(u + v, 1.0), obs=x)

        case = Programs(model, AutoNormal(model, init_scale=0.6), ())
        case.guide()
        row, column = torch.arange(6) // 2, torch.arange(6) % 2
        same = (row[:, None] == row).double() + (column[:, None] == column).double()
        covariance = same + torch.eye(6)
        exact = dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(x.reshape(-1))
        elbo = trained(case, flow())
        assert_bound(case, exact, elbo=elbo, num_samples=30_000)
        assert_gradients(case)

    @pytest.mark.parametrize("vectorize", [False, True])
    def test_particles_of_nested_plates(self, vectorize: bool) -> None:
        elbo = flow(num_particles=3, vectorize_particles=vectorize)
        assert_gradients(programs.nested(), elbo=elbo)

    def test_two_plates_subsampled_apart(self) -> None:
        """Labelled and unlabelled rows: neither latent depends on the other's minibatch."""

        def model() -> None:
            weight = pyro.param("weight", torch.tensor(1.0))
            for name, size in (("labelled", 10), ("unlabelled", 20)):
                with pyro.plate(name, size, subsample_size=5) as index:
                    z = pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))
                    x = torch.linspace(-1.0, 2.0, size)[index]
                    pyro.sample(f"x_{name}", dist.Normal(weight * z, 0.5), obs=x)
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.tensor(0.3))

        def guide() -> None:
            slope = pyro.param("slope", torch.tensor(0.5))
            for name, size in (("labelled", 10), ("unlabelled", 20)):
                with pyro.plate(name, size, subsample_size=5) as index:
                    x = torch.linspace(-1.0, 2.0, size)[index]
                    pyro.sample(f"z_{name}", dist.Normal(slope * x, 0.5))
            pyro.sample("theta", dist.Normal(slope, 1.0))

        assert_gradients(Programs(model, guide, ()))

        def tied() -> None:
            model()
            theta = pyro.sample("theta_2", dist.Normal(0.0, 1.0))
            with pyro.plate("labelled", 10, subsample_size=5):
                pyro.factor("tie", theta * torch.ones(5))

        def tied_guide() -> None:
            guide()
            pyro.sample("theta_2", dist.Normal(0.0, 1.0))

        with pytest.raises(ValueError, match="'theta_2' is outside plate 'labelled'"):
            flow().loss(tied, tied_guide)
