"""Targets that are usable, here or on another machine, and for the others why not and what would change that."""

from typing import Annotated

import typer

from hwnas.cli.console import print_json, print_table, say


def devices_command(
    on: Annotated[str | None, typer.Option(help="Another machine: ssh://user@host, then what can be measured there.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.runtimes import RUNTIMES

    if on is None:
        rows = {name: runtime.availability() for name, runtime in RUNTIMES.items()}
    else:
        from hwnas.profiling.ssh import list_ssh_runtimes

        say(f"Asking {on}, which imports each runtime that it has.")
        rows = list_ssh_runtimes(on)
    if json:
        print_json([{"name": name, "available": found.available, "reason": found.reason, "runtime_version": found.version,
                     "precisions": RUNTIMES[name].precisions} for name, found in rows.items()])
        return
    print_table("", ("device", "usable", "version and precisions, or why not"), [
        (name, "yes", f"{found.version}: {', '.join(RUNTIMES[name].precisions)}") if found.available else
        (name, "no", found.reason or "") for name, found in rows.items()])
