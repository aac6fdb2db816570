# SPDX-License-Identifier: MIT
"""What a step reads beside its arguments: attributes of its objective, modules and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from pyro_infovae._compiled_step.step_call import PLAIN


class Place(NamedTuple):
    """An entry of the dictionary behind an object.

    Attributes:
        entries: the dictionary.
        key: the entry.
        path: its name, for messages.
    """

    entries: dict[str, Any]
    key: str
    path: str

    @property
    def value(self) -> Any:
        """What it holds now."""
        return self.entries.get(self.key)


Kind = tuple[torch.Size, torch.dtype, torch.device]


class ParameterState(NamedTuple):
    """An unconstrained parameter, as a step found it.

    Attributes:
        name: its name, for messages.
        tensor: the parameter.
        kind: its shape, dtype and device.
        is_stored: whether the param store holds it under that name.
        requires_grad: whether it is trained.
    """

    name: str
    tensor: Tensor
    kind: Kind
    is_stored: bool
    requires_grad: bool


@dataclass(frozen=True)
class Surroundings:
    """What a captured step depends on beside its arguments.

    Attributes:
        read: tensors, which are read afresh at every step, and their kinds.
        changed: buffers, which the step itself changes, and their kinds.
        equal: values that have to stay equal.
        same: objects that have to stay the same.
        parameters: those that it reads, and those that it would read if they were not frozen.
    """

    read: tuple[tuple[Place, Kind], ...]
    changed: tuple[tuple[Place, Kind], ...]
    equal: tuple[tuple[Place, Any], ...]
    same: tuple[tuple[Place, Any], ...]
    parameters: tuple[ParameterState, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors as they are now."""
        return [place.value for place, _ in self.read]

    @property
    def places(self) -> tuple[Place, ...]:
        """All places."""
        return tuple(place for place, _ in (*self.read, *self.changed, *self.equal, *self.same))

    def change(self) -> str | None:
        """What has changed since; None where nothing has."""
        for (entries, key, path), before in self.same:
            if entries.get(key) is not before:
                return f"{path} was replaced"
        for (entries, key, path), before in self.equal:
            after = entries.get(key)
            if after is not before and (type(after) is not type(before) or after != before):
                return f"{path} was {before!r} and is {after!r}"
        for (entries, key, path), kind in (*self.read, *self.changed):
            after = entries.get(key)
            if type(after) is not Tensor or _kind(after) != kind:
                return f"{path} is of another shape, dtype or device"
        stored = pyro.get_param_store()._params
        for name, tensor, kind, is_stored, requires_grad in self.parameters:
            if is_stored and stored.get(name) is not tensor:
                return f"parameter '{name}' was replaced"
            if _kind(tensor) != kind:
                return f"parameter '{name}' is of another shape, dtype or device"
            if tensor.requires_grad is not requires_grad:
                return f"parameter '{name}' was frozen, or freed"
        return None


def surroundings(
    objective: ELBO,
    programs: Iterable[Any],
    modules: Iterable[nn.Module],
    leaves: Mapping[str, Tensor],
    *,
    changed: Sequence[Place],
) -> Surroundings:
    """What a step depends on: public attributes, buffers and parameters.

    Args:
        objective: the objective; the one below it counts too.
        programs: model and guide.
        modules: the modules that they call.
        leaves: the unconstrained parameters by name.
        changed: the buffers that the step itself changes.
    """
    chain = list(_chain(objective))
    programs = list(programs)
    bound = [getattr(program, "__self__", None) for program in programs]
    owners = {
        id(owner): owner
        for owner in (*chain, *programs, *bound, *modules)
        if hasattr(owner, "__dict__")
    }
    held = [(place, place.value) for owner in owners.values() for place in _places(owner)]
    left_out = {(id(place.entries), place.key) for place in changed}
    tensors = [
        (place, value)
        for place, value in held
        if type(value) is Tensor
        and not value.requires_grad
        and (id(place.entries), place.key) not in left_out
    ]
    # A tensor in two places could be replaced in one of them.
    times = Counter(id(value) for _, value in tensors)
    parts = {id(vars(part)) for part in chain}
    stored = pyro.get_param_store()._params
    frozen = [(p, v) for p, v in held if isinstance(v, nn.Parameter) and not v.requires_grad]
    return Surroundings(
        read=tuple((place, _kind(value)) for place, value in tensors if times[id(value)] == 1),
        changed=tuple((place, _kind(place.value)) for place in changed),
        equal=tuple((place, value) for place, value in held if _is_plain(value)),
        same=(
            *((p, v) for p, v in tensors if times[id(v)] > 1),
            *((p, v) for p, v in held if isinstance(v, nn.Parameter)),
            *((p, v) for p, v in held if id(p.entries) in parts and _is_object(v)),
        ),
        parameters=(
            *(
                ParameterState(
                    name, leaf, _kind(leaf), stored.get(name) is leaf, leaf.requires_grad
                )
                for name, leaf in leaves.items()
            ),
            *(ParameterState(p.path, v, _kind(v), False, False) for p, v in frozen),
        ),
    )


def _chain(objective: ELBO) -> Iterator[ELBO]:
    part: Any = objective
    while isinstance(part, ELBO):
        yield part
        part = getattr(part, "base", None)


def _places(owner: Any) -> Iterator[Place]:
    name = type(owner).__name__
    attributes = vars(owner)
    yield from (Place(attributes, k, f"{name}.{k}") for k in attributes if not k.startswith("_"))
    if isinstance(owner, nn.Module):
        for entries in (owner._buffers, owner._parameters):
            yield from (Place(entries, key, f"{name}.{key}") for key in entries)


def _kind(tensor: Tensor) -> Kind:
    return tensor.shape, tensor.dtype, tensor.device


def _is_object(value: Any) -> bool:
    return not isinstance(value, Tensor) and not _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_is_plain(part) for part in value)
    return isinstance(value, PLAIN)
