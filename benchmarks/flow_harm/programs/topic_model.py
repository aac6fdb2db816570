"""ProdLDA after Pyro's tutorial, in small: batch norm on both sides, dropout before."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks.flow_harm.program import Case, Framework, Program

DOCUMENTS, WORDS, TOPICS, HIDDEN, LENGTH = 200, 40, 4, 32, 60


class ProdLDA(nn.Module):
    """The tutorial's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.hidden = nn.Linear(WORDS, HIDDEN)
        self.loc, self.log_variance = nn.Linear(HIDDEN, TOPICS), nn.Linear(HIDDEN, TOPICS)
        self.loc_norm = nn.BatchNorm1d(TOPICS, affine=False)
        self.log_variance_norm = nn.BatchNorm1d(TOPICS, affine=False)
        self.beta = nn.Linear(TOPICS, WORDS, bias=False)
        self.norm = nn.BatchNorm1d(WORDS, affine=False)

    def model(self, documents: Tensor) -> None:
        """Words from a product of topics."""
        pyro.module("decoder", nn.ModuleList([self.beta, self.norm]))
        with pyro.plate("documents", DOCUMENTS):
            prior = dist.Normal(torch.zeros(DOCUMENTS, TOPICS), 1.0).to_event(1)
            theta = self.drop(pyro.sample("logtheta", prior).softmax(-1))
            words = self.norm(self.beta(theta)).softmax(-1)
            pyro.sample("words", dist.Multinomial(LENGTH, words), obs=documents)

    def guide(self, documents: Tensor) -> None:
        """The topics of a document from its words."""
        encoder = [self.hidden, self.loc, self.log_variance]
        pyro.module("encoder", nn.ModuleList([*encoder, self.loc_norm, self.log_variance_norm]))
        with pyro.plate("documents", DOCUMENTS):
            h = self.drop(nn.functional.softplus(self.hidden(documents)))
            loc, log_variance = (
                self.loc_norm(self.loc(h)),
                self.log_variance_norm(self.log_variance(h)),
            )
            pyro.sample("logtheta", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))


def topics(framework: Framework) -> Case:
    """Documents of two topics or so each."""
    rng = np.random.default_rng(0)
    words = rng.dirichlet(np.full(TOPICS, 0.3), DOCUMENTS)
    words = words @ rng.dirichlet(np.full(WORDS, 0.2), TOPICS)
    documents = torch.as_tensor(rng.multinomial(LENGTH, words), dtype=torch.get_default_dtype())
    network = ProdLDA()
    return Case(network.model, network.guide, (documents,), (network,))


PROGRAMS = [Program("ProdLDA with BatchNorm", topics, lr=0.01, frameworks=("Pyro",))]
