"""Published search spaces: decisions, options, exact size, input shape, range of MACs."""

from typing import Annotated

import typer

from hwnas.cli.console import big, print_json, print_table, quantity, stdout


def spaces_command(
    name: Annotated[str | None, typer.Argument(help="A space's name, file.py:attribute or file.yaml; all when left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.ir.costs import MacsCost
    from hwnas.ir.trellis import Trellis
    from hwnas.spaces import SPACES
    from hwnas.spaces.load import load_space

    spaces = [load_space(one) for one in ([name] if name else SPACES)]
    trellises = [Trellis(space, MacsCost()) for space in spaces]
    if json:
        print_json([{"name": space.name, "decisions": len(space.decisions), "size": space.size,
                     "input_shape": list(space.input_shape), "macs_min": int(trellis.min_cost()),
                     "macs_max": int(trellis.max_cost())} for space, trellis in zip(spaces, trellises, strict=True)])
        return
    print_table("", ("space", "decisions", "networks", "input", "MACs from", "to", "what"),
                [(space.name, len(space.decisions), big(space.size), str(space.input_shape), quantity(trellis.min_cost()),
                  quantity(trellis.max_cost()), space.description) for space, trellis in zip(spaces, trellises, strict=True)])
    if name:
        stdout.print()
        print_table("Layers; those in brackets are fixed", ("layer", "options", "from", "to"),
                    [(step.name, " ".join(step.options) if step.is_decision else f"({step.options[0]})",
                      " ".join(map(str, step.inputs)), " ".join(map(str, step.outputs))) for step in spaces[0].steps])
