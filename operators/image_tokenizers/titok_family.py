"""What TiTok, TA-TiTok and One-D-Piece share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from operators.errors import ContractError, SetupError
from operators.image_tokenizers.base import UNIT, ImageTokenizer, ImageTokenizerConfig
from operators.image_tokenizers.layout import TokenLayout
from operators.image_tokenizers.nn.titok_arch import TiTokArch, arch_of_config

if TYPE_CHECKING:
    import torch

ConfigT = TypeVar("ConfigT", bound=ImageTokenizerConfig)


class TiTokFamily(ImageTokenizer[ConfigT, TiTokArch]):
    """Images of one size to a row of latents, read by a vision transformer and quantized."""

    normalization = UNIT
    encoder_ignores = ("decoder.", "pixel_decoder.", "pixel_quantize.")
    decoder_ignores = ("encoder.", "latent_tokens")
    training_only = ("quantize.embed_prob",)

    def arch_of_config(self, config: Mapping[str, Any], where: str) -> TiTokArch:
        """Read the authors' entries."""
        return arch_of_config(config, where)

    @property
    def image_sides(self) -> tuple[int, int]:
        """Those of the model."""
        return (self.arch.side, self.arch.side)

    @property
    def layout(self) -> TokenLayout:
        """A row of latents."""
        size = self.arch.codebook_size
        return TokenLayout(self.arch.num_latents, () if size is None else (size,))

    @property
    def reads_text(self) -> bool:
        """True where the decoder looks at a text as well."""
        return False

    @property
    def fewest_decoded(self) -> int:
        """The least number of tokens that an image is drawn from; the most is the model's."""
        return self.arch.num_latents

    def stored_name(self, name: str) -> str:
        """Return the published name of a parameter."""
        from operators.image_tokenizers.nn.cnn_arch import maskgit_name

        return maskgit_name(name)

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.titok_net import TiTokEncoder

        return TiTokEncoder(self.arch)

    def decoder_net(self) -> Any:
        """Build the decoder.

        Raises:
            SetupError: the checkpoint has none that gives pixels.
        """
        from operators.image_tokenizers.nn.titok_net import TiTokDecoder

        if self.arch.legacy and self.arch.pixels is None:
            raise SetupError(
                f"{self.config.name}: {self._weights} is a checkpoint of the first stage: its "
                "decoder gives MaskGIT codes, not images",
                hint="use one of the second stage, which holds pixel_quantize and pixel_decoder",
            )
        return TiTokDecoder(self.arch, reads_text=self.reads_text)

    def decode_tokens(
        self, ids: "torch.Tensor", text: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """Return images float32 [B, 3, H, H] about [0, 1].

        Args:
            ids: Integers [B, L], or continuous latents [B, L, C].
            text: For decoders that read it: the last hidden states of CLIP's ViT-L/14 text model
                after its final norm, [B, 77, 768].

        Raises:
            ContractError: there are more or fewer tokens than the model draws from, or the text
                is missing or not wanted.
        """
        import torch

        from operators.image_tokenizers.nn.precision import float32_arithmetic

        self._check_decoder_inputs(ids, text)
        codes = ids.to(self._device, torch.float32 if ids.is_floating_point() else torch.int64)
        states = None if text is None else text.to(self._device, torch.float32)
        with torch.inference_mode(), float32_arithmetic(tf32=False):
            found: torch.Tensor = self.decoder(codes, states)
        return found

    def _check_decoder_inputs(self, ids: "torch.Tensor", text: "torch.Tensor | None") -> None:
        name, arch = self.config.name, self.arch
        least, most = self.fewest_decoded, arch.num_latents
        if not least <= ids.shape[1] <= most:
            wanted = f"{most}" if least == most else f"{least} to {most}"
            raise ContractError(
                f"{name}: {ids.shape[1]} tokens of an image, expected {wanted}",
                hint="these tokens were not made by this model",
            )
        if not self.reads_text and text is not None:
            raise ContractError(
                f"{name}: text is given, but {self._weights} draws from tokens alone",
                hint="leave the text out",
            )
        expected = (len(ids), arch.text_tokens, arch.text_dim)
        if self.reads_text and (text is None or tuple(text.shape) != expected):
            found = "no text is" if text is None else f"a text {list(text.shape)} is"
            raise ContractError(
                f"{name}: {found} given, but {self._weights} draws images from tokens and text "
                f"features {list(expected)}",
                hint="call decode_tokens(tokens, text) with the last hidden states of CLIP "
                "ViT-L/14's text model, after its final norm",
            )
