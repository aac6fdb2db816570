"""From measurements to the two tables."""

import pandas as pd

from reproduction.results import mean_and_spread
from rival_objectives.posteriors import funnel_moments

PER_RUN = ["bound", "bound_se", "evidence", "effective", "step_ms"]
OF_POSTERIORS = [*PER_RUN[:-1], "mean_error", "sd_error", "step_ms"]
OF_AUTOENCODERS = ["log_evidence", "effective", "mmd_squared", "reconstruction", "step_ms", "ratio"]


def posterior_runs(frame: pd.DataFrame, chain: pd.DataFrame) -> pd.DataFrame:
    """A row per training, with the errors of posterior moments, averaged over the latents.

    Args:
        frame: A row per training and latent.
        chain: Mean and standard deviation of every latent of the logistic regression.
    """
    funnel = pd.DataFrame(funnel_moments(), index=["mean", "sd"]).T.rename_axis("latent")
    truths = {"logistic": chain.set_index("latent"), "funnel": funnel}
    truth = pd.concat(
        [table[["mean", "sd"]].assign(problem=problem) for problem, table in truths.items()]
    ).reset_index()
    frame = frame.merge(truth, on=["problem", "latent"], suffixes=("", "_true"))
    frame["mean_error"] = (frame["mean"] - frame["mean_true"]).abs() / frame["sd_true"]
    frame["sd_error"] = (frame["sd"] / frame["sd_true"] - 1).abs()
    keys = ["problem", "num_steps", "method", "seed"]
    return frame.groupby(keys, sort=False)[OF_POSTERIORS].mean().reset_index()


def posteriors(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds."""
    by = ["problem", "num_steps", "method"]
    return mean_and_spread(runs.sort_values([*by, "seed"]), by, OF_POSTERIORS)


def autoencoders(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds; steps also as a ratio to those of ours."""
    ours = frame[(frame["method"] == "TraceMMD_ELBO") & (frame["alpha"] == 0)]
    ours = ours.set_index("seed")["step_ms"]
    frame = frame.assign(ratio=frame["step_ms"] / frame["seed"].map(ours))
    return mean_and_spread(frame, ["alpha", "method"], OF_AUTOENCODERS)
