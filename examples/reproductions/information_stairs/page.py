"""The page's texts, whose every comparison is taken from the table."""

import math

import pandas as pd

from information_stairs.errors import CEILINGS
from information_stairs.problem import BATCH, DIMS, STAIRS, Plan

LAST = STAIRS[-1]

REPORTED = """\
Poole et al., *On Variational Bounds of Mutual Information*
([arXiv 1905.06922](https://arxiv.org/abs/1905.06922)), and Song and Ermon, *Understanding the
Limitations of Variational Mutual Information Estimators*
([arXiv 1910.06222](https://arxiv.org/abs/1910.06222)), train critics on pairs of correlated
20-dimensional normals, as they are or cubed, in minibatches of 64, while the mutual information
climbs from 2 to 10 nats. They report that NWJ and DV have a variance that grows with the
information, that InfoNCE cannot exceed log 64 = 4.16 nats, that the density ratio of a critic
trained on the Jensen-Shannon divergence may be read out as NWJ, and that clipping that ratio
(SMILE) trades variance for bias."""


def found(table: pd.DataFrame) -> str:
    """What the table says about every claim of the source."""
    return "\n".join(
        f"- {claim}" for claim in (_growth(table), _ceiling(table), _clipping(table), _exact(table))
    )


def reasons(plan: Plan) -> str:
    """Why the figures differ from the source's."""
    return f"""\
The pairs have {DIMS} dimensions, the minibatches {BATCH} rows, and one critic is trained on through
all stairs, as in the source. Each stair has {plan.iterations} steps of Adam at
{plan.learning_rate:g} (the source: 4000 at 0.0005), and a critic has hidden layers of
{" and ".join(map(str, plan.hidden))} units (Song and Ermon's code: three of 256): a critic that has
not yet learned the new stair is the greatest part of the bias here. No gradient is clipped. Every
minibatch is new, so that a step's estimate is one of held-out data; the table is over the second
half of each stair. `exact` is the best critic of each bound, the log ratio of the densities itself
(1 more for `nwj`): what is off there is the bound's own doing. `smile` is clipped at 5 and read off
the critics that `js` trains. With `all`, the negatives are all other rows of the minibatch; with
`shift`, every row has one, which lowers the ceiling of `infonce` to log 2 =
{CEILINGS["shift"]:.2f} nats."""


def _growth(table: pd.DataFrame) -> str:
    clauses = []
    for bound in ("nwj", "dv"):
        for critic in _trained(table):
            first, last = (_cell(table, critic, bound, "sd", at) for at in (STAIRS[0], LAST))
            verb = "grows" if last > first else "does not grow"
            clauses.append(
                f"`{bound}` with a {critic} critic {verb} ({first:.2f} to {last:.2f} nats)"
            )
    return f"The standard deviation from {STAIRS[0]:g} to {LAST:g} nats: {', '.join(clauses)}."


def _ceiling(table: pd.DataFrame) -> str:
    chosen = table[table["bound"] == "infonce"]
    highest = chosen.groupby("negatives")["estimate"].max()
    clauses = [
        f"{highest[negatives]:.2f} of at most {CEILINGS[negatives]:.2f} nats with `{negatives}`"
        for negatives in highest.index
    ]
    stays = all(highest[negatives] <= CEILINGS[negatives] for negatives in highest.index)
    verb = "stays below" if stays else "exceeds"
    return f"`infonce` {verb} its ceiling: its highest mean is {' and '.join(clauses)}."


def _clipping(table: pd.DataFrame) -> str:
    clauses = []
    for critic in _trained(table):
        smile, js = (_cell(table, critic, bound, "sd", LAST) for bound in ("smile", "js"))
        verb = "lowers" if smile < js else "does not lower"
        bias = _cell(table, critic, "smile", "bias", LAST)
        clauses.append(
            f"of the {critic} critic it {verb} the standard deviation ({js:.2f} to {smile:.2f} "
            f"nats), at a bias of {bias:+.2f}"
        )
    smallest = table[(table["negatives"] == "all") & (table["pairs"] == "normal")]
    smallest = smallest[(smallest["information"] == LAST) & (smallest["critic"] != "exact")]
    best = smallest.loc[smallest["rmse"].idxmin()]
    return (
        f"Clipping at {LAST:g} nats: {'; '.join(clauses)}. The smallest RMSE there, "
        f"{best['rmse']:.2f} nats, is that of `{best['bound']}` with a {best['critic']} critic."
    )


def _exact(table: pd.DataFrame) -> str:
    bias = {b: _cell(table, "exact", b, "bias", LAST) for b in ("nwj", "infonce", "smile")}
    sd = _cell(table, "exact", "nwj", "sd", LAST)
    variance_bound = math.sqrt(math.expm1(LAST) / (BATCH * (BATCH - 1)))
    listed = ", ".join(f"`{bound}` {value:+.2f}" for bound, value in bias.items())
    return (
        f"The exact ratio at {LAST:g} nats has the bias {listed}; `nwj`'s standard deviation is "
        f"{sd:.2f}. Independent negatives as many as the pairs of a minibatch would make it at "
        f"least {variance_bound:.2f}; most of it is in minibatches so rare that a measurement "
        "misses them."
    )


def _trained(table: pd.DataFrame) -> list[str]:
    """The critics with something to say about normal pairs and all other rows as negatives."""
    chosen = table[(table["pairs"] == "normal") & (table["negatives"] == "all")]
    return [critic for critic in chosen["critic"].unique() if critic != "exact"]


def _cell(table: pd.DataFrame, critic: str, bound: str, error: str, information: float) -> float:
    """One number of the table: normal pairs, all other rows as negatives."""
    chosen = table[
        (table["pairs"] == "normal")
        & (table["negatives"] == "all")
        & (table["critic"] == critic)
        & (table["bound"] == bound)
        & (table["information"] == information)
    ]
    return float(chosen[error].item())
