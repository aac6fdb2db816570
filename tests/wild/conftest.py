"""Programs as others write them, once for both halves; what is special to one names it."""

from tests.objectives.conftest import half

__all__ = ["half"]
