"""Eight schools: an effect each below a mean and a scale of all."""

from __future__ import annotations

import numpy as np

from benchmarks.flow_harm.program import Case, Framework, Program

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


def centred(framework: Framework) -> Case:
    """Effects N(mu, tau)."""
    ppl, dist = framework.ppl, framework.ppl.distributions
    effects, errors = map(framework.xp.asarray, (EFFECTS, ERRORS))

    def model() -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        with ppl.plate("schools", 8):
            theta = ppl.sample("theta", dist.Normal(mu, tau))
            ppl.sample("y", dist.Normal(theta, errors), obs=effects)

    return Case(model, ppl.infer.autoguide.AutoNormal(model))


def not_centred(framework: Framework) -> Case:
    """Effects mu + tau eta, eta ~ N(0, 1)."""
    ppl, dist = framework.ppl, framework.ppl.distributions
    effects, errors = map(framework.xp.asarray, (EFFECTS, ERRORS))

    def model() -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        with ppl.plate("schools", 8):
            eta = ppl.sample("eta", dist.Normal(0.0, 1.0))
            ppl.sample("y", dist.Normal(mu + tau * eta, errors), obs=effects)

    return Case(model, ppl.infer.autoguide.AutoNormal(model))


PROGRAMS = [
    Program("eight schools, centred", centred, is_cheap=True),
    Program("eight schools, not centred", not_centred, is_cheap=True),
]
