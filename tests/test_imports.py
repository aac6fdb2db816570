"""Each half is imported, and trained, without the other's framework."""

import subprocess
import sys
import textwrap

import pytest

PYRO = """
    import pyro
    from pyro.infer import SVI
    import pyro_infovae.diagnostics
    from pyro_infovae import TraceMMD_ELBO

    def program(loc):
        with pyro.plate("data", 4):
            pyro.sample("z", pyro.distributions.Normal(loc(), 1.0))

    model = lambda: program(lambda: 0.0)
    guide = lambda: program(lambda: pyro.param("loc", lambda: __import__("torch").tensor(1.0)))
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss=TraceMMD_ELBO()).step()
"""
NUMPYRO = """
    import jax, numpyro
    from numpyro.infer import SVI
    import numpyro_backend.diagnostics
    from numpyro_backend import TraceMMD_ELBO

    def program(loc):
        with numpyro.plate("data", 4):
            numpyro.sample("z", numpyro.distributions.Normal(loc(), 1.0))

    model = lambda: program(lambda: 0.0)
    guide = lambda: program(lambda: numpyro.param("loc", 1.0))
    svi = SVI(model, guide, numpyro.optim.Adam(0.1), loss=TraceMMD_ELBO())
    jax.eval_shape(lambda key: svi.update(svi.init(key)), jax.random.key(0))
"""
CORE = """
    import importlib, pkgutil
    import pyro_infovae._core

    for module in pkgutil.walk_packages(pyro_infovae._core.__path__, "pyro_infovae._core."):
        importlib.import_module(module.name)
"""


def test_arviz_is_imported_where_it_is_needed() -> None:
    program = "import sys, pyro_infovae, numpyro_backend; assert 'arviz' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("program", "blocked"),
    [
        (PYRO, ("jax", "numpyro")),
        (NUMPYRO, ("torch", "pyro")),
        (CORE, ("torch", "pyro", "jax", "numpyro", "flax")),
    ],
    ids=["pyro_infovae", "numpyro_backend", "core"],
)
def test_does_without_the_frameworks_that_it_is_not_for(
    program: str, blocked: tuple[str, ...]
) -> None:
    block = f"import sys\nfor name in {blocked}:\n    sys.modules[name] = None\n"
    run = subprocess.run(
        [sys.executable, "-c", block + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
