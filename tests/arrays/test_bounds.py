"""What the bounds promise, where mutual information is known: pairs of correlated normals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_infovae.mutual_information import BOUNDS, infonce, js, smile
from tests import reference_mi


def log_ratio(x: Tensor, z: Tensor, rho: float) -> Tensor:
    quadratic = rho**2 * (x**2 + z**2) - 2 * rho * x * z
    return -(quadratic / (2 * (1 - rho**2)) + 0.5 * math.log(1 - rho**2)).sum(-1)


def test_log_ratio_equals_normal_densities() -> None:
    x, z = torch.randn(2, 3)
    got = log_ratio(x, z, 0.6)
    want = reference_mi.gaussian_log_ratio(x.tolist(), z.tolist(), 0.6)
    torch.testing.assert_close(got, torch.tensor(want))


def pairs(rows: int, information: float, dims: int) -> tuple[Tensor, Tensor, float]:
    rho = reference_mi.gaussian_rho(information, dims)
    x, noise = torch.randn(2, rows, dims)
    return x, rho * x + math.sqrt(1 - rho**2) * noise, rho


def off_diagonal(scores: Tensor) -> Tensor:
    n = scores.shape[0]
    return scores.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def mean_and_error(values: list[Tensor]) -> tuple[float, float]:
    stacked = torch.stack(values)
    return float(stacked.mean()), float(stacked.std()) / math.sqrt(len(values))


@pytest.mark.parametrize("negatives", ["shift", "all"])
@pytest.mark.parametrize("information", [0.5, 1.5])
@pytest.mark.parametrize(("name", "constant"), [("nwj", 1), ("dv", 0), ("dv", -3), ("js", 0)])
def test_reaches_the_truth_at_the_optimal_critic(
    name: str, constant: int, information: float, negatives: str
) -> None:
    values = []
    for _ in range(60):
        x, z, rho = pairs(1000, information, dims=3)
        joint = constant + log_ratio(x, z, rho)
        if negatives == "shift":
            marginal = constant + log_ratio(x, z.roll(1, 0), rho)
        else:
            marginal = constant + off_diagonal(log_ratio(x[:250, None], z[:250], rho))
        values.append(BOUNDS[name](joint, marginal).estimate)
    mean, error = mean_and_error(values)
    # dv overestimates by half the variance of its second term.
    bias = (math.exp(2 * information) - 1) / (2 * marginal.numel()) if name == "dv" else 0.0
    assert error < 0.02
    assert abs(mean - information - bias) < 4 * error


def test_js_surrogate_reaches_twice_the_jensen_shannon_divergence() -> None:
    # x = z a fair coin: joint (1/2, 0, 0, 1/2) against (1/4, 1/4, 1/4, 1/4), ratio 2 or 0.
    joint = torch.full((2,), math.log(2))
    marginal = torch.tensor([math.log(2), -1000.0, -1000.0, math.log(2)])
    middle = [3 / 8, 1 / 8, 1 / 8, 3 / 8]
    divergence = 0.5 * sum(0.5 * math.log(0.5 / m) for m in middle[::3])
    divergence += 0.5 * sum(0.25 * math.log(0.25 / m) for m in middle)
    got = js(joint, marginal)
    torch.testing.assert_close(got.surrogate, torch.tensor(2 * divergence))
    torch.testing.assert_close(got.estimate, torch.tensor(math.log(2)))


def test_infonce_nears_the_truth_with_many_negatives() -> None:
    values = []
    for _ in range(20):
        x, z, rho = pairs(500, 1.0, dims=3)
        scores = log_ratio(x[:, None], z, rho) + x.sum(-1, keepdim=True)
        values.append(infonce(scores.diagonal(), off_diagonal(scores)).estimate)
    mean, error = mean_and_error(values)
    assert mean < 1.0 + 4 * error
    # Its bias is about half the variance of the ratio over the number of negatives.
    assert mean > 1.0 - (math.exp(2) - 1) / 1000 - 4 * error


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["nwj", "js", "infonce"])
def test_a_wrong_critic_never_exceeds_the_truth(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    information, dims = 1.0, 3
    network = torch.nn.Sequential(
        torch.nn.Linear(2 * dims, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    ).requires_grad_(False)
    share = seed / 5  # from pure noise to nearly right

    def critic(x: Tensor, z: Tensor, rho: float) -> Tensor:
        wrong = network(torch.cat([x, z], -1)).squeeze(-1)
        return share * ((name == "nwj") + log_ratio(x, z, rho)) + 0.7 * wrong

    values = []
    for _ in range(60):
        x, z, rho = pairs(1000, information, dims)
        values.append(BOUNDS[name](critic(x, z, rho), critic(x, z.roll(1, 0), rho)).estimate)
    mean, error = mean_and_error(values)
    assert error < 0.02
    assert mean < information + 4 * error


def test_smile_is_no_bound() -> None:
    # A constant critic knows nothing, yet the clip leaves 9 - 5 nats.
    scores = torch.full((6,), 9.0)
    torch.testing.assert_close(smile(scores, scores).estimate, torch.tensor(4.0))


scores = st.floats(-1e4, 1e4)


@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), negatives=st.integers(1, 5))
def test_infonce_stays_below_its_ceiling(data: st.DataObject, rows: int, negatives: int) -> None:
    def draw(elements: st.SearchStrategy[float], *shape: int) -> Tensor:
        size = math.prod(shape)
        drawn = data.draw(st.lists(elements, min_size=size, max_size=size))
        return torch.tensor(drawn, dtype=torch.float64).reshape(shape)

    joint, marginal = draw(scores, rows), draw(scores, rows, negatives)
    assert infonce(joint, marginal).estimate <= math.log(negatives + 1) + 1e-9
    weights = draw(st.floats(0, 3), rows, negatives)
    ceiling = weights.sum(1).max().log1p()
    assert infonce(joint, marginal, marginal_weights=weights).estimate <= ceiling + 1e-9
