"""Critics of every library: their parameters apart from them, trained, and refused where not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from flax import linen, nnx
from jax import Array

import numpyro_backend
from numpyro_backend._objectives.critic_parameters import check_params, critic_parameters
from numpyro_backend.critics import ConcatCritic, SeparableCritic, score_all_pairs
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
from tests.numpyro_backend import programs

CRITIC = "critic$params"
pytestmark = pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information")


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Array, z: Array) -> Array:
        hidden = jnp.tanh(linen.Dense(8)(jnp.concatenate([x, z], 1)))
        return linen.Dense(1)(hidden)[:, 0]


class NNX(nnx.Module):
    """With a list of more than ten layers, whose order is not that of their names."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(11)])
        self.last = nnx.Linear(5, 1, rngs=rngs)
        self.scale = jnp.asarray(3.0)

    def __call__(self, x: Array, z: Array) -> Array:
        hidden = jnp.concatenate([x, z], 1)
        for layer in self.layers:
            hidden = jnp.tanh(layer(hidden))
        return self.scale * self.last(hidden)[:, 0]


class Equinox(equinox.Module):
    mlp: equinox.nn.MLP
    offsets: Array

    def __init__(self) -> None:
        self.mlp = equinox.nn.MLP(5, "scalar", 8, 1, key=jax.random.key(0))
        self.offsets = jnp.arange(5)

    def __call__(self, x: Array, z: Array) -> Array:
        return jax.vmap(self.mlp)(jnp.concatenate([x, z], 1) + self.offsets)


CRITICS: dict[str, Callable[[], Any]] = {
    "concat": lambda: ConcatCritic(3, 2, hidden=(8,)),
    "separable": lambda: SeparableCritic(3, 2, hidden=(8,)),
    "linen": Linen,
    "nnx": NNX,
    "equinox": Equinox,
}


def rows(num: int = 6) -> tuple[Array, Array]:
    x, z = np.random.default_rng(0).normal(size=(2, num, 3)).astype("float32")
    return jnp.asarray(x), jnp.asarray(z[:, :2])


def called(critic: Any, params: Any, x: Array, z: Array) -> Array:
    """The scores in the library's own way."""
    if isinstance(critic, linen.Module):
        return critic.apply({"params": params}, x, z)
    return critic.apply(params, x, z) if hasattr(critic, "apply") else critic(x, z)


QUICK = [("linen", "shift"), ("equinox", "all")]
TRAINED = [
    pytest.param(name, negatives, marks=[] if (name, negatives) in QUICK else [pytest.mark.slow])
    for name in CRITICS
    for negatives in ("shift", "all")
]


class TestCritics:
    @pytest.mark.parametrize("name", CRITICS)
    def test_score_as_they_do_themselves(self, name: str) -> None:
        critic = CRITICS[name]()
        x, z = rows()

        @jax.jit
        def scores(rng_key: Array) -> tuple[Array, ...]:
            parameters = critic_parameters(critic)
            params = parameters.init(rng_key, lambda: (x, z))
            bound = parameters.bind(params)
            pairs = score_all_pairs(bound, x, z, block_rows=4)
            return bound(x, z), called(critic, params, x, z), jnp.diagonal(pairs)

        bound, expected, diagonal = scores(jax.random.key(0))
        np.testing.assert_allclose(bound, expected, rtol=1e-5)
        np.testing.assert_allclose(diagonal, expected, rtol=1e-4, atol=1e-6)
        assert jnp.abs(bound).max() > 0

    @pytest.mark.parametrize("name", CRITICS)
    def test_every_parameter_is_apart(self, name: str) -> None:
        """Where all of them are 0 the scores are 0, those of fixed arrays left as they are."""
        critic = CRITICS[name]()
        parameters = critic_parameters(critic)
        params = jax.jit(lambda key: parameters.init(key, rows))(jax.random.key(0))
        leaves = jax.tree.leaves(params)
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        assert len(leaves) == {"separable": 8, "nnx": 24}.get(name, 4)
        zero = parameters.bind(jax.tree.map(jnp.zeros_like, params))
        assert jnp.abs(zero(*rows())).max() == 0

    @pytest.mark.parametrize(("name", "negatives"), TRAINED)
    def test_are_trained_by_svi(self, name: str, negatives: str) -> None:
        """All of their parameters, and the estimate of information rises."""
        model, guide, (x,) = programs.vae(num=64)
        objective = TraceInfoMax_ELBO(CRITICS[name](), 0.0, negatives=negatives)
        optim = optax.multi_transform(
            {True: optax.adam(1e-2), False: optax.set_to_zero()},
            lambda params: {key: key == CRITIC for key in params},
        )
        svi = numpyro_backend.SVI(model, guide, optim, loss=objective)
        x = jnp.asarray(x, "float32")
        start = svi.init(jax.random.key(0), x)
        state, _ = jax.jit(lambda state: _scan(svi, state, 60, x))(start)
        before, after = svi.get_params(start), svi.get_params(state)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: (a != b).any(), before[CRITIC], after[CRITIC])
        )
        for key in before.keys() - {CRITIC}:
            np.testing.assert_array_equal(before[key], after[key])
        pairs = [_pairs(objective, params, x) for params in (before, after)]
        assert _information(pairs[1]) > max(_information(pairs[0]), 0.0)


def _scan(svi: Any, state: Any, steps: int, x: Array) -> tuple[Any, Array]:
    return jax.lax.scan(lambda state, _: svi.update(state, x), state, length=steps)


def _pairs(objective: TraceInfoMax_ELBO, params: dict[str, Any], x: Array) -> Array:
    z = x @ params["encoder"]
    return jax.jit(lambda: score_all_pairs(objective.bind_critic(params), x, z))()


def _information(scores: Array) -> float:
    """The NWJ bound on the scores of all pairs."""
    off = scores[~np.eye(len(scores), dtype=bool)]
    return float(jnp.diagonal(scores).mean() - jnp.exp(off - 1).mean())


class Stateful(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([nnx.BatchNorm(3, rngs=nnx.Rngs(0))])
        self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))


class RunningAverage(linen.Module):
    @linen.compact
    def __call__(self, x: Array, z: Array) -> Array:
        return linen.BatchNorm(use_running_average=False)(x).sum(1)


class TestRefused:
    @pytest.mark.parametrize(
        "critic",
        [
            lambda x, z: z.sum(1),
            ConcatCritic,
            Linen,
            ConcatCritic(3, 2).bind({}),
            None,
        ],
        ids=["function", "class", "module class", "with parameters", "none"],
    )
    def test_what_has_no_parameters_to_train(self, critic: Any) -> None:
        with pytest.raises(
            TypeError,
            match=r"Expected critic to be a module of flax.linen, flax.nnx or equinox, or an "
            r"object with init\(rng_key\) and bind\(params\) such as ConcatCritic; got ",
        ):
            critic_parameters(critic)

    def test_state_of_nnx(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"critic with parameters alone; got the state 'dropout.rngs.count' "
            r"\(RngCount\), .*'layers.0.mean' \(BatchStat\).*, which nothing would update: use "
            "layers without any, LayerNorm instead of BatchNorm say",
        ):
            TraceInfoMax_ELBO(Stateful())

    def test_state_of_linen(self) -> None:
        model, guide, args = programs.vae()
        svi = numpyro_backend.SVI(
            model, guide, numpyro.optim.Adam(1e-2), loss=TraceInfoMax_ELBO(RunningAverage())
        )
        with pytest.raises(ValueError, match=r"got the state 'batch_stats', which nothing would"):
            jax.eval_shape(lambda key: svi.init(key, *args).rng_key, jax.random.key(0))

    @pytest.mark.parametrize(
        ("params", "match"),
        [
            ({"a": [jnp.zeros(2)]}, r"'c' with shape \(3,\) at \['a'\]\[0\]; got shape \(2,\) of"),
            ({"a": []}, r"'c' with shape \(3,\) at \['a'\]\[0\]; got nothing of an earlier"),
            (
                {"a": [jnp.zeros(3)], "b": 1.0},
                r"'c' with nothing at \['b'\]; got shape \(\) of an earlier critic: initialise "
                "SVI anew, or pass another name=",
            ),
        ],
    )
    def test_parameters_of_another_critic(self, params: Any, match: str) -> None:
        expected = {"a": [jnp.zeros(3)]}
        check_params(expected, {"a": [jnp.ones(3)]}, name="c")
        with pytest.raises(ValueError, match=match):
            check_params(expected, params, name="c")


def test_no_library_is_imported_for_the_others() -> None:
    program = """
import sys
import jax
from numpyro_backend.critics import ConcatCritic
from numpyro_backend.trace_infomax_elbo import TraceInfoMax_ELBO
TraceInfoMax_ELBO(ConcatCritic(3, 2))
assert not {"flax", "equinox"} & sys.modules.keys(), sys.modules.keys()
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
