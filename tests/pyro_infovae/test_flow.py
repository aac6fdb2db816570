"""The posterior that a flow follows: its force against closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_infovae._traces.flow import Posterior
from pyro_infovae._traces.initial_draw import InitialDraw


def posterior_of(
    model: object, guide: object, *args: Tensor
) -> tuple[Posterior, dict[str, Tensor]]:
    draw = InitialDraw(None)
    with draw:
        guide(*args)
    plates = {name: site.plates for name, site in draw.flowing.items()}
    values = {name: site.value for name, site in draw.flowing.items()}
    return Posterior(model, args, {}, draw.given, plates, draw.outer), values


def test_force_on_a_constrained_latent_has_the_jacobian() -> None:
    """rate ~ Gamma(a, b), x ~ Poisson(rate), u = log rate: ℓ = (a + x) u - (b + 1) exp(u)."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("rate", dist.LogNormal(0.4, 0.3))

    posterior, values = posterior_of(model, guide, torch.tensor(4.0))
    placed = posterior.unconstrain(values)
    u = placed.unconstrained["rate"]
    torch.testing.assert_close(u, values["rate"].log())
    torch.testing.assert_close(placed.log_jacobian["rate"], u)
    gradient, _ = posterior.potential_grad({"rate": u})
    torch.testing.assert_close(gradient["rate"], -(7 - 3 * u.exp()))


def test_force_is_each_datums_own_under_plates_scales_and_masks() -> None:
    """c log p(z) + log p(x | z) + log|J| per row, whatever N / B; nothing on a masked row."""
    mask = torch.tensor([True, False, True, True])

    def model(x: Tensor) -> None:
        plate = pyro.plate("data", 100, subsample=torch.arange(4))
        with plate, poutine.mask(mask=mask):
            with poutine.scale(scale=0.3):
                rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        plate = pyro.plate("data", 100, subsample=torch.arange(4))
        with plate, poutine.mask(mask=mask), poutine.scale(scale=0.3):
            pyro.sample("rate", dist.LogNormal(torch.linspace(-0.5, 0.5, 4), 0.3))

    x = torch.tensor([4.0, 1.0, 0.0, 2.0])
    posterior, values = posterior_of(model, guide, x)
    u = values["rate"].log()
    gradient, _ = posterior.potential_grad({"rate": u})
    expected = 0.3 * (2 - 2 * u.exp()) + (x - u.exp()) + 1
    torch.testing.assert_close(gradient["rate"], -torch.where(mask, expected, 0.0))


def test_a_support_that_depends_on_another_latent() -> None:
    """b ~ Uniform(0, a): where the flow moves a, b = T(u_b) moves with it."""

    def model() -> None:
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
        pyro.sample("b", dist.Uniform(0.0, a))

    def guide() -> None:
        a = pyro.sample("a", dist.LogNormal(0.0, 0.5))
        pyro.sample("b", dist.Uniform(0.0, a))

    posterior, values = posterior_of(model, guide)
    u = posterior.unconstrain(values).unconstrained
    moved = posterior.constrain({"a": u["a"] + 1, "b": u["b"]}).constrained
    ratio = values["b"] / values["a"]
    torch.testing.assert_close(moved["b"], ratio * moved["a"])
