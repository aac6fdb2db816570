# SPDX-License-Identifier: MIT
r"""The squared maximum mean discrepancy by random frequencies of the kernel's spectrum.

A kernel of differences is the mean of a cosine over random frequencies, :math:`k(x, y) =
E_\omega \cos \omega \cdot (x - y)`, so that its sums over pairs are products of sums over rows, of
:math:`\varphi_x(\omega) = e^{i \omega \cdot x}`. Arrays have frequencies first and rows last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from jaxtyping import Float

from pyro_infovae._core.arrays import Array, library, namespace, raised
from pyro_infovae._core.kernels import IMQ, RBF, Kernel, SumKernel
from pyro_infovae._core.mmd import PairSums, Periods, Sample, check_samples, check_scales
from pyro_infovae._core.rows import Rows

NUM_FEATURES = 256
"""The frequencies of an estimate, where nothing else is asked for."""

BLOCK_ELEMENTS = 2**18
"""Frequencies times rows in a block: few megabytes, yet few blocks."""

FEWEST_IN_BLOCK = 16
"""Below so many frequencies a block takes its time to pass over the rows, not to compute."""


class Frequencies(NamedTuple):
    """Random frequencies, and the weight of each in the kernel."""

    values: Float[Array, "frequencies d"]
    weights: Float[Array, " frequencies"]


class Draws(NamedTuple):
    """How a half draws random numbers: arrays of a shape, in the dtype of another array."""

    normal: Callable[[tuple[int, ...], Array], Array]
    uniform: Callable[[tuple[int, ...], Array], Array]


class BlockSums(NamedTuple):
    """What a block of frequencies adds to the sums over pairs, and to the gradients.

    A gradient that was not asked for is None.
    """

    xx: Float[Array, ""]
    yy: Float[Array, ""]
    xy: Float[Array, ""]
    x: Sample | None
    y: Sample | None


def estimate_mmd_by_features(
    sums: PairSums,
    draws: Draws,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    kernel: Kernel,
    *,
    y_scale: Float[Array, "m d"] | None,
    x_weights: Float[Array, " n"] | None,
    y_weights: Float[Array, " m"] | None,
    batch_size: int | None,
    num_features: int,
) -> Float[Array, ""]:
    """What ``mmd_squared`` of either half returns for ``estimator="features"``."""
    terms = check_features(kernel, num_features)
    is_one_normal = y_scale is not None and len(y) == 1
    if is_one_normal:
        check_samples(x, x, x_weights, None, batch_size)
        check_samples(x, y, None, y_weights, None, fewest=1)
    else:
        check_samples(x, y, x_weights, y_weights, batch_size)
    if y_scale is not None:
        check_scales(x, x, y, y_scale)
    with sums.in_full_precision(x):
        of_x = Sample.of((raised(x),), x_weights)
        y_rows = (raised(y),) if y_scale is None else (raised(y), raised(y_scale))
        of_y = Sample.of(y_rows, None if is_one_normal else y_weights)
        periods = Periods.unbiased(of_x, of_y, batch_size)
        if is_one_normal:
            # Two draws from it are independent of one another, and of x.
            periods = periods._replace(yy=None, xy=None)
        like = of_x.rows[0]
        d = like.shape[1]
        blocks = -(-num_features // d)
        frequencies = frequencies_of(
            terms, draws.normal((blocks, d, d), like), draws.uniform((num_features,), like)
        )
        return sums.features(frequencies, of_x, of_y, periods)


def estimate_mmd_of_group(
    sums: PairSums,
    draws: Draws,
    group: Any,
    draw_prior: Callable[[], Rows],
    kernel: Kernel,
    num_features: int,
) -> Float[Array, ""]:
    """What ``TraceMMD_ELBO(estimator="features")`` makes of a group of either half.

    Args:
        sums: how the half sums.
        draws: how it draws.
        group: the group.
        draw_prior: draws from its prior, where that is no diagonal normal.
        kernel: the kernel.
        num_features: the number of frequencies.
    """
    q, normals = group.posterior, _normal_prior(group)
    p = draw_prior() if normals is None else normals
    y_weights = p.weights
    if normals is None:
        y, y_scale = p.values, None
    else:
        y, y_scale = p.latents["loc"], p.latents["scale"]
        if _is_repeated(y) and _is_repeated(y_scale):
            y, y_scale, y_weights = y[:1], y_scale[:1], None
    return estimate_mmd_by_features(
        sums,
        draws,
        q.values,
        y,
        kernel,
        y_scale=y_scale,
        x_weights=q.weights,
        y_weights=y_weights,
        batch_size=q.batch_size,
        num_features=num_features,
    )


def _normal_prior(group: Any) -> Rows | None:
    """The diagonal normals of the prior; None where it need not be of these."""
    if len(group.names) > 1:
        return None
    try:
        normals: Rows | None = group.normals(attrgetter("model"))
    except NotImplementedError:  # a mixture over a latent that the model sums out
        return None
    return normals


def check_points(estimator: str, y_scale: Array | None) -> None:
    """Check that an estimator other than by features compares points.

    Raises:
        ValueError: if it is given scales.
    """
    if y_scale is not None:
        raise ValueError(
            f"Expected y_scale=None, for estimator={estimator!r} compares points: use "
            "estimator='features' or mmd_squared_normal; got an array"
        )


def check_features(kernel: Kernel, num_features: int) -> tuple[RBF | IMQ, ...]:
    """Check that a kernel has a known spectrum, and return its terms.

    Raises:
        ValueError: if it has none, or there are fewer features than terms.
    """
    terms = _terms(kernel)
    count = sum(len(_scales(term, 1)) for term in terms)
    if num_features < count:
        raise ValueError(
            f"Expected num_features of at least {count}, one for each term of the kernel; "
            f"got {num_features}"
        )
    return terms


def block_size(x: Sample, y: Sample) -> int:
    """The number of frequencies in a block."""
    return max(FEWEST_IN_BLOCK, BLOCK_ELEMENTS // max(len(x.rows[0]), len(y.rows[0])))


def centred(x: Sample, y: Sample) -> tuple[Sample, Sample]:
    """Both samples about the mean of x, so that phases keep their digits."""
    centre = _centre(x)
    return (
        x._replace(rows=(x.rows[0] - centre,)),
        y._replace(rows=(y.rows[0] - centre, *y.rows[1:])),
    )


def block_sums(
    frequencies: Frequencies,
    x: Sample,
    y: Sample,
    periods: Periods,
    coefficients: Sequence[Array | float],
    wanted: tuple[bool, bool],
) -> BlockSums:
    r"""Return the pair sums, and the gradients of :math:`a S_{xx} + b S_{yy} + c S_{xy}`.

    Args:
        frequencies: a block of them.
        x: one sample: points, or locations and scales of normals.
        y: the other.
        periods: the pairs that are left out.
        coefficients: a, b and c.
        wanted: whether the gradients of x and of y are wanted.
    """
    a, b, c = coefficients
    k = frequencies.weights
    of_x, of_y = _Waves.of(x, frequencies.values), _Waves.of(y, frequencies.values)
    x_own, y_own = of_x.own(periods.xx), of_y.own(periods.yy)
    xx, yy, xy = (
        k @ (u.totals[0] * v.totals[0] + u.totals[1] * v.totals[1])
        for u, v in ((of_x, of_x), (of_y, of_y), (of_x, of_y))
    )
    xx, yy = xx - of_x.diagonal(k, x_own, periods.xx), yy - of_y.diagonal(k, y_own, periods.yy)
    x_data = y_data = None
    if periods.xy is not None:
        x_data, y_data = of_x.by_datum(periods.xy), of_y.by_datum(periods.xy)
        xy = xy - k @ (x_data[0] * y_data[0] + x_data[1] * y_data[1]).sum(1)
    pulls = (
        (of_x, (2 * a, of_x.totals, x_own, periods.xx), (c, of_y.totals, y_data, periods.xy)),
        (of_y, (2 * b, of_y.totals, y_own, periods.yy), (c, of_x.totals, x_data, periods.xy)),
    )
    gradients = [
        waves.gradient(frequencies, *(_Pull(*pull) for pull in parts)) if is_wanted else None
        for is_wanted, (waves, *parts) in zip(wanted, pulls, strict=True)
    ]
    return BlockSums(xx, yy, xy, *gradients)


Waves = tuple[Float[Array, "frequencies _"], Float[Array, "frequencies _"]]
"""Real and imaginary parts."""


class _Pull(NamedTuple):
    """A sum over pairs as the row of one side sees it.

    Attributes:
        coefficient: the factor on the sum.
        totals: the other side's sums over all rows.
        data: its sums over the rows of each datum, which are left out; None where none are, or
            where they make no difference but to the weights.
        period: the number of data; None where nothing is left out.
    """

    coefficient: Array | float
    totals: tuple[Float[Array, " frequencies"], Float[Array, " frequencies"]]
    data: Waves | None
    period: int | None


class _Waves(NamedTuple):
    """The characteristic functions of the rows of a sample, and their weighted sums."""

    sample: Sample
    parts: Waves
    totals: tuple[Float[Array, " frequencies"], Float[Array, " frequencies"]]

    @classmethod
    def of(cls, sample: Sample, frequencies: Float[Array, "frequencies d"]) -> _Waves:
        loc, *scale = sample.rows
        xp = namespace(loc)
        phase = frequencies @ loc.T
        parts = xp.cos(phase), xp.sin(phase)
        if scale:
            damping = xp.exp(-0.5 * (frequencies**2 @ (scale[0] ** 2).T))
            parts = parts[0] * damping, parts[1] * damping
        v = sample.weights
        return cls(sample, parts, tuple(p.sum(1) if v is None else p @ v for p in parts))

    @property
    def is_pure(self) -> bool:
        """Whether every row is a point, whose wave has length 1."""
        return len(self.sample.rows) == 1

    def by_datum(self, period: int) -> Waves:
        """The weighted sums over the rows of each datum."""
        weights = self.sample.weights
        parts = self.parts if weights is None else tuple(p * weights[None] for p in self.parts)
        if period == parts[0].shape[1]:
            return parts
        return tuple(p.reshape(len(p), -1, period).sum(1) for p in parts)

    def own(self, period: int | None) -> Waves | None:
        """The same where it is needed: points of a row per datum have constant products."""
        if period is None or (self.is_pure and period == len(self.sample.rows[0])):
            return None
        return self.by_datum(period)

    def diagonal(
        self, k: Float[Array, " frequencies"], own: Waves | None, period: int | None
    ) -> Float[Array, ""] | float:
        """The pairs of a datum with itself."""
        if period is None:
            return 0.0
        if own is None:
            weights = self.sample.weights
            return k.sum() * (len(self.sample.rows[0]) if weights is None else weights @ weights)
        return k @ (own[0] ** 2 + own[1] ** 2).sum(1)

    def gradient(self, frequencies: Frequencies, *pulls: _Pull) -> Sample:
        """The gradient with respect to rows and weights."""
        values, k = frequencies
        (real, imaginary), sample = self.parts, self.sample
        scale = sample.rows[1:]
        # What a row is pulled by: alike for all rows, and less by what is of the same datum.
        within, across = pulls
        alike = [
            k * (within.coefficient * within.totals[i] + across.coefficient * across.totals[i])
            for i in (0, 1)
        ]
        left_out = [
            tuple((k * p.coefficient)[:, None] * part for part in p.data)
            for p in pulls
            if p.data is not None
        ]

        def through(
            factors: Float[Array, "frequencies d"], first: int, second: int, sign: int
        ) -> Float[Array, "d n"]:
            of_real, of_imaginary = (factors * alike[i][:, None] for i in (first, second))
            total = of_real.T @ real + sign * (of_imaginary.T @ imaginary)
            for data in left_out:
                mixed = self._times(real, data[first]) + sign * self._times(imaginary, data[second])
                total = total - factors.T @ mixed
            return total

        slopes = [through(values, 1, 0, -1)]
        if scale:
            slopes.append(through(-(values**2), 0, 1, 1) * scale[0].T)
        v = sample.weights
        if v is None:
            return Sample(tuple(slope.T for slope in slopes), None)
        weights = through(namespace(k).ones_like(k)[:, None], 0, 1, 1)[0]
        for p in pulls:
            if p.data is None and p.period is not None:
                weights = weights - k.sum() * p.coefficient * v
        return Sample(tuple((slope * v[None]).T for slope in slopes), weights)

    @staticmethod
    def _times(
        rows: Float[Array, "frequencies n"], data: Float[Array, "frequencies data"]
    ) -> Float[Array, "frequencies n"]:
        if rows.shape == data.shape:
            return rows * data
        by_draw = rows.reshape(len(rows), -1, data.shape[1])
        return (by_draw * data[:, None]).reshape(rows.shape)


def frequencies_of(
    terms: Sequence[RBF | IMQ],
    normal: Float[Array, "blocks d d"],
    uniform: Float[Array, " frequencies"],
) -> Frequencies:
    r"""Return frequencies of kernels' spectra, orthogonal to one another in blocks of d.

    That of an RBF is :math:`N(0, 1 / \ell^2)`. The inverse multiquadric is the mean of RBFs with
    :math:`\ell^2 = C / 2 t` over exponential t, which are drawn from equal parts of their law. Each
    term of a sum has its share of the frequencies. Yu, Suresh, Choromanski, Holtmann-Rice, Kumar,
    *Orthogonal Random Features*, arXiv 1610.09072.

    Args:
        terms: the kernels of the sum.
        normal: standard normal numbers.
        uniform: uniform numbers in [0, 1).
    """
    xp, (count, d) = namespace(normal), (len(uniform), normal.shape[2])
    # The lengths of a normal matrix's columns do not depend on their directions' orthogonal basis.
    lengths = xp.sqrt((normal**2).sum(1))[:, None]
    values = xp.swapaxes(xp.linalg.qr(normal)[0] * lengths, 1, 2).reshape(-1, d)[:count]
    scales = [(isinstance(term, RBF), s) for term in terms for s in _scales(term, d)]
    ends = [count * i // len(scales) for i in range(len(scales) + 1)]
    parts, weights = [], []
    for (is_rbf, scale), start, end in zip(scales, ends[:-1], ends[1:], strict=True):
        size, u = end - start, uniform[start:end]
        if is_rbf:
            parts.append(xp.full_like(u, 1 / scale))
        else:
            steps = xp.cumsum(xp.ones_like(u), 0)
            parts.append(xp.sqrt(-2 / scale * xp.log((steps - u) / size)))
        weights.append(xp.full_like(u, 1 / size))
    return Frequencies(values * xp.concatenate(parts)[:, None], xp.concatenate(weights))


def _terms(kernel: Kernel) -> tuple[RBF | IMQ, ...]:
    if isinstance(kernel, RBF | IMQ):
        return (kernel,)
    if isinstance(kernel, SumKernel):
        return sum((_terms(term) for term in kernel.terms), ())
    raise ValueError(
        f"Expected an RBF, an IMQ or a sum of them, whose spectrum is known; got {kernel!r}: use "
        "estimator='unbiased'"
    )


def _scales(kernel: RBF | IMQ, num_features: int) -> tuple[float, ...]:
    if isinstance(kernel, RBF):
        return kernel.lengthscales(num_features)
    return kernel.scales(num_features)


def _is_repeated(rows: Float[Array, "n d"]) -> bool:
    """Whether the rows are known, without a look at them, to be one row in memory."""
    return library(rows) == "torch" and len(rows) > 1 and rows.stride(0) == 0


def _centre(x: Sample) -> Float[Array, "1 d"]:
    """The weighted mean of the rows, for phases to keep their digits; 0 if all are masked."""
    (points,) = x.rows
    xp = namespace(points)
    if x.weights is None:
        return points.mean(0)[None]
    total = x.weights.sum()
    return (x.weights @ points / xp.where(total > 0, total, 1.0))[None]
