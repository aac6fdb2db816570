"""The trainings with NumPyro."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer import TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIState
from numpyro.optim import Adam

from demo.backend import Setting
from demo.with_numpyro.training import Training, start
from demo.with_numpyro.vae import VAE, MLPDecoder, Params, init_mlp, linear, minibatch
from infovae_parts import two_points
from infovae_parts.two_points import Snapshot
from numpyro_backend import SVI, TraceMMD_ELBO

__all__ = ["start", "start_deterministic", "train_two_points"]


def start_deterministic(
    objective: Callable[[], ELBO], images: np.ndarray, setting: Setting
) -> Training:
    """The demo's training with a point mass as its guide."""
    vae = DeterministicVAE(
        MLPDecoder(setting.pixels, setting.latent_dim),
        pixels=setting.pixels,
        levels=setting.levels,
        latent_dim=setting.latent_dim,
    )
    return DeterministicTraining(vae, objective(), jnp.asarray(images), setting)


@dataclass(frozen=True)
class DeterministicVAE(VAE):
    """The demo's model, with a guide that gives every image one code."""

    def guide(self, images: Array, rows: Array) -> None:
        """Give every row the mean of what the demo draws its code from."""
        sizes = (self.pixels, self.hidden, self.hidden, 2 * self.latent_dim)
        encoder = numpyro.param("encoder", lambda rng_key: init_mlp(rng_key, sizes))
        with minibatch("data", len(images), rows):
            mean = self.posterior(encoder, images[rows]).mean
            numpyro.sample("z", dist.Delta(mean, event_dim=1))


class DeterministicTraining(Training):
    """The demo's training, whose codes have no spread."""

    def posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The codes, and zeros."""
        codes, scales = super().posterior(images)
        return codes, np.zeros_like(scales)


@dataclass(frozen=True, eq=False)
class TwoPoints:
    """Model and guide of the two points.

    Attributes:
        x: The data, of shape (n,), each of them one of the two points.
    """

    x: Array

    def model(self) -> None:
        """Draw a code for every datum, and score the datum given its code."""
        decoder = numpyro.param("decoder", _init_decoder)
        with numpyro.plate("data", len(self.x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(*_decode(decoder, z)), obs=self.x)

    def guide(self) -> None:
        """Draw a code for every datum, from the normal of its point."""
        loc = numpyro.param("loc", jnp.asarray(two_points.INITIAL_LOC, jnp.float32))
        log_scale = numpyro.param("log_scale", jnp.full(2, jnp.log(two_points.INITIAL_SCALE)))
        point = (self.x > 0).astype(int)
        with numpyro.plate("data", len(self.x)):
            numpyro.sample("z", dist.Normal(loc[point], jnp.exp(log_scale)[point]))


def train_two_points(
    objective: str, *, steps: tuple[int, ...], seed: int, device: str
) -> Iterator[Snapshot]:
    """Train on the two points, and stop at these steps; JAX takes the device that it finds."""
    loss = {
        "elbo": TraceMeanField_ELBO,
        "mmd": partial(TraceMMD_ELBO, lambd=two_points.LAMBD, estimator="closed_form"),
    }[objective]()
    points = TwoPoints(jnp.asarray(two_points.DATA, jnp.float32))
    svi = SVI(points.model, points.guide, Adam(two_points.LEARNING_RATE), loss=loss)

    @jax.jit
    def train(state: SVIState, steps: int) -> SVIState:
        return jax.lax.fori_loop(0, steps, lambda _, state: svi.update(state)[0], state)

    state = svi.init(jax.random.key(seed))
    taken = 0
    for step in steps:
        state = train(state, step - taken)
        taken = step
        params = svi.get_params(state)
        loc, scale = params["loc"], jnp.exp(params["log_scale"])
        decode = partial(_decode_in_double, params["decoder"])
        yield Snapshot(step, np.asarray(loc, float), np.asarray(scale, float), decode)


def _init_decoder(rng_key: Array) -> Params:
    sizes = (1, two_points.HIDDEN, two_points.HIDDEN, 2)
    return init_mlp(rng_key, sizes)


def _decode(decoder: Params, z: Array) -> tuple[Array, Array]:
    hidden = z[:, None]
    for layer in decoder[:-1]:
        hidden = jnp.tanh(linear(layer, hidden))
    loc, log_scale = linear(decoder[-1], hidden).T
    return loc, jnp.exp(log_scale)


def _decode_in_double(decoder: Params, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    loc, scale = jax.jit(_decode)(decoder, jnp.asarray(z, jnp.float32))
    return np.asarray(loc, float), np.asarray(scale, float)
