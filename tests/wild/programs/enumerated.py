"""Discrete latents that are summed out, in the guide or in the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.cevae import CEVAE, TraceCausalEffect_ELBO
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

from tests.halves import Case
from tests.wild.programs.program import N, Program, Refused, Works, bits, net, normals

D, CLASSES = 6, 3
PARALLEL = {"enumerate": "parallel"}


def semi_supervised(*, labelled: bool) -> Case:
    """The M2 model: the guide sums over labels that are not given."""
    label, encoder, decoder = net(D, 8, CLASSES), net(D + CLASSES, 8, 4), net(2 + CLASSES, 8, D)
    labels = torch.eye(CLASSES)[torch.arange(N) % CLASSES] if labelled else None

    def model(x: Tensor, y: Tensor | None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            prior = dist.OneHotCategorical(torch.ones(len(x), CLASSES) / CLASSES)
            y = pyro.sample("y", prior, obs=y)
            z, y = _together(z, y)
            logits = decoder(torch.cat([z, y], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None) -> None:
        pyro.module("encoder", nn.ModuleList([label, encoder]))
        with pyro.plate("data"):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=label(x)))
            loc, log_scale = encoder(torch.cat(_together(x, y), -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    guide = config_enumerate(guide, "parallel", expand=True)
    return Case(model, guide, (bits(N, D), labels))


def scanvi() -> Case:
    """The prior of z2 depends on the label, which the guide sums out after it has drawn z2."""
    middle, decoder = net(2 + CLASSES, 8, 4), net(2, 8, D)
    outer, label, inner = net(D, 8, 4), net(2, 8, CLASSES), net(2 + CLASSES, 8, 4)

    def model(x: Tensor) -> None:
        pyro.module("model", nn.ModuleList([middle, decoder]))
        with pyro.plate("cells", len(x)), poutine.scale(scale=1.0 / len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(CLASSES) / CLASSES))
            loc, log_scale = middle(torch.cat([z1, y], -1)).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z2), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("guide", nn.ModuleList([outer, label, inner]))
        with pyro.plate("cells", len(x)), poutine.scale(scale=1.0 / len(x)):
            loc, log_scale = outer(x).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            y = pyro.sample(
                "y",
                dist.OneHotCategorical(logits=label(z2)),
                infer={"enumerate": "parallel", "expand": True},
            )
            loc, log_scale = inner(torch.cat(_together(z2, y), -1)).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Case(model, guide, (normals(N, D),))


def cevae() -> Case:
    """Pyro's own, whose loss has terms of sites that the guide observes."""
    programs = CEVAE(D, outcome_dist="normal", latent_dim=2, hidden_dim=8, num_layers=2)
    x = normals(N, D)
    treatment = (x[:, 0] > 0).to(x)
    return Case(programs.model, programs.guide, (x, treatment, x[:, 1] + treatment))


def mixture(guide: type[Any]) -> Case:
    """Gaussian mixture with global parameters; assignments are summed out in the model."""

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            k = pyro.sample("assignment", dist.Categorical(weights), infer=PARALLEL)
            pyro.sample("x", dist.Normal(locs[k], scale), obs=x)

    x = normals(12) + torch.where(torch.arange(12) < 5, 2.0, -2.0)
    return _prepared(model, guide, ["weights", "locs", "scale"], x)


def hidden_markov() -> Case:
    """Padded sequences of two tones; the guide has the transition and emission probabilities."""

    def model(x: Tensor, lengths: Tensor) -> None:
        rows = dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1)
        probs_x = pyro.sample("probs_x", rows)
        probs_y = pyro.sample("probs_y", dist.Beta(1.0, 2.0).expand([2, 2]).to_event(2))
        tones = pyro.plate("tones", 2, dim=-1)
        with pyro.plate("sequences", len(x), dim=-2):
            state: Any = 0
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=(t < lengths)[:, None]):
                    state = pyro.sample(f"x_{t}", dist.Categorical(probs_x[state]), infer=PARALLEL)
                    with tones as tone:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[state, tone]), obs=x[:, t])

    args = bits(5, 3, 2), torch.tensor([3, 2, 1, 3, 3])
    return _prepared(model, AutoNormal, ["probs_x", "probs_y"], *args)


def capture_recapture() -> Case:
    """The Cormack-Jolly-Seber model: whether an animal is alive is summed out, year by year."""

    def model(captures: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", len(captures), dim=-1):
            alive = torch.ones(len(captures))
            seen = torch.zeros(len(captures), dtype=torch.bool)
            for t in pyro.markov(range(captures.shape[1])):
                with poutine.mask(mask=seen):
                    fn = dist.Bernoulli(torch.where(seen, alive * phi, 1.0))
                    alive = pyro.sample(f"z_{t}", fn, infer=PARALLEL)
                    pyro.sample(f"y_{t}", dist.Bernoulli(alive * rho), obs=captures[:, t])
                seen = seen | captures[:, t].bool()

    return _prepared(model, AutoDiagonalNormal, ["phi", "rho"], bits(10, 3, seed=2))


def lda() -> Case:
    """Amortised: topics and weights are global, the topics of a document a point of the guide."""
    words, topics, length = 5, 2, 4
    predictor = net(words, 8, topics)

    def model(docs: Tensor) -> None:
        with pyro.plate("topics", topics):
            weights = pyro.sample("topic_weights", dist.Gamma(2.0, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(words) / words))
        with pyro.plate("documents", docs.shape[1]):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(weights))
            with pyro.plate("words", length):
                topic = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=PARALLEL)
                pyro.sample("doc_words", dist.Categorical(topic_words[topic]), obs=docs)

    def guide(docs: Tensor) -> None:
        positive = dist.constraints.positive
        a = pyro.param("topic_weights_posterior", torch.full((topics,), 50.0), positive)
        b = pyro.param("topic_words_posterior", torch.full((topics, words), 50.0), positive)
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(a, 25.0))
            pyro.sample("topic_words", dist.Dirichlet(b))
        pyro.module("predictor", predictor)
        counts = torch.eye(words)[docs].sum(0)
        with pyro.plate("documents", docs.shape[1]):
            doc_topics = predictor(counts).softmax(-1)
            pyro.sample("doc_topics", dist.Delta(doc_topics, event_dim=1))

    docs = torch.arange(length * N).reshape(length, N) * 7 % 11 % words
    return Case(model, guide, (docs,))


def _together(*parts: Tensor) -> tuple[Tensor, ...]:
    """Tensors whose batch shapes have been broadcast, as an enumerated one needs."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return tuple(part.expand(*shape, part.shape[-1]) for part in parts)


def _prepared(model: Any, guide: type[Any], names: list[str], *args: Any) -> Case:
    automatic = guide(poutine.block(model, expose=names))
    automatic(*args)
    return Case(model, automatic, args)


def _by_document(docs: Tensor) -> Tensor:
    return torch.eye(5)[docs].sum(0)


one_plate = partial(TraceEnum_ELBO, max_plate_nesting=1)
two_plates = partial(TraceEnum_ELBO, max_plate_nesting=2)
SUMMED = "If you want to enumerate sites"
GLOBALS = "its latents are outside plates of data"

PROGRAMS = [
    Program(
        name="semi-supervised VAE (M2), labels summed out in the guide",
        like="Pyro's `ss_vae_M2.py`",
        make=partial(semi_supervised, labelled=False),
        stock=one_plate,
        needs_base=True,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(
            {"sites": ["z"]},
            otherwise=r"'y' is not reparameterised.*name others in sites",
            warns=SUMMED,
            against=Trace_ELBO,
        ),
    ),
    Program(
        name="semi-supervised VAE (M2), labelled data",
        like="Pyro's `ss_vae_M2.py`",
        make=partial(semi_supervised, labelled=True),
        stock=TraceMeanField_ELBO,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works({"data": "x"}, otherwise=r"one observed site.*pass data="),
        hamiltonian=Works(),
    ),
    Program(
        name="two codes with a label between them, summed out in the guide",
        like="Pyro's `scanvi`",
        make=scanvi,
        stock=one_plate,
        needs_base=True,
        critic=(D, 4),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(
            {"sites": ["z1", "z2"]},
            otherwise=r"'y' is not reparameterised.*name others in sites",
            warns=SUMMED,
            against=Trace_ELBO,
        ),
    ),
    Program(
        name="causal effects, a loss of its own",
        like="Pyro's `cevae`",
        make=cevae,
        stock=TraceCausalEffect_ELBO,
        needs_base=True,
        critic=(D, 2),
        mmd=Works(),
        infomax=Works({"data": "x"}, otherwise=r"one observed site.*pass data="),
        hamiltonian=Refused(
            r"the guide observes 't'.*hide it by poutine.block",
            "the guide has likelihoods of its own",
        ),
    ),
    Program(
        name="Gaussian mixture, a normal guide",
        like="Pyro's `gmm` tutorial",
        make=partial(mixture, AutoNormal),
        stock=one_plate,
        needs_base=True,
        mmd=Refused(r"no latent is left.*'locs' is in plates.*hold no observed site", GLOBALS),
        infomax=Refused(r"no latent is left.*'locs' is in plates.*hold no observed site", GLOBALS),
        hamiltonian=Works(),
        step_size=0.01,
    ),
    Program(
        name="Gaussian mixture, a point of the parameters",
        like="Pyro's `gmm` tutorial",
        make=partial(mixture, AutoDelta),
        stock=one_plate,
        needs_base=True,
        mmd=Refused(r"no latent is left.*'locs' is in plates.*hold no observed site", GLOBALS),
        infomax=Refused(r"no latent is left.*'locs' is in plates.*hold no observed site", GLOBALS),
        hamiltonian=Refused(
            r"'weights' is a point mass.*as AutoNormal does", "the guide has no density"
        ),
    ),
    Program(
        name="hidden Markov model, padded",
        like="Pyro's `hmm.py`",
        make=hidden_markov,
        stock=two_plates,
        needs_base=True,
        mmd=Refused(r"no latent is left.*'probs_x' is in no plate", GLOBALS),
        infomax=Refused(r"no latent is left.*'probs_x' is in no plate", GLOBALS),
        hamiltonian=Works(),
        step_size=0.01,
    ),
    Program(
        name="capture-recapture",
        like="Pyro's `capture_recapture/cjs.py`",
        make=capture_recapture,
        stock=one_plate,
        needs_base=True,
        mmd=Refused(r"no latent is left.*'phi' is in no plate", GLOBALS),
        infomax=Refused(r"no latent is left.*'phi' is in no plate", GLOBALS),
        hamiltonian=Works(),
        step_size=0.01,
    ),
    Program(
        name="LDA, words summed out in the model",
        like="Pyro's `lda.py`",
        make=lda,
        stock=two_plates,
        needs_base=True,
        critic=(5, 2),
        mmd=Works(),
        infomax=Works({"data": _by_document}, otherwise=r"one observed site.*pass data="),
        hamiltonian=Works(
            {"sites": ["topic_weights", "topic_words"]},
            otherwise=r"'doc_topics' is a point mass.*name others in sites",
        ),
        lr=0.03,
        steps=20,
        step_size=0.005,
    ),
]
