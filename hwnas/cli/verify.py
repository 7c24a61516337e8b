"""Re-checks an artefact: hashes, the model's soundness, and its numbers; exit 4 if anything differs."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import print_facts, print_json


def verify_command(
    directory: Annotated[Path, typer.Argument(help="Folder of the artefact.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.export.verify import verify_artifact

    report = verify_artifact(directory)
    if json:
        print_json({"artifact": str(report.directory), "verified": True, "files": len(report.manifest.files),
                    "extra_files": list(report.extra_files), "max_abs": report.parity.max_abs,
                    "tolerance": report.parity.tolerance, "top1_agreement": report.parity.top1_agreement})
        return
    print_facts(f"Verified: {report.directory} is as it was exported", [
        ("files with the right hash", len(report.manifest.files)),
        ("not covered by a hash", ", ".join(report.extra_files) or "none"),
        ("largest difference from the golden outputs", f"{report.parity.max_abs:.2e} (at most {report.parity.tolerance:.2e})"),
        ("same class as the golden outputs", f"{100 * report.parity.top1_agreement:.0f} %")])
