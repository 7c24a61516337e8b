"""The tables of the repository: whole, small, and told truly."""

import importlib.util
from pathlib import Path

import pytest

from hwnas.latency.table import load_table
from hwnas.spaces.load import load_space

ROOT = Path(__file__).parent.parent
TABLES = sorted((ROOT / "latency_tables").rglob("*.json"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: "/".join(path.parts[-3:]))
def test_table_is_complete_small_and_of_the_published_space(path):
    table = load_table(path)
    assert not table.missing_workloads() and (table.effort is None or table.effort.complete)
    assert table.search_space.hash == load_space(table.space).hash, "the space has changed since: profile it again"
    assert path.stat().st_size < 1 << 20
    environment = table.environment
    assert path.parts[-2] == f"{environment['runtime']}-{environment['precision']}-{environment['threads']}t"
    assert sum(record.role == "held_out" for record in table.networks) >= 19  # the least that a 95 % interval needs


def test_readme_says_what_the_tables_say():
    spec = importlib.util.spec_from_file_location("list_latency_tables", ROOT / "tools" / "list_latency_tables.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    told = [line for line in (ROOT / "latency_tables" / "README.md").read_text().splitlines() if line.startswith("| AMD")
            or line.startswith("| Intel")]
    assert TABLES and told == tool.rows(), "run: python tools/list_latency_tables.py"
