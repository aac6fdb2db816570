# SPDX-License-Identifier: MIT
"""Docstrings of functions and classes that both halves have, written once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from string import Template
from typing import Any, TypeVar

T = TypeVar("T", bound=Callable[..., Any])

ARGUMENTS = {
    "rng_key": "the key to draw with.",
    "params": ("the values of parameters and mutable sites, by name, ``svi_result.params`` say."),
    "model": "the model.",
    "guide": "the guide.",
    "args": "positional arguments of both.",
    "kwargs": "keyword arguments of both.",
    "sites": (
        "the latents, by name, in one stack of plates. By default every reparameterised\n"
        "latent in plates."
    ),
}
"""What an argument is, wherever a text says nothing else of it."""

_CHUNK_SIZE = """; by default so many that
        no site holds more than 2²³ numbers. 1 runs the programs as they are, draw by draw, which
        is for programs that cannot be vectorised."""

WORDS = {
    "pyro_infovae": {
        "package": "pyro_infovae",
        "array": "tensor",
        "scale": "poutine.scale",
        "choose_rows": "``pyro.plate(..., subsample=rows)`` determines which",
        "chunk_size": "draws per run, in a plate to the left of all others" + _CHUNK_SIZE,
        "one_code": "",
        "vectorised": "whether the particles are drawn in one run.",
        "also_raised": ", or for ranks that differ in the number\n        of their rows",
        "programs": """>>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior""",
        "trained": """>>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
    >>> def guide(x):
    ...     loc = pyro.param("loc", torch.zeros(2))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))""",
    },
    "numpyro_backend": {
        "package": "numpyro_backend",
        "array": "array",
        "scale": "handlers.scale",
        "choose_rows": (
            "``handlers.substitute`` with the rows of the plate under\nits name determines which"
        ),
        "chunk_size": (
            f"most draws per run, mapped over by :func:`jax.vmap`{_CHUNK_SIZE} The draws are the\n"
            "        same."
        ),
        "vectorised": (
            "how to map over the particles: True for :func:`jax.vmap`, False for\n"
            "        :func:`jax.lax.map`, or a callable (function, keys)."
        ),
        "also_raised": "",
        "one_code": ", or a guide\n        that does not draw one code per datum",
        "programs": """>>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> def model(x):
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with numpyro.plate("data", len(x)):
    ...         numpyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior
    >>> key = jax.random.key(0)""",
        "trained": """>>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> def model(x):
    ...     with numpyro.plate("data", len(x)):
    ...         z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ...         numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)
    >>> def guide(x):
    ...     loc = numpyro.param("loc", jnp.zeros(2))
    ...     with numpyro.plate("data", len(x)):
    ...         numpyro.sample("z", dist.Normal(x + loc, 0.4).to_event(1))""",
    },
}
"""What a ``$word`` of a text stands for, by half."""

_HEADER = re.compile(r"^Args:$", re.MULTILINE)
_ARGUMENT = re.compile(r"\*{0,2}(\w+): ")


def documented(text: str, **words: str) -> Callable[[T], T]:
    r"""Put what both halves say of a function or class into its docstring.

    The docstring in place begins with the summary, in a line, and goes on with what only this half
    says: an example, as a rule, which may begin with ``$programs``. The text comes between the two.
    Under ``Args:`` it describes arguments, of which each half gets those that it has, in its own
    order, with :data:`ARGUMENTS` for those that the text leaves out.

    Args:
        text: the text, with ``$package`` and the like for the words of :data:`WORDS`.
        **words: further words.

    Raises:
        KeyError: where the text knows nothing of an argument, or of a word.

    Example:
        >>> @documented(
        ...     '''
        ... Args:
        ...     share: the share of $what.
        ... ''',
        ...     what="the loss",
        ... )
        ... def suggest(model, *, share):
        ...     '''Suggest a weight.
        ...
        ...     Returns:
        ...         A number.
        ...     '''
        >>> print(suggest.__doc__)
        Suggest a weight.
        <BLANKLINE>
        Args:
            model: the model.
            share: the share of the loss.
        <BLANKLINE>
        Returns:
            A number.
    """

    def extend(twin: T) -> T:
        if twin.__doc__ is None:  # as under python -OO
            return twin
        half = WORDS.get(twin.__module__.split(".")[0], {})
        shared, in_place = (
            Template(inspect.cleandoc(part)).substitute({**half, **words})
            for part in (text, twin.__doc__)
        )
        summary, _, own = in_place.partition("\n\n")
        if _HEADER.search(shared):
            shared = _with_arguments(shared, inspect.signature(twin).parameters)
        twin.__doc__ = "\n\n".join(part for part in (summary, shared, own) if part)
        return twin

    return extend


def _with_arguments(text: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    """The text with a description of each parameter, and of no other."""
    before, after = _HEADER.split(text)
    section, separator, after = after.lstrip("\n").partition("\n\n")
    described = {**ARGUMENTS, **dict(_descriptions(section))}
    lines = []
    for name, parameter in parameters.items():
        if name == "self":
            continue
        starred = str(parameter.replace(annotation=parameter.empty, default=parameter.empty))
        lines += f"{starred}: {described[name]}".replace("\n", "\n    ").splitlines()
    return before + "\n    ".join(["Args:", *lines]) + separator + after


def _descriptions(section: str) -> Iterator[tuple[str, str]]:
    """The names of the arguments that a section describes, and what it says of each."""
    for entry in re.split(r"\n(?=\S)", inspect.cleandoc(section)):
        if argument := _ARGUMENT.match(entry):
            yield argument[1], re.sub(r"\n {4}", "\n", entry[argument.end() :])
