"""On a CUDA device: its tests, then steps, the memory of MMD² and the flow, in under 8 minutes."""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from benchmarks import compiled_step, mmd_memory, networks
from benchmarks.compiled_step import objective_of
from benchmarks.measuring import Call, Step
from benchmarks.networks import VAE, Size
from benchmarks.report import Report, Row
from pyro_infovae import TraceHamiltonian_ELBO
from pyro_infovae.compile import CompiledSVI

OBJECTIVES = ("ELBO", "MMD", "InfoMax", "Hamiltonian, annealed")
PRECISIONS = ("float32", "bfloat16 autocast")
SIZE, BATCH = Size(784, 400, 20), 128
MMD_ROWS = (4096, 16384, 65536)
FLOW_STEPS = (0, 1, 4, 16, 64)
STEPS, WARMUP = 50, 5
SECONDS = {"tests": 200, "steps": 180, "mmd": 20, "flow": 40, "jax": 40}
"""What each part may take; a row that would start later says so."""


def measure(
    call: Call,
    *,
    device: str = "cuda",
    objectives: Sequence[str] = OBJECTIVES,
    size: Size = SIZE,
    mmd_rows: Sequence[int] = MMD_ROWS,
    flow_steps: Sequence[int] = FLOW_STEPS,
    steps: int = STEPS,
    inductor: bool = True,
    tests: bool = True,
) -> Report:
    """Tables of the tests, of steps, of MMD², of the flow, and of JAX.

    Raises:
        RuntimeError: without a CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"Expected a CUDA device; torch {torch.__version__} sees none: run this on a machine "
            "with one, under a build of torch for its CUDA"
        )
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return Report(
        title="On a GPU",
        method=(
            f"{name}. *By hand* and the others as in *Training steps*, for a VAE {size} on {BATCH}"
            f" binary images; ms of a step, the median of {steps} after {WARMUP}, each waited for."
            " *Graph* replays a step of `elbo(model, guide)` and of Adam from `torch.cuda.graph`."
            " Memory is the peak of torch's allocator above what it held before."
        ),
        packages=["pyro-infovae", "torch", "pyro-ppl"],
        tables=[
            *([[run_tests()]] if tests else []),
            call(step_rows, device, objectives, size, steps, inductor),
            call(mmd_squared_rows, device, mmd_rows, steps),
            call(flow_rows, device, flow_steps, size, steps),
            call(jax_rows, steps),
        ],
    )


def run_tests() -> Row:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    start = time.perf_counter()
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS["tests"], check=False
        )
        lines = run.stdout.strip().splitlines() or [run.stderr.strip()[-200:]]
        failed = [line.split(" - ")[0] for line in lines if line.startswith("FAILED")]
        result = " ".join([re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")), *failed])
    except subprocess.TimeoutExpired:
        result = f"not finished in {SECONDS['tests']} s"
    return {"tests": "pytest -m gpu", "result": result, "seconds": time.perf_counter() - start}


def step_rows(
    device: str, objectives: Sequence[str], size: Size, steps: int, inductor: bool
) -> list[Row]:
    """Milliseconds of a training step by objective, precision and way."""
    end = time.perf_counter() + SECONDS["steps"]
    ways: dict[str, Callable[[str, Size, Tensor], Step]] = {
        "SVI": partial(_by_svi, SVI),
        "CompiledSVI": partial(_by_svi, CompiledSVI),
        "graph": _by_graph,
    }
    if inductor:  # last, for it takes its time
        compiled = partial(CompiledSVI, backend="inductor")
        ways["CompiledSVI, inductor"] = partial(_by_svi, compiled)
    rows: list[Row] = []
    for way, make in ways.items():
        for objective in objectives:
            for precision in PRECISIONS:
                with _on(device):
                    x = networks.binary_images(BATCH, size)
                    found = _attempt(
                        partial(_time, make, objective, size, x, precision, steps), end
                    )
                rows.append({"objective": objective, "precision": precision, "step": way, **found})
    return rows


def mmd_squared_rows(device: str, sizes: Sequence[int], steps: int) -> list[Row]:
    """Milliseconds and megabytes of MMD² with its gradient."""
    end = time.perf_counter() + SECONDS["mmd"]
    rows: list[Row] = []
    for n in sizes:
        for method in mmd_memory.METHODS:
            with _on(device):
                x, y = mmd_memory.rows_of(n)
                step = partial(mmd_memory.forward_and_backward, method, x, y)
                found = _attempt(partial(_measured, step, min(steps, 5)), end)
            rows.append({"MMD²": method, "rows of x and of y": n, **found})
    return rows


def flow_rows(device: str, counts: Sequence[int], size: Size, steps: int) -> list[Row]:
    """Milliseconds and megabytes of a step against the number of leapfrog steps."""
    end = time.perf_counter() + SECONDS["flow"]
    rows: list[Row] = []
    for svi in (SVI, CompiledSVI):
        for k in counts:
            with _on(device):
                x, vae = networks.binary_images(BATCH, size), VAE(size)
                flow = TraceHamiltonian_ELBO(k, name=f"flow_{id(vae)}") if k else Trace_ELBO()
                adam = pyro.optim.Adam({"lr": 1e-3})
                step = partial(svi(vae.model, vae.guide, adam, flow).step, x)
                found = _attempt(partial(_measured, step, min(steps, 10)), end)
            rows.append({"flow, by": svi.__name__, "K": k or "none: Trace_ELBO", **found})
    return rows


def jax_rows(steps: int) -> list[Row]:
    """Milliseconds of NumPyro's steps, where JAX has a GPU."""
    import jax

    from benchmarks import numpyro_step

    end = time.perf_counter() + SECONDS["jax"]
    device = jax.devices()[0]
    rows: list[Row] = []
    for objective in numpyro_step.OBJECTIVES:
        if device.platform != "gpu":
            found = f"not measured: jax {jax.__version__} has only {device.platform}"
        elif time.perf_counter() > end:
            found = "not measured: out of time"
        else:
            row = numpyro_step.row(objective, numpyro_step.SIZES[1], max(steps // 10, 2))
            found = "; ".join(f"{k} {v}" for k, v in row.items() if isinstance(v, float))
        rows.append({"NumPyro": objective, "device": device.device_kind, "ms": found})
    return rows


@contextlib.contextmanager
def _on(device: str) -> Iterator[None]:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with torch.device(device), pyro.validation_enabled(False):
        yield


def _attempt(measure: Callable[[], tuple[float, float]], end: float) -> Row:
    """What was measured; or why not, so that one failure does not take the others along."""
    if time.perf_counter() > end:
        return {"ms": "not measured: out of time", "peak, MB": "-"}
    try:
        milliseconds, megabytes = measure()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return {"ms": f"{type(error).__name__}: {first[:120]}", "peak, MB": "-"}
    return {"ms": milliseconds, "peak, MB": megabytes}


def _time(
    make: Callable[[str, Size, Tensor], Step],
    objective: str,
    size: Size,
    x: Tensor,
    precision: str,
    steps: int,
) -> tuple[float, float]:
    def autocast() -> torch.autocast:
        enabled = precision != PRECISIONS[0]
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=enabled)

    with autocast():
        step = make(objective, size, x)

    def step_under_it() -> None:
        with autocast():  # anew in each step: within one, the weights stay as they were cast first
            step()

    return _measured(step_under_it, steps)


def _measured(step: Step, steps: int) -> tuple[float, float]:
    """Milliseconds of a step, and its peak of memory in MB."""
    on_gpu = torch.get_default_device().type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(WARMUP):
        step()
    wait()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    return statistics.median(times), peak / 2**20


def _loss(name: str, size: Size, owner: str) -> Any:
    if name == "Hamiltonian, annealed":
        return TraceHamiltonian_ELBO(name=f"hamiltonian_{owner}")
    return objective_of(name, size, owner=owner)


def _by_svi(svi: Callable[..., Any], objective: str, size: Size, x: Tensor) -> Step:
    vae = VAE(size)
    optimiser = compiled_step.fused if svi is not SVI else compiled_step.adam()
    return partial(
        svi(vae.model, vae.guide, optimiser, _loss(objective, size, str(id(vae)))).step, x
    )


def _by_graph(objective: str, size: Size, x: Tensor) -> Step:
    """A whole step of a loop in torch, captured once."""
    if x.device.type != "cuda":
        raise RuntimeError("there are graphs on CUDA devices only")
    vae = VAE(size)

    class Part(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.networks, self.run = vae, getattr(vae, name)

        def forward(self, x: Tensor) -> None:
            self.run(x)

    module = _loss(objective, size, str(id(vae)))(Part("model"), Part("guide"))
    module(x)  # what is made on a first call, for the optimiser to find
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, capturable=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        module(x).backward()
        optimiser.step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    optimiser.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return graph.replay
