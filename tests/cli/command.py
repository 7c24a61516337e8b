"""Runs the command line: in this process, where that is enough, and as a process of its own."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from hwnas.cli import run


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; anything else there is an error."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one sentence about what was wrong."""
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("Error: "), self.err
        return last.removeprefix("Error: ")


def hwnas(*arguments: object) -> Outcome:
    """Runs a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(one) for one in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def hwnas_process(*arguments: object, **options: Any) -> Outcome:
    """Runs a command as a user's shell does."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}  # as in a user's shell
    done = subprocess.run([sys.executable, "-m", "hwnas", *map(str, arguments)], text=True, check=False,
                          env=environment | {"OMP_NUM_THREADS": "1"}, **options)
    return Outcome(done.returncode, done.stdout or "", done.stderr or "")


def refused(outcome: Outcome, code: int = 2) -> str:
    """Checks that a command failed as it should towards a user, and returns what it said."""
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.err and outcome.out == "", outcome
    assert outcome.error.endswith("."), outcome.error
    return outcome.error
