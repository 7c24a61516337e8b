"""The README tells the truth: its tree is the package's, its Python and its spaces run, its verbs and options exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import hwnas
from hwnas.cli import VERBS, run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for kind, text in fences if kind == language]


def test_tree_is_the_package():
    tree = next(block for block in _blocks("") if block.startswith("hwnas/"))
    told = set(re.findall(r"^  (\S+)", tree, re.MULTILINE))
    there = {f"{path.name}/" if path.is_dir() else path.name for path in (ROOT / "hwnas").iterdir()
             if path.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed")}
    assert told == there, "README's annotated tree and the package differ: add or remove the line"
    for folder in re.findall(r"^(\S+)/ ", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir(), f"README's tree has {folder}/, which does not exist"


def test_own_space_in_python_and_yaml_are_one(tmp_path):
    source = next(block for block in _blocks("python") if "SearchSpace(" in block)
    (tmp_path / "mine.py").write_text(source)
    (tmp_path / "mine.yaml").write_text(_blocks("yaml")[0])
    python, from_yaml = hwnas.load_space(f"{tmp_path}/mine.py:space"), hwnas.load_space(f"{tmp_path}/mine.yaml")
    assert python.size == 20
    assert from_yaml.size == python.size and from_yaml.input_shape == python.input_shape
    assert len(source.strip().splitlines()) <= 30


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TO_READ = [line for page in PAGES for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
           for line in block.splitlines() if re.match(r"(\.venv/bin/)?hwnas ", line)]


@pytest.mark.parametrize("line", TO_READ)
def test_commands_parse(line, capsys):
    """Every option of every command that is only to be read exists (the others run in the tests of the documentation)."""
    words = shlex.split(line, comments=True)[1:]
    verb = next(verb for verb in VERBS if words[:len(verb.split())] == verb.split())
    assert run([*verb.split(), "--help"]) == 0
    told = capsys.readouterr().out
    for word in words[1:]:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", told), f"{verb} has no {word}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.json")), ids=lambda path: path.name)
def test_example_architectures_are_of_their_space(path):
    architecture = hwnas.load_architecture(path)
    hwnas.load_space(architecture.space).check(architecture)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_session_runs(tmp_path, monkeypatch):
    """The session of the README, on a table from the repository."""
    tables = sorted((ROOT / "latency_tables").rglob("mobile-cpu.json"))
    assert tables, "latency_tables/ holds no table of mobile-cpu"
    table = hwnas.load_table(tables[0])
    trellis = hwnas.Trellis(table.search_space, table)
    budget = (trellis.min_cost() + trellis.max_cost()) / 2
    source = next(block for block in _blocks("python") if "trellis.count" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.json").write_bytes(tables[0].read_bytes())
    exec(compile(source.replace("max_cost=0.1", f"max_cost={budget!r}"), "README", "exec"), {})


def test_example_configurations_are_valid():
    from hwnas.pipeline.config import load_config

    for path in (ROOT / "examples").glob("*.yaml"):
        assert load_config(path).space in yaml.safe_load(path.read_text())["space"]
