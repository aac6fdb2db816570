"""Objectives side by side with NumPyro's AutoDAIS, Pyro's Trace_MMD and pythae's INFOVAE_MMD.

Same model, data, first weights and budget of gradients. Rivals that are not installed are left out.

    python examples/reproductions/against_rivals.py --quick
    python examples/reproductions/against_rivals.py --quick --backend numpyro
"""

import sys
from collections.abc import Sequence
from functools import partial

from reproduction.options import parse
from reproduction.results import Results
from reproduction.runs import measure_all
from rival_objectives import autoencoders, figures, measures, posteriors, tables
from rival_objectives.measures import Plan, measure_autoencoder, measure_chain, measure_posterior

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
    """Train everything, and write tables and figures."""
    options = parse(NAME, __doc__, argv)
    if options.device != "cpu":
        sys.exit(f"{NAME}.py: error: argument --device: Expected cpu; got {options.device}")
    plan = options.pick(check=CHECK, quick=QUICK, full=FULL)
    measure_each = (
        partial(measure, backend=options.backend, plan=plan)
        for measure in (measure_posterior, measure_chain, measure_autoencoder)
    )
    settings = (
        measures.posterior_settings(plan),
        [{"chain_of": "logistic"}],
        measures.autoencoder_settings(plan, options.backend),
    )
    fits, chain, trainings = (
        measure_all(measure, some, options)
        for measure, some in zip(measure_each, settings, strict=True)
    )
    results = Results(NAME, options, ["numpyro", "pyro-ppl", "pythae"])
    of_posteriors = tables.posteriors(tables.posterior_runs(fits, chain))
    found = results.table("posteriors", of_posteriors)
    results.figure("posteriors", figures.posteriors(found))
    found = results.table("autoencoders", tables.autoencoders(trainings))
    results.figure("autoencoders", figures.autoencoders(found))
    for rival in measures.missing():
        print(f"{rival} is left out: {measures.NEEDS[rival]} is not installed")
    print(f"Saved {results.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
