"""to_inference_data: what ArviZ does with the result, of any version, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.halves import Case
from tests.questions.asking import Asking, slow_in_numpyro
from tests.questions.inference_data import GROUPS, X, az, normals, plt, run, schools
from tests.questions.programs import in_plate, vae


class TestArviz:
    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
    @slow_in_numpyro
    def test_summaries_plots_and_files(self, half: Asking, tmp_path: Path) -> None:
        objective = half.library.TraceMMD_ELBO(alpha=0.3, lambd=10.0, estimator="biased")
        found = run(half, schools(half), num_samples=200, objective=objective)
        summary = az.summary(found, var_names=["mu", "theta"], kind="stats")
        assert list(summary.index) == ["mu", *(f"theta[{i}]" for i in range(8))]
        np.testing.assert_allclose(summary["mean"]["mu"], found.posterior["mu"].mean(), atol=1e-3)
        assert az.loo(found).n_data_points == 8
        plt.switch_backend("agg")
        az.plot_ppc(found, num_pp_samples=5)
        plt.close("all")
        found.to_netcdf(str(tmp_path / "schools.nc"))
        loaded = az.from_netcdf(str(tmp_path / "schools.nc"))
        assert loaded.attrs["objective"] == "TraceMMD_ELBO"
        stored = json.loads(loaded.attrs["objective_settings"])
        assert {"alpha": 0.3, "lambd": 10.0, "estimator": "biased"}.items() <= stored.items()
        assert "refine" not in loaded.attrs
        for group in GROUPS:
            for name, values in found[group].data_vars.items():
                np.testing.assert_array_equal(loaded[group][name].values, values.values)

    @slow_in_numpyro
    def test_from_dict_as_of_arviz_1_by_a_stand_in(
        self, half: Asking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The signature, and what it does with its arguments, are those of arviz-base 1.0."""

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
            assert coords is not None
            assert dims is not None
            assert attrs is not None
            assert attrs.keys() <= {*data, "/"}
            named = {}
            for group, values in data.items():
                named[group] = {}
                for site, value in values.items():
                    all_dims = ([] if "data" in group else ["chain", "draw"]) + dims[site]
                    if group == "log_likelihood":
                        all_dims = all_dims[: value.ndim]
                    named[group][site] = dict(zip(all_dims, value.shape, strict=True))
            return SimpleNamespace(groups=named, coords=coords, attrs=attrs["/"])

        monkeypatch.setitem(sys.modules, "arviz", SimpleNamespace(from_dict=from_dict))
        tree = run(half, vae(half, batch=5), objective=half.library.TraceMMD_ELBO())
        drawn = {"chain": 1, "draw": 20, "data": 5}
        predicted = {"x": {**drawn, "x_dim_0": 3}}
        assert tree.groups == {
            "posterior": {"z": {**drawn, "z_dim_0": 2}},
            "posterior_predictive": predicted,
            "log_likelihood": {"x": drawn},
            "prior": {"z": {**drawn, "z_dim_0": 2}},
            "prior_predictive": predicted,
            "observed_data": {"x": {"data": 5, "x_dim_0": 3}},
        }
        assert list(tree.groups) == GROUPS
        assert len(tree.coords["data"]) == 5
        assert tree.attrs["objective"] == "TraceMMD_ELBO"
        assert "objective" not in run(half, vae(half, batch=5)).attrs

    def test_arviz_is_missing(self, half: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "arviz", None)
        with pytest.raises(ModuleNotFoundError, match=r"needs ArviZ: pip install pyro-infovae\["):
            run(half, normals(half))

    def test_arviz_is_broken(
        self, half: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What it lacks is what the error names."""
        (tmp_path / "arviz.py").write_text("import nowhere_to_be_found")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "arviz")
        with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
            run(half, normals(half))


def _nan_guide(half: Asking) -> Case:
    loc = half.array(np.where(np.arange(12) < 2, np.nan, X))
    guide = in_plate(half, 12, lambda _: half.sample("z", half.dist.Normal(loc, 1.0)))
    return normals(half)._replace(guide=guide)


def _nan_data(half: Asking) -> Case:
    return normals(half, x=np.where(np.arange(12) == 3, np.nan, X))


def _without_data(half: Asking) -> Case:
    def model() -> None:
        half.sample("z", half.dist.Normal(half.array(0.0), 1.0))
        half.factor("factor", half.array(1.0))
        half.deterministic("two", half.array(2.0))

    return Case(model, model)


def _extra_latent(half: Asking) -> Case:
    case = normals(half)

    def guide() -> None:
        case.guide()
        half.sample("w", half.dist.Normal(half.array(0.0), 1.0))

    return case._replace(guide=guide)


def _summed_out(half: Asking) -> Case:
    x = half.array(X)

    def model(_: Any) -> None:
        y = half.enumerated("y", half.dist.Bernoulli(0.5 + 0 * x))
        half.sample("x", half.dist.Normal(y, 1.0), obs=x)

    return Case(in_plate(half, 12, model), lambda: None)


def _named(half: Asking, *, site: str = "z", plate: str = "data") -> Case:
    zeros = half.array(np.zeros((2, 3)))

    def guide() -> Any:
        with half.plate(plate, 2):
            return half.sample(site, half.dist.Normal(zeros[:, 0], 1.0))

    def model() -> None:
        with half.plate(plate, 2):
            z = half.sample(site, half.dist.Normal(zeros[:, 0], 1.0))
            half.sample("x", half.dist.Normal(z[..., None] + zeros, 1.0).to_event(1), obs=zeros)

    return Case(model, guide)


REFUSED: dict[str, tuple[Callable[[Asking], Case], dict[str, Any], str]] = {
    "no draw": (normals, {"num_samples": 0}, "num_samples >= 1; got 0"),
    "no chunk": (normals, {"chunk_size": 0}, "chunk_size >= 1; got 0"),
    "nan in the guide": (_nan_guide, {}, r"nan in 40 of 240 draws of site 'z'.*guide"),
    "nan in the data": (_nan_data, {}, r"nan in 20 of 240 log likelihoods of site 'x'.*data"),
    "no data": (_without_data, {}, r"observes nothing.*\['z', 'two'\].*obs="),
    "latent of the guide": (_extra_latent, {}, "'w', which is no latent of the model"),
    "latent summed out": (
        _summed_out,
        {},
        r"'y' is summed out in the model.*draw it in the guide",
    ),
    "site draw": (
        partial(_named, site="draw"),
        {},
        "site 'draw' has the name of a dim of ArviZ's own: rename it",
    ),
    "site x_dim_0": (
        partial(_named, site="x_dim_0"),
        {},
        "site 'x_dim_0' has the name of a dim of site 'x': rename it",
    ),
    "plate chain": (
        partial(_named, plate="chain"),
        {},
        "plate 'chain' has the name of a dim of ArviZ's own: rename it",
    ),
}


@pytest.mark.parametrize(("case", "settings", "match"), REFUSED.values(), ids=REFUSED)
def test_refuses(half: Asking, case: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(half, case(half), **settings)
