"""Runs commands of `sciml` one after the other in the same two processes, and writes how they judge videos.

`in_two.py FILE [[word, ..], ..]`
"""

import json
import sys
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from sciml.cli import main
from tests.training.tiny.videos import judged

if __name__ == "__main__":
    for command in json.loads(sys.argv[2]):
        if code := main(command):
            sys.exit(code)
    metrics = judged(2)
    rank_zero_only(Path(sys.argv[1]).write_text)(json.dumps(metrics))
