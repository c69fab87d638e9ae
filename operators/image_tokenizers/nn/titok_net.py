"""The two halves of TiTok, TA-TiTok and One-D-Piece; names of parameters are the published ones.

Shapes: B batch, L latents, C channels of a latent, W width, g patches along a side, p patch side,
K codes of the pixel decoder, D width of one, H image side.
"""

import torch
from torch import nn

from operators.image_tokenizers.nn.cnn import CNNDecoder
from operators.image_tokenizers.nn.latent_vit import LatentDecoder, LatentEncoder
from operators.image_tokenizers.nn.patches import unpatchify
from operators.image_tokenizers.nn.titok_arch import PIXEL_CODEBOOK, TiTokArch
from operators.image_tokenizers.quantize.gaussian import DiagonalGaussian
from operators.image_tokenizers.quantize.vq import VQ


class TiTokEncoder(nn.Module):  # type: ignore[misc]
    """Images to latents [B, L, C], or to means and log variances [B, L, 2 C]."""

    def __init__(self, arch: TiTokArch) -> None:
        super().__init__()
        self.latent_tokens = nn.Parameter(torch.empty(arch.num_latents, arch.encoder.width))
        continuous = arch.codebook_size is None
        self.encoder = LatentEncoder(
            arch.encoder,
            patch=arch.encoder_patch,
            grid=arch.encoder_grid,
            num_latents=arch.num_latents,
            channels=arch.channels * (2 if continuous else 1),
            interleaved=arch.legacy,
        )
        self.quantize = DiagonalGaussian() if continuous else codebook(arch)

    def forward(self, images_B3HH: torch.Tensor) -> torch.Tensor:
        """Return [B, L, C], or [B, L, 2 C]."""
        return self.encoder(images_B3HH, self.latent_tokens)


class TiTokDecoder(nn.Module):  # type: ignore[misc]
    """Ids [B, L], or continuous latents [B, L, C], to images.

    Args:
        arch: Sizes.
        reads_text: TA-TiTok's, which also looks at text features.
    """

    def __init__(self, arch: TiTokArch, *, reads_text: bool) -> None:
        super().__init__()
        if arch.codebook_size is not None:
            self.quantize = codebook(arch)
        self.decoder = CodeHead(arch) if arch.legacy else PixelHead(arch, reads_text=reads_text)
        if arch.pixels is not None:
            self.pixel_quantize = VQ(PIXEL_CODEBOOK, arch.pixels.z_channels)
            self.pixel_decoder = CNNDecoder(arch.pixels)

    def forward(self, codes: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """Return images [B, 3, H, H].

        Args:
            codes: Ids [B, L] or latents [B, L, C].
            text: Features of a text, for those that read it.
        """
        latents_BLC = codes if codes.is_floating_point() else self.quantize.decode(codes)
        if isinstance(self.decoder, PixelHead):
            return self.decoder(latents_BLC, text)
        shares_BKgg = self.decoder(latents_BLC).softmax(dim=1)
        entries_KD = self.pixel_quantize.embedding.weight
        return self.pixel_decoder((shares_BKgg.movedim(1, -1) @ entries_KD).movedim(-1, 1))


class CodeHead(LatentDecoder):
    """Draws a logit for each MaskGIT code and patch."""

    def __init__(self, arch: TiTokArch) -> None:
        width = arch.decoder.width
        super().__init__(
            arch.decoder,
            grid=arch.decoder_grid,
            num_latents=arch.num_latents,
            channels=arch.channels,
        )
        self.ffn = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, PIXEL_CODEBOOK, 1)
        )

    def forward(self, latents_BLC: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K, g, g]."""
        return self.ffn(self.draw(latents_BLC))


class PixelHead(LatentDecoder):
    """Draws the pixels of each patch."""

    def __init__(self, arch: TiTokArch, *, reads_text: bool) -> None:
        width, patch = arch.decoder.width, arch.decoder_patch
        super().__init__(
            arch.decoder,
            grid=arch.decoder_grid,
            num_latents=arch.num_latents,
            channels=arch.channels,
        )
        self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch**2, 1))
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        if reads_text:
            self.text_guidance_proj = nn.Linear(arch.text_dim, width)
            self.text_guidance_positional_embedding = nn.Parameter(
                torch.empty(arch.text_tokens, width)
            )
        self._patch = patch

    def forward(self, latents_BLC: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        """Return images [B, 3, H, H]."""
        if text is not None:
            text = self.text_guidance_proj(text) + self.text_guidance_positional_embedding
        patches_BTd = self.ffn(self.draw(latents_BLC, text)).flatten(2).transpose(1, 2)
        return self.conv_out(unpatchify(patches_BTd, self._patch, self.grid))


def codebook(arch: TiTokArch) -> VQ:
    """Return the quantizer of a model that has one."""
    assert arch.codebook_size is not None
    return VQ(
        arch.codebook_size,
        arch.channels,
        metric="cosine" if arch.unit_length else "euclidean",
        normalized=arch.unit_length,
    )
