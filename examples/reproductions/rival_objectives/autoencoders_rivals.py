"""The autoencoder under Pyro's own MMD objective, and as pythae's model."""

import math
import warnings

import torch
from pyro.contrib.gp.kernels import RBF
from pyro.infer import Trace_MMD
from torch import Tensor

from rival_objectives import autoencoders
from rival_objectives.autoencoders import LAMBD, LATENTS, PARTICLES, Plan, Trained, Weights
from rival_objectives.autoencoders_pyro import layers, network
from rival_objectives.steps import take_steps


def train(method: str, alpha: float, seed: int, plan: Plan) -> Trained:
    """Take the plan's steps.

    Args:
        method: `Trace_MMD`, which knows no KL and so no α but 1, or `pythae`.
        alpha: Of the objective.
        seed: Of weights, minibatches and noise.
        plan: How long.
    """
    return train_pythae(alpha, seed, plan) if method == "pythae" else train_trace_mmd(seed, plan)


def train_trace_mmd(seed: int, plan: Plan) -> Trained:
    """Under `pyro.infer.Trace_MMD`.

    It compares particles: a row is the codes of a whole minibatch side by side, so the lengthscale
    is √d with their d. Its likelihood is that of the whole data set, and so is the penalty here.
    """
    dims = autoencoders.BATCH * LATENTS
    kernel = RBF(dims, lengthscale=torch.tensor(math.sqrt(dims)))
    count = len(autoencoders.images()[0])
    elbo = Trace_MMD(kernel, mmd_scale=count * LAMBD, num_particles=PARTICLES, max_plate_nesting=1)
    return autoencoders.train_with(lambda: elbo, seed, plan, backend="pyro")


def train_pythae(alpha: float, seed: int, plan: Plan) -> Trained:
    """As pythae's `INFOVAE_MMD`, whose loss is a mean over the minibatch, in a plain loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from pythae.models import INFOVAE_MMD, INFOVAE_MMD_Config
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_variance = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    torch.manual_seed(seed)
    start = autoencoders.first_weights(plan, seed)
    train_images = torch.tensor(autoencoders.images()[0])
    # exp(-|x - y|² / 2d) is the RBF() of TraceMMD_ELBO.
    config = INFOVAE_MMD_Config(
        input_dim=(train_images.shape[1],),
        latent_dim=LATENTS,
        reconstruction_loss="bce",
        kernel_choice="rbf",
        kernel_bandwidth=1.0,
        alpha=alpha,
        lbd=LAMBD,
    )
    encoder, decoder = Encoder(), Decoder()
    encoder.layers, decoder.layers = network(start.encoder), network(start.decoder)
    model = INFOVAE_MMD(config, encoder, decoder)
    optimiser = torch.optim.Adam(model.parameters(), plan.learning_rate)

    def step(rows: Tensor) -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = model({"data": train_images[torch.as_tensor(rows)]}).loss
        loss.backward()
        optimiser.step()
        return loss.detach()

    seconds = take_steps(step, autoencoders.minibatches(plan, seed))
    trained = Weights(layers(model.encoder.layers), layers(model.decoder.layers))
    return Trained(trained, seconds)
