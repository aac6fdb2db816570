"""A prior of the user's own that tells of no support, as a flow prior does."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpyro
import pyro
import pytest

from tests.halves import Case, Half
from tests.numpyro_backend.half import NUMPYRO
from tests.objectives.alone import in_pyro, slow_in_numpyro

X = np.array([[0.5, -1.0], [1.5, 0.2], [0.0, 0.3]])


class PyroPrior(pyro.distributions.TorchDistribution):
    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, base: Any) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def log_prob(self, value: Any) -> Any:
        return self.base.log_prob(value)

    def rsample(self, shape: Any = ()) -> Any:
        return self.base.rsample(shape)

    def expand(self, shape: Any, _: Any = None) -> Any:
        return type(self)(self.base.expand(shape))


class NumPyroPrior(numpyro.distributions.Distribution):
    reparametrized_params: ClassVar[list[str]] = []

    def __init__(self, base: Any) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def log_prob(self, value: Any) -> Any:
        return self.base.log_prob(value)

    def sample(self, key: Any, sample_shape: Any = ()) -> Any:
        return self.base.sample(key, sample_shape)

    def expand(self, shape: Any) -> Any:
        return type(self)(self.base.expand(shape))


def programs(half: Half, prior: Any) -> Case:
    x = half.xp.asarray(X)

    def model() -> None:
        with half.plate("data", 3):
            z = half.sample("z", prior(half.dist.Normal(0 * x[0], 1.0).to_event(1)))
            half.sample("x", half.dist.Normal(z, 0.7).to_event(1), obs=x)

    def guide() -> None:
        loc = half.param("loc", np.zeros(2))
        with half.plate("data", 3):
            half.sample("z", half.dist.Normal(loc + 0 * x, 0.9).to_event(1))

    return Case(model, guide)


@slow_in_numpyro
def test_the_support_is_the_reals(half: Half) -> None:
    unknown = NumPyroPrior if half is NUMPYRO else PyroPrior
    flow = half.library.TraceHamiltonian_ELBO(2, 0.1, learn=False)
    plain, custom = (half.loss(flow, programs(half, prior)) for prior in (lambda x: x, unknown))
    assert custom == pytest.approx(plain, rel=1e-12)


@in_pyro
def test_a_support_that_no_transform_reaches_is_named(half: Half) -> None:
    class OnTheLattice(PyroPrior):
        support = half.dist.constraints.integer_interval(0, 3)

    with pytest.raises(
        NotImplementedError, match=r"Site 'z' has the support .*name others in sites"
    ):
        half.loss(
            half.library.TraceHamiltonian_ELBO(path="posterior"), programs(half, OnTheLattice)
        )
