"""The recomputed gradient against the kept graph: every tensor, hooks, random numbers, memory."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_infovae._arrays.checkpointing import checkpointed_gradient
from pyro_infovae.integrators import tempered_leapfrog
from pyro_infovae.tempering import inverse_temperatures

Gradient = Callable[..., tuple[tuple[Tensor, ...], Tensor]]


def plain_gradient(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], captured: Sequence[Tensor] = ()
) -> tuple[tuple[Tensor, ...], Tensor]:
    own = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in inputs]
    value = function(*own, *captured)
    return torch.autograd.grad(value, own, create_graph=True, allow_unused=True), value


def flow(
    gradient: Gradient,
    energy: Callable[..., Tensor],
    u: Tensor,
    captured: Sequence[Tensor] = (),
    *,
    num_steps: int = 3,
    step_size: float | Tensor = 0.2,
) -> Tensor:
    def force(values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        (grad,), value = gradient(energy, (values["z"],), captured)
        return {"z": grad}, value

    beta = inverse_temperatures(torch.tensor(0.3, dtype=u.dtype), num_steps)
    position, momentum, last = tempered_leapfrog(
        {"z": u}, {"z": torch.ones_like(u)}, force, beta, step_size=step_size
    )
    return (position["z"] ** 2).sum() + momentum["z"].sin().sum() + 0.1 * last


def assert_same_gradients(loss: Callable[[Gradient], Tensor], tensors: Sequence[Tensor]) -> None:
    expected = torch.autograd.grad(loss(plain_gradient), tensors)
    actual = torch.autograd.grad(loss(checkpointed_gradient), tensors)
    assert all(gradient.abs().max() > 1e-3 for gradient in expected)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def kept_graph(output: Tensor) -> bool:
    return "Recomputed" not in type(output.grad_fn).__name__


def test_leaves_inputs_and_step_size() -> None:
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    data = torch.randn(4, 3, requires_grad=True)
    u, step_size = torch.randn(4, 2, requires_grad=True), torch.full((2,), 0.2, requires_grad=True)

    def energy(z: Tensor) -> Tensor:
        return ((decoder(z) - data) ** 2).sum() + 0.5 * (z**2).sum()

    assert_same_gradients(
        partial(flow, energy=energy, u=u, step_size=step_size),
        (u, step_size, data, *decoder.parameters()),
    )


@pytest.mark.parametrize("explicit", [True, False])
def test_captured_tensors_that_were_computed_outside(explicit: bool) -> None:
    """Their own gradient, and through them, those of a weight that encoder and decoder share."""
    weight, data = torch.randn(3, 2, requires_grad=True), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 1, 0])
    code = (data @ weight).tanh()
    features = code.exp()

    def loss(gradient: Gradient) -> Tensor:
        def energy(z: Tensor, c: Tensor = code, f: Tensor = features, y: Tensor = labels) -> Tensor:
            score = ((z @ weight.T) ** 2).sum(-1)
            return (score * (c * f).sum(-1).cosh() + y * z.sum(-1) ** 2 + (z * f).sum(-1)).sum()

        captured = (code, features, labels) if explicit else ()
        return flow(gradient, energy, code, captured, step_size=0.05)

    for tensors in ([weight], [code], [features], [weight, code, features]):
        expected = torch.autograd.grad(loss(plain_gradient), tensors, retain_graph=True)
        actual = torch.autograd.grad(loss(checkpointed_gradient), tensors, retain_graph=True)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_the_graph_is_kept_only_where_it_must_be() -> None:
    x, weight = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    outside = weight.exp()
    (gradient,), _ = checkpointed_gradient(lambda z: (z**2 * weight.exp()).sum(), (x,))
    assert not kept_graph(gradient)
    (gradient,), _ = checkpointed_gradient(lambda z, c: (z**2 * c).sum(), (x,), (outside,))
    assert not kept_graph(gradient)
    (gradient,), _ = checkpointed_gradient(lambda z: (z**2 * outside).sum(), (x,))
    assert kept_graph(gradient)


def test_derivatives_are_partial_where_one_input_is_computed_from_another() -> None:
    a = torch.randn(3, requires_grad=True)
    b = a.exp()

    def function(a: Tensor, b: Tensor) -> Tensor:
        return (a**2 * b).sum()

    (in_a, in_b), _ = checkpointed_gradient(function, (a, b))
    torch.testing.assert_close(in_a, 2 * a * b)
    torch.testing.assert_close(in_b, a**2)
    # d/da sum(2 a e^a + a^2), as b = e^a
    (total,) = torch.autograd.grad(in_a.sum() + in_b.sum(), a)
    torch.testing.assert_close(total, 2 * b + 2 * a * b + 2 * a)


def test_the_value_is_differentiable_too() -> None:
    x, weight = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    _, value = checkpointed_gradient(lambda z: (z**2 * weight).sum(), (x,))
    in_x, in_weight = torch.autograd.grad(value, (x, weight))
    torch.testing.assert_close(in_x, 2 * x * weight)
    torch.testing.assert_close(in_weight, x**2)


def test_an_input_without_effect_and_a_constant_gradient() -> None:
    x, y = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)
    (in_x, in_y), value = checkpointed_gradient(lambda x, y: 3 * x.sum(), (x, y))
    assert in_x.tolist() == [3.0] * 3
    assert in_y.tolist() == [0.0] * 2
    (in_x.sum() + in_y.sum()).backward(retain_graph=True)
    assert x.grad is None
    assert torch.autograd.grad(value, x)[0].tolist() == [3.0] * 3


def test_evaluations() -> None:
    calls = 0

    def energy(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (z**4).sum()

    loss = flow(checkpointed_gradient, energy, torch.randn(3, requires_grad=True), num_steps=3)
    assert calls == 4
    loss.backward()
    assert calls == 8


def test_nothing_is_kept_under_no_grad() -> None:
    weight = torch.ones(3, requires_grad=True)
    x = torch.arange(3.0)
    with torch.no_grad():
        (gradient,), value = checkpointed_gradient(lambda z: (weight * z**2).sum(), (x,))
    assert gradient.tolist() == [0.0, 2.0, 4.0]
    assert value == 5
    assert not gradient.requires_grad
    assert not value.requires_grad


def test_nothing_requires_grad_where_nothing_did() -> None:
    (gradient,), value = checkpointed_gradient(lambda z: (z**2).sum(), (torch.ones(3),))
    assert not gradient.requires_grad
    assert not value.requires_grad


def test_hooks_of_a_parameter_see_the_sum_of_its_gradients_once() -> None:
    weight = nn.Parameter(torch.randn(3))
    u = torch.randn(3, requires_grad=True)

    def energy(z: Tensor) -> Tensor:
        return (weight * z**2).sum() + (z**4).sum()

    def loss(gradient: Gradient) -> Tensor:
        return flow(gradient, energy, u, num_steps=3) + weight.sum()

    (expected,) = torch.autograd.grad(loss(plain_gradient), weight)
    seen: list[Tensor] = []
    accumulated: list[Tensor] = []
    weight.register_hook(lambda g: (seen.append(g), 10 * g)[1])
    weight.register_post_accumulate_grad_hook(accumulated.append)
    loss(checkpointed_gradient).backward()
    torch.testing.assert_close(seen, [expected])
    torch.testing.assert_close(weight.grad, 10 * expected)
    assert len(accumulated) == 1


def test_random_numbers_are_replayed() -> None:
    """Dropout in the decoder: the gradient of what was computed, and the generator undisturbed."""
    decoder = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Dropout(0.5), nn.Linear(50, 3))
    u = torch.randn(4, 2, requires_grad=True)

    def energy(z: Tensor) -> Tensor:
        return (decoder(z) ** 2).sum()

    def loss(gradient: Gradient) -> Tensor:
        torch.manual_seed(7)
        return flow(gradient, energy, u)

    assert_same_gradients(loss, (u, *list(decoder.parameters())[:-1]))
    value = loss(checkpointed_gradient)
    state = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_changed_before_backward_is_an_error() -> None:
    weight = torch.ones(3, requires_grad=True)
    (gradient,), _ = checkpointed_gradient(lambda z: (weight * z**2).sum(), (torch.ones(3),))
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient.sum().backward()


def test_one_differentiation() -> None:
    x = torch.ones(3, requires_grad=True)
    (gradient,), _ = checkpointed_gradient(lambda z: (z**4).sum(), (x,))
    with pytest.raises(RuntimeError, match="Expected create_graph=False: a checkpointed gradient"):
        torch.autograd.grad(gradient.sum(), x, create_graph=True)


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes held at once by storages created while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, weakref.WeakSet[Any]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.release, storage.nbytes())
        return result

    def release(self, nbytes: int) -> None:
        self.live -= nbytes


@pytest.mark.parametrize(
    ("gradient", "constant"), [(checkpointed_gradient, True), (plain_gradient, False)]
)
def test_memory_of_ten_steps_is_that_of_one(gradient: Gradient, constant: bool) -> None:
    decoder = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 128))
    data = torch.rand(256, 128)

    def energy(z: Tensor) -> Tensor:
        return (
            nn.functional.binary_cross_entropy_with_logits(decoder(z), data, reduction="sum")
            + 0.5 * (z**2).sum()
        )

    def peak(num_steps: int) -> int:
        u = torch.randn(256, 4, requires_grad=True)
        with PeakMemory() as memory:
            flow(gradient, energy, u, num_steps=num_steps, step_size=0.01).backward()
        return memory.peak

    assert (peak(10) < 1.3 * peak(1)) is constant


def test_a_function_without_a_graph() -> None:
    with pytest.raises(ValueError, match="Expected a differentiable function; got a result with"):
        checkpointed_gradient(lambda z: z.detach().sum(), (torch.ones(3),))


def test_a_function_that_is_no_scalar() -> None:
    with pytest.raises(ValueError, match=r"Expected a scalar function; got shape \(3,\)"):
        checkpointed_gradient(lambda z: z**2, (torch.ones(3),))
