"""Checkpoints: where they may lie, what pins them, and every way in which they do not fit."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import save_file

from operators.errors import SetupError
from operators.extras import import_extra
from operators.model_files import DirectFiles, sha256_of
from operators.weights import Checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(weights: str | Path, revision: str | None = None) -> Checkpoint:
    return Checkpoint(
        str(weights), revision=revision, files=DirectFiles(), where="some_op", extra="flextok"
    )


def write(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    return folder


def linear() -> Any:
    with torch.device("meta"):
        return torch.nn.Linear(2, 3)


GOOD = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.ones(3)}


def test_load_fills_every_parameter_in_its_dtype(tmp_path: Path) -> None:
    module = linear()
    write(tmp_path, {name: tensor.half() for name, tensor in GOOD.items()})
    assert checkpoint(tmp_path).load_into(module) == ()
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, GOOD["weight"])


def test_names_of_what_is_stored(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    assert checkpoint(tmp_path).names() == ("bias", "weight")


def test_load_leaves_other_parts_and_names_those_of_training(tmp_path: Path) -> None:
    extra = {"head.x": torch.ones(1), "decoder.x": torch.ones(1), "head.a": torch.ones(1)}
    write(tmp_path, {**GOOD, **extra})
    found = checkpoint(tmp_path).load_into(
        linear(), other_parts=["decoder."], training_only=["head."]
    )
    assert found == ("head.a", "head.x")


def test_load_strips_the_checkpoint_wrapper(tmp_path: Path) -> None:
    write(tmp_path, {f"_checkpoint_wrapped_module.{n}": tensor for n, tensor in GOOD.items()})
    module = linear()
    checkpoint(tmp_path).load_into(module)
    assert torch.equal(module.bias, GOOD["bias"])


def test_all_that_does_not_fit_is_said_at_once(tmp_path: Path) -> None:
    extra = {f"extra{i}": torch.ones(1) for i in range(6)}
    write(tmp_path, {"weight": torch.ones(2, 3), **extra})
    with pytest.raises(SetupError) as caught:
        checkpoint(tmp_path).load_into(linear())
    assert (
        "tensors 1 missing: bias; 6 unexpected: extra0, extra1, extra2, extra3, and 2 more; "
        "1 of another shape: weight [2, 3] (expected [3, 2])"
    ) in caught.value.message


def test_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SetupError, match=r"not a whole safetensors file .*; fetch the file again"):
        checkpoint(tmp_path).load_into(linear())


def test_truncated_file_without_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(SetupError, match="not a whole safetensors file"):
        checkpoint(tmp_path).config()


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"has no model\.safetensors"):
        checkpoint(tmp_path).weight_path()


@pytest.mark.parametrize("weights", ["/no/such/folder", "folder", "./a/b", "a/b/c", "a b/c"])
def test_neither_folder_nor_hub_id(weights: str) -> None:
    with pytest.raises(SetupError, match="is neither a folder nor a hub id"):
        checkpoint(weights)


def test_revision_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is a folder, but revision='main' is given"):
        checkpoint(tmp_path, revision="main")


def test_config_file_wins_over_metadata(tmp_path: Path) -> None:
    write(tmp_path, GOOD, dim="1")
    (tmp_path / "config.json").write_text('{"dim": 2}')
    assert checkpoint(tmp_path).config() == {"dim": 2}


def test_config_of_metadata_are_literals(tmp_path: Path) -> None:
    write(tmp_path, GOOD, dim="{'a': [1, None, True]}", format="pt")
    assert checkpoint(tmp_path).config() == {"dim": {"a": [1, None, True]}}


def test_no_config_at_all(tmp_path: Path) -> None:
    write(tmp_path, GOOD, format="pt")
    with pytest.raises(SetupError, match=r"has no config\.json, and .* no configuration"):
        checkpoint(tmp_path).config()


@pytest.mark.parametrize(("text", "what"), [("{", "not JSON"), ("[1]", "list, expected an object")])
def test_bad_config_file(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SetupError, match=what):
        checkpoint(tmp_path).config()


def test_identity_of_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD) / "model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of(path) == digest
    assert checkpoint(tmp_path).identity() == {"sha256": {"model.safetensors": digest}}
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint(tmp_path).identity() == {
        "sha256": {
            "model.safetensors": digest,
            "config.json": hashlib.sha256(b"{}").hexdigest(),
        }
    }
    assert checkpoint(tmp_path).is_pinned


def test_missing_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SetupError, match=r"some_op: safetensors .*pip install 'tokenmill\[x\]'"):
        import_extra("safetensors", extra="x", where="some_op")


# --- other formats, and files by their own names -------------------------------------------------


def in_file(path: str | Path, **options: Any) -> Checkpoint:
    given = {"revision": None, "weight_file": "published.pt", "config_file": None, **options}
    return Checkpoint(str(path), files=DirectFiles(), where="some_op", extra="flextok", **given)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.ckpt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"epoch": 3, "state_dict": tensors, "optimizer": {"x": torch.ones(9)}},
        lambda tensors: {"model": {"weight": torch.zeros(9)}, "ema": tensors},
        lambda tensors: {"model": tensors, "args": argparse.Namespace(lr=1e-4, sizes=[1, 2])},
    ],
    ids=["flat", "state_dict", "ema", "args"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_a_pickle(tmp_path: Path, name: str, wrap: Any, zipped: bool) -> None:
    torch.save(wrap(GOOD), tmp_path / name, _use_new_zipfile_serialization=zipped)
    module = linear()
    checkpoint = in_file(tmp_path / name, under=["ema", "model", "state_dict"])
    assert checkpoint.load_into(module) == ()
    assert torch.equal(module.weight, GOOD["weight"])
    assert torch.equal(module.bias, GOOD["bias"])


def test_the_weights_of_a_folder_may_have_another_name(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "published.pt")
    for weights in (tmp_path, tmp_path / "published.pt"):
        module = linear()
        in_file(weights).load_into(module)
        assert torch.equal(module.bias, GOOD["bias"])
    with pytest.raises(SetupError, match=r"has no other\.pt; give a folder, URL or hub id"):
        in_file(tmp_path, weight_file="other.pt").identity()


def test_what_a_file_is_called_is_not_in_its_identity(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "published.pt")
    (tmp_path / "mine.pt").write_bytes((tmp_path / "published.pt").read_bytes())
    (tmp_path / "config.json").write_text("{}")  # of something else: this model has none
    identity = {"sha256": {"published.pt": sha256_of(tmp_path / "mine.pt")}}
    for weights in (tmp_path, tmp_path / "published.pt", tmp_path / "mine.pt"):
        assert in_file(weights).identity() == identity


def test_a_configuration_lies_beside_the_file(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "config.json").write_text('{"dim": 2}')
    by_file, by_folder = checkpoint(tmp_path / "model.safetensors"), checkpoint(tmp_path)
    assert by_file.config() == {"dim": 2}
    assert by_file.identity() == by_folder.identity()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"some_op: weights='.*/none\.pt': no such file"):
        in_file(tmp_path / "none.pt").identity()
    with pytest.raises(SetupError, match="is a file, but revision='v1' is given"):
        in_file(tmp_path / "none.pt", revision="v1")


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda trap: trap, lambda trap: argparse.Namespace(x=trap)])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    content = {"state_dict": GOOD, "hyper_parameters": wrap(Trap(tmp_path / "sprung"))}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        SetupError, match=r"a\.ckpt: holds \S+, expected tensors .* save its tensors alone"
    ):
        in_file(tmp_path / "a.ckpt", under=["state_dict"]).load_into(linear())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 100, -40])
def test_truncated_pickle(tmp_path: Path, zipped: bool, kept: int) -> None:
    path = tmp_path / "a.pt"
    torch.save(GOOD, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SetupError, match=r"a\.pt: not a whole torch file .*; fetch the file again"):
        in_file(path).load_into(linear())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"epoch": 3, "loss": 0.5}, "a dict of epoch, loss"),
        ({"ema": {}, "model": GOOD}, "a dict of ema, model"),
        ([1, 2], "list"),
        ({}, "dict"),
    ],
)
def test_pickle_without_tensors(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(SetupError, match=f"{what}, expected tensors under ema, or at the top"):
        in_file(tmp_path / "a.pt", under=["ema"]).load_into(linear())


# --- the hub, without a network ------------------------------------------------------------------


class Hub:
    """A hub cache with one snapshot; ``online`` says whether the hub itself answers."""

    def __init__(self, root: Path, *, online: bool, etag: str = "") -> None:
        self.folder = root / "snapshots" / COMMIT
        self.folder.mkdir(parents=True)
        self.online, self.etag = online, etag
        self.asked: list[tuple[str, str | None]] = []

    def download(self, repo: str, name: str, *, revision: str | None) -> str:
        self.asked.append((name, revision))
        path = self.folder / name
        if path.is_file():
            return str(path)
        if self.online:
            raise RemoteEntryNotFoundError(
                "404", response=SimpleNamespace(headers={}, request=None)
            )
        raise LocalEntryNotFoundError("no connection, and not in the cache")

    def head(self, url: str) -> SimpleNamespace:
        if not self.online:
            raise ConnectionError("no route to host")
        return SimpleNamespace(commit_hash=COMMIT, etag=self.etag)


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hub.head)


def test_hub_identity_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path, online=True, etag="ab" * 32)
    use(hub, monkeypatch)
    assert checkpoint("owner/name").identity() == {
        "checkpoint": "owner/name",
        "revision": COMMIT,
        "sha256": {"model.safetensors": "ab" * 32},
    }
    assert hub.asked == []


@pytest.mark.parametrize("online", [True, False])
def test_hub_identity_of_the_cached_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    """Offline, and for small files, whose etag is not a SHA-256."""
    hub = Hub(tmp_path, online=online, etag="cd" * 20)
    use(hub, monkeypatch)
    write(hub.folder, GOOD)
    assert checkpoint("owner/name").identity() == {
        "checkpoint": "owner/name",
        "revision": COMMIT,
        "sha256": {"model.safetensors": sha256_of(hub.folder / "model.safetensors")},
    }


def test_hub_config_is_read_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, online=True)
    use(hub, monkeypatch)
    (hub.folder / "config.json").write_text(json.dumps({"dim": 3}))
    assert checkpoint("owner/name", revision="v1").config() == {"dim": 3}
    assert hub.asked == [("config.json", "v1")]


def test_hub_model_without_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path, online=True)
    use(hub, monkeypatch)
    write(hub.folder, GOOD, dim="3")
    assert checkpoint("owner/name").config() == {"dim": 3}


def test_hub_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Hub(tmp_path, online=False), monkeypatch)
    for ask in (checkpoint("owner/name").config, checkpoint("owner/name").identity):
        with pytest.raises(
            SetupError,
            match=r"some_op: (config\.json|model\.safetensors) of owner/name: not in the local "
            r"cache, and the hub cannot be reached \(LocalEntryNotFoundError: no connection.*"
            r"hf download owner/name .* copy what it fetched and give its path",
        ):
            ask()


def test_only_a_full_commit_pins_a_hub_id() -> None:
    assert checkpoint("owner/name", revision=COMMIT).is_pinned
    assert not checkpoint("owner/name", revision="main").is_pinned
    assert not checkpoint("owner/name").is_pinned
