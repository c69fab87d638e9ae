"""Terminal tables: the same look for live figures, final reports and plans."""

from collections.abc import Sequence

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.report.summary import RunSummary, StageFigures


def stage_table(stages: Sequence[StageFigures]) -> Table:
    """Return samples/s, MB/s, tokens/s and the busy, starved, blocked shares of every stage."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("stage", overflow="ellipsis")  # the one that gives way on a narrow terminal
    for name in ("samples", "samples/s", "MB/s", "tokens/s", "busy", "starved", "blocked"):
        table.add_column(name, justify="right", no_wrap=True)
    slowest = max(stages, key=lambda stage: stage.busy, default=None)
    for stage in stages:
        style = "yellow" if stage is slowest else ""
        table.add_row(
            Text(stage.name, style=style),
            f"{stage.samples:,}",
            f"{stage.samples_per_s:,.1f}",
            f"{stage.bytes_per_s / 1e6:,.1f}",
            f"{stage.tokens_per_s:,.0f}" if stage.tokens else "",
            Text(f"{stage.busy:.0%}", style=style),
            f"{stage.starved:.0%}",
            f"{stage.blocked:.0%}",
        )
        for step, share in stage.steps.items():
            table.add_row(
                Padding(Text(step, style="dim", no_wrap=True, overflow="ellipsis"), (0, 0, 0, 2)),
                "",
                "",
                "",
                "",
                Text(f"{share:.0%}", "dim"),
            )
    return table


def summary_table(summary: RunSummary) -> Table:
    """Return the totals of a run: what came in and what became of it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("input", f"{summary.input_samples:,} samples")
    table.add_row(
        "written",
        f"{summary.samples:,} samples in {summary.num_shards:,} shards, {size(summary.num_bytes)}",
    )
    table.add_row("filtered", _with_reasons(summary.filtered, summary.filtered_by))
    table.add_row("quarantined", _with_reasons(summary.quarantined, summary.quarantined_by))
    for name, count in summary.tokens.items():
        table.add_row("tokens", f"{count:,} {name}")
    resumed = f", {summary.num_resumed:,} of them by earlier runs" if summary.num_resumed else ""
    table.add_row("partitions", f"{summary.num_partitions:,}{resumed}")
    table.add_row(
        "time",
        f"{duration(summary.wall_s)}, {summary.engine}, "
        f"{summary.num_workers} worker{'s' if summary.num_workers != 1 else ''}",
    )
    table.add_row("fingerprint", summary.fingerprint[:16])
    for warning in summary.warnings:
        table.add_row(Text("warning", style="bold yellow"), Text(warning, style="yellow"))
    return table


def size(num_bytes: float) -> str:
    """Return bytes for people: ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 1000 or unit == "TB":
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Return seconds for people: ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def _with_reasons(total: int, reasons: "dict[str, int] | object") -> str:
    if not isinstance(reasons, dict) or not reasons:
        return f"{total:,}"
    return f"{total:,} ({', '.join(f'{name} {count:,}' for name, count in reasons.items())})"
