"""The demo's autoencoder in NumPyro on several devices, whose penalties see the whole minibatch.

Under `jax.jit` a program sees the minibatch of all devices, wherever its rows are: the objectives
are those of one device, and need no argument more. From the repository's root, after
`pip install -e .[demo,numpyro]`:

    python examples/sharded_numpyro.py --simulate-devices 4
    python examples/sharded_numpyro.py --help
"""

import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.infer.elbo import ELBO
from numpyro.optim import Adam

from demo.cli import integer
from demo.data import load
from demo.digits import BATCH_SIZE, LATENT_DIM, PIXELS, digits_setting, training_parser
from demo.with_numpyro.training import build_vae
from numpyro_backend import (
    SVI,
    ConcatCritic,
    TraceHamiltonian_ELBO,
    TraceInfoMax_ELBO,
    TraceMMD_ELBO,
)

OBJECTIVES: dict[str, Callable[[], ELBO]] = {
    "mmd": lambda: TraceMMD_ELBO(lambd=100.0),
    "infomax": lambda: TraceInfoMax_ELBO(ConcatCritic(PIXELS, LATENT_DIM, hidden=(64,))),
    "hamiltonian": lambda: TraceHamiltonian_ELBO(num_steps=2, step_size=0.05),
}


def train(objective: str, *, epochs: int, seed: int, devices: Sequence[jax.Device]) -> list[float]:
    """Train on minibatches spread over the devices; the loss of every epoch per image."""
    mesh = Mesh(devices, ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    spread = NamedSharding(mesh, PartitionSpec("data"))

    data = load("digits", data_dir=None, seed=seed).train_images
    images = jax.device_put(jnp.asarray(data), everywhere)
    setting = digits_setting(seed)
    vae = build_vae(setting)
    svi = SVI(vae.model, vae.guide, Adam(setting.learning_rate), loss=OBJECTIVES[objective]())
    state = jax.device_put(svi.init(jax.random.key(seed), images, jnp.arange(2)), everywhere)
    size = BATCH_SIZE // len(devices) * len(devices)
    # Without out_shardings the compiler may spread parameters, which the next step does not expect.
    update = jax.jit(svi.update, out_shardings=everywhere)
    update = update.lower(state, images, jax.device_put(jnp.arange(size), spread)).compile()

    order = np.random.default_rng(seed)
    losses = []
    for _ in range(epochs):
        count = len(data) // size
        minibatches = order.permutation(len(data))[: count * size].reshape(count, size)
        total = jnp.zeros(())
        for rows in minibatches:
            state, loss = update(state, images, jax.device_put(rows, spread))
            total += loss
        losses.append(float(total) / (count * len(data)))
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Train on one device and on all; the exit status is 0."""
    parser = training_parser(__doc__, OBJECTIVES)
    parser.add_argument(
        "--simulate-devices",
        type=integer(at_least=1),
        metavar="N",
        help="make the CPU look like N devices",
    )
    options = parser.parse_args(argv)
    if options.simulate_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.simulate_devices)
    devices = jax.devices()
    one, several = (
        train(options.objective, epochs=options.epochs, seed=options.seed, devices=chosen)
        for chosen in (devices[:1], devices)
    )
    print(f"epoch   1 device   {len(devices)} devices   (nats per image)")
    for epoch, losses in enumerate(zip(one, several, strict=True), start=1):
        print(f"{epoch:5}   {losses[0]:8.4f}   {losses[1]:9.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
