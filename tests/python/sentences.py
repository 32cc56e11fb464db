"""What every refusal is: one of tamis's errors with one sentence."""

from collections.abc import Callable

import pytest

from tamis.errors import TamisError


def refuses(call: Callable[[], object], kind: type[TamisError], *words: str) -> None:
    """The call raises that error, and its one sentence has the words."""
    with pytest.raises(kind) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in words), sentence
