"""Programs of scalar latents, and programs under a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import data_programs
from tests.halves import Case, Half
from tests.shared_programs import X


def hierarchical(half: Half, *, x: np.ndarray = X, exact: bool = False) -> Case:
    return Case(*data_programs.hierarchical(half, exact=exact), (half.xp.asarray(x),))


def two_latents(half: Half, *, exact: bool = False) -> Case:
    return Case(*data_programs.two_latents(half, exact=exact), (half.xp.asarray(X),))


def covariate_prior(half: Half, *, exact: bool = False) -> Case:
    return Case(*data_programs.covariate_prior(half, exact=exact), (half.xp.asarray(X),))


def masked(half: Half, case: Case, mask: np.ndarray, *, programs: str = "both") -> Case:
    """The programs, or one of them, under a mask."""

    def under(program: Any) -> Any:
        def run(*args: Any) -> None:
            with half.mask(mask):
                program(*args)

        return run

    names = ("model", "guide") if programs == "both" else (programs,)
    return case._replace(**{name: under(getattr(case, name)) for name in names})
