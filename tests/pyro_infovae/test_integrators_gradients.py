"""Gradients of the flow against finite differences, what they cost, and when there are none."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_infovae.integrators import tempered_leapfrog
from pyro_infovae.tempering import free_inverse_temperatures, inverse_temperatures
from tests.pyro_infovae.potentials import Sites, force_of, quartic, recomputed


def test_steps_cost_one_gradient_each_and_one_more() -> None:
    calls = 0

    def counted(u: Sites) -> Tensor:
        nonlocal calls
        calls += 1
        return quartic(u)

    u = {"a": torch.randn(3, 2), "b": torch.randn(3)}
    tempered_leapfrog(u, u, force_of(counted), inverse_temperatures(0.3, 4), step_size=0.1)
    assert calls == 5


@pytest.mark.parametrize("force", [force_of, recomputed])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("free", [False, True])
def test_gradients_against_finite_differences(
    force: Callable[..., Callable[[Sites], tuple[Sites, Tensor]]], per_step: bool, free: bool
) -> None:
    """In step sizes, beta_0 or the factors, the start, and the weights of a decoder."""
    num_steps = 3
    data = torch.randn(4, 3)

    def endpoint(
        epsilon_a: Tensor, epsilon_b: Tensor, temper: Tensor, u_a: Tensor, u_b: Tensor,
        rho_a: Tensor, rho_b: Tensor, weight: Tensor, bias: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def potential(u: Sites) -> Tensor:
            code = torch.cat([u["a"], u["b"][:, None]], -1)
            error = (code @ weight + bias).tanh() - data
            return 0.5 * (error**2).sum() + 0.5 * (code**2).sum()

        beta = (
            free_inverse_temperatures(temper) if free else inverse_temperatures(temper, num_steps)
        )
        u, rho, energy = tempered_leapfrog(
            {"a": u_a, "b": u_b},
            {"a": rho_a, "b": rho_b},
            force(potential),
            beta,
            step_size={"a": epsilon_a, "b": epsilon_b},
            per_step=per_step,
        )
        return u["a"], u["b"], rho["a"], rho["b"], energy

    leading = (num_steps,) if per_step else ()
    inputs = (
        0.1 + 0.2 * torch.rand(*leading, 2), 0.1 + 0.2 * torch.rand(leading),
        torch.tensor([0.9, 0.6, 0.8]) if free else torch.tensor(0.3),
        torch.randn(4, 2), torch.randn(4), torch.randn(4, 2), torch.randn(4),
        torch.randn(3, 3), torch.randn(3),
    )  # fmt: skip
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(endpoint, inputs, eps=1e-5, atol=1e-6, rtol=1e-6)


def test_no_graph_under_no_grad() -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    u = {"a": torch.randn(3, 2), "b": torch.randn(3)}
    with torch.no_grad():
        state = tempered_leapfrog(
            u,
            u,
            recomputed(lambda u: quartic(u) + (weight * u["a"]).sum()),
            inverse_temperatures(0.3, 4),
            step_size=weight[0, 0],
        )
    assert not any(t.requires_grad for t in (*state[0].values(), *state[1].values(), state[2]))
