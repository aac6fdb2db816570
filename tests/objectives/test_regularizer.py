"""A regulariser of the user's, added to either penalised objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import LOOPED, ONE, VECTORISED
from tests.halves import Half
from tests.objectives.alone import in_both, slow_in_numpyro
from tests.shared_programs import MASK, MINIBATCH, X, critic, nested, vae

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "mmd": lambda half, **kw: half.library.TraceMMD_ELBO(0.0, 1.0 + 1e-9, **kw),
    "infomax": lambda half, **kw: half.library.TraceInfoMax_ELBO(critic(half), 0.0, **kw),
}
PARTICLES = {"one": ONE, "looped": LOOPED, "vectorised": VECTORISED}
pytestmark = [
    pytest.mark.filterwarnings("ignore:TraceInfoMax_ELBO estimates mutual information"),
    pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES),
]


@in_both("name", PARTICLES, quick=["vectorised"])
def test_sees_the_rows(half: Half, objective: Callable[..., Any], name: str) -> None:
    particles = PARTICLES[name]
    log, sizes = list[Any](), list[Any]()

    def keep(rows: Any) -> Any:
        (z,) = rows.latents.values()
        log.append((z, rows.values, rows.data["x"], rows.weights))
        sizes.append((list(rows.latents), rows.batch_size, rows.num_data))
        return 0.0 * rows.values.sum()

    elbo = objective(half, regularizer=keep, **particles)
    (((z, values, data, weights),),) = half.seen(log, elbo, vae(half, mask=MASK))
    draws = particles.get("num_particles", 1)
    assert sizes[-1] == (["z"], 12, 12)
    assert z.shape == (12 * draws, 2)
    np.testing.assert_array_equal(values, z)
    np.testing.assert_array_equal(data, np.tile(np.where(MASK[:, None], X, 0.0), (draws, 1)))
    np.testing.assert_array_equal(weights, np.tile(MASK, draws))


@slow_in_numpyro
def test_adds_its_weight_of_what_it_gives(half: Half, objective: Callable[..., Any]) -> None:
    """It knows the size of the data set, and of the minibatch."""
    base = half.infer.Trace_ELBO()
    elbo = objective(
        half,
        regularizer=lambda rows: half.xp.asarray(1.0 * rows.num_data + rows.batch_size / 100),
        regularizer_weight=0.5,
        base=base,
    )
    (value,) = half.above(base, [elbo], vae(half, index=MINIBATCH))
    assert value == pytest.approx(0.5 * 12.05, abs=1e-4)


def test_each_group_is_regularised(half: Half, objective: Callable[..., Any]) -> None:
    kept = list[Any]()

    def keep(rows: Any) -> Any:
        kept.extend(rows.latents)
        return 0.0 * rows.values.sum()

    is_infomax = objective is OBJECTIVES["infomax"]
    sites = ["z"] if is_infomax else None
    half.evaluate(objective(half, regularizer=keep, sites=sites), nested(half))
    assert kept == (["z"] if is_infomax else ["outer", "z"])


@slow_in_numpyro
def test_its_gradient_is_that_of_the_penalty_it_computes(
    half: Half, objective: Callable[..., Any]
) -> None:
    """A decorrelation of the code and of code and data, against a finite difference."""

    def regularizer(rows: Any) -> Any:
        z = rows.values - rows.values.mean(0)
        between = abs(z.T @ rows.data["x"]).sum()
        return 12 * ((z[:, 0] * z[:, 1]).mean() ** 2 + between)

    settings = {"regularizer": regularizer, "regularizer_weight": 2.5}
    base = half.infer.Trace_ELBO()
    ours = objective(half, **settings, base=base)
    case = vae(half, index=MINIBATCH)
    assert abs(half.above(base, [ours], case)[0]) > 1
    for name, (gradient, slope) in half.slopes(ours, case).items():
        if not name.startswith("critic"):
            assert gradient == pytest.approx(slope, rel=1e-5), name


@pytest.mark.parametrize("shape", ["(12, 2)", "(1,)"])
def test_must_give_a_scalar(half: Half, objective: Callable[..., Any], shape: str) -> None:
    given = {"(12, 2)": lambda rows: rows.values, "(1,)": lambda rows: half.xp.zeros(1)}[shape]
    elbo = objective(half, regularizer=given)
    with pytest.raises(ValueError, match=r"regularizer\(rows\) to be a scalar; got") as error:
        half.evaluate(elbo, vae(half))
    assert f"shape {shape} for the rows of ['z']" in str(error.value)
