"""to_inference_data: what ArviZ does with the result, of any version, and without ArviZ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyro_infovae import TraceMMD_ELBO
from tests.pyro_infovae import programs
from tests.pyro_infovae.inference_data_programs import GROUPS, az, normals, plt, run, schools


class TestArviz:
    @pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")
    def test_summaries_plots_and_files(self, tmp_path: Path) -> None:
        data = run(schools(), num_samples=200, objective=TraceMMD_ELBO())
        summary = az.summary(data, var_names=["mu", "theta"], kind="stats")
        assert list(summary.index) == ["mu", *(f"theta[{i}]" for i in range(8))]
        np.testing.assert_allclose(summary["mean"]["mu"], data.posterior["mu"].mean(), atol=1e-3)
        assert az.loo(data).n_data_points == 8
        plt.switch_backend("agg")
        az.plot_ppc(data, num_pp_samples=5)
        plt.close("all")
        data.to_netcdf(str(tmp_path / "schools.nc"))
        loaded = az.from_netcdf(str(tmp_path / "schools.nc"))
        assert loaded.attrs["objective"] == "TraceMMD_ELBO"
        for group in GROUPS:
            for name, values in data[group].data_vars.items():
                np.testing.assert_array_equal(loaded[group][name].values, values.values)

    def test_the_objective_is_named(self) -> None:
        settings = {"alpha": 0.3, "lambd": 10.0, "estimator": "biased"}
        data = run(normals(), objective=TraceMMD_ELBO(**settings))
        assert data.attrs["objective"] == "TraceMMD_ELBO"
        stored = json.loads(data.attrs["objective_settings"])
        assert settings.items() <= stored.items()
        assert "refine" not in data.attrs
        assert "objective" not in run(normals(), objective=None).attrs

    def test_from_dict_as_of_arviz_1_by_a_stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
        tree = run(programs.vae(batch=5), objective=TraceMMD_ELBO())
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
        assert len(tree.coords["data"]) == 5
        assert tree.attrs["objective"] == "TraceMMD_ELBO"

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
