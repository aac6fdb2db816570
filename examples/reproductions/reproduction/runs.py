"""Measurements, made once and kept."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from reproduction.options import Options

Value = str | int | float | bool
Row = Mapping[str, Value]
Measure = Callable[..., Iterable[Row]]


def measure_all(measure: Measure, settings: Sequence[Row], options: Options) -> pd.DataFrame:
    """Call `measure(**setting)` for every setting, and return the rows of all.

    What is finished is kept in `runs.jsonl`, so that a run that was interrupted goes on where it
    stopped. A row holds its setting, what was measured and the seconds that it took.

    Args:
        measure: A function at the top of its module. It returns one row or more.
        settings: The keyword arguments of each call.
        options: Where to keep the runs, and in how many processes to make them.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "runs.jsonl"
    shared = {"effort": options.effort, "backend": options.backend}
    keys = [json.dumps({**shared, **setting}, sort_keys=True) for setting in settings]
    kept = _read(path)
    missing = [(key, s) for key, s in zip(keys, settings, strict=True) if key not in kept]
    workers = Parallel(n_jobs=options.jobs, return_as="generator_unordered")
    done = workers(delayed(_timed)(measure, key, setting) for key, setting in missing)
    with path.open("a", encoding="utf-8") as file:
        for key, rows in tqdm(done, total=len(missing), unit="run", disable=not missing):
            kept[key] = rows
            file.write(json.dumps({"key": key, "rows": rows}) + "\n")
            file.flush()
    return pd.DataFrame(
        [{**s, **row} for key, s in zip(keys, settings, strict=True) for row in kept[key]]
    )


def _timed(measure: Measure, key: str, setting: Row) -> tuple[str, list[Row]]:
    start = time.perf_counter()
    rows = list(measure(**setting))
    seconds = time.perf_counter() - start
    return key, [{**row, "seconds": seconds} for row in rows]


def _read(path: Path) -> dict[str, list[Row]]:
    if not path.exists():
        return {}
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        kept[record["key"]] = record["rows"]
    return kept
