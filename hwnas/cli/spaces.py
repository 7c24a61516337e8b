"""Published search spaces: decisions, options, exact size, distinct blocks (what a latency table measures), input shape, range of
MACs; of one, also its layers and a picture."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hwnas.cli.console import big, print_json, print_table, quantity, say, stdout
from hwnas.errors import InputError

if TYPE_CHECKING:
    from hwnas.ir.cells import CellSpace
    from hwnas.ir.steps import Space
    from hwnas.report.space_rows import Row

_MOST_OPTIONS = 16  # that are listed; of more, the first and the last
_SHOWN = 4


def spaces_command(
    name: Annotated[str | None, typer.Argument(help="A space's name, file.py:attribute or file.yaml; all when left out.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the space: a .png, .svg or .pdf file.")] = None,
    architecture: Annotated[Path | None, typer.Option(help="With --plot: an architecture file, whose path is framed.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.spaces import SPACES
    from hwnas.spaces.load import load_space

    if plot is None and architecture is not None:
        raise InputError("--architecture frames a path in a picture: add --plot FILE.")
    if plot is not None:
        from hwnas.report.space import check_space_picture

        if name is None:
            raise InputError("--plot draws one space: give its name, one of those of 'hwnas spaces', or file.py:attribute.")
        check_space_picture(plot)
    spaces = [load_space(one) for one in ([name] if name is not None else SPACES)]
    if plot is not None:
        _draw(spaces[0], plot, architecture)
    if json:
        _print_json(spaces)
        return
    _print_summary(spaces)
    if name is not None:
        stdout.print()
        _print_layers(spaces[0])


def _draw(space: "Space", plot: Path, architecture: Path | None) -> None:
    from hwnas.ir.architecture import load_architecture
    from hwnas.report.space import draw_space

    path = draw_space(space, plot, None if architecture is None else load_architecture(architecture))
    say(f"Drawn in {path}.")


def _macs_range(space: "Space") -> tuple[int, int]:
    from hwnas.ir.costs import MacsCost
    from hwnas.ir.trellis import Trellis

    trellis = Trellis(space, MacsCost())
    return int(trellis.min_cost()), int(trellis.max_cost())


def _print_json(spaces: "Sequence[Space]") -> None:
    documents = []
    for space in spaces:
        low, high = _macs_range(space)
        documents.append({"name": space.name, "decisions": len(space.decisions), "size": space.size,
                          "input_shape": list(space.input_shape), "macs_min": low, "macs_max": high,
                          "blocks": len(space.measured_parts)})
    print_json(documents)


def _print_summary(spaces: "Sequence[Space]") -> None:
    print_table("", ("space", "decisions", "networks", "blocks", "input", "MACs from", "to", "what"),
                [(space.name, len(space.decisions), big(space.size), len(space.measured_parts), str(space.input_shape),
                  *map(quantity, _macs_range(space)), space.description) for space in spaces])


def _print_layers(space: "Space") -> None:
    from hwnas.ir.cells import CellSpace
    from hwnas.report.space_rows import space_rows

    rows = space_rows(space)
    if isinstance(space, CellSpace):
        _print_cells(space, rows)
    else:
        print_table("Layers; those in brackets are fixed, and MACs are those at the largest input",
                    ("layer", "options", "MACs", "output"), [(row.name, _options(row), _macs(row), _output(row)) for row in rows])
    if any(row.is_conditional for row in rows):
        stdout.print("* not after every choice before it", soft_wrap=True)


def _print_cells(space: "CellSpace", rows: "Sequence[Row]") -> None:
    from hwnas.report.space_rows import stacked_cells

    stack = []
    for (kind, stride, states), group in groupby(stacked_cells(space), lambda one: (one.cell.kind, one.cell.stride, one.inner)):
        names = [site.cell.name for site in group]
        stack.append((" to ".join(dict.fromkeys((names[0], names[-1]))), len(names), kind, stride, states))
    print_table("Cells, from input to output", ("cells", "how many", "kind", "stride", "each state"), stack)
    for name, kind in space.kinds.items():
        by_name = {row.name: row for row in rows}
        stdout.print()
        output = "the states that no other reads" if kind.concat is None else f"states {', '.join(map(str, kind.concat))}"
        print_table(f"Decisions of {name} (MACs in all its cells together); its output: {output}",
                    ("decision", "state", "options", "MACs"),
                    [(decision.name, decision.state, _options(by_name[decision.name]), _macs(by_name[decision.name]))
                     for decision in kind.decisions])


def _options(row: "Row") -> str:
    """Their names, with a star where not every state allows one; of many, the first, the last and how many they are."""
    names = [option.name if option.always else f"{option.name}*" for option in row.options]
    if not row.is_decision:
        return f"({names[0]})"
    if len(names) <= _MOST_OPTIONS:
        return " ".join(names)
    return f"{' '.join(names[:_SHOWN])} ... {names[-1]}, {len(names)} options"


def _macs(row: "Row") -> str:
    from hwnas.report.space import short_macs
    from hwnas.report.space_rows import span

    return span((option.macs for option in row.options), short_macs)


def _output(row: "Row") -> str:
    return str(row.outputs[0]) if len(row.outputs) == 1 else f"{row.channels} channels, {row.resolution}"
