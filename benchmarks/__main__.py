"""Measure, print and keep: ``python -m benchmarks``, or with the names of some."""

import argparse
import time

from benchmarks.measuring import in_new_process
from benchmarks.report import BENCHMARKS, FOLDER, NEED_A_GPU, load, measured, page, save, section


def main() -> None:
    """Run what is asked for, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or [n for n in BENCHMARKS if n not in NEED_A_GPU]
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"expected some of {', '.join(BENCHMARKS)}; got {', '.join(unknown)}")
    for name in names:
        start = time.perf_counter()
        try:
            report = in_new_process(measured, name, in_new_process)
        except RuntimeError as error:
            parser.error(str(error))
        save(name, report, minutes=(time.perf_counter() - start) / 60)
        kept = load(name)
        assert kept is not None
        print(section(name, kept), flush=True)
        (FOLDER / "README.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
