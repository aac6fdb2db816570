"""The autoencoder in Pyro: trained under our objective, and measured."""

import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_infovae import TraceMMD_ELBO
from pyro_infovae.compile import CompiledSVI
from pyro_infovae.diagnostics import log_evidence, mmd_test
from rival_objectives.autoencoders import (
    LAMBD,
    LATENTS,
    PARTICLES,
    Layers,
    Plan,
    Trained,
    Weights,
    first_weights,
    images,
    minibatches,
)
from rival_objectives.steps import take_steps


class VAE:
    """An ordinary model and guide.

    Args:
        weights: To start from.
    """

    def __init__(self, weights: Weights) -> None:
        self.encoder, self.decoder = network(weights.encoder), network(weights.decoder)

    def model(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, and score its image."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images), subsample=rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            likelihood = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
            pyro.sample("x", likelihood, obs=images[rows])

    def guide(self, images: Tensor, rows: Tensor) -> None:
        """Draw a code for every row, given its image."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(images), subsample=rows):
            loc, log_variance = self.encoder(images[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (log_variance / 2).exp()).to_event(1))

    @property
    def weights(self) -> Weights:
        """As they are now."""
        return Weights(layers(self.encoder), layers(self.decoder))


def train(method: str, alpha: float, seed: int, plan: Plan) -> Trained:
    """Take the plan's steps.

    Args:
        method: `ELBO`, or a `TraceMMD_ELBO`: with Pyro's own `SVI`, with the compiled one or with
            as many particles as Trace_MMD's default.
        alpha: Of the objective.
        seed: Of weights, minibatches and noise.
        plan: How long.
    """
    objective: dict[str, ELBO] = {
        "ELBO": TraceMeanField_ELBO(),
        "TraceMMD_ELBO": TraceMMD_ELBO(alpha, LAMBD),
        "TraceMMD_ELBO, compiled": TraceMMD_ELBO(alpha, LAMBD),
        f"TraceMMD_ELBO, {PARTICLES} particles": TraceMMD_ELBO(
            alpha,
            LAMBD,
            num_particles=PARTICLES,
            vectorize_particles=True,
            max_plate_nesting=1,
        ),
    }
    return train_with(objective[method], seed, plan, compiled="compiled" in method)


def train_with(elbo: ELBO, seed: int, plan: Plan, *, compiled: bool = False) -> Trained:
    """Take the plan's steps under any objective of Pyro's kind."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    vae = VAE(first_weights(plan, seed))
    train_images = torch.tensor(images()[0])
    kind = CompiledSVI if compiled else SVI
    svi = kind(vae.model, vae.guide, pyro.optim.Adam({"lr": plan.learning_rate}), loss=elbo)
    step = partial(svi.step, train_images)
    seconds = take_steps(lambda rows: step(torch.tensor(rows)), minibatches(plan, seed))
    return Trained(vae.weights, seconds)


def measure(weights: Weights, plan: Plan) -> dict[str, float]:
    """What the weights are worth on held-out images, in nats per image."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    vae = VAE(weights)
    test = torch.tensor(images()[1])
    call = (test, torch.arange(len(test)))
    with torch.no_grad(), warnings.catch_warnings(action="ignore", category=UserWarning):
        # That weights are unreliable is said by the table.
        evidence = log_evidence(vae.model, vae.guide, *call, num_samples=plan.samples)
        mmd = mmd_test(vae.model, vae.guide, *call)
        loc, log_variance = vae.encoder(test).chunk(2, -1)
        codes = dist.Normal(loc, (log_variance / 2).exp()).sample((plan.samples,))
        likelihood = dist.Bernoulli(logits=vae.decoder(codes)).log_prob(test).sum(-1)
    return {
        "log_evidence": float(evidence.log_evidence.mean()),
        "effective": float(evidence.effective_sample_size.mean()),
        "mmd_squared": mmd.mmd_squared,
        "p_value": mmd.p_value,
        "reconstruction": -float(likelihood.mean()),
    }


def network(weights: Layers) -> nn.Sequential:
    """Linear layers with SiLU in between."""
    modules: list[nn.Module] = []
    for kernel, bias in weights:
        linear = nn.Linear(*kernel.shape)
        linear.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})
        modules += [linear, nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def layers(network: nn.Sequential) -> Layers:
    """What `network` is made of."""
    return [
        (module.weight.detach().numpy().T.copy(), module.bias.detach().numpy().copy())
        for module in network
        if isinstance(module, nn.Linear)
    ]
