"""Fixtures of the tests of the solvers."""

from collections.abc import Iterator

import pytest
import torch

from sciml.solvers import compiled


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of compilation its front end alone, as the rest takes most of the time: graphs run as they are."""
    yield from compiling(monkeypatch, "eager")


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but the last stage of compilation: graphs without writes in place run as they are."""
    yield from compiling(monkeypatch, "aot_eager")


def compiling(monkeypatch: pytest.MonkeyPatch, backend: str) -> Iterator[None]:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: real(f, fullgraph=True, backend=backend))
    yield
    compiled.forget()
