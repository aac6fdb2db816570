"""NumPyro's half: what its programs are written with, and how its objectives are tried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.infer.autoguide
import numpyro.infer.reparam
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.util import compute_log_probs
from scipy.optimize import minimize

import numpyro_backend
from tests.halves import Arrays, Case, Draws, GivenNumbers, Half, Slope, Step, Trained
from tests.numpyro_backend.runs import Critic, Run, by_name, compiled_losses, drawing, jit


class NumPyroHalf(Half):
    """Losses and gradients in the unconstrained parameters, as NumPyro's SVI takes them."""

    library = numpyro_backend
    infer = numpyro.infer
    dist = numpyro.distributions
    xp = jnp
    handlers = handlers
    compiles = True

    @contextlib.contextmanager
    def precision(self, *, double: bool) -> Iterator[None]:
        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        with jax.enable_x64(double):
            yield
        jax.config.update("jax_disable_most_optimizations", before)

    def unvalidated(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def sample(
        self, name: str, fn: Any, *, obs: Any = None, obs_mask: Any = None, infer: Any = None
    ) -> Any:
        return numpyro.sample(name, fn, obs=obs, obs_mask=obs_mask, infer=infer)

    def param(self, name: str, value: Any, *, constraint: Any = None) -> Any:
        if isinstance(value, np.ndarray):
            # In the precision of now: JAX may remember an array from a test in another.
            value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype))
        return numpyro.param(name, jnp.asarray(value), constraint=constraint or constraints.real)

    def factor(self, name: str, value: Any) -> None:
        numpyro.factor(name, value)

    def deterministic(self, name: str, value: Any, *, event_dim: int = 0) -> None:
        numpyro.deterministic(name, value)

    @contextlib.contextmanager
    def plate(
        self,
        name: str,
        size: int,
        *,
        dim: int = -1,
        batch: int | None = None,
        index: np.ndarray | None = None,
    ) -> Iterator[Any]:
        minibatch = {} if index is None else {name: jnp.asarray(index)}
        with handlers.substitute(data=minibatch):
            plate = numpyro.plate(name, size, batch if index is None else len(index), dim=dim)
        with plate as chosen:
            yield chosen

    def mask(self, mask: Any) -> AbstractContextManager[Any]:
        if mask is None:
            return contextlib.nullcontext()
        return handlers.mask(mask=jnp.asarray(mask))

    def scale(self, scale: float) -> AbstractContextManager[Any]:
        return handlers.scale(scale=scale)

    def init_to(self, values: Mapping[str, np.ndarray]) -> Any:
        return numpyro.infer.init_to_value(values=dict(values))

    def prepared(self, guide: Any, *args: Any) -> Any:
        handlers.seed(guide, 0)(*args)
        return guide

    def critic(
        self,
        score: Callable[..., Any],
        params: Mapping[str, Any],
        *,
        pairs: Callable[..., Any] | None = None,
    ) -> Any:
        return Critic(score, params, pairs)

    def steps(
        self, objectives: Sequence[Any], case: Case, *, draws: Callable[[], Draws] | None = None
    ) -> list[Step]:
        # One program of all, for its compilation takes the time.
        steps = jit(lambda key: [Run(elbo, case).step(key, draws) for elbo in objectives])
        return [Step(float(loss), by_name(grads)) for loss, grads in steps(jax.random.key(3))]

    def slopes(self, objective: Any, case: Case) -> dict[str, Slope]:
        @jit
        def both(key: Array) -> tuple[Any, Array, Array]:
            run = Run(objective, case)
            flat, unflatten = ravel_pytree(run.start())
            leaves, structure = jax.tree.flatten(run.start())
            parts = [jnp.linspace(1.0, 2.0, leaf.size) for leaf in leaves]
            ends = np.cumsum([leaf.size for leaf in leaves])
            directions = jnp.zeros((len(leaves), flat.size))
            for i, (part, end) in enumerate(zip(parts, ends, strict=True)):
                directions = directions.at[i, end - part.size : end].set(part)

            def loss(flat: Array) -> Array:
                return run.loss_at(key, unflatten(flat))

            moved = jnp.concatenate([flat + 1e-5 * directions, flat - 1e-5 * directions])
            up, down = jnp.split(jax.lax.map(loss, moved), 2)
            names = structure.unflatten(list(range(len(leaves))))
            return names, directions @ jax.grad(loss)(flat), (up - down) / 2e-5

        names, gradients, slopes = both(jax.random.key(3))
        return {
            name: Slope(float(gradients[i]), float(slopes[i])) for name, i in by_name(names).items()
        }

    def minimised(
        self, objective: Any, case: Case, *, draws: Callable[[], Draws]
    ) -> tuple[float, Arrays]:
        run = Run(objective, case)
        vector, unflatten = ravel_pytree(run.start())

        def loss(flat: Array) -> Array:
            with drawing(draws()):
                return run.loss_at(jax.random.key(0), unflatten(flat))

        options = {"maxiter": 300}
        best = minimize(jit(jax.value_and_grad(loss)), vector, jac=True, options=options)
        end = unflatten(jnp.asarray(best.x))
        params = {name: run.transforms[name](value) for name, value in end.items()}
        return float(best.fun), by_name(params)

    def losses(self, objectives: Sequence[Any], case: Case, *, count: int) -> np.ndarray:
        programs = tuple(objectives), case.model, case.guide
        keys = jax.random.split(jax.random.key(5), count)
        return np.array(compiled_losses(*programs)(keys, case.args, dict(case.kwargs)))

    def losses_at(self, objective: Any, case: Case, noise: np.ndarray) -> np.ndarray:
        def loss(numbers: Array) -> Array:
            run = Run(objective, case)
            with drawing(GivenNumbers(numbers)):
                return run.loss(jax.random.key(0))

        return np.array(jit(jax.vmap(loss))(noise))

    def seen(
        self,
        log: list[Any],
        objective: Any,
        case: Case,
        *,
        count: int = 1,
        draws: Callable[[], Draws] | None = None,
    ) -> list[Any]:
        def run(key: Array) -> list[Any]:
            run = Run(objective, case)
            log.clear()
            with contextlib.nullcontext() if draws is None else drawing(draws()):
                run.loss(key)
            return list(log)

        entries = jit(jax.vmap(run))(jax.random.split(jax.random.key(5), count))
        return [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), entries) for i in range(count)]

    def draw(self, guide: Any, case: Case, draws: Callable[[], Draws]) -> Arrays:
        def values() -> Any:
            with drawing(draws()):
                sites = handlers.trace(handlers.seed(guide, 0)).get_trace(*case.args)
            return {k: site["value"] for k, site in sites.items() if site["type"] == "sample"}

        return {name: np.asarray(value) for name, value in jit(values)().items()}

    def log_weights(self, elbo: Any, case: Case, *, draws: int) -> np.ndarray:
        refined = elbo.refine(case.model, case.guide)

        def log_weight(key: Array, params: Any) -> Array:
            guide_key, model_key = jax.random.split(key)
            seeded = handlers.seed(refined, guide_key)
            guide_terms, trace = compute_log_probs(seeded, case.args, {}, params)
            replayed = handlers.replay(handlers.seed(case.model, model_key), trace)
            model_terms, _ = compute_log_probs(replayed, case.args, {}, params)
            return sum(model_terms.values()) - sum(guide_terms.values())

        @jit
        def weights(keys: Array) -> Array:
            return jax.vmap(log_weight, (0, None))(keys, Run(elbo, case).params)

        return np.asarray(weights(jax.random.split(jax.random.key(1), draws)))

    def trained(
        self, objective: Any, case: Case, *, steps: int, lr: float = 1e-2, decay: float = 1.0
    ) -> Trained:
        optim = numpyro.optim.Adam(lambda i: lr * decay**i)
        svi = numpyro_backend.SVI(case.model, case.guide, optim, loss=objective)

        @jit
        def train(key: Array) -> tuple[Any, Array]:
            state = svi.init(key, *case.args, **case.kwargs)
            update = partial(svi.update, **case.kwargs)
            step = lambda state, _: update(state, *case.args)  # noqa: E731
            state, losses = jax.lax.scan(step, state, length=steps)
            return svi.get_params(state), losses

        params, losses = train(jax.random.key(0))
        return Trained(np.asarray(losses), by_name(params))

    def all_scores(self, objective: Any, case: Case, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        def scores(x: Array, z: Array) -> Array:
            critic = objective.bind_critic(Run(objective, case).params)
            return jax.vmap(jax.vmap(critic, (None, 0)), (0, None))(x[:, None], z[:, None])

        return np.asarray(jit(scores)(x, z)[..., 0])

    def evaluate(self, objective: Any, case: Case) -> None:
        jax.eval_shape(lambda key: Run(objective, case).loss(key), jax.random.key(0))


NUMPYRO = NumPyroHalf()
