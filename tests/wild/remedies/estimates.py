"""What kernels, estimates, critics and flows say where they are called themselves."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import numpyro
import pyro
import torch
from torch import nn

from pyro_infovae._arrays.checkpointing import checkpointed_gradient
from pyro_infovae._core.tempering import free_inverse_temperatures
from tests.arrays.libraries import gaussian
from tests.arrays.test_critics import LinearEncoder
from tests.halves import Case
from tests.objectives.flows import normal_hierarchy
from tests.questions.asking import Asking
from tests.shared_programs import X, vae
from tests.wild.remedies.following import Action, follows

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(4, 2)), RNG.normal(size=(6, 2))


def module(half: Asking, name: str) -> Any:
    return importlib.import_module(f"{half.library.__name__}.{name}")


def mmd(half: Asking, x: Any = A, y: Any = B, kernel: Any = None, **settings: Any) -> Action:
    settings = {k: half.array(v) if isinstance(v, np.ndarray) else v for k, v in settings.items()}
    kernel = kernel or half.library.RBF()
    return lambda: module(half, "mmd").mmd_squared(half.array(x), half.array(y), kernel, **settings)


def closed_form(half: Asking, *, scale: Any = None, kernel: Any = None, **sizes: Any) -> Action:
    """Of normals with locations A and A + 1."""
    first, second = half.array(A), half.array(A + 1)
    ones = half.array(np.ones_like(A))
    scale = ones if scale is None else half.array(scale)
    kernel = kernel or half.library.RBF()
    return lambda: module(half, "mmd").mmd_squared_normal(
        first, ones, second, scale, kernel, **sizes
    )


# --- kernels and MMD ------------------------------------------------------------------------------


def by_features(half: Asking, *, keyed: bool = True, **settings: Any) -> Action:
    key = {"rng_key": jax.random.key(0)} if half.compiles and keyed else {}
    return mmd(half, **{"estimator": "features", **key, **settings})


@follows("Expected estimator 'unbiased', 'biased' or 'features'; got …")
def estimators(half: Asking) -> Sequence[Action]:
    exact = (mmd(half, estimator=kind) for kind in ("best", "unbiased", "biased"))
    return *exact, by_features(half)


@follows("or a sum of them, whose spectrum is known; got …: use estimator='unbiased'")
def spectrum_of_a_callable(half: Asking) -> Sequence[Action]:
    kernel = gaussian
    return by_features(half, kernel=kernel), mmd(half, kernel=kernel)


@follows("Expected num_features of at least …, one for each term")
def frequencies_of_each_term(half: Asking) -> Sequence[Action]:
    kernel = half.library.RBF((0.5, 1.0, 2.0))
    return tuple(by_features(half, kernel=kernel, num_features=n) for n in (2, 3))


@follows("use estimator='features' or mmd_squared_normal; got an array")
def scales_of_points(half: Asking) -> Sequence[Action]:
    ones = np.ones_like(B)
    return mmd(half, y_scale=ones), by_features(half, y_scale=ones), closed_form(half)


@follows("Expected rng_key for estimator='features'", only="numpyro")
def key_of_the_frequencies(half: Asking) -> Sequence[Action]:
    return by_features(half, keyed=False), by_features(half)


@follows("Use mmd_squared_normal for the closed form")
def closed_form_of_draws(half: Asking) -> Sequence[Action]:
    return mmd(half, estimator="closed_form"), closed_form(half)


@follows("Expected positive, finite …; got …=…")
def kernel_scales(half: Asking) -> Sequence[Action]:
    return tuple(partial(half.library.RBF, scale) for scale in (0.0, 1.0, (0.5, 2.0)))


@follows("Expected x and y of shapes (n, d) and (m, d)")
def shapes_of_rows(half: Asking) -> Sequence[Action]:
    return mmd(half, A[:, 0], B[:, :1]), mmd(half, A[:, 0][:, None], B[:, :1])


@follows("Expected …_scale of …_loc's shape")
def scale_of_a_normal(half: Asking) -> Sequence[Action]:
    ones = np.ones(2)
    return closed_form(half, scale=ones), closed_form(half, scale=np.broadcast_to(ones, A.shape))


@follows("Expected num_data of at least batch_size")
def size_of_the_data(half: Asking) -> Sequence[Action]:
    sizes = {"batch_size": 4}
    return closed_form(half, num_data=3, **sizes), closed_form(half, num_data=40, **sizes)


@follows("Expected at least … rows of …; got …")
def too_few_rows(half: Asking) -> Sequence[Action]:
    return mmd(half, A[:1]), mmd(half, A[:2])


@follows("Expected …_weights of shape …; got …")
def weights_of_rows(half: Asking) -> Sequence[Action]:
    return mmd(half, x_weights=np.ones((4, 1))), mmd(half, x_weights=np.ones(4))


@follows("Expected batch_size of at least … that divides")
def repeated_rows(half: Asking) -> Sequence[Action]:
    return mmd(half, batch_size=4), mmd(half, batch_size=2)


@follows("Expected one derivative of MMD^2; got a second", only="pyro")
def second_derivative(half: Asking) -> Sequence[Action]:
    def twice(kernel: Any) -> Action:
        def run() -> None:
            x = torch.tensor(A, requires_grad=True)
            value = half.library.mmd.mmd_squared(x, torch.tensor(B), kernel)
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            gradient.sum().backward()
            assert x.grad is not None
            assert x.grad.isfinite().all()

        return run

    kernel = half.library.RBF()
    return twice(kernel), twice(lambda x, y: kernel(x, y))


@follows("Expected grad inside vmap; got vmap inside grad", only="pyro")
def vmap_inside_grad(half: Asking) -> Sequence[Action]:
    func = torch.func
    xs, y = torch.tensor(RNG.normal(size=(3, 4, 2))), torch.tensor(B)

    def value(x: Any) -> Any:
        return half.library.mmd.mmd_squared(x, y, half.library.RBF())

    return (
        lambda: func.grad(lambda x: func.vmap(value)(x).sum())(xs),
        lambda: func.vmap(func.grad(value))(xs),
    )


# --- mutual information ---------------------------------------------------------------------------


@follows("Expected clip > 0 nats")
def clip(half: Asking) -> Sequence[Action]:
    zeros = half.array(np.zeros(2))
    smile = module(half, "mutual_information").smile
    return tuple(partial(smile, zeros, zeros, clip=value) for value in (0.0, math.inf))


def _pairs(half: Asking, critic: Any, z: Any = B, **settings: Any) -> Action:
    return lambda: module(half, "critics").score_all_pairs(
        critic, half.array(A), half.array(z), **settings
    )


def _product(x: Any, z: Any) -> Any:
    return (x * z).sum(-1)


@follows("Expected block_rows >= 1")
def block_rows(half: Asking) -> Sequence[Action]:
    return tuple(_pairs(half, _product, block_rows=rows) for rows in (0, 1))


@follows("Expected critic.all_pairs(x, z) of shape")
def all_pairs(half: Asking) -> Sequence[Action]:
    class Transposed:
        def all_pairs(self, x: Any, z: Any) -> Any:
            return z @ x.T

    class Products:
        def all_pairs(self, x: Any, z: Any) -> Any:
            return x @ z.T

    return _pairs(half, Transposed()), _pairs(half, Products())


def _concat(half: Asking, *sizes: int, **encoders: Any) -> Callable[[Any, Any], Any]:
    critic = half.library.ConcatCritic(*sizes, **encoders)
    if not half.compiles:
        return critic
    return critic.bind(critic.init(jax.random.key(0)))


@follows("score_all_pairs scores every x with every z")
def pairs_of_rows(half: Asking) -> Sequence[Action]:
    critic = _concat(half, 2, 2)
    return lambda: critic(half.array(A), half.array(B)), _pairs(half, critic)


@follows("features in each row; got … in …: pass …_dim=…, or an encoder")
def features_of_a_row(half: Asking) -> Sequence[Action]:
    x, z = half.array(X[:4]), half.array(A)
    return (
        lambda: _concat(half, 2, 2)(x, z),
        lambda: _concat(half, 3, 2)(x, z),
        lambda: _concat(half, 2, 2, x_encoder=_encoder(half, 3, 2))(x, z),
    )


@follows("_dim is the width of the encoder's output")
def width_of_an_encoder(half: Asking) -> Sequence[Action]:
    x, z = half.array(X[:4]), half.array(A)
    return tuple(
        lambda width=width: _concat(half, width, 2, x_encoder=_encoder(half, 3, 5))(x, z)
        for width in (3, 5)
    )


def _encoder(half: Asking, features: int, width: int) -> Any:
    return LinearEncoder(features, width) if half.compiles else nn.Linear(features, width)


@follows("Expected joint of shape (rows,)")
def joint_scores(half: Asking) -> Sequence[Action]:
    nwj = module(half, "mutual_information").nwj
    joint = half.array(np.zeros((6, 1)))
    return lambda: nwj(joint, joint[:, 0]), lambda: nwj(joint.squeeze(-1), joint[:, 0])


@follows("infonce compares each row's score with its own negatives")
def marginal_scores(half: Asking) -> Sequence[Action]:
    infonce = module(half, "mutual_information").infonce
    scores = [half.array(np.zeros(shape)) for shape in (6, (2, 6), (6, 2))]
    return lambda: infonce(*scores[:2]), lambda: infonce(scores[0], scores[2])


@follows("_weights of shape …, that of the scores")
def weights_of_scores(half: Asking) -> Sequence[Action]:
    nwj = module(half, "mutual_information").nwj
    zeros, ones = half.array(np.zeros(6)), half.array(np.ones((6, 1)))
    return (
        lambda: nwj(zeros, zeros, joint_weights=ones),
        lambda: nwj(zeros, zeros, joint_weights=ones[:, 0]),
    )


@follows("Expected critic to be a torch.nn.Module", only="pyro")
def critic_of_torch(half: Asking) -> Sequence[Action]:
    class Product(nn.Module):
        def forward(self, x: Any, z: Any) -> Any:
            return _product(x, z)

    infomax, concat = half.library.TraceInfoMax_ELBO, half.library.ConcatCritic
    return (
        lambda: infomax(_product),
        lambda: infomax(Product()),
        lambda: infomax(concat(3, 2)),
    )


@follows("Expected critic to be a module of flax.linen, flax.nnx or equinox", only="numpyro")
def critic_of_jax(half: Asking) -> Sequence[Action]:
    concat = half.library.ConcatCritic
    return tuple(
        partial(half.library.TraceInfoMax_ELBO, critic) for critic in (concat, concat(3, 2))
    )


@follows("Expected a critic with parameters alone", only="numpyro")
def critic_with_a_state(half: Asking) -> Sequence[Action]:
    from flax import linen

    class Normalised(linen.Module):
        norm: Any

        @linen.compact
        def __call__(self, x: Any, z: Any) -> Any:
            return self.norm(x).sum(1) * z.sum(1)

    def declared(norm: Any) -> Action:
        def run() -> None:
            case, optim = vae(half), numpyro.optim.Adam(1e-2)
            elbo = half.library.TraceInfoMax_ELBO(Normalised(norm))
            svi = half.library.SVI(case.model, case.guide, optim, loss=elbo)
            jax.eval_shape(lambda key: svi.init(key, *case.args).rng_key, jax.random.key(0))

        return run

    return declared(linen.BatchNorm(use_running_average=False)), declared(linen.LayerNorm())


# --- parameters of an objective -------------------------------------------------------------------


def _undeclared(half: Asking, make: Callable[[], Any], *, wraps: str) -> Sequence[Action]:
    case = vae(half)

    def step(svi_of: Any, *, is_wrapped: bool = False) -> Action:
        def run() -> None:
            elbo = make()
            programs = {"model": case.model, "guide": case.guide}
            if is_wrapped:
                programs[wraps] = getattr(elbo, f"wrap_{wraps}")(programs[wraps])
            svi = svi_of(*programs.values(), numpyro.optim.Adam(1e-2), loss=elbo)

            def first(key: Any) -> Any:
                return svi.update(svi.init(key, *case.args), *case.args)[1]

            jax.eval_shape(first, jax.random.key(0))

        return run

    return (
        step(numpyro.infer.SVI),
        step(half.library.SVI),
        step(numpyro.infer.SVI, is_wrapped=True),
    )


@follows("or pass elbo.wrap_model(model) as the model", only="numpyro", quick=())
def undeclared_step_size(half: Asking) -> Sequence[Action]:
    elbo = half.library.TraceHamiltonian_ELBO
    return _undeclared(half, lambda: elbo(2, path="posterior"), wraps="model")


@follows("or pass elbo.wrap_guide(guide) as the guide", only="numpyro", quick=())
def undeclared_step_size_of_a_base(half: Asking) -> Sequence[Action]:
    elbo = half.library.TraceHamiltonian_ELBO
    return _undeclared(half, lambda: elbo(2), wraps="guide")


@follows("Expected the critic's parameters", only="numpyro")
def undeclared_critic(half: Asking) -> Sequence[Action]:
    return _undeclared(half, lambda: _infomax(half), wraps="model")


def _infomax(half: Asking, width: int = 8, **settings: Any) -> Any:
    critic = half.library.ConcatCritic(3, 2, hidden=(width,))
    return half.library.TraceInfoMax_ELBO(critic, **settings)


def _loss(elbo: Any, case: Case) -> None:
    elbo.loss(case.model, case.guide, *case.args)


@follows("in the param store; got … of an earlier critic", only="pyro")
def earlier_critic(half: Asking) -> Sequence[Action]:
    case = vae(half)

    def after(between: Action, **settings: Any) -> Action:
        def run() -> None:
            _loss(_infomax(half), case)
            between()
            _loss(_infomax(half, 9, **settings), case)

        return run

    return (
        after(lambda: None),
        after(pyro.clear_param_store),
        after(lambda: None, name="other"),
    )


@follows("give this objective another name, or clear the param store", only="pyro")
def earlier_flow(half: Asking) -> Sequence[Action]:
    model = normal_hierarchy(half)

    def after(between: Action, **settings: Any) -> Action:
        def run() -> None:
            case = Case(model, pyro.infer.autoguide.AutoNormal(model))
            _loss(half.library.TraceHamiltonian_ELBO(2), case)
            between()
            _loss(half.library.TraceHamiltonian_ELBO(3, **settings), case)

        return run

    return (
        after(lambda: None),
        after(lambda: None, name="other"),
        after(pyro.clear_param_store),
    )


def _continued(half: Asking, first: Any, second: Any, other: Any) -> Sequence[Action]:
    """Training goes on from the parameters of another objective, or starts anew."""
    case = vae(half)

    def svi_of(elbo: Any) -> Any:
        return half.library.SVI(case.model, case.guide, numpyro.optim.Adam(1e-2), loss=elbo)

    def step(elbo: Any, *, anew: bool) -> Action:
        def run(key: Any) -> Any:
            svi = svi_of(elbo)
            state = svi.init(key, *case.args)
            if not anew:
                state = svi_of(first).init(key, *case.args)
            return svi.update(state, *case.args)[1]

        return lambda: jax.eval_shape(run, jax.random.key(0))

    return step(second, anew=False), step(second, anew=True), step(other, anew=True)


@follows("initialise SVI anew, or pass another name=", only="numpyro")
def earlier_critic_in_numpyro(half: Asking) -> Sequence[Action]:
    elbos = _infomax(half), _infomax(half, 9), _infomax(half, 9, name="other")
    return _continued(half, *elbos)


@follows("no optimiser has moved the step sizes of", only="pyro")
def optimiser_before_the_first_call(half: Asking) -> Sequence[Action]:
    loc = torch.nn.Parameter(torch.zeros(()))

    def draw() -> None:
        half.sample("z", half.dist.Normal(loc, 1.0))

    def train(*, call_first: bool) -> Action:
        def run() -> None:
            module = half.library.TraceHamiltonian_ELBO(2)(draw, draw)
            if call_first:
                with torch.no_grad():
                    module()
            optimiser = torch.optim.Adam([loc, *module.parameters()])
            for _ in range(60):
                optimiser.zero_grad()
                module().backward()
                optimiser.step()

        return run

    return train(call_first=False), train(call_first=True)


@follows("give this objective another name, or initialise them anew", only="numpyro", quick=())
def earlier_flow_in_numpyro(half: Asking) -> Sequence[Action]:
    hamiltonian = half.library.TraceHamiltonian_ELBO
    return _continued(half, hamiltonian(2), hamiltonian(3), hamiltonian(3, name="other"))


# --- tempering, integrators, derivatives ----------------------------------------------------------


def _schedule(half: Asking, *arguments: Any) -> Action:
    return lambda: module(half, "tempering").inverse_temperatures(*arguments)


@follows("Expected beta_0 of shape ()")
def start_of_a_schedule(half: Asking) -> Sequence[Action]:
    return _schedule(half, half.array([0.3]), 3), _schedule(half, half.array(0.3), 3)


@follows("Expected tempering(beta_0, …, …) to be a scalar")
def schedule_of_a_vector(half: Asking) -> Sequence[Action]:
    beta_0 = half.array(0.3)
    return (
        _schedule(half, beta_0, 3, lambda b, k, n: b[None]),
        _schedule(half, beta_0, 3, lambda b, k, n: b + (1 - b) * k / n),
    )


@follows("Expected tempering(beta_0, …, …) to be positive and finite")
def schedule_below_zero(half: Asking) -> Sequence[Action]:
    return tuple(_schedule(half, 0.3, 3, lambda b, k, n, x=x: x) for x in (-1.0, 1.0))


@follows("Expected factors of shape (num_steps,)")
def factors(half: Asking) -> Sequence[Action]:
    return tuple(
        partial(free_inverse_temperatures, half.array(np.full(shape, 0.5)))
        for shape in ((2, 3), (3,))
    )


@follows("in an objective also 'free', or a callable")
def free_schedule(half: Asking) -> Sequence[Action]:
    def given_by_factors() -> None:
        free_inverse_temperatures(half.array(np.full(3, 0.9)))

    linear = _schedule(half, 0.3, 3, lambda b, k, n: b + (1 - b) * k / n)
    named = [_schedule(half, 0.3, 3, name) for name in ("quadratic", "constant", "none")]
    return _schedule(half, 0.3, 3, "free"), given_by_factors, linear, *named


def _leapfrog(half: Asking, **change: Any) -> Action:
    u = {"a": np.ones((3, 2)), "b": np.ones(3)}
    given = {"u": u, "rho": u, "inverse_temperatures": np.ones(5), "step_size": 0.1} | change
    arguments = jax.tree.map(
        lambda value: half.array(value) if isinstance(value, np.ndarray) else value, given
    )
    return lambda: module(half, "integrators").tempered_leapfrog(
        potential_grad=lambda u: (u, half.array(0.0)), **arguments
    )


@follows("Expected inverse_temperatures of shape (num_steps + 1,)")
def temperatures_of_a_flow(half: Asking) -> Sequence[Action]:
    return tuple(_leapfrog(half, inverse_temperatures=np.ones(n)) for n in (1, 2))


@follows("Expected rho of the sites")
def momenta_of_the_sites(half: Asking) -> Sequence[Action]:
    return _leapfrog(half, rho={"a": np.ones((3, 2))}), _leapfrog(half)


@follows("Expected rho[…] of shape")
def momenta_of_a_shape(half: Asking) -> Sequence[Action]:
    return tuple(
        _leapfrog(half, rho={"a": np.ones((3, 2)), "b": np.ones(shape)}) for shape in ((3, 1), 3)
    )


@follows("Expected step_size of the sites …; got …")
def steps_of_the_sites(half: Asking) -> Sequence[Action]:
    return tuple(_leapfrog(half, step_size=s) for s in ({"a": 0.1}, {"a": 0.1, "b": 0.2}))


def _annealed(half: Asking, **change: Any) -> Action:
    """Two steps of an annealed flow of a site of one number."""
    one = np.ones(1)
    given = {
        "inverse_temperatures": np.array([0.5, 1.0]),
        "persistence": 0.7 * one,
        "noise": {"a": np.ones((1, 1))},
        **change,
    }
    arguments = jax.tree.map(half.array, {"u": {"a": one}, "rho": {"a": one}, **given})

    def run() -> None:
        module(half, "integrators").annealed_leapfrog(
            gradients=lambda u: (u, u, half.array(0.0)),
            step_size={"a": half.array(np.full(2, 0.1))},
            event_dims={"a": 1},
            **arguments,
        )

    return run


@follows("Expected inverse_temperatures of shape (num_steps,)")
def temperatures_of_an_annealed_flow(half: Asking) -> Sequence[Action]:
    given = np.ones((2, 1)), np.ones(2)
    return tuple(_annealed(half, inverse_temperatures=betas) for betas in given)


@follows("Expected persistence of shape")
def persistence_of_an_annealed_flow(half: Asking) -> Sequence[Action]:
    return tuple(_annealed(half, persistence=np.ones(n)) for n in (2, 1))


@follows("Expected noise[…] of shape")
def noise_of_an_annealed_flow(half: Asking) -> Sequence[Action]:
    return tuple(_annealed(half, noise={"a": np.ones((n, 1))}) for n in (2, 1))


@follows("Expected step_size of … to broadcast to …; got shape …")
def steps_of_a_shape(half: Asking) -> Sequence[Action]:
    return tuple(_leapfrog(half, step_size={"a": np.ones(n), "b": 0.1}) for n in (3, 2))


@follows("Expected step_size of … to broadcast to …; got shape … in each step")
def steps_of_a_shape_each(half: Asking) -> Sequence[Action]:
    return tuple(
        _leapfrog(half, step_size={"a": np.ones((4, n)), "b": np.ones(4)}, per_step=True)
        for n in (3, 2)
    )


@follows("Expected step_size of … with a leading axis of … steps")
def one_length_for_each_step(half: Asking) -> Sequence[Action]:
    return tuple(_leapfrog(half, step_size=np.full(n, 0.1), per_step=True) for n in (3, 4))


@follows("Expected a scalar function", only="pyro")
def gradient_of_a_vector(half: Asking) -> Sequence[Action]:
    z = torch.ones(3)
    return (
        lambda: checkpointed_gradient(lambda z: z**2, (z,)),
        lambda: checkpointed_gradient(lambda z: (z**2).sum(), (z,)),
    )


@follows("Expected a differentiable function", only="pyro")
def function_without_a_graph(half: Asking) -> Sequence[Action]:
    z = torch.ones(3, requires_grad=True)
    return (
        lambda: checkpointed_gradient(lambda z: z.detach().sum(), (z,)),
        lambda: checkpointed_gradient(lambda z: z.sum(), (z,)),
    )


@follows("Expected create_graph=False", only="pyro")
def third_derivative(half: Asking) -> Sequence[Action]:
    def second(*, create_graph: bool) -> Action:
        def run() -> None:
            z = torch.ones(3, requires_grad=True)
            (gradient,), _ = checkpointed_gradient(lambda z: (z**4).sum(), (z,))
            torch.autograd.grad(gradient.sum(), z, create_graph=create_graph)

        return run

    return second(create_graph=True), second(create_graph=False)


@follows("call backward where they are still the ones in use", only="pyro")
def other_parameters_in_backward(half: Asking) -> Sequence[Action]:
    model = normal_hierarchy(half)

    def guide() -> None:
        scale = pyro.param("scale", torch.tensor(0.7))
        half.sample("theta", half.dist.Normal(0.0, scale))
        with pyro.plate("data", 3):
            half.sample("z", half.dist.Normal(0.0, scale))

    def weighted() -> None:
        pyro.factor("bonus", pyro.param("weight", torch.tensor(0.5)) * 1.0)
        model()

    def step(*, inside: bool) -> Action:
        def run() -> None:
            with pyro.get_param_store().scope():
                elbo = half.library.TraceHamiltonian_ELBO(2, 0.1, checkpoint=True)
                loss = elbo.differentiable_loss(weighted, guide)
                if inside:
                    loss.backward()
            if not inside:
                loss.backward()

        return run

    return step(inside=False), step(inside=True)
