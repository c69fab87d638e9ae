"""A look at the tokens: originals beside what they decode to, or what became of their parts."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from operators.base import Batch, Column, Drawable, FieldSpec, Invertible, Ragged
from operators.columns import concat, num_values, take
from pipeline.errors import SpecError
from pipeline.manifest import DataSet, open_data_set
from pipeline.model_cache import JobModelFiles
from pipeline.plan import Chain, build_chain, read_plan
from pipeline.quarantine import mask_poison
from pipeline.sources import build_source
from pipeline.spec import JobSpec, job_from_recipe
from pipeline.stages import run_steps
from pipeline.storage import Storage

TILE = 256
"""Side of an image on the sheet, pixels."""

VIEW, VIEWS_ACROSS, VIEW_GAP = 128, 5, 4
"""Side of one of several views of an image, how many stand side by side, and the gap, pixels."""

TEXT_WIDTH = 300
MARGIN, GAP, LINE = 20, 14, 18
MAX_LINES = 13
MAX_TEXT = 2_000
"""Characters of a text that are looked at; documents may be long."""

INK, GREY, LIGHT, RED = "#1a1a1a", "#6b6b6b", "#e4e4e4", "#c0392b"


@dataclass(frozen=True, slots=True)
class Preview:
    """Rows of a data set with what their tokens decode to.

    Attributes:
        name: Of the data set.
        keys: N sample keys.
        originals: Label of an operator -> its input, N images (uint8 arrays), views of images
            ([V, H, W, 3]) or texts.
        decoded: The same, decoded from the stored tokens; or, of an operator whose tokens do not
            decode, drawn by them.
        num_ids: Label -> the number of tokens of each sample.
        warning: Shown on the sheet, or None.
        notes: Label of an operator that draws -> what stands below each of its pictures.
    """

    name: str
    keys: Sequence[str]
    originals: Mapping[str, Sequence[Any]]
    decoded: Mapping[str, Sequence[Any]]
    num_ids: Mapping[str, Sequence[int]]
    warning: str | None
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def sheet(self) -> Image.Image:
        """Draw a row per sample: for every operator its original, then what its tokens show."""
        return _Sheet(self).draw()


def preview(uri: str, storage: Storage, num: int = 8) -> Preview:
    """Decode the first rows of a data set with every operator that has an inverse, or draws.

    An operator that draws is shown over the image that the chain made its inputs of.

    Raises:
        SpecError: no stored field comes from such an operator, or there are no rows.
        SetupError: the source or an operator's weights cannot be reached.
    """
    data = open_data_set(uri, storage)
    job = job_from_recipe(data.manifest.recipe)
    source = build_source(job.source, storage, job.source_urls())
    chain = build_chain(job, source.fields, JobModelFiles(storage))
    stored = set(data.manifest.fields)
    steps = [
        (i, bound)
        for i, bound in enumerate(chain.steps)
        if isinstance(bound.step, Invertible) and set(bound.writes.values()) <= stored
    ]
    drawn = [i for i in range(len(chain.steps)) if _is_drawn(chain, i, stored)]
    if not steps and not drawn:
        raise SpecError(
            f"{uri}: none of {sorted(stored)} comes from an operator that can decode",
            hint="write the tokenizer's own field too (shards.fields)",
        )
    if not data.shards.num_rows:
        raise SpecError(f"{uri}: the data set has no rows")
    partition, batch = _first_rows(data, num)
    keys = batch.column("key").to_pylist()
    originals: dict[str, Sequence[Any]] = {}
    decoded: dict[str, Sequence[Any]] = {}
    num_ids: dict[str, Sequence[int]] = {}
    for i, bound in steps:
        tokens = {name: _column(batch.column(field)) for name, field in bound.writes.items()}
        out = bound.step.decode(tokens)  # type: ignore[union-attr]
        before = _inputs(data, job, chain, i, partition, keys)
        for name in out:
            if name in before and _can_be_shown(out[name]):
                originals[bound.label] = _items(before[name])
                decoded[bound.label] = _items(out[name])
                num_ids[bound.label] = _num_ids(tokens, len(keys))
    notes: dict[str, Sequence[str]] = {}
    for i in drawn:
        found = _picture(chain, i)
        if found is None:
            continue
        before = _inputs(data, job, chain, found[0], partition, keys)
        if found[1] not in before:
            continue
        step, writes = chain.steps[i].step, chain.steps[i].writes
        assert isinstance(step, Drawable)
        label, pictures = chain.steps[i].label, _items(before[found[1]])
        tokens = {name: _column(batch.column(writes[name])) for name in step.drawn_from}
        drawings = step.draw(tokens, pictures)
        originals[label], decoded[label] = pictures, [drawing.pixels for drawing in drawings]
        notes[label] = [drawing.note for drawing in drawings]
    if not decoded:
        raise SpecError(
            f"{uri}: nothing that can be shown comes back from {', '.join(sorted(stored))}",
            hint="only operators that decode to images or text can be looked at, and reduced "
            "tokens of images that the job itself encodes",
        )
    warning = "random weights: the tokens mean nothing" if data.manifest.random_weights else None
    return Preview(data.manifest.name, keys, originals, decoded, num_ids, warning, notes)


def _is_drawn(chain: Chain, index: int, stored: set[str]) -> bool:
    """Say whether a step draws, and all that it needs is stored and is its own."""
    step, writes = chain.steps[index].step, chain.steps[index].writes
    if not isinstance(step, Drawable):
        return False
    later = {field for bound in chain.steps[index + 1 :] for field in bound.writes.values()}
    return {writes[name] for name in step.drawn_from} <= stored - later


def _picture(chain: Chain, index: int) -> tuple[int, str] | None:
    """Return the nearest step before one that reads an image for it, and its name of the image."""
    wanted = set(chain.steps[index].reads.values())
    for i in reversed(range(index)):
        bound = chain.steps[i]
        if not wanted & set(bound.writes.values()):
            continue
        given = chain.steps[i - 1].fields if i else chain.source_fields
        for name, field_ in bound.reads.items():
            if _is_image(given[field_]):
                return i, name
        wanted |= set(bound.reads.values())
    return None


def _is_image(spec: FieldSpec) -> bool:
    """Say whether a field holds RGB images, or views of images, as they are read by models."""
    return spec.dtype == "uint8" and len(spec.shape) in (3, 4) and spec.shape[-1] == 3


def _first_rows(data: DataSet, num: int) -> tuple[int, pa.RecordBatch]:
    row = data.shards.slice(0, 1).to_pylist()[0]
    with data.storage.open_read(data.shard_uri(row["path"])) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    return row["partition"], batch.slice(0, num)


def _inputs(
    data: DataSet, job: JobSpec, chain: Chain, index: int, partition: int, keys: Sequence[str]
) -> Batch:
    """Return the inputs of step ``index`` for the samples of the given keys."""
    bound = chain.steps[index]
    urls = job.source_urls()
    source = build_source(job.source, data.storage, urls)
    planned = read_plan(data.storage, data.uri, urls)[partition]
    part = mask_poison(data.storage, data.uri, planned)
    wanted = set(bound.reads.values()) | {"key"}
    found: list[dict[str, Column]] = []
    missing = set(keys)
    for block in run_steps(chain.steps[:index], source, part, job.batch_size):
        at = [i for i, key in enumerate(block["key"].to_pylist()) if key in missing]
        if at:
            rows = np.array(at)
            found.append({name: take(block[name], rows) for name in wanted})
            missing -= set(found[-1]["key"].to_pylist())
        if not missing:
            break
    joined = {name: concat([part[name] for part in found]) for name in wanted} if found else {}
    if not joined:
        return {}
    order = {key: i for i, key in enumerate(joined["key"].to_pylist())}
    rows = np.array([order[key] for key in keys if key in order])
    return {name: take(joined[field], rows) for name, field in bound.reads.items()}


def _column(array: pa.Array) -> Column:
    """Return a stored column as operators know it."""
    if pa.types.is_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        values = _dense(array.values)[offsets[0] : offsets[-1]]
        return Ragged(values, offsets - offsets[0])
    if pa.types.is_string(array.type):
        return array.cast(pa.large_string())
    return _dense(array)


def _dense(array: pa.Array) -> np.ndarray:
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    values: np.ndarray = array.to_numpy().reshape(shape)
    return values


def _can_be_shown(column: Column) -> bool:
    """Say whether a column holds texts, RGB images, or views of images."""
    is_image = isinstance(column, np.ndarray) and column.ndim in (4, 5) and column.shape[-1] == 3
    return is_image or isinstance(column, pa.Array)


def _items(column: Column) -> Sequence[Any]:
    return column.to_pylist() if isinstance(column, pa.Array) else list(column)


def _num_ids(tokens: Batch, num: int) -> list[int]:
    """Return the ids of each of N samples, all fields together."""
    rows = (np.array([row]) for row in range(num))
    return [sum(num_values(take(column, row)) for column in tokens.values()) for row in rows]


class _Sheet:
    """Draws a preview: two columns per operator, a row per sample, its key below."""

    def __init__(self, preview: Preview) -> None:
        self._preview = preview
        self._font = ImageFont.load_default(13)
        self._large = ImageFont.load_default(18)
        self._small = ImageFont.load_default(11)

    def draw(self) -> Image.Image:
        """Return the sheet."""
        preview, rows = self._preview, range(len(self._preview.keys))
        cells = [
            [self._cell(items[label][row]) for row in rows]
            for label in preview.originals
            for items in (preview.originals, preview.decoded)
        ]
        widths = [max(cell.width for cell in column) for column in cells]
        heights = [max(column[row].height for column in cells) for row in rows]
        lefts = np.cumsum([MARGIN, *(width + GAP for width in widths)]).tolist()
        top = MARGIN + 3 * LINE + GAP + (LINE if preview.warning else 0)
        tops = np.cumsum([top, *(height + LINE + GAP for height in heights)]).tolist()
        sheet = Image.new("RGB", (lefts[-1] - GAP + MARGIN, tops[-1] - GAP + MARGIN), "white")
        self._draw_head(ImageDraw.Draw(sheet), lefts, top)
        for i, column in enumerate(cells):
            for row, cell in enumerate(column):
                sheet.paste(cell, (lefts[i], tops[row]))
                note = self._note(row, i, widths[i])
                at = (lefts[i], tops[row] + cell.height + 3)
                ImageDraw.Draw(sheet).text(at, note, fill=GREY, font=self._small)
        return sheet

    def _draw_head(self, draw: ImageDraw.ImageDraw, lefts: Sequence[int], top: int) -> None:
        preview = self._preview
        draw.text((MARGIN, MARGIN - 4), preview.name, fill=INK, font=self._large)
        if preview.warning:
            draw.text((MARGIN, MARGIN + LINE + 4), preview.warning, fill=RED, font=self._font)
        for i, label in enumerate(preview.originals):
            y = top - 2 * LINE
            draw.text((lefts[2 * i], y), label, fill=INK, font=self._font)
            draw.text((lefts[2 * i], y + LINE - 2), "original", fill=GREY, font=self._small)
            shown = "kept, merged, dropped" if label in preview.notes else "decoded"
            draw.text((lefts[2 * i + 1], y + LINE - 2), shown, fill=GREY, font=self._small)

    def _note(self, row: int, column: int, width: int) -> str:
        """Return what stands below a cell: the key, or the number of tokens."""
        preview = self._preview
        if column == 0:
            return self._lines(preview.keys[row], width, self._small, most=1)[0]
        if column % 2 == 0:
            return ""
        label = list(preview.originals)[column // 2]
        if label in preview.notes:
            return preview.notes[label][row]
        count = preview.num_ids[label][row]
        same = np.array_equal(preview.originals[label][row], preview.decoded[label][row])
        text = f"{count:,} token{'' if count == 1 else 's'}"
        return f"{text}, equal to the original" if same else text

    def _cell(self, item: Any) -> Image.Image:
        if not isinstance(item, str):
            pixels = np.asarray(item)
            return _fitted(pixels, TILE) if pixels.ndim == 3 else _contact_sheet(pixels)
        lines = self._lines(item[:MAX_TEXT], TEXT_WIDTH - 2 * GAP, self._font, MAX_LINES)
        cell = Image.new("RGB", (TEXT_WIDTH, len(lines) * LINE + GAP), "white")
        draw = ImageDraw.Draw(cell)
        draw.rectangle((0, 0, cell.width - 1, cell.height - 1), outline=LIGHT)
        for i, line in enumerate(lines):
            draw.text((GAP, GAP // 2 + i * LINE), line, fill=INK, font=self._font)
        return cell

    def _lines(self, text: str, width: int, font: Any, most: int) -> list[str]:
        """Wrap a text to a width in pixels; what is too much ends in an ellipsis."""
        lines: list[str] = []
        for paragraph in text.splitlines() or [""]:
            line = ""
            for word in paragraph.split(" "):
                joined = f"{line} {word}" if line else word
                if font.getlength(joined) <= width:
                    line = joined
                    continue
                if line:
                    lines.append(line)
                *full, line = _pieces(word, width, font)
                lines += full
            lines.append(line)
        if len(lines) <= most:
            return lines
        cut = _pieces(lines[most - 1], width - font.getlength("..."), font)[0]
        return [*lines[: most - 1], f"{cut.rstrip()}..."]


def _contact_sheet(views_VHW3: np.ndarray) -> Image.Image:
    """Return the views of an image, row by row; a single one is as large as an image."""
    if len(views_VHW3) == 1:
        return _fitted(views_VHW3[0], TILE)
    tiles = [_fitted(view, VIEW) for view in views_VHW3]
    across, down = min(len(tiles), VIEWS_ACROSS), -(-len(tiles) // VIEWS_ACROSS)
    step_x, step_y = tiles[0].width + VIEW_GAP, tiles[0].height + VIEW_GAP
    sheet = Image.new("RGB", (across * step_x - VIEW_GAP, down * step_y - VIEW_GAP), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % VIEWS_ACROSS * step_x, i // VIEWS_ACROSS * step_y))
    return sheet


def _fitted(pixels: np.ndarray, side: int) -> Image.Image:
    """Return an image with its longer side at ``side``."""
    image = Image.fromarray(pixels)
    factor = side / max(image.size)
    if factor == 1:
        return image
    shape = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return image.resize(shape, how)


def _pieces(word: str, width: float, font: Any) -> list[str]:
    """Cut a word into pieces that fit a width in pixels."""
    pieces = []
    while font.getlength(word[: int(width) + 1]) > width:  # a letter is wider than a pixel
        counts = range(1, min(len(word), int(width)) + 1)
        fits = bisect_right(counts, width, key=lambda count: font.getlength(word[:count]))
        pieces.append(word[: max(fits, 1)])
        word = word[max(fits, 1) :]
    return [*pieces, word]
