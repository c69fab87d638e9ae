"""An encoder without weights: the mean colours of patches."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from operators.base import Batch, FieldSpec, Operator, OperatorConfig


class PatchMeansConfig(OperatorConfig):
    """Options of ``patch_means``."""

    name: Literal["patch_means"] = "patch_means"
    patch: Annotated[int, Field(ge=1, description="Side, pixels.")] = 8


class PatchMeans(Operator[PatchMeansConfig]):
    """Reads ``image`` uint8 [H, W, 3], or views [V, H, W, 3]; adds ``features`` [N, 3]."""

    Config = PatchMeansConfig
    stage = "device"

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        self._image = fields["image"]

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        return {"image": getattr(self, "_image", FieldSpec("uint8", (None, None, 3)))}

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        *views, height, width, _ = self._image.shape
        assert height is not None
        assert width is not None
        tokens = (height // self.config.patch) * (width // self.config.patch)
        return {"features": FieldSpec("float32", (*views, tokens, 3))}

    def __call__(self, batch: Batch) -> Batch:
        patch, image = self.config.patch, batch["image"]
        tall = image.float().unflatten(-2, (-1, patch)).unflatten(-4, (-1, patch))
        return {"features": tall.mean(dim=(-4, -2)).flatten(-3, -2)}
