"""decode_image: every mode to RGB, and every broken file to a reason."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from operators.base import Batch
from operators.errors import RowErrors
from operators.image.decode_image import DecodeImage, DecodeImageConfig
from operators.testing import assert_operator_contract


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth colour, so that JPEG keeps it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def batch_of(*files: bytes | None) -> Batch:
    return {"image_bytes": pa.array(files, pa.large_binary())}


def decode(data: bytes, **options: Any) -> np.ndarray:
    image = DecodeImage(DecodeImageConfig(**options))(batch_of(data))["image"][0]
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data: bytes | None, **options: Any) -> str:
    good = encoded(photo())
    with pytest.raises(RowErrors) as caught:
        DecodeImage(DecodeImageConfig(**options))(batch_of(good, data, good))
    assert list(caught.value.errors) == [1]
    kept = caught.value.good["image"]
    assert [image.tobytes() for image in kept] == [photo().tobytes()] * 2
    message = str(caught.value.errors[1])
    assert "\n" not in message
    return message


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks)


def grey16_png(values: np.ndarray, *chunks: bytes) -> bytes:
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return png(width, height, 16, 0, *chunks, data, png_chunk(b"IEND", b""))


def test_contract() -> None:
    files = [
        encoded(photo(40, 30, 1), "JPEG"),
        encoded(photo(31, 47, 2)),
        encoded(photo(8, 8, 3), "WEBP", lossless=True),
        encoded(photo(9, 7, 4), "GIF"),
        encoded(photo(9, 7, 5), "BMP"),
        encoded(photo(9, 7, 6), "TIFF", compression="tiff_lzw"),
        encoded(photo(9, 7, 7), "PPM"),
    ]
    assert_operator_contract(DecodeImage(DecodeImageConfig()), batch_of(*files), rows_alone=7)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    found = decode(encoded(photo(), file_format, **options))
    np.testing.assert_array_equal(found, np.asarray(photo()))


def palette_with_alpha() -> Image.Image:
    image = photo().quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    return image


MODES = {
    "palette": photo().quantize(16),
    "palette, transparent bytes": palette_with_alpha(),
    "grey": photo().convert("L"),
    "grey and alpha": photo().convert("LA"),
    "1 bit": photo().convert("1"),
    "RGBA": Image.merge("RGBA", (*photo().split(), photo(seed=9).convert("L"))),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_convert_as_pillow_does(mode: str) -> None:
    data = encoded(MODES[mode])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


def test_cmyk_jpeg_undoes_the_adobe_inversion() -> None:
    """White paper, no ink: inverted CMYK read as it is would come out black."""
    white = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    data = encoded(white, "JPEG")
    assert b"Adobe" in data
    assert decode(data).min() > 250


def test_first_frame_of_an_animation() -> None:
    data = encoded(photo(), "GIF", save_all=True, append_images=[photo(seed=5)])
    np.testing.assert_array_equal(decode(data), decode(encoded(photo(), "GIF")))


def test_16_bit_grey_png_keeps_its_high_byte() -> None:
    values = np.array([[0, 255, 256], [0x1234, 0x80FF, 0xFFFF]], np.uint16)
    found = decode(grey16_png(values))
    np.testing.assert_array_equal(found[..., 0], [[0, 0, 1], [0x12, 0x80, 0xFF]])
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("file_format", ["TIFF", "PPM"])
def test_16_bit_grey_in_other_formats_keeps_its_high_byte(file_format: str) -> None:
    values = np.array([[0, 256], [0x1234, 0xFFFF]], np.uint16)
    found = decode(encoded(Image.fromarray(values), file_format))
    np.testing.assert_array_equal(found[..., 1], [[0, 1], [0x12, 0xFF]])


def test_16_bit_colour_png_keeps_its_high_byte() -> None:
    rows = b"\0" + np.array([0x1234, 0x00FF, 0xFFFF], ">u2").tobytes()
    data = png(1, 1, 16, 2, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b""))
    assert decode(data).tolist() == [[[0x12, 0, 0xFF]]]


def test_32_bit_grey_outside_16_bits_is_refused() -> None:
    values = np.array([[0, 65_536]], np.int32)
    assert "32-bit grey from 0 to 65536" in reason(encoded(Image.fromarray(values), "TIFF"))


def test_float_grey_is_refused() -> None:
    values = np.array([[0.0, 0.5]], np.float32)
    assert "32-bit grey from 0.0 to 0.5" in reason(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    stored = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    np.testing.assert_array_equal(decode(data), np.asarray(stored))

    a = np.asarray(stored)
    upright = [
        a,
        a[:, ::-1],
        a[::-1, ::-1],
        a[::-1],
        a.swapaxes(0, 1),
        a[::-1].swapaxes(0, 1),
        a[::-1, ::-1].swapaxes(0, 1),
        a[:, ::-1].swapaxes(0, 1),
    ][orientation - 1]
    np.testing.assert_array_equal(decode(data, exif_orientation="apply"), upright)


def test_background_shows_through_alpha() -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 100, 0, 255))
    rgba.putpixel((1, 0), (200, 100, 0, 0))
    assert decode(encoded(rgba)).tolist() == [[[200, 100, 0]] * 2]
    found = decode(encoded(rgba), background=(10, 20, 30))
    assert found.tolist() == [[[200, 100, 0], [10, 20, 30]]]


def test_background_shows_through_a_transparent_palette_entry() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 100, 0, 1, 2, 3])
    image.putpixel((1, 0), 1)
    found = decode(encoded(image, transparency=1), background=(10, 20, 30))
    assert found.tolist() == [[[200, 100, 0], [10, 20, 30]]]


def test_background_shows_through_a_transparent_16_bit_grey() -> None:
    key = png_chunk(b"tRNS", struct.pack(">H", 0x1234))
    data = grey16_png(np.array([[0x1234, 0x1235]]), key)
    assert decode(data)[0, :, 0].tolist() == [0x12, 0x12]
    found = decode(data, background=(10, 20, 30))
    assert found.tolist() == [[[10, 20, 30], [0x12] * 3]]


def test_background_leaves_opaque_images_alone() -> None:
    found = decode(encoded(photo()), background=(10, 20, 30))
    np.testing.assert_array_equal(found, np.asarray(photo()))


@pytest.mark.parametrize("background", [(1, 2), (1, 2, 3, 4), (0, 0, 256)])
def test_background_is_an_rgb_colour(background: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="background"):
        DecodeImageConfig(background=background)


def test_bomb_is_refused_from_its_header() -> None:
    """The pixels are garbage: reading any of them would fail in another way."""
    message = reason(png(20_000, 20_000, 8, 2, png_chunk(b"IDAT", b"no pixels")))
    assert message == (
        "decode_image: PNG of 20000 x 20000 is 400,000,000 pixels, expected at most 100,000,000"
    )


def test_max_pixels_are_allowed_and_one_more_is_not() -> None:
    data = encoded(photo(40, 30))
    assert decode(data, max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(RowErrors) as caught:
        DecodeImage(DecodeImageConfig(max_pixels=1199))(batch_of(data))
    assert caught.value.good == {"image": []}
    assert "1,200 pixels, expected at most 1,199" in str(caught.value.errors[0])


@pytest.mark.parametrize("pillow_limit", [1000, 500])
def test_pillows_own_limit_neither_warns_nor_refuses(
    pillow_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns above its limit and refuses above twice that; here are 1,200 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    assert decode(encoded(photo(40, 30), "JPEG")).shape == (30, 40, 3)


def test_null() -> None:
    assert reason(None) == "decode_image: 0 bytes, expected an image file"


def test_zero_bytes() -> None:
    assert reason(b"") == "decode_image: 0 bytes, expected an image file"


def test_text_file() -> None:
    message = reason(b"once upon a time")
    assert "no known image format, the file starts with b'once upon a time'" in message
    assert "expected one of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM" in message


def test_formats_that_run_programs_are_not_known() -> None:
    assert "no known image format" in reason(encoded(photo(), "EPS"))


def test_truncated_jpeg() -> None:
    data = encoded(photo(200, 200), "JPEG", quality=95)
    message = reason(data[: len(data) // 2])
    assert f"broken JPEG of {len(data) // 2:,} bytes: OSError: image file is truncated" in message


def test_jpeg_cut_in_its_header() -> None:
    assert "broken JPEG" in reason(encoded(photo(), "JPEG")[:30])


def test_truncated_png() -> None:
    assert "broken PNG" in reason(encoded(photo())[:-40])


def test_png_with_a_wrong_checksum() -> None:
    data = bytearray(encoded(photo()))
    data[29] ^= 1
    assert "broken PNG" in reason(bytes(data))


def test_png_with_garbage_for_zlib() -> None:
    assert "broken PNG" in reason(png(8, 8, 8, 2, png_chunk(b"IDAT", b"\x78\x9cnot zlib at all")))


def test_png_signature_only() -> None:
    assert "broken PNG" in reason(b"\x89PNG\r\n\x1a\n")


def test_png_text_bomb() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 70_000_000, zip=True)
    assert "broken PNG" in reason(encoded(photo(), pnginfo=text))


def test_truncated_webp() -> None:
    assert "broken WEBP" in reason(encoded(photo(), "WEBP")[:40])


def test_text_that_starts_like_a_bitmap() -> None:
    assert "broken BMP" in reason(b"BMW is a make of cars and motorcycles, from Munich")


def test_odd_metadata_gives_no_warning() -> None:
    """An animation of no frames makes Pillow warn and use the still image."""
    data = encoded(photo())
    start = data.find(b"IDAT") - 4
    animation = png_chunk(b"acTL", struct.pack(">II", 0, 0))
    found = decode(data[:start] + animation + data[start:])
    np.testing.assert_array_equal(found, np.asarray(photo()))


def test_tag_beyond_the_end_gives_no_warning() -> None:
    data = bytearray(encoded(photo(), "TIFF", software="x" * 20))
    entry = data.find(struct.pack("<HH", 305, 2))
    data[entry + 8 : entry + 12] = struct.pack("<I", 0x7FFFFFF0)
    np.testing.assert_array_equal(decode(bytes(data)), np.asarray(photo()))


def test_threads_give_no_warning() -> None:
    op = DecodeImage(DecodeImageConfig())
    batch = batch_of(*[encoded(palette_with_alpha())] * 8)
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(op, [batch] * 16):
            assert len(out["image"]) == 8


FILES = [
    encoded(photo(), "JPEG"),
    encoded(palette_with_alpha()),
    encoded(photo(), "WEBP"),
    encoded(photo(), "GIF"),
    encoded(photo(), "BMP"),
    encoded(photo(), "TIFF"),
    encoded(photo(), "PPM"),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_damage_is_either_decoded_or_a_sample_error(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for _ in range(draw.draw(st.integers(0, 4)) if damaged else 0):
        position = draw.draw(st.integers(0, min(len(damaged), 400) - 1))
        damaged[position] = draw.draw(st.integers(0, 255))
    op = DecodeImage(DecodeImageConfig(max_pixels=10_000, exif_orientation="apply"))
    try:
        image = op(batch_of(bytes(damaged)))["image"][0]
    except RowErrors:
        return
    assert image.mode == "RGB"
