"""What the compiler keeps on disk serves a second process, and no other field."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
from torch._dynamo.utils import counters
from sciml import Discrete, Solver, solve

class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, t, y):
        return getattr(torch, sys.argv[1])(self.layer(y))

def gradients(compile):
    field, y0 = Field(), torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    solve(field, y0, 0.0, 1.0, Solver(adjoint=Discrete("all"), compile=compile)).ys.sum().backward()
    return torch.cat([p.grad.flatten() for p in field.parameters()])

found, right = gradients("loop"), gradients(None)
counts = [counters["inductor"][f"fxgraph_cache_{what}"] for what in ("miss", "hit", "bypass")]
print(json.dumps([float((found - right).abs().max()), *counts]))
"""


@pytest.mark.slow
def test_second_process_compiles_nothing_anew_and_other_fields_are_their_own(tmp_path: Path):
    def run(name: str) -> list[float]:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", SCRIPT, name]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])

    for name, hits in (("tanh", 0), ("tanh", 2), ("sin", 0)):
        error, missed, hit, bypassed = run(name)
        assert error < 1e-10
        assert (missed, hit, bypassed) == (2 - hits, hits, 0)  # the march and its backward pass
