"""A vision model of transformers: how many tokens it gives, and a forward pass that gives them.

Shapes: B images of H x W pixels, N image tokens, C channels, L layers.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import MODEL_MAPPING

from operators.encoders.nn.attention import NAME, Notes, noting
from operators.encoders.nn.timm_tower import TimmConfig, TimmModel
from operators.errors import ContractError, SetupError

Layer = int | Literal["last_hidden_state"]


@dataclass(frozen=True, slots=True)
class TowerShape:
    """What a model gives for images of one size.

    Attributes:
        grid: Rows and columns of image tokens.
        prefix: Tokens in front of them: the class token, registers.
        has_class_token: Whether the first of those is one.
        channels: Of a hidden state.
        heads: Of an attention layer.
        head_dim: Channels of a key of one head.
        num_layers: Attention layers.
        attentions: Names of their modules, in order.
        layers: Name of the list that holds the layers.
    """

    grid: tuple[int, int]
    prefix: int
    has_class_token: bool
    channels: int
    heads: int
    head_dim: int
    num_layers: int
    attentions: tuple[str, ...]
    layers: str

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def layer(self, index: int, where: str, option: str) -> int:
        """Return a layer counted from 0.

        Raises:
            ContractError: there is none.
        """
        if not -self.num_layers <= index < self.num_layers:
            raise ContractError(
                f"{where}: {option} {index}, but the model has {self.num_layers} layers",
                hint=f"give {-self.num_layers} to {self.num_layers - 1}; -1 is the last",
            )
        return index % self.num_layers

    def state(self, index: int, where: str) -> int:
        """Return which hidden state is meant: 0 is what goes into layer 0, L the last output.

        Raises:
            ContractError: there is none.
        """
        most = self.num_layers
        if not -most - 1 <= index <= most:
            raise ContractError(
                f"{where}: layers {index}, but the model has {most} layers",
                hint=f"give {-most - 1} to {most}: 0 is what goes into the first layer, "
                f"{most} or -1 what the last one gives",
            )
        return index % (most + 1)


def model_class(config: Any, where: str) -> Any:
    """Return the class of transformers that a configuration is of.

    Raises:
        SetupError: there is none, or it does not read images.
    """
    found = MODEL_MAPPING.get(type(config), None)
    found = found[0] if isinstance(found, tuple) else found
    if found is None or "pixel_values" not in inspect.signature(found.forward).parameters:
        raise SetupError(
            f"{where}: transformers has no vision model of model_type {config.model_type!r}",
            hint="give a vision transformer, or a model with a vision_config",
        )
    return found


def empty_model(config: Any, where: str) -> Any:
    """Build the model without values, on the meta device."""
    if isinstance(config, TimmConfig):
        with torch.device("meta"):
            return config.create()
    cls = model_class(config, where)
    with torch.device("meta"):
        model = cls._from_config(config, attn_implementation=NAME)
    return model.eval()


_SHAPES: dict[tuple[str, tuple[int, int], bool], TowerShape] = {}


def shape_of(config: Any, sides: tuple[int, int], *, interpolate: bool, where: str) -> TowerShape:
    """Find out what the model gives for images of these sides, by running it without values.

    A plan asks again for every field that is read later, so what was found is kept.

    Raises:
        ContractError: it does not take images of these sides.
        SetupError: it is no vision transformer whose image tokens are known.
    """
    key = (config.to_json_string(use_diff=False), sides, interpolate)
    if key not in _SHAPES:
        _SHAPES[key] = _measured(config, sides, interpolate=interpolate, where=where)
    return _SHAPES[key]


def _measured(config: Any, sides: tuple[int, int], *, interpolate: bool, where: str) -> TowerShape:
    model = empty_model(config, where)
    notes = Notes({}, 0)
    patch = _pair(getattr(config, "patch_size", None), where, config)
    try:
        with torch.inference_mode(), noting(notes):
            call = _caller(model, patch, interpolate=interpolate)
            output = call(torch.empty((1, 3, *sides), device="meta"))
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = "".join(str(error).strip().splitlines()[:1])
        raise ContractError(
            f"{where}: the model does not take images of {sides[0]} x {sides[1]} pixels ({reason})",
            hint="prepare them with the side that the model was trained at, or see `interpolate`",
        ) from None
    names = {module: name for name, module in model.named_modules()}
    attentions = tuple(names[module] for module in notes.seen)
    layers = _list_of(attentions, model, where)
    tokens, channels = output.last_hidden_state.shape[-2:]
    grid = (sides[0] // patch[0], sides[1] // patch[1])
    prefix = tokens - grid[0] * grid[1]
    if output.last_hidden_state.dim() != 3 or prefix not in _known_prefixes(config):
        raise SetupError(
            f"{where}: {config.model_type} gives {tokens} tokens for {grid[0]} x {grid[1]} "
            "patches, and it is not known which are of the image",
            hint="give a plain vision transformer",
        )
    heads, head_dim = next(iter(notes.seen.values()))
    has_class = config.has_class_token if isinstance(config, TimmConfig) else prefix > 0
    return TowerShape(
        *(grid, prefix, has_class, channels, heads, head_dim),
        num_layers=len(attentions),
        attentions=attentions,
        layers=layers,
    )


def _known_prefixes(config: Any) -> set[int]:
    """Return how many tokens a model of this kind may have in front of the image's."""
    if isinstance(config, TimmConfig):
        return {config.num_prefix_tokens}
    registers = getattr(config, "num_register_tokens", 0) or 0
    radio = {config.num_summary_tokens} if config.model_type == "radio" else set()
    return {0, 1, 1 + registers} | radio | ({2} if config.model_type == "deit" else set())


def _pair(patch: Any, where: str, config: Any) -> tuple[int, int]:
    found = (patch, patch) if isinstance(patch, int) else patch
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise SetupError(
            f"{where}: {config.model_type} has patch_size {patch!r}, expected a number of pixels",
            hint="give a plain vision transformer",
        )
    return int(found[0]), int(found[1])


def _list_of(attentions: Sequence[str], model: Any, where: str) -> str:
    """Return the name of the list of layers that hold these attention modules, one each."""
    parts = [_IN_LIST.match(name) for name in attentions]
    names = {part[1] for part in parts if part}
    if len(names) == 1:
        (name,) = names
        places = [int(part[2]) for part in parts if part]
        if places == list(range(len(parts))) == list(range(len(model.get_submodule(name)))):
            return name
    is_timm = isinstance(model, TimmModel)
    through = "torch's fused attention" if is_timm else "the attention interface of transformers"
    raise SetupError(
        f"{where}: {type(model.timm if is_timm else model).__name__} is not a list of layers with "
        f"one attention each that goes through {through}",
        hint="give a plain vision transformer",
    )


_IN_LIST = re.compile(r"(.*?)\.(\d+)\.")


def _caller(model: Any, patch: tuple[int, int], *, interpolate: bool) -> Callable[[Any], Any]:
    """Return what runs the model on normalised pixels [B, 3, H, W]."""
    takes = inspect.signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if interpolate else {}
    options = {name: value for name, value in options.items() if name in takes}
    if "spatial_shapes" not in takes:
        return lambda pixels: model(pixels, **options)

    def call_with_patches(pixels: torch.Tensor) -> Any:
        """Run SigLIP2 of any resolution, which reads patches of channels last."""
        batch, channels, height, width = pixels.shape
        rows, columns = height // patch[0], width // patch[1]
        whole = pixels[:, :, : rows * patch[0], : columns * patch[1]]
        tiles = whole.reshape(batch, channels, rows, patch[0], columns, patch[1])
        patches = tiles.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
        shapes = torch.tensor([[rows, columns]] * batch, device="cpu")
        return model(patches, pixel_attention_mask=None, spatial_shapes=shapes)

    return call_with_patches


class Tower:
    """A loaded model, cut off behind the last layer that is needed.

    Args:
        model: The model, with the attention ``NAME``.
        shape: What it gives for the images that will come.
        layers: Hidden states that are wanted, as ``TowerShape.state`` counts, or the model's
            ``last_hidden_state``.
        signals: Layer -> what is wanted of its attention, see ``Notes``.
        interpolate: Fit position embeddings to images of another size.
        where: Who asks.
    """

    def __init__(
        self,
        model: Any,
        shape: TowerShape,
        *,
        layers: Sequence[Layer],
        signals: Mapping[int, frozenset[str]],
        interpolate: bool,
        where: str,
    ) -> None:
        self._shape, self._layers = shape, tuple(layers)
        patch = _pair(model.config.patch_size, where, model.config)
        self._attentions = {
            layer: model.get_submodule(shape.attentions[layer]) for layer in signals
        }
        self._asked = {self._attentions[layer]: what for layer, what in signals.items()}
        blocks = model.get_submodule(shape.layers)
        if "last_hidden_state" not in layers:
            states = [state for state in layers if isinstance(state, int)]
            del blocks[max([1, *states, *(layer + 1 for layer in signals)]) :]
        if hasattr(model, "use_head"):  # of SigLIP; it pools what is not asked for
            model.use_head = False
        self._blocks = blocks
        self._call = _caller(model, patch, interpolate=interpolate)

    def __call__(self, pixels: torch.Tensor) -> dict[Any, torch.Tensor]:
        """Encode normalised pixels [B, 3, H, W].

        Returns:
            ``features`` [B, N, C x number of layers]; ``cls`` [B, C x number of layers] where the
            model has a class token; and (layer, what) -> the signals.
        """
        states: dict[Any, torch.Tensor] = {}
        prefix = self._shape.prefix
        notes = Notes(self._asked, prefix)
        hooks = [self._hook(state, states) for state in set(self._layers) if state != LAST]
        try:
            with noting(notes):
                states[LAST] = self._call(pixels).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        whole = torch.cat([states[state] for state in self._layers], dim=2)
        found: dict[Any, torch.Tensor] = {"features": whole[:, prefix:]}
        if self._shape.has_class_token:
            found["cls"] = whole[:, 0]
        for layer, module in self._attentions.items():
            for what in self._asked[module]:
                found[layer, what] = notes.found[module, what]
        return found

    def _hook(self, state: Any, into: dict[Any, torch.Tensor]) -> Any:
        """Note a hidden state when its layer is called."""

        def note(value: torch.Tensor) -> None:
            into[state] = value

        block = self._blocks[max(state - 1, 0)]
        return _before(block, note) if state == 0 else _after(block, note)


LAST: Literal["last_hidden_state"] = "last_hidden_state"


def _after(block: Any, note: Callable[[torch.Tensor], object]) -> Any:
    def hook(_: Any, __: Any, output: Any) -> None:
        note(output[0] if isinstance(output, tuple) else output)

    return block.register_forward_hook(hook)


def _before(block: Any, note: Callable[[torch.Tensor], object]) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(args[0] if args else kwargs["hidden_states"])

    return block.register_forward_pre_hook(hook, with_kwargs=True)
