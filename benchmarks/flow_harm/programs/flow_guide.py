"""Logistic regression by a guide that is a normalizing flow, after Pyro's tutorial, in small."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.flow_harm.program import Case, Framework, Program


def regression(framework: Framework, guide: str) -> Case:
    """Two features that are nearly the same, so that the posterior is a narrow ridge."""
    ppl, dist, xp = framework.ppl, framework.ppl.distributions, framework.xp
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(100, 1))
    data = np.concatenate([feature, feature + 0.1 * rng.normal(size=(100, 1))], 1)
    labels = rng.random(100) < 1 / (1 + np.exp(-data.sum(-1)))
    x, y = (xp.asarray(array.astype(np.float32)) for array in (data, labels))

    def model() -> None:
        w = ppl.sample("w", dist.Normal(xp.zeros(2), 10.0).to_event(1))
        with ppl.plate("data", 100):
            ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return Case(model, getattr(ppl.infer.autoguide, guide)(model))


PROGRAMS = [
    Program("flow guide, AutoIAFNormal", partial(regression, guide="AutoIAFNormal"), 0.01),
    Program("the same by AutoNormal", partial(regression, guide="AutoNormal"), is_cheap=True),
]
