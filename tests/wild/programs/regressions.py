"""Parameters of a regression, effects of groups and weights of networks, by automatic guides."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO, autoguide
from torch import Tensor

from tests.halves import Case
from tests.wild.programs.program import N, Program, Refused, Works, counts, net, normals

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def _linear(x: Tensor, y: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, sigma), obs=y)


def _schools(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS.to(y)), obs=y)


def _automatic(kind: str, model: Any, *args: Any, **settings: Any) -> Case:
    guide = getattr(autoguide, kind)(model, **settings)
    guide(*args)
    return Case(model, guide, args)


def linear(kind: str, **settings: Any) -> Case:
    """Linear regression with a scale that is bounded: every latent is global."""
    x = normals(12, 2)
    return _automatic(kind, _linear, x, x @ torch.tensor([1.0, -0.5]).to(x), **settings)


def schools(kind: str, **settings: Any) -> Case:
    """Eight schools: an effect per school below a global mean and scale."""
    return _automatic(kind, _schools, EFFECTS.to(torch.get_default_dtype()), **settings)


def schools_by_hand() -> Case:
    def guide(y: Tensor) -> None:
        positive = dist.constraints.positive
        m_scale = pyro.param("m_scale", torch.tensor(1.0), positive)
        pyro.sample("mu", dist.Normal(pyro.param("m_loc", torch.tensor(4.0)), m_scale))
        pyro.sample("tau", dist.LogNormal(pyro.param("t", torch.tensor(1.0)), 0.5))
        loc = pyro.param("loc", torch.zeros(8))
        scale = pyro.param("scale", torch.full((8,), 3.0), positive)
        with pyro.plate("schools", len(y)):
            pyro.sample("theta", dist.Normal(loc, scale))

    return Case(_schools, guide, (EFFECTS.to(torch.get_default_dtype()),))


def schools_by_parts() -> Case:
    y = EFFECTS.to(torch.get_default_dtype())
    guide = autoguide.AutoGuideList(_schools)
    block = pyro.poutine.block
    guide.append(autoguide.AutoDiagonalNormal(block(_schools, expose=["mu", "tau", "y"])))
    guide.append(autoguide.AutoNormal(block(_schools, expose=["theta", "y"])))
    guide(y)
    return Case(_schools, guide, (y,))


def schools_easily() -> Case:
    class Guide(EasyGuide):
        def guide(self, y: Tensor) -> None:
            self.map_estimate("mu")
            self.map_estimate("tau")
            group = self.group(match="theta")
            loc = pyro.param("loc", torch.zeros(8))
            scale = pyro.param("scale", torch.ones(8), dist.constraints.positive)
            with self.plate("schools", len(y)):
                group.sample("theta_aux", dist.Normal(loc[:, None], scale[:, None]).to_event(1))

    y = EFFECTS.to(torch.get_default_dtype())
    return Case(_schools, Guide(_schools), (y,))


def subsampled_hierarchy() -> Case:
    """A local latent per datum in a subsampled plate, which AutoNormal is told of."""

    def create_plates(x: Tensor) -> Any:
        return pyro.plate("data", len(x), subsample_size=N, dim=-1)

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with create_plates(x) as index:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])

    guide = autoguide.AutoNormal(model, create_plates=create_plates)
    x = normals(2 * N)
    guide(x)
    return Case(model, guide, (x,))


def sparse_gamma() -> Case:
    """A deep exponential family: two layers of codes, and a matrix of weights in a plate."""
    top, bottom, dim = 2, 3, 5

    def positive(name: str, *shape: int) -> Tensor:
        return pyro.param(name, torch.ones(*shape), dist.constraints.positive)

    def model(x: Tensor) -> None:
        with pyro.plate("w_top_plate", top * bottom):
            w_top = pyro.sample("w_top", dist.Gamma(0.5, 0.5)).reshape(top, bottom)
        with pyro.plate("w_bottom_plate", bottom * dim):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(0.5, 0.5)).reshape(bottom, dim)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z_top", dist.Gamma(0.5, 0.5).expand([top]).to_event(1))
            fn = dist.Gamma(0.5, 0.5 / (z @ w_top + 1e-3))
            z = pyro.sample("z_bottom", fn.to_event(1))
            pyro.sample("x", dist.Poisson(z @ w_bottom + 1e-3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        for name, size in (("top", top * bottom), ("bottom", bottom * dim)):
            with pyro.plate(f"w_{name}_plate", size):
                fn = dist.Gamma(positive(f"a_{name}", size), positive(f"b_{name}", size))
                pyro.sample(f"w_{name}", fn)
        with pyro.plate("data", len(x)):
            for name, size in (("top", top), ("bottom", bottom)):
                shape = positive(f"shape_{name}", len(x), size)
                pyro.sample(f"z_{name}", dist.Gamma(shape, 1.0).to_event(1))

    return Case(model, guide, (counts(N, dim),))


def neural_network() -> Case:
    """The weights of a layer are latents, in a plate of the layer's outputs."""
    out = net(3, 1)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("out", out)
        with pyro.plate("hidden", 3):
            weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            mean = out(torch.tanh(x @ weight.mT))[:, 0]
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    x = normals(12, 2)
    return _automatic("AutoNormal", model, x, x[:, 0].sin())


def gplvm() -> Case:
    """Latent inputs of a sparse Gaussian process, all of them one event."""
    y = normals(3, 8)
    prior = y[:2].T * 0.5
    kernel = gp.kernels.RBF(2, lengthscale=torch.ones(2))
    inputs = prior[:4].clone()
    process = gp.models.SparseGPRegression(prior, y, kernel, inputs, jitter=1e-5)
    process.X = pyro.nn.PyroSample(dist.Normal(prior, 0.3).to_event())
    process.autoguide("X", dist.Normal)
    return Case(process.model, process.guide)


NO_PLATE = "its latents are outside plates of data"
POINT = "the guide has no density"
NO_GUIDE = "the guide runs the model inside itself"
PARTICLES = {"sites": ["weight"], "num_particles": 4}
FEW = "estimates mutual information from 8 rows"
MESSENGER = "Messenger.* runs the model (inside the guide|itself).*: use an AutoGuide or"

DENSITIES = {
    "AutoNormal": {},
    "AutoDiagonalNormal": {},
    "AutoMultivariateNormal": {},
    "AutoLowRankMultivariateNormal": {"rank": 1},
    "AutoIAFNormal": {"hidden_dim": [16]},
    "AutoGaussian": {},
    "AutoStructured": {},
}
MESSENGERS = ["AutoNormalMessenger"]


def _regression(kind: str, settings: dict[str, Any]) -> Program:
    return Program(
        name=f"linear regression, {kind}",
        like="Pyro's `bayesian_regression` tutorial",
        make=partial(linear, kind, **settings),
        stock=Trace_ELBO,
        mmd=Works(PARTICLES, otherwise=r"'weight' is in no plate: name it in sites, and set num_"),
        infomax=Refused(r"no latent is left.*'weight' is in no plate", NO_PLATE),
        hamiltonian=Works(),
        step_size=0.005,
    )


def _hierarchy(kind: str, settings: dict[str, Any]) -> Program:
    return Program(
        name=f"eight schools, {kind}",
        like="Pyro's `eight_schools/svi.py`",
        make=partial(schools, kind, **settings),
        stock=Trace_ELBO,
        mmd=Works(),
        infomax=Works(warns=FEW),
        hamiltonian=Works(),
    )


PROGRAMS = [
    *(_regression(kind, settings) for kind, settings in DENSITIES.items()),
    Program(
        name="linear regression, AutoDelta",
        like="Pyro's `bayesian_regression` tutorial",
        make=partial(linear, "AutoDelta"),
        stock=TraceMeanField_ELBO,
        mmd=Works(PARTICLES, otherwise=r"'weight' is in no plate: name it in sites, and set num_"),
        infomax=Refused(r"no latent is left.*'weight' is in no plate", NO_PLATE),
        hamiltonian=Refused(r"'sigma' is a point mass.*as AutoNormal does", POINT),
    ),
    *(_hierarchy(kind, settings) for kind, settings in DENSITIES.items()),
    Program(
        name="eight schools, AutoDelta",
        like="Pyro's `eight_schools/svi.py`",
        make=partial(schools, "AutoDelta"),
        stock=TraceMeanField_ELBO,
        mmd=Works(),
        infomax=Works(warns=FEW),
        hamiltonian=Refused(r"'mu' is a point mass.*as AutoNormal does", POINT),
    ),
    *(
        Program(
            name=f"eight schools, {kind}",
            like="Pyro's `eight_schools/svi.py`",
            make=partial(schools, kind),
            stock=Trace_ELBO,
            mmd=Refused(MESSENGER, NO_GUIDE),
            infomax=Refused(MESSENGER, NO_GUIDE),
            hamiltonian=Refused(MESSENGER, NO_GUIDE),
        )
        for kind in MESSENGERS
    ),
    Program(
        name="eight schools, a guide function",
        like="Pyro's `eight_schools/svi.py`",
        make=schools_by_hand,
        stock=TraceMeanField_ELBO,
        mmd=Works(),
        infomax=Works(warns=FEW),
        hamiltonian=Works(),
    ),
    Program(
        name="eight schools, AutoGuideList",
        like="Pyro's `eight_schools/svi.py`",
        make=schools_by_parts,
        stock=Trace_ELBO,
        mmd=Works(),
        infomax=Works(warns=FEW),
        hamiltonian=Works(),
    ),
    Program(
        name="eight schools, EasyGuide",
        like="Pyro's `contrib.easyguide`",
        make=schools_easily,
        stock=Trace_ELBO,
        mmd=Works(),
        infomax=Works(warns=FEW),
        hamiltonian=Works({"sites": ["theta"]}, otherwise=r"'mu' is a point mass"),
    ),
    Program(
        name="a local latent in a subsampled plate, AutoNormal",
        like="Pyro's `AutoNormal(create_plates=...)`",
        make=subsampled_hierarchy,
        stock=Trace_ELBO,
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(
            {"sites": ["z"]}, otherwise=r"'mu' is outside plate 'data'.*name others in sites"
        ),
    ),
    Program(
        name="sparse gamma network, weights in plates",
        like="Pyro's `sparse_gamma_def.py`",
        make=sparse_gamma,
        stock=TraceMeanField_ELBO,
        critic=(5, 5),
        mmd=Works(),
        infomax=Works(),
        hamiltonian=Works(),
        lr=0.1,
        steps=20,
        step_size=0.005,
    ),
    Program(
        name="neural network with random weights",
        like="NumPyro's `bnn.py`",
        make=neural_network,
        stock=Trace_ELBO,
        mmd=Works(
            {"sites": ["weight"]}, otherwise=r"'weight' is in plates \['hidden'\].*name it in sites"
        ),
        infomax=Refused(r"'weight' is in plates \['hidden'\], which hold no observed", NO_PLATE),
        hamiltonian=Works(),
        step_size=0.005,
    ),
    Program(
        name="GPLVM",
        like="Pyro's `gplvm` tutorial",
        make=gplvm,
        stock=TraceMeanField_ELBO,
        mmd=Works(
            {"sites": ["X"], "num_particles": 4},
            otherwise=r"'X' is in no plate: name it in sites, and set num_particles",
        ),
        infomax=Refused(r"no latent is left.*'X' is in no plate", NO_PLATE),
        hamiltonian=Works(),
    ),
]
