"""The picture of a search space: what is decided from input to output, between which options, and what each costs.

A row is a layer (in a space of cells: a decision in a kind of cell), a box an option, its colour the MACs that it adds. Options
too many to be named become a strip of thin cells, in their order. Sizes are inches, and y points downwards.
"""

import importlib.util
import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import InputError, UnavailableError
from hwnas.files import write_atomic
from hwnas.ir.architecture import Architecture
from hwnas.ir.cells import CellKind, CellSpace
from hwnas.ir.costs import MacsCost
from hwnas.ir.genotype import INPUTS
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.report.space_rows import Row, name_runs, space_rows, span, stacked_cells, state_sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_EXACT_BELOW = 10**15
_DPI, _MOST_PIXELS = 150, 30_000  # the second for a side of the picture: more cannot be drawn
_MARGIN, _OPTIONS_WIDTH, _LEAST_WIDTH = 0.15, 11.0, 5.5  # of the page; what the options may take, and always get
_EM = 0.0086  # width of a character for every point of its size, a generous mean
_ROOMY, _ROOMIEST = 1.4, 2.2  # width of a box over what its name needs: what it asks for, and what it takes of spare room
_LEAST_RATIO = 4.0  # of the dearest colour's MACs to the cheapest's, so that small differences do not look large
_MOST_GAPS = 2  # boxes that a row may lack and still stand in the columns of a fuller one
_BOX, _PLAIN_BOX, _FIXED, _STRIP, _RUN = 0.3, 0.2, 0.2, 0.22, 0.13  # heights: a box with and without MACs, ...
_GAP, _LINE_GAP = 0.09, 0.04  # between rows, and between the lines of one
_NAMED_LINES = 48  # of boxes on a page: the fewer decisions, the more lines each may take
_SKELETON, _CELL, _PANEL, _GRAPH = 0.95, 0.5, 0.28, 1.35  # heights in a space of cells
_BAND_COLOURS = ("#f1f4f8", "#fbfbfb")
_CELL_COLOURS = ("#cfe2f3", "#f9d7a8", "#d5e8c8", "#e3d3ea")
_FIXED_COLOUR, _EDGE, _CHOSEN, _INK, _FAINT = "#d6d6d6", "#8a8a8a", "#1f4fd8", "#222222", "#666666"


def check_space_picture(path: str | os.PathLike[str]) -> None:
    """Refuses what could not be drawn, before anything is computed for it.

    Raises:
        InputError: The suffix is not that of a picture.
        UnavailableError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"A picture ends in one of {', '.join(SUFFIXES)}, but {os.fspath(path)!r} does not: choose one.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnavailableError("A picture needs matplotlib: run pip install matplotlib.")


def draw_space(space: Space, path: str | os.PathLike[str], architecture: Architecture | None = None) -> Path:
    """Draws a space and writes the picture in the format of the path's suffix.

    Args:
        space: Of layers or of cells.
        path: A .png, .svg or .pdf file.
        architecture: A network of the space, whose options are framed.

    Raises:
        InputError: The suffix is not that of a picture, or the architecture is not of this space.
        UnavailableError: matplotlib is not installed.
    """
    check_space_picture(path)
    chosen = {} if architecture is None else space.check(architecture).choices
    return write_atomic(path, _image(space, chosen, Path(path).suffix.lower()[1:]))


def short_macs(macs: float) -> str:
    """MACs in a few characters: `950`, `12.3 k`, `4.2 M`, `192 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if macs >= size:
            return f"{macs / size:.{1 if macs < 99.95 * size else 0}f} {unit}"
    return f"{macs:.0f}"


# How rows are laid out

@dataclass(frozen=True)
class _Layout:
    """How the options of a row are laid out.

    Attributes:
        columns: Boxes on a line; 0 for a strip.
        lines: Lines of boxes.
        order: Names by position: those of a fuller row where one has these and few more, so that equal options are aligned.
        needed: The least width of a box.
        height: Of the row, without the gap below it.
    """

    columns: int
    lines: int
    order: tuple[str, ...]
    needed: float
    height: float


_Rows = Sequence[tuple[Row, _Layout]]


def _laid_out(rows: Sequence[Row]) -> _Rows:
    decisions = [row for row in rows if row.is_decision]
    most_lines = min(max(_NAMED_LINES // len(decisions), 2), 5)
    return [(row, _decision_layout(row, decisions, most_lines) if row.is_decision
             else _Layout(1, 1, (row.options[0].name,), 0.0, _FIXED)) for row in rows]


def _decision_layout(row: Row, decisions: Sequence[Row], most_lines: int) -> _Layout:
    order = _aligned_names(row, decisions)
    costly = any(option.macs for option in row.options)
    needed = max(_width(order, 7) + 0.14, 0.44 if costly else 0.3)
    lines = math.ceil(len(order) / max(math.floor(_OPTIONS_WIDTH / needed), 1))
    if lines > most_lines or needed > _OPTIONS_WIDTH:
        return _Layout(0, 1, order, 0.0, _RUN + _STRIP)
    height = lines * ((_BOX if costly else _PLAIN_BOX) + _LINE_GAP) - _LINE_GAP
    return _Layout(math.ceil(len(order) / lines), lines, order, needed, height)


def _room(rows: _Rows) -> float:
    """What the options of a page take."""
    wanted = [min(_ROOMY * layout.needed * layout.columns, _OPTIONS_WIDTH) if layout.columns else _OPTIONS_WIDTH
              for _, layout in rows]
    return max(_LEAST_WIDTH, *wanted)


def _aligned_names(row: Row, decisions: Sequence[Row]) -> tuple[str, ...]:
    own = {option.name for option in row.options}
    fuller = [tuple(option.name for option in other.options) for other in decisions]
    return max((names for names in fuller if own <= set(names) and len(names) <= len(own) + _MOST_GAPS), key=len)


def _width(texts: Sequence[str], size: float) -> float:
    """What the longest of some texts takes."""
    return max(map(len, texts), default=0) * size * _EM + 0.02


def _height(rows: _Rows) -> float:
    return sum(layout.height + _GAP for _, layout in rows)


# The page

@dataclass(frozen=True)
class _Sheet:
    """What everything is drawn on.

    Attributes:
        axes: Of the whole page, in inches.
        left: Where options begin.
        right: Where the room for options ends.
        edge: Where the page ends.
        colours: From cheap to dear.
        norm: Of MACs, logarithmic; None where no option has any.
        chosen: The architecture that is framed, decision to option.
    """

    axes: "Axes"
    left: float
    right: float
    edge: float
    colours: "Colormap"
    norm: "LogNorm | None"
    chosen: Mapping[str, str]

    @property
    def width(self) -> float:
        return self.right - self.left

    def box(self, x: float, y: float, width: float, height: float, colour: Any, **style: Any) -> None:
        from matplotlib.patches import Rectangle

        style = {"edgecolor": "none", "linewidth": 0.6, **style}
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, **style))

    def text(self, x: float, y: float, text: str, size: float, colour: str = _INK, ha: str = "center", **style: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, color=colour, ha=ha, va="center", parse_math=False, **style)

    def colour(self, macs: int) -> tuple[Any, str]:
        """Of a box, and of what is written on it."""
        if not macs or self.norm is None:
            return "white", _INK
        red, green, blue, _ = colour = self.colours(float(self.norm(macs)))
        return colour, _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.56 else "white"


def _image(space: Space, chosen: Mapping[str, str], kind: str) -> bytes:
    from matplotlib.figure import Figure

    rows = _laid_out(space_rows(space))
    panels = _panels(space, rows) if isinstance(space, CellSpace) else []
    left = _MARGIN + max(_width([row.name for row, _ in rows], 9), _width(_told([row for row, _ in rows], chosen), 5.5)) + 0.2
    right = left + _room(rows)
    edge = right + (0.75 if panels else 0.3 + _width([f"{row.channels} ch" for row, _ in rows], 7.5)
                    + _width([row.resolution.split(" to ")[0] + " to" for row, _ in rows], 8.5)) + _MARGIN
    title = [line for text in (space.description, _facts(space))
             for line in textwrap.wrap(text, int((edge - 2 * _MARGIN) / (9 * _EM)))]
    body = 0.62 + 0.19 * len(title)
    bar = body + (_cells_height(panels) if panels else _height(rows)) + 0.12
    macs = [option.macs for row, _ in rows if row.is_decision for option in row.options if option.macs]
    note = _note(rows, chosen)
    height = bar + (0.6 if macs else 0.0) + (0.2 if note else 0.0) + 0.1

    figure = Figure(figsize=(edge, height), dpi=min(_DPI, _MOST_PIXELS / max(edge, height)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, edge), ylim=(height, 0))
    axes.set_axis_off()
    sheet = _Sheet(axes, left, right, edge, *_colours(macs), chosen)
    sheet.text(_MARGIN, 0.27, space.name, 15, ha="left", weight="bold")
    for number, line in enumerate(title):
        sheet.text(_MARGIN, 0.56 + 0.19 * number, line, 9, ha="left")
    if isinstance(space, CellSpace):
        _draw_cells(sheet, space, panels, body)
    else:
        _draw_layers(sheet, rows, body)
    if sheet.norm is not None:
        _draw_colour_bar(sheet, sheet.norm, figure, bar, height)
    sheet.text(_MARGIN, height - 0.18, note, 7.5, _FAINT, "left")
    content = io.BytesIO()
    figure.savefig(content, format=kind)
    return content.getvalue()


def _colours(macs: Sequence[int]) -> "tuple[Colormap, LogNorm | None]":
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    ramp = colormaps["YlOrRd"]
    colours = ListedColormap([ramp(0.03 + 0.82 * step / 255) for step in range(256)])  # its ends hide what is written on them
    return colours, LogNorm(min(macs), max(max(macs), _LEAST_RATIO * min(macs))) if macs else None


def _facts(space: Space) -> str:
    trellis = Trellis(space, MacsCost())
    networks = f"{space.size:,}" if space.size < _EXACT_BELOW else f"{Decimal(space.size):.3e}"  # beyond 1e308 there is no float
    count = len(space.decisions)
    return (f"{networks} networks, {count} decision{'s' if count > 1 else ''}, input {space.input_shape}, "
            f"{span((trellis.min_cost(), trellis.max_cost()), short_macs)} MACs")


def _note(rows: _Rows, chosen: Mapping[str, str]) -> str:
    notes = []
    if any(row.is_conditional for row, _ in rows):
        notes.append("Dashed: not after every choice before it.")
    if not all(layout.columns for _, layout in rows):
        notes.append("Strips: options too many to be named, in their order.")
    if chosen:
        notes.append("Framed in blue: the architecture.")
    return " ".join(notes)


def _draw_colour_bar(sheet: _Sheet, norm: "LogNorm", figure: "Figure", y: float, page_height: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    width, height = min(5.0, sheet.width), 0.13
    axes = figure.add_axes((sheet.left / sheet.edge, 1 - (y + height) / page_height, width / sheet.edge, height / page_height))
    bar = figure.colorbar(ScalarMappable(norm, sheet.colours), cax=axes, orientation="horizontal")
    decades = math.log10(norm.vmax / norm.vmin)  # type: ignore[operator]
    steps = (1,) if decades > 3 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 5, 7)
    axes.xaxis.set(major_locator=LogLocator(subs=steps), minor_locator=NullLocator(),
                   major_formatter=FuncFormatter(lambda value, _: short_macs(value).replace(".0 ", " ")))
    axes.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.5)
    sheet.text(sheet.left, y + 0.44, "MACs that an option adds, at the largest input that can reach it; white: none", 7.5, _FAINT,
               "left")


# Rows

def _draw_layers(sheet: _Sheet, rows: _Rows, y: float) -> None:
    """The layers from top to bottom, in bands of one resolution."""
    for number, (resolution, band) in enumerate(groupby(rows, key=lambda pair: pair[0].resolution)):
        members = list(band)
        height = _height(members)
        sheet.box(0, y, sheet.edge, height, _BAND_COLOURS[number % 2], zorder=0)
        sheet.text(sheet.edge - _MARGIN, y + height / 2, resolution.replace(" to ", " to\n"), 8.5, _FAINT, "right")
        y = _draw_rows(sheet, members, [f"{row.channels} ch" for row, _ in members], y)


def _draw_rows(sheet: _Sheet, rows: _Rows, notes: Sequence[str], y: float) -> float:
    """Rows one below the other, each with a note at its right; returns where they end."""
    for (row, layout), note in zip(rows, notes, strict=True):
        top, middle = y + _GAP / 2, y + (_GAP + layout.height) / 2
        _draw_label(sheet, row, layout, middle)
        sheet.text(sheet.right + 0.1, middle, note, 7.5, _INK, "left")
        if not row.is_decision:
            _draw_fixed(sheet, row, top, layout.height)
        elif layout.columns:
            _draw_boxes(sheet, row, layout, top)
        else:
            _draw_strip(sheet, row, top)
        y += layout.height + _GAP
    return y


def _told(rows: Sequence[Row], chosen: Mapping[str, str]) -> list[str]:
    return [chosen[row.name] for row in rows if row.name in chosen]


def _draw_label(sheet: _Sheet, row: Row, layout: _Layout, middle: float) -> None:
    """The name of a row, and what a strip cannot say: how many options it has, and which one is chosen."""
    lines = [(row.name, 8.0, _INK if row.is_decision else _FAINT)]
    if not layout.columns:
        lines.append((f"{len(row.options)} options{', conditional' if row.is_conditional else ''}", 6.5, _FAINT))
        lines += [(option, 5.5, _CHOSEN) for option in _told([row], sheet.chosen)]
    for number, (text, size, colour) in enumerate(lines):
        sheet.text(sheet.left - 0.12, middle + 0.13 * (number - (len(lines) - 1) / 2), text, size, colour, "right",
                   weight="bold" if row.is_decision and not number else "normal")


def _draw_fixed(sheet: _Sheet, row: Row, y: float, height: float) -> None:
    (option,) = row.options
    sheet.box(sheet.left, y, sheet.width, height, _FIXED_COLOUR)
    cost = f", {short_macs(option.macs)} MACs" if option.macs else ""
    sheet.text(sheet.left + sheet.width / 2, y + height / 2, f"{option.name}, fixed{cost}", 7)


def _draw_boxes(sheet: _Sheet, row: Row, layout: _Layout, y: float) -> None:
    height = (layout.height + _LINE_GAP) / layout.lines - _LINE_GAP
    width = min(sheet.width / layout.columns, _ROOMIEST * layout.needed)
    for option in row.options:
        line, column = divmod(layout.order.index(option.name), layout.columns)
        x, top = sheet.left + column * width, y + line * (height + _LINE_GAP)
        colour, ink = sheet.colour(option.macs)
        style: dict[str, Any] = {"edgecolor": _EDGE, "linestyle": "-" if option.always else (0, (3, 2))}
        if sheet.chosen.get(row.name) == option.name:
            style |= {"edgecolor": _CHOSEN, "linewidth": 2.2, "zorder": 3}
        sheet.box(x + 0.02, top, width - 0.04, height, colour, **style)
        middle = top + height / 2
        sheet.text(x + width / 2, middle - (0.06 if option.macs else 0), option.name, 7, ink, zorder=4)
        if option.macs:
            sheet.text(x + width / 2, middle + 0.075, short_macs(option.macs), 5.8, ink, zorder=4)


def _draw_strip(sheet: _Sheet, row: Row, y: float) -> None:
    """A thin cell for every option, under what neighbours begin with and the MACs that they span."""
    width = sheet.width / len(row.options)
    x, runs, rest = sheet.left, [], list(row.options)
    for beginning, count in name_runs([option.name for option in row.options]):
        runs.append((beginning, rest[:count]))
        rest = rest[count:]
    labels = [f"{beginning}…  {span((option.macs for option in options), short_macs)}" for beginning, options in runs]
    fits = all(_width([label], 6.2) < len(options) * width for label, (_, options) in zip(labels, runs, strict=True))
    for label, (beginning, options) in zip(labels, runs, strict=True):
        extent = len(options) * width
        sheet.text(x + extent / 2, y + _RUN / 2 - 0.01, label if fits else beginning, 6.2, _FAINT)
        sheet.box(x + 0.01, y + _RUN, extent - 0.02, _STRIP, "none", edgecolor=_EDGE, zorder=2)
        for option in options:
            colour, _ = sheet.colour(option.macs)
            style: dict[str, Any] = {"edgecolor": colour, "linewidth": 0.2}
            if sheet.chosen.get(row.name) == option.name:
                style = {"edgecolor": _CHOSEN, "linewidth": 1.6, "zorder": 3}
            sheet.box(x, y + _RUN, width, _STRIP, colour, **style)
            x += width


# Spaces of cells

_Panels = Sequence[tuple[str, CellKind, _Rows]]


def _panels(space: CellSpace, rows: _Rows) -> _Panels:
    by_name = {row.name: (row, layout) for row, layout in rows}
    return [(name, kind, [by_name[decision.name] for decision in kind.decisions]) for name, kind in space.kinds.items()]


def _cells_height(panels: _Panels) -> float:
    return _SKELETON + sum(_PANEL + _GRAPH + _height(rows) + _GAP for _, _, rows in panels)


def _draw_cells(sheet: _Sheet, space: CellSpace, panels: _Panels, y: float) -> None:
    """How the cells are stacked; then, for each kind, its states and decisions."""
    colours = {name: _CELL_COLOURS[number % len(_CELL_COLOURS)] for number, name in enumerate(space.kinds)}
    _draw_skeleton(sheet, space, colours, y)
    y += _SKELETON
    kinds = [cell.kind for cell in space.skeleton.cells]
    for name, kind, rows in panels:
        sheet.box(0, y, sheet.edge, _PANEL, colours[name], zorder=0)
        sheet.box(0, y + _PANEL, sheet.edge, _GRAPH + _height(rows), _BAND_COLOURS[0], zorder=0)
        count = kinds.count(name)
        where = "in one cell" if count == 1 else f"the same in {count} cells, whose MACs are added up"
        sheet.text(_MARGIN, y + _PANEL / 2, f"{name}: {len(rows)} decisions, {where}", 9.5, ha="left", weight="bold")
        _draw_states(sheet, kind, y + _PANEL, colours[name])
        y = _draw_rows(sheet, rows, [f"state {decision.state}" for decision in kind.decisions], y + _PANEL + _GRAPH) + _GAP


def _draw_skeleton(sheet: _Sheet, space: CellSpace, colours: Mapping[str, str], y: float) -> None:
    """The cells in a row between stem and head, under the resolutions of their states."""
    sites = stacked_cells(space)
    width = min((sheet.edge - 2 * _MARGIN) / (len(sites) + 2), 1.1)
    top, middle = y + 0.2, y + 0.2 + _CELL / 2
    for x, name in ((_MARGIN, "stem"), (_MARGIN + (len(sites) + 1) * width, "head")):
        sheet.box(x + 0.02, top, width - 0.04, _CELL, _FIXED_COLOUR)
        sheet.text(x + width / 2, middle, name, 7)
    x = _MARGIN + width
    for (height, across), group in groupby(sites, key=lambda site: site.inner[1:]):
        cells = [site.cell for site in group]
        sheet.text(x + len(cells) * width / 2, y + 0.08, f"{height}x{across}", 7.5, _FAINT)
        sheet.axes.plot([x + 0.03, x + len(cells) * width - 0.03], [y + 0.165] * 2, color="#aaaaaa", linewidth=0.8)
        for cell in cells:
            sheet.box(x + 0.02, top, width - 0.04, _CELL, colours[cell.kind], edgecolor=_EDGE)
            lines = [cell.name, f"{cell.channels} ch", *(["stride 2"] if cell.stride > 1 else [])]
            for number, line in enumerate(lines):
                size = min(6.5, (width - 0.06) / (_EM * len(line)))
                sheet.text(x + width / 2, middle + 0.135 * (number - (len(lines) - 1) / 2), line, size)
            x += width


def _draw_states(sheet: _Sheet, kind: CellKind, y: float, colour: str) -> None:
    """The states of a kind of cell in a row, and an arc for every state that one may read."""
    from matplotlib.patches import Circle, FancyArrowPatch

    sources = state_sources(kind)
    spacing = min((sheet.width - 0.5) / (INPUTS + len(sources)), 1.0)
    line = y + _GRAPH - 0.45
    place = {state: sheet.left + 0.2 + spacing * number for number, state in enumerate((*range(INPUTS), *sources))}
    longest = max(place[state] - place[source] for state, read in sources.items() for source in read)
    bend = min(0.6, 2 * (_GRAPH - 0.6) / longest)  # an arc rises by half of it times its length
    arc = partial(FancyArrowPatch, arrowstyle="-|>", connectionstyle=f"arc3,rad={-bend}", mutation_scale=5, linewidth=0.6,
                  color="#7d8794", shrinkA=6, shrinkB=6, zorder=1)
    for state, read in sources.items():
        for source in read:
            sheet.axes.add_patch(arc((place[source], line), (place[state], line)))
    for state, x in place.items():
        sheet.axes.add_patch(Circle((x, line), 0.11, facecolor=_FIXED_COLOUR if state < INPUTS else colour, edgecolor=_EDGE,
                                    linewidth=0.6, zorder=2))
        sheet.text(x, line, str(state), 7, zorder=3)
    output = "those that no other reads" if kind.concat is None else ", ".join(map(str, kind.concat))
    sheet.text(sheet.left - 0.12, line, "states", 8, _FAINT, "right")
    told = f"0 and 1: the cell's inputs; arcs: what a state may read; the cell's output: {output}"
    sheet.text(sheet.left + 0.09, line + 0.28, told, 7, _FAINT, "left")
