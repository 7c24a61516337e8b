"""The configuration file: checked whole, in one sentence, with its paths beside it."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.pipeline.config import CompileConfig, load_config

ROOT = Path(__file__).parents[2]
GOOD = {"space": "mobile-cpu", "data": "digits", "max_latency_ms": 2.0}


def load(folder, document, **arguments):
    path = folder / "config.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return load_config(path, **arguments)


def nested(place, value):
    """GOOD with a value at a dotted place."""
    *sections, key = place.split(".")
    document = dict(GOOD)
    inner = document
    for section in sections:
        inner[section] = inner = {}
    inner[key] = value
    return document


def test_defaults(tmp_path):
    config = load(tmp_path, GOOD)
    assert (config.device, config.seed, config.max_latency_ms, config.latency_position) == ("onnxruntime-cpu", 0, 2.0, None)
    assert config == CompileConfig(**GOOD)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_load(path):
    load_config(path)


def test_what_yaml_reads_as_text_is_still_a_number(tmp_path):
    """YAML 1.1 takes 1e-2 for text."""
    assert load(tmp_path, "space: a\ndata: b\nmax_latency_ms: 1e1\ntrain: {learning_rate: 1e-2}").train.learning_rate == 0.01


@pytest.mark.parametrize(("place", "value"), [
    ("space", 3), ("space", None), ("space", ["a"]), ("data", {}), ("device", 1), ("unknown", 1), ("Space", "a"),
    ("max_latency_ms", 0), ("max_latency_ms", -1.0), ("max_latency_ms", float("nan")), ("max_latency_ms", float("inf")),
    ("max_latency_ms", "fast"), ("max_latency_ms", True), ("max_latency_ms", [1]),
    ("seed", -1), ("seed", 1.5), ("seed", "a"), ("seed", False),
    ("profile", 3), ("profile", None), ("profile", []),
    ("profile.threads", 0), ("profile.threads", 1.5), ("profile.threads", True),
    ("profile.precision", 32), ("profile.batch_size", 0), ("profile.sessions", 0), ("profile.sessions", 51),
    ("profile.blocks", 19),
    ("profile.max_minutes", 0), ("profile.max_minutes", float("nan")), ("profile.table", 3), ("profile.tables", "a"),
    ("train.method", 1), ("train.epochs", 0), ("train.epochs", True), ("train.batch_size", 1), ("train.learning_rate", 0),
    ("train.learning_rate", float("inf")), ("train.threads", 0), ("train.gradient_clip", 0), ("train.epoch", 3),
    ("search.method", "annealing"), ("search.population", 0), ("search.generations", 0), ("search.parents", 0),
    ("search.mutation_probability", 0), ("search.mutation_probability", 1.01), ("search.validation_images", 0),
    ("search.calibration_images", 0), ("search.calibration_images", None), ("search.batch_norm", "frozen"),
    ("search.batch_norm", True),
    ("export.sessions", 0), ("export.sessions", 101), ("export.rounds", 0), ("export.rounds", 21), ("export.formats", ["onnx"]),
    ("export.quantile", 0.4), ("export.quantile", 1), ("export.confidence", 0.4), ("export.confidence", 1),
    ("export.confidence", True), ("export.max_sessions", 0), ("export.max_sessions", 10_001), ("export.max_sessions", "many"),
])
def test_a_bad_field_is_named_in_one_sentence(tmp_path, place, value):
    with pytest.raises(InputError, match=f" is not valid at {re.escape(place)}: ") as caught:
        load(tmp_path, nested(place, value))
    assert_one_sentence(caught.value)


def test_too_few_sessions_for_a_claim_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"valid at export: p90 of latency .* at least 29 sessions .* at most 28") as caught:
        load(tmp_path, {**GOOD, "export": {"quantile": 0.9, "rounds": 1, "max_sessions": 28}})
    assert_one_sentence(caught.value)
    enough = load(tmp_path, {**GOOD, "export": {"quantile": 0.9, "rounds": 1, "max_sessions": 29}})
    assert enough.export.certification().most == 29
    with pytest.raises(InputError, match=r"valid at export: .* at least 39 sessions"):  # three rounds share what may go wrong
        load(tmp_path, {**GOOD, "export": {"quantile": 0.9, "max_sessions": 38}})


def assert_one_sentence(error):
    text = str(error)
    assert "\n" not in text and len(text) < 1000 and text[0].isupper() and text.endswith(".")


@pytest.mark.parametrize("missing", ["space", "data"])
def test_a_missing_field_is_named(tmp_path, missing):
    with pytest.raises(InputError, match=f"at {missing}"):
        load(tmp_path, {key: value for key, value in GOOD.items() if key != missing})


@pytest.mark.parametrize("budget", [{}, {"max_latency_ms": 1.0, "latency_position": 0.5}, {"max_latency_ms": None}])
def test_there_is_one_budget(tmp_path, budget):
    with pytest.raises(InputError, match="one budget, either max_latency_ms or latency_position") as caught:
        load(tmp_path, {"space": "mobile-cpu", "data": "digits", **budget})
    assert_one_sentence(caught.value)


@pytest.mark.parametrize(("position", "good"), [(0, True), (1, True), (0.35, True), (-0.01, False), (1.01, False)])
def test_a_position_is_within_the_range(tmp_path, position, good):
    document = {"space": "mobile-cpu", "data": "digits", "latency_position": position}
    if good:
        assert load(tmp_path, document).latency_position == position
    else:
        with pytest.raises(InputError, match="latency_position"):
            load(tmp_path, document)


@pytest.mark.parametrize("budget", [{}, {"max_latency_ms": 1.0}, {"latency_position": 0.5}])
def test_an_override_replaces_either_budget(tmp_path, budget):
    config = load(tmp_path, {"space": "mobile-cpu", "data": "digits", **budget}, max_latency_ms=7.0)
    assert (config.max_latency_ms, config.latency_position) == (7.0, None)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_override_is_checked_too(tmp_path, value):
    with pytest.raises(InputError, match="max_latency_ms"):
        load(tmp_path, GOOD, max_latency_ms=value)


@pytest.mark.parametrize(("field", "given", "expected"), [
    ("space", "mine.yaml", "{here}/mine.yaml"), ("space", "sub/mine.json", "{here}/sub/mine.json"),
    ("space", "mine.py:build", "{here}/mine.py:build"), ("space", "/abs/mine.py:build", "/abs/mine.py:build"),
    ("space", "mobile-cpu", "mobile-cpu"), ("space", "~/mine.yaml", "{home}/mine.yaml"),
    ("data", "digits", "digits"), ("data", "glyphs?size=16", "glyphs?size=16"),
    ("data", "npz:my.npz?layout=nhwc", "{here}/my.npz?layout=nhwc"), ("data", "imagefolder:/abs/images", "/abs/images"),
    ("data", "imagefolder:~/images", "{home}/images"), ("data", "glyphs?size=1:2", "glyphs?size=1:2"),
    ("profile.table", "tables/t.json", "{here}/tables/t.json"), ("profile.table", "/abs/t.json", "/abs/t.json"),
])
def test_relative_paths_start_at_the_configuration(tmp_path, monkeypatch, field, given, expected):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir("/")
    config = load(tmp_path, nested(field, given))
    found = {"space": config.space, "data": config.data, "profile.table": str(config.profile.table)}[field]
    expected = expected.format(here=tmp_path, home="/home/somebody")
    assert found == (expected if ":" not in given or field == "space" or "?size=1:" in given
                     else f"{given.partition(':')[0]}:{expected}")


def test_no_table_stays_no_table(tmp_path):
    assert load(tmp_path, GOOD).profile.table is None


def test_a_configuration_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(nested("space", "mine.yaml")))
    assert load_config("config.yaml").space == "mine.yaml"


@pytest.mark.parametrize("text", [
    "", "- 1", "3", "null", "space: [", "\tspace: a", "a: b: c", "space: 2001-99-99", "space: !!int ''", "space: !!bool x",
    "space: !!python/object:os.system {}", "? [a]\n: b", "&a [*a]", "&a {space: *a}", "[" * 5000, "space: *nowhere",
    "space: !!binary '*'", "space: 0x_", "space: !!timestamp x", "space: !!float ''", "seed: " + "9" * 5000,
])
def test_what_is_no_configuration_is_refused(tmp_path, text):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert_one_sentence(caught.value)


def test_a_huge_value_is_not_spelled_out(tmp_path):
    """Aliases make a list of 10^8 entries out of a line each; what YAML holds once is not to be printed out."""
    lines = ["space: a", "data: b", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]" for index in range(1, 8)]
    with pytest.raises(InputError) as caught:
        load(tmp_path, "\n".join([*lines, "seed: *a7"]))
    assert_one_sentence(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_config(path)
    (tmp_path / "latin.yaml").write_bytes("space: ü".encode("latin-1"))
    with pytest.raises(InputError):
        load_config(tmp_path / "latin.yaml")


FIELDS = ["space", "data", "device", "max_latency_ms", "latency_position", "seed", "profile", "train", "search", "export",
          "threads", "table", "epochs", "method", "population", "sessions"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.sampled_from(["mobile-cpu", "digits", "npz:a", "a.yaml", "1e3", "evolution"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), inner, max_size=4),
    max_leaves=8)
documents = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), values, max_size=6).map(
    lambda document: yaml.safe_dump({**GOOD, **document}, allow_unicode=True))
texts = st.text(max_size=200) | st.lists(
    st.sampled_from([*FIELDS, ": ", "\n", "  ", "- ", "{", "}", "[", "]", "'", '"', "&a", "*a", "!!", "int ", "1", ".nan", "~",
                     "? ", "|", ">", "#", "%", "2001-02-30", "0x", "\\u", "\x00"]), max_size=20).map("".join)


@given(text=documents | texts)
@example(text="space: \"\\ud800\"\ndata: b\nmax_latency_ms: 1")
@example(text="space: a\ndata: b\nmax_latency_ms: 1\n\"x\\n\\ud800y\": 3")
@example(text="space: a\ndata: b\nmax_latency_ms: 1\n\"x\\ny\": 3")
def test_any_text_is_a_configuration_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_config(path)
    except InputError as error:
        assert_one_sentence(error)
    else:
        assert (config.max_latency_ms is None) != (config.latency_position is None)
        assert config.train.epochs >= 1 and config.seed >= 0
