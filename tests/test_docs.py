"""The documentation tells the truth: its commands and its Python run, its errors read as it says, its links lead somewhere."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hwnas
from hwnas.spaces.networks import NETWORKS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LONGEST_SECONDS = 600  # only so that a command that waits for ever ends
_SLOW = {"new-space.md"}  # its commands take close to a minute together


def _blocks(page, language):
    return [text for kind, text in _FENCE.findall(page.read_text()) if kind == language]


_REFUSABLE = re.compile(r"^```python\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
PYTHON = [(page, *block) for page in PAGES for block in _REFUSABLE.findall(page.read_text())]


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md has no line for {page.name}: add one"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page, source, message", PYTHON, ids=lambda value: "")
def test_python_runs_or_is_refused_as_told(page, source, message):
    """A block of text right after one of Python is what that is refused with."""
    if message:
        with pytest.raises(hwnas.InputError) as refusal:
            exec(compile(source, page.name, "exec"), {})
        assert str(refusal.value) == message.strip()
        return
    exec(compile(source, page.name, "exec"), {"__name__": "page"})


def test_examples_on_a_page_are_the_files():
    text = (ROOT / "docs" / "new-space.md").read_text()
    for name in ("my_space.py", "my_block.py"):
        assert f"```python\n{(ROOT / 'examples' / name).read_text()}```" in text, f"docs/new-space.md and examples/{name} differ"


def test_sizes_on_the_page():
    space = hwnas.load_space(f"{ROOT / 'examples' / 'my_space.py'}:space")
    text = (ROOT / "docs" / "new-space.md").read_text()
    factors = " x ".join(str(len(decision.options)) for decision in space.decisions)
    assert f"{factors} = {space.size}." in text


@pytest.mark.timeout(_LONGEST_SECONDS + 60)
@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] if page.name in _SLOW else [], id=page.name)
                                  for page in PAGES if _blocks(page, "bash")])
def test_commands_run(page, tmp_path):
    """All commands of a page in their order, as a reader types them, beside copies of the examples."""
    for example in (ROOT / "examples").glob("*.py"):
        (tmp_path / example.name).write_bytes(example.read_bytes())
    script = "set -eu\n" + "".join(_blocks(page, "bash"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["timeout", "--kill-after=5", str(_LONGEST_SECONDS), "bash", "-c", script]  # ends what bash has started, too
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for word in re.findall(r"(?:--output|--plot) (\S+)", script):
        assert (tmp_path / word).exists(), word


# Page, the mark around a table, the benchmark that prints it, the file that it wrote, and how the table is made of that file.
FIGURES = [
    ("latency.md", "figures", "bench_latency_prediction", "latency-prediction.json",
     lambda tool, found: tool.markdown(found["rows"])),
    ("latency.md", "hours", "bench_latency_prediction", "latency-prediction.json",
     lambda tool, found: tool.hours_markdown(found["rows"])),
    ("latency.md", "schemes", "bench_latency_prediction", "latency-prediction.json",
     lambda tool, found: tool.schemes_markdown(found["rows"])),
    ("latency.md", "transfers", "bench_latency_prediction", "latency-prediction.json",
     lambda tool, found: tool.transfers_markdown(found["transfers"])),
    ("latency.md", "estimates", "bench_latency_prediction", "latency-prediction.json",
     lambda tool, found: tool.estimates_markdown(found["estimates"])),
    ("latency.md", "context", "bench_context", "context.json", lambda tool, found: tool.markdown(found["rows"])),
    ("training.md", "figures", "bench_supernet", "supernet-cost.json", lambda tool, found: tool.markdown(found)),
    ("networks.md", "ranking", "list_networks", "networks.json", lambda tool, found: tool.markdown(found)),
    ("export.md", "promise", "bench_promise", "promise.json", lambda tool, found: tool.markdown(found["tables"], found["total"])),
    ("export.md", "mixed", "bench_mixed_precision", "mixed-precision.json", lambda tool, found: tool.markdown(found)),
    ("export.md", "quantizers", "bench_quantizers", "quantizers.json", lambda tool, found: tool.markdown(found)),
]


@pytest.mark.parametrize(("page", "mark", "tool", "file", "made"), FIGURES, ids=[f"{page}-{mark}" for page, mark, *_ in FIGURES])
def test_figures_are_those_of_the_benchmark(page, mark, tool, file, made):
    name = f"documented_{tool}"  # the tool's own tests have it by its own name
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{tool}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / page).read_text()
    told = text.split(f"<!-- {mark}: begin -->")[1].split(f"<!-- {mark}: end -->")[0]
    expected = made(module, json.loads((ROOT / "docs" / file).read_text()))
    assert told.strip() == expected.strip(), f"docs/{file} says otherwise: copy what tools/{tool}.py prints"


def test_the_ranking_is_of_the_networks_as_they_are():
    """All were timed, in full; nothing that the page or the picture shows of one has changed since."""
    found = json.loads((ROOT / "docs" / "networks.json").read_text())
    assert not found["unfinished"], "repeat the command of docs/networks.md, which goes on"
    ranked = {row["name"]: (row["macs"], row["parameters"], row["top1"]) for row in found["networks"]}
    assert ranked == {name: (one.network.macs, one.network.parameters, one.published.top1) for name, one in NETWORKS.items()}
    picture = (ROOT / "docs" / "networks.svg").read_text()  # names in comments what it spells in outlines
    assert [row["name"] for row in found["networks"] if row["on_front"] and f"<!-- {row['name']} -->" not in picture] == []
