"""A real ssh server on the loopback device, for one test module, and a bare Python for it to run."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from tests.profiling.processes import eventually, kill

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


class Server:
    """An ssh server of the current user's, with keys of its own; what it runs has its temporary files in a folder of their own.

    Args:
        folder: Where all its files lie.
        force: A shell command to run in place of any that a client asks for, which it finds in SSH_ORIGINAL_COMMAND.
    """

    def __init__(self, folder: Path, force: str = "") -> None:
        self.folder, self.there = folder, folder / "there"
        self.there.mkdir()
        for name in ("host_key", "client_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
        self.port = _free_port()
        lines = [f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host_key'}", f"PidFile {folder / 'pid'}",
                 f"AuthorizedKeysFile {folder / 'authorized_keys'}", f"AllowUsers {getpass.getuser()}", "UsePAM no",
                 "StrictModes no", "PermitRootLogin prohibit-password", "PasswordAuthentication no",
                 "KbdInteractiveAuthentication no", f"SetEnv TMPDIR={self.there} OMP_NUM_THREADS=1"]
        (folder / "sshd_config").write_text("\n".join([*lines, *([f"ForceCommand {force}"] if force else [])]) + "\n")
        self.options = ["-F", "none", "-i", str(folder / "client_key"), "-oIdentitiesOnly=yes",
                        "-oStrictHostKeyChecking=accept-new", f"-oUserKnownHostsFile={folder / 'known_hosts'}"]
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, runtime: str = "onnxruntime-cpu", python: Path | str | None = None) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}/{runtime}" + (f"?python={python}" if python else "")

    def start(self) -> None:
        assert SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdin=subprocess.DEVNULL,
                                             stderr=log, start_new_session=True)
        assert eventually(self._answers), (self.folder / "log").read_text()

    def stop(self) -> None:
        """Ends the server and every session, as when the machine goes away."""
        if self._process is not None:
            sessions = self.sessions()
            self._process.terminate()
            self._process.wait()
            self._process = None
            for pid in sessions:
                kill(pid)

    def sessions(self) -> list[int]:
        """The server's processes that clients are connected to."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def drop(self) -> None:
        """Breaks off every connection."""
        for pid in self.sessions():
            kill(pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What lies in the temporary folder there."""
        return sorted(os.listdir(self.there))

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def require_sshd() -> None:
    """Skips where there is no ssh server to start; fails where HWNAS_NEED_SSHD says that there is one."""
    missing = [name for name, found in (("sshd", SSHD), ("ssh", shutil.which("ssh")), ("ssh-keygen", shutil.which("ssh-keygen")))
               if not found]
    if missing or not Path("/proc/self/environ").exists():
        give_up = pytest.fail if os.environ.get("HWNAS_NEED_SSHD") else pytest.skip
        give_up(f"{', '.join(missing) or '/proc'} is not here; Debian has sshd in openssh-server")


def bare_python(folder: Path, packages: tuple[str, ...] = ("numpy", "onnxruntime")) -> Path:
    """A Python that has nothing but the given packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    there = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    here = Path(np.__file__).parents[1]
    for package in packages:
        for name in (package, f"{package}.libs"):
            if (here / name).exists():
                (there / name).symlink_to(here / name)
    return folder / "bin" / "python"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
