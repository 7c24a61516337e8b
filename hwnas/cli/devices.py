"""Targets that are usable here, and for the others why not and what would change that."""

from typing import Annotated

import typer

from hwnas.cli.console import print_json, print_table


def devices_command(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    from hwnas.runtimes import RUNTIMES

    rows = [(name, runtime.availability()) for name, runtime in RUNTIMES.items()]
    if json:
        print_json([{"name": name, "available": found.available, "reason": found.reason, "runtime_version": found.version}
                    for name, found in rows])
        return
    print_table("", ("device", "usable", "version, or why not"),
                [(name, "yes" if found.available else "no", found.version or found.reason or "") for name, found in rows])
