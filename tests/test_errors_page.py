"""The page of errors holds every message of the code, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.messages import messages

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
MESSAGE = re.compile(r"^(?:- |  )`(.+)`\\$", re.MULTILINE)
LISTED = MESSAGE.findall(PAGE)


@pytest.fixture(scope="module")
def said() -> set[str]:
    both = messages(ROOT / "pyro_infovae") | messages(ROOT / "numpyro_backend")
    return {text.replace("numpyro.plate", "pyro.plate").removesuffix(".") for text in both}


def test_page_lists_every_message(said: set[str]) -> None:
    assert said - set(LISTED) == set()


def test_page_lists_no_message_that_is_gone(said: set[str]) -> None:
    assert set(LISTED) - said == set()


def test_page_lists_a_message_once() -> None:
    assert len(LISTED) == len(set(LISTED))


def test_page_says_what_to_do_about_each() -> None:
    for entry in re.split(r"^(?=- )", PAGE, flags=re.MULTILINE)[1:]:
        assert re.search(r"^  \S", MESSAGE.sub("", entry), re.MULTILINE), entry


def test_messages_are_read_from_source(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        """
LIMIT = "at most four"
LEVEL = "high"


class Shown:
    def check(self, size, hint=""):
        if size > 4:
            raise ValueError(f"Expected {LIMIT}; got {size} at {LEVEL}" f"{hint!r}")
        note = " (one per row)" if size == 1 else ""
        raise TypeError("Expected " + self._kind(size) + note) from None

    def _kind(self, size) -> str | None:
        if size:
            return f"{size} rows"
        return None

    def warn(self):
        self._warn("too many")
        self._warn(reason=f"none of {len(self)}")
        raise StopIteration

    def _warn(self, reason):
        warnings.warn(f"Stopped: {reason}: wait", stacklevel=2)
""",
        encoding="utf-8",
    )
    assert messages(tmp_path) == {
        "Expected at most four; got … at ……",
        "Expected … rows",
        "Expected … rows (one per row)",
        "Stopped: too many: wait",
        "Stopped: none of …: wait",
    }
