"""What the old loss did for a program: kept by ``base=``, and missed where that can be seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.contrib.cevae import TraceCausalEffect_ELBO
from pyro.infer import Trace_ELBO

from pyro_infovae import TraceMMD_ELBO
from tests.elbo_suite import assert_same_step
from tests.halves import Case, Half
from tests.objectives.alone import in_pyro
from tests.pyro_infovae.half import PYRO

X = np.random.default_rng(0).normal(size=6)
MARKED = {"enumerate": "parallel"}


def mixture(half: Half, *, marked: str) -> Case:
    """y in the guide or in the model alone, marked there to be enumerated."""
    x = half.xp.asarray(X)
    in_guide = marked == "guide"

    def model() -> None:
        with half.plate("data", 6):
            infer = {} if in_guide else MARKED
            y = half.sample("y", half.dist.Bernoulli(0.4 + 0 * x), infer=infer)
            z = half.sample("z", half.dist.Normal(0 * x, 1.0))
            half.sample("x", half.dist.Normal(z + y, 1.0), obs=x)

    def guide() -> None:
        with half.plate("data", 6):
            if in_guide:
                half.sample("y", half.dist.Bernoulli(0.3 + 0 * x), infer=MARKED)
            half.sample("z", half.dist.Normal(half.param("m", 0.5) * x, 0.8))

    return Case(model, guide)


@pytest.mark.filterwarnings("ignore:(?s).*If you want to enumerate:UserWarning")
@pytest.mark.parametrize("marked", ["guide", "model"])
def test_a_base_that_does_not_enumerate_is_warned_of(half: Half, marked: str) -> None:
    case = mixture(half, marked=marked)
    match = r"latents \['y'\] are marked to be enumerated.*use base=TraceEnum_ELBO\(\.\.\.\)"
    with pytest.warns(UserWarning, match=match):
        half.evaluate(half.library.TraceMMD_ELBO(0.0, 2.0), case)


@in_pyro
def test_the_base_that_the_warning_names_is_not(half: Half) -> None:
    base = half.infer.TraceEnum_ELBO(max_plate_nesting=1)
    for marked in ("guide", "model"):
        inner = half.library.TraceMMD_ELBO(0.0, 2.0, base=base)
        half.evaluate(
            half.library.TraceMMD_ELBO(0.0, 2.0, base=inner), mixture(half, marked=marked)
        )


def test_it_is_said_once(half: Half) -> None:
    case, objective = mixture(half, marked="model"), half.library.TraceMMD_ELBO(0.0, 2.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            half.evaluate(objective, case)
    assert sum("marked to be enumerated" in str(each.message) for each in caught) == 1


def cevae_like() -> Case:
    """z, treatment t and outcome y; the guide predicts t and y where it observes them."""
    x = torch.as_tensor(X)
    t, y = (x > 0).double(), torch.sin(3 * x)
    normal, bernoulli = pyro.distributions.Normal, pyro.distributions.Bernoulli

    def model() -> None:
        with pyro.plate("data", 6):
            z = pyro.sample("z", normal(torch.zeros(6), 1.0))
            pyro.sample("x", normal(z, 0.5), obs=x)
            pyro.sample("t", bernoulli(logits=z), obs=t)
            pyro.sample("y", normal(z + t, 0.7), obs=y)

    def guide() -> None:
        effect = pyro.param("effect", torch.tensor(0.3))
        infer = {"is_auxiliary": True}
        with pyro.plate("data", 6):
            treated = pyro.sample("t", bernoulli(logits=effect * x), obs=t, infer=infer)
            pyro.sample("y", normal(effect + treated, 1.0), obs=y, infer=infer)
            pyro.sample("z", normal(effect * (x + y), 0.8))

    return Case(model, guide)


def neutral(**settings: Any) -> TraceMMD_ELBO:
    with pytest.warns(UserWarning, match=r"a weight of alpha \+ lambd - 1 = 0"):
        return TraceMMD_ELBO(lambd=1.0, **settings)


LOSSES: list[Callable[[], Any]] = [
    TraceCausalEffect_ELBO,
    lambda: neutral(base=TraceCausalEffect_ELBO()),
]


def test_a_loss_of_the_programs_own_is_kept_as_the_base() -> None:
    stock, ours = PYRO.steps([make() for make in LOSSES], cevae_like())
    assert_same_step(ours, stock, own_parameters=set())


def test_without_it_the_terms_that_it_adds_are_lost() -> None:
    """What the guide says of t and y counts with the other sign."""
    elbos = [*(make() for make in LOSSES), neutral(base=Trace_ELBO())]
    _, kept, lost = PYRO.losses(elbos, cevae_like(), count=1)[:, 0]
    t = X > 0
    log_q = np.where(t, -np.log1p(np.exp(-0.3 * X)), -np.log1p(np.exp(0.3 * X))).sum()
    log_q += (-0.5 * (np.sin(3 * X) - 0.3 - t) ** 2 - 0.5 * math.log(2 * math.pi)).sum()
    assert lost - kept == pytest.approx(2 * log_q, rel=1e-9)
