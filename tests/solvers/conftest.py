"""Fixtures of the tests of the solvers."""

from collections.abc import Iterator

import pytest
import torch

from sciml.solvers import compiled


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but the last stage of compilation, which takes most of the time: graphs run as they are."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: real(f, fullgraph=True, backend="aot_eager"))
    yield
    compiled.forget()
