"""Other tools' tables: read as those tools read them, refused in one sentence, and never trusted further than they go."""

import csv
import io
import json
import pickle  # noqa: TID251 -- to make what must be refused
from contextlib import suppress
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import HwnasError, InputError
from hwnas.files import sha256_file
from hwnas.ir.blocks import Head, Identity, MBConv, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.interchange import EXPORT_SCHEMA, FORMATS, UNITS, import_table, to_csv, to_json
from hwnas.latency.refusals import network_key
from hwnas.latency.sessions import combine_ratios
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable, NetworkRecord, load_table
from hwnas.profiling.environment import compare_environments
from hwnas.spaces.load import load_space

SPACE = SearchSpace("toy", (3, 16, 16), (
    Fixed("stem", Stem(8)),
    Decision("body", {"k3": MBConv(16, 3, 3, 2), "k5": MBConv(16, 5, 6, 2)}),
    Decision("tail", {"k3": MBConv(16, 3, 6), "skip": Identity()}),
    Fixed("head", Head(10, 32))))
OFA = {"Conv-input:16x16x3-output:8x8x8": 0.5,
       "expanded_conv-input:8x8x8-output:4x4x16-expand:3-kernel:3-stride:2-idskip:0": 1.0,
       "expanded_conv-input:8x8x8-output:4x4x16-expand:6-kernel:5-stride:2-idskip:0": 2.0,
       "expanded_conv-input:4x4x16-output:4x4x16-expand:6-kernel:3-stride:1-idskip:1": 4.0,
       "Conv_1-input:4x4x16-output:4x4x32": 0.25, "Logits-input:4x4x32-output:10": 0.125}
BENCH = {"ConvNorm_H16_W16_Cin3_Cout8_kernel3_stride2_group1": 0.5,
         "ConvBlock_H8_W8_Cin8_Cout16_exp3_kernel3_stride2_group1": 1.0,
         "ConvBlock_H8_W8_Cin8_Cout16_exp6_kernel5_stride2_group1": 2.0,
         "ConvBlock_H4_W4_Cin16_Cout16_exp6_kernel3_stride1_group1": 4.0,
         "ConvNorm_H4_W4_Cin16_Cout32_kernel1_stride1_group1": 0.25, "AvgP_H4_W4_Cin32_Cout32_kernel4_stride1": 0.0625,
         "FC_Cin32_Cout10": 0.0625}
FILES = {"ofa-yaml": yaml.safe_dump({name: {"count": 50, "mean": value, "std": 0.1} for name, value in OFA.items()}),
         "hwnasbench-csv": "name,latency\n" + "".join(f"{name},{value}\n" for name, value in BENCH.items())}


def _conv(size, c, out, kernel, stride, groups=1, relu=True):
    return ("Int8ConvRelu" if relu else "Int8Conv", [[1, size, size, c], [out, kernel, kernel, c // groups], [out]],
            {"kernel": kernel, "stride": stride, "pad": kernel // 2, "group": groups})


def _operators():
    """Every operator of SPACE as the table of FBNet's authors would have it, with a time of its own."""
    found = [_conv(16, 3, 8, 3, 2), _conv(4, 16, 32, 1, 1), ("Int8AveragePool", [[1, 4, 4, 32]], {"kernel": 4, "stride": 1}),
             ("Int8FC", [[1, 1, 1, 32], [10, 32], [10]], {}), ("Int8Sum", [[1, 4, 4, 16], [1, 4, 4, 16]], {})]
    for size, c, kernel, expansion, stride in ((8, 8, 3, 3, 2), (8, 8, 5, 6, 2), (4, 16, 3, 6, 1)):
        hidden, smaller = c * expansion, size // stride
        found += [_conv(size, c, hidden, 1, 1), _conv(size, hidden, hidden, kernel, stride, hidden),
                  _conv(smaller, hidden, 16, 1, 1, relu=False)]
    return found


def _jsonl(times, device="phone"):
    lines = []
    for (kind, shapes, arguments), time_us in zip(_operators(), times, strict=True):
        texts = [f'name: "{key}"\ni: {value}\n' for key, value in sorted(arguments.items())] + ['name: "order"\ns: "NHWC"\n']
        lines.append(json.dumps({"op_type": kind, "op_args": texts, "input_shapes": shapes, "input_dtypes": [5] * len(shapes),
                                 "runtime_us_p0": 0.9 * time_us, "runtime_us_p50": time_us, "runtime_us_p100": 2 * time_us,
                                 "device": device}))
    return "\n".join(lines) + "\n"


TIMES = [float(2**number) for number in range(len(_operators()))]
FILES["fbnet-jsonl"] = _jsonl(TIMES)


def _import(tmp_path, format, text=None, unit="us", name="foreign.txt", space=SPACE, **options):
    path = tmp_path / name
    content = FILES[format] if text is None else text
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return import_table(path, format=format, unit=unit, space=space, device="a phone", **options)


def _latencies(table):
    return {str(one): table.predict(one).latency_ms for one in Trellis(table.search_space).sample(4, seed=0)}


@pytest.mark.parametrize("format", ["ofa-yaml", "hwnasbench-csv"])
@pytest.mark.parametrize("unit, in_ms", [("us", 1e-3), ("ms", 1.0), ("s", 1e3)])
def test_names_and_units(format, unit, in_ms, tmp_path):
    found = _import(tmp_path, format, unit=unit)
    ends = 0.5 + 0.25 + 0.125  # stem and head
    expected = {(body, tail): in_ms * (ends + first + second) for body, first in (("k3", 1.0), ("k5", 2.0))
                for tail, second in (("k3", 4.0), ("skip", 0.0))}
    for (body, tail), latency_ms in expected.items():
        architecture = SPACE.architecture({"body": body, "tail": tail})
        assert found.table.predict(architecture).latency_ms == pytest.approx(latency_ms)
    assert found.unused == () and found.names == len(OFA if format == "ofa-yaml" else BENCH)


def test_operators_add_up(tmp_path):
    """Times are powers of two, so a sum tells which operators are in it."""
    table = _import(tmp_path, "fbnet-jsonl").table
    stem, mix, pool, linear, add = TIMES[:5]
    expected = {"stem": stem, "k3": sum(TIMES[5:8]), "k5": sum(TIMES[8:11]), "tail": sum(TIMES[11:14]) + add,
                "head": mix + pool + linear}
    assert sorted(entry.ratio for entry in table.entries.values()) == pytest.approx(
        sorted(value / 1e3 for value in expected.values()))
    assert _latencies(table)[str(SPACE.architecture({"body": "k3", "tail": "skip"}))] == pytest.approx(
        (expected["stem"] + expected["k3"] + expected["head"]) / 1e3)


def test_several_records_of_an_operator_are_averaged(tmp_path):
    table = _import(tmp_path, "fbnet-jsonl", _jsonl(TIMES) + _jsonl([3 * time for time in TIMES])).table
    assert [entry.ratio for entry in table.entries.values()] == pytest.approx(
        [2 * entry.ratio for entry in _import(tmp_path, "fbnet-jsonl").table.entries.values()])


def test_a_whole_table_of_proxylessnas(tmp_path):
    """Its keys as the authors' code makes them along a network of their configuration; sums as that code adds them up."""
    space, generator = load_space("proxyless"), np.random.default_rng(0)
    lut = {}

    def key(kind, size, c, after, out, rest=""):
        name = f"{kind}-input:{size}x{size}x{c}-output:{f'{after}x{after}x{out}' if after else out}{rest}"
        lut.setdefault(name, {"mean": float(generator.uniform(1, 9)), "count": 3, "var": 0.1})
        return lut[name]["mean"]

    def network(choose):
        total, size, c = key("Conv", 224, 3, 112, 32), 112, 32
        blocks = [(16, 1, 3, 1)]
        stages = ((24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
        for stage, (width, count, stride) in enumerate(stages, 1):
            for index in range(count):
                chosen = choose(f"stage{stage}_{index + 1}")
                if chosen is not None:
                    blocks.append((width, chosen[1], chosen[0], 1 if index else stride))
        for out, expand, kernel, stride in blocks:
            after = (size - 1) // stride + 1
            rest = f"-expand:{expand}-kernel:{kernel}-stride:{stride}-idskip:{int(stride == 1 and c == out)}"
            total, size, c = total + key("expanded_conv", size, c, after, out, rest), after, out
        return total + key("Conv_1", 7, 320, 7, 1280) + key("Logits", 7, 1280, 0, 1000)

    for expand in (3, 6):
        for kernel in (3, 5, 7):
            network(lambda name, both=(kernel, expand): both)
    table = _import(tmp_path, "ofa-yaml", yaml.safe_dump(lut), unit="ms", space=space).table
    for architecture in Trellis(space).sample(20, seed=1):
        options = {name: None if option == "skip" else tuple(int(word[1:]) for word in option.split("_"))
                   for name, option in architecture.choices.items()}
        assert table.predict(architecture).latency_ms == pytest.approx(network(options.get))


def test_what_is_imported_says_so(tmp_path):
    table = _import(tmp_path, "ofa-yaml", unit="ms", name="phone.yaml").table
    assert {entry.label for entry in table.entries.values()} == {"imported"}
    assert table.held_out.networks == 0 and table.networks == () and table.calibration.networks == 0
    prediction = table.predict(SPACE.any_architecture)
    assert (prediction.lower_ms, prediction.upper_ms) == (0.0, 2 * prediction.latency_ms)
    environment = table.environment
    assert (environment["device"], environment["runtime"]) == ("a phone", "imported")
    assert [environment[f"source_{key}"] for key in ("file", "format", "unit")] == ["phone.yaml", "ofa-yaml", "ms"]
    assert environment["source_sha256"] == sha256_file(tmp_path / "phone.yaml")
    measured_here = {"device": "a phone", "runtime": "onnxruntime-cpu", "anchor": "x"}
    assert {key for key, *_ in compare_environments(environment, measured_here)} == {"runtime", "anchor"}
    again = load_table(table.save(tmp_path / "table.json"))
    assert again.entries == table.entries and again.environment == environment


def test_names_that_nobody_asked_for_are_counted(tmp_path):
    text = FILES["hwnasbench-csv"] + "Skip_H4_W4_Cin16_Cout16_stride1,0\nFC_Cin1_Cout1,3\n"
    found = _import(tmp_path, "hwnasbench-csv", text)
    assert found.unused == ("Skip_H4_W4_Cin16_Cout16_stride1", "FC_Cin1_Cout1") and found.names == len(BENCH) + 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_block_is_named_in_both_languages(format, tmp_path):
    lines = FILES[format].splitlines(keepends=True)
    kept = {"ofa-yaml": [*lines[:4], *lines[8:]], "hwnasbench-csv": [lines[0], *lines[2:]], "fbnet-jsonl": lines[1:]}[format]
    with pytest.raises(InputError, match=r"lacks 1 of 5 of 'toy', the first being \w+\(.*\) @ \d+x\d+x\d+, which would be '.*' "):
        _import(tmp_path, format, "".join(kept))


def test_a_block_that_the_tool_does_not_have(tmp_path):
    space = load_space("spos-cpu")
    with pytest.raises(InputError, match=r"lacks 2\d of 26 of 'spos-cpu', .* shuffle_unit.* which has no name there"):
        _import(tmp_path, "ofa-yaml", FILES["ofa-yaml"] + "Conv-input:32x32x3-output:32x32x24: {mean: 1.0}\n", space=space)


def test_our_own_export_comes_back(tmp_path):
    table = _measured()
    text = to_csv(table)
    again = _import(tmp_path, "hwnasbench-csv", text, unit="ms", column="isolated_ms").table
    assert {key: entry.ratio for key, entry in again.entries.items()} == pytest.approx(
        {key: entry.ratio * table.anchor_ms for key, entry in table.entries.items()})


# Refusals

@pytest.mark.parametrize("format, text, options, words", [
    ("ofa-yaml", None, {"unit": "minutes"}, "us, ms, s"),
    ("ofa-yaml", None, {"unit": ""}, "us, ms, s"),
    ("fbnet-jsonl", None, {"unit": "ms"}, "microseconds"),
    ("ofa-yaml", "- 1\n", {}, "maps names"), ("ofa-yaml", "", {}, "maps names"),
    ("ofa-yaml", "3: {mean: 1.0}\n", {}, "maps names"),
    ("ofa-yaml", "a: [\n", {}, "not valid YAML"), ("ofa-yaml", "[" * 5000, {}, "not valid YAML"),
    ("ofa-yaml", "a: &x [1]\nb: *x\n", {}, "anchors"),
    ("ofa-yaml", "a: !!python/object/apply:os.getcwd []\n", {}, "not valid YAML"),
    ("ofa-yaml", "a: {mean: soon}\n", {}, "number of at least 0, but 'a' in .* has 'soon'"),
    ("ofa-yaml", "a: {mean: -1.0}\n", {}, "at least 0"), ("ofa-yaml", "a: {mean: .nan}\n", {}, "at least 0"),
    ("ofa-yaml", "a: {mean: .inf}\n", {}, "at least 0"), ("ofa-yaml", "a: {mean: true}\n", {}, "at least 0"),
    ("ofa-yaml", "a: {count: 3}\n", {}, "at least 0"), ("ofa-yaml", f"a: {{mean: 0x{'f' * 9000}}}\n", {}, "at least 0"),
    ("ofa-yaml", "a: {mean: 0.0}\n", {}, "lacks"),
    ("fbnet-jsonl", "{}\n", {}, "line 1"), ("fbnet-jsonl", "[]\n", {}, "line 1"), ("fbnet-jsonl", "\n\n{\n", {}, "line 3"),
    ("fbnet-jsonl", "[" * 100_000, {}, "line 1"), ("fbnet-jsonl", '{"op_type": "x"}\n', {}, "runtime_us_p50"),
    ("fbnet-jsonl", '{"op_type": "x", "runtime_us_p50": NaN}\n', {}, "at least 0"),
    ("fbnet-jsonl", _jsonl(TIMES) + _jsonl(TIMES, "tablet"), {}, "'phone' and 'tablet'"),
    ("hwnasbench-csv", "", {}, "has none"), ("hwnasbench-csv", "block,latency\na,1\n", {}, "'block', 'latency'"),
    ("hwnasbench-csv", "name,ms\na,1\n", {}, "--column"), ("hwnasbench-csv", "name,latency\na,1\na,2\n", {}, "line 3 .* has 'a'"),
    ("hwnasbench-csv", "name,latency\na\n", {}, "at least 0"), ("hwnasbench-csv", "name,latency\n,1\n", {}, "name of its own"),
    ("hwnasbench-csv", "name,latency\na,1,2,3\n", {}, "lacks"),
    ("hwnasbench-csv", f"name,latency\n{'a' * 200_000},1\n", {}, "not valid CSV"),
    ("ofa-yaml", b"\xff\xfe\x00", {}, "text file"),
    ("ofa-yaml", pickle.dumps({"a": 1}), {}, "Pickles run code"),
    ("hwnasbench-csv", "anything", {"name": "HW-NAS-Bench-v1_0.pickle"}, "Pickles run code"),
    ("hwnasbench-csv", b"PK\x03\x04...", {}, "Pickles run code"),
    ("ofa-yaml", " " * ((4 << 20) + 1), {}, "at most 4 MiB"),
])
def test_what_is_refused(format, text, options, words, tmp_path):
    with pytest.raises(InputError, match=words) as refusal:
        _import(tmp_path, format, text, **options)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_other_arguments_that_make_no_sense(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(FILES["ofa-yaml"])
    for device in ("", "  ", "a\nb", "x" * 201):
        with pytest.raises(InputError, match="device's name"):
            import_table(path, format="ofa-yaml", unit="ms", space=SPACE, device=device)
    with pytest.raises(InputError, match="ofa-yaml, fbnet-jsonl, hwnasbench-csv"):
        import_table(path, format="xlsx", unit="ms", space=SPACE, device="a")
    for missing in (tmp_path / "gone", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            import_table(missing, format="ofa-yaml", unit="ms", space=SPACE, device="a")


@pytest.mark.parametrize("unit, value", [("s", 1e306), ("ms", 0.0)])
def test_a_block_takes_some_time_and_not_for_ever(unit, value, tmp_path):
    text = FILES["hwnasbench-csv"].replace(",4.0\n", f",{value}\n")
    with pytest.raises(InputError, match="more than no time"):
        _import(tmp_path, "hwnasbench-csv", text, unit=unit)


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    text = b"\xef\xbb\xbf" + FILES["hwnasbench-csv"].replace("\n", "\r\n").encode()
    assert len(_import(tmp_path, "hwnasbench-csv", text).table.entries) == 5


def _damaged(draw, text):
    start = draw(st.integers(0, len(text)))
    damage = draw(st.text(max_size=6) | st.sampled_from(
        ["[", "{", "\x00", '"', "&a", "*a", "<<: ", "!!binary ", "1e999", ",", "\n- "]))
    return text[:start] + damage + text[start + draw(st.integers(0, 60)):]


@settings(max_examples=120)
@given(st.data())
@pytest.mark.parametrize("format", FORMATS)
def test_any_damage_is_told_in_a_sentence(format, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    content = data.draw(st.binary(max_size=80)) if data.draw(st.integers(0, 4)) == 0 else _damaged(data.draw, FILES[format])
    with suppress(HwnasError):  # the only thing that may come out
        found = _import(folder, format, content, column=data.draw(st.sampled_from([None, "name"])))
        assert all(entry.ratio > 0 for entry in found.table.entries.values())


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8)


@settings(max_examples=150)
@given(_ANYTHING, st.sampled_from(["op_type", "op_args", "input_shapes", "runtime_us_p50", "device"]))
def test_any_record_of_an_operator_is_read_or_told(tmp_path_factory, value, key):
    lines = FILES["fbnet-jsonl"].splitlines()
    lines[5] = json.dumps(json.loads(lines[5]) | {key: value})
    with suppress(HwnasError):
        _import(tmp_path_factory.mktemp("fuzz"), "fbnet-jsonl", "\n".join(lines))


# Exports

def _measured():
    """A calibrated table of SPACE, whose networks follow `0.1 + 0.8 * sum`."""
    labels = cycle(("ok", "noisy"))
    entries = {part.workload: EntryRecord(sessions=((0.1 * number,), (0.1 * number,)), label=next(labels))
               for number, part in enumerate((part for step in SPACE.steps for edge in step.edges for part in edge.parts
                                              if not part.block.is_free), 1)}
    anchor = AnchorRecord(name="a", sha256="0" * 64, sessions_ms=(0.5,))
    bare = LatencyTable(SPACE, {"runtime": "onnxruntime-cpu"}, anchor, entries, ())
    networks = [NetworkRecord(choices=dict(one.choices), role="fit", sessions=((0.1 + 1.6 * bare.predict(one).latency_ms,),))
                for one in 3 * Trellis(SPACE).sample(4, seed=0)]
    return bare.with_networks(networks)


def test_the_csv_adds_up_to_predictions():
    table = _measured()
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [f"{row['block']} @ {row['input_shape']}" for row in rows] == list(table.entries)
    cost = {(row["block"], row["input_shape"]): float(row["latency_ms"]) for row in rows}
    assert len({row["constant_ms"] for row in rows}) == 1 and float(rows[0]["constant_ms"]) == pytest.approx(0.05)
    for one in Trellis(SPACE).sample(4, seed=0):
        parts = [part for edge in SPACE.path(one) for part in edge.parts if not part.block.is_free]
        total = sum(cost[part.block.signature, str(part.input_shape)] for part in parts) + float(rows[0]["constant_ms"])
        assert total == pytest.approx(table.predict(one).latency_ms)
    for row, entry in zip(rows, table.entries.values(), strict=True):
        assert float(row["isolated_ms"]) == pytest.approx(0.5 * entry.ratio) and float(row["ratio"]) == pytest.approx(entry.ratio)
        low, high = combine_ratios(entry.sessions).ratio_ci
        assert float(row["isolated_lower_ms"]) == pytest.approx(0.5 * low) and low < entry.ratio
        assert float(row["isolated_upper_ms"]) == pytest.approx(0.5 * high) and high > entry.ratio
        assert (row["label"], row["sessions"]) == (entry.label, "2")


def test_the_json_says_the_same(tmp_path):
    table = _measured()
    document = json.loads(json.dumps(to_json(table), allow_nan=False))
    assert document["schema"] == EXPORT_SCHEMA and document["space_hash"] == SPACE.hash and document["anchor_ms"] == 0.5
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    for row, entry in zip(rows, document["entries"], strict=True):
        assert {key: str(value) for key, value in entry.items()} == {key: row[key] for key in entry}
    imported = to_json(_import(tmp_path, "ofa-yaml").table)["entries"]
    assert {(row["isolated_lower_ms"], row["sessions"], row["label"]) for row in imported} == {(None, 0, "imported")}


def test_refused_blocks_are_no_rows():
    table = _measured()
    workload = next(iter(table.entries))
    refused = replace(table, refused={workload: "It crashes."})
    document = json.loads(json.dumps(to_json(refused), allow_nan=False))
    assert document["refused"] == {workload: "It crashes."}
    rows = [f"{row['block']} @ {row['input_shape']}" for row in csv.DictReader(io.StringIO(to_csv(refused)))]
    assert rows == [f"{row['block']} @ {row['input_shape']}" for row in document["entries"]] == list(table.entries)[1:]
    network = network_key(SPACE.any_architecture)
    assert to_json(replace(table, refused={network: "It crashes."})) == to_json(table)


def test_units_are_milliseconds():
    assert UNITS == {"us": 1 / 1000, "ms": 1, "s": 1000}
