"""Cut several views out of an image, and say where: one field of views and one of boxes.

Shapes: N images, V views, S = size (pixels).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from operators.base import Batch, FieldSpec, Operator, OperatorConfig
from operators.columns import num_rows, take_batch
from operators.errors import ContractError, RowErrors, SampleError
from operators.image.geometry import (
    DEFAULT_MAX_PIXELS,
    MaxPixels,
    adm_geometry,
    adm_square,
    central,
    scale,
    shorter_side_to,
)

_ATTEMPTS = 10
_MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
_FITTED = ("center", "ten")  # kinds that bring the image to size before they cut

# Option -> the kinds that it means something to; all others mean something to every kind.
_KINDS_OF = {
    "count": ("random",),
    "flip": ("center", "random"),
    "seed": ("random",),
    "scale": ("random",),
    "ratio": ("random",),
    "resize": _FITTED,
    "resize_to": _FITTED,
    "max_pixels": _FITTED,
}

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class CropsConfig(OperatorConfig):
    """Options of ``crops``."""

    name: Literal["crops"] = "crops"
    kind: Annotated[
        Literal["center", "ten", "random", "boxes"],
        Field(
            description="The centre; the four corners, the centre, and these mirrored; `count` "
            "random ones; or those that a field `crop_boxes` says."
        ),
    ] = "center"
    size: Annotated[int, Field(ge=1, le=16_384, description="Side of a view, pixels.")] = 256
    count: Annotated[int, Field(ge=1, le=1024, description="Views, of kind random.")] = 1
    flip: Annotated[
        bool,
        Field(
            description="Kind center: a second, mirrored view. Kind random: mirror half of the "
            "views, by coin."
        ),
    ] = False
    resize: Annotated[
        Literal["shorter", "adm", "none"],
        Field(
            description="Before kind center or ten, bring the shorter side to `resize_to`, as "
            "the operator resize; or bring the image to a square of that side, as "
            "adm_center_crop; or neither."
        ),
    ] = "shorter"
    resize_to: Annotated[
        int | None,
        Field(
            ge=1,
            le=16_384,
            description="Pixels, `size` or more; null is `size`. LlamaGen's ten crops of 256 "
            "have 281 and `resize: adm`.",
        ),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos"],
        Field(description="Pillow's filter; `resize: adm` has its own. nearest is for maps."),
    ] = "bilinear"
    seed: Annotated[
        int, Field(ge=0, description="Of random crops, which depend on it and on `key` alone.")
    ] = 0
    scale: Annotated[
        tuple[Share, Share],
        Field(description="Least and largest share of the image's area, of kind random."),
    ] = (0.08, 1.0)
    ratio: Annotated[
        tuple[Positive, Positive],
        Field(description="Least and largest width / height of a random crop."),
    ] = (3 / 4, 4 / 3)
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS

    @model_validator(mode="after")
    def _check(self) -> Self:
        for option, kinds in _KINDS_OF.items():
            if self.kind not in kinds and self._is_set(option):
                found = getattr(self, option)
                raise ValueError(f"{option}={found!r} is for kind {' or '.join(kinds)}; remove it")
        if self.kind in _FITTED:
            self._check_resize()
        for option in ("scale", "ratio"):
            least, most = getattr(self, option)
            if least > most:
                raise ValueError(f"{option}: {least:g} to {most:g} is no range; swap them")
        return self

    def _check_resize(self) -> None:
        if self.resize == "none" and self.resize_to is not None:
            raise ValueError(f"resize_to={self.resize_to} needs `resize: shorter` or `adm`")
        if self.resize_to is not None and self.resize_to < self.size:
            raise ValueError(
                f"resize_to={self.resize_to} is less than size={self.size}; the crops do not fit"
            )
        if self.resize != "shorter" and self._is_set("interpolation"):
            raise ValueError(
                f"interpolation={self.interpolation!r} does nothing with `resize: {self.resize}`"
            )

    def _is_set(self, option: str) -> bool:
        default = type(self).model_fields[option].default
        return bool(getattr(self, option) != default)


class Crops(Operator[CropsConfig]):
    """Cut V square views out of an image and record where they lie.

    Reads ``image`` (Pillow), and ``key`` for random crops; replaces ``image`` by uint8
    [V, S, S, 3] and adds ``crop_boxes`` int32 [V, 5]: left, top, width, height in pixels of the
    image that was read, and 1 where the view is mirrored. Put it right after ``decode_image``, so
    that these are pixels of the file. Tokenizers after it give [V, positions]. The kinds:

    - ``center``: one view, byte for byte that of ``resize`` and ``center_crop``, or of
      ``adm_center_crop``. ``flip`` adds its mirror image.
    - ``ten``: top left, top right, bottom left, bottom right and centre of the resized image, then
      the same five of its mirror image: torchvision's ``TenCrop``, in its order. So view 5, the
      top left of the mirror image, is view 1 mirrored. LlamaGen's ten crops have ``resize: adm``
      with ``resize_to`` the whole part of 1.1 ``size`` (or 1.05 ``size``).
    - ``random``: ``count`` crops in the manner of torchvision's ``RandomResizedCrop``. Of ten
      attempts the first that fits counts: its area is a share of the image's that is uniform in
      ``scale``, the logarithm of its width / height is uniform in that of ``ratio``, sides are
      rounded (ties to even), and it lies anywhere with equal chance. When none fits it is the
      largest central crop whose width / height is in ``ratio``. It is cut out first, then resized
      to S x S. With ``flip`` half of the views are mirrored.
    - ``boxes``: those of a field ``crop_boxes`` [V, 5] that is there already, cut out and resized
      to S x S: for a second picture of the sample, of the same size (a depth map, say; name it by
      ``inputs`` and ``outputs``). Adds no boxes.

    Random crops come from the doubles in [0, 1) of a Philox generator whose key is the first half
    of the SHA-256 of ``<seed>/crops/<key>``: area and ratio of every attempt, then top, left, and a
    coin. The coin is tossed without ``flip`` too. So neither ``flip`` nor a higher ``count`` moves
    a crop, and a sample has the same crops in any job, order and company.

    Views of ``center`` and ``ten`` lie in the resized image, so their boxes are edges rounded to
    the nearest pixel of the image that was read, and kind ``boxes`` cuts them to within a pixel.
    Random boxes are exact. Another picture of the same size is also cut exactly alike by the same
    options of any kind.

    Unusable rows (``RowErrors``): strips that would grow beyond ``max_pixels``; images smaller
    than S with ``resize: none``; boxes that reach outside the image.

    Checked: the geometry of ``Resize``, ``CenterCrop`` and the ADM crop against the bytes of
    torchvision and of the authors' code; that of ``TenCrop`` and ``RandomResizedCrop`` against
    their rules.
    """

    Config = CropsConfig

    def __init__(self, config: CropsConfig) -> None:
        super().__init__(config)
        self._filter = Image.Resampling[config.interpolation.upper()]
        self._num_views: int | None = {
            "center": 2 if config.flip else 1,
            "ten": 10,
            "random": config.count,
        }.get(config.kind)

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take the number of views from the boxes, where they are given."""
        boxes = fields.get("crop_boxes")
        if self.config.kind == "boxes" and boxes is not None:
            if len(boxes.shape) != 2 or boxes.shape[0] is None:
                raise ContractError(
                    f"crops: crop_boxes are {boxes}, expected a fixed number of boxes int32[*, 5]"
                )
            self._num_views = boxes.shape[0]

    @property
    def inputs(self) -> Mapping[str, FieldSpec]:
        """``image``, and what decides on the crops."""
        image = {"image": FieldSpec("pillow", (None, None, 3))}
        if self.config.kind == "random":
            return {**image, "key": FieldSpec("string")}
        if self.config.kind == "boxes":
            return {**image, "crop_boxes": FieldSpec("int32", (self._num_views, 5))}
        return image

    @property
    def outputs(self) -> Mapping[str, FieldSpec]:
        """The views, and their boxes unless these were given."""
        size = self.config.size
        image = {"image": FieldSpec("uint8", (self._num_views, size, size, 3))}
        if self.config.kind == "boxes":
            return image
        return {**image, "crop_boxes": FieldSpec("int32", (self._num_views, 5))}

    def metadata(self) -> Mapping[str, object]:
        """What the numbers of a box are."""
        if self.config.kind == "boxes":
            return {}
        return {"crop_boxes": ["left", "top", "width", "height", "flip"]}

    def __call__(self, batch: Batch) -> Batch:
        """Cut every row."""
        rows, size, num_views = num_rows(batch["image"]), self.config.size, self._num_views
        assert num_views is not None  # ``bind`` took it from the boxes
        views = np.empty((rows, num_views, size, size, 3), np.uint8)
        boxes = np.empty((rows, num_views, 5), np.int32)
        cut = self._cutter(batch)
        errors: dict[int, SampleError] = {}
        for row, image in enumerate(batch["image"]):
            try:
                boxes[row] = cut(image, row, views[row])
            except SampleError as error:
                errors[row] = error
        made = {"image": views, "crop_boxes": boxes}
        out = {name: made[name] for name in self.outputs}
        if errors:
            good = np.setdiff1d(np.arange(rows), list(errors))
            raise RowErrors(errors, take_batch(out, good))
        return out

    def _cutter(self, batch: Batch) -> Callable[[Image.Image, int, np.ndarray], "_Boxes"]:
        """Return what fills [V, S, S, 3] with the views of a row's image and returns its boxes."""
        if self.config.kind == "random":
            keys = batch["key"].to_pylist()
            return lambda image, row, out: self._resized(image, self._draw(image, keys[row]), out)
        if self.config.kind == "boxes":
            given = batch["crop_boxes"].tolist()
            return lambda image, row, out: self._resized(image, _inside(image, given[row]), out)
        return lambda image, _, out: self._fitted(image, out)

    def _fitted(self, image: Image.Image, out_VSS3: np.ndarray) -> "_Boxes":
        """Bring the image to size, then cut."""
        config, size = self.config, self.config.size
        target = config.resize_to or size
        whole, (x, y), fitted = image.size, (0, 0), image
        if config.resize == "adm":
            whole, (x, y) = adm_geometry(target, *image.size)
            fitted = adm_square(image, target, config.max_pixels, config.name)
        elif config.resize == "shorter":
            whole = shorter_side_to(target, *image.size)
            fitted = scale(image, whole, self._filter, config.max_pixels, config.name)
        elif min(image.size) < size:
            raise SampleError(
                f"crops: {image.width} x {image.height}, expected at least {size} x {size} with "
                "`resize: none`"
            )
        boxes = []
        for view, (left, top, mirrored) in enumerate(self._places(*fitted.size)):
            _put(fitted.crop((left, top, left + size, top + size)), mirrored, out_VSS3[view])
            first_x, width = _span(left + x, size, whole[0], image.width)
            first_y, height = _span(top + y, size, whole[1], image.height)
            boxes.append((first_x, first_y, width, height, mirrored))
        return boxes

    def _places(self, width: int, height: int) -> Sequence[tuple[int, int, int]]:
        """Return left, top, and whether it is mirrored, of every view of a fitted image."""
        size = self.config.size
        right, bottom = width - size, height - size
        middle = (central(width, size), central(height, size))
        if self.config.kind == "center":
            return [(*middle, mirrored) for mirrored in range(2 if self.config.flip else 1)]
        five = [(0, 0), (right, 0), (0, bottom), (right, bottom), middle]
        # A crop of the mirror image that starts at x ends at width - x of the image itself.
        return [*((x, y, 0) for x, y in five), *((right - x, y, 1) for x, y in five)]

    def _resized(self, image: Image.Image, boxes: "_Boxes", out_VSS3: np.ndarray) -> "_Boxes":
        """Cut, then bring every view to size."""
        size = (self.config.size, self.config.size)
        for (left, top, width, height, mirrored), out_SS3 in zip(boxes, out_VSS3, strict=True):
            view = image.crop((left, top, left + width, top + height))
            _put(view if view.size == size else view.resize(size, self._filter), mirrored, out_SS3)
        return boxes

    def _draw(self, image: Image.Image, key: str) -> "_Boxes":
        digest = hashlib.sha256(f"{self.config.seed}/crops/{key}".encode()).digest()
        philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        draw = np.random.Generator(philox).random
        boxes = []
        for _ in range(self.config.count):
            box = self._random_box(image.width, image.height, draw)
            mirrored = draw() < 0.5
            boxes.append((*box, int(mirrored and self.config.flip)))
        return boxes

    def _random_box(
        self, width: int, height: int, draw: Callable[[], float]
    ) -> tuple[int, int, int, int]:
        ratios = self.config.ratio
        shares, logs = self.config.scale, tuple(map(math.log, ratios))
        for _ in range(_ATTEMPTS):
            area = width * height * (shares[0] + (shares[1] - shares[0]) * draw())
            ratio = math.exp(logs[0] + (logs[1] - logs[0]) * draw())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(draw() * (height - h + 1))
                return int(draw() * (width - w + 1)), top, w, h
        w, h = width, height
        if width / height < ratios[0]:
            h = max(1, round(width / ratios[0]))
        elif width / height > ratios[1]:
            w = max(1, round(height * ratios[1]))
        return (width - w) // 2, (height - h) // 2, w, h


_Boxes = Sequence[tuple[int, int, int, int, int]]


def _put(view: Image.Image, mirrored: int, out_SS3: np.ndarray) -> None:
    out_SS3[...] = np.asarray(view.transpose(_MIRROR) if mirrored else view)


def _span(first: int, size: int, resized: int, side: int) -> tuple[int, int]:
    """Return first pixel and length, in a side, of a crop of it after it was resized.

    Edges go to the nearest pixel, but one pixel is left of what is thinner.
    """
    start, stop = ((2 * edge * side + resized) // (2 * resized) for edge in (first, first + size))
    start = min(start, side - 1)
    return start, max(stop - start, 1)


def _inside(image: Image.Image, boxes: _Boxes) -> _Boxes:
    """Return the boxes.

    Raises:
        SampleError: one is empty, reaches outside the image, or is mirrored more than once.
    """
    for left, top, width, height, mirrored in boxes:
        fits = min(left, top) >= 0 and min(width, height) > 0 and mirrored in (0, 1)
        if not (fits and left + width <= image.width and top + height <= image.height):
            raise SampleError(
                f"crops: box {[left, top, width, height, mirrored]} does not lie in the image of "
                f"{image.width} x {image.height}; boxes are left, top, width, height, flip, "
                "made of a picture of the same size"
            )
    return boxes
