"""The mean of normal data, whose posterior is narrower than the guide's start by up to 10."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.flow_harm.program import Case, Framework, Program


def normal_mean(framework: Framework, rows: int) -> Case:
    """Of mu ~ N(0, 1), from x ~ N(mu, 1)."""
    ppl, dist = framework.ppl, framework.ppl.distributions
    data = np.random.default_rng(0).normal(0.5, 1.0, rows)
    x = framework.xp.asarray(data.astype(np.float32))

    def model() -> None:
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        with ppl.plate("data", rows):
            ppl.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Case(model, ppl.infer.autoguide.AutoNormal(model))


PROGRAMS = [
    Program(f"normal mean, n = {rows}", partial(normal_mean, rows=rows), is_cheap=rows > 10)
    for rows in (10, 100, 1000, 10_000)
]
