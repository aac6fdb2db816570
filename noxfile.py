"""Tests on other Pythons and versions, and of what is published: ``nox --list``."""

import re
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
TESTED = ".[arviz,demo,enum,lightning,numpyro,test]"
IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
package, absent = sys.argv[1:]
assert importlib.util.find_spec(absent) is None, f"Expected an environment without {absent}"
path = importlib.import_module(package).__path__
for module in pkgutil.walk_packages(path, prefix=f"{package}."):
    importlib.import_module(module.name)
"""

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "tests-3.11", "start_pyro", "start_numpyro", "docs"]


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Every test, with the versions that are pinned."""
    _install(session, "constraints.txt", "--editable", TESTED)
    _test(session)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """Every test, with the oldest versions that pyproject.toml allows."""
    _install(session, "constraints-oldest.txt", "--editable", TESTED)
    _test(session)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """Every test, with the newest versions there are."""
    session.install("--editable", TESTED)
    _test(session)


@nox.session
def lint(session: nox.Session) -> None:
    """What `make lint` runs."""
    _install(session, "constraints.txt", "--editable", TESTED)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """What `make docs` runs."""
    _install(session, "constraints.txt", "--editable", ".[arviz,docs,numpyro]")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "build/docs")


@nox.session
def wheel(session: nox.Session) -> None:
    """The source distribution, and the wheel built from it."""
    session.install("--constraint", "constraints.txt", "build")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build")


@nox.session(requires=["wheel"])
def start_pyro(session: nox.Session) -> None:
    """The wheel without JAX: imports, and the programs of the page Start."""
    _install(session, "constraints.txt", _built_wheel())
    _start(session, "pyro_infovae", without="jax")


@nox.session(requires=["wheel"])
def start_numpyro(session: nox.Session) -> None:
    """The wheel without torch, which only its metadata ask for: the same for the NumPyro half."""
    session.install("--constraint", "constraints.txt", "numpyro", "jax", "jaxtyping", "lazy-loader")
    session.install("--no-deps", _built_wheel())
    _start(session, "numpyro_backend", without="torch")


def _install(session: nox.Session, constraints: str, *requirements: str) -> None:
    # torch first and by itself, as in the Makefile.
    session.install("--constraint", constraints, "torch")
    session.install("--constraint", constraints, *requirements)


def _test(session: nox.Session) -> None:
    session.run("pytest", "--numprocesses", "auto", *session.posargs, env={"OMP_NUM_THREADS": "1"})


def _built_wheel() -> str:
    (built,) = (ROOT / "dist").glob("*.whl")
    return str(built)


def _start(session: nox.Session, package: str, *, without: str) -> None:
    page = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    programs = [block for block in blocks if f"from {package} import" in block]
    assert programs, f"Expected docs/start.md to have a program with {package}"
    session.chdir(session.create_tmp())  # away from the source
    for name, program in (("import_all", IMPORT_ALL), *enumerate(programs)):
        Path(f"{name}.py").write_text(program, encoding="utf-8")
        session.run("python", f"{name}.py", package, without)
