"""Encode images to features with a vision transformer, and tell reducers what it attends to."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from operators.base import Batch, Column, FieldSpec, Operator, OperatorConfig, Ragged, Resources
from operators.columns import check_column, num_rows, take_batch, to_numpy
from operators.encoders.checkpoint import EXTRA, EncoderCheckpoint
from operators.encoders.families import PUBLISHED, Preparation, Size, Steps, preparation_of
from operators.errors import ContractError, RowErrors, SampleError, SetupError
from operators.extras import import_extra
from operators.image.anyres import kept_tokens
from operators.image_tokenizers.base import RandomWeights
from operators.reducers.base import SIGNALS

if TYPE_CHECKING:
    import torch

    from operators.encoders.nn.tower import Tower, TowerShape

Layer = int | Literal["last_hidden_state"]


_MAPS = ("attention", "cls_attention", "cls_logits")
_SIGNALS = (*_MAPS, "keys", "values")
"""Those of ``SIGNALS`` that an attention has; maps are of ``attention_layers``."""


class VisionEncoderConfig(OperatorConfig):
    """What a job may say about ``vision_encoder``."""

    name: Literal["vision_encoder"] = "vision_encoder"
    weights: Annotated[
        str | RandomWeights[Size],
        Field(
            description="Hub id, a folder or its URL, in the format of transformers (config.json, "
            "preprocessor_config.json and weights; of a larger model the vision part is read) or "
            "of timm, timm:NAME, or {random_seed, size}."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(description="Commit, tag or branch of a hub id; a full commit pins the weights."),
    ] = None
    device: Annotated[
        Literal["cuda", "cpu"],
        Field(description="Part of the recipe: features may differ by rounding."),
    ] = "cuda"
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Field(description="What is computed in. bfloat16 is faster on a GPU."),
    ] = "float32"
    store_dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        Field(description="Of features, class token, keys and values; attention is float32."),
    ] = "float32"
    layers: Annotated[
        tuple[Layer, ...],
        Field(
            min_length=1,
            description="Hidden states that become features, several side by side: 0 is what goes "
            "into the first layer, -1 what the last one gives, -2 (LLaVA) the one before; "
            "last_hidden_state is -1 after the model's last norm, as the model itself gives it.",
        ),
    ] = (-2,)
    attention_layers: Annotated[
        tuple[int, ...],
        Field(min_length=1, description="Layers whose attention is given when asked; -1 is last."),
    ] = (-2,)
    key_layer: Annotated[int, Field(description="Layer of the keys and values.")] = -2
    cls_attention: Annotated[
        Literal["class_token", "received"],
        Field(
            description="What `cls_attention` is: the class token's attention, or, for models "
            "without one, the mean attention that a token gets from all image tokens."
        ),
    ] = "class_token"
    interpolate: Annotated[
        bool,
        Field(
            description="Fit the position embeddings of CLIP, SigLIP or ViT to images of another "
            "size; DINOv2, DINOv3, InternViT and RADIO do so always."
        ),
    ] = False
    tower_batch: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description="Images and crops that the model is given at once, always as many: what "
            "is short is filled up, so that rounding does not depend on a row's company.",
        ),
    ] = 32


class VisionEncoder(Operator[VisionEncoderConfig]):
    """Maps RGB images to features of a vision transformer's tokens.

    Reads ``image`` uint8 [H, W, 3]; adds ``features`` [N, C]: the image tokens in raster order,
    without class and register tokens, of one hidden state or of several side by side. Views
    [V, H, W, 3] and crops [*, H, W, 3] give features with V or * in front.

    Further fields are computed only when a later operator reads them, or the job writes them. The
    attention stays fused in all layers; where a map is asked, its layer alone is paid for, and the
    class token's row costs no more than one row.

    - ``cls`` [C]: the class token of the same hidden states;
    - ``cls_attention`` [layers, H, N], ``attention`` [layers, H, N, N]: softmax rows of
      ``attention_layers`` at image tokens, not normalised again; ``cls_logits``: the class
      token's before the softmax;
    - ``keys``, ``values`` [N, H, D] of ``key_layer``, as the attention uses them: after norms and
      rotary positions;
    - ``token_mask`` bool [*, N], of crops of ``anyres_crops``: False for tokens that LLaVA-NeXT's
      unpadding drops.

    Models are those of transformers whose attention goes through its attention interface: CLIP,
    SigLIP, SigLIP2, DINOv2 with and without registers, DINOv3, InternViT (its authors' files too),
    ViT, RADIO (the first of its class tokens is taken), and others of that build by model_type; and
    those of timm that are a plain list of blocks, where timm is installed. Layers behind the last
    one that is needed are not run. Pixels are normalised by what preprocessor_config.json says, or
    pretrained_cfg of timm.

    Checked on small random models of every family above: hidden states and attention maps against
    transformers' own eager attention, to 1e-5; of timm's against timm without fused attention.
    """

    Config = VisionEncoderConfig
    stage = "device"

    def __init__(self, config: VisionEncoderConfig) -> None:
        super().__init__(config)
        if config.revision is not None and isinstance(config.weights, RandomWeights):
            raise ContractError(
                f"{config.name}: revision={config.revision!r} is given, but the weights are random",
                hint="remove the revision, or name a checkpoint as `weights`",
            )
        self._given: Mapping[str, FieldSpec] | None = None
        self._asked: frozenset[str] = frozenset()
        self._device: str = config.device
        self._tower: Tower | None = None

    # --- the operator ---------------------------------------------------------------------------

    def provide(self, names: frozenset[str]) -> None:
        """Give these as well."""
        self._asked = names

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take views, crops and sides from the images of the job."""
        self._given = fields

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, and ``crop_grid`` where its crops have one."""
        grid = {"crop_grid": FieldSpec("int32", (4,))}
        if self._given is None:
            return {"image": FieldSpec("uint8", (None, None, 3)), **grid}
        image = {"image": FieldSpec("uint8", (*self._crops, *self._sides, 3))}
        return {**image, **grid} if self._has_grid else image

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """``features``, and what was asked for."""
        shape, crops, dtype = self._shape, self._crops, self.config.store_dtype
        tokens, heads = shape.num_tokens, shape.heads
        channels, layers = shape.channels * len(self._layers), len(self._attention_layers)
        assert self._key_layer < shape.num_layers  # it is there, asked for or not
        per_token = FieldSpec(dtype, (*crops, tokens, heads, shape.head_dim))
        every = {
            "features": FieldSpec(dtype, (*crops, tokens, channels)),
            "cls": FieldSpec(dtype, (*crops, channels)),
            "cls_attention": FieldSpec("float32", (*crops, layers, heads, tokens)),
            "cls_logits": FieldSpec("float32", (*crops, layers, heads, tokens)),
            "attention": FieldSpec("float32", (*crops, layers, heads, tokens, tokens)),
            "keys": per_token,
            "values": per_token,
            "token_mask": FieldSpec("bool", (*crops, tokens)),
        }
        return {name: every[name] for name in ("features", *sorted(self._asked))}

    @property
    def offers(self) -> Mapping[str, str]:
        """The class token, signals, and the mask of padded crops, where there are such."""
        found = {name: SIGNALS[name][1] for name in _SIGNALS}
        found["cls"] = "[C]: the class token"
        found["token_mask"] = "bool [N]: False for padding"
        return {name: about for name, about in found.items() if name not in self.lacks}

    @property
    def lacks(self) -> Mapping[str, str]:
        """What the model has no class token for, or the images no layout."""
        found = {}
        if not self._has_grid:
            found["token_mask"] = "only crops of anyres_crops are padded; give it their crop_grid"
        if not self._shape.has_class_token:
            model = self._config.model_type
            found["cls"] = found["cls_logits"] = f"{model} has no class token"
            if self.config.cls_attention == "class_token":
                found["cls_attention"] = (
                    f"{model} has no class token; `cls_attention: received` gives the mean "
                    "attention that each token gets"
                )
        return found

    @property
    def resources(self) -> Resources:
        """One core, and one GPU on ``cuda``."""
        return Resources(cpus=1.0, gpus=1.0 if self.config.device == "cuda" else 0.0)

    @property
    def device(self) -> str:
        """The configured device."""
        return self.config.device

    @property
    def preprocessing(self) -> Steps:
        """Image operators that prepare images as the model's authors do."""
        return self._preparation.preprocessing

    def setup(self, device: str) -> None:
        """Load the model, and cut off what is not needed."""
        import torch

        from operators.encoders.nn import loading
        from operators.encoders.nn.tower import Tower

        config, where, weights = self.config, self.config.name, self.config.weights
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise SetupError(
                f"{where}: device is cuda, but torch finds no GPU",
                hint="run where there is one, or set `device: cpu` (slow, but it works)",
            )
        shape = self._shape
        if isinstance(weights, str):
            model = loading.load(self._config, self._checkpoint.tensors(), f"{where}: {weights}")
        else:
            model = loading.random(self._config, weights.random_seed, where)
        model.to(device=device, dtype=getattr(torch, config.dtype))
        self._device = device
        self._tower = Tower(
            model,
            shape,
            layers=self._layers,
            signals=self._signals,
            interpolate=config.interpolate,
            where=where,
        )

    def __call__(self, batch: Batch) -> Batch:
        """Encode a batch; see the class."""
        import torch

        images = batch["image"]
        rows = num_rows(images)
        check_column("image", images, self.inputs["image"], rows, self.config.name)
        crops = self._crops
        offsets = None
        if isinstance(images, Ragged):
            offsets, pixels = images.offsets, torch.from_numpy(images.values)
        else:
            pixels = images.flatten(0, 1) if crops else images
        parts = [self._encode(chunk, offsets is not None) for chunk in self._chunks(pixels)]
        found: dict[str, Column] = {}
        finite = torch.ones(len(pixels), dtype=torch.bool)
        for name, spec in self.outputs.items():
            if name == "token_mask":
                continue
            empty = torch.empty(
                (0, *(n or 0 for n in spec.shape[len(crops) :])), dtype=getattr(torch, spec.dtype)
            )
            column = torch.cat([part[name] for part in parts]) if parts else empty
            finite &= torch.isfinite(column.flatten(1)).all(dim=1).cpu()
            if offsets is not None:
                found[name] = Ragged(to_numpy(column), offsets)
            else:
                found[name] = column.reshape(rows, *crops, *column.shape[1:]) if crops else column
        if "token_mask" in self._asked:
            found["token_mask"] = self._token_mask(batch["crop_grid"], images)
        return self._good(found, finite.numpy(), rows, offsets)

    def identity(self) -> Mapping[str, object]:
        """Digests of the weights, or that they are random, and the library's version."""
        name, weights = self.config.name, self.config.weights
        if isinstance(weights, RandomWeights):
            transformers = import_extra("transformers", extra=EXTRA, where=name)
            return {
                "transformers": transformers.__version__,
                "random_weights": True,
                "warning": f"{name} has random weights: its features mean nothing, use them for "
                "smoke and speed runs only",
            }
        found = {**self._checkpoint.identity(), **self._checkpoint.library}
        if self._checkpoint.is_pinned:
            return found
        return {
            **found,
            "warning": f"{name}: {weights} is not pinned and may change between runs; add "
            f"`revision: {found['revision']}`",
        }

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the features must know."""
        weights, prepared = self.config.weights, self._preparation
        published = [each for each in PUBLISHED.values() if each.weights == weights]
        return {
            "model_type": self._config.model_type,
            "checkpoint": weights if isinstance(weights, str) else None,
            "weights_license": published[0].license if published else None,
            "grid": list(self._shape.grid),
            "layers": list(self._layers),
            "attention_layers": list(self._attention_layers),
            "key_layer": self._key_layer,
            "image_sides": list(self._sides),
            "normalization": {
                "mean": list(prepared.normalization.mean),
                "std": list(prepared.normalization.std),
            },
            "preprocessing": [dict(step) for step in prepared.preprocessing],
        }

    # --- parts ----------------------------------------------------------------------------------

    @cached_property
    def _checkpoint(self) -> EncoderCheckpoint:
        weights, name = self.config.weights, self.config.name
        assert isinstance(weights, str)
        return EncoderCheckpoint(
            weights, revision=self.config.revision, files=self.model_files, where=name
        )

    @cached_property
    def _config(self) -> Any:
        """The model's configuration, of transformers."""
        weights = self.config.weights
        if isinstance(weights, str):
            return self._checkpoint.config
        transformers = import_extra("transformers", extra=EXTRA, where=self.config.name)
        published = PUBLISHED[weights.size]
        return transformers.CONFIG_MAPPING[published.model_type](**published.sizes)

    @cached_property
    def _preparation(self) -> Preparation:
        """How images become what the model reads."""
        weights, where = self.config.weights, self.config.name
        if not isinstance(weights, str):
            published = PUBLISHED[weights.size]
            return Preparation(published.side, published.normalization, published.preprocessing)
        if self._checkpoint.is_timm:
            prepared: Preparation = self._config.preparation
            return prepared
        processor = self._checkpoint.processor
        if processor is None:
            raise SetupError(
                f"{where}: {weights} has no preprocessor_config.json, which says how pixels are "
                "normalised",
                hint="put it beside config.json: image_mean, image_std, size, resample",
            )
        return preparation_of(processor, self._config.model_type, f"{where}: {weights}")

    @property
    def _crops(self) -> tuple[int | None, ...]:
        """What stands in front of the image: nothing, the number of views, or None for crops."""
        image = (self._given or {}).get("image")
        return image.shape[:1] if image is not None and len(image.shape) == 4 else ()

    @property
    def _sides(self) -> tuple[int, int]:
        """Height and width of the images: the job's, or those that the model was trained at."""
        image = (self._given or {}).get("image")
        if image is not None and image.dtype == "uint8" and len(image.shape) in (3, 4):
            height, width = image.shape[-3:-1]
            if height is not None and width is not None:
                return (height, width)
        side = self._preparation.side
        if side is None:
            size = getattr(self._config, "image_size", 224)
            side = int(size if isinstance(size, int) else size[0])
        return (side, side)

    @property
    def _has_grid(self) -> bool:
        """Whether the images are crops of a known layout."""
        return self._crops == (None,) and "crop_grid" in (self._given or {})

    @property
    def _shape(self) -> "TowerShape":
        """What the model gives for images of these sides."""
        import_extra("transformers", extra=EXTRA, where=self.config.name)
        from operators.encoders.nn.tower import shape_of

        interpolate = self.config.interpolate
        return shape_of(self._config, self._sides, interpolate=interpolate, where=self.config.name)

    @property
    def _layers(self) -> Sequence[Layer]:
        """The hidden states, counted from 0."""
        shape, where = self._shape, self.config.name
        return [
            layer if isinstance(layer, str) else shape.state(layer, where)
            for layer in self.config.layers
        ]

    @property
    def _attention_layers(self) -> Sequence[int]:
        shape, where = self._shape, self.config.name
        return [
            shape.layer(layer, where, "attention_layers") for layer in self.config.attention_layers
        ]

    @property
    def _key_layer(self) -> int:
        return self._shape.layer(self.config.key_layer, self.config.name, "key_layer")

    @property
    def _signals(self) -> Mapping[int, frozenset[str]]:
        """Layer -> what is to be noted of it."""
        found: dict[int, frozenset[str]] = {}
        for name in sorted(self._asked & set(_SIGNALS)):
            for layer in self._attention_layers if name in _MAPS else (self._key_layer,):
                found[layer] = found.get(layer, frozenset()) | {self._noted(name)}
        return found

    def _noted(self, name: str) -> str:
        """Return what the tower calls a signal."""
        is_received = name == "cls_attention" and self.config.cls_attention == "received"
        return "received_attention" if is_received else name

    def _chunks(self, pixels: "torch.Tensor") -> "list[torch.Tensor]":
        return list(pixels.split(self.config.tower_batch)) if len(pixels) else []

    def _encode(self, pixels: "torch.Tensor", to_cpu: bool) -> "dict[str, torch.Tensor]":
        """Encode up to ``tower_batch`` images, uint8 [B, H, W, 3]."""
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        assert self._tower is not None, "setup comes first"
        config, num = self.config, len(pixels)
        full = pixels
        if num < config.tower_batch:
            full = pixels.new_zeros((config.tower_batch, *pixels.shape[1:]))
            full[:num] = pixels
        full = full.to(self._device).permute(0, 3, 1, 2).contiguous()
        normalised = self._preparation.normalization.of(full)
        exact = config.dtype == "float32"
        with torch.inference_mode(), float32_arithmetic(tf32=not exact):
            encoded = self._tower(normalised.to(getattr(torch, config.dtype)))
        found = {}
        for name, spec in self.outputs.items():
            if name == "token_mask":
                continue
            if name in _MAPS:
                maps = [encoded[layer, self._noted(name)] for layer in self._attention_layers]
                column = torch.stack(maps, dim=1)
            elif name in _SIGNALS:
                column = encoded[self._key_layer, name]
            else:
                column = encoded[name]
            column = column[:num].to(getattr(torch, spec.dtype))
            found[name] = column.cpu() if to_cpu else column.contiguous()
        return found

    def _token_mask(self, crop_grid: "torch.Tensor", images: Ragged) -> Ragged:
        """Return which tokens of the crops are not padding."""
        layouts = crop_grid.cpu().numpy()
        unlike = np.flatnonzero(layouts[:, 0] * layouts[:, 1] + 1 != images.lengths)
        if len(unlike):
            row = unlike[0]
            raise ContractError(
                f"{self.config.name}: an image has {images.lengths[row]} crops, but its crop_grid "
                f"is {layouts[row].tolist()}: {layouts[row, 0]} x {layouts[row, 1]} and one",
                hint="both come from one anyres_crops",
            )
        masks = [np.empty((0, self._shape.num_tokens), bool)]
        masks += [
            kept_tokens((height, width), (rows, columns), self._shape.grid)
            for rows, columns, height, width in layouts.tolist()
        ]
        return Ragged(np.concatenate(masks), images.offsets)

    def _good(
        self, found: dict[str, Column], finite: np.ndarray, rows: int, offsets: np.ndarray | None
    ) -> Batch:
        """Return the columns, unless rows have values that are not finite."""
        if finite.all():
            return found
        per_row = len(finite) // rows if offsets is None else np.diff(offsets)
        bad = np.unique(np.repeat(np.arange(rows), per_row)[~finite])
        why = f"{self.config.name}: NaN or infinity in {self.config.store_dtype}, expected finite"
        errors = {int(row): SampleError(why) for row in bad}
        raise RowErrors(errors, take_batch(found, np.setdiff1d(np.arange(rows), bad)))
