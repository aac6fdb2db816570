"""What the objectives say of latents, plates, guides and bases."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import jax
import numpy as np
import numpyro
import pyro
import torch
from pyro import poutine

from tests.halves import Case
from tests.questions.asking import Asking
from tests.shared_programs import X, critic, hierarchy, vae
from tests.test_errors_page import ROOT
from tests.wild import test_enumerating_base, test_lost_bases, test_selected_latents
from tests.wild.remedies.following import Action, follows
from tests.wild.test_minibatch_of_the_guide import INDEX, NUM, plates
from tests.wild.test_minibatch_of_the_guide import model as minibatch_model
from tests.wild.test_renyi_base import wide_guide

COLUMN = X[:, 0]


def mmd(half: Asking, case: Case, **settings: Any) -> Action:
    return lambda: half.evaluate(half.library.TraceMMD_ELBO(**settings), case)


def run_mmd(half: Asking, case: Case, **settings: Any) -> Action:
    """For what is said of values alone."""
    return lambda: half.loss(half.library.TraceMMD_ELBO(**settings), case)


def program(half: Asking, draw_model: Any, draw_guide: Any, *, num: int = 12) -> Case:
    """What a model and a guide draw in a plate of data."""

    def model() -> None:
        with half.plate("data", num):
            draw_model(half.xp.asarray(COLUMN[:num]))

    def guide() -> None:
        with half.plate("data", num):
            draw_guide(half.xp.asarray(COLUMN[:num]))

    return Case(model, guide)


def mixture(half: Asking, *, kind: str = "", infer: Any = None, continuous: bool = True) -> Case:
    """A code below a component that the guide draws."""

    def model(x: Any) -> None:
        y = half.sample("y", half.dist.Bernoulli(0.5 + 0 * x))
        z = half.sample("z", half.dist.Normal(y, 1.0)) if continuous else y
        half.sample("x", half.dist.Normal(z, 1.0), obs=x)

    def guide(x: Any) -> None:
        half.sample("y", half.dist.Bernoulli(half.param("p", 0.4) + 0 * x), infer=infer)
        if continuous:
            half.sample("z", half.dist.Normal(x, 1.0))

    return program(half, model, guide)


@follows("which is not reparameterised (…): name others in sites, or draw it by rsample")
def not_reparameterised(half: Asking) -> Sequence[Action]:
    case = mixture(half)

    def relaxed(z: Any, x: Any) -> None:
        half.sample("x", half.dist.Normal(z, 1.0), obs=x)

    rsampled = program(
        half,
        lambda x: relaxed(half.sample("y", half.dist.Normal(0 * x, 1.0)), x),
        lambda x: half.sample("y", half.dist.Normal(x, 1.0)),
    )
    return (
        mmd(half, case, sites=["y", "z"]),
        mmd(half, case, sites=["z"]),
        mmd(half, rsampled, sites=["y"]),
    )


@follows("which is in no plate", "no latent is left to penalise: …")
def no_plate(half: Asking) -> Sequence[Action]:
    def globally(draw: Any) -> Any:
        def run() -> None:
            theta = half.sample("theta", draw())
            half.sample("x", half.dist.Normal(theta, 1.0), obs=half.xp.asarray(0.5))

        return run

    model = globally(lambda: half.dist.Normal(0.0, 1.0))
    case = Case(model, lambda: half.sample("theta", half.dist.Normal(half.param("m", 0.0), 1.0)))
    return mmd(half, case), mmd(half, case, sites=["theta"], num_particles=2)


@follows("which is the missing part of an observed site")
def missing_part(half: Asking) -> Sequence[Action]:
    mask = half.xp.asarray(np.arange(12) % 4 > 0)
    case = program(
        half,
        lambda x: half.sample("x", half.dist.Normal(0.3, 1.0), obs=x, obs_mask=mask),
        lambda x: half.sample("x_unobserved", half.dist.Normal(x + half.param("m", 0.1), 1.0)),
    )
    return mmd(half, case), mmd(half, case, sites=["x_unobserved"])


@follows("which hold no observed site")
def no_data(half: Asking) -> Sequence[Action]:
    def model() -> None:
        with half.plate("components", 3):
            locs = half.sample("locs", half.dist.Normal(0.0, 1.0))
        with half.plate("data", 12):
            half.sample("x", half.dist.Normal(locs.sum(), 1.0), obs=half.xp.asarray(COLUMN))

    def guide() -> None:
        with half.plate("components", 3):
            half.sample("locs", half.dist.Normal(half.param("m", np.zeros(3)), 1.0))

    case = Case(model, guide)
    return mmd(half, case), mmd(half, case, sites=["locs"])


@follows("are drawn one by one", only="pyro")
def drawn_one_by_one(half: Asking) -> Sequence[Action]:
    def one_by_one() -> None:
        for i in pyro.plate("data", 6):
            half.sample(f"z_{i}", half.dist.Normal(0.0, 1.0))

    def together() -> None:
        with pyro.plate("data", 6):
            half.sample("z", half.dist.Normal(half.param("m", np.zeros(6)), 1.0))

    return mmd(half, Case(one_by_one, one_by_one)), mmd(half, Case(together, together))


@follows("for the guide draws none of the model's")
def renamed(half: Asking) -> Sequence[Action]:
    def case(name: str) -> Case:
        return program(
            half,
            lambda x: half.sample("z", half.dist.Normal(0 * x, 1.0)),
            lambda x: half.sample(name, half.dist.Normal(x + half.param("m", 0.1), 1.0)),
        )

    return mmd(half, case("zz")), mmd(half, case("z"))


@follows("the minibatch holds a single row of")
def single_row(half: Asking) -> Sequence[Action]:
    def epoch(**loader: Any) -> Action:
        def run() -> None:
            for rows in torch.utils.data.DataLoader(range(5), **loader):
                run_mmd(half, test_selected_latents.minibatch(half, len(rows)))()

        return run

    return epoch(batch_size=4), epoch(batch_size=4, drop_last=True), epoch(batch_size=5)


@follows("are left below their masks")
def below_their_masks(half: Asking) -> Sequence[Action]:
    def case(num: int, count: int) -> Case:
        def draw(x: Any) -> None:
            half.sample("z", half.dist.Normal(x + half.param("m", 0.1), 1.0))
            with half.mask(half.xp.asarray(np.arange(num) < count)):
                half.sample("w", half.dist.Normal(x, 1.0))

        return program(half, draw, draw, num=num)

    return (
        run_mmd(half, case(4, 1)),
        run_mmd(half, case(12, 3)),
        run_mmd(half, case(4, 1), sites=["z"]),
    )


@follows("the latents in plates of data change from run to run", only="pyro")
def changing_selection(half: Asking) -> Sequence[Action]:
    def case() -> Case:
        runs = iter(range(100))

        def model() -> None:
            x = half.xp.asarray(COLUMN)
            observed = next(runs) % 2
            for i, name in enumerate(("left", "right")):
                with half.plate(f"of_{name}", 12):
                    z = half.sample(f"z_{name}", half.dist.Normal(0 * x, 1.0))
                    if i == observed:
                        half.sample(name, half.dist.Normal(z, 1.0), obs=x)

        def guide() -> None:
            x = half.xp.asarray(COLUMN)
            for name in ("left", "right"):
                with half.plate(f"of_{name}", 12):
                    half.sample(f"z_{name}", half.dist.Normal(x + half.param("m", 0.1), 1.0))

        return Case(model, guide)

    weights = {"alpha": 0.5, "lambd": 2.0}
    return (
        lambda: mmd(half, case(), **weights)(),
        lambda: mmd(half, case(), sites=["z_left", "z_right"], **weights)(),
    )


@follows("the model is given its minibatch as subsample=", only="pyro")
def minibatch_of_the_guide(half: Asking) -> Sequence[Action]:
    args = torch.linspace(-3.0, 3.0, NUM), INDEX

    def automatic(**settings: Any) -> Action:
        def run() -> None:
            guide = pyro.infer.autoguide.AutoNormal(minibatch_model, **settings)
            half.library.TraceMMD_ELBO().loss_and_grads(minibatch_model, guide, *args)

        return run

    def own(x: Any, index: Any) -> None:
        with pyro.plate("data", NUM, subsample=index):
            half.sample("z", half.dist.Normal(half.param("m", np.zeros(NUM))[index], 1.0))

    return (
        automatic(),
        automatic(create_plates=plates),
        mmd(half, Case(minibatch_model, own, args)),
    )


def _enum(half: Asking) -> Any:
    return half.infer.TraceEnum_ELBO(max_plate_nesting=1)


@follows("is drawn several times in parallel (num_samples)", only="pyro")
def parallel_draws(half: Asking) -> Sequence[Action]:
    case = vae(half)
    draws = pyro.infer.config_enumerate(case.guide, "parallel", num_samples=3, expand=True)
    base = half.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    particles = half.infer.TraceEnum_ELBO(
        max_plate_nesting=1, strict_enumeration_warning=False, num_particles=3
    )
    return (
        mmd(half, case._replace(guide=draws), base=base),
        mmd(half, case, base=particles),
    )


@follows("is enumerated sequentially", only="pyro")
def enumerated_sequentially(half: Asking) -> Sequence[Action]:
    return tuple(
        mmd(half, mixture(half, infer={"enumerate": kind}), base=_enum(half))
        for kind in ("sequential", "parallel")
    )


@follows("whose joint probability per row of it is not known", only="pyro")
def chain_of_enumerated(half: Asking) -> Sequence[Action]:
    """Two plates, of which the component of the outer one decides those of the inner one."""

    def case(infer: Any) -> Case:
        def draw(*, in_model: bool) -> None:
            x = half.xp.asarray(X[:, :2].T)
            with half.plate("data", 12):
                a = half.sample("a", half.dist.Bernoulli(0.4 + 0 * x[0]), infer=infer)
                w = half.sample("w", half.dist.Normal(half.param("m", 0.1) + 0 * x[0], 1.0))
                with half.plate("parts", 2, dim=-2):
                    b = half.sample("b", half.dist.Bernoulli(0.3 + 0.2 * a + 0 * x), infer=infer)
                    z = half.sample("z", half.dist.Normal(b + 0 * x, 1.0))
                    if in_model:
                        half.sample("x", half.dist.Normal(z + w, 1.0), obs=x)

        return Case(partial(draw, in_model=True), partial(draw, in_model=False))

    def base() -> Any:
        settings = {"max_plate_nesting": 2, "strict_enumeration_warning": False}
        return half.infer.TraceEnum_ELBO(**settings)

    chain, sampled = case({"enumerate": "parallel"}), case(None)
    return (
        mmd(half, chain, sites=["z", "w"], base=base()),
        mmd(half, chain, sites=["w"], base=base()),
        mmd(half, sampled, sites=["z", "w"], base=base()),
    )


@follows("which runs the model inside the guide", only="pyro")
def messenger(half: Asking) -> Sequence[Action]:
    case = vae(half)
    autoguide = pyro.infer.autoguide

    def automatic(kind: Any) -> Action:
        return lambda: mmd(half, case._replace(guide=kind(case.model)))()

    return (
        automatic(autoguide.AutoNormalMessenger),
        automatic(autoguide.AutoNormal),
        mmd(half, case),
    )


@follows("the guide draws it from '…', whose density is not its own")
def shared_density(half: Asking) -> Sequence[Action]:
    plain = hierarchy(half)

    def automatic(kind: str, **settings: Any) -> Action:
        def run() -> None:
            guide = half.auto(kind, plain.model)
            mmd(half, plain._replace(guide=guide), **settings)()

        return run

    return (
        automatic("AutoMultivariateNormal", alpha=0.5),
        automatic("AutoMultivariateNormal", alpha=0.0, lambd=2.0),
        automatic("AutoNormal", alpha=0.5),
        lambda: half.evaluate(
            half.library.TraceInfoMax_ELBO(critic(half), beta=1.0),
            plain._replace(guide=half.auto("AutoMultivariateNormal", plain.model), args=plain.args),
        ),
    )


@follows("its prior depends on '…', which is summed out in the model")
def prior_summed_out(half: Asking) -> Sequence[Action]:
    def case(*, in_guide: bool) -> Case:
        return test_enumerating_base.mixture(half, in_guide=in_guide)

    return (
        lambda: mmd(half, case(in_guide=False), alpha=0.5, base=_enum(half))(),
        lambda: mmd(half, case(in_guide=False), alpha=0.0, base=_enum(half))(),
        lambda: mmd(half, case(in_guide=True), alpha=0.5, base=_enum(half))(),
    )


@follows("The prior of '…' is a mixture over a latent that the model sums out")
def closed_form_of_a_mixture(half: Asking) -> Sequence[Action]:
    case = test_enumerating_base.mixture(half, in_guide=False)
    return tuple(
        mmd(half, case, estimator=estimator, base=_enum(half))
        for estimator in ("closed_form", "unbiased")
    )


@follows("estimator='closed_form' needs a diagonal normal at site")
def closed_form_of_a_gamma(half: Asking) -> Sequence[Action]:
    case = program(
        half,
        lambda x: half.sample("z", half.dist.Gamma(2.0 + 0 * x, 1.0)),
        lambda x: half.sample("z", half.dist.LogNormal(half.param("m", 0.0) + 0 * x, 1.0)),
    )
    return tuple(mmd(half, case, estimator=kind) for kind in ("closed_form", "unbiased"))


def _particles(half: Asking) -> Sequence[Action]:
    trace = half.infer.Trace_ELBO
    return (
        lambda: half.library.TraceMMD_ELBO(base=trace(), num_particles=3),
        mmd(half, vae(half), base=trace(num_particles=3)),
    )


@follows("got …(base=..., num_particles=…, max_plate_nesting=…", only="pyro")
def particles_twice(half: Asking) -> Sequence[Action]:
    return _particles(half)


@follows("got …(base=..., num_particles=…, vectorize_particles=…", only="numpyro")
def particles_twice_in_numpyro(half: Asking) -> Sequence[Action]:
    return _particles(half)


@follows("Expected a base ELBO that runs model and guide in every step", only="pyro")
def compiled_base(half: Asking) -> Sequence[Action]:
    return (
        lambda: half.library.TraceMMD_ELBO(base=half.infer.JitTrace_ELBO()),
        mmd(half, vae(half), base=half.infer.Trace_ELBO()),
    )


@follows("Expected whole plates below RenyiELBO of several particles", only="pyro")
def renyi_of_a_minibatch(half: Asking) -> Sequence[Action]:
    base = half.infer.RenyiELBO(num_particles=2)
    return (
        mmd(half, wide_guide(half, batch=10), base=base),
        mmd(half, wide_guide(half), base=base),
        mmd(half, wide_guide(half, batch=10), base=half.infer.Trace_ELBO()),
    )


@follows("are marked to be enumerated, and the base draws them", quick=())
def base_without_enumeration(half: Asking) -> Sequence[Action]:
    case = test_lost_bases.mixture(half, marked="guide")
    return mmd(half, case), mmd(half, case, base=_enum(half))


def check_extra(package: str, extra: str) -> None:
    """What ``pip install pyro-infovae[extra]`` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(each.startswith(package) for each in project["optional-dependencies"][extra])


@follows("Expected funsor, by which", only="numpyro")
def without_funsor(half: Asking) -> Sequence[Action]:
    def without() -> None:
        with mock.patch("numpyro_backend._traces.enumeration.find_spec", return_value=None):
            half.library.TraceMMD_ELBO(base=_enum(half))

    def installed() -> None:
        check_extra("funsor", "enum")
        half.library.TraceMMD_ELBO(base=_enum(half))

    return without, installed


@follows("which are summed together; got … and …: draw them in the same subsampled", only="numpyro")
def sums_scaled_apart(half: Asking) -> Sequence[Action]:
    def of(*, outside: bool) -> Action:
        def model(x: Any) -> None:
            k = _enumerated(half) if outside else None
            with numpyro.plate("data", 2 * len(x), len(x)):
                z = half.sample("z", half.dist.Normal(0.0, 1.0))
                k = _enumerated(half) if k is None else k
                half.sample("x", half.dist.Normal(z + k, 1.0), obs=x)

        def guide(x: Any) -> None:
            with numpyro.plate("data", 2 * len(x), len(x)):
                half.sample("z", half.dist.Normal(half.param("at", 0.3), 1.0))

        case = Case(model, guide, (half.xp.asarray(COLUMN),))
        flow = half.library.TraceHamiltonian_ELBO(2, 0.1, learn=False)
        return lambda: half.evaluate(flow, case)

    return of(outside=True), of(outside=False)


def _enumerated(half: Asking) -> Any:
    return half.sample("k", half.dist.Bernoulli(0.3), infer={"enumerate": "parallel"})


@follows("Expected a base ELBO that vectorises by vectorize_particles_fn alone", only="numpyro")
def base_that_vectorises_by_itself(half: Asking) -> Sequence[Action]:
    class SelfVectorised(numpyro.infer.Trace_ELBO):
        def loss_with_mutable_state(self, rng_key: Any, *args: Any, **kwargs: Any) -> Any:
            loss = partial(numpyro.infer.Trace_ELBO().loss, **kwargs)
            losses = jax.vmap(lambda key: loss(key, *args))(jax.random.split(rng_key))
            return {"loss": losses.mean(), "mutable_state": None}

    bases = SelfVectorised(), numpyro.infer.Trace_ELBO(num_particles=2)
    return tuple(mmd(half, vae(half), base=base) for base in bases)


@follows("Expected a base ELBO with …=…; got …(…=…): leave it out", only="numpyro")
def base_of_several_samples(half: Asking) -> Sequence[Action]:
    trace = half.infer.Trace_ELBO
    return (
        lambda: half.library.TraceMMD_ELBO(base=trace(multi_sample_guide=True)),
        mmd(half, vae(half), base=trace()),
    )


@follows("give the MMD a weight of alpha + lambd - 1 = 0")
def weight_of_zero(half: Asking) -> Sequence[Action]:
    return (
        lambda: half.library.TraceMMD_ELBO(alpha=0.5, lambd=0.5),
        lambda: half.library.TraceMMD_ELBO(alpha=0.5, lambd=0.6),
    )


@follows("estimates mutual information from … rows")
def few_rows(half: Asking) -> Sequence[Action]:
    def of(rows: int) -> Action:
        def run() -> None:
            x = np.random.default_rng(0).normal(size=(rows, 3))
            elbo = half.library.TraceInfoMax_ELBO(critic(half))
            with warnings.catch_warnings():
                warnings.filterwarnings("error" if rows > 12 else "always")
                half.evaluate(elbo, vae(half, x=x))

        return run

    return of(12), of(64)


# --- the flow -----------------------------------------------------------------------------------


def flow(half: Asking, case: Case, **settings: Any) -> Action:
    def run() -> None:
        elbo = half.library.TraceHamiltonian_ELBO(**{"num_steps": 2, **settings})
        half.evaluate(elbo, case)

    return run


@follows("draws no latent that could flow")
def nothing_flows(half: Asking) -> Sequence[Action]:
    case = vae(half)
    return (
        flow(half, case, sites=[]),
        lambda: half.evaluate(half.infer.Trace_ELBO(), case),
    )


def _observing(half: Asking, block: Any) -> Sequence[Action]:
    case = vae(half)
    hidden = block(case.model, hide=["x"])
    return flow(half, case._replace(guide=case.model)), flow(half, case._replace(guide=hidden))


@follows("and the density of no latent: hide it by poutine.block", only="pyro")
def guide_that_observes(half: Asking) -> Sequence[Action]:
    return _observing(half, poutine.block)


@follows("and the density of no latent: hide it by handlers.block", only="numpyro")
def guide_that_observes_in_numpyro(half: Asking) -> Sequence[Action]:
    return _observing(half, numpyro.handlers.block)


@follows("which no known transform takes to the reals", only="pyro")
def support_without_transform(half: Asking) -> Sequence[Action]:
    from tests.wild.test_no_support import PyroPrior

    class OnTheLattice(PyroPrior):
        support = half.dist.constraints.integer_interval(0, 3)

    def draw(x: Any, prior: Any) -> None:
        half.sample("w", half.dist.Normal(x + half.param("m", 0.1), 1.0))
        half.sample("z", prior(half.dist.Normal(x, 1.0)))

    case = program(half, *[partial(draw, prior=OnTheLattice)] * 2)
    return flow(half, case), flow(half, case, sites=["w"])


@follows("by the guide, which is subsampled, and inside by the model")
def plate_left_out_by_the_guide(half: Asking) -> Sequence[Action]:
    x = half.xp.asarray(COLUMN)

    def case(*, num: int, is_declared: bool) -> Case:
        index = np.arange(num)

        def model() -> None:
            with half.plate("data", 12, index=index):
                z = half.sample("z", half.dist.Normal(0.0, 1.0))
                half.sample("x", half.dist.Normal(z, 0.5), obs=x[:num])

        def guide() -> None:
            half.sample("z", half.dist.Normal(x[:num] + half.param("m", 0.1), 0.8))

        def declared() -> None:
            with half.plate("data", 12, index=index):
                guide()

        return Case(model, declared if is_declared else guide)

    return (
        flow(half, case(num=6, is_declared=False)),
        flow(half, case(num=6, is_declared=True)),
        flow(half, case(num=12, is_declared=False)),
    )


@follows("sites leaves out '…', which the guide computes from '…'")
def latents_of_one_vector(half: Asking) -> Sequence[Action]:
    plain = hierarchy(half)
    case = plain._replace(guide=half.auto("AutoMultivariateNormal", plain.model, *plain.args))
    return (
        flow(half, case, sites=["z"]),
        flow(half, case, sites=["theta", "z"]),
        flow(half, case, sites=["z"], path="posterior"),
    )


@follows("cannot be evaluated where the flow moves it", only="numpyro", quick=())
def density_of_an_autoregressive_flow(half: Asking) -> Sequence[Action]:
    plain = hierarchy(half)
    case = plain._replace(
        guide=half.auto("AutoBNAFNormal", plain.model, *plain.args, hidden_factors=[1])
    )
    return (
        flow(half, case, precondition="none"),
        flow(half, case, precondition="guide"),
        flow(half, case, path="posterior"),
    )


@follows("Expected step_size of the sites that move in the guide")
def steps_of_what_moves(half: Asking) -> Sequence[Action]:
    return tuple(flow(half, vae(half), step_size={site: 0.1}) for site in ("x", "z"))


@follows("whose rows would share one draw", only="numpyro", quick=())
def plate_around_the_refined_guide(half: Asking) -> Sequence[Action]:
    def draw() -> None:
        half.sample("z", half.dist.Normal(0.0, 1.0))

    refined = half.library.TraceHamiltonian_ELBO(2, 0.1, learn=False).refine(draw, draw)
    seed, keys = numpyro.handlers.seed, jax.random.split(jax.random.key(0), 3)

    def one(key: Any) -> Any:
        return numpyro.handlers.trace(seed(refined, key)).get_trace()["z"]["value"]

    def in_a_plate() -> None:
        with seed(rng_seed=0), numpyro.plate("draws", 3):
            refined()

    def mapped() -> None:
        jax.eval_shape(jax.vmap(one), keys)

    def predicted() -> None:
        predictive = numpyro.infer.Predictive(draw, guide=refined, params={}, num_samples=3)
        jax.eval_shape(predictive, keys[0])

    return in_a_plate, mapped, predicted
