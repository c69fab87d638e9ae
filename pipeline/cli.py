"""The command line: ``pipeline run JOB`` and its companions. Thin: it parses, calls and prints."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import SpecError, TokenmillError
from pipeline.signals import STOPPED, StopSignals
from pipeline.spec import (
    JobSpec,
    WorkerRange,
    load_job,
    load_train_job,
    schema_json,
    train_schema,
)
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pipeline import verify as checks
    from pipeline.manifest import DataSet
    from pipeline.protocols import Listener
    from pipeline.report.codebook import CodebookReport

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn large corpora into tokens before training.",
)
out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True, highlight=False)

JobFile = Annotated[
    Path,
    typer.Argument(
        help="Job file (YAML). Paths in it are relative to the current directory.",
        show_default=False,
    ),
]
OutputUri = Annotated[str, typer.Argument(help="Output folder of a run.", show_default=False)]
Output = Annotated[
    str | None, typer.Option(help="Output folder, instead of the job's.", show_default=False)
]
StorageOf = Annotated[
    Path | None,
    typer.Option(
        "--job", help="Job file whose storage options reach the output.", show_default=False
    ),
]
Engine = Annotated[str, typer.Option(help="ray or inline (one process).")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join; a private one by default.", show_default=False),
]
Workers = Annotated[
    str | None,
    typer.Option(
        help="Workers: a number, or MIN:MAX for a cluster that grows on demand.",
        show_default=False,
        metavar="N|MIN:MAX",
    ),
]
Fresh = Annotated[bool, typer.Option(help="Remove what is in the output folder first.")]
Limit = Annotated[
    int | None, typer.Option(help="Stop after this many input samples.", min=1, show_default=False)
]


def main() -> None:
    """Run the command line; exit codes are those of ``pipeline.errors``."""
    try:
        code = app(standalone_mode=False)  # a number when typer ended the command itself
    except TokenmillError as error:
        err.print(Text("error: ", style="bold red") + Text(error.message), soft_wrap=True)
        if error.hint:
            err.print(Text("  do: ", style="bold") + Text(error.hint), soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):  # wrong usage
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        raise
    if code:
        sys.exit(code)


@app.command()
def run(
    job_file: JobFile,
    output: Output = None,
    engine: Engine = "ray",
    address: Address = None,
    workers: Workers = None,
    limit: Limit = None,
    fresh: Fresh = False,
) -> None:
    """Run a job. The same command again goes on where it stopped."""
    _check_engine(engine)
    with StopSignals() as stop:
        try:
            _run(_job(job_file, limit), output, engine, address, _workers(workers), fresh)
        except KeyboardInterrupt:
            err.print(STOPPED)
            raise typer.Exit(stop.code) from None


def _run(
    job: JobSpec,
    output: str | None,
    engine: str,
    address: str | None,
    workers: int | WorkerRange | None,
    fresh: bool,
) -> None:
    from pipeline import runner
    from pipeline.report.tables import stage_table, summary_table

    prepared = runner.prepare(job, output)
    for warning in prepared.warnings:
        err.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    with _listeners(prepared.job.name, engine) as listener:
        summary = runner.run(
            prepared,
            engine=engine,
            address=address,
            workers=workers,
            fresh=fresh,
            listener=listener,
        )
    out.print(stage_table(summary.stages))
    out.print()
    out.print(summary_table(summary))
    out.print(f"\ndone: {summary.output}/manifest.json", soft_wrap=True)


@contextmanager
def _listeners(name: str, engine: str) -> "Iterator[Listener]":
    """Give what shows and records a run while it goes on."""
    from pipeline import runner
    from pipeline.report.live import LiveView

    with ExitStack() as stack:
        listeners: list[Listener] = [stack.enter_context(LiveView(out))]
        if engine == "ray":
            from pipeline.engines.ray import RayMeter
            from pipeline.report.metrics import RunMetrics

            listeners.append(stack.enter_context(RunMetrics(name, RayMeter())))
        yield runner.Listeners(*listeners)


def _check_engine(engine: str) -> None:
    if engine not in ("ray", "inline"):
        raise SpecError(f"--engine {engine}: unknown engine", hint="use ray or inline")


@app.command()
def submit(
    job_file: Annotated[
        Path | None, typer.Argument(help="Job file (YAML).", show_default=False)
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            help="The cluster's dashboard, e.g. http://head:8265.",
            envvar="RAY_API_SERVER_ADDRESS",
            show_default=False,
        ),
    ] = "",
    output: Output = None,
    workers: Workers = None,
    limit: Limit = None,
    fresh: Fresh = False,
    detach: Annotated[bool, typer.Option(help="Send it, and do not wait.")] = False,
    follow: Annotated[
        str | None,
        typer.Option(help="Watch a job that was sent before, by its id.", show_default=False),
    ] = None,
) -> None:
    """Run a job on a Ray cluster from elsewhere: send it, follow its log, return its exit code.

    Ctrl-C ends the watching alone.
    """
    from pipeline import submit as submission
    from pipeline.engines.ray_jobs import RayJobs

    if (job_file is None) == (follow is None):
        raise SpecError("submit: expected a job file, or --follow and an id, and not both")
    if not address:
        raise SpecError("submit: no cluster", hint="give --address http://head:8265")
    if job_file is None:
        jobs, sent = RayJobs(address), str(follow)
    else:
        job = _job(job_file, limit)
        _workers(workers)
        given = {"--output": output, "--workers": workers, "--limit": limit}
        options = [part for name, value in given.items() if value for part in (name, str(value))]
        options += ["--fresh"] if fresh else []
        jobs = RayJobs(address)
        figures = out.is_terminal and not detach
        sent = submission.submit(jobs, job, job_file, options, figures=figures)
        err.print(f"sent as {sent}")
    again = f"pipeline submit --follow {sent} --address {address}"
    stop = f"ray job stop {sent} --address {address}"
    if detach:
        err.print(f"watch it: {again}\nstop it:  {stop}", soft_wrap=True)
        return
    try:
        code = submission.follow(jobs, sent, out)
    except KeyboardInterrupt:
        err.print(f"{sent} goes on\nwatch it: {again}\nstop it:  {stop}", soft_wrap=True)
        raise typer.Exit(130) from None
    raise typer.Exit(code)


@app.command()
def train_tokenizer(
    job_file: Annotated[
        Path,
        typer.Argument(
            help="Training job (YAML). Paths in it are relative to the current directory.",
            show_default=False,
        ),
    ],
    output: Output = None,
    limit: Limit = None,
    fresh: Annotated[
        bool, typer.Option(help="Replace what an earlier training wrote to the output folder.")
    ] = False,
) -> None:
    """Train a tokenizer on a sample of a corpus."""
    from pipeline import train
    from pipeline.report.tables import size
    from pipeline.report.training import TrainingView

    job = load_train_job(job_file, {"limit": limit} if limit is not None else None)
    with StopSignals() as stop:
        try:
            prepared = train.prepare(job, output)
            for warning in prepared.warnings:
                err.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
            with TrainingView(out) as view:
                done = train.train(prepared, view.show, fresh=fresh)
        except KeyboardInterrupt:
            err.print("stopped; nothing was written")
            raise typer.Exit(stop.code) from None
    facts = _facts()
    sample = done.provenance["sample"]
    facts.add_row("trainer", done.provenance["recipe"]["trainer"]["name"])
    facts.add_row("sample", f"{sample['documents']:,} documents, {size(sample['bytes'])} of text")
    facts.add_row("of", f"{sample['documents_seen']:,} documents")
    if sample["unusable"]:
        facts.add_row("unusable", f"{sample['unusable']:,}")
    for name, about in done.provenance["files"].items():
        facts.add_row(name, f"{size(about['num_bytes'])}, sha256 {about['sha256'][:12]}")
    out.print(facts)
    already = "" if done.is_new else " (trained before by the same job; --fresh trains again)"
    out.print(f"\ndone: {done.output}/{train.PROVENANCE}{already}", soft_wrap=True)


@app.command()
def plan(job_file: JobFile, output: Output = None, limit: Limit = None) -> None:
    """Show partitions, stages, resources and fields of a job. Runs nothing."""
    from pipeline import runner
    from pipeline.report.tables import size

    prepared = runner.prepare(_job(job_file, limit), output)
    partitions, estimate = runner.preview_plan(prepared)
    chain = prepared.chain
    steps = _table("stage", "operator", "cpus", "gpus", "adds")
    source = [f"{n}: {s}" for n, s in chain.source_fields.items()]
    steps.add_row("read", prepared.job.source.type, "", "", Text("\n".join(source)))
    for bound in chain.steps:
        needs = bound.step.resources
        adds = "\n".join(f"{field}: {bound.fields[field]}" for field in bound.writes.values())
        stage = bound.step.stage if bound.step.stage == "cpu" else f"device ({bound.step.device})"
        steps.add_row(
            stage, bound.label, f"{needs.cpus:g}", f"{needs.gpus:g}", Text(adds or "(filter)")
        )
    written = "\n".join(f"{n}: {s}" for n, s in chain.output.items())
    steps.add_row("write", prepared.job.shards.format, "", "", Text(written))
    out.print(steps)
    out.print()
    facts = _facts()
    facts.add_row("partitions", f"{len(partitions):,}, {size(estimate.input_bytes)} of input")
    facts.add_row("samples", f"about {estimate.samples:,}")
    for name, count in estimate.tokens.items():
        text = f"about {count:,}" if count is not None else "depends on the text"
        facts.add_row("tokens", f"{name}: {text}")
    facts.add_row("output", f"about {size(estimate.output_bytes)} of fixed-length fields")
    facts.add_row("to", Text(prepared.output))
    facts.add_row("fingerprint", prepared.fingerprint[:16])
    for warning in prepared.warnings:
        facts.add_row(Text("warning", "bold yellow"), Text(warning, "yellow"))
    out.print(facts)


@app.command()
def validate(job_file: JobFile) -> None:
    """Check a job file alone; `plan` also checks that operators and source fit together."""
    job = _job(job_file)
    job.source_urls(), job.storage_options(), job.output_uri()  # every variable is set
    count = len(job.operators)
    out.print(f"{job_file}: valid ({count} operator{'s' if count != 1 else ''})", soft_wrap=True)


@app.command()
def schema(
    path: Annotated[
        str | None,
        typer.Argument(
            help="Where to write it.",
            show_default="jobs/job.schema.json, or jobs/tokenizers/train.schema.json",
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="That of training jobs instead.")
    ] = False,
) -> None:
    """Write the JSON schema of job files, for editors."""
    text = schema_json(train_schema() if training else None)
    default = "jobs/tokenizers/train.schema.json" if training else "jobs/job.schema.json"
    Storage().write(path or default, text.encode())
    out.print(f"wrote {path or default}", soft_wrap=True)


@app.command()
def operators(
    name: Annotated[str | None, typer.Argument(help="Operator.", show_default=False)] = None,
) -> None:
    """List the operators, or describe one."""
    import inspect

    from operators import registry
    from pipeline.report.catalogue import operator_tables, published_table

    if name is None:
        for i, table in enumerate(operator_tables(registry.all_classes())):
            if i:
                out.print()
            out.print(table)
        return
    cls = registry.get(name)
    out.print(Text((inspect.getdoc(cls) or "").replace("``", "`")), soft_wrap=True)
    out.print()
    out.print(_fields_of(cls))
    out.print()
    published = published_table(cls)
    if published is not None:
        out.print(published)
        out.print()
    out.print(_settings(cls))


@app.command()
def trainers(
    name: Annotated[str | None, typer.Argument(help="Trainer.", show_default=False)] = None,
) -> None:
    """List the trainers of tokenizers, or describe one."""
    import inspect

    from operators import registry

    if name is None:
        table = _table("trainer", "what it does")
        for each, cls in registry.trainers().items():
            table.add_row(each, Text((inspect.getdoc(cls) or "").split("\n", 1)[0]))
        out.print(table)
        return
    found = registry.trainer(name)
    out.print(Text((inspect.getdoc(found) or "").replace("``", "`")), soft_wrap=True)
    out.print()
    out.print(_settings(found))


@app.command()
def status(output: OutputUri, job: StorageOf = None) -> None:
    """Show where a run stands."""
    from pipeline import maintenance
    from pipeline.report.tables import stage_table

    found = maintenance.status(output, _storage(job))
    state = "finished" if found.finished else "not finished: run the job again to go on"
    sums, holder = found.sums, found.holder
    facts = _facts()
    facts.add_row("job", f"{found.name} ({state})")
    facts.add_row("partitions", f"{sums.num_partitions:,} of {found.num_partitions:,}")
    facts.add_row("written", f"{sums.num_written:,} samples")
    facts.add_row("filtered", f"{sums.num_filtered:,}")
    facts.add_row("quarantined", f"{sums.num_quarantined:,}")
    if holder is not None:
        gone = " (it has ended)" if holder.is_gone() else ""
        facts.add_row("held by", Text(f"{holder}{gone}"))
    facts.add_row("fingerprint", found.fingerprint[:16])
    out.print(facts)
    if sums.num_partitions:
        out.print()
        out.print(stage_table(sums.figures()))


@app.command()
def verify(
    output: OutputUri,
    golden: Annotated[bool, typer.Option(help="Encode the golden samples again, too.")] = True,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take back what is damaged, for the next run to redo.")
    ] = False,
    job: StorageOf = None,
) -> None:
    """Check a finished data set: every hash, count, dtype and id, and the golden samples."""
    from rich.progress import Progress

    from pipeline import verify as checks
    from pipeline.errors import IntegrityError
    from pipeline.manifest import open_data_set

    storage = _storage(job)
    findings: list[checks.Finding] = []
    num_checks = 0
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("verify", total=None)
        for finding in _verify(output, storage, golden, repair):
            num_checks += 1
            bar.update(task, description=f"verify {num_checks:,}: {finding.check}")
            if finding.problem is not None:
                findings.append(finding)
                line = Text("wrong    ", "red") + f"{finding.check}: {finding.problem}"
                bar.console.print(line, soft_wrap=True)
            elif finding.skipped is not None:
                line = Text("skipped  ", "yellow") + f"{finding.check}: {finding.skipped}"
                bar.console.print(line, soft_wrap=True)
    if findings:
        message = f"{output}: {len(findings):,} of {num_checks:,} checks found something wrong"
        if all(finding.redo is None for finding in findings):
            raise IntegrityError(message, hint="nothing that a repair could mend; see above")
        if not repair:
            raise IntegrityError(
                message,
                hint=f"`pipeline verify {output} --repair` takes back what is damaged; then run "
                "the job again: it does that anew",
            )
        done = checks.repair(output, storage, findings)
        raise IntegrityError(
            f"{message}; took back the manifest and {len(done):,} commit records",
            hint="run the job again: it does them anew and finishes the data set",
        )
    manifest = open_data_set(output, storage).manifest
    for warning in manifest.warnings:
        out.print(Text("warning  ", "yellow") + warning, soft_wrap=True)
    totals = manifest.totals
    out.print(
        Text("right    ", "green") + f"{num_checks:,} checks: {totals['shards']:,} shards, "
        f"{totals['samples']:,} samples, {sum(totals['tokens'].values()):,} tokens"
    )


@app.command()
def retry(
    output: OutputUri,
    job: Annotated[
        Path | None,
        typer.Option(
            help="Job file, with what was mended in it, and its run and storage settings.",
            show_default=False,
        ),
    ] = None,
    engine: Engine = "ray",
    address: Address = None,
    workers: Workers = None,
    drop: Annotated[bool, typer.Option("--drop", help="Give up a retry that was stopped.")] = False,
) -> None:
    """Try the quarantined samples of a finished data set again, and add what works now.

    Nothing that was written before changes. The same command again goes on where it stopped.
    """
    from pipeline import retry as again

    if drop:
        number = again.drop(output, _storage(job))
        out.print(f"{output}: retry {number} is given up; `pipeline gc` removes what it wrote")
        return
    _check_engine(engine)
    asked = _workers(workers)
    given = _job(job) if job is not None else None
    with StopSignals() as stop:
        try:
            prepared = again.prepare(output, _storage(job), given)
            with _listeners(prepared.job.name, engine) as listener:
                outcome = again.retry(
                    prepared, engine=engine, address=address, workers=asked, listener=listener
                )
        except KeyboardInterrupt:
            err.print(STOPPED)
            raise typer.Exit(stop.code) from None
    if not outcome.tried:
        out.print(f"{output}: nothing is in the quarantine", soft_wrap=True)
        return
    facts = _facts()
    more = f", which were {outcome.read:,}" if outcome.read != outcome.tried else ""
    facts.add_row("tried", f"{outcome.tried:,} samples{more}")
    facts.add_row("recovered", f"{outcome.recovered:,}")
    for name, count in sorted(outcome.filtered.items()):
        facts.add_row("filtered", f"{count:,} {name}")
    for name, count in sorted(outcome.quarantined.items()):
        facts.add_row("still bad", f"{count:,} {name}")
    out.print(facts)
    out.print(f"\ndone: {outcome.output}/manifest.json", soft_wrap=True)


@app.command()
def preview(
    output: OutputUri,
    to: Annotated[
        str | None,
        typer.Option(
            help="PNG file to write.",
            show_default="OUTPUT/preview.png; ./preview.png for an output that is not on disk",
        ),
    ] = None,
    num: Annotated[int, typer.Option(help="Samples to show.", min=1, max=64)] = 8,
    job: StorageOf = None,
) -> None:
    """Draw originals beside what their tokens decode to, and decode text back."""
    import io

    from pipeline.manifest import data_set_folder
    from pipeline.preview import preview as decode
    from pipeline.storage import join

    storage = _storage(job)
    found = decode(output, storage, num)
    if found.warning:
        out.print(Text("warning  ", "yellow") + found.warning, soft_wrap=True)
    for label, texts in found.decoded.items():
        for key, text in zip(found.keys, texts, strict=True):
            if isinstance(text, str):
                line = Text(f"{key}  {label}: ", "dim") + " ".join(text.split())
                out.print(line, no_wrap=True, overflow="ellipsis")
    if to is None:
        to = "preview.png"
        if storage.local_path(output) is not None:
            to = join(data_set_folder(output), to)
    sheet = io.BytesIO()
    found.sheet().save(sheet, "png")
    storage.write(to, sheet.getvalue())
    out.print(f"wrote {to}", soft_wrap=True)


@app.command()
def report(
    output: OutputUri,
    codebook: Annotated[
        bool, typer.Option(help="Count the ids, which reads all of them, the first time.")
    ] = True,
    job: StorageOf = None,
) -> None:
    """Show the figures of a finished run again, and what its tokens use of their codebooks.

    The latter are kept in OUTPUT/codebook.json.
    """
    from pipeline.finish import REPORT
    from pipeline.manifest import data_set_folder, open_data_set
    from pipeline.report.summary import RunSummary
    from pipeline.report.tables import (
        codebook_notes,
        codebook_table,
        stage_table,
        summary_table,
        top_table,
    )
    from pipeline.storage import NotFoundError, join

    storage = _storage(job)
    try:
        summary = RunSummary.from_json(storage.read(join(data_set_folder(output), REPORT)))
    except NotFoundError:
        if not _is_imported(output, storage):
            raise NotFoundError(
                f"{output}: no report", hint="the run is not finished; try `pipeline status`"
            ) from None
        out.print(f"{output}: was imported, no run has figures of it")
    else:
        out.print(stage_table(summary.stages))
        out.print()
        out.print(summary_table(summary))
    if not codebook:
        return
    found = _codebook_report(open_data_set(output, storage))
    if found.fields:
        out.print()
        out.print(codebook_table(found))
        out.print()
        out.print(top_table(found))
    notes = list(codebook_notes(found))
    for note in notes:
        out.print(Text("note  ", "yellow") + note, soft_wrap=True)


@app.command("tokenizer-report")
def tokenizer_report(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="Job files (*.yaml), or output folders of finished runs.", show_default=False
        ),
    ],
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(
            help="One more tokenizer for the texts of jobs: an operator's name, or its settings "
            "as in a job, e.g. '{name: text_tokenizer, tokenizer: gpt2}'. May be given several "
            "times.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Field of languages or domains to compare.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Group that premiums refer to; by default that of fewest tokens a character.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[float, typer.Option(help="Text to read, MB.", min=0.0001)] = 16.0,
    to_json: Annotated[
        str | None, typer.Option("--json", help="Write the figures there.", show_default=False)
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(help="Draw them there: a .png, .svg or .pdf file.", show_default=False),
    ] = None,
    job: StorageOf = None,
) -> None:
    """Say how good text tokenizers are on a corpus, side by side. Runs on a sample."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline import tokenizer_sample as samples
    from pipeline.report import tokenizer_plots
    from pipeline.report import tokenizer_report as figures
    from pipeline.report.tokenizer_tables import tokenizer_notes, tokenizer_tables

    if plot is not None:
        tokenizer_plots.check_format(plot)
    more = [_tokenizer(text) for text in tokenizer or ()]
    if more and not any(target.endswith((".yaml", ".yml")) for target in targets):
        raise SpecError(
            "--tokenizer: there is no job among the targets to measure it on",
            hint="give the job file too: finished runs are measured by what they stored",
        )
    found: list[figures.TokenizerFigures] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        for target in targets:
            task = bar.add_task(target, total=None)

            def progress(done: int, of: int, task: Any = task) -> None:
                bar.update(task, completed=done, total=of)

            given = samples.Sampling(int(sample * 1e6), group, reference, progress)
            first = found[0] if found else None
            if target.endswith((".yaml", ".yml")):
                found += samples.measure_job(_job(Path(target)), more, given, first)
            else:
                found += samples.measure_shards(target, _storage(job), given, first)
    for table in tokenizer_tables(found):
        out.print(table)
        out.print()
    for note in tokenizer_notes(found):
        out.print(Text("note  ", "yellow") + note, soft_wrap=True)
    for path, data in (
        (to_json, figures.to_json),
        (plot, lambda each: tokenizer_plots.draw(each, tokenizer_plots.check_format(str(plot)))),
    ):
        if path is not None:
            Storage().write(path, data(found))
            out.print(f"wrote {path}", soft_wrap=True)


@app.command()
def gc(
    output: OutputUri,
    dry_run: Annotated[bool, typer.Option(help="Only list what would be removed.")] = False,
    unfinished: Annotated[
        bool, typer.Option(help="Also when the run is not finished and no worker is at work.")
    ] = False,
    job: StorageOf = None,
) -> None:
    """Remove what killed attempts left behind: files that no commit names, half uploads."""
    from pipeline import maintenance
    from pipeline.report.tables import size

    storage, count, freed = _storage(job), 0, 0
    look = maintenance.unreferenced if dry_run else maintenance.remove_unreferenced
    for entry in look(output, storage, unfinished=unfinished):
        out.print(f"{'would remove' if dry_run else 'removed'} {entry.uri}", soft_wrap=True)
        count, freed = count + 1, freed + entry.num_bytes
    for uri in storage.drop_uploads(output, dry_run=dry_run):
        out.print(f"{'would give' if dry_run else 'gave'} up the upload of {uri}", soft_wrap=True)
    out.print(f"{count:,} files, {size(freed)}{' would be freed' if dry_run else ' freed'}")


@app.command()
def export(
    output: OutputUri,
    to: Annotated[
        str,
        typer.Option(
            help="megatron, nanogpt, parquet, hf-datasets, webdataset, datatrove, mds or litdata.",
            metavar="FORMAT",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--output",
            help="Folder of the export; by default OUTPUT-FORMAT, beside the output.",
            show_default=False,
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            help="Field to export, in the order given; `key` is one. By default all, or for "
            "formats of token ids the only field of ids.",
            show_default=False,
        ),
    ] = None,
    file_size: Annotated[
        float | None,
        typer.Option(
            help="Put about as many GB of shards into a file (0: all into one); by default the "
            "format's own size.",
            min=0,
            show_default=False,
        ),
    ] = None,
    engine: Engine = "ray",
    address: Address = None,
    workers: Workers = None,
    allow_random_weights: Annotated[
        bool, typer.Option("--allow-random-weights", help="Export tokens that mean nothing, too.")
    ] = False,
    job: StorageOf = None,
) -> None:
    """Write a finished data set in another format. The same command again goes on."""
    from pipeline.export import ExportSettings
    from pipeline.exporting import export as write_export
    from pipeline.manifest import data_set_folder
    from pipeline.report.tables import size

    _check_engine(engine)
    asked = _workers(workers)
    folder = target or f"{data_set_folder(output)}-{to}"
    part_bytes = None if file_size is None else round(file_size * 1e9)
    settings = ExportSettings(to, field, part_bytes, allow_random_weights)
    with StopSignals() as stop:
        try:
            with _listeners(f"export-{to}", engine) as listener:
                done = write_export(
                    output,
                    folder,
                    settings,
                    storage=_storage(job),
                    engine=engine,
                    address=address,
                    workers=asked,
                    listener=listener,
                )
        except KeyboardInterrupt:
            err.print(STOPPED)
            raise typer.Exit(stop.code) from None
    before = f", {done.skipped:,} of {done.parts:,} parts were there" if done.skipped else ""
    out.print(
        f"{done.output}: {done.num_samples:,} samples, {len(done.files):,} files, "
        f"{size(done.num_bytes)}{before}",
        soft_wrap=True,
    )


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="megatron: a .bin, its path without the ending, or a folder of such. mds: the "
            "folder of index.json.",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Argument(help="Folder of the data set.", show_default=False)],
    source_format: Annotated[
        str, typer.Option("--from", help="megatron or mds.", metavar="FORMAT", show_default=False)
    ],
    vocab_size: Annotated[
        int | None,
        typer.Option(help="All ids lie below it, which is checked.", min=1, show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A tokenizer.json, for its vocabulary's size.", show_default=False),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="What the ids are called (megatron; by default ids), or are called in the source "
            "(mds).",
            show_default=False,
        ),
    ] = None,
    job: StorageOf = None,
) -> None:
    """Make a data set of what another training stack wrote, in place where that can be."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from pipeline.imports import ImportSettings, import_data_set
    from pipeline.report.tables import size

    settings = ImportSettings(source_format, vocab_size, tokenizer, field)
    columns = (TextColumn(f"import {source_format}"), BarColumn(), DownloadColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=out, transient=True, disable=not out.is_terminal
    )
    with StopSignals() as stop:
        try:
            with bar:
                task = bar.add_task("", total=None)
                done = import_data_set(
                    source,
                    output,
                    settings,
                    storage=_storage(job),
                    progress=lambda num, of: bar.update(task, completed=num, total=of),
                )
        except KeyboardInterrupt:
            err.print("stopped; run the same command again")
            raise typer.Exit(stop.code) from None
    what = "copied into shards" if done.is_copied else "used where they lie"
    out.print(
        f"{done.output}: {done.num_samples:,} samples, {done.num_tokens:,} tokens; "
        f"{done.num_files:,} files, {what}, {size(done.num_bytes)}",
        soft_wrap=True,
    )


@app.command("sample-data")
def sample_data(
    folder: Annotated[Path, typer.Argument(help="Where to write it.", show_default=False)],
) -> None:
    """Write the sample corpus: photographs with captions, and text. Needs no network."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pipeline.report.tables import size
    from pipeline.sample_data import write_sample_data

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=out, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        data = write_sample_data(folder, progress=progress)
    state = "wrote" if data.written else "there already:"
    out.print(
        f"{state} {data.num_photos:,} photographs ({len(data.photo_tars)} tars, "
        f"{size(data.photo_bytes)}) and {data.num_texts:,} texts ({len(data.text_files)} Parquet "
        f"files, {size(data.text_bytes)} of text) in {folder}",
        soft_wrap=True,
    )


def _is_imported(output: str, storage: Storage) -> bool:
    from pipeline.manifest import open_data_set
    from pipeline.storage import NotFoundError

    try:
        return open_data_set(output, storage).manifest.is_imported
    except NotFoundError:
        return False


def _verify(
    output: str, storage: Storage, golden: bool, repair: bool
) -> "Iterator[checks.Finding]":
    """Verify a data set; with ``repair`` also mend the ledger of a run that is not finished."""
    from pipeline import verify as checks
    from pipeline.errors import IntegrityError
    from pipeline.storage import NotFoundError

    try:
        yield from checks.verify(output, storage, golden=golden)
    except NotFoundError:
        mended = checks.mend_ledger(output, storage) if repair else []
        if not mended:
            raise
        for text in mended:
            out.print(Text("wrong    ", "red") + text, soft_wrap=True)
        raise IntegrityError(
            f"{output}: {len(mended):,} things were wrong with the ledger; what can be read of "
            "it was kept",
            hint="run the job again: it does anew what is missing",
        ) from None


def _codebook_report(data: "DataSet") -> "CodebookReport":
    """Return the figures that are kept with a data set; or count, and keep them."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    from pipeline.report.codebook import count_ids, keep_report, kept_report

    found = kept_report(data)
    if found is not None:
        return found
    columns = (TextColumn("counting ids"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=None)
        found = count_ids(data, lambda done, of: bar.update(task, completed=done, total=of))
    try:
        keep_report(data, found)
    except TokenmillError as error:  # a data set may well be closed to who looks at it
        err.print(f"warning: these figures are not kept: {error.message}", soft_wrap=True)
    return found


def _tokenizer(text: str) -> dict[str, Any]:
    """Return the settings of an operator that an option holds: its name, or a YAML mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        found = None
    if isinstance(found, str):
        return {"name": found}
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise SpecError(
            f"--tokenizer {text}: expected an operator's name, or settings with one",
            hint="for example --tokenizer '{name: text_tokenizer, tokenizer: gpt2}'",
        )
    return found


def _storage(job_file: Path | None) -> Storage:
    return Storage(load_job(job_file).storage_options() if job_file is not None else None)


def _workers(text: str | None) -> int | WorkerRange | None:
    if text is None:
        return None
    least, colon, most = text.partition(":")
    try:
        if colon:
            return WorkerRange(min=int(least), max=int(most))
        if int(text) >= 1:
            return int(text)
    except ValueError:  # pydantic's is one too
        pass
    raise SpecError(f"--workers {text}: expected a number from 1, or MIN:MAX")


def _job(path: Path, limit: int | None = None) -> JobSpec:
    return load_job(path, {"limit": limit} if limit is not None else None)


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for heading in headings:
        justify: Literal["left", "right"] = "right" if heading in ("cpus", "gpus") else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def _settings(cls: Any) -> Table:
    """Return what a job may say about an operator or a trainer."""
    table = _table("setting", "type", "default", "meaning")
    settings = cls.Config.model_json_schema()["properties"]
    for field in _own_first(cls.Config):
        if field != "name":
            info = settings[field]
            default = json.dumps(info["default"]) if "default" in info else "required"
            meaning = info.get("description", "").replace("``", "`")
            table.add_row(field, Text(_kind(info)), Text(default), Text(meaning))
    return table


def _facts() -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    return facts


def _fields_of(cls: Any) -> Table:
    """Return what an operator of default settings reads and adds, what it needs, and its origin."""
    from operators.base import Operator

    facts = _facts()
    try:
        step = cls(cls.Config())
    except (ValueError, TokenmillError):
        facts.add_row("stage", cls.stage)
        facts.add_row("fields", "depend on the settings")
    else:
        for heading, specs in (
            ("reads", step.inputs),
            ("adds", step.outputs if isinstance(step, Operator) else {}),
        ):
            for i, (field, spec) in enumerate(specs.items()):
                optional = heading == "reads" and field in step.optional_inputs
                text = f"{field}: {spec}{', where it is there' if optional else ''}"
                facts.add_row("" if i else heading, Text(text))
        offers = step.offers if isinstance(step, Operator) else {}
        for i, (field, about) in enumerate(offers.items()):
            facts.add_row("" if i else "when asked", Text(f"{field} {about}"))
        needs = step.resources
        gpus = f", {needs.gpus:g} GPUs" if needs.gpus else ""
        cores = f"{needs.cpus:g} core{'s' * (needs.cpus != 1)}"
        facts.add_row("stage", f"{cls.stage} ({cores}{gpus})")
    for heading, attribute in (("paper", "paper"), ("licence", "weights_license")):
        if hasattr(cls, attribute):  # tokenizers of images have them
            facts.add_row(heading, Text(getattr(cls, attribute)))
    agreement = getattr(cls, "min_agreement", {})
    if agreement:
        shares = ", ".join(f"{how} {share:g}" for how, share in agreement.items())
        facts.add_row("agrees", Text(f"{shares}: ids as the authors', at least, on golden images"))
    return facts


def _own_first(config: Any) -> list[str]:
    """Return the settings of an operator: its own, then those that all of its kind have."""
    names: list[str] = []
    for cls in reversed(config.__mro__):
        names = [name for name in getattr(cls, "model_fields", ()) if name not in names] + names
    return names


def _kind(info: dict[str, Any]) -> str:
    """Say which values a setting takes, from its JSON schema."""
    kinds: list[str] = []
    for choice in info.get("anyOf", [info]):
        if "enum" in choice or "const" in choice:
            kinds += map(str, choice.get("enum", [choice.get("const")]))
            continue
        kind = _KINDS.get(choice.get("type", ""), "mapping")
        low, high = choice.get("minimum"), choice.get("maximum")
        if low is not None and high is not None:
            kind = f"{kind}, {low:,} to {high:,}"
        elif low is not None:
            kind = f"{kind} from {low:,}"
        kinds.append(kind)
    return " | ".join(kinds)


_KINDS = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "string": "text",
}
