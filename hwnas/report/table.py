"""The picture of a latency table: predictions against measurements of whole networks, and where in the network the time goes.

matplotlib draws files for print, plotly a page of its own that names what is pointed at and fetches nothing.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.files import write_atomic
from hwnas.latency.seams import cost_model
from hwnas.latency.summary import (
    LayerCost,
    MeasuredNetwork,
    OptionCost,
    block_counts,
    held_out_document,
    layer_costs,
    measured_networks,
)
from hwnas.latency.table import LatencyTable
from hwnas.report.ranking import check_picture_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG_ABOVE = 8.0  # largest over smallest latency from which a linear axis crowds the fast networks
_ROLES = {"fit": ("o", "none", "that calibrate"), "held_out": ("o", "#4477aa", "that judge, unseen by the fit"),
          "other_hour": ("^", "#228833", "that judge in other hours"),
          "exported": ("D", "#ee7733", "exported, in the fit too")}
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#ee7733", "#332288", "#882255", "#999933")
_OTHER, _BAR, _BAND, _FAINT = "#9a9a9a", "#e4e7ec", "#dce8f5", "#666666"
_SPREAD = 0.62  # of a row's height, over which the dots of its options are spread


@dataclass(frozen=True)
class _Picture:
    """What is drawn, derived once for every format."""

    table: LatencyTable

    @cached_property
    def networks(self) -> list[MeasuredNetwork]:
        return measured_networks(self.table)

    @cached_property
    def interval(self) -> float:
        """Half-width of the relative 95 % interval."""
        return cost_model(self.table).held_out.interval

    @cached_property
    def span_ms(self) -> tuple[float, float]:
        """From the fastest to the slowest network, with some room."""
        values = [value for network in self.networks for value in (network.predicted_ms, network.measured_ms)]
        low, high = min(values), max(values)
        if self.is_wide:
            room = (high / low) ** 0.05
            return low / room, high * room
        room = max(0.05 * (high - low), 0.01 * high)
        return max(low - room, 0.0), high + room

    @cached_property
    def is_wide(self) -> bool:
        values = [network.predicted_ms for network in self.networks]
        return min(values) > 0 and max(values) > _LOG_ABOVE * min(values)

    @cached_property
    def layers(self) -> list[LayerCost]:
        """Those that take time, from input to output, after what every network costs beyond its layers."""
        layers = [layer for layer in layer_costs(self.table) if any(option.high_ms for option in layer.options)]
        constant = self.table.constant
        if not constant:
            return layers
        return [LayerCost("(every network)", False, (OptionCost("beyond its layers", constant, constant),)), *layers]

    @cached_property
    def colours(self) -> Mapping[str, str]:
        """Options that most decisions have get a colour of their own."""
        counts = Counter(option.name for layer in self.layers if layer.is_decision for option in layer.options if option.high_ms)
        return {name: colour for (name, _), colour in zip(counts.most_common(), _COLOURS, strict=False)}

    @cached_property
    def others(self) -> str:
        """What the options without a colour of their own are called together; empty where there are none."""
        names = {option.name for layer in self.layers if layer.is_decision for option in layer.options} - set(self.colours)
        return next(iter(names)) if len(names) == 1 else "other options" if names else ""

    @cached_property
    def shares(self) -> list[float]:
        """Of the mean network's time, layer by layer."""
        total = sum(layer.mean_ms for layer in self.layers)
        return [layer.mean_ms / total if total > 0 else 0.0 for layer in self.layers]

    @property
    def title(self) -> str:
        there = self.table.environment
        threads = there.get("threads")
        words = [f"{there.get('runtime')} {there.get('runtime_version', '')}".strip(), there.get("precision"),
                 None if threads is None else f"{threads} thread{'s' if threads != 1 else ''}"]
        return f"{self.table.space} on {', '.join(str(word) for word in (there.get('device'), *words) if word)}"

    @property
    def verdict(self) -> str:
        """How good the table is, in a line."""
        found, counts = held_out_document(self.table), block_counts(self.table)
        known = "".join(f"; {counts[label]:,} block{'s' if counts[label] > 1 else ''} {words}" for label, words in (
            ("estimated", "estimated from the others"), ("refused", "refused and left out")) if counts[label])
        if not found["networks"]:
            return f"no network has judged how far the sum of the blocks is off{known}"
        return (f"{found['networks']} networks judge: mean error {100 * found['mean_error']:.1f} %, "
                f"{100 * found['within_5_percent']:.0f} % within 5 %, rank correlation {found['spearman']:.3f}{known}")


def draw_table(table: LatencyTable, path: str | os.PathLike[str]) -> Path:
    """Draws a table and writes the picture in the format of the path's suffix.

    Left: measured against predicted latency of the whole networks, with the 95 % interval, and the error below. Right: for every
    layer what its options add to a network; the bar is their mean, and the number its share of the mean network.

    Raises:
        InputError: The suffix is not that of a picture.
        UnavailableError: What draws it is not installed.
    """
    check_picture_path(path)
    picture, suffix = _Picture(table), Path(path).suffix.lower()
    return write_atomic(path, _page(picture) if suffix == ".html" else _image(picture, suffix[1:]))


def _heights(options: Sequence[OptionCost], row: float) -> list[float]:
    """Where the dots of a row stand, from its upper to its lower edge; y points downwards."""
    return [row] if len(options) == 1 else list(row + _SPREAD * (np.linspace(0, 1, len(options)) - 0.5))


# Print

def _image(picture: _Picture, kind: str) -> bytes:
    from matplotlib.figure import Figure

    height = max(6.0, 1.9 + 0.27 * len(picture.layers))
    figure = Figure(figsize=(13 if picture.networks else 8, height), dpi=140, layout="constrained")
    figure.suptitle(f"{picture.title}\n{picture.verdict}", fontsize=11)
    if not picture.networks:
        _draw_layers(picture, figure.add_subplot())
    else:
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.2), height_ratios=(3, 1.1))
        scatter = figure.add_subplot(grid[0, 0])
        _draw_networks(picture, scatter)
        _draw_errors(picture, figure.add_subplot(grid[1, 0], sharex=scatter))
        _draw_layers(picture, figure.add_subplot(grid[:, 1]))
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


def _draw_networks(picture: _Picture, axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ends = np.array(picture.span_ms)
    if picture.is_wide:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    half = picture.interval
    axes.fill_between(ends, ends * max(1 - half, 0.0), ends * (1 + half), color=_BAND, zorder=1,
                      label=f"95 % interval, ± {100 * half:.1f} %")
    axes.plot(ends, ends, color=_OTHER, linewidth=1, zorder=2, label="predicted = measured")
    for role, marker, colour, label, networks in _by_role(picture):
        axes.scatter([one.predicted_ms for one in networks], [one.measured_ms for one in networks], s=26, marker=marker, zorder=3,
                     facecolors=colour, edgecolors=_FAINT if role == "fit" else "white", linewidths=0.9 if role == "fit" else 0.5,
                     label=f"{len(networks)} {label}")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylabel("measured latency, ms")
    axes.legend(fontsize=8, loc="upper left", framealpha=0.9)
    axes.set_title("Whole networks", fontsize=9.5)


def _draw_errors(picture: _Picture, axes: "Axes") -> None:
    """The same networks' error, which the large panel cannot show."""
    half = 100 * picture.interval
    axes.axhspan(-half, half, color=_BAND, zorder=1)
    axes.axhline(0, color=_OTHER, linewidth=1, zorder=2)
    for role, marker, colour, _, networks in _by_role(picture):
        axes.scatter([one.predicted_ms for one in networks], [100 * one.error for one in networks], s=18, marker=marker, zorder=3,
                     facecolors=colour, edgecolors=_FAINT if role == "fit" else "white", linewidths=0.9 if role == "fit" else 0.5)
    worst = max(half if half < 50 else 0.0, *(100 * abs(one.error) for one in picture.networks))
    axes.set_ylim(-1.15 * worst, 1.15 * worst)
    axes.grid(color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("predicted latency, ms")
    axes.set_ylabel("error, %")


def _by_role(picture: _Picture) -> list[tuple[str, str, str, str, list[MeasuredNetwork]]]:
    found = [(role, *look, [one for one in picture.networks if one.role == role]) for role, look in _ROLES.items()]
    return [row for row in found if row[-1]]


def _draw_layers(picture: _Picture, axes: "Axes") -> None:
    layers = picture.layers
    for row, (layer, share) in enumerate(zip(layers, picture.shares, strict=True)):
        axes.barh(row, layer.mean_ms, height=0.82, color=_BAR, zorder=1)
        for option, y in zip(layer.options, _heights(layer.options, row), strict=True):
            colour = picture.colours.get(option.name, _OTHER) if layer.is_decision else _FAINT
            axes.plot([option.low_ms, option.high_ms], [y, y], color=colour, linewidth=1.6, zorder=2)
            axes.plot([option.low_ms, option.high_ms], [y, y], color=colour, linestyle="none", zorder=3, markersize=3.6,
                      marker="o" if layer.is_decision else "D")
        axes.annotate(f"{100 * share:z.0f} %", (1, row), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=7.5, color=_FAINT, annotation_clip=False)
    axes.set_yticks(range(len(layers)), [layer.name if layer.is_decision else f"{layer.name} (fixed)" if layer.name[0] != "("
                                         else layer.name for layer in layers], fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    ends = [end for layer in layers for option in layer.options for end in (option.low_ms, option.high_ms)]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    axes.set_xlim(min(low, 0.0) - 0.015 * high, 1.03 * high)
    axes.grid(axis="x", color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("added to a network, ms; bar: mean of the options, right: its share")
    axes.set_title("Where the time goes: every layer's options", fontsize=9.5)
    names = {**picture.colours, **({picture.others: _OTHER} if picture.others else {})}
    marks = [axes.plot([], [], "o", color=colour, markersize=4)[0] for colour in names.values()]
    if names:
        axes.figure.legend(marks, names, fontsize=8, loc="outside lower right", ncols=6, frameon=False)


# Page

def _page(picture: _Picture) -> str:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, specs=[[{}, {"rowspan": 2}], [{}, None]], row_heights=(0.72, 0.28),
                           column_widths=(0.45, 0.55), vertical_spacing=0.09, horizontal_spacing=0.11,
                           subplot_titles=("Whole networks", "Where the time goes: every layer's options", "Error, %"))
    if picture.networks:
        _add_networks(figure, picture)
    _add_layers(figure, picture)
    figure.update_layout(template="plotly_white", title=f"{picture.title}<br><sub>{picture.verdict}</sub>", barmode="overlay",
                         legend={"font": {"size": 11}}, height=max(650, 160 + 30 * len(picture.layers)))
    figure.update_annotations(font_size=13)
    return str(figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False}))


def _add_networks(figure: Any, picture: _Picture) -> None:
    low, high = picture.span_ms
    half = picture.interval
    slopes = (1 + half, 1 + half, max(1 - half, 1e-3), max(1 - half, 1e-3))  # a logarithmic axis has no 0
    corners = [low, high, high, low]
    figure.add_scatter(x=corners, y=[x * slope for x, slope in zip(corners, slopes, strict=True)], fill="toself", mode="none",
                       fillcolor=_BAND, name=f"95 % interval, ± {100 * half:.1f} %", hoverinfo="skip", row=1, col=1)
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line={"color": _OTHER, "width": 1}, hoverinfo="skip",
                       name="predicted = measured", row=1, col=1)
    figure.add_hrect(y0=-100 * half, y1=100 * half, fillcolor=_BAND, line_width=0, layer="below", row=2, col=1)
    for role, marker, colour, label, networks in _by_role(picture):
        look = {"size": 8, "symbol": "diamond" if marker == "D" else "circle-open" if role == "fit" else "circle",
                "color": _FAINT if role == "fit" else colour}
        texts = [f"predicted {one.predicted_ms:.4g} ms<br>measured {one.measured_ms:.4g} ms<br>error {100 * one.error:+.1f} %"
                 for one in networks]
        common = {"x": [one.predicted_ms for one in networks], "mode": "markers", "marker": look, "hovertext": texts,
                  "hoverinfo": "text", "name": f"{len(networks)} {label}", "legendgroup": role}
        figure.add_scatter(y=[one.measured_ms for one in networks], row=1, col=1, **common)
        figure.add_scatter(y=[100 * one.error for one in networks], row=2, col=1, showlegend=False, **common)
    scale = "log" if picture.is_wide else "linear"
    ends = list(np.log10([low, high])) if picture.is_wide else [low, high]
    for row in (1, 2):
        figure.update_xaxes(type=scale, range=ends, row=row, col=1)
    figure.update_xaxes(title="predicted latency, ms", row=2, col=1)
    figure.update_yaxes(type=scale, range=ends, title="measured latency, ms", row=1, col=1)


def _add_layers(figure: Any, picture: _Picture) -> None:
    layers = picture.layers
    figure.add_bar(x=[layer.mean_ms for layer in layers], y=list(range(len(layers))), orientation="h", marker_color=_BAR,
                   name="mean of the options", hoverinfo="text", row=1, col=2,
                   hovertext=[f"{layer.name}: {layer.mean_ms:.4g} ms on average, {100 * share:.1f} % of the mean network"
                              for layer, share in zip(layers, picture.shares, strict=True)])
    groups: dict[str, list[tuple[float, float, OptionCost, LayerCost]]] = {}
    for row, layer in enumerate(layers):
        for option, y in zip(layer.options, _heights(layer.options, row), strict=True):
            group = "fixed layers" if not layer.is_decision else option.name if option.name in picture.colours else picture.others
            groups.setdefault(group, []).append(((option.low_ms + option.high_ms) / 2, y, option, layer))
    for name, points in groups.items():
        figure.add_scatter(
            x=[x for x, *_ in points], y=[y for _, y, *_ in points], mode="markers", name=name, row=1, col=2, hoverinfo="text",
            marker={"size": 7, "color": picture.colours.get(name, _OTHER)},
            error_x={"type": "data", "array": [(option.high_ms - option.low_ms) / 2 for _, _, option, _ in points], "width": 0},
            hovertext=[f"<b>{layer.name}</b> {option.name}<br>{_range(option)}" for _, _, option, layer in points])
    figure.update_yaxes(tickvals=list(range(len(layers))), ticktext=[layer.name for layer in layers],
                        range=[len(layers) - 0.4, -0.6], row=1, col=2)
    figure.update_xaxes(title="added to a network, ms", row=1, col=2)


def _range(option: OptionCost) -> str:
    if option.low_ms == option.high_ms:
        return f"{option.low_ms:.4g} ms"
    return f"{option.low_ms:.4g} to {option.high_ms:.4g} ms, by its input"
