"""Re-checks an artefact: hashes, the model's soundness, and its numbers; exit 4 if anything differs."""

from pathlib import Path
from typing import Annotated

import typer

from hwnas.cli.console import print_facts, print_json, say
from hwnas.errors import VerificationError


def verify_command(
    directory: Annotated[Path, typer.Argument(help="Folder of the artefact.")],
    bisect: Annotated[bool, typer.Option("--bisect", help="Name the first layer that departs (format onnx).")] = False,
    trust_engine: Annotated[bool, typer.Option("--trust-engine", help="Load a model whose hash does not match.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    from hwnas.export.verify import bisect_artifact, verify_artifact

    if bisect:
        departure = bisect_artifact(directory, trust_engine)
        if departure is not None:
            raise VerificationError(f"Every layer must give the numbers that it was exported with, but {departure.layer!r} "
                                    f"departs first, by {departure.max_abs:.2e} (at most {departure.tolerance:.2e}): export the "
                                    "network again.")
        say("No layer departs.")
    report = verify_artifact(directory, trust_engine)
    parity = report.parity
    if json:
        print_json({"artifact": str(report.directory), "verified": parity is not None, "not_run": report.not_run,
                    "format": report.manifest.format, "files": len(report.manifest.files),
                    "extra_files": list(report.extra_files), "changed_files": list(report.changed),
                    "max_abs": parity and parity.max_abs, "tolerance": parity and parity.tolerance,
                    "top1_agreement": parity and parity.top1_agreement})
        return
    facts: list[tuple[str, object]] = [
        ("files with the right hash", len(report.manifest.files) - len(report.changed)),
        ("changed, but trusted", ", ".join(report.changed) or "none"),
        ("not covered by a hash", ", ".join(report.extra_files) or "none")]
    if parity is None:
        print_facts(f"Hashes verified: {report.directory} has the files that were exported, but was not run",
                    [*facts, ("why not", report.not_run)])
        return
    print_facts(f"Verified: {report.directory} is as it was exported", [
        *facts,
        ("largest difference from the golden outputs", f"{parity.max_abs:.2e} (at most {parity.tolerance:.2e})"),
        ("same class as the golden outputs", f"{100 * parity.top1_agreement:.0f} %")])
