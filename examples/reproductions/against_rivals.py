"""Objectives side by side with NumPyro's AutoDAIS, Pyro's Trace_MMD and pythae's INFOVAE_MMD.

Same model, data, first weights and budget of gradients. Rivals that are not installed are left out.

    python examples/reproductions/against_rivals.py --quick
    python examples/reproductions/against_rivals.py --quick --backend numpyro
"""

import sys
from collections.abc import Sequence
from functools import partial

from reproduction.options import parse
from reproduction.page import write_page
from reproduction.runs import measure_all
from rival_objectives import autoencoders, figures, page, posteriors, tables
from rival_objectives.measures import (
    Plan,
    autoencoder_settings,
    measure_autoencoder,
    measure_chain,
    measure_posterior,
    missing,
    posterior_settings,
)

NAME = "against_rivals"
CHECK = Plan(
    posteriors.Plan(steps=2, particles=2, learning_rate=0.02, draws=20, chain=20),
    autoencoders.Plan(steps=2, hidden=8, learning_rate=2e-3, samples=5),
    num_steps=(2,),
    seeds=1,
    problems=("funnel",),
    trainings=((0.0, "TraceMMD_ELBO"), (0.0, "pythae")),
)
QUICK = Plan(
    posteriors.Plan(steps=1200, particles=4, learning_rate=0.02, draws=4000, chain=2000),
    autoencoders.Plan(steps=1000, hidden=128, learning_rate=2e-3, samples=200),
    num_steps=(4, 8, 16),
    seeds=3,
)
FULL = Plan(
    posteriors.Plan(steps=20_000, particles=16, learning_rate=0.01, draws=20_000, chain=10_000),
    autoencoders.Plan(steps=20_000, hidden=256, learning_rate=1e-3, samples=1000),
    num_steps=(4, 8, 16, 32, 64),
    seeds=5,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train everything, and write the page."""
    options = parse(NAME, __doc__, argv)
    if options.device != "cpu":
        sys.exit(f"{NAME}.py: error: argument --device: Expected cpu; got {options.device}")
    plan = options.pick(check=CHECK, quick=QUICK, full=FULL)
    measures = (
        partial(measure, backend=options.backend, plan=plan)
        for measure in (measure_posterior, measure_chain, measure_autoencoder)
    )
    settings = (
        posterior_settings(plan),
        [{"chain_of": "logistic"}],
        autoencoder_settings(plan, options.backend),
    )
    fits, chain, trainings = (
        measure_all(measure, some, options)
        for measure, some in zip(measures, settings, strict=True)
    )
    of_posteriors = tables.posteriors(tables.posterior_runs(fits, chain))
    of_autoencoders = tables.autoencoders(trainings)
    path = write_page(
        NAME,
        options,
        title="Against rivals",
        reported=page.REPORTED,
        found=page.found(of_posteriors, of_autoencoders, missing()),
        reasons=page.reasons(plan),
        tables={
            "posteriors": (of_posteriors, SHOWN_OF_POSTERIORS),
            "autoencoders": (of_autoencoders, SHOWN_OF_AUTOENCODERS),
        },
        figures={
            "posteriors": (
                figures.posteriors(of_posteriors),
                "Bound, and errors of posterior moments, by the number of leapfrog steps; the "
                "dotted line is the log evidence.",
            ),
            "autoencoders": (
                figures.autoencoders(of_autoencoders),
                "Digits under objectives with an MMD; steps are timed against `TraceMMD_ELBO` "
                "with α = 0.",
            ),
        },
        also_used=("numpyro", "pyro-ppl", "pythae"),
    )
    print(path)
    return 0


SHOWN_OF_POSTERIORS = {
    "problem": "",
    "num_steps": "d",
    "method": "",
    "bound": ".2f",
    "bound_sd": ".2f",
    "evidence": ".2f",
    "effective": ".1f",
    "mean_error": ".2f",
    "sd_error": ".2f",
    "step_ms": ".2f",
}
SHOWN_OF_AUTOENCODERS = {
    "alpha": "g",
    "method": "",
    "log_evidence": ".2f",
    "log_evidence_sd": ".2f",
    "effective": ".1f",
    "mmd_squared": ".4f",
    "mmd_squared_sd": ".4f",
    "reconstruction": ".2f",
    "step_ms": ".2f",
    "ratio": ".2f",
}

if __name__ == "__main__":
    sys.exit(main())
