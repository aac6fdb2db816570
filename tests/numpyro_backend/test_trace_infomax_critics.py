"""The critic's parameters: what declares them, and what they are initialised for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import linen
from jax import Array
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, TraceGraph_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from numpyro.optim import Adam

import numpyro_backend
from numpyro_backend import ConcatCritic, TraceMMD_ELBO
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.numpyro_backend.runs import jit
from tests.numpyro_backend.steps import Params, WithParameter, evaluate_shapes

CRITIC = "critic$params"

pytestmark = [
    pytest.mark.usefixtures("quick_double_precision"),
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
]


def concat(x_dim: int = 3, *, width: int = 8) -> ConcatCritic:
    return ConcatCritic(x_dim, 2, hidden=(width,), activation=jnp.tanh)


class Linen(linen.Module):
    """A critic that learns the sizes of its inputs when it is initialised."""

    @linen.compact
    def __call__(self, x: Array, z: Array) -> Array:
        hidden = jnp.tanh(linen.Dense(8)(jnp.concatenate([x.reshape(len(x), -1), z], 1)))
        return linen.Dense(1)(hidden)[:, 0]


def declared(objective: Any, case: Programs) -> Params:
    """What SVI trains."""
    svi = numpyro_backend.SVI(case.model, case.guide, Adam(1e-2), loss=objective)
    return jit(lambda key: svi.get_params(svi.init(key, *case.args)))(jax.random.key(0))


def _mixture_prior() -> Programs:
    """A prior that is not reparameterised, under a guide that is; y is neither."""

    def model(x: Array) -> None:
        parts = dist.Normal(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), 1.0).to_event(1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(0.5))
            prior = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), parts)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True), 1.0).to_event(1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(numpyro.param("p", 0.4)))
            loc = numpyro.param("loc", jnp.zeros(2))
            numpyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return Programs(model, guide, (programs.data(),))


@pytest.mark.parametrize(
    ("case", "settings", "widths"),
    [
        pytest.param(programs.vae(), {}, 3 + 2, id="plain", marks=pytest.mark.slow),
        pytest.param(
            programs.vae(num=20, batch=7), {"data": lambda x: x[:, :1]}, 1 + 2, id="function"
        ),
        pytest.param(
            programs.sequences(),
            {"num_particles": 2},
            3 + 2,
            id="ragged",
            marks=pytest.mark.slow,
        ),
        pytest.param(programs.hierarchical(), {}, 3 + 1, id="hierarchical", marks=pytest.mark.slow),
        pytest.param(programs.nested(), {"sites": "z"}, 3 + 2, id="nested", marks=pytest.mark.slow),
        pytest.param(_mixture_prior(), {"base": TraceGraph_ELBO()}, 3 + 2, id="mixture prior"),
    ],
)
def test_is_initialised_for_the_rows_of_the_program(
    case: Programs, settings: dict, widths: int
) -> None:
    objective = TraceInfoMax_ELBO(Linen(), **settings)
    params = declared(objective, case)
    assert params[CRITIC]["Dense_0"]["kernel"].shape == (widths, 8)
    loss = jax.eval_shape(
        lambda key: objective.loss(key, params, case.model, case.guide, *case.args),
        jax.random.key(0),
    )
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("case", "settings", "match"),
    [
        (programs.nested(), {}, r"\[\['outer'\], \['z'\]\] are in different plates"),
        (programs.vae(), {"sites": "zz"}, "sites names 'zz', which is no latent"),
        (programs.vae(), {"data": "y"}, "Expected the observed site 'y' in the plates"),
    ],
)
def test_is_refused_where_its_rows_are_not_known(
    case: Programs, settings: dict, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        declared(TraceInfoMax_ELBO(Linen(), **settings), case)


@pytest.mark.slow
def test_leaves_the_models_own_draws_as_they_are() -> None:
    def model(x: Array) -> None:
        numpyro.param("weight", lambda rng_key: jax.random.normal(rng_key))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(-1, keepdims=True), 1.0).to_event(1))

    guide = programs.vae().guide
    case = Programs(model, guide, (programs.data(),))
    ours, stock = (declared(o, case) for o in (TraceInfoMax_ELBO(concat()), Trace_ELBO()))
    assert ours.pop(CRITIC).keys() == {"first", "rest"}
    jax.tree.map(np.testing.assert_array_equal, ours, stock)
    wrapped_model = TraceInfoMax_ELBO(concat()).wrap_model(model)
    traces = [
        handlers.trace(handlers.seed(program, 0)).get_trace(*case.args)
        for program in (model, wrapped_model)
    ]
    assert list(traces[1]) == [*traces[0], CRITIC]
    for name, site in traces[0].items():
        np.testing.assert_array_equal(site["value"], traces[1][name]["value"])


def test_is_declared_once() -> None:
    model = programs.vae().model
    objective = TraceInfoMax_ELBO(concat(), base=WithParameter())
    once = objective.wrap_model(model)
    assert objective.wrap_model(once) is once
    over = TraceMMD_ELBO(base=objective)
    assert over.wrap_model(once) is once
    trace = handlers.trace(handlers.seed(over.wrap_model(model), 0)).get_trace(programs.data())
    params = [name for name, site in trace.items() if site["type"] == "param"]
    assert params == ["own", "decoder", CRITIC]
    assert TraceInfoMax_ELBO(concat(width=9)).wrap_model(once) is not once


def test_a_model_runs_elsewhere_too() -> None:
    def model(x: Array | None = None) -> None:
        with numpyro.plate("data", 12):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = programs.data(12, 2)
    program = TraceInfoMax_ELBO(concat(2)).wrap_model(model)
    predictive = Predictive(program, num_samples=3)
    assert jit(predictive)(jax.random.key(0))["x"].shape == (3, 12, 2)
    density, _ = log_density(program, (x,), {}, {"z": jnp.zeros((12, 2))})
    expected, _ = log_density(model, (x,), {}, {"z": jnp.zeros((12, 2))})
    assert density == expected
    guide = AutoNormal(program)
    svi = SVI(program, guide, Adam(1e-2), loss=TraceInfoMax_ELBO(concat(2)))
    shapes = jax.eval_shape(lambda: svi.get_params(svi.init(jax.random.key(0), x)))
    assert shapes.keys() == {CRITIC, "z_auto_loc", "z_auto_scale"}


def test_numpyros_own_svi_needs_the_wrapped_model() -> None:
    case = programs.vae()
    svi = SVI(case.model, case.guide, Adam(1e-2), loss=TraceInfoMax_ELBO(concat()))
    with pytest.raises(ValueError, match=r"use numpyro_backend.SVI, or pass elbo.wrap_model"):
        svi.run(jax.random.key(0), 1, *case.args, progress_bar=False)


@pytest.mark.slow
def test_with_numpyros_own_svi_and_with_a_progress_bar() -> None:
    case, objective = programs.vae(num=80, batch=64), TraceInfoMax_ELBO(Linen())
    ours = numpyro_backend.SVI(case.model, case.guide, Adam(1e-2), loss=objective)
    wrapped_model = objective.wrap_model(case.model)
    stock = SVI(wrapped_model, case.guide, Adam(1e-2), loss=objective)
    results = [
        svi.run(jax.random.key(0), 40, *case.args, progress_bar=shown)
        for svi, shown in ((ours, False), (stock, True))
    ]
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-9)
    assert results[0].losses[-10:].mean() < results[0].losses[:10].mean()

    @jit
    def evaluated() -> list[Array]:
        pairs = zip((ours, stock), results, strict=True)
        return [svi.evaluate(result.state, *case.args) for svi, result in pairs]

    np.testing.assert_allclose(*evaluated(), rtol=1e-9)


def test_resumes_from_saved_parameters() -> None:
    case = programs.vae(num=80, batch=64)
    svi = numpyro_backend.SVI(case.model, case.guide, Adam(1e-2), loss=TraceInfoMax_ELBO(concat()))
    params = declared(TraceInfoMax_ELBO(concat()), case)
    params = jax.tree.map(lambda leaf: 2 * leaf, params)
    start = jit(lambda: svi.init(jax.random.key(1), *case.args, init_params=params))()
    resumed = svi.get_params(start)
    jax.tree.map(np.testing.assert_allclose, resumed[CRITIC], params[CRITIC])


def test_a_model_that_does_not_declare_the_critic() -> None:
    with pytest.raises(
        ValueError,
        match=r"TraceInfoMax_ELBO: Expected the critic's parameters 'critic\$params'; got "
        r"\['loc'\]: use numpyro_backend.SVI, or pass elbo.wrap_model\(model\) for the model",
    ):
        evaluate_shapes(TraceInfoMax_ELBO(concat()), programs.vae(), {"loc": jnp.zeros(())})
    with pytest.raises(ValueError, match=r"'mine\$params'; got \[\]"):
        evaluate_shapes(TraceInfoMax_ELBO(concat(), name="mine"), programs.vae())


def test_an_earlier_critic_of_another_shape() -> None:
    params = {CRITIC: concat().init(jax.random.key(0))}
    with pytest.raises(
        ValueError,
        match=r"'critic\$params' with shape \(9,\) at \['first'\]\['bias'\]; got shape "
        r"\(8,\) of an earlier critic: initialise SVI anew, or pass another name=",
    ):
        evaluate_shapes(TraceInfoMax_ELBO(concat(width=9)), programs.vae(), params)
