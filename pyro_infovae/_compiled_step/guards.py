# SPDX-License-Identifier: MIT
"""What must stay the same for a captured step to hold: its guards, as ``torch.compile`` has them.

The arguments are guarded by :meth:`Call.change`, all else that a step reads by :class:`Guards`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import pyro
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.utils import _pytree as pytree

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, Enum)
"""Types of values that cannot change without being unequal."""


@dataclass(frozen=True)
class Call:
    """The arguments of a step.

    Attributes:
        leaves: the arguments, out of their tuples, lists and dictionaries; tensors are contiguous.
        structure: how they are nested.
        modes: the default dtype, and the dtypes of autocast where it is on.
    """

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec
    modes: tuple[torch.dtype | None, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the tensors."""
        return [tuple(tensor.shape) for tensor in self.tensors]

    def with_tensors(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with other tensors in the place of these."""
        others = iter(tensors)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        arguments: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(
            leaves, self.structure
        )
        return arguments

    def change(self, other: Call) -> str | None:
        """How another call differs from this one, beside the shapes; None where it does not."""
        if self.modes != other.modes:
            return "the default dtype or autocast is another"
        if self.structure != other.structure:
            return "the arguments are others"
        for before, after in zip(self.leaves, other.leaves, strict=True):
            if isinstance(before, Tensor) != isinstance(after, Tensor):
                return "the arguments are others"
            if isinstance(before, Tensor):
                if _kind_of_argument(before) != _kind_of_argument(after):
                    return "the arguments' ranks, dtypes or devices are others"
            elif type(before) is not type(after) or before != after:
                return f"an argument was {before!r} and is {after!r}"
        return None


def take_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Take the arguments of a step apart.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.

    Raises:
        TypeError: for an argument that may change without notice.
        ValueError: for a tensor that requires a gradient.
    """
    leaves, structure = pytree.tree_flatten((args, kwargs))
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, (*PLAIN, Tensor, nn.Module)):
            remedy = (
                "pass torch.as_tensor of it"
                if hasattr(leaf, "__array__")
                else "pass what model and guide need of it, in a dict say"
            )
            raise TypeError(
                "Expected arguments of tensors, numbers, strings and modules; got "
                f"{_path(i, args, kwargs)} of type {type(leaf).__name__}, whose content may "
                f"change: {remedy}"
            )
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            raise ValueError(
                "Expected arguments that require no gradient; got a tensor of shape "
                f"{tuple(leaf.shape)} that does: declare it with pyro.param, or detach it"
            )
    autocast = [
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    ]
    return Call(
        tuple(leaf.contiguous() if isinstance(leaf, Tensor) else leaf for leaf in leaves),
        structure,
        (torch.get_default_dtype(), *autocast),
    )


def _path(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The i-th leaf of the arguments, as a user would write it."""
    paths = [
        name + pytree.keystr(path)
        for name, side in (("args", args), ("kwargs", kwargs))
        for path, _ in pytree.tree_flatten_with_path(side)[0]
    ]
    return paths[i]


class Source(NamedTuple):
    """Where a value is found: an entry of the dictionary behind an object.

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


Guard: TypeAlias = Callable[[], str | None]
"""Says how a value has changed; None where it has not."""


@dataclass(frozen=True)
class Guards:
    """What a captured step depends on beside its arguments.

    Attributes:
        sources: where the guarded values are found.
        read: those of tensors whose numbers are read afresh in every step.
        guards: what must stay the same.
    """

    sources: tuple[Source, ...]
    read: tuple[Source, ...]
    guards: tuple[Guard, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors as they are now."""
        return [source.value for source in self.read]

    def change(self) -> str | None:
        """What has changed since; None where nothing has."""
        return next((reason for guard in self.guards if (reason := guard()) is not None), None)


def guards_of(
    objective: ELBO,
    programs: Sequence[Any],
    modules: Iterable[nn.Module],
    leaves: Mapping[str, Tensor],
    *,
    changed: Iterable[Source],
) -> Guards:
    """Guard what a step depends on: public attributes, buffers and parameters.

    Args:
        objective: the objective; the one below it counts too.
        programs: model and guide.
        modules: the modules that they call.
        leaves: the unconstrained parameters by name.
        changed: the buffers that the step itself changes.
    """
    chain = list(elbos(objective))
    bound = [getattr(program, "__self__", None) for program in programs]
    owners = {id(owner): owner for owner in (*chain, *programs, *bound, *modules)}
    sources = [source for owner in owners.values() for source in _sources(owner)]
    of_objective = {id(vars(part)) for part in chain}
    written = {(id(entries), key) for entries, key, _ in changed}
    times = Counter(id(source.value) for source in sources)
    read: list[Source] = []
    guards = [_leaf(name, leaf, is_stored=_stored(name) is leaf) for name, leaf in leaves.items()]
    for source in sources:
        value = source.value
        if isinstance(value, nn.Parameter):
            guards.append(_same(source))
            if not value.requires_grad:  # the step would read it if it were not frozen
                guards.append(_leaf(source.path, value, is_stored=False))
        elif type(value) is Tensor and not value.requires_grad:
            if (id(source.entries), source.key) in written:
                guards.append(_alike(source))
            elif times[id(value)] == 1:
                guards.append(_alike(source))
                read.append(source)
            else:  # it could be replaced in one place and not in the other
                guards.append(_same(source))
        elif _is_plain(value):
            guards.append(_equal(source))
        elif id(source.entries) in of_objective and not isinstance(value, Tensor):
            guards.append(_same(source))
    return Guards(tuple(sources), tuple(read), tuple(guards))


def elbos(objective: ELBO) -> Iterator[ELBO]:
    """The objective, and the ones below it."""
    part: Any = objective
    while isinstance(part, ELBO):
        yield part
        part = getattr(part, "base", None)


def _sources(owner: Any) -> Iterator[Source]:
    name, attributes = type(owner).__name__, getattr(owner, "__dict__", {})
    for key in attributes:
        if not key.startswith("_"):
            yield Source(attributes, key, f"{name}.{key}")
    if isinstance(owner, nn.Module):
        for entries in (owner._buffers, owner._parameters):
            yield from (Source(entries, key, f"{name}.{key}") for key in entries)


def _same(source: Source) -> Guard:
    (entries, key, path), before = source, source.value
    return lambda: None if entries.get(key) is before else f"{path} was replaced"


def _equal(source: Source) -> Guard:
    (entries, key, path), before = source, source.value

    def guard() -> str | None:
        after = entries.get(key)
        if after is before or (type(after) is type(before) and after == before):
            return None
        return f"{path} was {before!r} and is {after!r}"

    return guard


def _alike(source: Source) -> Guard:
    (entries, key, path), kind = source, _kind(source.value)

    def guard() -> str | None:
        after = entries.get(key)
        if type(after) is Tensor and _kind(after) == kind:
            return None
        return f"{path} is of another shape, dtype or device"

    return guard


def _leaf(name: str, leaf: Tensor, *, is_stored: bool) -> Guard:
    kind, requires_grad = _kind(leaf), leaf.requires_grad

    def guard() -> str | None:
        if is_stored and _stored(name) is not leaf:
            return f"parameter '{name}' was replaced"
        if _kind(leaf) != kind:
            return f"parameter '{name}' is of another shape, dtype or device"
        if leaf.requires_grad is not requires_grad:
            return f"parameter '{name}' was frozen, or freed"
        return None

    return guard


def _stored(name: str) -> Tensor | None:
    stored: Tensor | None = pyro.get_param_store()._params.get(name)
    return stored


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _kind_of_argument(tensor: Tensor) -> tuple[int, torch.dtype, torch.device]:
    return tensor.dim(), tensor.dtype, tensor.device


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_is_plain(part) for part in value)
    return isinstance(value, PLAIN)
