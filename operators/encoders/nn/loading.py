"""Build vision models of transformers, with stored weights or random ones."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging

from operators.encoders.nn import timm_tower
from operators.encoders.nn.attention import NAME
from operators.encoders.nn.tower import model_class
from operators.errors import SetupError

_NOT_NEEDED = re.compile(r"^pooler\.|\.pooler\.|mask_token$|^head\.|\.head\.")
"""Parameters that features do not depend on: checkpoints of classifiers lack some of them."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.\d+\.")
_OTHER_MODEL = re.compile(r"^(?:text_model|language_model|decoder)\.")


def load(config: Any, tensors: Mapping[str, torch.Tensor], where: str) -> Any:
    """Build a model of stored tensors, in float32 on the CPU.

    Transformers translates the names that older versions of it wrote.

    Raises:
        SetupError: tensors are missing or of another shape, or there are more layers of them.
    """
    if isinstance(config, timm_tower.TimmConfig):
        return timm_tower.load(config, tensors, where)
    cls = model_class(config, where)
    with _quiet():
        model, report = cls.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            attn_implementation=NAME,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            output_loading_info=True,
        )
    missing = sorted(name for name in report["missing_keys"] if not _NOT_NEEDED.search(name))
    unexpected = sorted(
        name
        for name in report["unexpected_keys"]
        if _LAYER.search(name) and not _OTHER_MODEL.match(name)
    )
    misshapen = sorted(str(name) for name, *_ in report["mismatched_keys"])
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    parts = [f"{len(names)} {what}: {names[0]}" for what, names in found.items() if names]
    if parts:
        raise SetupError(
            f"{where}: the weights are not of the {config.model_type} that config.json describes: "
            f"tensors {'; '.join(parts)}",
            hint="config.json and weights must be of one model",
        )
    return model.eval().requires_grad_(False)


def random(config: Any, seed: int, where: str) -> Any:
    """Build a model with transformers' own initial values, drawn from ``seed`` on the CPU."""
    cls = model_class(config, where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls._from_config(config, attn_implementation=NAME)
    return model.eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no bar and no table of what was loaded: errors say what matters."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
