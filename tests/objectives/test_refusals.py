"""What the objectives refuse beside tests/refusals.py, and what they accept next to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.elbo_suite import says
from tests.halves import Case, Half
from tests.objectives.alone import in_numpyro, in_pyro, slow_in_numpyro
from tests.objectives.flows import fixed
from tests.objectives.programs import two_latents
from tests.shared_programs import X, critic, vae


def refuses(half: Half, objective: Any, case: Case, match: str) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=match):
        half.evaluate(objective, case)


def automatic(half: Half, kind: str, case: Case) -> Case:
    return case._replace(guide=half.auto(kind, case.model, *case.args))


class TestPenalised:
    def test_particles_twice(self, half: Half) -> None:
        library, settings = half.library, {"base": half.infer.Trace_ELBO(), "num_particles": 3}
        message = r"particle settings in base; got {}\(base=..., num_particles=3.*Trace_ELBO\("
        with pytest.raises(ValueError, match=message.format("TraceMMD_ELBO")):
            library.TraceMMD_ELBO(**settings)
        with pytest.raises(ValueError, match="particle settings in base"):
            library.TraceInfoMax_ELBO(critic(half), **settings)

    def test_a_latent_that_is_not_reparameterised(self, half: Half) -> None:
        x = half.xp.asarray(X[:, 0])

        def model() -> None:
            with half.plate("data", 12):
                y = half.sample("y", half.dist.Bernoulli(0.5 + 0 * x))
                z = half.sample("z", half.dist.Normal(y, 1.0))
                half.sample("x", half.dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with half.plate("data", 12):
                half.sample("y", half.dist.Bernoulli(half.param("p", 0.4) + 0 * x))
                half.sample("z", half.dist.Normal(0 * x, 1.0))

        match = r"'y', which is not reparameterised \(Bernoulli.*\): name others in sites"
        objective = half.library.TraceMMD_ELBO(sites=["y", "z"])
        refuses(half, objective, Case(model, guide), match)

    def test_a_closed_form_of_what_is_not_normal(self, half: Half) -> None:
        x = half.xp.asarray(X[:, 0])

        def model() -> None:
            with half.plate("data", 12):
                z = half.sample("z", half.dist.Gamma(2.0 + 0 * x, 1.0))
                half.sample("x", half.dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            with half.plate("data", 12):
                half.sample("z", half.dist.LogNormal(half.param("m", 0.0) + 0 * x, 1.0))

        match = "diagonal normal at site 'z'; the guide has LogNormal.*use estimator='unbiased'"
        objective = half.library.TraceMMD_ELBO(estimator="closed_form")
        refuses(half, objective, Case(model, guide), match)

    @slow_in_numpyro
    def test_one_density_for_several_latents_cannot_be_reweighted(self, half: Half) -> None:
        case = automatic(half, "AutoMultivariateNormal", two_latents(half))
        half.evaluate(half.library.TraceMMD_ELBO(0.0), case)
        objective = half.library.TraceMMD_ELBO(0.5)
        refuses(half, objective, case, r"KL of 'z1' cannot be weighted by 0.5: .*'_")


class TestFlow:
    @pytest.mark.parametrize("kind", ["AutoDelta", "AutoLaplaceApproximation"])
    def test_an_automatic_point_mass(self, half: Half, kind: str) -> None:
        case = automatic(half, kind, vae(half))
        refuses(half, fixed(half), case, "'z' is a point mass in the guide")

    def test_no_site(self, half: Half) -> None:
        refuses(half, fixed(half, sites=[]), vae(half), "draws no latent that could flow")

    def test_a_guide_that_observes(self, half: Half) -> None:
        case = vae(half)
        said = r"the guide observes 'x', and the density of no latent: hide it by .*hide=\['x'\]"
        refuses(half, fixed(half), case._replace(guide=case.model), said)
        hidden = half.handlers.block(case.model, hide=["x"])
        half.evaluate(fixed(half), case._replace(guide=hidden))

    def test_a_latent_that_is_conditioned_in_the_model(self, half: Half) -> None:
        case = two_latents(half)
        model = half.handlers.condition(case.model, data={"z1": half.xp.asarray(X[:, 0])})
        match = "'z1', which is no latent of the model"
        refuses(half, fixed(half), case._replace(model=model), match)

    @pytest.mark.parametrize(("sites", "fits"), [(None, False), (["z"], True)])
    def test_a_global_latent_under_a_subsampled_plate(
        self, half: Half, sites: Any, fits: bool
    ) -> None:
        """A local one beside it may flow."""

        def program(is_model: bool) -> Any:
            def run(x: Any) -> None:
                theta = half.sample("theta", half.dist.Normal(0.0, 1.0))
                with half.plate("data", 12, batch=4) as index:
                    z = half.sample("z", half.dist.Normal(theta if is_model else 0.0, 1.0))
                    if is_model:
                        half.sample("x", half.dist.Normal(z, 1.0), obs=x[index, 0])

            return run

        case = Case(program(True), program(False), (half.xp.asarray(X),))
        if fits:
            half.evaluate(fixed(half, sites=sites), case)
        else:
            match = "'theta' is outside plate 'data', which is subsampled.*in sites"
            refuses(half, fixed(half, sites=sites), case, match)

    @in_pyro
    def test_a_latent_of_the_guide_alone(self, half: Half) -> None:
        plain = two_latents(half)

        def guide(x: Any) -> None:
            plain.guide(x)
            half.sample("w", half.dist.Normal(0.0, 1.0))

        case = plain._replace(guide=guide)
        refuses(half, fixed(half), case, r"'w', which is no latent of the model.*auxiliary")
        with pytest.warns(UserWarning, match="non-auxiliary vars in guide but not model"):
            fixed(half, sites=["z1", "z2"]).loss(case.model, case.guide, *case.args)

    @in_numpyro
    @pytest.mark.parametrize(
        ("step_size", "match"),
        [
            ({"w": 0.1}, r"step_size of the sites \['z'\]; got \['w'\]"),
            (np.full(5, 0.1), r"step_size of 'z' to broadcast to \(12, 2\); got shape \(5,\)"),
        ],
        ids=["sites", "shape"],
    )
    def test_a_step_size_of_others(self, half: Half, step_size: Any, match: str) -> None:
        refuses(half, fixed(half, step_size=step_size), vae(half), match)

    @in_numpyro
    def test_a_free_schedule_that_starts_at_no_temperature(self, half: Half) -> None:
        elbo = half.library.TraceHamiltonian_ELBO
        message = says(lambda: elbo(path="posterior", beta_0=0.0, tempering="free"))
        assert message.endswith("0 < beta_0 <= 1; got 0.0")
