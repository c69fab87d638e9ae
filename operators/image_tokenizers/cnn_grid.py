"""Tokenizers of the VQGAN family: a convolutional encoder and decoder around one quantizer."""

from abc import abstractmethod
from typing import Any, Protocol, TypeVar

from operators.image_tokenizers.base import ImageTokenizerConfig
from operators.image_tokenizers.grid import GridTokenizer
from operators.image_tokenizers.nn.cnn_arch import CNNArch


class HasCNN(Protocol):
    """Sizes of a model with such an autoencoder."""

    @property
    def cnn(self) -> CNNArch:
        """Of encoder and decoder."""
        ...


ConfigT = TypeVar("ConfigT", bound=ImageTokenizerConfig)
CNNArchT = TypeVar("CNNArchT", bound=HasCNN)


class CNNGridTokenizer(GridTokenizer[ConfigT, CNNArchT]):
    """A tokenizer adds its sizes, the names of its parameters, and its ``quantizer``."""

    @property
    def stride(self) -> int:
        """Pixels per position, along one side."""
        return self.arch.cnn.downsampling

    @property
    def code_dim(self) -> int | None:
        """Width of what is quantized; None where it is the encoder's own."""
        return None

    @abstractmethod
    def quantizer(self) -> Any:
        """Build the quantizer, on the meta device."""

    def encoder_net(self) -> Any:
        """Build the encoder."""
        from operators.image_tokenizers.nn.cnn import GridEncoder

        return GridEncoder(self.arch.cnn, self.quantizer(), self.code_dim)

    def decoder_net(self) -> Any:
        """Build the decoder."""
        from operators.image_tokenizers.nn.cnn import GridDecoder

        return GridDecoder(self.arch.cnn, self.quantizer(), self.code_dim)
