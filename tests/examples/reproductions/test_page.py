"""The page of a reproduction says how to write it again."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("reproduction.page")
from reproduction.options import parse
from reproduction.page import provenance


@pytest.mark.parametrize("data", ["", "--data-dir DIR"])
@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_the_command_is_given_whole(tmp_path: Path, backend: str, data: str) -> None:
    argv = ["--full", "--backend", backend, *data.replace("DIR", str(tmp_path)).split()]
    options = parse("infovae", None, argv, data_dir="folder")
    command = f"python examples/reproductions/infovae.py --full --backend {backend} {data}".strip()
    assert f"`{command}`" in provenance("infovae", options)
    assert str(tmp_path) not in provenance("infovae", options)
