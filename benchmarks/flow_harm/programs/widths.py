"""Posteriors of all widths, from a guide that starts with a scale of 0.1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.flow_harm.program import Case, Framework, Program


def widths(framework: Framework, widths: Sequence[float]) -> Case:
    """Of z ~ N(0, 3 w), from x ~ N(z, w)."""
    ppl, dist = framework.ppl, framework.ppl.distributions
    width = framework.xp.asarray(np.array(widths, np.float32))

    def model() -> None:
        z = ppl.sample("z", dist.Normal(0.0 * width, 3.0 * width).to_event(1))
        ppl.sample("x", dist.Normal(z, width).to_event(1), obs=2.0 * width)

    return Case(model, ppl.infer.autoguide.AutoNormal(model))


PROGRAMS = [
    Program("posterior of width 0.001", partial(widths, widths=[1e-3] * 3), 0.1, 0.001),
    Program("posterior of width 1000", partial(widths, widths=[1e3] * 3), is_cheap=True),
    Program(
        "widths 0.001 to 1000 in one site",
        partial(widths, widths=[1e-3, 1e-2, 0.1, 1.0, 10.0, 1e2, 1e3]),
        0.1,
        0.001,
    ),
]
