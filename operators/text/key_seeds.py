"""Seeds of random numbers that depend on a job's seed, a purpose and a sample's key alone."""

import hashlib

import numpy as np
import pyarrow as pa


def seeds_of_keys(seed: int, purpose: str, keys: pa.Array) -> np.ndarray:
    """Return uint64 [N]: the first 8 bytes (little endian) of SHA-256 of ``seed/purpose/key``.

    Args:
        seed: Of the job.
        purpose: What is drawn; another purpose gives independent numbers.
        keys: Of the samples, large_string [N].
    """
    prefix = f"{seed}/{purpose}/"
    digests = [hashlib.sha256(f"{prefix}{key}".encode()).digest()[:8] for key in keys.to_pylist()]
    return np.frombuffer(b"".join(digests), "<u8").copy()  # writable, as compiled code has it
