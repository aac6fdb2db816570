"""Examples run as their users run them: in single precision."""

from pathlib import Path

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def single_precision(clean_pyro: None) -> None:
    torch.set_default_dtype(torch.float32)


ELBO_RUN = ["--epochs=1", "--latent-dim=3", "--objectives", "elbo", "elbo"]


@pytest.fixture(scope="session")
def elbo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of the demo under one objective."""
    from compare_objectives import main

    out = tmp_path_factory.mktemp("elbo")
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert main([*ELBO_RUN, f"--out={out}"]) == 0
    torch.set_default_dtype(previous)
    pyro.clear_param_store()
    return out
