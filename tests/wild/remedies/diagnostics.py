"""What the diagnostics, ``log_evidence`` and ``to_inference_data`` say."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
import numpyro
import pyro
import pytest
import torch
from pyro import poutine

from pyro_infovae._core.calibration import Calibration
from tests.halves import Case
from tests.questions.asking import Asking, data
from tests.questions.evidence import linear_gaussian
from tests.questions.programs import (
    in_plate,
    pair,
    vae,
)
from tests.wild.remedies.following import Action, follows
from tests.wild.remedies.latents import check_extra

FEW = {"num_steps": 1, "num_samples": 20, "batch_size": 4}
"""Settings of the cheapest answer about mutual information."""


def ask(half: Asking, question: str, case: Case, *args: Any, **settings: Any) -> Action:
    return lambda: half.ask(question, case, *args, **settings)


def evidence(half: Asking, case: Case, **settings: Any) -> Action:
    return lambda: half.ask("log_evidence", case, **{"num_samples": 50, **settings})


def exported(half: Asking, case: Case, *args: Any, **settings: Any) -> Action:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("arviz", exc_type=ImportError)
        half.ask(half.to_inference_data, case, *args, **{"num_samples": 4, **settings})

    return run


# --- arguments ------------------------------------------------------------------------------------


def _legal(question: str, program: Callable[[Asking], Case], *settings: dict[str, Any]) -> Any:
    """The first settings are refused, and the others taken."""
    return lambda half: [ask(half, question, program(half), **each) for each in settings]


def _far(half: Asking) -> Case:
    """Codes that are far from their prior."""
    return vae(half, spread=3.0)


def register(name: str, part: str, question: str, *settings: dict[str, Any], **common: Any) -> None:
    def actions(half: Asking) -> Sequence[Action]:
        program = _guided if question == "log_evidence" else _far
        return _legal(question, program, *({**common, **each} for each in settings))(half)

    actions.__name__ = name
    follows(part)(actions)


register(
    "draws_of_aggregated_posterior",
    "Expected num_samples >= 2; got …",
    "kl_by_dimension",
    {"num_samples": 1},
    {"num_samples": 2},
)
register(
    "draws_of_active_units",
    "Expected num_samples >= 4; got …",
    "active_units",
    {"num_samples": 3},
    {"num_samples": 4},
)
register(
    "draws_of_a_summary",
    "Expected num_samples >= 4 and num_importance_samples >= 2; got",
    "summarise",
    {"num_samples": 3, "num_importance_samples": 20},
    {"num_samples": 4, "num_importance_samples": 20},
)
register(
    "steps_of_a_critic",
    "Expected num_steps >= 0, batch_size >= 2 and num_samples >= 2",
    "mutual_information",
    FEW | {"batch_size": 1},
    FEW | {"batch_size": 2},
)
register(
    "chunks",
    "Expected chunk_size >= 1; got …",
    "log_evidence",
    {"chunk_size": 0},
    {"chunk_size": 1},
    num_samples=4,
)
register(
    "threshold",
    "Expected threshold >= 0; got …",
    "active_units",
    {"threshold": -0.1},
    {"threshold": 0.0},
    num_samples=4,
)
register(
    "held_out",
    "Expected held_out between 0 and 1; got …",
    "mutual_information",
    FEW | {"held_out": 1.0},
    FEW | {"held_out": 0.5},
)
register(
    "permutations",
    "Expected num_permutations >= 1; got …",
    "mmd_test",
    {"num_permutations": 0},
    {"num_permutations": 1},
)
register("max_data", "Expected max_data >= 4; got …", "mmd_test", {"max_data": 3}, {"max_data": 4})
register("share", "Expected share > 0; got …", "suggest_lambd", {"share": 0.0}, {"share": 0.1})
register("alpha", "Expected alpha <= 1; got …", "suggest_lambd", {"alpha": 1.5}, {"alpha": 1.0})


@follows("Expected num_samples >= 1; got …")
def draws_for_arviz(half: Asking) -> Sequence[Action]:
    return tuple(exported(half, vae(half), num_samples=n) for n in (0, 1))


def _calibrated(half: Asking, case: Case, *args: Any, **settings: Any) -> Action:
    settings = {"num_simulations": 2, "num_samples": 2, **settings}
    return ask(half, "simulation_based_calibration", case, *args, **settings)


def _of_an_argument(half: Asking, change: Callable[[Any, Any], None] | None = None) -> Case:
    """x is the argument, which a change may observe otherwise."""

    def model(x: Any) -> None:
        with half.plate("data", 12):
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
            if change is None:
                half.sample("x", half.dist.Normal(z, 1.0), obs=x)
            else:
                change(z, x)

    def guide(x: Any) -> None:
        with half.plate("data", 12):
            half.sample("z", half.dist.Normal(x / 2, 0.7))

    return Case(model, guide, (half.array(data(12, 1)[:, 0]),))


@follows("Expected num_simulations >= 1 and num_samples >= 2")
def simulations(half: Asking) -> Sequence[Action]:
    case = _of_an_argument(half)
    return tuple(_calibrated(half, case, num_simulations=n) for n in (0, 1))


@follows("Expected one of …; got …")
def rows_of_a_summary(half: Asking) -> Sequence[Action]:
    def look(name: str) -> Action:
        def run() -> None:
            settings = {"num_samples": 4, "num_importance_samples": 20}
            _ = half.ask("summarise", vae(half), **settings)[name]

        return run

    return look("elbo"), look("kl")


# --- the data and the programs --------------------------------------------------------------------


@follows("Expected at least 2 data that are not masked")
def unmasked_data(half: Asking) -> Sequence[Action]:
    return tuple(
        ask(half, "active_units", vae(half, mask=np.arange(12) < n), num_samples=4) for n in (1, 2)
    )


@follows("Expected at least 4 data; got …")
def data_of_a_test(half: Asking) -> Sequence[Action]:
    return tuple(ask(half, "mmd_test", vae(half, num=num)) for num in (3, 4))


@follows("takes at least 2 rows of each run to train the critic on")
def rows_to_hold_out(half: Asking) -> Sequence[Action]:
    def of(num: int, batch: int | None = None) -> Action:
        case = vae(half, num=num, batch=batch)
        return ask(half, "mutual_information", case, **FEW, held_out=0.2)

    return of(6), of(12), of(12, 10)


def _chosen(half: Asking) -> Sequence[Action]:
    def case(**plate: Any) -> Case:
        x = half.array(data(6, 1)[:, 0])

        def draw(index: Any) -> None:
            half.sample("z", half.dist.Normal(x[index], 1.0))

        program = in_plate(half, 6, draw, **plate)
        return Case(program, program)

    plates = {"index": np.array([0, 2, 3])}, {}, {"batch": 3}
    return [ask(half, "active_units", case(**plate), num_samples=4) for plate in plates]


@follows("is given some of them as subsample=", only="pyro")
def chosen_minibatch(half: Asking) -> Sequence[Action]:
    return _chosen(half)


@follows("is given some of them by handlers.substitute", only="numpyro", quick=())
def chosen_minibatch_in_numpyro(half: Asking) -> Sequence[Action]:
    return _chosen(half)


@follows("runs all minibatches of one plate; got several that are subsampled")
def several_subsampled(half: Asking) -> Sequence[Action]:
    def case(rows: int | None) -> Case:
        def program() -> None:
            with half.plate("rows", 6, batch=rows, dim=-2), half.plate("columns", 6, batch=3):
                half.sample("z", half.dist.Normal(half.array(np.zeros((6, 3)))[: rows or 6], 1.0))

        return Case(program, program)

    return tuple(ask(half, "active_units", case(rows), num_samples=4) for rows in (3, None))


@follows("Expected finite codes")
def finite_codes(half: Asking) -> Sequence[Action]:
    def case(value: float) -> Case:
        locs = half.array(np.array([0.0, value, 1.0, 2.0]))
        prior = half.dist.Normal(half.xp.zeros_like(locs), 1.0)
        draw = in_plate(
            half, 4, lambda _: half.sample("z", half.dist.Normal(locs, 1.0, validate_args=False))
        )
        return Case(pair(half, prior, prior).model, draw)

    return tuple(ask(half, "active_units", case(value), num_samples=4) for value in (math.nan, 0.5))


@follows("on which the prior of … may depend: draw it in the guide")
def parent_that_the_guide_does_not_draw(half: Asking) -> Sequence[Action]:
    x = half.array(data(4, 1)[:, 0])

    def case(*, is_drawn: bool) -> Case:
        def model(_: Any) -> None:
            y = half.sample("y", half.dist.Normal(0 * x, 1.0))
            half.sample("z", half.dist.Normal(y, 1.0))

        def guide(_: Any) -> None:
            if is_drawn:
                half.sample("y", half.dist.Normal(x, 1.0))
            half.sample("z", half.dist.Normal(x, 0.5))

        return Case(in_plate(half, 4, model), in_plate(half, 4, guide))

    return tuple(
        ask(half, "kl_by_dimension", case(is_drawn=drawn), sites="z", num_samples=4)
        for drawn in (False, True)
    )


@follows("as a point mass, which has no density: choose others by sites")
def point_mass(half: Asking) -> Sequence[Action]:
    x = half.array(data(4, 1)[:, 0])

    def model(_: Any) -> None:
        half.sample("y", half.dist.Normal(0 * x, 1.0))
        half.sample("z", half.dist.Normal(0 * x, 1.0))

    def guide(_: Any) -> None:
        half.sample("y", half.dist.Delta(x))
        half.sample("z", half.dist.Normal(x, 0.5))

    case = Case(in_plate(half, 4, model), in_plate(half, 4, guide))
    return tuple(
        ask(half, "kl_by_dimension", case, num_samples=4, **sites) for sites in ({}, {"sites": "z"})
    )


@follows("draw a code per datum, in the same plates", only="numpyro")
def one_code_for_all(half: Asking) -> Sequence[Action]:
    normal = half.dist.Normal(half.array(0.0), 1.0)
    case = pair(half, normal, normal)
    alone = case._replace(guide=lambda: half.sample("z", normal))
    return tuple(ask(half, "active_units", each, num_samples=4) for each in (alone, case))


@follows("or on dropout (call eval() on the encoder)", only="pyro")
def dropout(half: Asking) -> Sequence[Action]:
    module = torch.nn.Dropout(0.5)

    def of(mode: Callable[[], Any]) -> Action:
        locs = torch.as_tensor(data(12, 1)[:, 0])

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(module(locs), 1.0))

        prior = half.dist.Normal(torch.zeros(12), 1.0)
        case = pair(half, prior, prior, num=12)._replace(guide=in_plate(half, 12, guide))

        def run() -> None:
            mode()
            half.ask("aggregated_posterior", case, num_samples=4)

        return run

    return of(module.train), of(module.eval)


@follows("or on dropout (switch it off)", only="numpyro", quick=())
def dropout_in_numpyro(half: Asking) -> Sequence[Action]:
    def of(noise: Callable[[], Any]) -> Action:
        locs = half.array(data(4, 1)[:, 0])

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(noise() * locs, 1.0))

        prior = half.dist.Normal(half.xp.zeros_like(locs), 1.0)
        case = pair(half, prior, prior)._replace(guide=in_plate(half, 4, guide))
        return ask(half, "aggregated_posterior", case, num_samples=4)

    return of(half.noise), of(lambda: 1.0)


@follows("so that there is no reconstruction term to balance")
def nothing_to_balance(half: Asking) -> Sequence[Action]:
    prior = half.dist.Normal(half.array(np.zeros(12)), 1.0)
    case = pair(half, half.dist.Normal(half.array(data(12, 1)[:, 0]), 1.0), prior, num=12)
    return ask(half, "suggest_lambd", case), ask(half, "suggest_lambd", _far(half))


@follows("so that no weight follows; use more data, or keep the weight")
def matched_codes(half: Asking) -> Sequence[Action]:
    """A guide whose aggregated posterior is near the prior; keeping the weight asks nothing."""

    def of(num: int) -> Action:
        x = half.array(np.random.default_rng(0).normal(size=(num, 1)))

        def model(_: Any) -> None:
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0).to_event(1))
            half.sample("x", half.dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(_: Any) -> None:
            half.sample("z", half.dist.Normal(0.3 + 0.5 * x, 0.8).to_event(1))

        case = Case(*(in_plate(half, num, draw) for draw in (model, guide)))

        def run() -> None:
            for seed in range(20 if num < 300 else 1):
                half.ask("suggest_lambd", case, seed=seed)

        return run

    return of(6), of(300)


def _ranks(size: int, samples: int) -> Action:
    def run() -> None:
        found = np.random.default_rng(0).integers(0, samples + 1, (size, 1))
        _ = Calibration(found, samples, ("z",)).p_values

    return run


@follows("Expected at least … ranks, of at least 3 that there can be")
def few_ranks(half: Asking) -> Sequence[Action]:
    return _ranks(10, 49), _ranks(15, 49)


@follows("Expected at least … ranks, of at least 3 that there can be")
def few_values_of_ranks(half: Asking) -> Sequence[Action]:
    return _ranks(15, 1), _ranks(15, 2)


@follows("so that there are no data to draw: observe them by obs=")
def no_data_to_draw(half: Asking) -> Sequence[Action]:
    silent = _of_an_argument(half, lambda z, x: None)
    return _calibrated(half, silent), _calibrated(half, _of_an_argument(half))


@follows("the model holds the factor '…', so that nothing can be drawn from it")
def factor(half: Asking) -> Sequence[Action]:
    def observed(z: Any, x: Any) -> None:
        half.sample("x", half.dist.Normal(z, 1.0), obs=x)
        half.factor("penalty", 0 * z)

    case = _of_an_argument(half, observed)
    return _calibrated(half, case), _calibrated(half, _of_an_argument(half))


@follows("observes is none of the arguments: pass data_args")
def rebuilt_arguments(half: Asking) -> Sequence[Action]:
    def shifted(z: Any, x: Any) -> None:
        half.sample("x", half.dist.Normal(z, 1.0), obs=x + 1)

    case = _of_an_argument(half, shifted)
    return (
        _calibrated(half, case),
        _calibrated(half, case, data_args=lambda drawn: ((drawn["x"] - 1,), {})),
    )


# --- log_evidence ---------------------------------------------------------------------------------


@follows("log_evidence: Pareto k >")
def few_draws(half: Asking) -> Sequence[Action]:
    case = linear_gaussian(half, guide_scale=1.6)
    return tuple(evidence(half, case, num_samples=num) for num in (4, 2000))


@follows("log_evidence: Pareto k >")
def narrow_guide(half: Asking) -> Sequence[Action]:
    return (
        evidence(half, linear_gaussian(half, guide_scale=0.3), num_samples=2000),
        evidence(half, linear_gaussian(half, guide_scale=1.6), num_samples=2000),
    )


@follows("log_evidence: nan in")
def density_that_is_nan(half: Asking) -> Sequence[Action]:
    def case(value: float) -> Case:
        x = half.array(np.array([0.5, value]))

        def model(_: Any) -> None:
            z = half.sample("z", half.dist.Normal(half.xp.zeros_like(x), 1.0))
            half.sample("x", half.dist.Normal(z, 1.0, validate_args=False), obs=x)

        def guide(_: Any) -> None:
            loc = half.array(np.array([0.25, -0.5]))
            half.sample("z", half.dist.Normal(loc, math.sqrt(0.5)))

        return Case(*(in_plate(half, 2, draw) for draw in (model, guide)))

    def run(value: float) -> Action:
        def asked() -> None:
            with half.unvalidated():
                evidence(half, case(value))()

        return asked

    return run(math.nan), run(-1.0)


@follows("log_evidence: no draw has a weight in")
def no_weight(half: Asking) -> Sequence[Action]:
    """A flow that diverges in every draw, and one of smaller steps."""
    ones = half.array(np.ones(3))

    def model(_: Any) -> None:
        z = half.sample("z", half.dist.Normal(0 * ones, 1.0))
        half.sample("x", half.dist.Normal(half.xp.exp(z), 3.0), obs=ones)

    def guide(_: Any) -> None:
        half.sample("z", half.dist.Normal(0 * ones, 1.0))

    case = Case(*(in_plate(half, 3, draw) for draw in (model, guide)))

    def refined(step_size: float) -> Action:
        elbo = half.library.TraceHamiltonian_ELBO(10, step_size, path="posterior", learn=False)
        return evidence(half, case, elbo=elbo, num_samples=200)

    return refined(20.0), refined(0.05)


def _global(half: Asking, *, batch: int | None) -> Case:
    normal, x = half.dist.Normal(half.array(0.0), 1.0), half.array(data(12, 1)[:, 0])

    def model() -> None:
        theta = half.sample("theta", normal)
        with half.plate("data", 12, batch=batch) as index:
            half.sample("x", half.dist.Normal(theta + 0 * x[index], 4.0), obs=x[index])

    return Case(model, lambda: half.sample("theta", normal))


@follows("is subsampled, but site '…' is outside of it")
def evidence_of_a_minibatch(half: Asking) -> Sequence[Action]:
    return tuple(evidence(half, _global(half, batch=batch)) for batch in (4, None))


@follows("is subsampled, but it is sequential", only="pyro")
def evidence_of_a_loop(half: Asking) -> Sequence[Action]:
    def case(size: int) -> Case:
        def program(*, observe: bool) -> None:
            for i in pyro.plate("data", 3, subsample_size=size):
                z = half.sample(f"z_{i}", half.dist.Normal(0.0, 1.0))
                if observe:
                    half.sample(f"x_{i}", half.dist.Normal(z, 3.0), obs=torch.tensor(0.0))

        return Case(lambda: program(observe=True), lambda: program(observe=False))

    return evidence(half, case(1)), evidence(half, case(3))


def _guided(half: Asking, **changes: Any) -> Case:
    """z given x with the exact posterior as its guide, and changes of the guide."""
    x = half.array(data(6, 1)[:, 0])

    def model(_: Any) -> None:
        z = half.sample("z", half.dist.Normal(0 * x, 1.0))
        half.sample("x", half.dist.Normal(z, 1.0), obs=x)

    def guide(_: Any) -> None:
        half.sample("z", half.dist.Normal(x / 2, math.sqrt(0.5)))

    programs = {"model": model, "guide": guide, **changes}
    return Case(*(in_plate(half, 6, programs[name]) for name in ("model", "guide")))


@follows("log_evidence: site '…' is a latent of the model that the guide does not draw")
def latent_not_drawn(half: Asking) -> Sequence[Action]:
    empty = _guided(half, guide=lambda _: None)
    return evidence(half, empty), evidence(half, _guided(half))


def _with_another(half: Asking, ask: Callable[[Asking, Case], Action]) -> Sequence[Action]:
    def guide(draw: Callable[..., Any]) -> Any:
        def run(_: Any) -> None:
            w = draw("w", half.dist.Normal(half.array(data(6, 1)[:, 0]) / 2, math.sqrt(0.5)))
            half.sample("z", half.dist.Delta(w))

        return run

    drawn, auxiliary = guide(half.sample), guide(half.auxiliary)
    return (
        ask(half, _guided(half, guide=drawn)),
        ask(half, _guided(half)),
        ask(half, _guided(half, guide=auxiliary)),
    )


@follows("log_evidence: the guide draws '…', which is no latent of the model")
def latent_of_the_guide(half: Asking) -> Sequence[Action]:
    return _with_another(half, evidence)


def _observed_by_the_guide(half: Asking, block: Any) -> Sequence[Action]:
    case = _guided(half)
    x = half.array(0.0)

    def guide() -> None:
        case.guide()
        half.sample("x", half.dist.Normal(x, 1.0), obs=x)

    return (
        evidence(half, case._replace(guide=guide)),
        evidence(half, case._replace(guide=block(guide, hide=["x"]))),
    )


@follows("which no weight can count: hide it by poutine.block", only="pyro")
def evidence_of_a_guide_that_observes(half: Asking) -> Sequence[Action]:
    return _observed_by_the_guide(half, poutine.block)


@follows("which no weight can count: hide it by handlers.block", only="numpyro", quick=())
def evidence_of_a_guide_that_observes_in_numpyro(half: Asking) -> Sequence[Action]:
    return _observed_by_the_guide(half, numpyro.handlers.block)


@follows("which has no density to weight by; give it one, as AutoNormal does")
def evidence_of_a_point_mass(half: Asking) -> Sequence[Action]:
    case = _guided(half)

    def automatic() -> None:
        start = half.init_to({"z": data(6, 1)[:, 0] / 2})
        settings = {"init_scale": math.sqrt(0.5), "init_loc_fn": start}
        guide = half.auto("AutoNormal", case.model, **settings)
        evidence(half, case._replace(guide=guide))()

    def density(_: Any) -> None:
        x = half.array(data(6, 1)[:, 0])
        half.sample("z", half.dist.Delta(x / 2))

    return evidence(half, _guided(half, guide=density)), automatic


def _one_by_one(half: Asking) -> Case:
    """A program that takes a single draw at a time."""
    x = half.array(data(2, 1)[:, 0])

    def sign(z: Any) -> Any:
        if not half.compiles:
            return torch.stack([value.sign() for value in z.reshape(2)])
        shape = jax.ShapeDtypeStruct((2,), z.dtype)
        return jax.pure_callback(lambda z: np.sign(np.asarray(z)), shape, z)

    def model(_: Any) -> None:
        z = half.sample("z", half.dist.Normal(0 * x, 1.0))
        half.sample("x", half.dist.Normal(sign(z), 2.0), obs=x)

    def guide(_: Any) -> None:
        half.sample("z", half.dist.Normal(0 * x, 1.0))

    return Case(*(in_plate(half, 2, draw) for draw in (model, guide)))


def _in_chunks(half: Asking, ask: Callable[..., Action]) -> Sequence[Action]:
    case = _one_by_one(half)
    return ask(half, case, num_samples=20), ask(half, case, num_samples=20, chunk_size=1)


@follows("log_evidence ran the programs with … draws at once, in a plate", only="pyro")
def evidence_of_one_by_one(half: Asking) -> Sequence[Action]:
    return _in_chunks(half, evidence)


@follows(
    "log_evidence ran the programs with … draws at once, under jax.vmap", only="numpyro", quick=()
)
def evidence_of_one_by_one_in_numpyro(half: Asking) -> Sequence[Action]:
    return _in_chunks(half, evidence)


@follows("to_inference_data ran the programs with … draws at once, in a plate", only="pyro")
def export_of_one_by_one(half: Asking) -> Sequence[Action]:
    return _in_chunks(half, exported)


@follows("to_inference_data ran the programs with … draws at once, under", only="numpyro", quick=())
def export_of_one_by_one_in_numpyro(half: Asking) -> Sequence[Action]:
    return _in_chunks(half, exported)


# --- ArviZ ----------------------------------------------------------------------------------------


@follows("needs ArviZ: pip install")
def without_arviz(half: Asking) -> Sequence[Action]:
    def without() -> None:
        with mock.patch.dict(sys.modules, {"arviz": None}):
            half.ask(half.to_inference_data, vae(half), num_samples=4)

    def installed() -> None:
        check_extra("arviz", "arviz")
        exported(half, vae(half))()

    return without, installed


@follows("to_inference_data: the model observes nothing")
def nothing_to_export(half: Asking) -> Sequence[Action]:
    silent = _guided(half, model=lambda _: half.sample("z", half.dist.Normal(0.0, 1.0)))
    return exported(half, silent), exported(half, _guided(half))


@follows("to_inference_data: the guide draws '…', which is no latent of the model")
def exported_latent_of_the_guide(half: Asking) -> Sequence[Action]:
    return _with_another(half, exported)


@follows("is summed out in the model, so that it has no draws from the posterior")
def exported_latent_summed_out(half: Asking) -> Sequence[Action]:
    x = half.array(data(6, 1)[:, 0])

    def model(_: Any) -> None:
        y = half.enumerated("y", half.dist.Bernoulli(0.5 + 0 * x))
        half.sample("x", half.dist.Normal(y, 1.0), obs=x)

    def guide(_: Any) -> None:
        half.sample("y", half.dist.Bernoulli(0.4 + 0 * x))

    summed, drawn = (_guided(half, model=model, guide=g) for g in (lambda _: None, guide))
    return exported(half, summed), exported(half, drawn)


def _named(half: Asking, *, site: str = "z", plate: str = "data") -> Case:
    zeros = half.array(np.zeros((2, 3)))

    def draw(*, observe: bool) -> None:
        with half.plate(plate, 2):
            z = half.sample(site, half.dist.Normal(zeros[:, 0], 1.0))
            if observe:
                half.sample("x", half.dist.Normal(z[..., None] + zeros, 1.0).to_event(1), obs=zeros)

    return Case(lambda: draw(observe=True), lambda: draw(observe=False))


@follows("plate '…' has the name of a dim of ArviZ's own: rename it")
def plate_of_arviz(half: Asking) -> Sequence[Action]:
    return exported(half, _named(half, plate="chain")), exported(half, _named(half))


@follows("site '…' has the name of a dim of ArviZ's own: rename it")
def site_of_arviz(half: Asking) -> Sequence[Action]:
    return exported(half, _named(half, site="draw")), exported(half, _named(half))


@follows("has the name of a dim of site '…': rename it")
def site_like_a_dim(half: Asking) -> Sequence[Action]:
    return exported(half, _named(half, site="x_dim_0")), exported(half, _named(half))


def _of_values(half: Asking, *, loc: float = 0.5, x: float = 0.5) -> Action:
    locs, values = half.array(np.array([0.2, loc])), half.array(np.array([0.2, x]))

    def model(_: Any) -> None:
        z = half.sample("z", half.dist.Normal(0 * half.array(np.ones(2)), 1.0))
        half.sample("x", half.dist.Normal(z, 1.0, validate_args=False), obs=values)

    def guide(_: Any) -> None:
        half.sample("z", half.dist.Normal(locs, 1.0, validate_args=False))

    case = Case(*(in_plate(half, 2, draw) for draw in (model, guide)))

    def run() -> None:
        with half.unvalidated():
            exported(half, case)()

    return run


@follows("draws of site '…': the guide's parameters are nan or overflow")
def exported_draws_that_are_nan(half: Asking) -> Sequence[Action]:
    return _of_values(half, loc=math.nan), _of_values(half)


@follows("log likelihoods of site '…': look for nan in its data")
def exported_data_that_are_nan(half: Asking) -> Sequence[Action]:
    return _of_values(half, x=math.nan), _of_values(half)
