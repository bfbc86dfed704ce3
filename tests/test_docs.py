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


def test_page_of_examples_has_every_example_and_its_pictures():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", (ROOT / "docs/examples.md").read_text(), re.MULTILINE)
    found = sorted(path.parent.name for path in (ROOT / "examples").glob("*/config.yaml"))
    assert sorted(name for name, _ in rows) == found
    for name, pictures in rows:
        shown = (path.stem for path in (ROOT / "examples" / name).glob("*.png"))
        assert {*shown} - {"learning_curve"} <= {*re.findall(r"\w+", pictures)}, name


@pytest.mark.parametrize("page", [*PAGES, "docs/acceptance.md", "docs/examples.md"])
def test_commands_name_what_there_is(page):
    text = (ROOT / page).read_text()
    benchmarks = re.findall(r"make bench\s+NAME=(\w+)", text)
    tests = re.findall(r"\btests/[\w/.]+", text)
    configurations = re.findall(r"sciml (?:fit --config|solve|show) (\w+)(?=[ `\n])", text)
    assert benchmarks or tests or configurations
    missing = [name for name in benchmarks if not (ROOT / f"benchmarks/bench_{name}.py").exists()]
    missing += [name for name in tests if not (ROOT / name.rstrip(".")).exists()]
    missing += [name for name in configurations if not (ROOT / "examples" / name / "config.yaml").exists()]
    assert not missing
