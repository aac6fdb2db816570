"""Examples run as their users run them: in single precision."""

import pytest
import torch


@pytest.fixture(autouse=True)
def single_precision(clean_pyro: None) -> None:
    torch.set_default_dtype(torch.float32)
