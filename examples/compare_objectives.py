"""Train one model and guide under several objectives, and compare what comes of it.

From the repository's root, after `pip install -e .[demo]`:

    python examples/compare_objectives.py
    python examples/compare_objectives.py --backend numpyro
    python examples/compare_objectives.py --collapse --seeds 3
    python examples/compare_objectives.py --data mnist --data-dir path/to/idx/files
    python examples/compare_objectives.py --help
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryFile
from types import ModuleType
from typing import Any

from rich.console import Console

from demo import backend
from demo.backend import BackendError, Setting
from demo.cli import build_parser, fill_in
from demo.data import DataError, ImageData, load
from demo.figures import draw_all
from demo.html_report import write_report
from demo.report import notes, table, write_tables
from demo.results import Result, restore, save
from demo.training import train_and_evaluate

# Another objective is one more entry; `b` holds the names of either backend. The weight of `mmd`
# makes the MMD² of 0.03 that `elbo` leaves on the digits cost 3 nats per image.
OBJECTIVES: dict[str, Callable[[ModuleType, Setting], Any]] = {
    "elbo": lambda b, s: b.TraceMeanField_ELBO(),
    "mmd": lambda b, s: b.TraceMMD_ELBO(alpha=0.0, lambd=100.0),
    "infomax": lambda b, s: b.TraceInfoMax_ELBO(
        b.ConcatCritic(s.pixels, s.latent_dim, hidden=(64,)), alpha=1.0
    ),
    "hamiltonian": lambda b, s: b.TraceHamiltonian_ELBO(2, 0.05, path="posterior"),
    "mmd+hamiltonian": lambda b, s: b.TraceMMD_ELBO(
        lambd=100.0, base=b.TraceHamiltonian_ELBO(2, 0.05, path="posterior")
    ),
}

# Where the decoder can do without the code: `mmd` without the KL that drives the code out.
AGAINST_COLLAPSE = {
    **OBJECTIVES,
    "mmd": lambda b, s: b.TraceMMD_ELBO(alpha=1.0, lambd=100.0),
    "infomax": lambda b, s: b.TraceInfoMax_ELBO(
        b.ConcatCritic(s.pixels, s.latent_dim, hidden=(128, 128)), alpha=4.0, bound="js"
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the objectives; the exit status is 0, or 130 when interrupted."""
    parser = build_parser(OBJECTIVES, description=__doc__)
    options = parser.parse_args(argv)
    fill_in(options)
    try:
        half = backend.load(options.backend)
        half.check_device(options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=options.out):
            data = load(options.data, data_dir=options.data_dir, seed=options.seed)
    except (BackendError, DataError, OSError) as error:
        parser.error(str(error))
    if options.collapse:
        data = data.binarised()

    console = Console()
    results: list[Result] = []
    status = 0
    try:
        for seed in range(options.seed, options.seed + options.seeds):
            for name in dict.fromkeys(options.objectives):
                results.append(result(half, name, seed, data, options))
    except KeyboardInterrupt:
        console.print(f"Interrupted: the finished trainings are kept ({len(results)}).")
        status = 130
    if results:
        settings = settings_of(half, options)
        title = f"{options.data}, {options.latent_dim}-D code, {options.epochs} epochs"
        files = write_tables(results, options.out)
        figures = draw_all(results, options.out, latent_dim=options.latent_dim)
        files += [*figures, write_report(results, figures, settings, title, data, options.out)]
        shown = table(results, title=title, width=console.width)
        console.print(shown, notes(data.levels), sep="\n")
        console.print("Saved", *files, sep="\n  ")
    return status


def result(half: ModuleType, name: str, seed: int, data: ImageData, options: Namespace) -> Result:
    """The result of a training, or the one kept by an earlier run."""
    settings = settings_of(half, options)
    kept = restore(name, seed, options.out, settings)
    if kept is not None:
        return kept
    setting = Setting(
        pixels=data.pixels,
        levels=data.levels,
        latent_dim=options.latent_dim,
        autoregressive=options.collapse,
        learning_rate=1e-2 if options.collapse else 2e-3,
        seed=seed,
        device=options.device,
    )
    build = (AGAINST_COLLAPSE if options.collapse else OBJECTIVES)[name]
    training = half.start(lambda: build(half, setting), data.train_images, setting)
    trained = train_and_evaluate(training, name, data, setting, options)
    save(trained, options.out, settings)
    return trained


def settings_of(half: ModuleType, options: Namespace) -> Mapping[str, str]:
    """What a kept result has to agree with, and the report shows."""
    names = ("backend", "data", "data_dir", "latent_dim", "collapse", "epochs", "device")
    chosen = {name: str(getattr(options, name)) for name in names}
    return {**chosen, "first seed": str(options.seed), **half.versions()}


if __name__ == "__main__":
    sys.exit(main())
