"""What is sent to a cluster, and how its driver is followed, with a cluster that is none."""

import io
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import submit as submission
from pipeline.errors import SpecError, TransientError
from pipeline.protocols import JobState
from pipeline.report.live import FIGURES, FIGURES_MARK, LiveFigures
from pipeline.report.summary import StageFigures
from pipeline.spec import load_job
from pipeline.submit import follow, submit

JOB = """
name: texts
source: {type: jsonl, urls: "${CORPUS}/*.jsonl", fields: [text]}
operators: [{name: byte_text}]
shards: {fields: [tokens]}
output: s3://bucket/${PLACE:-here}
storage: {s3: {key: "${KEY}", client_kwargs: {region: ["${REGION}"]}}}
"""


class FakeJobs:
    """Keeps what is sent; gives the logs and states it is told to."""

    def __init__(
        self,
        logs: Sequence[Sequence[str | Exception]] = (),
        states: Sequence[JobState | Exception] = (),
    ) -> None:
        self._logs, self._states = list(logs), list(states)
        self.sent: dict[str, Any] = {}

    def submit(self, job: str, entrypoint: str, folder: Path, variables: Mapping[str, str]) -> None:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        text = (folder / "job.yaml").read_text()
        self.sent = {
            **{"id": job, "entrypoint": entrypoint, "files": files},
            **{"env": variables, "job": text},
        }

    def logs(self, job: str) -> Iterator[str]:
        for piece in self._logs.pop(0) if self._logs else ():
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def state(self, job: str) -> JobState:
        state = self._states.pop(0)
        if isinstance(state, Exception):
            raise state
        return state


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.submit.time.sleep", lambda seconds: None)


@pytest.fixture
def job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CORPUS", "KEY", "REGION"):
        monkeypatch.setenv(name, f"/value of {name}")
    path = tmp_path / "my job.yaml"
    path.write_text(JOB)
    (tmp_path / "secrets.txt").write_text("not to be sent")
    return path


def send(job_file: Path, *options: str) -> dict[str, Any]:
    jobs = FakeJobs()
    sent = submit(jobs, load_job(job_file), job_file, options, figures=False)
    assert re.fullmatch(r"texts-[0-9a-f]{8}", sent)
    assert jobs.sent["id"] == sent
    return jobs.sent


def test_the_program_and_the_job_are_sent_and_nothing_else(job_file: Path) -> None:
    sent = send(job_file, "--output", "s3://bucket/a b", "--workers", "1:8")
    assert sent["entrypoint"] == (
        "python -m pipeline run job.yaml --address auto --output 's3://bucket/a b' --workers 1:8"
    )
    assert {"job.yaml", "pipeline/cli.py", "operators/base.py"} <= sent["files"]
    assert all(name.startswith(("job.yaml", "pipeline/", "operators/")) for name in sent["files"])
    assert not [name for name in sent["files"] if name.endswith(".pyc")]
    assert sent["job"] == JOB


def test_variables_that_the_job_names_are_sent_and_no_others(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER", "not named")
    monkeypatch.delenv("PLACE", raising=False)
    expected = {name: f"/value of {name}" for name in ("CORPUS", "KEY", "REGION")}
    assert send(job_file)["env"] == {**expected, "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    jobs = FakeJobs()
    submit(jobs, load_job(job_file), job_file, [], figures=True)
    assert jobs.sent["env"][FIGURES] == "1"


def test_a_variable_that_is_not_set_is_named_before_anything_is_sent(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEY")
    jobs = FakeJobs()
    with pytest.raises(SpecError, match="environment variable KEY is not set"):
        submit(jobs, load_job(job_file), job_file, [], figures=False)
    assert jobs.sent == {}


@pytest.mark.parametrize(
    ("was", "now", "place"),
    [
        ("s3://bucket/${PLACE:-here}", "out/here", r"job\.yaml:6: output: 'out/here'"),
        ('"${CORPUS}/*.jsonl"', "data/*.jsonl", r"job\.yaml:3: source\.urls: 'data/\*\.jsonl'"),
    ],
)
def test_a_relative_place_is_refused_before_anything_is_sent(
    was: str, now: str, place: str, job_file: Path
) -> None:
    job_file.write_text(JOB.replace(was, now))
    jobs = FakeJobs()
    with pytest.raises(SpecError, match=place):
        submit(jobs, load_job(job_file), job_file, [], figures=False)
    assert jobs.sent == {}


def test_another_output_may_be_given_for_a_relative_one(job_file: Path) -> None:
    job_file.write_text(JOB.replace("s3://bucket/${PLACE:-here}", "out/here"))
    assert send(job_file, "--output", "/shared/out")


def watched(jobs: FakeJobs, *, terminal: bool = False) -> tuple[int, str]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    return follow(jobs, "raysubmit_1", console), file.getvalue()


def figures() -> LiveFigures:
    stage = StageFigures("read", 10, 1000, 0, 5.0, 500.0, 0.0, 0.5, 0.25, 0.25, 1, {})
    return LiveFigures(60.0, 30.0, 0.5, 4, 8, 1, 2, [stage])


def test_the_log_is_shown_and_the_drivers_code_returned() -> None:
    pieces = ["one\ntw", f"o\n{figures().to_line()}\n"]
    code, shown = watched(FakeJobs([pieces], [JobState("FAILED", "it failed", 4)]))
    assert (code, shown) == (4, "one\ntwo\n")


def test_figures_become_a_table_in_a_terminal() -> None:
    class Slow(FakeJobs):
        def logs(self, job: str) -> Iterator[str]:
            yield f"one\n{figures().to_line()}\n"
            threading.Event().wait(0.5)  # the table is drawn four times a second
            yield "two\n"

    code, shown = watched(Slow(states=[JobState("SUCCEEDED")]), terminal=True)
    assert code == 0
    assert "4 of 8 partitions" in shown
    assert "1 quarantined" in shown
    assert FIGURES_MARK not in shown


def test_figures_are_read_as_they_were_written() -> None:
    assert LiveFigures.from_line(figures().to_line()) == figures()
    for wrong in ("", "{", "[]", json.dumps({"stages": []}), json.dumps({"stages": 1})):
        assert LiveFigures.from_line(FIGURES_MARK + wrong) is None


def test_figures_of_another_version_are_passed_over() -> None:
    pieces = [f"{FIGURES_MARK}{{}}\n", "one\n"]
    assert watched(FakeJobs([pieces], [JobState("SUCCEEDED")])) == (0, "one\n")


def test_a_new_connection_goes_on_where_the_last_one_ended() -> None:
    logs: list[list[str | Exception]] = [
        ["one\n", "tw", TransientError("reset")],
        ["one\ntwo\nth", "ree\n"],
        ["one\ntwo\nthree\nfour"],
    ]
    states = [JobState("RUNNING"), JobState("RUNNING"), JobState("SUCCEEDED")]
    assert watched(FakeJobs(logs, states)) == (0, "one\ntwo\nthree\nfour\n")


@pytest.mark.parametrize("state", ["FAILED", "STOPPED"])
def test_a_driver_that_ends_without_a_word_is_worth_another_attempt(state: str) -> None:
    with pytest.raises(
        TransientError, match=f"ended as {state.lower()}.*the node is gone"
    ) as found:
        watched(FakeJobs([["one\n"]], [JobState(state, "the node is gone")]))
    assert found.value.exit_code == 6


def test_a_log_that_cannot_be_read_does_not_hide_the_end() -> None:
    logs: list[list[str | Exception]] = [["one\n", TransientError("its node is gone")]]
    assert watched(FakeJobs(logs, [JobState("SUCCEEDED", "", 0)])) == (0, "one\n")


def test_a_cluster_that_stays_away_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(FakeJobs):
        def state(self, job: str) -> JobState:
            raise TransientError("no answer")

    monkeypatch.setattr(submission, "PATIENCE_S", 0.05)
    with pytest.raises(TransientError, match="no answer; the job may go on all the same"):
        watched(Away())
