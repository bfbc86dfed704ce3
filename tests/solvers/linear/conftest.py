import pytest

from sciml.solvers.linear import kernels


@pytest.fixture(params=[True, False], ids=["numba", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled loops and without."""
    monkeypatch.setattr(kernels, "available", lambda: request.param)
