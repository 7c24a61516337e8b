"""Prints the rows of latency_tables/README.md from the tables themselves: python tools/list_latency_tables.py"""

from collections import Counter
from pathlib import Path

from hwnas.latency.summary import block_counts, held_out_document, refused_blocks
from hwnas.latency.table import load_table

ROOT = Path(__file__).parent.parent


def rows() -> list[str]:
    """One Markdown row for every table, in the order of their paths."""
    lines = []
    for path in sorted((ROOT / "latency_tables").rglob("*.json")):
        table = load_table(path)
        environment, held_out, document = table.environment, table.held_out, held_out_document(table)
        device = f"{environment['device']} (family/model/stepping {environment['device_id']})"
        counts = block_counts(table)
        roles = Counter(network.role for network in table.networks)
        command = (f"`hwnas profile --device {environment['runtime']} --space {table.space} --threads {environment['threads']} "
                   f"--fit-networks {roles['fit']} --held-out-networks {roles['held_out']}"
                   + (f" --blocks {counts['ok'] + counts['noisy']}" if counts["estimated"] else "") + "`")
        link = f"[{table.space}]({path.relative_to(path.parents[2])})" + (
            f" without {len(refused)} refused blocks" if (refused := refused_blocks(table)) else "") + (
            f", {counts['estimated']:,} of {len(table.entries):,} blocks estimated" if counts["estimated"] else "")
        cells = (device, f"{environment['runtime']} {environment['runtime_version']}", link, f"{held_out.networks} networks" + (
                     f"; {sum(len(one.networks) for one in table.sittings)} in {held_out.sittings} other hour(s)"
                     if held_out.sittings else ""),
                 f"{100 * held_out.mean_error:.1f} %",
                 *(f"{100 * document[f'within_{percent}_percent']:.0f} %" for percent in (2, 5)), f"{held_out.spearman:.3f}",
                 f"± {100 * held_out.interval:.1f} %", command)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
