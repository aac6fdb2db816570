"""What a captured step depends on, and how it is said when that has changed."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from pyro_infovae import IMQ, TraceMMD_ELBO
from pyro_infovae._compiled_step.guards import Call, Guards, Source, guards_of, take_apart

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

    def guards(self) -> Guards:
        return guards_of(
            self.elbo,
            (self.owner.model, print),
            [self.linear, self.norm],
            dict(pyro.get_param_store().named_parameters()),
            changed=[Source(self.norm._buffers, "running_var", "BatchNorm1d.running_var")],
        )


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("attribute", "value", "change"),
    [
        ("owner.beta", 0.5, None),
        ("owner._private", 2, None),
        ("owner.mask", zeros(3), None),
        ("elbo.alpha", zeros(), None),
        ("norm.running_mean", zeros(2), None),
        ("owner.mask", zeros(4), "Owner.mask is of another shape, dtype or device"),
        (
            *("norm.running_var", zeros(3)),
            "BatchNorm1d.running_var is of another shape, dtype or device",
        ),
        ("elbo.alpha", 0.5, "TraceMMD_ELBO.alpha is of another shape, dtype or device"),
        ("owner.first", zeros(), "Owner.first was replaced"),
        ("owner.beta", 1.0, "Owner.beta was 0.5 and is 1.0"),
        ("elbo.lambd", 20.0, "TraceMMD_ELBO.lambd was 10.0 and is 20.0"),
        ("elbo.base.num_particles", 2, "TraceAnalyticKL_ELBO.num_particles was 1 and is 2"),
        ("elbo.kernel", IMQ(), "TraceMMD_ELBO.kernel was replaced"),
        ("norm.training", False, "BatchNorm1d.training was True and is False"),
        ("linear.weight", nn.Parameter(zeros(2, 3)), "Linear.weight was replaced"),
    ],
)
def test_changes_of_attributes_are_named(attribute: str, value: Any, change: str | None) -> None:
    parts = Parts()
    guards = parts.guards()
    assert guards.change() is None
    owner, _, name = attribute.rpartition(".")
    setattr(attrgetter(owner)(parts), name, value)
    assert guards.change() == change


CHANGES_OF_PARAMETERS: dict[str, Callable[[Parts, Tensor], Any]] = {
    "'loc' was replaced": lambda parts, loc: pyro.get_param_store().__setitem__("loc", loc + 1),
    "'loc' is of another shape, dtype or device": lambda parts, loc: setattr(
        loc, "data", loc.data.half()
    ),
    "'loc' was frozen, or freed": lambda parts, loc: loc.requires_grad_(False),
    "'BatchNorm1d.weight' was frozen, or freed": lambda parts, loc: (
        parts.norm.weight.requires_grad_(True)
    ),
}


@pytest.mark.parametrize("expected", CHANGES_OF_PARAMETERS)
def test_changes_of_parameters_are_named(expected: str) -> None:
    parts = Parts()
    guards = parts.guards()
    CHANGES_OF_PARAMETERS[expected](parts, pyro.get_param_store()._params["loc"])
    assert guards.change() == f"parameter {expected}"


def test_a_cleared_store_is_a_change() -> None:
    guards = Parts().guards()
    pyro.clear_param_store()
    assert guards.change() == "parameter 'loc' was replaced"


def test_tensors_are_those_of_now() -> None:
    parts = Parts()
    guards = parts.guards()
    parts.owner.mask.fill_(2.0)
    parts.elbo.alpha = torch.tensor(0.9)
    assert guards.change() is None
    assert any(tensor is parts.elbo.alpha for tensor in guards.tensors)
    assert all(isinstance(tensor, Tensor) for tensor in guards.tensors)
