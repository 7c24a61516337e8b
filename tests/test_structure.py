"""The architecture, enforced: dependencies point downwards, and the base install needs no framework."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hwnas"

# From the bottom up: a module may import from its own layer and from those before it.
LAYERS = (
    ("errors",), ("files",), ("ir",), ("spaces", "lower"), ("runtimes",), ("latency",), ("profiling",), ("data",), ("supernet",),
    ("search",), ("export",), ("report",), ("pipeline",), ("cli", "__main__", "__init__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Search takes its evaluator as a callable, so that it runs without torch; data never knows what learns from it.
FORBIDDEN = {("search", "supernet"), ("search", "lower"), ("search", "profiling"), ("search", "runtimes"), ("search", "data"),
             ("export", "supernet"), ("export", "search"), ("data", "ir"), ("supernet", "profiling"), ("latency", "runtimes")}

MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Top-level parts of hwnas that a file imports, local imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" if node.module == "hwnas" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("hwnas.")}
    return found


def _part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_downwards(path):
    part = _part(path)
    assert part in RANK, f"{part} is a new part of the package: give it a place in LAYERS of this test and in the README"
    for other in _imports(path) - {part}:
        assert RANK[other] < RANK[part] or (RANK[other] == RANK[part] and part in ("cli", "__main__")), (
            f"{path.name} ({part}) imports hwnas.{other}, which stands above or beside it: move what both need further down, "
            "or pass it in as an argument")
        assert (part, other) not in FORBIDDEN, (
            f"{path.name} ({part}) must not know hwnas.{other}: take a callable or plain data as an argument instead")


def test_no_import_cycles():
    """Every module imports on its own, first of its part; parts cannot be in a circle, as the test above shows."""
    names = [".".join(("hwnas", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
             for path in MODULES if path.stem != "__main__"]
    code = ("import importlib, sys\n"
            "for name in sys.argv[1:]:\n"
            "    for loaded in [one for one in sys.modules if one.split('.')[:2] == name.split('.')[:2]]:\n"
            "        del sys.modules[loaded]\n"
            "    importlib.import_module(name)\n")
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_unsafe_is_loaded():
    """Pickles run code; so does a YAML loader that is not the safe one."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                call = f"{node.value.id}.{node.attr}"
                assert call not in {"pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.full_load"}, f"{path}: {call}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}: allow_pickle"
