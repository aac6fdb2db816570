"""The objectives keep the contract of tests/elbo_suite.py, in both halves."""

from tests.objective_suites import (
    FeaturesSuite,
    HamiltonianSuite,
    InfoMaxSuite,
    MMDSuite,
    PosteriorPathSuite,
)


class TestTraceMMD(MMDSuite): ...


class TestFeatures(FeaturesSuite): ...


class TestTraceInfoMax(InfoMaxSuite): ...


class TestTraceHamiltonian(HamiltonianSuite): ...


class TestPosteriorPath(PosteriorPathSuite): ...
