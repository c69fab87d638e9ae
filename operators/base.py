"""The contract of operators and filters, and the columns that flow between them.

A batch maps field names to columns. What a column is follows from its field's spec:

==========================  ========================================================
spec                        column of N rows
==========================  ========================================================
numeric, fixed shape        ``np.ndarray`` [N, *shape]
numeric, ``None`` first     ``Ragged``: values [M, *rest] and offsets int64 [N + 1]
``string``, ``binary``      ``pa.Array`` of large_string / large_binary
``pillow``                  list of N RGB ``PIL.Image.Image`` (any size)
==========================  ========================================================

On a device stage numeric columns are ``torch.Tensor`` on the operator's device instead, and stay
there from one device operator to the next.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    runtime_checkable,
)

import ml_dtypes  # noqa: F401 - numpy then knows bfloat16 by name
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from operators.model_files import DirectFiles, ModelFiles

NON_NUMERIC = ("string", "binary", "pillow")


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of different length in one buffer.

    Row i is ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: [M, *rest], all rows one after another.
        offsets: int64 [N + 1], rising from 0 to M.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], values per row."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return int(self.values.nbytes + self.offsets.nbytes)


Column = Any  # one of the above: numpy, pyarrow and torch share no useful base
Batch = Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What one field of a sample is.

    Attributes:
        dtype: A numpy dtype name, ``bfloat16``, ``string``, ``binary`` or ``pillow``. In an
            operator's ``inputs`` several may be allowed: ``"uint8|uint16|uint32"``.
        shape: Per-sample shape; ``None`` is a ragged dimension (or, in ``inputs``, any).
        vocab_size: Ids lie in [0, vocab_size); None for fields that hold no ids. In
            ``inputs`` it is the largest vocabulary that is accepted.
    """

    dtype: str
    shape: tuple[int | None, ...] = ()
    vocab_size: int | None = None

    @property
    def is_numeric(self) -> bool:
        """True for numpy dtypes, False for text, bytes and Pillow images."""
        return self.dtype not in NON_NUMERIC

    @property
    def is_ragged(self) -> bool:
        """True when a row's length is not fixed by the spec."""
        return self.is_numeric and None in self.shape

    def accepts(self, found: "FieldSpec") -> bool:
        """Say whether a column of spec ``found`` may be given where this spec is asked for."""
        if found.dtype not in self.dtype.split("|"):
            return False
        if self.is_numeric and len(self.shape) != len(found.shape):
            return False
        pairs = zip(self.shape, found.shape, strict=False)
        if self.is_numeric and any(want not in (None, has) for want, has in pairs):
            return False
        if self.vocab_size is None:
            return True
        return found.vocab_size is not None and found.vocab_size <= self.vocab_size

    def __str__(self) -> str:
        dims = "".join(f"{'*' if d is None else d}, " for d in self.shape).rstrip(", ")
        ids = "" if self.vocab_size is None else f" < {self.vocab_size:,}"
        return f"{self.dtype}[{dims}]{ids}" if self.shape else f"{self.dtype}{ids}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one instance of an operator needs; a statement, not a scheduler call.

    Attributes:
        cpus: Processor cores kept busy.
        gpus: Accelerators; a fraction shares one.
        gpu_memory_bytes: Accelerator memory, 0 when it needs none.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    gpu_memory_bytes: int = 0


class OperatorConfig(BaseModel):
    """What a job may say about an operator. Subclasses add fields with defaults and bounds.

    ``inputs`` and ``outputs`` rename: operator's own field name -> the job's field name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    inputs: Annotated[
        dict[str, str], Field(description="Rename what is read: the operator's name -> the job's.")
    ] = {}
    outputs: Annotated[
        dict[str, str], Field(description="Rename what is added: the operator's name -> the job's.")
    ] = {}


ConfigT = TypeVar("ConfigT", bound=OperatorConfig)


class _Step(ABC, Generic[ConfigT]):
    """What operators and filters share."""

    Config: ClassVar[type[OperatorConfig]]
    version: ClassVar[int] = 1
    """Raise it when the same config and input give other output: it enters the fingerprint."""

    stage: ClassVar[Literal["cpu", "device"]] = "cpu"
    """``cpu``: called on small chunks from several threads at once. ``device``: called from one
    thread with batches of the job's ``batch_size``, padded to it, as torch tensors on the device
    that ``setup`` was given."""

    first_rows: ClassVar[int] = 0
    """How many rows at the beginning of a partition are shown to ``look_at_first``."""

    model_files: ModelFiles = DirectFiles()
    """Where to ask for weights, vocabularies and the like. In a job the pipeline sets it right
    after ``__init__``, so ask later. What is asked for on the driver (by ``identity`` at the
    latest) is fetched once, and every worker is given these very bytes."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def bind(self, fields: Mapping[str, FieldSpec]) -> None:
        """Take note of what the job gives, for steps whose outputs follow it.

        Called once, on the driver and in every worker, before ``inputs`` and ``outputs`` count.

        Args:
            fields: Those of ``inputs`` that are there, by the operator's own names.
        """

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, FieldSpec]:
        """Exactly the fields that are read. ``key`` (string) is there for every sample."""

    @property
    def optional_inputs(self) -> frozenset[str]:
        """Which of ``inputs`` it does without where the job does not give them."""
        return frozenset()

    @property
    def resources(self) -> Resources:
        """What one instance needs."""
        return Resources()

    @property
    def device(self) -> str:
        """Torch device of a device stage: ``cpu`` or ``cuda``."""
        return "cpu"

    def setup(self, device: str) -> None:
        """Load what is needed, once per worker, before the first call.

        Raises:
            SetupError: weights, an extra or the device are missing.
        """

    def look_at_first(self, batch: Batch) -> None:
        """Look at one of the ``first_rows`` of a partition before it is processed (CPU stage).

        Rows that an earlier step took out are not shown. The row's own faults are passed over
        here: they are told when the step is called on it.

        Args:
            batch: The fields of ``inputs``, one row.

        Raises:
            DecisionError: a setting cannot hold for this corpus.
        """

    def identity(self) -> Mapping[str, object]:
        """Everything beside config and version that changes the output, as JSON values.

        For example weight file digests. Called on the driver, before and without ``setup``.
        A key ``warning`` (text) is shown to the user and kept in the manifest; a true
        ``random_weights`` marks the tokens as meaningless.
        """
        return {}


class Operator(_Step[ConfigT]):
    """Maps N rows to the same N rows in order, adding exactly ``outputs`` from ``inputs``.

    A row's result depends neither on its company nor on earlier batches.

    Example:
        >>> class UpperConfig(OperatorConfig):
        ...     name: Literal["upper"] = "upper"
        >>> class Upper(Operator[UpperConfig]):
        ...     Config = UpperConfig
        ...     inputs = {"text": FieldSpec("string")}
        ...     outputs = {"text": FieldSpec("string")}
        ...
        ...     def __call__(self, batch: Batch) -> Batch:
        ...         return {"text": pa.compute.utf8_upper(batch["text"])}
    """

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, FieldSpec]:
        """Exactly the fields that are added (or replaced, when a name is also an input)."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Batch:
        """Compute ``outputs`` for every row.

        Raises:
            RowErrors: some rows are unusable; it carries the results of the others.
            SampleError: the only row is unusable.
        """

    @property
    def offers(self) -> Mapping[str, str]:
        """Further fields, and what they are, that it adds only when something later reads them."""
        return {}

    @property
    def lacks(self) -> Mapping[str, str]:
        """Fields that one might expect, and which option provides them, for error messages."""
        return {}

    def provide(self, names: frozenset[str]) -> None:
        """Add these of the fields it ``offers`` as well, from ``bind`` on."""

    def metadata(self) -> Mapping[str, object]:
        """What a reader of the tokens must know (vocabulary ranges, grid, ...), as JSON values."""
        return {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter says of N rows.

    Attributes:
        codes: uint8 [N]; 0 keeps the row, i > 0 drops it for ``reasons[i - 1]``.
        reasons: Names of the reasons, short and fixed: they are counted in the report.
    """

    codes: np.ndarray
    reasons: tuple[str, ...]

    @property
    def keep(self) -> np.ndarray:
        """Bool [N]."""
        kept: np.ndarray = self.codes == 0
        return kept


class Filter(_Step[ConfigT]):
    """Says which rows stay; never alters fields."""

    @abstractmethod
    def __call__(self, batch: Batch) -> Verdict:
        """Judge every row."""


Step = Operator[Any] | Filter[Any]


@runtime_checkable
class Invertible(Protocol):
    """An operator whose tokens can be turned back into something to look at."""

    def decode(self, batch: Batch) -> Batch:
        """Map the operator's outputs to an approximation of its inputs.

        Loads what it needs on the first call (``setup`` is not called before). Numpy and pyarrow
        columns in and out, ``image`` as uint8 [N, H, W, 3], ``text`` as large_string.
        """
        ...


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that shows what became of its parts.

    Attributes:
        pixels: uint8 [H, W, 3], or [V, H, W, 3] of V views.
        note: What stands below it, a few words.
    """

    pixels: np.ndarray
    note: str


@runtime_checkable
class Drawable(Protocol):
    """An operator whose outputs say what becomes of the parts of a picture."""

    @property
    def drawn_from(self) -> tuple[str, ...]:
        """Which of its outputs it needs for that."""
        ...

    def draw(self, batch: Batch, pictures: Sequence[np.ndarray]) -> Sequence[Drawing]:
        """Show the outputs of N rows over the pictures they come from; without ``setup``.

        Args:
            batch: The fields of ``drawn_from``, as numpy columns.
            pictures: uint8 [H, W, 3] each, or [V, H, W, 3].
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenPieces:
    """What the ids of a text tokenizer stand for.

    Attributes:
        texts: large_binary [V], the bytes of each id; null for one that stands for no text:
            specials, gaps in the vocabulary.
        unknown_id: What text outside the vocabulary becomes, or None.
    """

    texts: Any
    unknown_id: int | None = None


@runtime_checkable
class HasPieces(Protocol):
    """A text tokenizer whose ids stand for certain bytes each, so that they can be judged."""

    def pieces(self) -> TokenPieces:
        """Return what each id stands for; loads what it needs, ``setup`` is not called before."""
        ...


def smallest_uint(vocab_size: int) -> str:
    """Return the smallest unsigned dtype that holds ids below ``vocab_size``."""
    for name in ("uint8", "uint16", "uint32"):
        if vocab_size <= np.iinfo(name).max + 1:
            return name
    return "uint64"
