"""The picture of a ranking: published accuracy against measured latency, with the Pareto front and a colour a family.

matplotlib draws files for print, plotly a page of its own (nothing is fetched when it is opened) that names what is pointed at.
"""

import importlib.util
import io
import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import InputError, UnavailableError
from hwnas.files import write_atomic
from hwnas.profiling.ranking import RankedNetwork, Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

PACKAGES = {".png": "matplotlib", ".svg": "matplotlib", ".pdf": "matplotlib", ".html": "plotly"}
NOTE = "Accuracy as published, not measured here. Latency with its 95 % interval over sessions."
_LOG_ABOVE = 8.0  # largest over smallest latency from which a linear axis crowds the fast networks
_FAMILY = re.compile(r"[A-Za-z]+?(?:[-_ ]?[vV]\d+(?![\d.])|(?![A-Za-z]))")
_MARKERS = "osD^vP<X>ph*"  # more than colours, so that no two families look alike
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#ee7733", "#332288", "#882255", "#999933")
_FRONT_COLOUR = "#888888"
_MARK_POINTS = 9.0  # a mark, with some air around it
# Where a label may be: offset in points from its mark, and alignment. First left above, where the front leaves room.
_Place = tuple[float, float, str, str]
_PLACES: tuple[_Place, ...] = tuple(
    place for distance in (5.0, 8.0, 12.0, 17.0, 23.0) for place in (
        (-distance / 2, distance, "right", "bottom"), (distance / 2, -distance, "left", "top"), (distance, 0.0, "left", "center"),
        (-distance, 0.0, "right", "center"), (distance / 2, distance, "left", "bottom"),
        (-distance / 2, -distance, "right", "top"), (0.0, distance, "center", "bottom"), (0.0, -distance, "center", "top")))


def check_picture_path(path: str | os.PathLike[str]) -> None:
    """Refuses what could not be drawn, before anything is measured for it.

    Raises:
        InputError: The suffix is not that of a picture.
        UnavailableError: What draws it is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PACKAGES:
        raise InputError(f"A picture ends in one of {', '.join(PACKAGES)}, but {os.fspath(path)!r} does not: choose one.")
    package = PACKAGES[suffix]
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"A picture in {suffix} needs {package}: run: pip install 'hwnas[report]'.")


def draw_ranking(ranking: Ranking, path: str | os.PathLike[str]) -> Path:
    """Draws the networks of published accuracy and writes the picture in the format of the path's suffix.

    Raises:
        InputError: The suffix is not that of a picture, or no network has a published accuracy.
        UnavailableError: What draws it is not installed.
    """
    check_picture_path(path)
    if not any(network.top1 is not None for network in ranking.networks):
        raise InputError("A picture needs a network of published accuracy, but none of those timed has one: add one to --only.")
    suffix = Path(path).suffix.lower()
    return write_atomic(path, _page(ranking) if suffix == ".html" else _image(ranking, suffix[1:]))


def family(name: str) -> str:
    """What a network's name begins with, a version among it: `mobilenet-v2-1.0` gives `mobilenet-v2`, `resnet50` `resnet`."""
    found = _FAMILY.match(name)
    return found.group() if found else name


def _families(ranking: Ranking) -> dict[str, list[tuple[RankedNetwork, float]]]:
    """The networks to draw, with their accuracy, by family; families by name, so that one keeps its colour."""
    drawn = [(network, network.top1) for network in ranking.networks if network.top1 is not None]
    return {name: [(network, top1) for network, top1 in drawn if family(network.name) == name]
            for name in sorted({family(network.name) for network, _ in drawn})}


def _title(ranking: Ranking) -> str:
    there = ranking.environment
    threads, batch = there["threads"], there["batch_size"]
    return (f"{there['device']}, {there['runtime']} {there['runtime_version']}, {there['precision']}, "
            f"{threads} thread{'s' if threads > 1 else ''}{f', batch of {batch}' if batch > 1 else ''}")


def _is_wide(ranking: Ranking) -> bool:
    latencies = [network.latency_ms for network in ranking.networks if network.top1 is not None]
    return max(latencies) > _LOG_ABOVE * min(latencies)


def _front_steps(ranking: Ranking, last_ms: float) -> tuple[list[float], list[float]]:
    """The best accuracy to be had within a latency: it steps up at every network on the front, and stays to the right edge."""
    front = [(network.latency_ms, network.top1) for network in ranking.front if network.top1 is not None]
    front.append((max(last_ms, front[-1][0]), front[-1][1]))
    return [latency_ms for latency_ms, _ in front], [top1 for _, top1 in front]


def _image(ranking: Ranking, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(11, 6.5), dpi=150, layout="constrained")
    renderer = FigureCanvasAgg(figure).get_renderer()  # measures the labels, whatever the format
    axes = figure.add_subplot()
    points = []
    for index, (name, networks) in enumerate(_families(ranking).items()):
        x = [network.latency_ms for network, _ in networks]
        errors = [[network.latency_ms - network.lower_ms for network, _ in networks],
                  [network.upper_ms - network.latency_ms for network, _ in networks]]
        axes.errorbar(x, [top1 for _, top1 in networks], xerr=errors, fmt=_MARKERS[index % len(_MARKERS)], label=name, zorder=3,
                      color=_COLOURS[index % len(_COLOURS)], markersize=6, elinewidth=1, capsize=2)
        points += networks
    axes.margins(x=0.08, y=0.08)
    if _is_wide(ranking):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.set_xlim(axes.get_xlim())  # the front and the labels fit themselves in
    axes.set_ylim(axes.get_ylim())
    front = _front_steps(ranking, axes.get_xlim()[1])
    axes.step(*front, where="post", color=_FRONT_COLOUR, linewidth=1.2, zorder=2, label="best within a latency")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("measured latency, ms")
    axes.set_ylabel("published ImageNet top-1, %")
    axes.set_title(_title(ranking), fontsize=11)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.supxlabel(NOTE, fontsize=8, color="#555555")
    figure.draw_without_rendering()  # places the axes, so that labels can be measured
    _label(axes, points, renderer, _drawn(axes, points, front, figure.dpi))
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


def _label(axes: "Axes", points: Sequence[tuple[RankedNetwork, float]], renderer: Any, taken: list["Bbox"]) -> None:
    """Names points where there is room, those on the front first; one of the others that finds none stays without a name."""
    frame = axes.get_window_extent(renderer)
    centres = axes.transData.transform([(network.latency_ms, top1) for network, top1 in points])
    for index in sorted(range(len(points)), key=lambda index: not points[index][0].on_front):
        network, top1 = points[index]
        style: dict[str, Any] = ({"fontsize": 8.5, "fontweight": "bold"} if network.on_front
                                 else {"fontsize": 7, "color": "#555555"})
        label = axes.annotate(network.name, (network.latency_ms, top1), (0, 0), textcoords="offset points", zorder=4, **style)
        candidates = []
        for place in _PLACES:
            _move(label, place)
            box = label.get_window_extent(renderer)
            inside = all(frame.contains(*corner) for corner in (box.min, box.max))
            whose = np.argmin([_distance(centre, box) for centre in centres])
            candidates.append((sum(box.overlaps(other) for other in taken) + (whose != index) + 10 * (not inside), place, box))
        flaws, place, box = min(candidates, key=lambda candidate: candidate[0])
        if flaws and not network.on_front:
            label.remove()
            continue
        _move(label, place)
        taken.append(box)


def _move(label: "Annotation", place: _Place) -> None:
    label.xyann = place[:2]
    label.set(ha=place[2], va=place[3])


def _distance(point: Any, box: "Bbox") -> float:
    """From a point to a box: a label must not be nearer to another's mark than to its own."""
    (x, y), (x0, y0, x1, y1) = point, box.extents
    return math.hypot(max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1))


def _drawn(axes: "Axes", points: Sequence[tuple[RankedNetwork, float]], front: tuple[list[float], list[float]],
           dpi: float) -> list["Bbox"]:
    """Where marks, intervals and the front are, in pixels, so that no label covers them."""
    from matplotlib.transforms import Bbox

    half = _MARK_POINTS / 2 * dpi / 72
    boxes = []
    for network, top1 in points:
        latencies = (network.latency_ms, network.lower_ms, network.upper_ms)
        centre, low, high = axes.transData.transform([(latency_ms, top1) for latency_ms in latencies])
        boxes.append(Bbox([centre - half, centre + half]))
        boxes.append(Bbox([low - half / 3, high + half / 3]))
    corners = [corner for x, before, after in zip(front[0], [front[1][0], *front[1]], front[1], strict=False)
               for corner in ((x, before), (x, after))]
    pixels = axes.transData.transform(corners)
    boxes += [Bbox([one, other]).padded(1) for one, other in pairwise(pixels)]
    return boxes


def _page(ranking: Ranking) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    slowest = max(network.upper_ms for network in ranking.networks if network.top1 is not None)
    x, y = _front_steps(ranking, 1.1 * slowest)
    figure.add_scatter(x=x, y=y, mode="lines", line={"shape": "hv", "color": _FRONT_COLOUR}, name="best within a latency",
                       hoverinfo="skip")
    for index, (name, networks) in enumerate(_families(ranking).items()):
        figure.add_scatter(
            x=[network.latency_ms for network, _ in networks], y=[top1 for _, top1 in networks], mode="markers+text", name=name,
            error_x={"type": "data", "symmetric": False, "thickness": 1,
                     "array": [network.upper_ms - network.latency_ms for network, _ in networks],
                     "arrayminus": [network.latency_ms - network.lower_ms for network, _ in networks]},
            marker={"size": 9, "color": _COLOURS[index % len(_COLOURS)]}, textposition="top left", textfont={"size": 10},
            text=[network.name if network.on_front else "" for network, _ in networks],
            hovertext=[_hover(network) for network, _ in networks], hoverinfo="text")
    figure.update_layout(
        template="plotly_white", title={"text": f"{_title(ranking)}<br><sub>{NOTE}</sub>"},
        xaxis={"title": "measured latency, ms", "type": "log" if _is_wide(ranking) else "linear"},
        yaxis={"title": "published ImageNet top-1, %"})
    return str(figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False}))


def _hover(network: RankedNetwork) -> str:
    return (f"<b>{network.name}</b><br>{network.latency_ms:.4g} ms ({network.lower_ms:.4g} to {network.upper_ms:.4g})<br>"
            f"top-1 {network.top1:.1f} %<br>{network.macs / 1e6:,.1f} M MACs, {network.parameters / 1e6:,.2f} M parameters<br>"
            f"{network.source}")
