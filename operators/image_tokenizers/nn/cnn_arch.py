"""Sizes and habits of the convolutional autoencoders of the VQGAN family."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CNNArch:
    """One autoencoder; the defaults are those of VQGAN at 16 pixels a position.

    Level 0 is the finest. Every level but the last halves the resolution.

    Attributes:
        width: Channels of level 0, before ``mult``.
        mult: Channels per level, in ``width``.
        num_blocks: Residual blocks per level of the encoder, and in the middle where
            ``mid`` is ``blocks``.
        num_decoder_blocks: Residual blocks per level of the decoder.
        z_channels: What the encoder gives and the decoder takes.
        attention_levels: Levels with attention after each residual block.
        mid: Between the levels and the head: ``attention`` is a block, attention, a block;
            ``blocks`` are ``num_blocks`` blocks; ``pair`` is two blocks, whatever their number.
        biases: Convolutions of blocks and the encoder's first one have biases.
        downsample: ``padded`` is a strided convolution with a zero row and column at the end;
            ``symmetric`` one with zeros all around; ``pool`` averages 2 x 2.
        head_kernel: Side of the encoder's last convolution.
        upsample: ``nearest``, then a convolution; or a convolution to four times the channels
            that become 2 x 2 pixels.
        adaptive: The decoder normalizes each level by the code's statistics.
        shortcut_of_branch: Where channels change, the shortcut's 1 x 1 convolution reads the
            branch, not the input, which is then not added at all: a quirk of MaskGIT's model.
    """

    width: int = 128
    mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    num_decoder_blocks: int = 3
    z_channels: int = 256
    attention_levels: tuple[int, ...] = ()
    mid: Literal["attention", "blocks", "pair"] = "attention"
    biases: bool = True
    downsample: Literal["padded", "symmetric", "pool"] = "padded"
    head_kernel: int = 3
    upsample: Literal["nearest", "depth_to_space"] = "nearest"
    adaptive: bool = False
    shortcut_of_branch: bool = False

    @property
    def num_levels(self) -> int:
        """Resolutions."""
        return len(self.mult)

    @property
    def downsampling(self) -> int:
        """Pixels per position, along one side."""
        return int(2 ** (self.num_levels - 1))

    def channels(self, level: int) -> int:
        """Channels of a level."""
        return self.width * self.mult[level]


def maskgit_cnn(
    width: int = 128,
    mult: tuple[int, ...] = (1, 1, 2, 2, 4),
    num_blocks: int = 2,
    z_channels: int = 256,
) -> CNNArch:
    """Return MaskGIT's autoencoder: pooling, no attention, no biases, a quirk in the shortcut."""
    return CNNArch(
        width=width,
        mult=mult,
        num_blocks=num_blocks,
        num_decoder_blocks=num_blocks,
        z_channels=z_channels,
        mid="blocks",
        biases=False,
        downsample="pool",
        head_kernel=1,
        shortcut_of_branch=True,
    )


NameRule = Callable[[str], str]


def taming_name(name: str) -> str:
    """Return the name in taming-transformers' checkpoints, and those of LDM and IBQ."""
    parts = {"0": "block_1", "1": "attn_1", "2": "block_2"}
    return re.sub(r"\.mid\.(\d)\.", lambda match: f".mid.{parts[match[1]]}.", name)


def llamagen_name(num_decoder_levels: int) -> NameRule:
    """Return the rule for LlamaGen's checkpoints, whose decoder counts levels from the coarsest."""

    def rule(name: str) -> str:
        name = re.sub(r"\.block\.", ".res.", name)
        name = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", name)
        last = num_decoder_levels - 1
        return re.sub(
            r"^decoder\.up\.(\d+)\.",
            lambda match: f"decoder.conv_blocks.{last - int(match[1])}.",
            name,
        )

    return rule


def maskgit_name(name: str) -> str:
    """Return the name in the PyTorch checkpoints of MaskGIT's VQGAN."""
    return name.replace(".upsample.conv.", ".upsample_conv.")


def magvit2_name(name: str) -> str:
    """Return the name in Open-MAGVIT2's checkpoints."""
    name = name.replace(".mid.", ".mid_block.").replace(".downsample.conv.", ".downsample.")
    return name.replace(".upsample.conv.", ".upsample.conv1.")


def gigatok_name(num_decoder_levels: int, *, to_space: bool) -> NameRule:
    """Return the rule for GigaTok's checkpoints: LlamaGen's, and two names of its own."""
    llamagen, last = llamagen_name(num_decoder_levels), num_decoder_levels - 1

    def rule(name: str) -> str:
        name = re.sub(
            r"^decoder\.adaptive\.(\d+)\.",
            lambda match: f"decoder.adaptive.{last - int(match[1])}.",
            llamagen(name),
        )
        return name.replace(".upsample.conv.", ".upsample.conv1.") if to_space else name

    return rule
