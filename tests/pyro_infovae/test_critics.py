import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_infovae.critics import ConcatCritic, SeparableCritic, score_all_pairs


class Conv(nn.Module):
    """(rows, 1, 6, 6) to (rows, 4), counting the rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 6)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += x.shape[0]
        return self.conv(x).flatten(1)


class Distance(nn.Module):
    """A critic of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return -self.scale * (x.flatten(1)[:, :2] - z).square().sum(1).exp()


Make = Callable[[], nn.Module]
CRITICS: dict[str, Make] = {
    "concat": lambda: ConcatCritic(6, 2, hidden=(5, 4), activation=nn.Tanh),
    "linear": lambda: ConcatCritic(6, 2, hidden=()),
    "separable": lambda: SeparableCritic(6, 2, hidden=(5,), embed_dim=3, activation=nn.Tanh),
    "own": Distance,
}
each_critic = pytest.mark.parametrize("make", CRITICS.values(), ids=CRITICS)


def loops(critic: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    return torch.stack(
        [
            torch.cat([critic(x[i : i + 1], z[j : j + 1]) for j in range(z.shape[0])])
            for i in range(x.shape[0])
        ]
    )


def linear_loops(layer: nn.Module, values: list[float]) -> list[float]:
    rows, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        math.fsum(w * v for w, v in zip(row, values, strict=True)) + b
        for row, b in zip(rows, bias, strict=True)
    ]


# --- forward --------------------------------------------------------------------------------------


def test_concat_critic_is_a_network_on_both() -> None:
    critic = ConcatCritic(2, 3, hidden=(4, 5))
    x, z = torch.randn(6, 2), torch.randn(6, 3)
    for row, score in enumerate(critic(x, z).tolist()):
        values = linear_loops(critic.first, x[row].tolist() + z[row].tolist())
        for layer in (critic.rest[1], critic.rest[3]):
            values = linear_loops(layer, [max(value, 0.0) for value in values])
        assert values == [pytest.approx(score, rel=1e-12)]


def test_separable_critic_is_an_inner_product() -> None:
    critic = SeparableCritic(2, 3, hidden=(4,), embed_dim=7)
    x, z = torch.randn(6, 2), torch.randn(6, 3)
    for row, score in enumerate(critic(x, z).tolist()):
        embeddings = []
        for network, values in ((critic.x_embedding, x[row]), (critic.z_embedding, z[row])):
            hidden = linear_loops(network[0], values.tolist())
            embeddings.append(linear_loops(network[2], [max(value, 0.0) for value in hidden]))
        want = math.fsum(a * b for a, b in zip(*embeddings, strict=True))
        assert score == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.SiLU(), nn.functional.silu])
def test_activation_is_a_class_or_a_function(family: Any, activation: Any) -> None:
    x, z = torch.randn(5, 3), torch.randn(5, 2)
    torch.manual_seed(1)
    want = family(3, 2, activation=nn.SiLU)(x, z)
    torch.manual_seed(1)
    torch.testing.assert_close(family(3, 2, activation=activation)(x, z), want)


@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic])
def test_encoders_get_their_own_shapes_and_are_trained(family: Any) -> None:
    x_encoder, z_encoder = Conv(), nn.Linear(2, 3)
    critic = family(4, 3, x_encoder=x_encoder, z_encoder=z_encoder)
    x, z = torch.randn(5, 1, 6, 6), torch.randn(5, 2)
    plain = family(4, 3)
    plain.load_state_dict(critic.state_dict(), strict=False)
    got = critic(x, z)
    torch.testing.assert_close(got, plain(x_encoder(x), z_encoder(z)))
    got.sum().backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
    assert {"x_encoder.conv.weight", "z_encoder.weight"} < set(critic.state_dict())


# --- all pairs ------------------------------------------------------------------------------------


@each_critic
@pytest.mark.parametrize("block_rows", [1, 4, 7, 12, 100])
@pytest.mark.parametrize("rows", [5, 11])
def test_all_pairs_equal_loops(make: Make, block_rows: int, rows: int) -> None:
    critic = make()
    x, z = torch.randn(rows, 2, 3, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    got, want = score_all_pairs(critic, x, z, block_rows=block_rows), loops(critic, x, z)
    assert got.shape == (rows, 7)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    weights, inputs = torch.randn(rows, 7), [x, z, *critic.parameters()]
    got_grads = torch.autograd.grad((weights * got).sum(), inputs)
    want_grads = torch.autograd.grad((weights * want).sum(), inputs)
    torch.testing.assert_close(got_grads, want_grads, rtol=1e-10, atol=1e-12)


def test_separable_all_pairs_equal_loops() -> None:
    critic = SeparableCritic(3, 2)
    x, z = torch.randn(4, 3), torch.randn(6, 2)
    torch.testing.assert_close(critic.all_pairs(x, z), loops(critic, x, z))


@each_critic
def test_all_pairs_without_gradients(make: Make) -> None:
    critic, x, z = make(), torch.randn(5, 6), torch.randn(5, 2)
    with torch.no_grad():
        got = score_all_pairs(critic, x, z, block_rows=4)
    assert not got.requires_grad
    torch.testing.assert_close(got, loops(critic, x, z))


@pytest.mark.parametrize("family", [ConcatCritic, SeparableCritic])
def test_all_pairs_encode_each_row_once(family: Any) -> None:
    encoder = Conv()
    critic = family(4, 2, x_encoder=encoder)
    score_all_pairs(
        critic, torch.randn(8, 1, 6, 6), torch.randn(8, 2), block_rows=8
    ).sum().backward()
    assert encoder.rows == 8


@each_critic
def test_all_pairs_can_be_traced(make: Make) -> None:
    critic, x, z = make(), torch.randn(5, 6), torch.randn(5, 2, requires_grad=True)

    def gradient(z: Tensor) -> Tensor:
        return torch.autograd.grad(score_all_pairs(critic, x, z, block_rows=10).sum(), z)[0]

    torch.testing.assert_close(make_fx(gradient)(z)(z), gradient(z))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return out


@contextmanager
def saved_bytes(sizes: dict[int, int]) -> Iterator[None]:
    """Collects the size of each storage kept for the backward pass; views share theirs."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


WIDTH = 32
WIDE: dict[str, Make] = {
    "concat": lambda: ConcatCritic(6, 2, hidden=(WIDTH, WIDTH)),
    "own": lambda: Own(ConcatCritic(6, 2, hidden=(WIDTH, WIDTH))),
}


class Own(nn.Module):
    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.critic(x, z)


@pytest.mark.parametrize("make", WIDE.values(), ids=WIDE)
def test_memory_is_bounded_by_one_block(make: Make) -> None:
    critic, n, block_rows = make(), 64, 128
    x, z = torch.randn(n, 6), torch.randn(n, 2, requires_grad=True)

    def cost(block_rows: int) -> tuple[int, int]:
        sizes: dict[int, int] = {}
        with LargestTensor() as largest:
            with saved_bytes(sizes):
                scores = score_all_pairs(critic, x, z, block_rows=block_rows)
            scores.sum().backward()
        return largest.elements, sum(sizes.values())

    largest, saved = cost(block_rows)
    assert largest <= max(block_rows * WIDTH, n * n)
    assert saved < 8 * 4 * n * WIDTH
    # In one block the hidden layers of all pairs are there, and are kept.
    largest, saved = cost(n * n)
    assert largest >= n * n * WIDTH
    assert saved >= 8 * 2 * n * n * WIDTH
