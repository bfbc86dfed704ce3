import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


PAGES = ("README.md", "docs/quickstart.md", "docs/choosing.md", "docs/surrogates.md", "docs/linear.md")


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
