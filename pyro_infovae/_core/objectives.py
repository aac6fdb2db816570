# SPDX-License-Identifier: MIT
"""What both halves say of their objectives, and how they check the settings of one."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Estimator: TypeAlias = Literal["unbiased", "biased", "closed_form", "features"]

FEW_ROWS = 64
"""Below this many rows the estimate of mutual information is poor."""

_PENALISED = """
    regularizer: a further penalty of yours: a function of each group's
        :class:`~$package.groups.Rows` (latents, data, weights, N) to a scalar in nats.
    regularizer_weight: the factor on it.
    gather: whether the penalties see the rows of all ranks of ``torch.distributed``'s default
        process group, as one process with all of them would: the mean over the ranks of
        losses and of gradients is that process's. Each rank runs the model on as many rows,
        in plates of the size of the whole data set, and every rank has to evaluate the loss.
        Without a process group it changes nothing.
    base: the ELBO that the penalty is added to; by default the closed-form KL where it is
        valid, a sampled one otherwise. Its particle settings are the objective's.
    max_plate_nesting: bound on the plate nesting of the default base.
    vectorize_particles: $vectorised"""
"""The arguments of every penalised objective."""

MMD = (
    r"""
.. math::
    \mathrm{loss} = -E_q[\log p(x \mid z)]
    + (1 - \alpha) \, \mathrm{KL}(q(z \mid x) \| p(z))
    + N (\alpha + \lambda - 1) \, \mathrm{MMD}^2(q(z), p(z))

in nats, summed over the data set of :math:`N` data: like the framework's own losses it is
scaled to the full size of every subsampled plate. :math:`q(z)` is the aggregated posterior,
estimated by the rows of the minibatch; :math:`p(z)` is drawn afresh from the model, with every
other latent as the guide drew it.

Latents in the same plates and under the same mask form a group, whose joint distribution is
compared; several groups add up, each with its own :math:`N`. Where a minibatch or its mask leaves
a single row, the step has no penalty and warns.

Args:
    alpha: the weight :math:`\alpha \le 1` of the mutual information preference. 0 keeps the
        KL, 1 removes it (the MMD-VAE).
    lambd: the weight :math:`\lambda` of the divergence of the aggregated posterior.
    kernel: a kernel of :mod:`$package.kernels`, or any callable ``(x, y) -> matrix``;
        ``RBF()`` by default.
    sites: the latents to penalise, by name. By default every reparameterised latent in
        plates of data, those of an observed site; all others keep the base's treatment.
    estimator: ``"unbiased"`` (a U-statistic, may be slightly negative), ``"biased"`` (a
        V-statistic, at least 0), ``"closed_form"`` (no sampling; one latent per group whose
        guide and prior are diagonal normals, RBF kernels) or ``"features"`` (the unbiased one by
        random frequencies, in a time that grows with the rows and not with their pairs; a prior
        that is a diagonal normal is not sampled; RBF and IMQ kernels and their sums). The
        closed form is the discrepancy of the data at hand, so that with ``alpha=0`` and a bound
        as base, -loss remains in expectation a lower bound on :math:`\log p(x)`; the unbiased
        ones are that of infinitely many data, of which yours are some.
    prior_draws: draws from the prior per datum.
    num_features: the frequencies of ``"features"``, drawn anew in every step.
    num_particles: draws per datum of the default base; the penalty pools them."""
    + _PENALISED
    + """

Raises:
    ValueError: for weights outside the above, an unknown estimator, both ``base`` and particle
        settings; when used, for ``sites`` that cannot be penalised$also_raised.

References:
    Zhao, Song, Ermon, *InfoVAE: Balancing Learning and Inference in Variational
    Autoencoders*, arXiv 1706.02262.
"""
)
"""Of ``TraceMMD_ELBO``."""

INFOMAX = (
    r"""
.. math::
    \mathrm{loss} = -E_q[\log p(x \mid z)] + \beta \, \mathrm{KL}(q(z \mid x) \| p(z))
    - N \alpha \, \hat I(x; z)

in nats, summed over the data set of :math:`N` data. A critic :math:`T(x, z)` estimates the
mutual information; with the default bound

.. math:: \hat I = \mathrm{mean}\, T(x, z) - \mathrm{mean}\, e^{T(x, \tilde z) - 1}

where :math:`\tilde z` is the code of another datum. Critic and guide both maximise it: the
critic's gradient is that of :math:`-\hat I`, whatever :math:`\alpha` and :math:`N`, and the
guide's is :math:`N \alpha` times it. With :math:`\alpha = 0` the critic only monitors.

$storage

Args:
    critic: $critic
    alpha: the weight :math:`\alpha \ge 0` of the mutual information.
    beta: the weight :math:`\beta \ge 0` of the KL.
    bound: ``"nwj"``, ``"dv"``, ``"infonce"``, ``"js"`` or ``"smile"``, see
        :mod:`$package.mutual_information`, or a function like them.
    negatives: ``"shift"`` pairs each datum with one other code of its particle, ``"all"`` with
        every other.
    data: the data the critic sees: the name of an observed site, or a function of the model's
        arguments to an array (data, \*event). By default the observed site in the latents'
        plates.
    sites: the latents, by name, in one stack of plates. By default every reparameterised
        latent in plates of data.
    name: $named
    num_particles: draws per datum of the default base; their scores are pooled."""
    + _PENALISED
    + """

Raises:
    ValueError: for negative weights, an unknown bound or kind of negatives; when used, for
        scores of the wrong shape, data that cannot be found, or latents in several stacks of
        plates$also_raised.
    TypeError: for a critic that is none.

References:
    Rezaabad, Vishwanath, *Learning Representations by Maximizing Mutual Information in
    Variational Autoencoders*, arXiv 1912.13361.
"""
)
"""Of ``TraceInfoMax_ELBO``."""

HAMILTONIAN = r"""
The guide's draw is moved towards the posterior by K leapfrog steps, each at its own temperature on
the bridge between the two. With :math:`\ell(u) = \log p(x, z(u)) + \log |\det z'(u)|` and q the
density of the guide's draw in the unconstrained coordinates u,

.. math::
    u_0 \sim q, \quad \rho_0 \sim N(0, I), \quad
    (u_k, \hat\rho_k) = \mathrm{leapfrog}_{\varepsilon_k}(u_{k-1}, \rho_{k-1})
    \text{ on } -\beta_k \ell - (1 - \beta_k) \log q

.. math::
    \rho_k = \eta_k \hat\rho_k + \sqrt{1 - \eta_k^2}\, \xi_k, \quad \xi_k \sim N(0, I), \quad
    0 < \beta_1 \le \dots \le \beta_K = 1

.. math::
    \log w = \ell(u_K) - \log q(u_0)
    + \sum_k \left[ \log N(\hat\rho_k; 0, I) - \log N(\rho_{k-1}; 0, I) \right]

The loss is :math:`-E[\log w] \ge -\log p(x)` in nats, summed over the data set, and
:math:`E[w] = p(x)` exactly, whatever the step sizes, temperatures and persistence. These are
learned: :math:`\varepsilon` per step and dimension, :math:`\beta` and :math:`\eta` per step.

Lengths are in units of the guide's scale: u is the standard normal noise that the guide draws
with, where its distributions are made of it (normal ones and their transforms). Elsewhere u is the
unconstrained draw, divided by its standard deviation where the distribution tells it. A kick of
more than :math:`3 \sqrt{d}` in a row of d numbers is shortened to that.

With ``path="posterior"`` it is the Hamiltonian VAE: all steps follow the posterior,
:math:`\beta_k = 1`, lengths are absolute, and the momentum is not refreshed but cools: it starts at
:math:`\rho_0 \sim N(0, I / \beta_0)`, and

.. math::
    \log w = \ell(u_K) + \log N(\rho_K; 0, I) - \left[ \log q(u_0)
    + \log N(\rho_0; 0, I / \beta_0) - \tfrac{d}{2} \log(\beta_0 / \beta_K) \right]

Every datum of a plate is moved by its own posterior, subsampled or not, and masked rows
contribute nothing.

A latent outside a subsampled plate would be moved by each minibatch differently, and is refused,
unless ``surrogate=M`` is given: the forces are then those of the surrogate

.. math::
    \tilde\ell(u) = \log p(z(u)) + \sum_{m=1}^M \omega_m \log p(x_{i_m} \mid z(u))
    + \log |\det z'(u)|

of M rows, the same in every run, with learned weights :math:`\omega_m = w_m N / M`, where
:math:`w_m` starts at 1. The last position alone is scored by the minibatch, whose log joint is
unbiased and enters :math:`\log w` once: in expectation over minibatches, -loss is the bound
:math:`E[\log w] \le \log p(x)` of all data along the surrogate's path. The weight of a minibatch
estimates no evidence, for the exponential of an unbiased log joint is biased;
:math:`E[w] = p(x)` holds on the whole plate.

Args:
    num_steps: the number K of leapfrog steps; each costs one gradient of the log joint.
    step_size: the initial step size: a number, an array that broadcasts to a site's
        unconstrained value, or either by site name; by default 0.05, or 0.1 on the posterior.
    path: ``"annealed"`` or ``"posterior"``.
    persistence: the initial :math:`\eta` in [0, 1], by default 0.7; at 0 and 1 it stays.
        It belongs to the annealed path, as do:
    precondition: ``"guide"`` for lengths in units of the guide's scale, the default, or ``"none"``
        for absolute ones.
    surrogate: with how many rows a flow of global latents stands for the data of a subsampled
        plate, see above; ``{"data": 20}`` names the plate, which else is the one that is subsampled
        or the only one.
    beta_0: the initial inverse temperature in (0, 1], by default 0.5. It belongs to the posterior
        path, as do:
    tempering: ``"quadratic"``, the default, ``"free"`` (a learned factor per step), ``"none"``
        (:math:`\beta_k = 1`), ``"constant"`` (:math:`\beta_k = \beta_0`) or a callable
        ``(beta_0, k, num_steps) -> beta_k``.
    logp_prefactor: factors on the likelihood, the prior and the final momentum. Anything but
        1 leaves the bound.
    logq_prefactor: factors on the guide, the initial momentum and the tempering's Jacobian,
        likewise.
    learn: whether step sizes, temperatures, persistence and the weights of a surrogate are learned.
        $stored
    max_step_size: the bound of learned step sizes, by default none, or 0.5 on the posterior.
    per_step: whether every step has a step size of its own; an array then has a leading axis
        of ``num_steps``. By default they have, unless an array or the posterior path is given.
    checkpoint: whether backward computes each step again instead of keeping what it computed:
        slower, in memory that grows with K by the latents alone.
    sites: the latents that flow, by name; by default all that the guide draws. The others stay
        as drawn.
    name: $named
    num_particles: draws per datum.
    max_plate_nesting: bound on the plate nesting.
    vectorize_particles: $vectorised

Raises:
    ValueError: for numbers out of range, or that belong to the other path; when used, naming the
        site: for a latent that is discrete, a point mass, or global under a subsampled plate
        without a surrogate, and for a model that has no rows for one$also_raised.

References:
    Geffner, Domke, *MCMC Variational Inference via Uncorrected Hamiltonian Annealing*, arXiv
    2107.04150; Zhang, Hsu, Li, Finn, Grosse, *Differentiable Annealed Importance Sampling*, arXiv
    2107.10211; Jankowiak, Phan, *Surrogate Likelihoods for Variational Annealed Importance
    Sampling*, arXiv 2112.12194; Caterini, Doucet, Sejdinovic, *Hamiltonian Variational
    Auto-Encoder*, arXiv 1805.11328.
"""
"""Of ``TraceHamiltonian_ELBO``."""


@dataclass(frozen=True)
class Prefactors:
    """Factors on the terms of a log weight, 1 each for an evidence lower bound.

    Attributes:
        logp: on the likelihood, the prior and the final momentum.
        logq: on the guide, the initial momentum and the tempering's Jacobian.

    Raises:
        ValueError: for any but three of each.
    """

    logp: tuple[float, float, float] = (1.0, 1.0, 1.0)
    logq: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for prefactors in (self.logp, self.logq):
            if len(prefactors) != 3:
                raise ValueError(f"Expected three prefactors; got {prefactors}")


def check_mmd(alpha: Any, lambd: Any, estimator: str, prior_draws: int) -> None:
    """Check the settings of ``TraceMMD_ELBO``; a weight of 0 on the MMD is warned of.

    Raises:
        ValueError: for one out of range.
    """
    if not alpha <= 1:
        raise ValueError(
            f"Expected alpha <= 1; got alpha={alpha}, which would reward the KL without bound"
        )
    if not alpha + lambd >= 1:
        raise ValueError(
            f"Expected alpha + lambd >= 1; got alpha={alpha}, lambd={lambd}, which would maximise "
            "the discrepancy between q(z) and p(z): raise lambd"
        )
    if estimator not in get_args(Estimator):
        raise ValueError(
            f"Expected estimator to be one of {get_args(Estimator)}; got {estimator!r}"
        )
    if prior_draws < 1:
        raise ValueError(f"Expected prior_draws of at least 1; got {prior_draws}")
    if alpha + lambd == 1:
        warnings.warn(
            f"alpha={alpha}, lambd={lambd} give the MMD a weight of alpha + lambd - 1 = 0: the "
            "objective is the base ELBO with a KL weight of 1 - alpha",
            stacklevel=3,
        )


def check_one_latent(names: Collection[str]) -> None:
    """Refuse the closed form of a group of several latents.

    Raises:
        ValueError: naming them.
    """
    if len(names) > 1:
        raise ValueError(
            f"estimator='closed_form' takes one latent per stack of plates; got "
            f"{list(names)}, whose joint distribution need not be normal: name one of "
            "them in sites, or use estimator='unbiased'"
        )


def check_infomax(alpha: Any, beta: Any, negatives: str, kinds: Collection[str]) -> None:
    """Check the settings of ``TraceInfoMax_ELBO``.

    Raises:
        ValueError: for one out of range.
    """
    if not (alpha >= 0 and beta >= 0):
        raise ValueError(f"Expected alpha >= 0 and beta >= 0; got alpha={alpha}, beta={beta}")
    if negatives not in kinds:
        raise ValueError(f"Expected negatives to be one of {list(kinds)}; got {negatives!r}")


def warn_of_few_rows(caller: str, rows: int) -> None:
    """Warn that so few rows tell little of mutual information."""
    warnings.warn(
        f"{caller} estimates mutual information from {rows} rows, which is poor below {FEW_ROWS}: "
        "use a larger minibatch",
        stacklevel=3,
    )


def warn_of_single_row(caller: str, names: Collection[str]) -> None:
    """Warn of a minibatch whose only row tells nothing of a distribution."""
    warnings.warn(
        f"{caller}: the minibatch holds a single row of {list(names)}, which has no penalty in "
        "this step: pass drop_last=True to the data loader, or use larger minibatches",
        stacklevel=3,
    )


def warn_of_enumeration(names: Collection[str]) -> None:
    """Warn that a base draws latents that the program wants summed out."""
    warnings.warn(
        f"The latents {list(names)} are marked to be enumerated, and the base draws them: use "
        "base=TraceEnum_ELBO(...)",
        stacklevel=3,
    )


def warn_of_counts(counts: Mapping[tuple[str, ...], Any]) -> None:
    """Warn of groups of which, below their masks, less than two rows are left."""
    for names, count in counts.items():
        if count < 2:
            warnings.warn(
                f"Fewer than two rows of {list(names)} are left below their masks, so that they "
                "have no penalty in this step: use larger minibatches, or name others in sites",
                stacklevel=4,
            )


def check_scalar(value: Any, names: Collection[str]) -> Any:
    """The value of a regularizer.

    Raises:
        ValueError: where it is no scalar.
    """
    if value.shape != ():
        raise ValueError(
            f"Expected regularizer(rows) to be a scalar; got shape {tuple(value.shape)} for "
            f"the rows of {list(names)}: sum or average over the rows"
        )
    return value
