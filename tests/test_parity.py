"""The same objective in both halves: loss and gradients, parameters and every draw being equal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro import handlers
from pyro import poutine

import numpyro_backend
import pyro_infovae
from tests.numpyro_backend import test_trace_mmd_elbo as numpyro_tests
from tests.pyro_infovae import test_trace_mmd_elbo as pyro_tests

Arrays = dict[str, np.ndarray]
Program = Callable[..., Any]


class Half(NamedTuple):
    """What a program of either half is written with."""

    sample: Callable[..., Any]
    plate: Callable[..., Any]
    mask: Callable[..., Any]
    dist: Any
    param: Callable[..., Any]
    asarray: Callable[..., Any]
    exp: Callable[..., Any]
    tanh: Callable[..., Any]


PYRO = Half(
    pyro.sample,
    lambda name, size, dim=-1, index=None: pyro.plate(
        name, size, dim=dim, subsample=None if index is None else torch.as_tensor(index)
    ),
    lambda mask: poutine.mask(mask=torch.as_tensor(mask)),
    pyro.distributions,
    lambda name, value: pyro.param(name, torch.tensor(value)),
    torch.as_tensor,
    torch.exp,
    torch.tanh,
)


@contextlib.contextmanager
def _numpyro_plate(name: str, size: int, dim: int = -1, index: Any = None) -> Iterator[Any]:
    minibatch = {} if index is None else {name: jnp.asarray(index)}
    with handlers.substitute(data=minibatch):
        plate = numpyro.plate(name, size, None if index is None else len(index), dim=dim)
    with plate as rows:
        yield rows


NUMPYRO = Half(
    numpyro.sample,
    _numpyro_plate,
    lambda mask: handlers.mask(mask=jnp.asarray(mask)),
    numpyro.distributions,
    lambda name, value: numpyro.param(name, jnp.asarray(value)),
    jnp.asarray,
    jnp.exp,
    jnp.tanh,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3))
SEQUENCES = RNG.normal(size=(4, 6, 3))
PARAMS: Arrays = {
    "encoder": RNG.normal(size=(3, 2)),
    "log_scale": np.array([-0.7, 0.2]),
    "decoder": RNG.normal(size=(2, 3)),
    "prior_loc": np.array([0.3, -0.2]),
}
MINIBATCH = np.array([7, 2, 11, 4, 5])
MASK = np.arange(12) % 3 != 0


class Pair(NamedTuple):
    model: Callable[[Half], Program]
    guide: Callable[[Half], Program]
    estimators: tuple[str, ...] = ("unbiased", "biased", "closed_form")


def _prior(half: Half) -> Any:
    loc = half.param("prior_loc", PARAMS["prior_loc"])
    return half.dist.Normal(loc, half.asarray(np.ones(2))).to_event(1)


def _posterior(half: Half, x: Any) -> Any:
    encoder = half.param("encoder", PARAMS["encoder"])
    scale = half.exp(half.param("log_scale", PARAMS["log_scale"]))
    return half.dist.Normal(x @ encoder, scale).to_event(1)


def _likelihood(half: Half, z: Any) -> Any:
    mean = half.tanh(z) @ half.param("decoder", PARAMS["decoder"])
    return half.dist.Normal(mean, 0.7).to_event(1)


def vae(*, index: Any = None, mask: Any = None) -> Pair:
    def model(half: Half) -> Program:
        def program() -> None:
            masked = contextlib.nullcontext() if mask is None else half.mask(mask)
            with half.plate("data", 12, index=index), masked:
                z = half.sample("z", _prior(half))
                x = half.asarray(X if index is None else X[index])
                half.sample("x", _likelihood(half, z), obs=x)

        return program

    def guide(half: Half) -> Program:
        def program() -> None:
            masked = contextlib.nullcontext() if mask is None else half.mask(mask)
            with half.plate("data", 12, index=index), masked:
                x = half.asarray(X if index is None else X[index])
                half.sample("z", _posterior(half, x))

        return program

    return Pair(model, guide)


def nested() -> Pair:
    def model(half: Half) -> Program:
        def program() -> None:
            with half.plate("groups", 6):
                outer = half.sample("outer", _prior(half))
                with half.plate("items", 4, dim=-2):
                    # The full shape, for both halves to draw in the same order.
                    loc = outer + half.asarray(np.zeros((4, 6, 2)))
                    z = half.sample("z", half.dist.Normal(loc, 1.0).to_event(1))
                    x = half.asarray(SEQUENCES)
                    half.sample("x", _likelihood(half, z), obs=x)

        return program

    def guide(half: Half) -> Program:
        def program() -> None:
            x = half.asarray(SEQUENCES)
            with half.plate("groups", 6):
                half.sample("outer", _posterior(half, x.mean(0)))
                with half.plate("items", 4, dim=-2):
                    half.sample("z", _posterior(half, x))

        return program

    return Pair(model, guide)


def positive() -> Pair:
    """A constrained support, under a guide and a prior that have no closed form."""

    def model(half: Half) -> Program:
        def program() -> None:
            prior = half.dist.LogNormal(half.param("prior_loc", PARAMS["prior_loc"]), 0.8)
            with half.plate("data", 12):
                z = half.sample("z", prior.to_event(1))
                half.sample("x", _likelihood(half, z), obs=half.asarray(X))

        return program

    def guide(half: Half) -> Program:
        def program() -> None:
            loc = half.asarray(X) @ half.param("encoder", PARAMS["encoder"])
            scale = half.exp(half.param("log_scale", PARAMS["log_scale"]))
            with half.plate("data", 12):
                half.sample("z", half.dist.LogNormal(0.3 * loc, scale).to_event(1))

        return program

    return Pair(model, guide, ("unbiased", "biased"))


PAIRS = {
    "plain": vae(),
    "subsampled": vae(index=MINIBATCH),
    "masked": vae(mask=MASK),
    "nested": nested(),
    "positive": positive(),
}


class Draws:
    """Standard normal draws that depend on their order and shape alone."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, shape: Any) -> np.ndarray:
        self.count += 1
        return np.random.default_rng(self.count).normal(size=tuple(shape))


def pyro_steps(
    objectives: list[Any], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[float, Arrays]]:
    steps = []
    for objective in objectives:
        draws = Draws()
        monkeypatch.setattr(
            "torch.distributions.normal._standard_normal",
            lambda shape, dtype, device, draws=draws: torch.as_tensor(draws(shape)),
        )
        pyro.clear_param_store()
        loss = objective.loss_and_grads(pair.model(PYRO), pair.guide(PYRO))
        grads = {name: pyro.param(name).grad.numpy() for name in pyro.get_param_store()}
        steps.append((loss, grads))
    return steps


def numpyro_steps(
    objectives: list[Any], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Any, Arrays]]:
    def step(objective: Any, params: Arrays) -> Any:
        draws = Draws()
        monkeypatch.setattr(jax.random, "normal", lambda key, shape=(): jnp.asarray(draws(shape)))
        run = pair.model(NUMPYRO), pair.guide(NUMPYRO)
        key = jax.random.key(0)
        return jax.value_and_grad(lambda params: objective.loss(key, params, *run))(params)

    with jax.enable_x64(True):
        params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
        return jax.jit(lambda params: [step(objective, params) for objective in objectives])(params)


@pytest.mark.parametrize(
    ("pair", "estimator"),
    [(pair, estimator) for pair in PAIRS.values() for estimator in pair.estimators],
    ids=[f"{name}-{estimator}" for name, pair in PAIRS.items() for estimator in pair.estimators],
)
def test_loss_and_gradients_agree(
    pair: Pair, estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_closed_form = "closed_form" in pair.estimators

    def objectives(half: Any, trace_elbo: Callable[[], Any]) -> list[Any]:
        return [
            half.TraceMMD_ELBO(
                alpha,
                30.0,
                half.RBF((0.7, 2.0)),
                estimator=estimator,
                base=None if has_closed_form else trace_elbo(),
            )
            for alpha in (0.0, 0.4, 1.0)
        ]

    expected = pyro_steps(objectives(pyro_infovae, pyro.infer.Trace_ELBO), pair, monkeypatch)
    ours = numpyro_steps(objectives(numpyro_backend, numpyro.infer.Trace_ELBO), pair, monkeypatch)
    for (loss, grads), (expected_loss, expected_grads) in zip(ours, expected, strict=True):
        assert float(loss) == pytest.approx(expected_loss, rel=1e-9)
        assert set(expected_grads) == set(PARAMS)
        for name, grad in expected_grads.items():
            np.testing.assert_allclose(grads[name], grad, rtol=1e-9, atol=1e-9)


def message(refused: Callable[[], Any]) -> str:
    """What an error says, in the words of either half; Pyro appends the shapes of the trace."""
    with pytest.raises((ValueError, NotImplementedError)) as error:
        refused()
    return str(error.value).splitlines()[0].replace("numpyro", "pyro")


# These print a half's own arguments, distributions or kernels.
OWN_WORDS = {"particles twice", "closed form", "not reparameterised"}
SETTINGS = pyro_tests.REFUSED_SETTINGS.keys() & numpyro_tests.REFUSED_SETTINGS.keys() - OWN_WORDS
PROGRAMS = pyro_tests.REFUSED_PROGRAMS.keys() & numpyro_tests.REFUSED_PROGRAMS.keys() - OWN_WORDS


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings_are_refused_in_the_same_words(name: str) -> None:
    settings, _ = pyro_tests.REFUSED_SETTINGS[name]
    twin_settings, _ = numpyro_tests.REFUSED_SETTINGS[name]
    expected = message(lambda: pyro_infovae.TraceMMD_ELBO(**settings))
    assert message(lambda: numpyro_backend.TraceMMD_ELBO(**twin_settings)) == expected


@pytest.mark.filterwarnings("ignore:Missing a plate statement")
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_programs_are_refused_in_the_same_words(name: str) -> None:
    case, settings, _ = pyro_tests.REFUSED_PROGRAMS[name]
    objective = pyro_infovae.TraceMMD_ELBO(**settings)
    twin_case, twin_settings, _ = numpyro_tests.REFUSED_PROGRAMS[name]
    twin = numpyro_backend.TraceMMD_ELBO(**twin_settings)
    pyro.enable_validation(False)
    expected = message(lambda: objective.loss_and_grads(case.model, case.guide, *case.args))
    with jax.enable_x64(True):
        assert message(lambda: numpyro_tests.evaluate_shapes(twin, twin_case)) == expected
