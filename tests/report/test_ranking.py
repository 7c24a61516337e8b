"""The picture of a ranking: a valid file of every format, with every name that belongs there."""

import io
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hwnas.errors import InputError, UnavailableError
from hwnas.profiling.measure import SessionSamples
from hwnas.profiling.ranking import RankedNetwork, Ranking, pareto_front
from hwnas.report.ranking import NOTE, PACKAGES, check_picture_path, draw_ranking, family

ENVIRONMENT = {"device": "Acme 3000", "runtime": "onnxruntime-cpu", "runtime_version": "1.0", "precision": "fp32", "threads": 2,
               "batch_size": 4, "anchor": "x"}


def ranking(points):
    """Of (name, latency, accuracy), fastest first."""
    judged = [(latency_ms, top1) for _, latency_ms, top1 in points if top1 is not None]
    front = dict(zip(judged, pareto_front(judged), strict=True))
    networks = [RankedNetwork(name, "sha", 10**8, 10**6, top1, "a paper", latency_ms, 0.97 * latency_ms, 1.03 * latency_ms, "ok",
                              top1 is not None and front[latency_ms, top1], (SessionSamples((1.0,), 1.0),))
                for name, latency_ms, top1 in points]
    return Ranking(ENVIRONMENT, 0.5, tuple(networks), (), {})


POINTS = [("mobile-v1-0.5", 1.0, 60.0), ("silent", 1.5, None), ("mobile-v2-1.0", 2.0, 65.0), ("slow-18", 4.0, 62.0),
          ("slow-50", 30.0, 75.0)]
DRAWN = [name for name, _, top1 in POINTS if top1 is not None]


@pytest.mark.parametrize("points", [POINTS, POINTS[:3], POINTS[:1]], ids=["wide", "narrow", "one"])
def test_a_png_is_a_picture(tmp_path, points):
    path = draw_ranking(ranking(points), tmp_path / "deep" / "ranking.png")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.verify()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 600 and pixels.shape[1] > 1000
    assert 0.005 < (pixels < 200).mean() < 0.3  # neither blank nor black
    assert [file.name for file in path.parent.iterdir()] == ["ranking.png"]


def test_an_svg_names_what_was_drawn(tmp_path):
    """matplotlib draws text as outlines, and says in a comment what they spell."""
    text = draw_ranking(ranking(POINTS), tmp_path / "ranking.svg").read_text()
    for words in (*DRAWN, "Acme 3000, onnxruntime-cpu 1.0, fp32, 2 threads, batch of 4", "mobile-v1", "slow", NOTE):
        assert f"<!-- {words} -->" in text, words
    assert "silent" not in text


def test_a_pdf_is_one(tmp_path):
    assert draw_ranking(ranking(POINTS), tmp_path / "ranking.PDF").read_bytes().startswith(b"%PDF-")


def test_a_page_holds_all_and_fetches_nothing(tmp_path):
    text = draw_ranking(ranking(POINTS), tmp_path / "ranking.html").read_text()
    assert not re.search(r"<(script|link)[^>]*(src|href)=", text)
    data = text[text.rindex("Plotly.newPlot("):]
    for name in DRAWN:
        assert f"\\u003cb\\u003e{name}\\u003c" in data, name
    assert "silent" not in data and NOTE in data and '"type":"log"' in data
    traces = json.loads(re.search(r"\[\{.*?\}\](?=,\s*\{)", data, re.DOTALL).group())
    assert {trace["name"] for trace in traces} == {"best within a latency", "mobile-v1", "mobile-v2", "slow"}


def test_crowds_are_drawn_and_the_front_is_always_named(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"net-{letter}{number}" for letter in "abcdefghijkl" for number in range(4)]
    latencies, accuracies = sorted(generator.uniform(4, 5, len(names))), generator.normal(70, 0.2, len(names))
    points = list(zip(names, map(float, latencies), map(float, accuracies), strict=True))
    crowd = ranking(points)
    text = draw_ranking(crowd, tmp_path / "crowd.svg").read_text()
    assert len(crowd.front) > 1 and all(f"<!-- {network.name} -->" in text for network in crowd.front)
    assert sum(f"<!-- {name} -->" in text for name, *_ in points) < len(points)  # where there is no room, no name


def test_a_name_too_long_for_any_place_is_drawn(tmp_path):
    name = "n1" * 40
    assert f"<!-- {name} -->" in draw_ranking(ranking([(name, 1.0, 60.0)]), tmp_path / "long.svg").read_text()


@pytest.mark.parametrize(("name", "expected"), [
    ("mobilenet-v2-1.0", "mobilenet-v2"), ("mobilenet-v3-large", "mobilenet-v3"), ("MobileNetV2_0.75", "MobileNetV2"),
    ("mobilenet_v2_1.4", "mobilenet_v2"), ("shufflenetv2+", "shufflenetv2"), ("resnet-50", "resnet"), ("resnet50", "resnet"),
    ("fbnet-a", "fbnet"), ("proxyless-mobile", "proxyless"), ("efficientnet-b0", "efficientnet"), ("darts", "darts"),
    ("18-layers", "18-layers"), ("vgg16", "vgg")])
def test_families(name, expected):
    assert family(name) == expected


@pytest.mark.parametrize("name", ["picture", "picture.bmp", "picture.jpeg", ".png"])
def test_another_suffix_is_refused(name):
    with pytest.raises(InputError, match=r"one of \.png, \.svg, \.pdf, \.html"):
        check_picture_path(name)


@pytest.mark.parametrize("suffix", PACKAGES)
def test_what_is_not_installed_is_told(suffix, monkeypatch, tmp_path):
    check_picture_path(tmp_path / f"picture{suffix}")
    monkeypatch.setitem(sys.modules, PACKAGES[suffix], None)
    with pytest.raises(UnavailableError, match=rf"needs {PACKAGES[suffix]}: run: pip install 'hwnas\[report\]'"):
        draw_ranking(ranking(POINTS), tmp_path / f"picture{suffix}")


def test_nothing_to_draw_is_told(tmp_path):
    empty = ranking([("silent", 1.5, None)])
    for nothing in (empty, replace(empty, networks=())):
        with pytest.raises(InputError, match="published accuracy"):
            draw_ranking(nothing, tmp_path / "ranking.png")
    assert not list(tmp_path.iterdir())
