"""A step can be followed: it does not send its reader from file to file."""

from benchmarks.journey import journey
from pyro_infovae import TraceMMD_ELBO


def test_a_step_visits_few_files() -> None:
    files, functions, moves = journey(TraceMMD_ELBO())
    assert functions > 50, "the profile saw nothing"
    assert len(files) <= 10, files
    assert moves <= 60
