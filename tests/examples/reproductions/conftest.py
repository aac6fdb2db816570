"""Reproductions cut short spend their time in JAX's compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

BACKENDS = ("pyro", "numpyro")
Check = Callable[..., dict[str, pd.DataFrame]]


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def check(tmp_path: Path, quick_compilation: None) -> Check:
    """Run a reproduction with `--check`: its tables, whose figures are finite."""
    read = pytest.importorskip("reproduction.results").read

    def run(script: Any, backend: str, *more: str) -> dict[str, pd.DataFrame]:
        out = tmp_path / "out"
        options = ["--check", "--jobs", "1", "--backend", backend, "--out", str(out), *more]
        assert script.main(options) == 0
        (made,) = pd.read_csv(out / "made_with.csv").to_dict("records")
        assert f"{script.NAME}.py --check --backend {backend}" in made["command"]
        pictures = list(out.glob("*.png"))
        assert pictures
        assert all(5000 < picture.stat().st_size < 250_000 for picture in pictures)
        tables = {path.stem: read(path) for path in out.glob("*.csv") if path.stem != "made_with"}
        for table in tables.values():
            assert (table["backend"] == backend).all()
            assert np.isfinite(table.select_dtypes("number")).all(axis=None)
        return tables

    return run
