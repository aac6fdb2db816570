"""Autoencoders: a code per datum, a network to it and a network from it."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from tests.halves import Case
from tests.wild.programs.program import N, Program, Works, bits, counts, net, normals

D = 6


def vae() -> Case:
    encoder, decoder = net(D, 8, 4), net(2, 8, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (bits(N, D),))


def subsampled_vae() -> Case:
    """All data are passed, and the plate draws a minibatch of them."""
    encoder, decoder = net(D, 8, 4), net(2, 8, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), subsample_size=N) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x[index])

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=N) as index:
            loc, log_scale = encoder(x[index]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (normals(2 * N, D),))


def cvae() -> Case:
    """Half of an image given the other half, after a first guess; the plate has no size."""
    baseline, prior = net(D, 8, D), net(2 * D, 8, 4)
    recognition, generation = net(2 * D, 8, 4), net(2, 8, D)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("generation", nn.ModuleList([baseline, prior, generation]))
        with pyro.plate("data"):
            guess = baseline(x)
            loc, log_scale = prior(torch.cat([x, torch.sigmoid(guess)], -1)).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            fn = dist.Bernoulli(logits=guess + generation(z))
            pyro.sample("y", fn.to_event(1), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.module("recognition", recognition)
        with pyro.plate("data"):
            loc, log_scale = recognition(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, tuple(bits(N, 2 * D).chunk(2, -1)))


def flow_prior() -> Case:
    """The prior is a normal behind a learned transform."""
    encoder, decoder, transform = net(D, 8, 4), net(2, 8, D), transforms.affine_coupling(2, [4])

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        pyro.module("prior", transform)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [transform]))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (bits(N, D),))


def flow_guide() -> Case:
    """The guide's normal goes through an inverse autoregressive flow, as in the DMM's tutorial."""
    encoder, decoder, flow = net(D, 8, 4), net(2, 8, D), transforms.affine_autoregressive(2, [8])

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            base = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return Case(model, guide, (bits(N, D),))


class _Copula(dist.TorchDistribution):
    """A distribution of one's own, that says nothing of its support."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.base = dist.Normal(loc, 1.0).to_event(1)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Copula:
        return _Copula(self.base.mean.expand(*batch_shape, -1))


def prior_of_ones_own() -> Case:
    encoder, decoder = net(D, 8, 4), net(2, 8, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", _Copula(loc.expand(len(x), 2)))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (bits(N, D),))


class _Topics(nn.Module):
    """A document as a mixture of topics, with batch norm on both sides and dropout before."""

    def __init__(self, words: int, topics: int) -> None:
        super().__init__()
        self.topics = topics
        self.hidden, self.out = nn.Linear(words, 8), nn.Linear(8, 2 * topics)
        self.norm_loc, self.norm_scale = (nn.BatchNorm1d(topics, affine=False) for _ in range(2))
        self.beta = nn.Linear(topics, words, bias=False)
        self.norm = nn.BatchNorm1d(words, affine=False)
        self.dropout = nn.Dropout(0.2)

    def model(self, docs: Tensor) -> None:
        pyro.module("decoder", nn.ModuleList([self.beta, self.norm]))
        with pyro.plate("documents", len(docs)):
            log_theta = pyro.sample(
                "logtheta", dist.Normal(torch.zeros(len(docs), self.topics), 1.0).to_event(1)
            )
            probs = self.norm(self.beta(log_theta.softmax(-1))).softmax(-1)
            total = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total, probs), obs=docs)

    def guide(self, docs: Tensor) -> None:
        pyro.module("encoder", nn.ModuleList([self.hidden, self.out]))
        with pyro.plate("documents", len(docs)):
            hidden = self.dropout(nn.functional.softplus(self.hidden(docs)))
            loc, log_scale = self.out(hidden).chunk(2, -1)
            scale = (0.5 * self.norm_scale(log_scale)).exp()
            pyro.sample("logtheta", dist.Normal(self.norm_loc(loc), scale).to_event(1))


def prodlda() -> Case:
    topics = _Topics(D, 2)
    return Case(topics.model, topics.guide, (counts(N, D),))


def scvi() -> Case:
    """Counts of genes with a code and a library size, both local, and a KL that is annealed."""
    encoder, decoder = net(D, 8, 6), net(2, 8, D)

    def model(x: Tensor, kl_scale: float) -> None:
        pyro.module("decoder", decoder)
        rate = pyro.param("inverse_dispersion", torch.ones(D), dist.constraints.positive)
        with pyro.plate("cells", len(x)), poutine.scale(scale=1.0 / len(x)):
            with poutine.scale(scale=kl_scale):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                size = pyro.sample("l", dist.LogNormal(torch.ones(len(x), 1), 0.5).to_event(1))
            mean = size * decoder(z).softmax(-1)
            pyro.sample("x", dist.GammaPoisson(rate, rate / (mean + 1e-3)).to_event(1), obs=x)

    def guide(x: Tensor, kl_scale: float) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("cells", len(x)), poutine.scale(scale=kl_scale / len(x)):
            out = encoder((1 + x).log())
            pyro.sample("z", dist.Normal(out[:, :2], out[:, 2:4].exp()).to_event(1))
            pyro.sample("l", dist.LogNormal(out[:, 4:5], 0.3 * out[:, 5:].exp()).to_event(1))

    return Case(model, guide, (counts(N, D), 0.5))


def imputation() -> Case:
    """Some data are missing, and the guide draws them."""
    encoder, decoder = net(2, 8, 2), net(1, 8, 1)
    missing = torch.arange(2 * N) % 3 == 0

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            fn = dist.Normal(decoder(z[:, None])[:, 0], 0.5)
            pyro.sample("x", fn, obs=x, obs_mask=~missing)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        filled = torch.where(missing, 0.0, x)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(torch.stack([filled, missing.to(x)], -1)).unbind(-1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()))
            guess = pyro.param("guess", torch.zeros(()))
            fn = dist.Normal(guess + 0.1 * z, 1.0)
            pyro.sample("x_unobserved", fn.mask(missing))

    return Case(model, guide, (normals(2 * N),))


PROGRAMS = [
    Program(
        name="VAE",
        like="Pyro's `vae.py`",
        make=vae,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="VAE, the plate subsampled",
        like="Pyro's SVI tutorial, part II",
        make=subsampled_vae,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="conditional VAE, a plate without a size",
        like="Pyro's `cvae`",
        make=cvae,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="VAE with a flow as prior",
        like="forum and tutorials on normalising flows",
        make=flow_prior,
        stock=Trace_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="VAE with a flow as guide",
        like="the IAF of Pyro's `dmm.py`",
        make=flow_guide,
        stock=Trace_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="VAE with a prior of one's own class",
        like="forum",
        make=prior_of_ones_own,
        stock=Trace_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="ProdLDA, batch norm and dropout",
        like="Pyro's `prodlda` tutorial",
        make=prodlda,
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="counts with a library size, the KL annealed",
        like="scvi-tools, Pyro's `scanvi`",
        make=scvi,
        stock=TraceMeanField_ELBO,
        critic=(D, 3),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
    Program(
        name="missing data, `obs_mask`",
        like="Pyro's imputation with `obs_mask`",
        make=imputation,
        stock=TraceMeanField_ELBO,
        critic=(1, 1),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
    ),
]
