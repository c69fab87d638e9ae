"""``pipeline import``: what it says and writes, and what the other commands say of it."""

from pathlib import Path

import pytest

from tests.e2e.command_line import CommandLine
from tests.loader_data import rows, write_data_set

ARGS = ("--from", "megatron", "--vocab-size", "70000")


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    write_data_set(tmp_path / "data", rows(50))
    found = CommandLine(tmp_path, capsys, monkeypatch)
    inline = ("--engine", "inline")
    assert found("export", "data", "--to", "megatron", "--field", "text", *inline) == 0, found.err
    assert found("export", "data", "--to", "mds", *inline) == 0, found.err
    return found


def test_megatron(command: CommandLine) -> None:
    assert command("import", "data-megatron/text", "in", *ARGS) == 0, command.err
    tokens = len(rows(50)["text"].values)
    said = f"in: 50 samples, {tokens} tokens; 2 files, used where they lie, {4 * tokens} B\n"
    assert said == command.out
    assert command("verify", "in") == 0, command.out
    assert f"1 shards, 50 samples, {tokens} tokens" in command.out
    assert command("report", "in") == 0, command.err
    assert "in: was imported, no run has figures of it" in command.out
    assert f"ids        {tokens}    70,000" in command.out
    assert command("export", "in", "--to", "megatron", "--engine", "inline") == 0, command.err
    folder = command.folder
    for kind in ("bin", "idx"):
        again = (folder / "in-megatron" / f"ids.{kind}").read_bytes()
        assert again == (folder / "data-megatron" / f"text.{kind}").read_bytes()


def test_mds(command: CommandLine) -> None:
    args = ("--from", "mds", "--vocab-size", "70000", "--field", "text")
    assert command("import", "data-mds", "in", *args) == 0, command.err
    assert "1 files, copied into shards, " in command.out
    assert command("verify", "in") == 0, command.out


def test_a_damaged_file_is_found_and_no_repair_is_offered(command: CommandLine) -> None:
    assert command("import", "data-megatron/text", "in", *ARGS) == 0, command.err
    path = command.folder / "data-megatron" / "text.bin"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert command("verify", "in") == 5
    assert f"wrong    {path}: sha256 " in command.out
    assert "nothing that a repair could mend" in command.err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["import", "data-megatron", "in", "--from", "megatorn", *ARGS[2:]], 2, "no such format"),
        (["import", "data-megatron", "in", "--from", "megatron"], 2, "give --vocab-size, or"),
        (["import", "data-megatron", "data", *ARGS], 5, "data: holds another data set"),
        (["import", "none", "in", *ARGS], 5, "none.idx: no such object"),
        (["import", "data-megatron", "in", *ARGS[:2], "--vocab-size", "9"], 2, "said to be 9"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_wrong_use(args: list[str], code: int, says: str, command: CommandLine) -> None:
    assert command(*args) == code
    assert says in command.err
    assert not (command.folder / "in").exists()


def test_what_no_job_made(command: CommandLine) -> None:
    assert command("import", "data-megatron/text", "in", *ARGS) == 0, command.err
    for args in (("preview", "in"), ("retry", "in", "--engine", "inline")):
        assert command(*args) == 2
        assert "was imported from megatron, no job made it" in command.err
