"""Terminal tables: the same look for live figures, reports and plans."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.report.codebook import CodebookReport, FieldFigures, IdFigures, StreamFigures
from pipeline.report.summary import RunSummary, StageFigures

_TOP_WIDTH = 60
"""Of a list of ids, characters: ids may have 20 digits."""

_MANY_PER_ENTRY = 10
"""From so many ids per entry of the codebook on, more of them would not change much."""


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
    if summary.limit is not None:
        table.add_row("limit", _limit(summary.limit, summary.stages))
    table.add_row("fingerprint", summary.fingerprint[:16])
    for warning in summary.warnings:
        table.add_row(Text("warning", style="bold yellow"), Text(warning, style="yellow"))
    return table


def _limit(limit: StageFigures, stages: Sequence[StageFigures]) -> str:
    """Return which stage held the others back, and what would help."""
    step = f", most of it {limit.slowest_step}" if limit.slowest_step else ""
    behind_cpu = any(stage.name.startswith("device") for stage in stages)
    starves = limit.name.startswith("cpu") and behind_cpu
    hint = "; more run.cpu_threads would feed the device" if starves else ""
    return f"{limit.name}, {limit.busy:.0%} busy{step}{hint}"


def codebook_table(report: CodebookReport) -> Table:
    """Return what every stream, and every scale of it, uses of its codebook."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("ids of", overflow="ellipsis", no_wrap=True)
    for name in ("number", "codebook", "used", "entropy", "perplexity", "Zipf"):
        table.add_column(name, justify="right", no_wrap=True)
    for field, figures in report.fields.items():
        for stream in figures.streams:
            size = stream.codebook_size
            table.add_row(
                _stream_name(field, stream, figures), *_id_cells(stream.all, big_number(size))
            )
            for side, scale in zip(figures.scales, stream.scales, strict=True):
                table.add_row(f"  {side} x {side}", *_id_cells(scale, ""), style="dim")
    return table


def top_table(report: CodebookReport) -> Table:
    """Return the most frequent ids of every stream, and how often each occurs."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("ids of", overflow="ellipsis", no_wrap=True)
    table.add_column("most frequent (times)", overflow="ellipsis", no_wrap=True)
    for field, figures in report.fields.items():
        for stream in figures.streams:
            shown = [f"{each} ({count:,})" for each, count in stream.top]
            ends = accumulate(len(text) + 2 for text in shown)
            num = sum(end <= _TOP_WIDTH for end in ends)
            table.add_row(_stream_name(field, stream, figures), "  ".join(shown[:num]))
    return table


def codebook_notes(report: CodebookReport) -> Iterator[str]:
    """Yield what must be known to read the figures of ids."""
    if report.random_weights:
        yield "random weights: these figures say nothing about a tokenizer"
    few, guessed = [], []
    for field, figures in report.fields.items():
        for stream in figures.streams:
            name = _stream_name(field, stream, figures)
            if 0 < stream.all.ids < _MANY_PER_ENTRY * stream.codebook_size:
                few.append(name)
            if stream.all.kept_share < 1:
                guessed.append(f"{name} (1 id in {round(1 / stream.all.kept_share):,})")
    if few:
        yield (
            f"fewer than {_MANY_PER_ENTRY} ids for each entry of the codebook, so that used and "
            f"entropy would rise with more data: {', '.join(few)}"
        )
    if guessed:
        yield f"too many different ids to keep, figures are estimates: {', '.join(guessed)}"


def big_number(number: int) -> str:
    """Return a size of a codebook for people: ``64,000``, but ``2^64``."""
    bits = number.bit_length() - 1
    return f"2^{bits}" if bits >= 32 and number == 1 << bits else f"{number:,}"


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


def _stream_name(field: str, stream: StreamFigures, figures: FieldFigures) -> str:
    return field if len(figures.streams) == 1 else f"{field}: {stream.stream}"


def _id_cells(figures: IdFigures, codebook: str) -> tuple[str, ...]:
    about = "~" if figures.kept_share < 1 else ""
    share = figures.used_share
    cells = [f"{figures.ids:,}", codebook]
    cells.append(f"{about}{share:.1%}" if share >= 0.001 or not share else f"{about}{share:.0e}")
    if figures.entropy_bits is None or figures.perplexity is None:
        return (*cells, "", "", "")
    cells += [f"{about}{figures.entropy_bits:.2f} bits", f"{about}{figures.perplexity:,.0f}"]
    return (*cells, "" if figures.zipf_slope is None else f"{figures.zipf_slope:.2f}")
