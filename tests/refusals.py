"""Programs that the objectives refuse, and what they say: one table for both halves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.halves import Case, Half
from tests.refused_programs import (
    global_mean,
    lone,
    masked_features,
    masked_rows,
    one_latent,
    subsampled_global,
    two_latents,
    undeclared,
)
from tests.shared_programs import X, hierarchy, nested, vae


class Remedied(NamedTuple):
    """The settings that a message recommends, or the program, which else stays as it was."""

    settings: Callable[[Half], dict[str, Any]] = lambda half: {}
    program: Callable[[Half], Case] | None = None


class RefusedProgram(NamedTuple):
    """A program that an objective refuses.

    Attributes:
        program: the model and the guide.
        message: what is said.
        settings: the objective's.
        remedies: what the message recommends, each of which is accepted.
    """

    program: Callable[[Half], Case]
    message: str
    settings: Callable[[Half], dict[str, Any]] = lambda half: {}
    remedies: tuple[Remedied, ...] = ()


def says(refused: Callable[[], Any]) -> str:
    """What an error says, in the words of either half; Pyro appends the shapes of its trace."""
    with pytest.raises((ValueError, NotImplementedError)) as error:
        refused()
    return str(error.value).splitlines()[0].replace("numpyro", "pyro")


def named(**settings: Any) -> Callable[[Half], dict[str, Any]]:
    """The same settings in both halves."""
    return lambda half: settings


def scoring(
    index: Any, *, squeezed: bool = False, **settings: Any
) -> Callable[[Half], dict[str, Any]]:
    """A critic whose scores have a shape of their own."""

    def score(params: Any, x: Any, z: Any) -> Any:
        scores = params["weight"] * z.sum(1)[index]
        return scores.squeeze(-1) if squeezed else scores

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
        (Remedied(named(sites=["z"])),),
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
        (Remedied(named(sites=["z1"])), Remedied(named(sites=["z2"]), two_latents)),
    ),
    "lone, named": RefusedProgram(
        hierarchy,
        f"TraceMMD_ELBO: sites names 'theta', which {SINGLE_ROW}",
        named(sites=["theta", "z"]),
        (
            Remedied(named(sites=["theta", "z"], num_particles=2)),
            Remedied(named(sites=["z"])),
        ),
    ),
    "lone": RefusedProgram(
        lone,
        f"TraceMMD_ELBO: no latent is left to penalise: 'theta' {NO_PLATE}",
        remedies=(Remedied(named(sites=["theta"], num_particles=2)),),
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
        (
            Remedied(named(estimator="closed_form", sites="z2")),
            Remedied(named(estimator="unbiased")),
        ),
    ),
    "closed form, kernel": RefusedProgram(
        vae,
        "Expected an RBF or a sum of RBFs, whose mean under normals has a closed form; got "
        "IMQ(scale=(2.0,), dimension_power=1.0). Use estimator='unbiased'.",
        lambda half: {"estimator": "closed_form", "kernel": half.library.IMQ()},
        (Remedied(lambda half: {"estimator": "unbiased", "kernel": half.library.IMQ()}),),
    ),
    "kernel shape": RefusedProgram(
        vae,
        "Expected kernel(x, y) of shape (12, 12); got (12, 12, 2)",
        named(kernel=lambda x, y: (x[:, None] - y[None]) ** 2),
        (Remedied(named(kernel=lambda x, y: ((x[:, None] - y[None]) ** 2).sum(-1))),),
    ),
    "undeclared dim": RefusedProgram(
        undeclared,
        "Site 'z' has batch shape (2, 12), of which dim -2 belongs to no plate: declare a "
        "plate for it, or make it an event dim with .to_event()",
        remedies=(
            Remedied(program=partial(undeclared, mended="plate")),
            Remedied(program=partial(undeclared, mended="event")),
        ),
    ),
    "masked features": RefusedProgram(
        masked_features,
        "Site 'z' masks single features of its rows: call .mask() after .to_event(), so that whole "
        "rows are masked",
        remedies=(Remedied(program=masked_rows),),
    ),
    "regularizer": RefusedProgram(
        vae,
        "Expected regularizer(rows) to be a scalar; got shape (12, 2) for the rows of ['z']: sum "
        "or average over the rows",
        named(regularizer=lambda rows: rows.values),
        (
            Remedied(named(regularizer=lambda rows: rows.values.sum())),
            Remedied(named(regularizer=lambda rows: rows.values.mean())),
        ),
    ),
}

INFOMAX_PROGRAMS = {
    "several stacks of plates": RefusedProgram(
        nested,
        "TraceInfoMax_ELBO: the latents [['outer'], ['z']] are in different plates or under "
        "different masks, and a critic sees one row of each: choose by sites",
        remedies=(Remedied(named(sites=["z"])),),
    ),
    "outside plates": RefusedProgram(
        hierarchy,
        "TraceInfoMax_ELBO: the latents ['theta'] are in no plate of data, so there is no "
        "datum that they could tell of: choose by sites",
        named(sites=["theta"], num_particles=4),
        (Remedied(named(sites=["z"], num_particles=4)),),
    ),
    "several observed": RefusedProgram(
        partial(one_latent, observed=("left", "right")),
        "TraceInfoMax_ELBO: Expected one observed site in the plates of ['z']; got ['left', "
        f"'right']: {NAME_THE_DATA}",
        remedies=(
            Remedied(scoring((), data="left")),
            Remedied(lambda half: {**scoring(())(half), "data": lambda: half.xp.asarray(X)}),
        ),
    ),
    "unknown data": RefusedProgram(
        vae,
        "TraceInfoMax_ELBO: Expected the observed site 'y' in the plates of ['z']; got ['x']: "
        f"{NAME_THE_DATA}",
        named(data="y"),
        (Remedied(named(data="x")), Remedied(named(data=lambda x: x))),
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
        remedies=(
            Remedied(lambda half: {**scoring(())(half), "data": lambda: half.xp.asarray(X)}),
        ),
    ),
    "none observed, by name": RefusedProgram(
        nested,
        "TraceInfoMax_ELBO: Expected the observed site 'y' in the plates of ['outer']; got none: "
        f"{NO_DATA}",
        named(sites="outer", data="y"),
        (
            Remedied(lambda half: {"sites": "outer", "data": lambda: half.xp.asarray(X[:6])}),
            Remedied(named(sites="z")),
        ),
    ),
    "observed in other plates": RefusedProgram(
        nested,
        "TraceInfoMax_ELBO: Expected one observed site in the plates of ['outer']; got none: "
        f"{NO_DATA}",
        named(sites="outer"),
        (
            Remedied(lambda half: {"sites": "outer", "data": lambda: half.xp.asarray(X[:6])}),
            Remedied(named(sites="z")),
        ),
    ),
    "function of another shape": RefusedProgram(
        partial(vae, batch=7),
        "Expected data(*args) of shape (7, *event), as the plates of ['z'], or of their full size; "
        "got (5, 3)",
        lambda half: {"data": lambda x: half.xp.asarray(X[:5])},
        (Remedied(named(data=lambda x: x[:7])), Remedied(named(data=lambda x: x))),
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
        (Remedied(scoring((slice(None), None), squeezed=True)),),
    ),
    "too few scores": RefusedProgram(
        vae,
        "Expected critic(x, z) of shape (12,); got (5,): one score per row",
        scoring(slice(5)),
        (Remedied(scoring(())),),
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
        "differently, and the bound would be lost; name others in sites, or use the whole plate",
        remedies=(
            Remedied(named(sites=["z"])),
            Remedied(program=partial(subsampled_global, batch=None)),
        ),
    ),
    "surrogate, latents in the plate": RefusedProgram(
        subsampled_global,
        "Site 'z' is a latent in plate 'data', and surrogate needs it for rows that the guide does "
        "not draw: leave surrogate out, and name the latents of the plate in sites",
        named(surrogate=4),
        (Remedied(named(sites=["z"])),),
    ),
    "surrogate, data that come in minibatches": RefusedProgram(
        partial(global_mean, is_indexed=False),
        "The model does not look up its data by the indices of plate 'data', so that it cannot run "
        "on the rows of the surrogate: pass it the whole data, and index them by what the plate "
        "gives (with plate as index: ... x[index])",
        named(surrogate=4),  # as many as the minibatch has
        (Remedied(named(surrogate=4), global_mean),),
    ),
    "surrogate, too many rows": RefusedProgram(
        global_mean,
        "Expected surrogate <= 12, the size of plate 'data'; got 13",
        named(surrogate=13),
        (Remedied(named(surrogate=12)),),
    ),
    "surrogate, several plates": RefusedProgram(
        partial(global_mean, batch=None, plates=("data", "others")),
        "Expected surrogate to name one of the plates in which the model observes data, ['data', "
        "'others']; got 4: pass surrogate={'data': 4}",
        named(surrogate=4),
        (Remedied(named(surrogate={"data": 4})),),
    ),
    "surrogate, another plate": RefusedProgram(
        global_mean,
        "Expected surrogate to name one of the plates in which the model observes data, ['data']; "
        "got {'x': 4}: pass surrogate={'data': 4}",
        named(surrogate={"x": 4}),
        (Remedied(named(surrogate={"data": 4})),),
    ),
    "surrogate, no plate": RefusedProgram(
        lone,
        "TraceHamiltonian_ELBO: surrogate takes rows of a plate, and the model observes data in "
        "none: leave it out",
        named(surrogate=4),
        (Remedied(),),
    ),
    "surrogate, enumerated latents": RefusedProgram(
        partial(global_mean, is_mixed=True, batch=None),
        "TraceHamiltonian_ELBO: the model sums latents out, and surrogate cannot weight the rows "
        "of a sum: leave surrogate out, and use the whole plate",
        named(surrogate=4),
        (Remedied(),),
    ),
    "not reparameterised": RefusedProgram(
        partial(two_latents, posterior="Poisson"),
        "TraceHamiltonian_ELBO: site 'z2' is not reparameterised (Poisson), and only continuous "
        "latents drawn by rsample can flow: name others in sites",
        remedies=(Remedied(named(sites=["z1"])),),
    ),
    "point mass": RefusedProgram(
        partial(two_latents, posterior="Delta"),
        "TraceHamiltonian_ELBO: site 'z2' is a point mass in the guide, which has no density for a "
        "flow to carry; give it one, as AutoNormal does, or name others in sites",
        remedies=(Remedied(program=two_latents), Remedied(named(sites=["z1"]))),
    ),
    "unknown site": RefusedProgram(
        lone,
        "TraceHamiltonian_ELBO: sites names 'w', which the guide does not draw; it draws ['theta']",
        named(sites=["w"]),
        (Remedied(named(sites=["theta"])),),
    ),
    "not in the guide": RefusedProgram(
        partial(two_latents, guided=("z1",)),
        "Site 'z2' is a latent of the model that the guide does not draw, and the flow needs its "
        "value: draw it in the guide, or observe it (to predict it, draw the others with the data "
        "and pass them as Predictive's posterior_samples)",
        remedies=(
            Remedied(program=two_latents),
            Remedied(program=partial(two_latents, guided=("z1",), is_observed=True)),
        ),
    ),
    "not in the model": RefusedProgram(
        partial(two_latents, guided=("z1", "z2", "z3")),
        "The guide draws 'z3', which is no latent of the model, so that it has no posterior to "
        "follow: leave it out of the guide or of sites, or mark it infer={'is_auxiliary': True} if "
        "other latents are computed from it",
        remedies=(
            Remedied(program=two_latents),
            Remedied(named(sites=["z1", "z2"])),
            Remedied(program=partial(two_latents, auxiliary=("z3",))),
        ),
    ),
    "nothing to move": RefusedProgram(
        partial(two_latents, guided=()),
        "TraceHamiltonian_ELBO: the guide draws no latent that could flow: use Trace_ELBO()",
    ),
}
