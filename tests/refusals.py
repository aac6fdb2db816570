"""Programs that the objectives refuse, and what they say: one table for both halves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.refused_programs import (
    discrete,
    lone,
    masked_features,
    one_latent,
    point_mass,
    subsampled_global,
    two_latents,
    undeclared,
)
from tests.shared_programs import X, nested, vae


class RefusedProgram(NamedTuple):
    """A program, what an objective says when it is used with it, and the objective's settings."""

    program: Callable[[Half], Case]
    message: str
    settings: Callable[[Half], dict[str, Any]] = lambda half: {}


def says(refused: Callable[[], Any]) -> str:
    """What an error says, in the words of either half; Pyro appends the shapes of its trace."""
    with pytest.raises((ValueError, NotImplementedError)) as error:
        refused()
    return str(error.value).splitlines()[0].replace("numpyro", "pyro")


def named(**settings: Any) -> Callable[[Half], dict[str, Any]]:
    """The same settings in both halves."""
    return lambda half: settings


def scoring(index: Any, **settings: Any) -> Callable[[Half], dict[str, Any]]:
    """A critic whose scores have a shape of their own."""

    def score(params: Any, x: Any, z: Any) -> Any:
        return params["weight"] * z.sum(1)[index]

    return lambda half: {"critic": half.critic(score, {"weight": np.ones(())}), **settings}


SINGLE_ROW = "has a single row, outside plates: set num_particles to 2 or more, or leave it out"
NO_PLATE = "is in no plate: name it in sites, and set num_particles, to penalise its particles"
NAME_THE_DATA = "pass data= one of them, or a function of the model's arguments"
NO_DATA = "pass data= a function of the model's arguments, or choose latents by sites"

MMD_PROGRAMS = {
    "unknown site": RefusedProgram(
        vae,
        "TraceMMD_ELBO: sites names 'zz', which is no latent of the model; its latents are ['z']",
        named(sites=["zz"]),
    ),
    "observed site": RefusedProgram(
        vae,
        "TraceMMD_ELBO: sites names 'x', which is no latent of the model; its latents are ['z']",
        named(sites="x"),
    ),
    "not in the guide": RefusedProgram(
        partial(two_latents, guided=("z1",)),
        "TraceMMD_ELBO: sites names 'z2', which the guide does not draw; leave it out of sites or "
        "draw it in the guide",
        named(sites=["z2"]),
    ),
    "lone, named": RefusedProgram(
        lone, f"TraceMMD_ELBO: sites names 'theta', which {SINGLE_ROW}", named(sites=["theta"])
    ),
    "lone": RefusedProgram(
        lone, f"TraceMMD_ELBO: no latent is left to penalise: 'theta' {NO_PLATE}"
    ),
    "lone, particles": RefusedProgram(
        lone,
        f"TraceMMD_ELBO: no latent is left to penalise: 'theta' {NO_PLATE}",
        named(num_particles=4),
    ),
    "closed form, joint": RefusedProgram(
        two_latents,
        "estimator='closed_form' takes one latent per stack of plates; got ['z1', 'z2'], whose "
        "joint distribution need not be normal: name one of them in sites, or use "
        "estimator='unbiased'",
        named(estimator="closed_form"),
    ),
    "closed form, kernel": RefusedProgram(
        vae,
        "Expected an RBF or a sum of RBFs, whose mean under normals has a closed form; got "
        "IMQ(scale=(2.0,), dimension_power=1.0). Use estimator='unbiased'.",
        lambda half: {"estimator": "closed_form", "kernel": half.library.IMQ()},
    ),
    "kernel shape": RefusedProgram(
        vae,
        "Expected kernel(x, y) of shape (12, 12); got (12, 12, 2)",
        named(kernel=lambda x, y: (x[:, None] - y[None]) ** 2),
    ),
    "undeclared dim": RefusedProgram(
        undeclared,
        "Site 'z' has batch shape (2, 12), of which dim -2 belongs to no plate: declare a "
        "plate for it, or make it an event dim with .to_event()",
    ),
    "masked features": RefusedProgram(
        masked_features,
        "Site 'z' masks single features of its rows: call .mask() after .to_event(), so that whole "
        "rows are masked",
    ),
    "regularizer": RefusedProgram(
        vae,
        "Expected regularizer(rows) to be a scalar; got shape (12, 2) for the rows of ['z']: sum "
        "or average over the rows",
        named(regularizer=lambda rows: rows.values),
    ),
}

INFOMAX_PROGRAMS = {
    "several stacks of plates": RefusedProgram(
        nested,
        "TraceInfoMax_ELBO: the latents [['outer'], ['z']] are in different plates or under "
        "different masks, and a critic sees one row of each: choose by sites",
    ),
    "outside plates": RefusedProgram(
        lone,
        "TraceInfoMax_ELBO: the latents ['theta'] are in no plate of data, so there is no "
        "datum that they could tell of: choose by sites",
        named(sites=["theta"], num_particles=4),
    ),
    "several observed": RefusedProgram(
        partial(one_latent, observed=("left", "right")),
        "TraceInfoMax_ELBO: Expected one observed site in the plates of ['z']; got ['left', "
        f"'right']: {NAME_THE_DATA}",
    ),
    "unknown data": RefusedProgram(
        vae,
        "TraceInfoMax_ELBO: Expected the observed site 'y' in the plates of ['z']; got ['x']: "
        f"{NAME_THE_DATA}",
        named(data="y"),
    ),
    "latent as data": RefusedProgram(
        vae,
        "TraceInfoMax_ELBO: Expected the observed site 'z' in the plates of ['z']; got ['x']: "
        f"{NAME_THE_DATA}",
        named(data="z"),
    ),
    "none observed": RefusedProgram(
        partial(one_latent, observed=()),
        "TraceInfoMax_ELBO: Expected one observed site in the plates of ['z']; got none: "
        f"{NO_DATA}",
    ),
    "observed in other plates": RefusedProgram(
        nested,
        "TraceInfoMax_ELBO: Expected one observed site in the plates of ['outer']; got none: "
        f"{NO_DATA}",
        named(sites="outer"),
    ),
    "function of another shape": RefusedProgram(
        partial(vae, batch=7),
        "Expected data(*args) of shape (7, *event), as the plates of ['z'], or of their full size; "
        "got (5, 3)",
        lambda half: {"data": lambda x: half.xp.asarray(X[:5])},
    ),
    "function of a scalar": RefusedProgram(
        vae,
        "Expected data(*args) of shape (12, *event), as the plates of ['z'], or of their full "
        "size; got ()",
        lambda half: {"data": lambda x: half.xp.asarray(0.5)},
    ),
    "column": RefusedProgram(
        vae,
        "Expected critic(x, z) of shape (12,); got (12, 1): squeeze its last dimension",
        scoring((slice(None), None)),
    ),
    "too few scores": RefusedProgram(
        vae, "Expected critic(x, z) of shape (12,); got (5,): one score per row", scoring(slice(5))
    ),
    "too few of all scores": RefusedProgram(
        vae,
        "Expected critic(x, z) of shape (144,); got (5,): one score per row",
        scoring(slice(5), negatives="all"),
    ),
}

HAMILTONIAN_PROGRAMS = {
    "global under a subsampled plate": RefusedProgram(
        subsampled_global,
        "Site 'theta' is outside plate 'data', which is subsampled: each minibatch would move it "
        "differently, and the bound would be lost; leave 'theta' out of sites, or use the whole "
        "plate",
    ),
    "not reparameterised": RefusedProgram(
        discrete,
        "TraceHamiltonian_ELBO: site 'z' is not reparameterised (Poisson), and only continuous "
        "latents drawn by rsample can flow: leave it out of sites",
    ),
    "point mass": RefusedProgram(
        point_mass,
        "TraceHamiltonian_ELBO: site 'z' is a point mass in the guide, which has no density for a "
        "flow to carry; give it one, as AutoNormal does, or leave it out of sites",
    ),
    "unknown site": RefusedProgram(
        lone,
        "TraceHamiltonian_ELBO: sites names 'w', which the guide does not draw; it draws ['theta']",
        named(sites=["w"]),
    ),
    "not in the guide": RefusedProgram(
        partial(two_latents, guided=("z1",)),
        "Site 'z2' is a latent of the model that the guide does not draw, and the flow needs its "
        "value: draw it in the guide, or observe it (to predict it, draw the others with the data "
        "and pass them as Predictive's posterior_samples)",
    ),
    "not in the model": RefusedProgram(
        partial(two_latents, guided=("z1", "z2", "z3")),
        "The guide draws 'z3', which is no latent of the model, so that it has no posterior to "
        "follow: leave it out of the guide or of sites, or mark it infer={'is_auxiliary': True} if "
        "other latents are computed from it",
    ),
    "nothing to move": RefusedProgram(
        partial(two_latents, guided=()),
        "TraceHamiltonian_ELBO: the guide draws no latent that could flow",
    ),
}
