"""The command line: argument parsing and printing only, one file per verb.

Results go to stdout, progress and logs to stderr. `--json` prints one JSON document on stdout and nothing else.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.bench import bench_command
from hwnas.cli.compile import compile_command
from hwnas.cli.devices import devices_command
from hwnas.cli.export import export_command
from hwnas.cli.feasible import feasible_command
from hwnas.cli.kit import kit_build_command, kit_collect_command
from hwnas.cli.networks import networks_command
from hwnas.cli.predict import predict_command
from hwnas.cli.profile import profile_command
from hwnas.cli.quantize import quantize_command
from hwnas.cli.retrain import retrain_command
from hwnas.cli.search import search_command
from hwnas.cli.spaces import spaces_command
from hwnas.cli.table import (
    table_check_command,
    table_diff_command,
    table_export_command,
    table_import_command,
    table_judge_command,
    table_show_command,
)
from hwnas.cli.train import train_command
from hwnas.cli.verify import verify_command
from hwnas.errors import HwnasError

# In the order in which a newcomer needs them. A verb's help is its module's docstring; where one has several words, the docstring
# is that of the group, and the verb's own is its function's.
VERBS: dict[str, Callable[..., None]] = {
    "devices": devices_command,
    "spaces": spaces_command,
    "networks": networks_command,
    "profile": profile_command,
    "kit build": kit_build_command,
    "kit collect": kit_collect_command,
    "table show": table_show_command,
    "table diff": table_diff_command,
    "table check": table_check_command,
    "table judge": table_judge_command,
    "table export": table_export_command,
    "table import": table_import_command,
    "predict": predict_command,
    "feasible": feasible_command,
    "train": train_command,
    "search": search_command,
    "retrain": retrain_command,
    "export": export_command,
    "quantize": quantize_command,
    "verify": verify_command,
    "bench": bench_command,
    "compile": compile_command,
}

# These continue where they were interrupted.
RESUMABLE = {"networks", "profile", "table judge", "train", "search", "retrain", "quantize", "compile"}

# Optional packages and the extra that brings them; a verb that needs one imports it only then.
EXTRAS = {"torch": "train", "safetensors": "train", "PIL": "train", "matplotlib": "report", "sklearn": "train",
          "tensorboard": "train", "onnxruntime": "onnxruntime", "openvino": "openvino", "plotly": "report"}


def _typer(help: str | None) -> typer.Typer:
    return typer.Typer(name="hwnas", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                       rich_markup_mode=None, help=help)


app = _typer("Compile a search space into the best network a device runs within a budget.")
_groups: dict[str, typer.Typer] = {"": app}
for _verb, _command in VERBS.items():
    _group, _, _name = _verb.rpartition(" ")
    _help = sys.modules[_command.__module__].__doc__
    if _group not in _groups:
        _groups[_group] = _typer(_help)
        app.add_typer(_groups[_group], name=_group, short_help=_help)
    _help = _command.__doc__ if _group else _help
    _groups[_group].command(_name, help=_help, short_help=_help)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"hwnas {version('hwnas')}")
        raise typer.Exit


@app.callback()
def _options(
    load: Annotated[list[Path] | None, typer.Option(help="Python file with blocks of your own, run first; repeatable.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version,
                                          is_eager=True)] = False,
) -> None:  # --debug is read by `run`, which sees errors of parsing too
    if load:
        from hwnas.spaces.load import run_file

        for path in load:
            run_file(path)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with the code that `hwnas.errors` gives."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; errors are one sentence on stderr unless `--debug` is given."""
    debug = "--debug" in arguments
    code = 0
    try:
        # --debug is accepted before and after the verb, since people add it to the end of the line that failed
        code = _run_verb([one for one in arguments if one != "--debug"])
        _flush()  # here, where what goes wrong can still be told
    except BrokenPipeError:  # the reader has gone, as in `| head`: that is no error
        pass
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explained(error)
        _tell(f"Error: {message}")
    try:
        _flush()
    except OSError:  # told, or of no interest: the interpreter need not complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run_verb(arguments: list[str]) -> int:
    try:
        app(arguments, prog_name="hwnas")
        return 0
    except SystemExit as stop:  # how Typer ends, always; a broken pipe too, which it and rich turn into a 1
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        if stop.code == 130:
            verb = next((one for one in arguments if one in VERBS), "")
            continues = ": what was done is kept" if verb in RESUMABLE else ""
            if continues and not {"--overwrite", "--restart"} & {*arguments}:  # which would discard it
                continues += ", and the same command continues"
            _tell(f"Interrupted{continues}.")
        return stop.code if isinstance(stop.code, int) else 0


def _explained(error: Exception) -> tuple[str, int]:
    """One sentence about an error, and its exit code."""
    if isinstance(error, HwnasError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return f"This verb needs {package}, which is not installed; run: pip install 'hwnas[{EXTRAS[package]}]'.", 5
    if isinstance(error, OSError) and error.strerror:  # the machine's state, which a user can mend
        if error.filename is not None:
            return f"{error.filename} cannot be read or written ({error.strerror}): check the path and its permissions.", 2
        return f"The operating system refused ({error.strerror}): free what is short and repeat the command.", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the second is PyTorch's
        return "Memory is short: take a smaller --batch-size, more --accumulation, or fewer or smaller images.", 1
    return f"Unexpected {type(error).__name__}: {error}. This is a defect of hwnas; --debug shows where.", 1


def _tell(message: str) -> None:
    if sys.stderr is not None:  # closed by the caller; print would fall back to stdout
        print(message, file=sys.stderr)


def _flush() -> None:
    if sys.stdout is not None:  # closed by the caller
        sys.stdout.flush()
