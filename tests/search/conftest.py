"""Search with functions of our own in C++ and with PyTorch's operations."""

from __future__ import annotations

import pytest

from seq2seq.ops import native


@pytest.fixture(autouse=True, params=["native", "plain"])
def _with_and_without_functions_of_our_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C++ compiler here")
