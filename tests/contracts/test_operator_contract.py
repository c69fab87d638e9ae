"""One suite over every operator and filter: what the engine relies on."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from operators import registry
from operators.base import Batch, FieldSpec, Filter, Operator, OperatorConfig, Ragged, Verdict
from operators.columns import take_batch
from operators.testing import assert_operator_contract
from operators.text.boundlessbpe import BoundlessBPETrainer, BoundlessBPETrainerConfig
from tests.golden_tokenizer import GoldenModel, models
from tests.method_files import (
    FACTORIZER_FILE,
    hybrid_folder,
    krbert_file,
    lib_file,
    splinter_file,
)
from tests.reducer_cases import CASES as REDUCERS
from tests.reducer_cases import ReducerCase, batch_for, reducer
from tests.text_documents import documents, quiet, some_texts

ROWS = 5
RNG = np.random.default_rng(0)
KEYS = pa.array(list("abcde"), pa.large_string())
TEXTS = pa.array(["", "a", "héllo wörld", "x" * 300, "日本語"], pa.large_string())


def photos(num: int) -> list[Image.Image]:
    sizes = [(40 + 7 * i, 90 - 9 * i) for i in range(num)]
    return [
        Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def encoded(num: int) -> pa.Array:
    files = []
    for image in photos(num):
        sink = pa.BufferOutputStream()
        image.save(sink, "PNG")
        files.append(sink.getvalue().to_pybytes())
    return pa.array(files, pa.large_binary())


def reduced(case: ReducerCase, _: Path) -> tuple[dict[str, Any], Batch]:
    fixed: dict[str, Any] = {"num_layers": case.num_layers, "crops": case.crops}
    op = reducer(case.name, case.num_tokens, **fixed, **case.options)
    batch = batch_for(op, ROWS)
    batch |= {name: column.numpy() for name, column in batch.items() if name != "key"}
    return {"device": "cpu", **case.options}, batch


def ids(num: int, below: int) -> Ragged:
    lengths = RNG.integers(0, 9, num)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Ragged(RNG.integers(0, below, offsets[-1]).astype(np.uint16), offsets)


def conversations(num: int) -> pa.Array:
    turns = [{"role": role, "content": role * i} for i in range(3) for role in ("user", "bot")]
    return pa.array([json.dumps(turns[: i + 1]) for i in range(num)], pa.large_string())


def squares(num: int, side: int) -> np.ndarray:
    return RNG.integers(0, 256, (num, side, side, 3), dtype=np.uint8)


BYTES = tuple(bytes([byte]) for byte in range(256))


def hex_vocabulary(folder: Path, *tokens: bytes) -> str:
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token.hex()}\n" for token in tokens))
    return str(path)


GOLDEN_TOKENIZER = "tests/golden/text/bytelevel_bpe.json"

Case = Callable[[Path], tuple[dict[str, Any], Batch]]


def golden(model: GoldenModel) -> Case:
    """The case of an image tokenizer: its golden model."""

    def case(folder: Path) -> tuple[dict[str, Any], Batch]:
        weights = model.write(folder)
        batch = {"image": model.pixels(model.build(weights))[:ROWS]}
        return {"weights": weights, "device": "cpu", **model.options}, batch

    return case


def boundlessbpe(folder: Path) -> tuple[dict[str, Any], Batch]:
    """The case of an operator that reads what its trainer wrote."""
    config = BoundlessBPETrainerConfig(vocab_size=300)
    files = BoundlessBPETrainer(config).train(documents(some_texts(20)), quiet)
    path = folder / "tokenizer.model"
    path.write_bytes(files["tokenizer.model"])
    return {"tokenizer": str(path)}, {"text": TEXTS}


CASES: dict[str, Case] = {
    **{model.operator: golden(model) for model in models()},
    "adm_center_crop": lambda _: ({"size": 32}, {"image": photos(ROWS)}),
    "boundlessbpe": boundlessbpe,
    "byte_patches": lambda _: ({}, {"text": TEXTS}),
    "byte_text": lambda _: ({"add_bos": True}, {"text": TEXTS}),
    "chat": lambda _: (
        {
            "tokenizer": {"name": "byte_text"},
            "vocabulary": [{"special": ["<user>", "<bot>", "<end>"]}, {"text": 256}],
            "roles": {
                "user": {"before": ["<user>", {"text": "\n"}]},
                "bot": {"before": ["<bot>"], "after": ["<end>"], "loss": True},
            },
        },
        {"messages": conversations(ROWS)},
    ),
    "center_crop": lambda _: ({"size": 32}, {"image": photos(ROWS)}),
    "crops": lambda _: (
        {"size": 32, "kind": "random", "count": 3, "flip": True},
        {"image": photos(ROWS), "key": pa.array(list("abcde"), pa.large_string())},
    ),
    "dct_fsq": lambda _: ({"side": 64}, {"image": squares(ROWS, 64)}),
    "decode_image": lambda _: ({}, {"image_bytes": encoded(ROWS)}),
    "factorizer": lambda _: ({"tokenizer": FACTORIZER_FILE}, {"text": TEXTS}),
    "hybrid_morphology": lambda folder: (
        {"dictionaries": hybrid_folder(folder)},
        {"text": TEXTS},
    ),
    "krbert": lambda folder: ({"tokenizer": krbert_file(folder)}, {"text": TEXTS}),
    "lib": lambda folder: ({"tokenizer": lib_file(folder)}, {"text": TEXTS}),
    "digit_groups": lambda _: ({}, {"text": TEXTS}),
    "hat_words": lambda _: ({"max_word_bytes": 100}, {"text": TEXTS}),
    "fim": lambda _: (
        {"sentinels": {"prefix": 100, "suffix": 101, "middle": 102}},
        {"tokens": ids(ROWS, 100), "key": KEYS},
    ),
    "fim_text": lambda _: ({"rate": 0.8}, {"text": TEXTS, "key": KEYS}),
    "grid_order": lambda _: (
        {"order": "spiral"},
        {"tokens": RNG.integers(0, 9, (ROWS, 16)).astype(np.uint16)},
    ),
    "interleave": lambda _: (
        {
            "vocabulary": [{"special": ["<boi>"]}, {"text": 100}, {"image": 9}],
            "text": {"text": "tokens"},
            "images": {"image": "codes"},
            "alternating": {"first": "image"},
            "before": ["<boi>"],
            "loss_on": ["text", "before"],
        },
        {
            "tokens": Ragged(np.arange(3 * ROWS, dtype=np.uint8), 3 * np.arange(ROWS + 1)),
            "codes": RNG.integers(0, 9, (ROWS, 2, 4)).astype(np.uint16),
            "part_lengths": np.full((ROWS, 2), [1, 2]),
        },
    ),
    "length_filter": lambda _: ({"min_length": 2, "max_length": 5}, {"tokens": ids(ROWS, 9)}),
    "pathpiece": lambda folder: (
        {"tokenizer": hex_vocabulary(folder, *BYTES, b"he", b"ll", b"xxxxx")},
        {"text": TEXTS},
    ),
    "numeric_tokens": lambda _: ({}, {"text": TEXTS}),
    "resize": lambda _: ({"size": 32}, {"image": photos(ROWS)}),
    "sage": lambda folder: (
        {"tokenizer": hex_vocabulary(folder, *BYTES, b"he", b"ll", b"xxxxx"), "add_eos": True},
        {"text": TEXTS},
    ),
    "sequence": lambda _: (
        {
            "vocabulary": [{"special": ["<b>"]}, {"text": 100}],
            "template": ["<b>", {"text": "caption"}],
        },
        {"caption": ids(ROWS, 100)},
    ),
    "splinter": lambda folder: ({"tokenizer": splinter_file(folder)}, {"text": TEXTS}),
    "square_crop": lambda _: ({}, {"image": photos(ROWS)}),
    "text4seg": lambda _: (
        {"labels": ["others", "cat"], "grid": 4},
        {"mask": RNG.integers(0, 2, (ROWS, 9, 7)).astype(np.uint8)},
    ),
    "text_tokenizer": lambda _: ({"tokenizer": GOLDEN_TOKENIZER}, {"text": TEXTS}),
    "text_template": lambda _: (
        {"template": ["# {title}\n", {"text": "{body}!", "unless_empty": "body"}]},
        {"title": TEXTS, "body": TEXTS},
    ),
    "vocabulary_inference": lambda _: (
        {"tokenizer": GOLDEN_TOKENIZER, "method": "bpe_dropout"},
        {"text": TEXTS, "key": pa.array(list("abcde"), pa.large_string())},
    ),
}


for _case in REDUCERS:
    CASES.setdefault(_case.name, partial(reduced, _case))


def build(name: str, tmp_path: Path) -> tuple[Any, Batch]:
    settings, batch = CASES[name](tmp_path)
    config: OperatorConfig = registry.get(name).Config.model_validate({"name": name, **settings})
    step = registry.build(config)
    found = {n: column.shape[1:] for n, column in batch.items() if isinstance(column, np.ndarray)}
    step.bind({n: FieldSpec(str(batch[n].dtype), shape) for n, shape in found.items()})
    return step, batch


def test_every_operator_is_in_this_suite() -> None:
    assert set(CASES) == set(registry.names())


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, tmp_path: Path) -> None:
    step, batch = build(name, tmp_path)
    if isinstance(step, Operator):
        assert_operator_contract(step, batch)
        return
    assert isinstance(step, Filter)
    step.setup(step.device)
    verdict = step(batch)
    assert isinstance(verdict, Verdict)
    assert verdict.codes.dtype == np.uint8
    assert verdict.codes.max(initial=0) <= len(verdict.reasons)
    for row in range(ROWS):
        alone = step(take_batch(batch, np.array([row])))
        assert alone.codes.tolist() == [verdict.codes[row]]


@pytest.mark.parametrize("name", CASES)
def test_describes_itself_without_being_set_up(name: str, tmp_path: Path) -> None:
    step, _ = build(name, tmp_path)
    assert step.config.name == name
    assert (type(step).__doc__ or "").strip()
    assert step.resources.cpus > 0
    json.dumps({"identity": dict(step.identity()), "version": step.version})
    if isinstance(step, Operator):
        json.dumps(dict(step.metadata()))


@pytest.mark.parametrize("name", CASES)
def test_config_survives_pickling_and_json(name: str, tmp_path: Path) -> None:
    step, _ = build(name, tmp_path)
    config = step.config
    assert pickle.loads(pickle.dumps(config)) == config
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", CASES)
def test_every_setting_is_described(name: str) -> None:
    for field, info in registry.get(name).Config.model_fields.items():
        assert field == "name" or info.description, f"{name}.{field} has no description"


def test_listing_operators_does_not_import_torch() -> None:
    code = "import sys; import operators.registry as r; r.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
