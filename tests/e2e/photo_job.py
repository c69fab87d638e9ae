"""A small corpus and its job: photographs with captions in two tars, one of them not an image."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NUM_TARS, PER_TAR, SIDE = 2, 4, 32
BROKEN = "1-2"
"""Key of the sample that is not an image."""

JOB = """\
name: photos
source:
  type: webdataset
  urls: photos-*.tar
  fields:
    image_bytes: png
    caption: txt
  partition_bytes: 1
operators:
  - name: decode_image
  - name: center_crop
    size: 32
  - name: dct_fsq
    side: 32
    patch: 16
    outputs: {tokens: image_tokens}
  - name: byte_text
    inputs: {text: caption}
    outputs: {tokens: caption_tokens}
  - name: sequence
    vocabulary:
      - special: [<bos>, <boi>]
      - text: 256
      - image: 64000
    template: [<bos>, {text: caption_tokens}, <boi>, {image: image_tokens}]
shards:
  fields: [sequence, image_tokens, caption_tokens]
output: out
run:
  max_bad_samples: 1
"""


def write_job(folder: Path, text: str = JOB) -> Path:
    """Write the job file and return its path."""
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def write_corpus(folder: Path, num_tars: int = NUM_TARS) -> None:
    """Write ``photos-0.tar``, ``photos-1.tar`` and so on, 4 samples each."""
    for tar in range(num_tars):
        with tarfile.open(folder / f"photos-{tar}.tar", "w") as file:
            for i in range(PER_TAR):
                key = f"{tar}-{i}"
                image = b"not an image" if key == BROKEN else _png(tar * PER_TAR + i)
                _add(file, f"{key}.png", image)
                _add(file, f"{key}.txt", caption(key).encode())


def caption(key: str) -> str:
    """Return the caption of a sample."""
    return f"Sample {key}: ein Gebirge, größer als ein Hügel."


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _png(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((SIDE + 8, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
