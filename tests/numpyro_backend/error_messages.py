"""What an error of either half says."""

from collections.abc import Callable
from typing import Any

import pytest


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r"^Expected .*; *got ") as error:
        call()
    return str(error.value)
