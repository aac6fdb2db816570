"""The comparison as one HTML file that needs nothing else."""

import base64
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demo.data import ImageData
from demo.report import notes, summary
from demo.results import Result, by_objective

CAPTIONS = {
    "code_space": "One draw from q(z|x) for every held-out image, coloured by class.",
    "prior_samples": "Images decoded from draws of the prior, the same for every objective.",
    "manifold": "A grid over code space, decoded.",
    "training_curves": "The fit to held-out images, epoch by epoch.",
}


def write_report(
    results: Sequence[Result],
    figures: Sequence[Path],
    settings: Mapping[str, str],
    title: str,
    data: ImageData,
    folder: Path,
) -> Path:
    """Save `report.html`: table, figures, settings and versions; return where."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        objectives=list(by_objective(results)),
        seeds=sorted({result.seed for result in results}),
        rows=summary(results),
        notes=notes(data.levels),
        figures=[(CAPTIONS[path.stem], _data_uri(path)) for path in figures],
        settings={
            **settings,
            "pyro-infovae": importlib.metadata.version("pyro-infovae"),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {platform.system()}",
            "date": date.today().isoformat(),
        },
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
