"""The fingerprint: what it records, what must match, and processors that are not this machine's."""

import json
import platform
import socket
import time
from pathlib import Path

import cpuinfo
import pytest

from hwnas.errors import InputError
from hwnas.profiling.environment import (
    CHECKED_KEYS,
    SETTINGS_PREFIX,
    Processor,
    compare_environments,
    environment_fingerprint,
    parse_cpuinfo,
    read_processor,
    require_same_environment,
)
from hwnas.runtimes import RUNTIMES, RuntimeConfig

EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu vme sse2 smep avx avx2 fma f16c avx512f avx512_vnni avx_vnni avx512_bf16 avx2

processor\t: 1
vendor_id\t: AuthenticAMD
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu vme sse2 smep avx avx2 fma f16c avx512f avx512_vnni avx_vnni avx512_bf16 avx2
"""

BIG_LITTLE = """processor\t: 0
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes asimdhp fphp asimddp i8mm bf16 sve2
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x2
CPU part\t: 0xd05
CPU revision\t: 0

processor\t: 1
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes asimdhp fphp asimddp i8mm bf16 sve2
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 0
"""


def fingerprint(name="onnxruntime-cpu", *, threads=1, batch_size=1, anchor="abc"):
    return environment_fingerprint(RUNTIMES[name], RuntimeConfig(threads), batch_size=batch_size, anchor=anchor)


def test_the_fingerprint_is_flat_json_with_every_checked_key():
    found = fingerprint()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(found[key] not in (None, "", "unknown") for key in CHECKED_KEYS if key != "device_flags")
    assert not any(isinstance(value, dict | list) for value in found.values())


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_the_runtimes_settings_are_part_of_it(name):
    """Also without the GPU that it is for: settings need none, and the fingerprint then has no version."""
    settings = RUNTIMES[name].settings(RuntimeConfig())
    found = fingerprint(name)
    assert {key: found[SETTINGS_PREFIX + key] for key in settings} == settings
    assert found["runtime_version"] == RUNTIMES[name].can_load().version


def test_nothing_names_the_host():
    text = json.dumps(fingerprint()).lower()
    for private in (socket.gethostname(), Path.home().as_posix()):
        assert len(private) < 5 or private.lower() not in text


def test_the_same_machine_matches_itself_later():
    first = fingerprint()
    time.sleep(1.1)
    second = fingerprint()
    assert first["measured_utc"] != second["measured_utc"]
    assert compare_environments(first, second) == []
    require_same_environment(first, second, "the latency table t.json")


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"threads": 2}, {"threads", "setting.intra_op_num_threads"}),
        ({"batch_size": 8}, {"batch_size"}),
        ({"anchor": "def"}, {"anchor"}),
    ],
)
def test_each_change_is_named(change, keys):
    assert {key for key, _, _ in compare_environments(fingerprint(), fingerprint(**change))} == keys


@pytest.mark.parametrize("key", [*CHECKED_KEYS, "setting.graph_optimization_level"])
def test_a_refusal_names_the_key_both_values_and_the_remedy(key):
    here = fingerprint()
    there = here | {key: "SOMETHING ELSE"}
    with pytest.raises(InputError) as caught:
        require_same_environment(there, here, "the latency table t.json")
    message = str(caught.value)
    assert f"{key} is 'SOMETHING ELSE' there and {here[key]!r} here" in message
    assert "the latency table t.json" in message and "hwnas profile" in message


def test_a_missing_key_differs_and_an_unknown_one_does_not_matter():
    here = fingerprint()
    without = {key: value for key, value in here.items() if key not in ("device_flags", "setting.provider")}
    assert {key for key, _, _ in compare_environments(here, without)} <= {"device_flags", "setting.provider"}
    assert ("setting.provider", here["setting.provider"], None) in compare_environments(here, without)
    assert compare_environments(here, here | {"comment": "x", "python_version": "2.7"}) == []


def test_runtimes_do_not_match_each_other():
    keys = {key for key, _, _ in compare_environments(fingerprint("onnxruntime-cpu"), fingerprint("openvino-cpu"))}
    assert {"runtime", "runtime_version"} <= keys


def test_an_x86_processor():
    assert parse_cpuinfo(EPYC) == Processor(
        name="AMD EPYC",
        identity="26/2/1",
        flags=("avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "f16c", "fma"),
    )


def test_an_arm_processor_of_two_kinds_of_cores():
    found = parse_cpuinfo(BIG_LITTLE)
    assert found.identity == "0x41/0xd05/0x2 0x41/0xd0b/0x4"
    assert found.flags == ("asimd", "asimddp", "asimdhp", "bf16", "fphp", "i8mm", "sve2")


@pytest.mark.parametrize("text", ["", "\n\n", "nonsense", "a:b\n\n:\n"])
def test_unreadable_processor_text_is_unknown(text):
    assert parse_cpuinfo(text) == Processor("unknown", "", ())


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="compares Linux's own words")
def test_the_quick_way_agrees_with_py_cpuinfo():
    info = cpuinfo.get_cpu_info()
    found = read_processor()
    assert found.name == info["brand_raw"]
    assert found.identity == f"{info['family']}/{info['model']}/{info['stepping']}"
    assert set(found.flags) <= set(info["flags"])
    kernels = {flag.replace("_", "") for flag in info["flags"] if flag.startswith(("avx512", "amx"))}  # has aliases
    assert kernels <= {flag.replace("_", "") for flag in found.flags}
