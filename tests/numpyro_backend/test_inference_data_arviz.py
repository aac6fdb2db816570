"""to_inference_data: what ArviZ does with the result, of any version, and without ArviZ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from numpyro_backend import TraceMMD_ELBO
from tests.numpyro_backend import programs
from tests.numpyro_backend.inference_data_programs import (
    GROUPS,
    SAMPLE,
    az,
    dims,
    normals,
    plt,
    run,
    schools,
)

pytestmark = pytest.mark.usefixtures("quick_double_precision")


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
