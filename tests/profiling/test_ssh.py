"""Devices over ssh: through a real server, to a Python that has numpy and the runtime and nothing else."""

import importlib
import json
import math
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from hwnas.errors import InputError, UnavailableError
from hwnas.latency.table import load_table
from hwnas.profiling.agent import SHIPPED
from hwnas.profiling.device import Patience, open_device
from hwnas.profiling.profiler import ProfilePlan, plan_blocks, profile_space
from hwnas.profiling.ssh import agent_archive, list_ssh_runtimes, open_ssh_device
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RUNTIMES, RuntimeConfig, load_runtime
from hwnas.spaces.load import load_space
from tests.cli.command import hwnas_process, refused
from tests.profiling.processes import agents, eventually, kill, processes
from tests.profiling.sshd import Server, bare_python, require_sshd
from tests.runtimes.models import conv_net

RUNTIME = "onnxruntime-cpu"
ROOT = Path(__file__).parents[2]
CONFIG = RuntimeConfig()
TIMING = TimingPlan(sample_ms=0.05, min_pairs=3, max_pairs=3, max_seconds=0.05, warmup_pairs=1, max_warmup_seconds=0.001)
LONG = TimingPlan(sample_ms=1, min_pairs=10**6, max_pairs=10**6, max_seconds=2.0, warmup_pairs=1, max_warmup_seconds=0.001)
PLAN = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=1, fit_sessions=1, held_out_networks=1, held_out_sessions=1,
                   timing=TIMING, max_anchor_change=math.inf)
SOON = Patience(attempts=1, retry_s=(0.1, 0.1))
MODEL = conv_net().SerializeToString()
SPACE = """
name: atom
input_shape: [1, 8, 8]
layers:
  - {name: only, options: {k1: {kind: conv, out_channels: 4, kernel: 1}, k3: {kind: conv, out_channels: 4}}}
"""
NOISE = "printf 'Welcome!\\nhwnas-agent\\n\\033]0;no end of line'; echo 'and an error' >&2; "


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    found = RUNTIMES[RUNTIME].availability()
    if not found.available:
        pytest.skip(str(found.reason))
    return bare_python(tmp_path_factory.mktemp("bare"))


def serve(folder, **settings):
    require_sshd()
    server = Server(folder, **settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    yield from serve(tmp_path_factory.mktemp("sshd"))


@pytest.fixture
def server(running):
    """The server, which has nothing of ours on it before and after."""
    yield running
    assert eventually(lambda: not processes(str(running.there))), "a process is left on the device"
    assert eventually(lambda: not running.leftovers()), running.leftovers()


@pytest.fixture
def device(server, bare):
    with open_ssh_device(server.address(python=bare), CONFIG, options=server.options, patience=SOON) as opened:
        yield opened


def agent_of(device, server):
    """The only agent's process, which runs if need be."""
    device.environment(1)
    (pid,) = agents(str(server.there))
    return pid


def later(action, *arguments, seconds=0.2):
    """Does something while something else is measured."""
    timer = threading.Timer(seconds, action, arguments)
    timer.start()
    return timer


def test_the_bare_python_has_nothing_but_what_a_device_needs(bare):
    names = ["onnx", "pydantic", "psutil", "networkx", "yaml", "rich", "typer", "cpuinfo", "hwnas", "pip", "scipy", "numpy",
             "onnxruntime"]
    program = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    done = subprocess.run([bare, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "['numpy', 'onnxruntime']"


def test_a_model_is_measured_there(device, server):
    environment = device.environment(1)
    assert environment["runtime"] == RUNTIME and environment["runtime_version"] == load_runtime(RUNTIME).availability().version
    session = device.measure(MODEL, TIMING)
    assert len(session.ratios) == 3 and session.anchor_ms > 0
    first = agent_of(device, server)
    with open(f"/proc/{first}/maps") as maps:
        assert "onnxruntime" in maps.read()  # it is there that it ran
    device.renew()
    assert not processes(str(server.there)) and not server.leftovers()
    assert device.measure(MODEL, TIMING).ratios and agent_of(device, server) != first


def test_a_table_is_measured_there_as_it_is_here(device, tmp_path):
    (tmp_path / "atom.yaml").write_text(SPACE)
    space = load_space(str(tmp_path / "atom.yaml"))
    table = profile_space(space, device, tmp_path / "there.json", plan=PLAN)
    assert set(load_table(tmp_path / "there.json").entries) == {block.key for block in plan_blocks(space, 1)}
    with open_device(RUNTIME, CONFIG) as here:
        assert profile_space(space, here, tmp_path / "there.json", plan=PLAN).entries == table.entries  # the very same device


def test_a_login_script_may_say_and_a_home_folder_may_hold_what_it_likes(tmp_path, bare):
    home = tmp_path / "home"
    home.mkdir()
    for module in ("base64", "tempfile", "subprocess", "numpy", "onnxruntime", "hwnas"):
        (home / f"{module}.py").write_text("raise SystemExit('the wrong one')")
    for server in serve(tmp_path, force=f'{NOISE} cd {home} && eval "$SSH_ORIGINAL_COMMAND"'):
        with open_ssh_device(server.address(python=bare), CONFIG, options=server.options) as device:
            assert device.measure(MODEL, TIMING).ratios


def test_a_users_configuration_may_say_what_it_likes(tmp_path, server, bare):
    config = tmp_path / "config"
    config.write_text(textwrap.dedent(f"""
        Host MyPi
            HostName 127.0.0.1
            Port {server.port}
            RequestTTY force
            RemoteCommand echo something else
            LocalForward 127.0.0.1:{server.port} 127.0.0.1:1
            ExitOnForwardFailure yes
            LogLevel DEBUG
        """))
    with open_ssh_device(f"ssh://MyPi/{RUNTIME}?python={bare}", CONFIG, options=[*server.options[2:], "-F", config]) as device:
        assert device.measure(MODEL, TIMING).ratios


def kill_client():
    """Kills the ssh on this side."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (pid,) = [int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ssh\0")]
    kill(pid)


@pytest.mark.parametrize("side", ["there", "here"])
def test_a_dropped_connection_costs_nothing_but_time(side, device, server):
    first = agent_of(device, server)
    dropping = later(server.drop if side == "there" else kill_client)
    assert device.measure(MODEL, LONG).ratios
    dropping.join()
    assert eventually(lambda: first not in processes(str(server.there)))
    assert eventually(lambda: len(server.leftovers()) == 1) and len(agents(str(server.there))) == 1


def test_an_agent_that_hangs_does_not_outlive_its_connection(device, server):
    kill(agent_of(device, server), signal.SIGSTOP)
    server.drop()
    assert eventually(lambda: not processes(str(server.there)))
    assert device.measure(MODEL, TIMING).ratios


def test_nor_one_that_hangs_while_it_measures(server, bare):
    patience = Patience(session_s=0.5, attempts=1)
    with open_ssh_device(server.address(python=bare), CONFIG, options=server.options, patience=patience) as device:
        later(kill, agent_of(device, server), signal.SIGSTOP)
        with pytest.raises(InputError, match=f"^{server.address()} hung on the model, 1 times: "):
            device.measure(MODEL, LONG)
        assert not processes(str(server.there))


def test_a_crash_there_is_told_by_the_signals_name(server, bare):
    with open_ssh_device(server.address(python=bare), CONFIG, options=server.options, patience=Patience(attempts=1)) as device:
        later(kill, agent_of(device, server), signal.SIGSEGV)
        with pytest.raises(InputError, match=rf"^{server.address()} crashed \(SIGSEGV\) on the model, 1 times: .*\.$"):
            device.measure(MODEL, LONG)
        assert device.measure(MODEL, TIMING).ratios


def test_a_device_that_vanishes_has_some_attempts_to_come_back(device, server):
    device.measure(MODEL, TIMING)
    server.stop()
    said = rf"^{server.address()} cannot be reached any more \(.*refused.*\): what was measured is kept; .*\.$"
    with pytest.raises(UnavailableError, match=said):
        device.measure(MODEL, TIMING)
    coming_back = later(server.start, seconds=0.1)
    patient = open_ssh_device(server.address(), CONFIG, options=server.options)
    assert patient.name == device.name
    coming_back.join()
    assert device.measure(MODEL, TIMING).ratios


def test_a_device_that_vanishes_from_a_profile_costs_nothing_that_was_measured(device, server, tmp_path):
    (tmp_path / "atom.yaml").write_text(SPACE)
    space, path = load_space(str(tmp_path / "atom.yaml")), tmp_path / "table.json"

    def vanish(done, total, what):
        if done == 2:
            server.stop()

    with pytest.raises(UnavailableError, match="what was measured is kept"):
        profile_space(space, device, path, plan=PLAN, progress=vanish)
    kept = [json.loads(line) for line in path.with_name("table.json.journal").read_text().splitlines()[1:]]
    assert len(kept) == 2 and not path.exists()
    server.start()
    table = profile_space(space, device, path, plan=PLAN)
    assert [table.entries[row["key"]].sessions for row in kept] == [(tuple(row["ratios"]),) for row in kept]
    assert len(table.anchor.sessions_ms) == 4


def test_nothing_there_outlives_a_profiler_that_is_killed(server, bare):
    program = textwrap.dedent(f"""
        import sys, time
        from tests.profiling.test_ssh import CONFIG, LONG, MODEL, open_ssh_device
        with open_ssh_device({server.address(python=bare)!r}, CONFIG, options={server.options!r}) as device:
            device.environment(1)
            print("ready", flush=True)
            device.measure(MODEL, LONG)
            time.sleep(100)
        """)
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as profiler:
        try:
            assert profiler.stdout.readline() == "ready\n" and agents(str(server.there))
        finally:
            profiler.kill()


OLD_PYTHON = """\
#!{python}
import sys
program, sys.argv[:] = sys.argv[2], ["-c", *sys.argv[3:]]
sys.version_info = (3, 8, 10, "final", 0)
exec(program)
"""


@pytest.mark.parametrize("kind, said", [
    ("old", r"The agent needs Python 3\.11 or newer, but /.* there is 3\.8: name another one with \?python=COMMAND\."),
    ("missing", r".* cannot be reached \(its agent ended with status 127: .*(found|No such).*\): .*\?python=COMMAND .*\."),
    ("no numpy", r".* cannot be reached \(its agent ended with status 1: ModuleNotFoundError: No module named 'numpy'\): .*\."),
    ("no runtime", r"onnxruntime-cpu is not usable there: onnxruntime is not installed; run: pip install onnxruntime\."),
])
def test_a_device_without_what_it_needs_says_so_in_a_sentence(kind, said, server, tmp_path):
    python = tmp_path / "bin" / "python"
    if kind == "old":
        python.parent.mkdir()
        python.write_text(OLD_PYTHON.format(python=sys.executable))
        python.chmod(python.stat().st_mode | stat.S_IEXEC)
    elif kind != "missing":
        python = bare_python(tmp_path, packages=("numpy",) if kind == "no runtime" else ())
    with (open_ssh_device(server.address(python=python), CONFIG, options=server.options) as device,
          pytest.raises(UnavailableError, match=rf"^{said}$")):
        device.environment(1)


def test_a_host_that_never_answered_is_not_waited_for(server):
    never = Patience(retry_s=(1e6,))
    for options, said in ((["-oPort=1"], "refused"), ([*server.options[:2], "-oIdentitiesOnly=yes", "-oIdentityFile=none",
                                                      *server.options[5:]], "Permission denied"),
                          (["-oHostName=no.such.host.invalid"], "resolve"), (["-oNoSuchOption=1"], "nosuchoption")):
        address = server.address() if "-oPort=1" not in options else f"ssh://127.0.0.1/{RUNTIME}"
        with (open_ssh_device(address, CONFIG, options=options, patience=never) as device,
              pytest.raises(UnavailableError) as error):
            device.environment(1)
        assert str(error.value).startswith(f"{address} cannot be reached (") and said in str(error.value)


def test_the_command_line_profiles_over_ssh(server, bare, tmp_path, monkeypatch):
    (tmp_path / "atom.yaml").write_text(SPACE)
    monkeypatch.setenv("HWNAS_SSH_OPTIONS", " ".join(server.options))
    arguments = ["profile", "--device", server.address(python=bare), "--space", tmp_path / "atom.yaml",
                 "--output", tmp_path / "table.json", "--max-minutes", 0.02, "--json"]
    done = hwnas_process(*arguments)
    assert done.code == 0 and done.json["entries"] > 0, done
    assert load_table(tmp_path / "table.json").environment["runtime"] == RUNTIME
    server.stop()
    try:
        said = refused(hwnas_process(*arguments), 5)
    finally:
        server.start()
    assert said.startswith(server.address()) and "refused" in said


def machine(server, python):
    """Its address without a runtime."""
    return server.address(python=python).replace(f"/{RUNTIME}", "")


def test_a_machine_says_which_runtimes_it_has(server, bare):
    found = list_ssh_runtimes(machine(server, bare), options=server.options)
    assert list(found) == list(RUNTIMES) and [name for name, one in found.items() if one.available] == [RUNTIME]
    assert found[RUNTIME].version == load_runtime(RUNTIME).availability().version and found[RUNTIME].reason is None
    assert found["openvino-cpu"].reason == "openvino is not installed; run: pip install openvino"


def test_a_runtime_that_crashes_there_is_one_of_them(server, tmp_path):
    python = bare_python(tmp_path)
    (packages,) = tmp_path.glob("lib/python*/site-packages")
    (packages / "openvino").mkdir()
    (packages / "openvino" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    found = list_ssh_runtimes(machine(server, python), options=server.options)
    assert list(found) == list(RUNTIMES) and found[RUNTIME].available
    assert found["openvino-cpu"].reason == "it crashed (SIGSEGV) when it was imported; reinstall it"


def test_the_command_line_lists_a_machines_runtimes(server, bare, monkeypatch):
    monkeypatch.setenv("HWNAS_SSH_OPTIONS", " ".join(server.options))
    arguments = ["devices", "--on", machine(server, bare)]
    done = hwnas_process(*arguments, "--json")
    assert done.code == 0 and [row["name"] for row in done.json if row["available"]] == [RUNTIME], done
    assert {key for row in done.json for key in row} == {"name", "available", "reason", "runtime_version", "precisions"}
    told = hwnas_process(*arguments)
    assert told.code == 0 and "pip install openvino" in told.out and f"{RUNTIME} " in told.out and ": fp32" in told.out
    said = refused(hwnas_process("devices", "--on", machine(server, "/nowhere/python")), 5)
    assert "ended with status 127" in said and "?python=COMMAND" in said
    server.stop()
    try:
        said = refused(hwnas_process(*arguments), 5)
    finally:
        server.start()
    assert said.startswith(f"{machine(server, None)} cannot be reached (") and "refused" in said


@pytest.mark.parametrize("address", [
    "pi", "ssh://", "ssh://pi/onnxruntime-cpu", "ssh://pi?shell=x", "ssh://me:secret@pi", "ssh://pi:port", "ssh://-oProxyCommand=x",
    "ssh://pi?python=a;b", "ssh://pi;ls", "ssh://pi\n"])
def test_other_addresses_are_no_machines(address):
    with pytest.raises(InputError, match=r"is ssh://user@host, .* but got"):
        list_ssh_runtimes(address)


def test_options_of_the_environment_must_be_quoted_as_for_a_shell(monkeypatch):
    monkeypatch.setenv("HWNAS_SSH_OPTIONS", "-i 'key")
    with pytest.raises(InputError, match=r"^HWNAS_SSH_OPTIONS must be options for ssh"):
        open_device(f"ssh://pi/{RUNTIME}", CONFIG)
    with pytest.raises(InputError, match=r"^HWNAS_SSH_OPTIONS must be options for ssh"):
        list_ssh_runtimes("ssh://pi")


@pytest.mark.parametrize("address, host, port, python", [
    ("ssh://pi/onnxruntime-cpu", "pi", None, "python3"),
    ("ssh://MyPi.local/onnxruntime-cpu", "MyPi.local", None, "python3"),
    ("ssh://me@10.0.0.7:2222/onnxruntime-cpu?python=~/venv/bin/python3.12", "me@10.0.0.7", "2222", "~/venv/bin/python3.12"),
    ("ssh://a.b-c_d@[fe80::1]:22/onnxruntime-cpu", "a.b-c_d@fe80::1", "22", "python3"),
])
def test_an_address_becomes_a_command(address, host, port, python, tmp_path, monkeypatch):
    program = tmp_path / "ssh"
    program.write_text(f"#!{sys.executable}\nimport sys; open({str(tmp_path / 'said')!r}, 'w').write('\\0'.join(sys.argv))\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with open_ssh_device(address, CONFIG, cpus=[2, 3], options=["-v"]) as device, pytest.raises(UnavailableError):
        device.environment(1)
    _, *options, before, found, command = (tmp_path / "said").read_text().split("\0")
    assert (before, found) == ("--", host) and options[0] == "-v" and "-oBatchMode=yes" in options
    assert options[-2:] == ["-p", port] if port else "-p" not in options
    assert command.startswith(f"{python} -c ") and command.endswith(" onnxruntime-cpu 1 fp32 2,3")


@pytest.mark.parametrize("address", [
    "ssh://", "ssh://pi", "ssh://pi/", "ssh:///onnxruntime-cpu", "http://pi/onnxruntime-cpu", "ssh://-oProxyCommand=x/onnxruntime-cpu",
    "ssh://pi/onnxruntime-cpu?python=", "ssh://pi/onnxruntime-cpu?python=a;b", "ssh://pi/onnxruntime-cpu?python=a b",
    "ssh://pi/onnxruntime-cpu?python=$(reboot)", "ssh://pi/onnxruntime-cpu?shell=x", "ssh://me:secret@pi/onnxruntime-cpu",
    "ssh://pi:port/onnxruntime-cpu", "ssh://pi/onnxruntime-cpu#x", "ssh://pi/onnxruntime-cpu\n", "ssh://p`i/onnxruntime-cpu",
    "ssh://pi/onnxruntime-cpu/x", "ssh://[::1/onnxruntime-cpu", "ssh://-me@pi/onnxruntime-cpu", "ssh://pi;ls/onnxruntime-cpu"])
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match=r"is ssh://user@host/runtime, .* but got"):
        open_device(address, CONFIG)


def test_an_address_needs_a_runtime_that_there_is():
    with pytest.raises(InputError, match="There is no runtime 'abacus'"):
        open_device("ssh://pi/abacus", CONFIG)


def test_what_is_shipped_is_all_that_an_agent_imports(tmp_path):
    content = agent_archive()
    assert content == agent_archive()
    with zipfile.ZipFile(BytesIO(content)) as archive:
        shipped = set(archive.namelist())
    assert {f"hwnas/{name}" for name in SHIPPED if "*" not in name} <= shipped
    assert {f"hwnas/runtimes/{name}.py" for name in ("base", "onnxruntime", "mnn")} <= shipped
    (tmp_path / "hwnas.zip").write_bytes(content)
    program = ("import sys, hwnas.profiling.agent, hwnas.profiling.guard\n"
               "print([m.__file__ for n, m in sys.modules.items() if n.partition('.')[0] == 'hwnas'])")
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "hwnas.zip")})
    assert all(name.startswith(str(tmp_path)) for name in eval(done.stdout))
    assert importlib.import_module("hwnas").__file__ not in done.stdout
