"""What log_evidence refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array

from tests.numpyro_backend import programs
from tests.numpyro_backend.evidence_programs import run
from tests.numpyro_backend.programs import Programs

pytestmark = pytest.mark.usefixtures("quick_double_precision")


def _global_latent() -> Programs:
    def model(x: Array) -> None:
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 12, subsample_size=4) as index:
            numpyro.sample("x", dist.Normal(theta, 1.0), obs=jnp.asarray(x)[index, 0])

    def guide(x: Array) -> None:
        numpyro.sample("theta", dist.Normal(0.0, 1.0))

    return Programs(model, guide, (programs.data(),))


def _point_mass(x: Array) -> None:
    with numpyro.plate("data", 12):
        numpyro.sample("z", dist.Delta(numpyro.param("loc", jnp.zeros((12, 2)))).to_event(1))


def _laplace(x: Array) -> None:
    joint = dist.Delta(jnp.zeros(24), event_dim=1)
    z = numpyro.sample("all", joint, infer={"is_auxiliary": True})
    numpyro.sample("z", dist.Delta(z.reshape(12, 2), jnp.zeros(12), event_dim=1))


def _guided_by(guide: Callable[..., None]) -> Programs:
    case = programs.vae()

    def both(x: Array) -> None:
        case.guide(x)
        guide(x)

    return Programs(case.model, both, case.args)


REFUSED: dict[str, tuple[Programs, dict[str, Any], str]] = {
    "one draw": (programs.vae(), {"num_samples": 1}, "num_samples >= 2; got 1"),
    "no chunk": (programs.vae(), {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "global latent": (
        _global_latent(),
        {},
        "plate 'data' is subsampled, but site 'theta' is outside of it.*whole plate",
    ),
    "point mass": (
        programs.vae()._replace(guide=_point_mass),
        {},
        "'z' is a point mass.*AutoNormal",
    ),
    "point mass of all": (
        programs.vae()._replace(guide=_laplace),
        {},
        "'all' is a point mass.*AutoNormal",
    ),
    "not drawn": (
        programs.vae()._replace(guide=lambda x: None),
        {},
        "'z' is a latent of the model that the guide does not draw",
    ),
    "no latent": (
        _guided_by(lambda x: numpyro.sample("w", dist.Normal(0.0, 1.0))),
        {},
        "the guide draws 'w', which is no latent of the model",
    ),
    "observing guide": (
        _guided_by(lambda x: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=x)),
        {},
        "guide observes 'x'.*AutoGuide",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_log_evidence_refuses(case: Programs, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(case, **settings)
