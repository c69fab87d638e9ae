"""A small real data set, made without a network: photographs and text for a first run.

The photographs are crops of those inside the scikit-image wheel, the text is Python's own standard
library (with its tests and, if those are not installed, the sources of NumPy and PyTorch).
"""

import ast
import colorsys
import hashlib
import io
import json
import math
import platform
import random
import sysconfig
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
from PIL import Image, ImageStat

from pipeline.errors import SetupError
from pipeline.storage import Storage

Progress = Callable[[str, int, int], None]
"""Called with what is written (``photos`` or ``text``), how much is done, and of how much."""

NUM_TARS = 8
NUM_TEXT_FILES = 3
MIN_TEXT_BYTES = 20 << 20

_FORMAT = 1
_MARKER = "sample.json"
_ROW_GROUP_BYTES = 1 << 20
_MIN_DOCSTRING_CHARS = 64
_SIDES = (320, 500)
_MAX_ZOOM = 1.8
_MIN_CONTRAST = 7.0

# File in the scikit-image wheel -> what it shows, number of crops.
_PHOTOS = {
    "astronaut.png": ("an astronaut in an orange space suit", 48),
    "chelsea.png": ("a tabby cat", 48),
    "coffee.png": ("a cup of espresso on a wooden table", 48),
    "rocket.jpg": ("a rocket on its launch pad at dusk", 48),
    "motorcycle_left.png": ("a red motorcycle in a garage", 48),
    "motorcycle_right.png": ("a garage with a motorcycle, shelves and boxes", 32),
    "hubble_deep_field.jpg": ("distant galaxies in the night sky", 48),
    "ihc.png": ("stained tissue under a microscope", 48),
    "retina.jpg": ("the retina of a human eye", 48),
    "camera.png": ("a man behind a film camera on a lawn", 16),
    "moon.png": ("the cratered surface of the Moon", 16),
    "coins.png": ("ancient coins laid out in rows", 16),
    "brick.png": ("a wall of long bricks", 16),
    "grass.png": ("grass seen from above", 16),
    "gravel.png": ("a bed of gravel", 16),
}
NUM_PHOTOS = sum(count for _, count in _PHOTOS.values())

# Hard dependencies whose sources top up a standard library that was installed without its tests.
_MORE_TEXT = ("numpy", "torch")


@dataclass(frozen=True, slots=True)
class SampleData:
    """What lies in the folder.

    Attributes:
        photo_tars: WebDataset tars with ``jpg``, ``txt`` (caption) and ``json`` members per key.
        text_files: Parquet files with the string columns ``text``, ``path`` and ``kind``.
        num_photos: Samples in all tars.
        num_texts: Rows in all Parquet files.
        photo_bytes: Size of all tars.
        text_bytes: Size of the texts themselves, as UTF-8, uncompressed.
        written: False when an earlier call had written it all.
    """

    photo_tars: tuple[Path, ...]
    text_files: tuple[Path, ...]
    num_photos: int
    num_texts: int
    photo_bytes: int
    text_bytes: int
    written: bool


@dataclass(frozen=True, slots=True)
class _Crop:
    """One photograph to be: a box of a source, scaled to ``size``, perhaps mirrored."""

    source: str
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    mirrored: bool
    wording: float


def write_sample_data(folder: Path, *, progress: Progress | None = None) -> SampleData:
    """Write 512 captioned photographs and 20 MB of text, or find that they are there.

    The same versions of Python, scikit-image, Pillow and pyarrow give the same bytes. Each file
    appears whole; ``sample.json``, written last, names them all with their SHA-256, and a folder
    in which all of it still holds is left as it is.

    Args:
        folder: Made if absent; gets ``photos-000000.tar`` ... and ``text-000.parquet`` ...
        progress: Called as the work goes on.

    Raises:
        SetupError: scikit-image is missing, or the folder cannot be written.
    """
    import pyarrow.compute as pc

    found = _complete(folder)
    if found is not None:
        return found
    report = progress or (lambda _what, _done, _total: None)
    storage = Storage()
    files: dict[str, bytes] = {}

    def write(name: str, data: bytes) -> None:
        storage.write(str(folder / name), data)
        files[name] = data

    photo_folder = _photo_folder()
    storage.remove(str(folder / _MARKER))
    tars = _tars(photo_folder, partial(report, "photos"))
    for i, data in enumerate(tars):
        write(f"photos-{i:06}.tar", data)
    num_texts = text_bytes = 0
    for i, table in enumerate(_text_tables()):
        write(f"text-{i:03}.parquet", _parquet(table))
        num_texts += len(table)
        text_bytes += pc.sum(pc.binary_length(table["text"])).as_py()
        report("text", i + 1, NUM_TEXT_FILES)
    marker = {
        "format": _FORMAT,
        "num_photos": NUM_PHOTOS,
        "num_texts": num_texts,
        "text_bytes": text_bytes,
        "files": {
            name: {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
        "made_with": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pillow", "pyarrow", "scikit-image")},
        },
    }
    storage.write(str(folder / _MARKER), json.dumps(marker, indent=2).encode())
    return _describe(folder, marker, written=True)


def _complete(folder: Path) -> SampleData | None:
    """Return the sample data in a folder if it is all there, byte for byte."""
    try:
        marker = json.loads((folder / _MARKER).read_bytes())
        if marker["format"] != _FORMAT:
            return None
        for name, entry in marker["files"].items():
            data = (folder / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                return None
        return _describe(folder, marker, written=False)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or not ours
        return None


def _describe(folder: Path, marker: dict[str, object], *, written: bool) -> SampleData:
    files: dict[str, dict[str, int]] = marker["files"]  # type: ignore[assignment]
    tars = sorted(name for name in files if name.endswith(".tar"))
    texts = sorted(name for name in files if name.endswith(".parquet"))
    return SampleData(
        photo_tars=tuple(folder / name for name in tars),
        text_files=tuple(folder / name for name in texts),
        num_photos=int(marker["num_photos"]),  # type: ignore[call-overload]
        num_texts=int(marker["num_texts"]),  # type: ignore[call-overload]
        photo_bytes=sum(files[name]["num_bytes"] for name in tars),
        text_bytes=int(marker["text_bytes"]),  # type: ignore[call-overload]
        written=written,
    )


def _photo_folder() -> Path:
    """Find the wheel's photographs without importing scikit-image, which could download others."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SetupError(
            "the sample photographs come from scikit-image, which is not installed",
            hint="pip install 'tokenmill[sample]'",
        )
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in _PHOTOS if not (folder / name).is_file()]
    if missing:
        raise SetupError(
            f"scikit-image {version('scikit-image')} in {folder} lacks {', '.join(missing)}",
            hint="pip install 'tokenmill[sample]'",
        )
    return folder


def _tars(photo_folder: Path, report: Callable[[int, int], None]) -> Iterator[bytes]:
    """Yield the tars' bytes, one after another."""
    sources = {name: Image.open(photo_folder / name).convert("RGB") for name in _PHOTOS}
    crops = _plan_crops(sources)
    per_tar = len(crops) // NUM_TARS
    with ThreadPoolExecutor(2) as pool:
        for first in range(0, len(crops), per_tar):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                part = crops[first : first + per_tar]
                members = pool.map(lambda crop: _members(sources[crop.source], crop), part)
                for i, parts in enumerate(members, start=first):
                    for extension, data in parts.items():
                        info = tarfile.TarInfo(f"{i:06}.{extension}")  # time, owner: all 0
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    report(i + 1, len(crops))
            yield file.getvalue()


def _plan_crops(sources: dict[str, Image.Image]) -> list[_Crop]:
    """Draw all crops, mixed, from one fixed seed."""
    # random() is the one method that Python promises to keep the same.
    draw = random.Random("tokenmill sample photographs").random
    crops: list[_Crop] = []
    for name, image in sources.items():
        grey = image.convert("L")
        _, count = _PHOTOS[name]
        while count:
            crop = _draw_crop(name, image.size, draw)
            # A crop of nothing but night sky or retina border is no photograph of its subject.
            if ImageStat.Stat(grey.crop(crop.box)).stddev[0] >= _MIN_CONTRAST:
                crops.append(crop)
                count -= 1
    order = [draw() for _ in crops]
    return [crops[i] for i in sorted(range(len(crops)), key=order.__getitem__)]


def _draw_crop(name: str, source_size: tuple[int, int], draw: Callable[[], float]) -> _Crop:
    low, high = _SIDES
    width, height = (low + int(draw() * (high - low + 1)) for _ in range(2))
    # From the largest box that the source holds down to one that is enlarged a little.
    least = max(width / source_size[0], height / source_size[1])
    zoom = least * (max(_MAX_ZOOM / least, 1.0) ** draw())
    box_width = min(round(width / zoom), source_size[0])
    box_height = min(round(height / zoom), source_size[1])
    left = int(draw() * (source_size[0] - box_width + 1))
    top = int(draw() * (source_size[1] - box_height + 1))
    box = (left, top, left + box_width, top + box_height)
    return _Crop(name, box, (width, height), draw() < 0.5, draw())


def _members(source: Image.Image, crop: _Crop) -> dict[str, bytes]:
    image = source.resize(crop.size, Image.Resampling.LANCZOS, box=crop.box)
    if crop.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    metadata = {
        "source": crop.source,
        "source_size": list(source.size),
        "box": list(crop.box),
        "size": list(crop.size),
        "mirrored": crop.mirrored,
    }
    return {
        "jpg": file.getvalue(),
        "txt": _caption(image, source.size, crop).encode(),
        "json": json.dumps(metadata, sort_keys=True).encode(),
    }


def _caption(image: Image.Image, source_size: tuple[int, int], crop: _Crop) -> str:
    """Return a sentence or two: subject, part of the scene, light and colour."""
    subject, _ = _PHOTOS[crop.source]
    red, green, blue = ImageStat.Stat(image.resize((1, 1), Image.Resampling.BOX)).mean
    light, colour = _light(red, green, blue), _colour(red, green, blue)
    left, top, right, bottom = crop.box
    share = (right - left) * (bottom - top) / math.prod(source_size)
    where = _where((left + right) / 2 / source_size[0], (top + bottom) / 2 / source_size[1])
    if share > 0.6:
        view = "nearly all of the scene"
    elif share > 0.25:
        view = f"the {where} of the scene"
    else:
        view = f"a detail at the {where} of the scene"
    shape = "wide" if image.width > image.height else "tall"
    sentences = (
        f"A photograph of {subject}, showing {view}. The picture is {light}, mostly {colour}.",
        f"{subject[0].upper()}{subject[1:]}: {view}, in {light} {colour} tones.",
        f"This {shape} picture shows {subject}. We see {view}, {light} and largely {colour}.",
        f"{view[0].upper()}{view[1:]} in a {shape}, {light} photo of {subject}; "
        f"{colour} dominates.",
    )
    return sentences[int(crop.wording * len(sentences))]


def _where(x: float, y: float) -> str:
    """Name the ninth of the source that a crop's centre lies near."""
    row = "upper" if y < 0.42 else "lower" if y > 0.58 else ""
    column = "left" if x < 0.42 else "right" if x > 0.58 else ""
    if row and column:
        return f"{row} {column}"
    return f"{row or column} part" if row or column else "middle"


def _light(red: float, green: float, blue: float) -> str:
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    names = ("very dark", "dark", "softly lit", "evenly lit", "bright")
    return names[sum(luma >= bound for bound in (32, 80, 115, 150))]


def _colour(red: float, green: float, blue: float) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if saturation < 0.12:
        return "black" if value < 0.15 else "white" if value > 0.8 else "grey"
    if hue < 0.12 and saturation < 0.55:
        return "brown" if value < 0.62 else "beige"
    names = ("red", "orange", "yellow", "green", "blue", "purple", "red")
    return names[sum(hue >= bound for bound in (0.03, 0.12, 0.19, 0.45, 0.7, 0.92))]


def _text_tables() -> Iterator[pa.Table]:
    """Yield the texts, mixed, in tables of about equal size."""
    rows: list[tuple[str, str, str]] = []
    num_bytes = 0
    for row in _texts():
        rows.append(row)
        num_bytes += len(row[0].encode())
        if num_bytes >= MIN_TEXT_BYTES:
            break
    else:
        raise SetupError(
            f"only {num_bytes:,} bytes of Python sources in {sysconfig.get_path('stdlib')}, "
            f"expected {MIN_TEXT_BYTES:,}",
            hint="use a Python whose standard library is installed as .py files",
        )
    draw = random.Random("tokenmill sample text").random
    order = [draw() for _ in rows]
    rows = [rows[i] for i in sorted(range(len(rows)), key=order.__getitem__)]
    names = ("text", "path", "kind")
    for i in range(NUM_TEXT_FILES):
        part = rows[i * len(rows) // NUM_TEXT_FILES : (i + 1) * len(rows) // NUM_TEXT_FILES]
        named = zip(names, zip(*part, strict=True), strict=True)
        yield pa.table({name: pa.array(c, pa.string()) for name, c in named})


def _texts() -> Iterator[tuple[str, str, str]]:
    """Yield (text, path, kind): library modules, their docstrings, library tests, then more."""
    library = Path(sysconfig.get_path("stdlib"))
    modules: list[tuple[str, str, str]] = []
    tests: list[tuple[str, str, str]] = []
    for path, text in _sources(library, library):
        is_test = not {"test", "tests", "idle_test"}.isdisjoint(path.split("/"))
        (tests if is_test else modules).append((text, path, "source"))
    yield from modules
    for text, path, _ in modules:
        for name, docstring in _docstrings(text):
            yield docstring, f"{path}::{name}" if name else path, "docstring"
    yield from tests
    for package in _MORE_TEXT:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path, text in _sources(Path(folder), Path(folder).parent):
                yield text, path, "source"


def _sources(folder: Path, base: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of the Python files below a folder that are the same on any machine."""
    for file in sorted(folder.rglob("*.py")):
        path = file.relative_to(base).as_posix()
        # Other packages, and what the build of this very Python left behind.
        if path.startswith(("site-packages/", "dist-packages/", "config-", "_sysconfigdata")):
            continue
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:  # tests of other encodings
            continue
        if text.strip():
            yield path, text


def _docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a module, its classes and their functions."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a template that only looks like Python
        return
    todo: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]
    todo = [("", tree)]
    while todo:
        name, node = todo.pop(0)
        docstring = ast.get_docstring(node)
        if docstring is not None and len(docstring) >= _MIN_DOCSTRING_CHARS:
            yield name, docstring
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    todo.append((f"{name}.{child.name}".lstrip("."), child))


def _parquet(table: pa.Table) -> bytes:
    """Return a zstd Parquet file with a row group for about every mebibyte of text."""
    import pyarrow.parquet as pq

    file = io.BytesIO()
    num_groups = max(table.nbytes // _ROW_GROUP_BYTES, 1)
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=-(-len(table) // num_groups))
    return file.getvalue()
