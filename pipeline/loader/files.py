"""Shards as files on this machine's disk: local ones where they lie, remote ones as copies."""

import hashlib
import os
import tempfile
from pathlib import Path

from pipeline.errors import IntegrityError, SetupError
from pipeline.manifest import DataSet
from pipeline.storage import NotFoundError

_CHUNK_BYTES = 8 << 20


class ShardFiles:
    """Finds the file of a shard, and checks it against the index.

    A local shard must have the size that the index says. A remote one is copied whole on first
    use and must have the SHA-256; the copy is named after it, so data sets may share a folder.

    Args:
        data_set: The data set.
        cache_dir: Where copies go; None is a folder of this user in the temporary folder. Nothing
            is ever removed from it.
        verify: Check the SHA-256 of local shards and of copies made earlier as well.

    Attributes:
        cache_dir: The folder of copies; views keep there what they compute.
    """

    def __init__(
        self, data_set: DataSet, cache_dir: str | os.PathLike[str] | None, *, verify: bool
    ) -> None:
        self._data_set = data_set
        self._verify = verify
        own = Path(tempfile.gettempdir()) / f"tokenmill-{os.getuid()}"
        self.cache_dir = own if cache_dir is None else Path(cache_dir)

    def uri(self, shard: int) -> str:
        """Return the address of a shard, for messages."""
        return self._data_set.shard_uri(str(self._of(shard, "path")))

    def path(self, shard: int) -> Path:
        """Return a checked file with the bytes of a shard.

        Args:
            shard: Its row in the index.

        Raises:
            NotFoundError: there is no such object.
            IntegrityError: size or SHA-256 differ from the index.
            TransientError: the store stopped answering.
        """
        uri = self.uri(shard)
        local = self._data_set.storage.local_path(uri)
        if local is None:
            local = self.cache_dir / f"{self._of(shard, 'sha256')}.arrow"
            if not local.is_file():
                self._copy(uri, shard, local)
                return local
        if not local.is_file():
            raise NotFoundError(
                f"{uri}: no such shard, the index says it has {self._of(shard, 'num_bytes'):,} "
                f"bytes and is one of {self._data_set.shards.num_rows:,}",
                hint="copy the whole folder: the manifest promises every shard of its index",
            )
        sha256 = _sha256(local) if self._verify else None
        self._check(str(local), shard, local.stat().st_size, sha256)
        return local

    def _copy(self, uri: str, shard: int, target: Path) -> None:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with (
            self._data_set.storage.open_read(uri) as source,
            tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as temp,
        ):
            try:
                try:
                    while chunk := source.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        temp.write(chunk)
                except OSError as error:  # the storage's own errors are ours already
                    raise SetupError(
                        f"{target}: {error.strerror} while copying {uri}",
                        hint="make room, or choose another cache_dir",
                    ) from None
                self._check(uri, shard, temp.tell(), digest.hexdigest())
                os.replace(temp.name, target)
            except BaseException:
                Path(temp.name).unlink()
                raise

    def _check(self, where: str, shard: int, num_bytes: int, sha256: str | None) -> None:
        size = self._of(shard, "num_bytes")
        if num_bytes != size:
            raise IntegrityError(
                f"{where}: {num_bytes:,} bytes, the index says {size:,}", hint=_ANOTHER_COPY
            )
        expected = str(self._of(shard, "sha256"))
        if sha256 is not None and sha256 != expected:
            raise IntegrityError(
                f"{where}: sha256 {sha256[:12]}, the index says {expected[:12]}", hint=_ANOTHER_COPY
            )

    def _of(self, shard: int, column: str) -> str | int:
        found: str | int = self._data_set.shards[column][shard].as_py()
        return found


_ANOTHER_COPY = "the file changed after its commit, or was copied in part; copy it again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
