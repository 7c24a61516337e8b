"""The protocol: what is sent arrives, and whatever else arrives is an error of one kind, in bounded time."""

import contextlib
import json
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hwnas.profiling import protocol
from hwnas.profiling.agent import Agent
from hwnas.profiling.protocol import Message, ProtocolError, SilenceError, Stream, program_message, program_of
from hwnas.runtimes import RUNTIMES, Program, RuntimeConfig, TensorInfo
from tests.runtimes.models import conv_net

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=8)
WRONG = st.sampled_from([None, True, -1, 0, 1.5, "1", float("nan"), float("inf"), 10**400, [], {}, [[]], "measure"]) | JSON
FILES = st.dictionaries(st.text(max_size=5), st.binary(max_size=50), max_size=3)


@contextlib.contextmanager
def connected():
    """Two streams, each at the other's ends, with the descriptors of the first."""
    (there_in, here_out), (here_in, there_out) = os.pipe(), os.pipe()
    opened = {there_in, here_out, here_in, there_out}

    def close(*descriptors):
        for descriptor in descriptors:
            if descriptor in opened:
                opened.remove(descriptor)
                os.close(descriptor)

    try:
        yield Stream(here_in, here_out), Stream(there_in, there_out), (lambda: close(here_in, here_out))
    finally:
        close(*list(opened))


def soon(seconds=0.05):
    return time.monotonic() + seconds


def received(content):
    """What a stream makes of a few bytes after which the other side ends."""
    with connected() as (here, there, end_here):
        here.send_bytes(content)
        end_here()
        return there.receive(soon(60))


def line_and_rest(head):
    return st.builds(lambda value, rest: json.dumps(value).encode() + b"\n" + rest, head, st.binary(max_size=9))


@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "files"), JSON.filter(
    lambda value: "nan" not in repr(value)), max_size=3), FILES), max_size=3))
def test_what_is_sent_arrives_in_order(messages):
    with connected() as (here, there, _):
        for content, files in messages:
            here.send(Message(content, files))
        for content, files in messages:
            found = there.receive(soon(5))
            assert found.content == content and found.files == files


def test_messages_far_beyond_what_a_pipe_holds_arrive():
    files = {"a": np.random.default_rng(0).bytes(5_000_000), "b": b"", "c": b"\n" * 300_000}
    with connected() as (here, there, _):
        sender = threading.Thread(target=here.send, args=(Message({"x": "y" * 200_000}, files),))
        sender.start()
        found = there.receive(soon(30))
        sender.join()
    assert found.files == files and found.content == {"x": "y" * 200_000}


@given(st.binary(max_size=200) | line_and_rest(JSON)
       | line_and_rest(st.fixed_dictionaries({"files": st.dictionaries(st.text(max_size=3), WRONG, max_size=3)})))
def test_arbitrary_bytes_are_a_message_or_a_protocol_error(content):
    try:
        found = received(content)
    except ProtocolError:
        return
    line, _, rest = content.partition(b"\n")
    sizes = json.loads(line)["files"]
    assert {name: len(file) for name, file in found.files.items()} == sizes and rest.startswith(b"".join(found.files.values()))


@pytest.mark.parametrize("sizes", ['{"a": -1}', '{"a": 1e3}', '{"a": true}', '{"a": "1"}', '{"a": NaN}', '{"a": Infinity}', "[]",
                                   "7", '{"a": 1' + "0" * 30 + "}", '{"a": 1' + "0" * 5000 + "}",
                                   '{"a": 4000000000, "b": 4000000000}'])
def test_sizes_that_no_honest_side_announces_are_refused_at_once(sizes):
    with connected() as (here, there, _):
        here.send_bytes(b'{"files": ' + sizes.encode() + b"}\n")
        with pytest.raises(ProtocolError, match="no message"):
            there.receive(soon(60))


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff\xfe", b"{}", b"null", b'"files"', b'{"files": null}', b""])
def test_other_lines_are_no_messages(line):
    with connected() as (here, there, _):
        sender = threading.Thread(target=here.send_bytes, args=(line + b"\n",))
        sender.start()
        with pytest.raises(ProtocolError, match="no message"):
            there.receive(soon(60))
        sender.join()


def test_a_line_without_an_end_is_not_collected_for_ever(monkeypatch):
    monkeypatch.setattr(protocol, "_MAX_LINE_BYTES", 10_000)
    with connected() as (here, there, _):
        here.send_bytes(b"x" * 20_000)
        with pytest.raises(ProtocolError, match="no end"):
            there.receive(soon(60))


@pytest.mark.parametrize("sent", [b"", b'{"fi', b'{"files": {"a": 5}}\n1234'])
def test_a_message_that_stops_halfway_is_waited_for_until_the_deadline(sent):
    with connected() as (here, there, _):
        here.send_bytes(sent)
        with pytest.raises(SilenceError):
            there.receive(soon())


@pytest.mark.parametrize("sent", [b"", b'{"fi', b'{"files": {"a": 5}}\n1234'])
def test_the_other_sides_end_is_noticed(sent):
    with connected() as (here, there, end_here):
        here.send_bytes(sent)
        end_here()
        with pytest.raises(ProtocolError, match="ended") as found:
            there.receive(soon(60))
        assert not isinstance(found.value, SilenceError)
        with pytest.raises(ProtocolError, match="ended"):
            there.send(Message({}))


def test_two_sides_that_both_write_more_than_fits_do_not_wait_for_each_other_for_ever():
    large, silent = Message({}, {"a": bytes(3_000_000)}), []

    def write(stream):
        try:
            stream.send(large, soon(0.2))
        except SilenceError:
            silent.append(stream)

    with connected() as (here, there, _):
        threads = [threading.Thread(target=write, args=(stream,)) for stream in (here, there)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(silent) == 2


def test_closed_descriptors_are_an_end():
    with connected() as (here, _, end_here):
        end_here()
        with pytest.raises(ProtocolError, match="ended"):
            here.receive()
        with pytest.raises(ProtocolError, match="ended"):
            here.send(Message({}))


@pytest.mark.parametrize("seconds", [1e300, float("inf"), 1e9])
def test_any_patience_is_possible(seconds):
    with connected() as (here, there, _):
        sender = threading.Timer(0.05, here.send, args=(Message({"x": 1}),))
        sender.start()
        assert there.receive(time.monotonic() + seconds).content == {"x": 1}
        sender.join()


TENSORS = st.lists(st.builds(TensorInfo, st.text(max_size=5), st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
                             st.sampled_from(["<f4", "<f2", "|i1", "|u1", "<i8", "|b1", "<c16", "|V2"]).map(np.dtype)),
                   max_size=3).map(tuple)


@given(FILES, TENSORS, TENSORS)
def test_a_program_arrives_as_it_was(files, inputs, outputs):
    program = Program(files, inputs, outputs)
    message = program_message({"op": "measure"}, program)
    assert program_of(Message(json.loads(json.dumps(message.content)), message.files)) == program


NEARLY_TENSORS = st.tuples(st.text(max_size=2), st.lists(st.integers(), max_size=2),
                           st.text(max_size=8) | st.sampled_from(["O", "f4,(", "<f3", "(1", "<f4", "|V9999"])).map(list)


@given(st.fixed_dictionaries({end: WRONG | st.lists(NEARLY_TENSORS, max_size=2) for end in ("inputs", "outputs")}))
def test_arbitrary_programs_are_programs_or_protocol_errors(content):
    try:
        program = program_of(Message(content))
    except ProtocolError:
        return
    assert all(size >= 0 for tensor in (*program.inputs, *program.outputs) for size in tensor.shape)


RUNTIME = RUNTIMES["onnxruntime-cpu"]
PLAN = {"sample_ms": 0.05, "min_pairs": 3, "max_pairs": 3, "max_seconds": 0.05, "warmup_pairs": 1, "max_warmup_seconds": 0.001}


@pytest.fixture(scope="module")
def model():
    if not RUNTIME.can_load().available:
        pytest.skip(RUNTIME.can_load().reason)
    return RUNTIME.prepare(conv_net().SerializeToString(), RuntimeConfig())


@pytest.fixture(scope="module")
def agent(model):
    made = Agent(RUNTIME, RuntimeConfig())
    assert made.answer(program_message({"op": "anchor"}, model)) == {}
    return made


def refused(answer):
    """Checks that an answer is a refusal that can travel, and returns it."""
    assert set(answer) == {"error"} and set(answer["error"]) == {"kind", "message"}, answer
    assert answer["error"]["kind"] in ("InputError", "UnavailableError") and answer["error"]["message"].endswith("."), answer
    json.dumps(answer)
    return answer["error"]


@given(content=st.dictionaries(st.sampled_from(["op", "plan", "inputs", "outputs", "batch_size", "anchor"]) | st.text(max_size=3),
                               WRONG, max_size=6), files=FILES)
def test_an_agent_refuses_arbitrary_messages(agent, content, files):
    if content.get("op") not in ("environment", "anchor"):
        refused(agent.answer(Message(content, files)))


@given(wrong=WRONG, name=st.sampled_from(["sample_ms", "min_pairs", "max_pairs", "max_seconds", "warmup_pairs"]))
def test_an_agent_refuses_wrong_plans(agent, model, wrong, name):
    assume(not isinstance(wrong, int | float) or not 0 < wrong < 1e300)
    refused(agent.answer(program_message({"op": "measure", "plan": {**PLAN, name: wrong}}, model)))


@pytest.mark.parametrize("missing", ["op", "plan", "inputs", "outputs"])
def test_an_agent_refuses_messages_that_lack_something(agent, model, missing):
    message = program_message({"op": "measure", "plan": PLAN}, model)
    assert "session" in agent.answer(message)
    refused(agent.answer(Message({key: value for key, value in message.content.items() if key != missing}, message.files)))
    refused(agent.answer(Message(message.content)))


def test_an_agent_needs_an_anchor_first(model):
    refused(Agent(RUNTIME, RuntimeConfig()).answer(program_message({"op": "measure", "plan": PLAN}, model)))


def test_a_refused_message_changes_nothing(agent, model):
    refused(agent.answer(Message({"op": "anchor"})))
    answer = agent.answer(program_message({"op": "measure", "plan": PLAN}, model))
    assert len(answer["session"]["ratios"]) == 3
