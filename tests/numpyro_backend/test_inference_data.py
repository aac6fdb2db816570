"""to_inference_data: what ArviZ makes of a NumPyro model and its guide."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import Array
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal

import pyro_infovae.inference_data
from numpyro_backend import TraceMMD_ELBO
from numpyro_backend.inference_data import to_inference_data
from numpyro_backend.trace_hamiltonian_elbo import TraceHamiltonian_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.programs import Programs
from tests.pyro_infovae import programs as pyro_programs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz", exc_type=ImportError)
    import matplotlib.pyplot as plt

pytestmark = pytest.mark.usefixtures("quick_double_precision")

GROUPS = [
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "prior",
    "prior_predictive",
    "observed_data",
]
SAMPLE = ("chain", "draw")
NOISE = 0.5


def run(case: Programs, **settings: Any) -> Any:
    params = settings.pop("params", {})
    settings = {"num_samples": 20, **settings}
    key = jax.random.key(0)
    return to_inference_data(key, params, case.model, case.guide, *case.args, **settings)


def dims(data: Any, group: str) -> dict[str, tuple[str, ...]]:
    return {name: values.dims for name, values in data[group].data_vars.items()}


def normals(mask: Any = True) -> Programs:
    """z_i ~ N(0, 1), x_i ~ N(z_i, 0.5²), and the posterior N(0.8 x_i, 0.2) as the guide."""
    x = programs.data()[:, 0]

    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            with handlers.mask(mask=mask):
                numpyro.sample("x", dist.Normal(z, NOISE), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    return Programs(model, guide, (x,))


def schools() -> tuple[Programs, dict[str, Any]]:
    """Eight schools, not centred, and the parameters of its guide."""
    effects = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
            theta = numpyro.deterministic("theta", mu + tau * eta)
            numpyro.sample("effect", dist.Normal(theta, errors), obs=effects)

    guide = AutoNormal(model)
    trace = handlers.trace(handlers.seed(guide, 0)).get_trace()
    params = {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    return Programs(model, guide, ()), params


def normal_log_prob(x: np.ndarray, loc: np.ndarray, scale: float) -> np.ndarray:
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


PROGRAMS: dict[str, Callable[[], Programs]] = {
    "minibatch": lambda: programs.vae(batch=5),
    "nested": programs.nested,
    "sequences": programs.sequences,
    "hierarchical": programs.hierarchical,
}
CHUNK_SIZES = {"minibatch": 3, "nested": 1}


@cache
def drawn(name: str) -> Any:
    """Four draws from one of the programs, whose scale must not count."""
    model, guide, args = PROGRAMS[name]()
    scaled = Programs(handlers.scale(model, scale=3.0), guide, args)
    return run(scaled, num_samples=4, chunk_size=CHUNK_SIZES.get(name))


class TestValues:
    def test_a_model_with_known_posterior_and_predictions(self) -> None:
        """Means and variances of every group, within five standard errors."""
        num_samples = 4000
        case = normals()
        data, x = run(case, num_samples=num_samples), case.args[0]
        expected = {
            ("posterior", "z"): (0.8 * x, 0.2),
            ("posterior_predictive", "x"): (0.8 * x, 0.2 + NOISE**2),
            ("prior", "z"): (0 * x, 1.0),
            ("prior_predictive", "x"): (0 * x, 1 + NOISE**2),
        }
        for (group, name), (mean, variance) in expected.items():
            draws = data[group][name].values[0]
            assert draws.shape == (num_samples, len(x))
            error = (variance / num_samples) ** 0.5
            assert np.abs(draws.mean(0) - mean).max() < 5 * error
            assert np.abs(draws.var(0) / variance - 1).max() < 5 * (2 / num_samples) ** 0.5
        np.testing.assert_array_equal(data.observed_data["x"].values, x)
        likelihoods = normal_log_prob(x, data.posterior["z"].values, NOISE)
        np.testing.assert_allclose(data.log_likelihood["x"].values, likelihoods)
        for latents, predictions in (
            (data.posterior["z"], data.posterior_predictive["x"]),
            (data.prior["z"], data.prior_predictive["x"]),
        ):
            residuals = (predictions - latents).values
            assert abs(residuals.var() / NOISE**2 - 1) < 5 * (2 / residuals.size) ** 0.5

    def test_covariates_are_seen_by_the_predictions(self) -> None:
        case = programs.covariate_prior()
        data = run(case, num_samples=4000)
        draws = data.prior_predictive["x"].values[0]
        assert np.abs(draws.mean(0) - 3 * case.args[0][:, 0]).max() < 5 * (2 / 4000) ** 0.5

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_log_likelihoods_sum_to_the_models(self, name: str) -> None:
        """Against the model run on one posterior draw after the other, without a scale."""
        (model, _, args), data = PROGRAMS[name](), drawn(name)
        for draw in range(4):
            chosen = data.posterior.isel(chain=0, draw=draw)
            given = {site: jnp.asarray(values) for site, values in chosen.data_vars.items()}
            if name == "minibatch":
                given["data"] = jnp.asarray(chosen.coords["data"])
            once = handlers.substitute(handlers.seed(model, 0), data=given)
            site = handlers.trace(once).get_trace(*args)["x"]
            total = float(data.log_likelihood["x"][0, draw].sum())
            np.testing.assert_allclose(total, site["fn"].log_prob(site["value"]).sum())


class TestDims:
    @pytest.mark.parametrize("program", ["nested", "sequences", "hierarchical"])
    def test_both_halves_have_the_same(self, program: str) -> None:
        ours = drawn(program)
        model, guide, args = getattr(pyro_programs, program)()
        theirs = pyro_infovae.inference_data.to_inference_data(model, guide, *args, num_samples=4)
        assert list(ours.groups()) == list(theirs.groups())
        for group in GROUPS:
            assert dims(ours, group) == dims(theirs, group)
            assert ours[group].coords.keys() == theirs[group].coords.keys()
            for name, values in ours[group].coords.items():
                np.testing.assert_array_equal(values, theirs[group].coords[name])

    def test_a_minibatch(self) -> None:
        """Its indices are the coordinates, its data are observed, in all draws and groups."""
        case, data = programs.vae(batch=5), drawn("minibatch")
        index = data.posterior.coords["data"].values
        assert len(set(index)) == 5
        for group in GROUPS:
            np.testing.assert_array_equal(data[group].coords["data"].values, index)
        np.testing.assert_array_equal(data.observed_data["x"].values, case.args[0][index])
        assert len(np.unique(data.posterior["z"].values)) == 4 * 5 * 2

    def test_deterministic_sites_and_dims_in_no_plate(self) -> None:
        def guide() -> None:
            numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0))
            numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            with numpyro.plate("data", 4):
                numpyro.sample("y", dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1))

        def model() -> None:
            numpyro.deterministic("constant", jnp.arange(4.0))
            numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0))
            z = numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            numpyro.deterministic("total", z.sum(-1))
            with numpyro.plate("data", 4):
                numpyro.deterministic("shared", jnp.arange(4.0))
                y = numpyro.sample("y", dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1))
                numpyro.deterministic("image", y[..., None] * jnp.ones(5))
                numpyro.sample("x", dist.Normal(y.sum(-1), 1.0), obs=jnp.zeros(4))

        data = run(Programs(model, guide, ()))
        expected = {
            "constant": (*SAMPLE, "constant_dim_0"),
            "w": (*SAMPLE, "w_dim_0"),
            "z": (*SAMPLE, "z_dim_0"),
            "total": SAMPLE,
            "shared": (*SAMPLE, "data"),
            "y": (*SAMPLE, "data", "y_dim_0"),
            "image": (*SAMPLE, "data", "image_dim_0", "image_dim_1"),
        }
        assert dims(data, "posterior") == dims(data, "prior") == expected
        draws = data.posterior
        assert list(draws.data_vars) == list(expected)
        assert (draws["constant"].values == np.arange(4)).all()
        np.testing.assert_allclose(draws["total"], draws["z"].sum("z_dim_0"))
        np.testing.assert_allclose(draws["image"][..., 2], draws["y"])

    def test_sites_of_other_kinds(self) -> None:
        """Auxiliary sites, factors and minibatches are no variables; a new latent is predicted."""

        def model() -> None:
            p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
            numpyro.factor("factor", -p)
            with numpyro.plate("data", 6, subsample_size=3):
                y = numpyro.sample("y", dist.Bernoulli(p))
                numpyro.sample("x", dist.Normal(y, 1.0), obs=jnp.zeros(()))
            numpyro.sample("new", dist.Normal(100.0, 1.0))

        def guide() -> None:
            u = numpyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            numpyro.sample("p", dist.Delta(jax.nn.sigmoid(u)))
            with numpyro.plate("data", 6, subsample_size=3):
                numpyro.sample("y", dist.Bernoulli(0.5))

        data = run(Programs(model, guide, ()))
        assert list(data.posterior.data_vars) == ["p", "y"]
        assert list(data.log_likelihood.data_vars) == ["x"]
        assert data.observed_data["x"].shape == (3,)
        for group in ("posterior_predictive", "prior_predictive"):
            assert list(data[group].data_vars) == ["x", "new"]
            assert (data[group]["new"] > 90).all()


class TestMaskedRows:
    mask = np.random.default_rng(0).permutation([True] * 7 + [False] * 5)

    @pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
    def test_they_are_left_out(self) -> None:
        """Neither does arviz.loo count them."""
        case = normals(jnp.asarray(self.mask))
        data, x = run(case, num_samples=500), case.args[0][self.mask]
        for group in GROUPS[1:3]:
            assert data[group]["x"].dims == (*SAMPLE, "x_row")
        row_ids = data.log_likelihood.coords["x_row"].values
        assert row_ids.tolist() == np.flatnonzero(self.mask).tolist()
        np.testing.assert_array_equal(data.observed_data["x"].values, x)
        latents = data.posterior["z"].values[..., self.mask]
        expected = normal_log_prob(x, latents, NOISE)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)
        reference = az.from_dict(posterior={"z": latents}, log_likelihood={"x": expected})
        for statistic in ("elpd_loo", "se", "p_loo", "n_data_points"):
            np.testing.assert_allclose(az.loo(data)[statistic], az.loo(reference)[statistic])

    def test_ragged_rows_know_their_place(self) -> None:
        """Of plates (time: 5, data: 4), by their lengths 5, 3, 1, 4."""
        data = drawn("sequences")
        time, datum = np.divmod(data.log_likelihood.coords["x_row"].values, 4)
        assert sorted(zip(datum, time, strict=True)) == [
            (i, t) for i, length in enumerate([5, 3, 1, 4]) for t in range(length)
        ]
        x = programs.sequences().args[0]
        np.testing.assert_array_equal(data.observed_data["x"].values, x[time, datum])

    def test_masks_of_some_draws_or_of_all_rows(self) -> None:
        def model() -> None:
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                with handlers.mask(mask=z > 0):
                    numpyro.sample("x", dist.Normal(0.0, 1.0), obs=jnp.zeros(3))
            with handlers.mask(mask=False):
                numpyro.sample("other", dist.Normal(0.0, 1.0), obs=jnp.ones(()))

        def guide() -> None:
            with numpyro.plate("data", 3):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        data = run(Programs(model, guide, ()), num_samples=50)
        expected = (data.posterior["z"].values > 0) * normal_log_prob(0.0, 0.0, 1.0)
        np.testing.assert_allclose(data.log_likelihood["x"].values, expected)
        for group in ("posterior_predictive", "log_likelihood", "observed_data"):
            assert list(data[group].data_vars) == ["x"]


class TestArviz:
    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
    def test_summaries_plots_and_files(self, tmp_path: Path) -> None:
        case, params = schools()
        objective = TraceMMD_ELBO(alpha=0.3, lambd=10.0)
        data = run(case, params=params, num_samples=200, objective=objective)
        assert dims(data, "posterior") == dims(data, "prior")
        assert dims(data, "posterior")["theta"] == (*SAMPLE, "schools")
        assert (data.posterior["tau"] > 0).all()
        summary = az.summary(data, var_names=["mu", "theta"], kind="stats")
        assert list(summary.index) == ["mu", *(f"theta[{i}]" for i in range(8))]
        assert az.loo(data).n_data_points == 8
        plt.switch_backend("agg")
        az.plot_ppc(data, num_pp_samples=5)
        plt.close("all")
        data.to_netcdf(str(tmp_path / "schools.nc"))
        loaded = az.from_netcdf(str(tmp_path / "schools.nc"))
        assert loaded.attrs["objective"] == "TraceMMD_ELBO"
        stored = json.loads(loaded.attrs["objective_settings"])
        assert {"alpha": 0.3, "lambd": 10.0}.items() <= stored.items()
        for group in GROUPS:
            for name, values in data[group].data_vars.items():
                np.testing.assert_array_equal(loaded[group][name].values, values.values)

    def test_from_dict_as_of_arviz_1_by_a_stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The signature is that of arviz-base 1.0."""

        def from_dict(
            data: dict[str, dict[str, np.ndarray]],
            *,
            name: str | None = None,
            sample_dims: list[str] | None = None,
            save_warmup: bool | None = None,
            index_origin: int | None = None,
            coords: dict[str, Any] | None = None,
            dims: dict[str, list[str]] | None = None,
            pred_dims: dict[str, list[str]] | None = None,
            pred_coords: dict[str, Any] | None = None,
            check_conventions: bool = True,
            attrs: dict[str, dict[str, Any]] | None = None,
        ) -> SimpleNamespace:
            return SimpleNamespace(data=data, coords=coords, dims=dims, attrs=attrs)

        monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(from_dict=from_dict))
        tree = run(programs.vae(batch=5), num_samples=20, objective=TraceMMD_ELBO())
        assert list(tree.data) == GROUPS
        assert tree.dims == {"z": ["data", "z_dim_0"], "x": ["data", "x_dim_0"]}
        assert tree.data["log_likelihood"]["x"].shape == (1, 20, 5)
        assert len(tree.coords["data"]) == 5
        assert tree.attrs.keys() == {"/"}
        assert tree.attrs["/"]["objective"] == "TraceMMD_ELBO"

    def test_arviz_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "arviz", None)
        with pytest.raises(ModuleNotFoundError, match=r"needs ArviZ: pip install pyro-infovae\["):
            run(normals())

    def test_arviz_is_broken(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """What it lacks is what the error names."""
        (tmp_path / "arviz.py").write_text("import nowhere_to_be_found")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "arviz")
        with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
            run(normals())


class TestRefine:
    def test_draws_are_those_of_the_refined_guide(self) -> None:
        """From a guide at 0 the flow moves half the way to the data, and more."""
        model, _, (x,) = normals()

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", dist.Normal(0.0, 1.0))

        refine = TraceHamiltonian_ELBO(5, 0.15, tempering="none", learn=False)
        data = run(Programs(model, guide, (x,)), num_samples=500, refine=refine)
        means = data.posterior["z"].values.mean((0, 1))
        assert 0.4 < (means @ x) / (x @ x) < 1.2
        assert data.attrs["refine"] == "TraceHamiltonian_ELBO"
        assert json.loads(data.attrs["refine_settings"])["num_steps"] == 5


class TestArguments:
    def test_draws_do_not_depend_on_their_chunks(self) -> None:
        case = normals()
        single, chunks = (run(case, num_samples=5, chunk_size=size) for size in (1, 3))
        for group in GROUPS:
            for name, values in single[group].data_vars.items():
                np.testing.assert_allclose(chunks[group][name].values, values.values)

    def test_parameters_rows_and_keyword_arguments_reach_the_programs(self) -> None:
        def program(*, x: Array, observe: bool) -> None:
            loc = numpyro.param("loc", jnp.zeros(()))
            with numpyro.plate("data", len(x), subsample_size=3) as index:
                z = numpyro.sample("z", dist.Normal(loc, 1.0))
                if observe:
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        rows = handlers.substitute(program, {"data": jnp.array([7, 2, 5])})
        model, guide = partial(rows, observe=True), partial(rows, observe=False)
        key, params = jax.random.key(0), {"loc": jnp.array(100.0)}
        data = to_inference_data(key, params, model, guide, x=jnp.arange(12.0), num_samples=3)
        assert (data.posterior["z"] > 90).all()
        for group in GROUPS:
            assert data[group].coords["data"].values.tolist() == [7, 2, 5]
        assert data.observed_data["x"].values.tolist() == [7.0, 2.0, 5.0]


class TestRefusals:
    def refused(self, case: Programs, match: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=match):
            run(case, **settings)

    def test_settings(self) -> None:
        self.refused(normals(), "num_samples >= 1; got 0", num_samples=0)
        self.refused(normals(), "chunk_size >= 1; got 0", chunk_size=0)

    def test_nan(self) -> None:
        case = normals()

        def guide(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                loc = jnp.where(jnp.arange(len(x)) < 2, jnp.nan, x)
                numpyro.sample("z", dist.Normal(loc, 1.0))

        self.refused(
            Programs(case.model, guide, case.args), r"nan in 40 of 240 draws of site 'z'.*guide"
        )
        x = case.args[0].copy()
        x[3] = np.nan
        self.refused(
            Programs(case.model, lambda x: case.guide(case.args[0]), (x,)),
            r"nan in 20 of 240 log likelihoods of site 'x'.*data",
        )

    def test_no_data(self) -> None:
        def model() -> None:
            numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.factor("factor", jnp.array(1.0))
            numpyro.deterministic("two", jnp.array(2.0))

        self.refused(Programs(model, model, ()), r"observes nothing.*\['z', 'two'\].*obs=")

    def test_latents_of_one_program_alone(self) -> None:
        case = normals()

        def guide(x: Array) -> None:
            case.guide(x)
            numpyro.sample("w", dist.Normal(0.0, 1.0))

        self.refused(Programs(case.model, guide, case.args), "'w', which is no latent of the model")

        def mixture(x: Array) -> None:
            with numpyro.plate("data", len(x)):
                y = numpyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
                numpyro.sample("x", dist.Normal(y, 1.0), obs=x)

        self.refused(
            Programs(mixture, lambda x: None, case.args),
            "'y' is summed out in the model.*draw it in the guide",
        )

    @pytest.mark.parametrize(
        ("site", "plate", "match"),
        [
            ("draw", "data", "site 'draw' has the name of a dim of ArviZ's own: rename it"),
            ("x_dim_0", "data", "site 'x_dim_0' has the name of a dim of site 'x': rename it"),
            ("z", "chain", "plate 'chain' has the name of a dim of ArviZ's own: rename it"),
        ],
    )
    def test_names_of_arvizs(self, site: str, plate: str, match: str) -> None:
        def guide() -> Array:
            with numpyro.plate(plate, 2):
                return numpyro.sample(site, dist.Normal(0.0, 1.0))

        def model() -> None:
            with numpyro.plate(plate, 2):
                z = numpyro.sample(site, dist.Normal(0.0, 1.0))
                loc = z[:, None] * jnp.ones(3)
                numpyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=jnp.zeros((2, 3)))

        self.refused(Programs(model, guide, ()), match)

    def test_programs_that_cannot_be_mapped(self) -> None:
        def callback(z: Array) -> Array:
            return jax.pure_callback(np.sign, jax.ShapeDtypeStruct((), z.dtype), z)

        def model() -> None:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(callback(z), 1.0), obs=jnp.zeros(()))

        def guide() -> None:
            numpyro.sample("z", dist.Normal(0.0, 1.0))

        case = Programs(model, guide, ())
        with pytest.raises(NotImplementedError) as error:
            run(case)
        assert "20 draws at once" in error.value.__notes__[-1]
        assert "chunk_size=1" in error.value.__notes__[-1]
        assert run(case, chunk_size=1).posterior["z"].shape == (1, 20)
