"""The programs, by name, in the order of the table."""

from __future__ import annotations

from benchmarks.flow_harm.program import Program
from benchmarks.flow_harm.programs import (
    autoencoder,
    eight_schools,
    flow_guide,
    funnel,
    gaussian_process,
    normal_mean,
    sparse_gamma,
    topic_model,
    widths,
)

PROGRAMS: dict[str, Program] = {
    program.name: program
    for module in (
        normal_mean,
        widths,
        funnel,
        eight_schools,
        sparse_gamma,
        flow_guide,
        autoencoder,
        topic_model,
        gaussian_process,
    )
    for program in module.PROGRAMS
}
