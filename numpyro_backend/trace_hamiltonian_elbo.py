# SPDX-License-Identifier: MIT
"""The Hamiltonian objective: an evidence lower bound by tempered leapfrog steps from the guide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax import Array
from jaxtyping import Key
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO

from numpyro_backend._objectives.flow_parameters import FlowParameters
from numpyro_backend._traces.refined_guide import Prefactors, RefinedGuide, SiteWeights
from numpyro_backend._traces.runs import Program, recorded_like, unrecorded
from numpyro_backend.tempering import Tempering


class TraceHamiltonian_ELBO(ELBO):
    r"""The Hamiltonian VAE's evidence lower bound for any continuous model and guide.

    The guide's draw is moved towards the posterior by K leapfrog steps in unconstrained space,
    with a momentum that cools from :math:`\beta_0` on:

    .. math::
        u_0 \sim q, \quad \rho_0 \sim N(0, I / \beta_0), \quad
        (u_K, \rho_K) = \mathrm{leapfrog}^K(u_0, \rho_0)

    .. math::
        \log w = \ell(u_K) + \log N(\rho_K; 0, I) - \left[ \log q(u_0)
        + \log N(\rho_0; 0, I / \beta_0) - \tfrac{d}{2} \log(\beta_0 / \beta_K) \right]

    with :math:`\ell(u) = \log p(x, T(u)) + \log |\det J_T(u)|`. The loss is
    :math:`-E[\log w] \ge -\log p(x)` in nats, summed over the data set, and :math:`E[w] = p(x)`
    exactly, whatever the step sizes and temperatures.

    Every datum of a plate is moved by its own posterior, subsampled or not, and masked rows
    contribute nothing. Memory does not grow with the number of steps.

    A flow whose steps are too large diverges, and the loss or its gradient is not finite:
    :meth:`SVI.stable_update <numpyro.infer.SVI.stable_update>` leaves such a step out
    (``svi.run(..., stable_update=True)``).

    Args:
        num_steps: the number K of leapfrog steps; each costs one gradient of the log joint.
        step_size: the initial step size: a number, an array that broadcasts to a site's
            unconstrained value, or either by site name.
        beta_0: the initial inverse temperature in (0, 1].
        tempering: ``"quadratic"``, ``"free"`` (a learned factor per step), ``"none"``
            (:math:`\beta_k = 1`), ``"constant"`` (:math:`\beta_k = \beta_0`) or a callable
            ``(beta_0, k, num_steps) -> beta_k``.
        learn: whether step sizes and temperatures are learned. They are parameters, named after
            ``name``, that :class:`numpyro_backend.SVI` declares.
        max_step_size: the bound of learned step sizes.
        per_step: whether every step has a step size of its own; an array then has a leading axis
            of ``num_steps``.
        sites: the latents that flow, by name; by default all that the guide draws. The others stay
            as drawn.
        logp_prefactor: factors on the likelihood, the prior and the final momentum. Anything but
            1 leaves the bound.
        logq_prefactor: factors on the guide, the initial momentum and the tempering's Jacobian,
            likewise.
        name: the name before that of each learned parameter.
        num_particles: draws per datum.
        vectorize_particles: how to map over the particles: True for :func:`jax.vmap`, False for
            :func:`jax.lax.map`, or a callable (function, keys).

    Raises:
        ValueError: for numbers out of range; when used, for learned values that nobody declared,
            and, naming the site, for a latent that is discrete, a point mass, or global under a
            subsampled plate.

    References:
        Caterini, Doucet, Sejdinovic, *Hamiltonian Variational Auto-Encoder*, arXiv 1805.11328.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> import jax.numpy as jnp
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from numpyro_backend import SVI, TraceHamiltonian_ELBO
        >>> def model(x):
        ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", dist.Poisson(rate), obs=x)
        >>> guide = AutoNormal(model)
        >>> elbo = TraceHamiltonian_ELBO(num_steps=3, step_size=0.05)
        >>> svi = SVI(model, guide, numpyro.optim.Adam(1e-2), loss=elbo)
        >>> x = jnp.array([3.0, 1.0, 2.0])
        >>> result = svi.run(jax.random.key(0), 5, x, progress_bar=False)
        >>> result.losses.shape
        (5,)
        >>> refined = elbo.refine(model, guide)
        >>> predictive = numpyro.infer.Predictive(
        ...     model, guide=refined, params=result.params, num_samples=4, return_sites=["rate"])
        >>> predictive(jax.random.key(1), x)["rate"].shape
        (4,)
    """

    def __init__(
        self,
        num_steps: int = 3,
        step_size: float | Array | Mapping[str, float | Array] = 0.1,
        *,
        beta_0: float = 0.5,
        tempering: Tempering = "quadratic",
        learn: bool = True,
        max_step_size: float = 0.5,
        per_step: bool = False,
        sites: Iterable[str] | None = None,
        logp_prefactor: tuple[float, float, float] = (1.0, 1.0, 1.0),
        logq_prefactor: tuple[float, float, float] = (1.0, 1.0, 1.0),
        name: str = "hamiltonian",
        num_particles: int = 1,
        vectorize_particles: bool | Callable[..., Any] = True,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.flow = FlowParameters(
            name,
            num_steps=num_steps,
            step_size=step_size,
            beta_0=beta_0,
            tempering=tempering,
            learn=learn,
            max_step_size=max_step_size,
            per_step=per_step,
        )
        names = (sites,) if isinstance(sites, str) else sites
        self.sites = None if names is None else frozenset(names)
        self.prefactors = Prefactors(_three(logp_prefactor), _three(logq_prefactor))

    def wrap_model(self, model: Program) -> Program:
        """The model with the learned step sizes and temperatures as parameters of its own.

        Args:
            model: the model.
        """

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.flow.declare()
            return model(*args, **kwargs)

        return wrapped

    def refine(self, model: Program, guide: Program) -> Program:
        """The guide after the flow: a guide whose draws are nearer to the posterior.

        Its latents have the right log density, so it serves ``Predictive``, importance weights and
        every diagnostic in the guide's place. It declares the parameters of the model, which it
        needs, and those of the flow.

        Args:
            model: the model.
            guide: the guide.
        """
        return self._refine(model, guide, Prefactors())

    def loss_with_mutable_state(
        self,
        rng_key: Key[Array, ""],
        param_map: dict[str, Any],
        model: Program,
        guide: Program,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in nats and the values of the mutable sites, those of the first particle.

        Args:
            rng_key: the key to draw with.
            param_map: the values of parameters and mutable sites, by name.
            model: the model.
            guide: the guide.
            *args: positional arguments of both.
            **kwargs: keyword arguments of both.
        """
        self._check_declared(param_map)
        likelihood, prior, _ = self.prefactors.logp
        weighted = SiteWeights(model, observed=likelihood, latent=prior)
        refined = self._refine(model, guide, self.prefactors)

        def single_particle(key: Key[Array, ""]) -> dict[str, Any]:
            stock = Trace_ELBO()
            return stock.loss_with_mutable_state(key, param_map, weighted, refined, *args, **kwargs)

        if self.num_particles == 1:
            return single_particle(rng_key)
        keys = jax.random.split(rng_key, self.num_particles)
        particles = self.vectorize_particles_fn(single_particle, keys)
        return {
            "loss": particles["loss"].mean(),
            "mutable_state": jax.tree.map(lambda leaf: leaf[0], particles["mutable_state"]),
        }

    def _refine(self, model: Program, guide: Program, prefactors: Prefactors) -> Program:
        refined = RefinedGuide(
            unrecorded(model), unrecorded(guide), self.flow, self.sites, prefactors
        )
        return recorded_like(guide, refined)

    def _check_declared(self, param_map: dict[str, Any]) -> None:
        for name in self.flow.learned:
            if name not in param_map:
                raise ValueError(
                    f"{type(self).__name__} has parameters of its own, '{name}', that svi.init did "
                    "not declare: use numpyro_backend.SVI, or pass elbo.wrap_model(model) as the "
                    "model"
                )


def _three(prefactors: tuple[float, float, float]) -> tuple[float, float, float]:
    if len(prefactors) != 3:
        raise ValueError(f"Expected three prefactors; got {prefactors}")
    return prefactors
