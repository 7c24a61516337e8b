"""A device over ssh: `ssh://user@host:port/runtime`, reached with the system's own `ssh` and its configuration and keys.

The agent's files travel first, into a folder of their own under the temporary folder there. The folder goes when the agent ends,
also when it crashes or the connection drops. Whatever else ssh needs (jump hosts, keys) belongs in ~/.ssh/config, or for one
command in the environment variable HWNAS_SSH_OPTIONS ("-i key -J gate"). No password is ever asked for.
"""

import base64
import io
import os
import re
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

import hwnas
from hwnas.errors import InputError
from hwnas.profiling.agent import SHIPPED
from hwnas.profiling.device import Device, Launch, Link, Patience, list_runtimes, load_anchor, start_agent
from hwnas.profiling.guard import PREFIX
from hwnas.profiling.protocol import GREETING
from hwnas.runtimes import load_converter
from hwnas.runtimes.base import Availability, RuntimeConfig

OPTIONS_VARIABLE = "HWNAS_SSH_OPTIONS"

# A user's name, host and port as ssh takes them, the runtime, and a command for Python without any character that shells give a
# meaning to, but for ~.
_HOST = r"(ssh://(?P<user>[\w.+][\w.+-]*@)?(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[\w.][\w.-]*))(?::(?P<port>\d+))?)"
_PYTHON = r"(?:\?python=(?P<python>[\w./~+-]+))?"
_ADDRESS = re.compile(_HOST + r"/(?P<runtime>[\w-]+)" + _PYTHON, re.ASCII)
_MACHINE = re.compile(_HOST + "/?" + _PYTHON, re.ASCII)
_CONNECTION_BROKEN = 255  # ssh's own exit status
# Nothing is asked, a dead connection is noticed within a minute, and nothing in a user's configuration may come in between.
_OPTIONS = ("-T", *(f"-o{option}" for option in (
    "BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=10", "ServerAliveCountMax=6", "LogLevel=ERROR",
    "ClearAllForwardings=yes", "RemoteCommand=none")))
# Runs there first, in whatever Python there is: unpacks what comes, and leaves the rest to the guard.
_BOOTSTRAP = f"""\
import os, shutil, sys, tempfile
if sys.version_info < (3, 11):
    said = "The agent needs Python 3.11 or newer, but %s there is %d.%d: name another one with ?python=COMMAND."
    os.write(1, ("\\n{GREETING}" + said % (sys.executable, sys.version_info[0], sys.version_info[1]) + "\\n").encode())
    sys.exit(0)
folder = tempfile.mkdtemp(prefix="{PREFIX}")
try:
    archive = os.path.join(folder, "hwnas.zip")
    rest = int(sys.argv[1])
    with open(archive, "wb") as file:
        while rest:
            part = os.read(0, rest)
            if not part:
                sys.exit(0)
            rest -= file.write(part)
    sys.path.insert(0, archive)
    from hwnas.profiling.guard import guard
    status = guard(sys.argv[2:], folder)
finally:
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(status)
"""
# One line without quotes or line ends in it, which any shell understands. Python must not look for modules in the home folder.
_COMMAND = "import sys; sys.path[:] = filter(None, sys.path); import base64; exec(base64.b64decode('%s'))"


def open_ssh_device(address: str, config: RuntimeConfig, cpus: Sequence[int] = (), options: Sequence[str] = (),
                    patience: Patience | None = None, anchor: str | None = None) -> Device:
    """A device on another machine.

    Args:
        address: `ssh://user@host:port/runtime`, user and port as far as they matter; `?python=COMMAND` where it is not python3.
        config: Threads and precision.
        cpus: Which processors to use, instead of the last ones.
        options: Options for ssh, which take precedence; those of the environment variable HWNAS_SSH_OPTIONS follow.
        patience: How long to wait, and how often to try.
        anchor: As of `hwnas.profiling.device.open_device`.

    Raises:
        InputError: The address or the environment variable is malformed, or there is no such runtime.
        UnavailableError: Models for the runtime cannot be made ready here.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise InputError(f"A remote device is ssh://user@host/runtime, with ?python=COMMAND if need be, but got {address!r}: "
                         "write it so, and what is special about the host into ~/.ssh/config.")
    runtime = load_converter(parts["runtime"])
    return Device(runtime, config, _launcher(parts, options), parts[1], cpus, patience, load_anchor(anchor))


def list_ssh_runtimes(machine: str, options: Sequence[str] = (), patience: Patience | None = None) -> dict[str, Availability]:
    """Whether each runtime can be measured on another machine, by its name.

    Args:
        machine: `ssh://user@host:port`, as in the address of a device.
        options: As of `open_ssh_device`.
        patience: How long to wait, for each runtime.

    Raises:
        InputError: The address or the environment variable is malformed.
        UnavailableError: The machine cannot be reached, or has no Python for an agent.
    """
    parts = _MACHINE.fullmatch(machine)
    if parts is None:
        raise InputError(f"A remote machine is ssh://user@host, with ?python=COMMAND if need be, but got {machine!r}: write it "
                         "so, without a runtime, and what is special about the host into ~/.ssh/config.")
    return list_runtimes(_launcher(parts, options), parts[1], patience)


def _launcher(parts: re.Match[str], options: Sequence[str]) -> Launch:
    """What starts agents on the machine of an address."""
    destination = (parts["user"] or "") + (parts["ipv6"] or parts["host"])
    command = ["ssh", *options, *_user_options(), *_OPTIONS, *(["-p", parts["port"]] if parts["port"] else []), "--", destination]
    archive = agent_archive()
    python = f'{parts["python"] or "python3"} -c "{_COMMAND % base64.b64encode(_BOOTSTRAP.encode()).decode()}" {len(archive)}'

    def launch(arguments: Sequence[str]) -> Link:
        return start_agent([*command, f"{python} {shlex.join(arguments)}"], archive,
                           lost=lambda status: status == _CONNECTION_BROKEN or status < 0)  # ssh itself may be killed

    return launch


def agent_archive(shipped: Sequence[str] = SHIPPED) -> bytes:
    """A zip archive of what an agent needs of hwnas, which Python imports from as it is; the same bytes each time.

    Args:
        shipped: Which files, relative to the package.
    """
    package = Path(hwnas.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted({path for pattern in shipped for path in package.glob(pattern)}):
            archive.writestr(zipfile.ZipInfo(path.relative_to(package.parent).as_posix()), path.read_bytes(),
                             zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _user_options() -> list[str]:
    text = os.environ.get(OPTIONS_VARIABLE, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{OPTIONS_VARIABLE} must be options for ssh, quoted as for a shell, but {text!r} is not ({error}): "
                         "mend it.") from None
