"""Neal's funnel, which no normal is like."""

from __future__ import annotations

from benchmarks.flow_harm.program import Case, Framework, Program


def funnel(framework: Framework) -> Case:
    """Of y ~ N(0, 3) and nine x ~ N(0, exp(y / 2)), nothing observed: the evidence is 1."""
    ppl, dist, xp = framework.ppl, framework.ppl.distributions, framework.xp

    def model() -> None:
        y = ppl.sample("y", dist.Normal(0.0, 3.0))
        ppl.sample("x", dist.Normal(xp.zeros(9), xp.exp(y / 2)).to_event(1))

    return Case(model, ppl.infer.autoguide.AutoNormal(model))


PROGRAMS = [Program("Neal's funnel", funnel, is_cheap=True)]
