"""What a captured step depends on, and how it is said when that has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_infovae import IMQ, TraceMMD_ELBO
from pyro_infovae._compiled_step.step_call import Call, take_apart
from pyro_infovae._compiled_step.surroundings import Place, Surroundings, surroundings

X = torch.zeros(4, 3)


def call(*args: Any, **kwargs: Any) -> Call:
    return take_apart(args, kwargs)


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        (X + 1, {"beta": 0.5}, None),
        (X[:2], {"beta": 0.5}, None),
        (X, {"beta": 0.6}, "an argument was 0.5 and is 0.6"),
        (X, {"beta": 1}, "an argument was 0.5 and is 1"),
        (X, {"beta": X}, "the arguments are others"),
        (X, {"alpha": 0.5}, "the arguments are others"),
        (X[0], {"beta": 0.5}, "the arguments' ranks, dtypes or devices are others"),
        (X.int(), {"beta": 0.5}, "the arguments' ranks, dtypes or devices are others"),
    ],
)
def test_calls_differ_in_all_but_shapes_and_numbers_of_tensors(
    first: Tensor, second: dict[str, Any], change: str | None
) -> None:
    assert call(X, {"beta": 0.5}).change(call(first, second)) == change


@pytest.mark.parametrize("mode", ["dtype", "autocast"])
def test_calls_differ_in_modes(mode: str) -> None:
    first = call(X)
    with torch.autocast("cpu", enabled=mode == "autocast"):
        if mode == "dtype":
            torch.set_default_dtype(torch.float32)
        assert first.change(call(X)) == "the default dtype or autocast is another"


def test_a_number_and_a_flag_are_not_equal() -> None:
    assert call(1).change(call(True)) == "an argument was 1 and is True"


def test_arguments_are_put_together_again() -> None:
    taken = call(X, 3, rows=(X[0], "left"))
    args, kwargs = taken.with_tensors([X + 1, X[1]])
    assert torch.equal(args[0], X + 1)
    assert args[1] == 3
    assert kwargs["rows"][1] == "left"
    assert torch.equal(kwargs["rows"][0], X[1])


def test_tensors_are_taken_contiguous() -> None:
    (tensor,) = call(torch.arange(6).reshape(2, 3).T).tensors
    assert tensor.is_contiguous()
    assert tensor.tolist() == [[0, 3], [1, 4], [2, 5]]


class Owner:
    """What has a model as its method."""

    def __init__(self) -> None:
        self.beta = 0.5
        self.mask = torch.ones(3)
        self.first = self.second = torch.zeros(())
        self._private = 1

    def model(self) -> None:
        """Do nothing."""


class Parts:
    """An objective, an owner, modules and a parameter, and what a step depends on of them."""

    def __init__(self) -> None:
        self.elbo = TraceMMD_ELBO(torch.tensor(0.5), 10.0)
        self.owner = Owner()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.norm.weight.requires_grad_(False)
        pyro.param("loc", torch.zeros(2))

    def around(self) -> Surroundings:
        return surroundings(
            self.elbo,
            (self.owner.model, print),
            [self.linear, self.norm],
            dict(pyro.get_param_store().named_parameters()),
            changed=[Place(self.norm._buffers, "running_var", "BatchNorm1d.running_var")],
        )


CHANGES: dict[str, tuple[Callable[[Parts], Any], str | None]] = {
    "nothing": (lambda parts: None, None),
    "a private attribute": (lambda parts: setattr(parts.owner, "_private", 2), None),
    "the numbers of a tensor": (lambda parts: parts.owner.mask.fill_(2.0), None),
    "a tensor": (lambda parts: setattr(parts.owner, "mask", torch.zeros(3)), None),
    "a weight": (lambda parts: setattr(parts.elbo, "alpha", torch.tensor(0.9)), None),
    "a buffer": (lambda parts: setattr(parts.norm, "running_mean", torch.ones(2)), None),
    "its shape": (
        lambda parts: setattr(parts.owner, "mask", torch.zeros(4)),
        "Owner.mask is of another shape, dtype or device",
    ),
    "that of a buffer that the step changes": (
        lambda parts: setattr(parts.norm, "running_var", torch.ones(3)),
        "BatchNorm1d.running_var is of another shape, dtype or device",
    ),
    "its type": (
        lambda parts: setattr(parts.elbo, "alpha", 0.5),
        "TraceMMD_ELBO.alpha is of another shape, dtype or device",
    ),
    "a tensor in two places": (
        lambda parts: setattr(parts.owner, "first", torch.ones(())),
        "Owner.first was replaced",
    ),
    "a number": (lambda parts: setattr(parts.owner, "beta", 1.0), "Owner.beta was 0.5 and is 1.0"),
    "a number of the objective": (
        lambda parts: setattr(parts.elbo, "lambd", 20.0),
        "TraceMMD_ELBO.lambd was 10.0 and is 20.0",
    ),
    "a number of its base": (
        lambda parts: setattr(parts.elbo.base, "num_particles", 2),
        "TraceAnalyticKL_ELBO.num_particles was 1 and is 2",
    ),
    "an object of it": (
        lambda parts: setattr(parts.elbo, "kernel", IMQ()),
        "TraceMMD_ELBO.kernel was replaced",
    ),
    "a module's mode": (
        lambda parts: parts.norm.eval(),
        "BatchNorm1d.training was True and is False",
    ),
    "a module's parameter": (
        lambda parts: setattr(parts.linear, "weight", nn.Parameter(torch.zeros(2, 3))),
        "Linear.weight was replaced",
    ),
    "a parameter": (
        lambda parts: pyro.get_param_store().__setitem__("loc", torch.ones(2)),
        "parameter 'loc' was replaced",
    ),
    "the param store": (lambda parts: pyro.clear_param_store(), "parameter 'loc' was replaced"),
    "its dtype": (
        lambda parts: setattr(pyro.get_param_store()._params["loc"], "data", torch.zeros(2).half()),
        "parameter 'loc' is of another shape, dtype or device",
    ),
    "whether one is frozen": (
        lambda parts: pyro.get_param_store()._params["loc"].requires_grad_(False),
        "parameter 'loc' was frozen, or freed",
    ),
    "whether another is freed": (
        lambda parts: parts.norm.weight.requires_grad_(True),
        "parameter 'BatchNorm1d.weight' was frozen, or freed",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_named(name: str) -> None:
    change, expected = CHANGES[name]
    parts = Parts()
    around = parts.around()
    assert around.change() is None
    change(parts)
    assert around.change() == expected


def test_tensors_are_those_of_now() -> None:
    parts = Parts()
    around = parts.around()
    parts.elbo.alpha = torch.tensor(0.9)
    assert any(tensor is parts.elbo.alpha for tensor in around.tensors)
    assert all(isinstance(tensor, Tensor) for tensor in around.tensors)
