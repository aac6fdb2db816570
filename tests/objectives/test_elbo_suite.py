"""The objectives keep the contract of tests/elbo_suite.py, in both halves."""

from tests.objective_suites import HamiltonianSuite, InfoMaxSuite, MMDSuite, PosteriorPathSuite


class TestTraceMMD(MMDSuite): ...


class TestTraceInfoMax(InfoMaxSuite): ...


class TestTraceHamiltonian(HamiltonianSuite): ...


class TestPosteriorPath(PosteriorPathSuite): ...
