"""What is published: the wheel, the source distribution it is built from, versions and licences."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest

import numpyro_backend
import pyro_infovae

ROOT = Path(__file__).parents[1]
PACKAGES = ["pyro_infovae", "numpyro_backend"]
MODULES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py*"))
    if path.suffix in (".py", ".pyi")
]
SPDX = "# SPDX-License-Identifier: MIT"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("sdist")
    build("sdist", ROOT, folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path) -> zipfile.ZipFile:
    """The wheel that is built from the source distribution."""
    build("wheel", source, source.parent)
    (archive,) = source.parent.glob("*.whl")
    return zipfile.ZipFile(archive)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Distribution:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    return PathDistribution(zipfile.Path(wheel, f"{folder}/"))


def build(target: str, source: Path, folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_wheel_holds_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {str(path.relative_to(ROOT)) for path in MODULES}
    expected |= {f"{package}/py.typed" for package in PACKAGES}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_wheel_holds_the_licence(wheel: zipfile.ZipFile, metadata: Distribution) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
    assert metadata.metadata["License-Expression"] == "MIT"


def test_versions_agree(metadata: Distribution) -> None:
    assert metadata.version == pyro_infovae.__version__ == numpyro_backend.__version__


def test_jax_is_not_required(metadata: Distribution) -> None:
    required = [line for line in metadata.requires or () if "extra ==" not in line]
    assert any(line.startswith("pyro-ppl") for line in required)
    assert not any(line.startswith(("jax>", "numpyro")) for line in required)


@pytest.mark.parametrize(
    "path", ["README.md", "Makefile", "constraints.txt", "noxfile.py", "tests/conftest.py"]
)
def test_source_can_be_tested(source: Path, path: str) -> None:
    assert (source / path).read_bytes() == (ROOT / path).read_bytes()


def test_modules_name_their_licence() -> None:
    first_lines = {path: path.read_text(encoding="utf-8").split("\n")[0] for path in MODULES}
    unnamed = [path for path, line in first_lines.items() if line != SPDX]
    assert first_lines
    assert unnamed == []


def test_oldest_versions_are_those_allowed(metadata: Distribution) -> None:
    pinned = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    bounds = {line.split(";")[0].strip() for line in metadata.requires or ()}
    versions = dict(line.split("==") for line in pinned if "==" in line)
    versions.pop("jaxlib")  # which jax asks for
    assert versions
    for name, version in versions.items():
        allowed = {f"{name}>={version}", f"{name}>={version.removesuffix('.0')}"}
        assert bounds & allowed, f"{name}=={version}"
