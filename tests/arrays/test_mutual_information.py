"""Bounds against plain loops and known truths in torch; JAX has the same values and gradients."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import Tensor

import numpyro_backend.mutual_information as numpyros
import pyro_infovae.mutual_information as pyros
from pyro_infovae.mutual_information import BOUNDS, dv, get_bound, infonce, js, nwj, smile
from tests import reference_mi
from tests.arrays.libraries import JAX, TORCH, Derivatives, Library, assert_agree

NAMES = list(BOUNDS)
ROWS, NEGATIVES = 6, 4
LAYOUTS_AND_WEIGHTS = [
    ("shift", "none"),
    ("all", "none"),
    ("all", "fractions"),
    ("shift", "mask"),
    ("all", "mask"),
]


def draw_scores(rows: int = ROWS, negatives: int = NEGATIVES) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(rows), 2 * torch.randn(rows, negatives)


def as_rows(scores: Tensor) -> list[list[float]]:
    return scores.reshape(scores.shape[0], -1).tolist()


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["shift", "all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_plain_loops(name: str, layout: str, weighted: bool) -> None:
    joint, marginal = draw_scores()
    marginal = marginal[:, 0] if layout == "shift" else marginal
    wj, wm = torch.ones(ROWS), torch.ones_like(marginal)
    weights = {}
    if weighted:
        wj, wm = torch.rand(ROWS), torch.rand_like(marginal)
        weights = {"joint_weights": wj, "marginal_weights": wm}
    got = BOUNDS[name](joint, marginal, **weights)
    want = getattr(reference_mi, name)(joint.tolist(), as_rows(marginal), wj.tolist(), as_rows(wm))
    torch.testing.assert_close(torch.stack(got), torch.tensor(want), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("clip", [0.5, 1.0, 3.0])
def test_smile_equals_plain_loops_at_other_clips(clip: float) -> None:
    joint, marginal = draw_scores()
    ones = torch.ones_like(marginal)
    got = smile(joint, marginal, clip=clip)
    want = reference_mi.smile(
        joint.tolist(), as_rows(marginal), [1.0] * ROWS, as_rows(ones), clip=clip
    )
    torch.testing.assert_close(torch.stack(got), torch.tensor(want), rtol=1e-12, atol=1e-13)


def test_smile_without_clipping_is_dv() -> None:
    joint, marginal = draw_scores()
    torch.testing.assert_close(
        smile(joint, marginal, clip=math.inf).estimate, dv(joint, marginal).estimate
    )


@pytest.mark.parametrize("name", ["nwj", "dv", "js", "smile"])
def test_marginal_scores_may_have_any_shape(name: str) -> None:
    joint, marginal = draw_scores()
    got = BOUNDS[name](joint, marginal.reshape(2, 3, 2, 2))
    torch.testing.assert_close(got, BOUNDS[name](joint, marginal))


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32(name: str) -> None:
    joint, marginal = (scores.float() for scores in draw_scores())
    mask = torch.tensor([True] * 5 + [False])
    for value in BOUNDS[name](joint, marginal, joint_weights=mask):
        assert value.dtype is torch.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_reads_no_value_on_the_host(name: str, weighted: bool) -> None:
    joint, marginal = (scores.to("meta") for scores in draw_scores())
    weights = {
        "joint_weights": torch.ones_like(joint),
        "marginal_weights": torch.ones_like(marginal),
    }
    got = BOUNDS[name](joint, marginal, **(weights if weighted else {}))
    assert got.surrogate.shape == got.estimate.shape == ()


# --- JAX, and NumPy -------------------------------------------------------------------------------


def every_bound(library: Library, weights: Mapping[str, np.ndarray] | None = None) -> Any:
    """Estimates and surrogates of all bounds, as a function of scores: one program in JAX."""
    converted = {key: library.array(value) for key, value in (weights or {}).items()}
    return lambda *scores: [v for name in NAMES for v in BOUNDS[name](*scores, **converted)]


def both(
    weights: Mapping[str, np.ndarray], *samples: Sequence[np.ndarray]
) -> list[list[Derivatives]]:
    return [each.differentiate(every_bound(each, weights), *samples) for each in (JAX, TORCH)]


def numpy_scores(layout: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    marginal = 2 * rng.normal(size=(ROWS, NEGATIVES))
    return 2 * rng.normal(size=ROWS), marginal[:, 0] if layout == "shift" else marginal


@pytest.mark.usefixtures("jax_active")
@pytest.mark.parametrize(("layout", "kind"), LAYOUTS_AND_WEIGHTS)
def test_jax_equals_torch(layout: str, kind: str) -> None:
    samples = [numpy_scores(layout, seed) for seed in range(10)]
    rng = np.random.default_rng(1)
    weights: dict[str, np.ndarray] = {}
    if kind == "fractions":
        weights = {
            key: rng.uniform(size=scores.shape)
            for key, scores in zip(("joint_weights", "marginal_weights"), samples[0], strict=True)
        }
    elif kind == "mask":
        kept = rng.uniform(size=samples[0][1].shape) < 0.7
        weights = {"joint_weights": np.arange(ROWS) != 2, "marginal_weights": kept}
        for joint, marginal in samples:
            joint[2], marginal[~kept] = np.nan, np.inf
    got, want = both(weights, *samples)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    assert_agree(got, want)


@pytest.mark.usefixtures("jax_active")
def test_jax_equals_torch_beyond_the_exponential() -> None:
    joint, marginal = numpy_scores("all", 0)
    marginal[0] = [19, 20, 21, 1e4]
    assert_agree(*both({}, (joint, marginal)))


@pytest.mark.usefixtures("jax_active")
def test_smile_of_jax_equals_torchs_at_other_clips() -> None:
    def clipped(*scores: Any) -> list[Any]:
        return [value for clip in (0.5, 3.0, math.inf) for value in smile(*scores, clip=clip)]

    assert_agree(*(each.differentiate(clipped, numpy_scores("all", 0)) for each in (TORCH, JAX)))


@pytest.mark.parametrize("layout", ["shift", "all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_numpys_arrays_give_the_same(layout: str, weighted: bool) -> None:
    joint, marginal = numpy_scores(layout, 0)
    kept = np.arange(marginal.size).reshape(marginal.shape) % 3
    weights = {"marginal_weights": kept} if weighted else {}
    got = [value for name in NAMES for value in BOUNDS[name](joint, marginal, **weights)]
    (want,) = TORCH.differentiate(every_bound(TORCH, weights), (joint, marginal))
    np.testing.assert_allclose(got, want.values, rtol=1e-12)


def test_both_halves_have_the_same_bounds() -> None:
    assert vars(pyros).keys() == vars(numpyros).keys()
    for name in pyros.__all__:
        assert getattr(numpyros, name) is getattr(pyros, name)


# --- gradients and weights ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(name: str, weighted: bool) -> None:
    inputs = draw_scores()
    if weighted:
        inputs += (torch.rand(ROWS) + 0.1, torch.rand(ROWS, NEGATIVES) + 0.1)

    def both(
        joint: Tensor, marginal: Tensor, wj: Tensor | None = None, wm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return BOUNDS[name](joint, marginal, joint_weights=wj, marginal_weights=wm)

    assert torch.autograd.gradcheck(both, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked_score", [0.0, math.inf, -math.inf, math.nan])
def test_weight_zero_is_the_same_as_dropping_the_entry(name: str, masked_score: float) -> None:
    joint, marginal = draw_scores()
    rows, columns = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 3])
    kept = (
        joint[rows].clone().requires_grad_(),
        marginal[rows][:, columns].clone().requires_grad_(),
    )
    want = BOUNDS[name](*kept)
    want_grads = torch.autograd.grad(want.estimate + want.surrogate, kept)

    wj, wm = torch.zeros(ROWS), torch.zeros(ROWS, NEGATIVES)
    wj[rows] = 1
    wm[rows[:, None], columns] = 1
    joint, marginal = joint.where(wj > 0, masked_score), marginal.where(wm > 0, masked_score)
    joint.requires_grad_(), marginal.requires_grad_()
    got = BOUNDS[name](joint, marginal, joint_weights=wj, marginal_weights=wm)
    grads = torch.autograd.grad(got.estimate + got.surrogate, (joint, marginal))

    torch.testing.assert_close(torch.stack(got), torch.stack(want))
    torch.testing.assert_close(grads[0][wj > 0], want_grads[0])
    torch.testing.assert_close(grads[1][wm > 0].reshape(4, 2), want_grads[1])
    assert (grads[0][wj == 0] == 0).all()
    assert (grads[1][wm == 0] == 0).all()


def test_infonce_drops_the_negatives_of_a_masked_row() -> None:
    joint, marginal = draw_scores()
    want = infonce(joint[1:], marginal[1:])
    joint[0], marginal[0] = math.nan, math.nan
    joint.requires_grad_(), marginal.requires_grad_()
    mask = torch.tensor([0.0] + [1.0] * (ROWS - 1))
    got = infonce(joint, marginal, joint_weights=mask)
    torch.testing.assert_close(got.estimate, want.estimate)
    for grad in torch.autograd.grad(got.surrogate, (joint, marginal)):
        assert (grad[0] == 0).all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_two_is_a_second_copy(name: str) -> None:
    joint, marginal = draw_scores()
    wj, wm = torch.ones(ROWS), torch.ones(ROWS, NEGATIVES)
    wj[0], wm[:, 0] = 2, 2
    got = BOUNDS[name](joint, marginal, joint_weights=wj, marginal_weights=wm)
    copied = torch.cat([marginal[:, :1], marginal], 1)
    rows = torch.tensor([0, *range(ROWS)])
    if name == "infonce":
        want = infonce(joint[rows], copied[rows])
    else:
        want = BOUNDS[name](joint[rows], copied)
    torch.testing.assert_close(got, want)


def test_gradients_of_weights_are_finite_at_zero(library: Library) -> None:
    scores, wj = numpy_scores("all", 0), np.array([0.0] + [0.7] * (ROWS - 1))

    def sums(wj: Any, wm: Any) -> list[Any]:
        weights = {"joint_weights": wj, "marginal_weights": wm}
        return [sum(BOUNDS[name](*map(library.array, scores), **weights)) for name in NAMES]

    (got,) = library.differentiate(sums, (wj, np.repeat(wj[:, None], NEGATIVES, axis=1)))
    for name, gradients in zip(NAMES, got.gradients, strict=True):
        for gradient in gradients:
            assert np.isfinite(gradient).all(), name
            assert gradient.any(), name


@pytest.mark.parametrize("side", ["joint_weights", "marginal_weights"])
def test_nothing_left_is_zero_information(library: Library, side: str) -> None:
    scores = numpy_scores("all", 0)
    weights = {side: np.zeros_like(scores[side == "marginal_weights"])}
    (got,) = library.differentiate(every_bound(library, weights), scores)
    np.testing.assert_allclose(got.values, 0, atol=1e-15)
    assert not any(gradient.any() for gradients in got.gradients for gradient in gradients)


# --- overflow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_huge_scores_stay_finite(library: Library, weighted: bool) -> None:
    mixed = 1e4 * (np.arange(64) % 3 - 1)
    samples = [
        [(sign * np.full(64, 1e4) if sign else mixed).astype(np.float32) for sign in signs]
        for signs in [*itertools.product((1, -1), repeat=2), (0, 0)]
    ]
    bounds = every_bound(library, {"joint_weights": np.arange(64) % 2} if weighted else {})
    for got in library.differentiate(bounds, *samples):
        for value, gradients in zip(got.values, got.gradients, strict=True):
            assert value.dtype == np.float32
            assert np.isfinite(value)
            for gradient in gradients:
                # What Adam squares, for the encoder of 10^5 rows of data.
                assert np.isfinite(np.square(np.float32(1e5) * gradient.sum()))


def test_exponential_is_continued_with_its_own_slope() -> None:
    at = torch.tensor([21 - 1e-6, 21.0, 21 + 1e-6], requires_grad=True)
    for score in at:
        estimate = nwj(torch.zeros(1), score[None]).estimate
        (slope,) = torch.autograd.grad(estimate, at)
        torch.testing.assert_close(slope.sum(), -torch.tensor(20.0).exp(), rtol=2e-6, atol=0)
        torch.testing.assert_close(estimate, -torch.tensor(20.0).exp(), rtol=2e-6, atol=0)
    far = nwj(torch.zeros(1), torch.tensor([31.0])).estimate
    torch.testing.assert_close(far, -11 * torch.tensor(20.0).exp())


# --- the user's mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_rejects_joint_scores_that_are_no_vector(name: str) -> None:
    joint, marginal = draw_scores()
    with pytest.raises(ValueError, match=r"Expected joint of shape \(rows,\); got \(6, 1\): one"):
        BOUNDS[name](joint[:, None], marginal)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["joint", "marginal"])
def test_rejects_weights_of_another_shape(name: str, which: str) -> None:
    joint, marginal = draw_scores()
    shape = r"\(6,\)" if which == "joint" else r"\(6, 4\)"
    message = rf"Expected {which}_weights of shape {shape}, that of the scores; got \(3,\)"
    with pytest.raises(ValueError, match=message):
        BOUNDS[name](joint, marginal, **{f"{which}_weights": torch.ones(3)})


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (6, 2, 2)])
def test_infonce_rejects_scores_not_row_by_row(shape: tuple[int, ...]) -> None:
    message = r"Expected marginal of shape \(6,\) or \(6, negatives\); got \(.*\): infonce"
    with pytest.raises(ValueError, match=message):
        infonce(torch.zeros(6), torch.zeros(shape))


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_smile_rejects_clip(clip: float) -> None:
    with pytest.raises(ValueError, match=r"Expected clip > 0 nats; got .*: use math.inf"):
        smile(torch.zeros(2), torch.zeros(2), clip=clip)


def test_get_bound() -> None:
    assert [get_bound(name) for name in NAMES] == [nwj, dv, infonce, js, smile]
    own = functools.partial(smile, clip=1.0)
    assert get_bound(own) is own


def test_get_bound_lists_the_names() -> None:
    message = (
        r"Expected bound to be one of 'nwj', 'dv', 'infonce', 'js', 'smile', or a function; "
        r"got 'mine'"
    )
    with pytest.raises(ValueError, match=message):
        get_bound("mine")
