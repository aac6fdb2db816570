"""Time of a jitted NumPyro training step against one written by hand in JAX and optax."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from jax.nn import sigmoid, softplus
from numpyro.infer import TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO

from benchmarks.measuring import Call, Step, interleaved, ratios
from benchmarks.report import Report, Row
from numpyro_backend import SVI, TraceHamiltonian_ELBO, TraceMMD_ELBO

BATCH = 128
Size = tuple[int, int, int]
SIZES: tuple[Size, ...] = ((64, 128, 8), (784, 400, 20))
OBJECTIVES = ("ELBO", "MMD", "Hamiltonian")
LAMBD = 100.0
LEAPFROG_STEPS, STEP_SIZE, BETA_0 = 3, 0.05, 0.5
STEPS_PER_TIMING = 20
ROUNDS = 20

Params = dict[str, Any]


def measure(
    call: Call,
    *,
    sizes: Sequence[Size] = SIZES,
    objectives: Sequence[str] = OBJECTIVES,
    rounds: int = ROUNDS,
) -> Report:
    """A table of all sizes and objectives."""
    return Report(
        title="NumPyro: training steps",
        method=(
            f"A VAE of these widths (one hidden layer each way) on {BATCH} binary images, float32."
            " `jax.jit(svi.update)` of `numpyro_backend.SVI` against a jitted step in JAX with the"
            " same networks and estimators; both with optax's Adam. `TraceMeanField_ELBO` is"
            f" NumPyro's own; `TraceHamiltonian_ELBO` takes {LEAPFROG_STEPS} leapfrog steps."
            f" {rounds} rounds of {STEPS_PER_TIMING} steps."
        ),
        packages=["pyro-infovae", "jax", "numpyro", "optax"],
        tables=[[call(row, objective, size, rounds) for size in sizes for objective in objectives]],
    )


def row(objective: str, size: Size, rounds: int) -> Row:
    """The times of an objective for one size of the networks."""
    x = jax.random.bernoulli(jax.random.key(1), 0.2, (BATCH, size[0])).astype(jnp.float32)
    loss, loss_by_hand = {
        "ELBO": (TraceMeanField_ELBO(), elbo_loss),
        "MMD": (TraceMMD_ELBO(lambd=LAMBD), mmd_loss),
        "Hamiltonian": (
            TraceHamiltonian_ELBO(
                LEAPFROG_STEPS, STEP_SIZE, beta_0=BETA_0, path="posterior", checkpoint=True
            ),
            hamiltonian_loss,
        ),
    }[objective]
    steps = {"ours": numpyro_step(loss, size, x), "by hand": by_hand(loss_by_hand, size, x)}
    times = interleaved(steps, rounds=rounds, steps=1)
    return {
        "objective": type(loss).__name__,
        "widths": "-".join(map(str, size)),
        "by hand, ms": statistics.median(times["by hand"]) / STEPS_PER_TIMING,
        "ours / by hand": ratios(times["ours"], times["by hand"]),
    }


def init_linear(rng_key: Array, inputs: int, outputs: int) -> Params:
    """Weights of one layer."""
    kernel = jax.random.normal(rng_key, (inputs, outputs)) * inputs**-0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def init_decoder(rng_key: Array, sizes: Size) -> list[Params]:
    """Weights of one hidden layer and the logits."""
    pixels, hidden, latent = sizes
    first, second = jax.random.split(rng_key)
    return [init_linear(first, latent, hidden), init_linear(second, hidden, pixels)]


def init_encoder(rng_key: Array, sizes: Size) -> list[Params]:
    """Weights of one hidden layer, means and log scales."""
    pixels, hidden, latent = sizes
    first, second = jax.random.split(rng_key)
    return [init_linear(first, pixels, hidden), init_linear(second, hidden, 2 * latent)]


def mlp(params: list[Params], inputs: Array) -> Array:
    """One hidden layer."""
    first, second = params
    hidden = jnp.tanh(inputs @ first["kernel"] + first["bias"])
    return hidden @ second["kernel"] + second["bias"]


def encode(params: list[Params], x: Array) -> tuple[Array, Array]:
    """Means and scales of q(z|x)."""
    loc, log_scale = jnp.split(mlp(params, x), 2, axis=1)
    return loc, jnp.exp(log_scale)


# ----------------------------------------------------------------------------------- with NumPyro


def numpyro_step(objective: ELBO, sizes: Size, x: Array) -> Step:
    """A step of SVI."""

    def model(x: Array) -> None:
        decoder = numpyro.param("decoder", lambda key: init_decoder(key, sizes))
        with numpyro.plate("data", BATCH):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(sizes[2]), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=mlp(decoder, z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        encoder = numpyro.param("encoder", lambda key: init_encoder(key, sizes))
        with numpyro.plate("data", BATCH):
            numpyro.sample("z", dist.Normal(*encode(encoder, x)).to_event(1))

    svi = SVI(model, guide, optax.adam(1e-3), loss=objective)
    return stepping(jax.jit(svi.update), svi.init(jax.random.key(0), x), x)


# ---------------------------------------------------------------------------------------- by hand


def by_hand(loss: Callable[..., Array], sizes: Size, x: Array) -> Step:
    """A step of optax's Adam on a loss(params, rng_key, x)."""
    optimiser = optax.adam(1e-3)
    first, second, rng_key = jax.random.split(jax.random.key(0), 3)
    params = {
        "decoder": init_decoder(first, sizes),
        "encoder": init_encoder(second, sizes),
        "step_size": jnp.log(STEP_SIZE / (0.5 - STEP_SIZE)),
        "beta_0": jnp.log(BETA_0 / (1 - BETA_0)),
    }

    def update(state: Any, x: Array) -> tuple[Any, Array]:
        params, moments, rng_key = state
        rng_key, step_key = jax.random.split(rng_key)
        value, grads = jax.value_and_grad(loss)(params, step_key, x)
        changes, moments = optimiser.update(grads, moments)
        return (optax.apply_updates(params, changes), moments, rng_key), value

    return stepping(jax.jit(update), (params, optimiser.init(params), rng_key), x)


def elbo_loss(params: Params, rng_key: Array, x: Array) -> Array:
    """-ELBO with the KL in closed form."""
    return elbo_and_code(params, rng_key, x)[0]


def elbo_and_code(params: Params, rng_key: Array, x: Array) -> tuple[Array, Array]:
    """-ELBO and the codes it was estimated with."""
    loc, scale = encode(params["encoder"], x)
    z = loc + scale * jax.random.normal(rng_key, loc.shape)
    kl = 0.5 * (loc**2 + scale**2 - 1).sum() - jnp.log(scale).sum()
    return kl - log_likelihood(params, z, x).sum(), z


def log_likelihood(params: Params, z: Array, x: Array) -> Array:
    """The log likelihood by pixel."""
    logits = mlp(params["decoder"], z)
    return x * logits - softplus(logits)


def mmd_loss(params: Params, rng_key: Array, x: Array) -> Array:
    """-ELBO and N (lambda - 1) times the unbiased MMD² of an RBF kernel of lengthscale √d."""
    posterior_key, prior_key = jax.random.split(rng_key)
    loss, z = elbo_and_code(params, posterior_key, x)
    n, d = z.shape
    prior = jax.random.normal(prior_key, z.shape)

    def kernel(a: Array, b: Array) -> Array:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return jnp.exp(-squares / (2 * d))

    def off_diagonal(matrix: Array) -> Array:
        return (matrix.sum() - jnp.trace(matrix)) / (n * (n - 1))

    within = off_diagonal(kernel(z, z)) + off_diagonal(kernel(prior, prior))
    return loss + n * (LAMBD - 1) * (within - 2 * off_diagonal(kernel(z, prior)))


def hamiltonian_loss(params: Params, rng_key: Array, x: Array) -> Array:
    """The Hamiltonian bound with quadratic tempering, a scan over checkpointed leapfrog steps."""
    posterior_key, momentum_key = jax.random.split(rng_key)
    step_size, beta_0 = 0.5 * sigmoid(params["step_size"]), sigmoid(params["beta_0"])
    loc, scale = encode(params["encoder"], x)
    noise = jax.random.normal(posterior_key, loc.shape)
    z = loc + scale * noise
    rho_0 = rho = jax.random.normal(momentum_key, loc.shape) / jnp.sqrt(beta_0)
    roots = (1 - 1 / jnp.sqrt(beta_0)) * (jnp.arange(LEAPFROG_STEPS + 1) / LEAPFROG_STEPS) ** 2
    roots = roots + 1 / jnp.sqrt(beta_0)

    def log_joint(z: Array) -> Array:
        return log_likelihood(params, z, x).sum() - 0.5 * (z**2).sum()

    force = jax.grad(log_joint)

    @jax.checkpoint
    def leapfrog(state: tuple[Array, Array, Array], cooling: Array) -> tuple[Any, None]:
        z, rho, gradient = state
        rho = rho + 0.5 * step_size * gradient
        z = z + step_size * rho
        gradient = force(z)
        return (z, (rho + 0.5 * step_size * gradient) * cooling, gradient), None

    # The momentum is multiplied by sqrt(beta_{k-1} / beta_k).
    (z, rho, _), _ = jax.lax.scan(leapfrog, (z, rho, force(z)), roots[1:] / roots[:-1])
    log_q = -0.5 * (noise**2).sum() - jnp.log(scale).sum() - 0.5 * beta_0 * (rho_0**2).sum()
    return log_q - log_joint(z) + 0.5 * (rho**2).sum()


# --------------------------------------------------------------------------------------- measuring


def stepping(update: Callable[..., Any], state: Any, x: Array) -> Step:
    """Steps in a row, the state carried along."""

    def steps() -> Array:
        nonlocal state
        for _ in range(STEPS_PER_TIMING):
            state, loss = update(state, x)
        return jax.block_until_ready(loss)

    steps()
    return steps
