"""Files of methods from the hub: which one is asked for, and what identity says of it."""

from pathlib import Path

import pytest

from operators.errors import SetupError
from operators.model_files import DirectFiles, LocalFile, ModelFile
from operators.text.krbert import KRBert, KRBertConfig
from tests.method_files import krbert_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(DirectFiles):
    """A hub with one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[ModelFile] = []

    def fetch(self, file: ModelFile) -> LocalFile | None:
        self.asked.append(file)
        if file.location == "gone/away":
            raise SetupError("no such repository", hint="check the name")
        return LocalFile(self.path, COMMIT)


def operator(tmp_path: Path, tokenizer: str, revision: str | None = None) -> tuple[KRBert, Hub]:
    hub = Hub(Path(krbert_file(tmp_path)))
    op = KRBert(KRBertConfig(tokenizer=tokenizer, revision=revision))
    op.model_files = hub
    return op, hub


def test_a_moving_revision_is_warned_about(tmp_path: Path) -> None:
    op, hub = operator(tmp_path, "owner/name")
    found = op.identity()
    assert hub.asked == [ModelFile("hub", "owner/name", "vocab.txt", None)]
    assert found["commit"] == COMMIT
    assert found["warning"] == (f"owner/name: revision 'main' may move; set revision: {COMMIT}")


def test_a_commit_is_not(tmp_path: Path) -> None:
    op, _ = operator(tmp_path, "owner/name", COMMIT)
    assert "warning" not in op.identity()


def test_errors_of_the_hub_name_the_operator(tmp_path: Path) -> None:
    op, _ = operator(tmp_path, "gone/away")
    with pytest.raises(SetupError, match=r"krbert: tokenizer 'gone/away': no such .*check the"):
        op.identity()


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    op, hub = operator(tmp_path, "owner/name")
    hub.path = tmp_path  # a folder stands where the file was
    with pytest.raises(SetupError, match=r"krbert: tokenizer 'owner/name': Is a directory"):
        op.identity()
