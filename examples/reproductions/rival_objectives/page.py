"""The page's texts, whose every comparison is taken from the tables."""

import pandas as pd

from rival_objectives.autoencoders import BATCH, LAMBD, LATENTS, PARTICLES
from rival_objectives.measures import MANY, NEEDS, Plan
from rival_objectives.posteriors import FEATURES, INIT_SCALE, MAX_STEP_SIZE, ROWS, STEP_SIZE
from rival_objectives.tables import lead

REPORTED = """\
Nothing: these comparisons are our own. The rivals are NumPyro's `AutoDAIS` (differentiable annealed
importance sampling, or uncorrected Hamiltonian annealing), which as `TraceHamiltonian_ELBO` moves a
guide's draws by Hamiltonian steps, but through distributions between guide and posterior; Pyro's
own `Trace_MMD`; and pythae's `INFOVAE_MMD`."""


def found(posteriors: pd.DataFrame, autoencoders: pd.DataFrame, absent: list[str]) -> str:
    """What the tables say, and which rivals are not in them."""
    claims = [
        *(_flow(rows) for _, rows in posteriors.groupby(["problem", "num_steps"], sort=False)),
        *_mmd(autoencoders),
        *(f"{rival} is missing: {NEEDS[rival]} is not installed." for rival in absent),
    ]
    return "\n".join(f"- {claim}" for claim in claims)


def reasons(plan: Plan) -> str:
    """What is matched, and what is not."""
    return f"{_matched_flows(plan)}\n\n{_matched_mmd(plan)}\n\n{_spread_over(plan)}"


def _matched_flows(plan: Plan) -> str:
    guides = plan.posteriors
    return f"""\
**Flows.** `logistic` is a logistic regression of {ROWS} rows on {FEATURES} correlated features and
an intercept, the size of the sonar data, with made-up data and standard normal priors; `funnel` is
Neal's, of 10 dimensions, whose log evidence is 0. All guides begin as the same independent normals
(scale {INIT_SCALE:g}) and take {guides.steps} steps of Adam, with a learning rate from
{guides.learning_rate:g} to a 30th of it. Both flows learn their temperatures and step sizes, from
{STEP_SIZE:g} and up to {MAX_STEP_SIZE:g}: `TraceHamiltonian_ELBO` (`tempering="free"`,
`per_step=True`) a step size per dimension and step, `AutoDAIS` one that is linear in the
temperature, and a mass per dimension. The rest is left at the defaults. A training step of either
takes {guides.particles} draws of K + 1 gradients of the log joint (`AutoDAIS`: K of them in the
flow); one of `AutoNormal` under `Trace_ELBO` takes K + 1 times as many draws. `bound` is the mean
of log w over {guides.draws} fresh draws; `evidence` is log E[w] of the same draws, and not to be
believed where `effective`, their effective sample size, is small. `mean_error` is the error of the
posterior mean in posterior standard deviations, `sd_error` the relative one of the standard
deviation, both averaged over the latents. The truth is a chain of {guides.chain} draws of NUTS, and
for the funnel its known moments."""


def _matched_mmd(plan: Plan) -> str:
    vaes = plan.autoencoders
    return f"""\
**MMD.** One autoencoder of binary 8 × 8 digits ({LATENTS} latents, {vaes.hidden} hidden units),
from the same weights, with the same minibatches of {BATCH} and {vaes.steps} steps of Adam at
{vaes.learning_rate:g}; λ = {LAMBD:g}. With `kernel_choice="rbf"` and `kernel_bandwidth=1`, pythae's
loss is that of `TraceMMD_ELBO` divided by N, which makes no difference to Adam. It is trained in a
plain loop, without pythae's trainer. `Trace_MMD` has no KL (α = 1) and compares particles with one
another, each the codes of a whole minibatch side by side, and not the codes of the data: it pulls
every q(z|x) towards the prior, by a biased estimate. Its kernel has the lengthscale √d with its own
d = {BATCH * LATENTS}, its `mmd_scale` is N λ, and it runs with its default of {PARTICLES}
particles, which `{MANY}` takes too. MMD² (unbiased, against fresh draws of the prior), log p(x)
({vaes.samples} importance samples, of which `effective` count) and reconstruction are of held-out
images, in nats per image, and computed alike for all. `ratio` is the time of a step against that of
`TraceMMD_ELBO` with α = 0. Rivals run eagerly, as do ours with Pyro where not `compiled`, which is
`CompiledSVI`; with NumPyro ours are compiled by JAX."""


def _spread_over(plan: Plan) -> str:
    seeds = "one seed" if plan.seeds == 1 else f"{plan.seeds} seeds"
    return f"""\
Means and `_sd` are over {seeds}; means are level within two standard errors of their difference."""


def _flow(rows: pd.DataFrame) -> str:
    rows = rows.set_index("method")
    ours = rows.loc["TraceHamiltonian_ELBO"]
    others = [method for method in ("AutoDAIS", "AutoNormal") if method in rows.index]
    clauses = [
        f"{lead(ours, rows.loc[method], 'bound')} `{method}`'s "
        f"{rows.loc[method, 'bound']:.2f} ± {_spread(rows.loc[method])}"
        for method in others
    ]
    errors = rows["sd_error"].sort_values()
    listed = ", ".join(f"`{method}` {error:.2f}" for method, error in errors.items())
    return (
        f"{ours['problem']}, K = {ours['num_steps']}: the bound of `TraceHamiltonian_ELBO`, "
        f"{ours['bound']:.2f} ± {_spread(ours)}, is {' and '.join(clauses)}. "
        f"Relative errors of the posterior's standard deviations: {listed}."
    )


def _mmd(table: pd.DataFrame) -> list[str]:
    rows = {(row["alpha"], row["method"]): row for _, row in table.iterrows()}
    pairs = [
        ((0.0, "pythae"), (0.0, "TraceMMD_ELBO")),
        ((1.0, "pythae"), (1.0, "TraceMMD_ELBO")),
        ((1.0, "Trace_MMD"), (1.0, "TraceMMD_ELBO")),
        ((1.0, "Trace_MMD"), (1.0, MANY)),
    ]
    return [_pair(rows[ours], rows[rival]) for rival, ours in pairs if rival in rows]


def _pair(ours: pd.Series, rival: pd.Series) -> str:
    return (
        f"α = {ours['alpha']:g}: log p(x) under `{ours['method']}`, {ours['log_evidence']:.2f}, is "
        f"{lead(ours, rival, 'log_evidence')} `{rival['method']}`'s {rival['log_evidence']:.2f}; "
        f"MMD², {ours['mmd_squared']:.4f}, is {lead(ours, rival, 'mmd_squared')} "
        f"{rival['mmd_squared']:.4f}; a step of `{rival['method']}` takes "
        f"{rival['step_ms'] / ours['step_ms']:.2f} times as long."
    )


def _spread(row: pd.Series) -> str:
    return f"{row['bound_sd']:.2f}" if row["seeds"] > 1 else f"{row['bound_se']:.2f}"
