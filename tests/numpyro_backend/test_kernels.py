"""The same kernels as the PyTorch half, which is tested against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import numpyro_backend.kernels as kernels
import pyro_infovae.kernels as twin_kernels
from tests.numpyro_backend.twin_kernels import KERNELS, assert_close

pytestmark = pytest.mark.usefixtures("strict_ranks", "double_precision")


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_equals_the_twin(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)) + 100, rng.normal(size=(5, 3)) + 100
    want = KERNELS[name](twin_kernels)(torch.tensor(x), torch.tensor(y)).numpy()
    assert_close(KERNELS[name](kernels)(jnp.asarray(x), jnp.asarray(y)), want)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "callable"])
def test_repr_is_the_twins(name: str) -> None:
    assert repr(KERNELS[name](kernels)) == repr(KERNELS[name](twin_kernels))


def test_bad_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expected positive, finite lengthscale; got"):
        kernels.RBF(0.0)


def test_adding_what_is_no_radial_kernel_is_an_error() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        kernels.RBF() + 1  # type: ignore[operator]
