"""Gaussian processes of ``pyro.contrib.gp``, in small."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch

from benchmarks.flow_harm.program import Case, Framework, Program


def gplvm(framework: Framework) -> Case:
    """Latent inputs (20, 2) of eight outputs, after the tutorial."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(20, 2))
    outputs = np.sin(hidden @ rng.normal(size=(2, 8))) + 0.1 * rng.normal(size=(20, 8))
    y = torch.as_tensor(outputs.T, dtype=torch.get_default_dtype())
    prior = torch.zeros(20, 2)
    prior[:, 0] = torch.as_tensor(hidden[:, 0])
    kernel = gp.kernels.RBF(2, lengthscale=torch.ones(2))
    inducing = prior[:6] + 0.1 * torch.randn(6, 2)
    process = gp.models.SparseGPRegression(
        prior.clone(), y, kernel, inducing, noise=torch.tensor(0.05), jitter=1e-4
    )
    process.X = pyro.nn.PyroSample(dist.Normal(prior, 1.0).to_event())
    process.autoguide("X", dist.Normal)
    return Case(process.model, process.guide)


def sparse_process(framework: Framework, kind: str) -> Case:
    """A variational sparse process of forty points, with eight inducing ones."""
    rng = np.random.default_rng(0)
    inputs = np.linspace(-3, 3, 40)
    if kind == "Gaussian":
        outputs = np.sin(2 * inputs) + 0.2 * rng.normal(size=40)
        likelihood = gp.likelihoods.Gaussian()
    else:
        outputs = rng.random(40) < 1 / (1 + np.exp(-4 * np.sin(2 * inputs)))
        likelihood = gp.likelihoods.Binary()
    x, y = (torch.as_tensor(a, dtype=torch.get_default_dtype()) for a in (inputs, outputs))
    process = gp.models.VariationalSparseGP(
        x, y, gp.kernels.RBF(1), x[::5].clone(), likelihood, whiten=True, jitter=1e-4
    )
    return Case(process.model, process.guide)


PROGRAMS = [
    Program("GPLVM", gplvm, lr=0.02, frameworks=("Pyro",)),
    Program("VSGP, Gaussian", partial(sparse_process, kind="Gaussian"), frameworks=("Pyro",)),
    Program("VSGP, binary", partial(sparse_process, kind="Binary"), frameworks=("Pyro",)),
]
