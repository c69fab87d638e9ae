"""What goes wrong with a disk, a store or the network, in our words and without credentials."""

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.errors import IntegrityError, SetupError, TokenmillError, TransientError


class NotFoundError(IntegrityError):
    """An object that should exist does not."""


class Answer(NamedTuple):
    """What a store said when it refused; "" and 0 for what it did not say."""

    code: str
    message: str
    status: int


def translate(where: str, error: Exception, secrets: Sequence[str]) -> TokenmillError | None:
    """Return our error for one of a disk, a store or the network; None for a defect.

    Args:
        where: What was asked for, as people may read it.
        error: What was raised.
        secrets: What must not show.
    """
    name, package = type(error).__name__, type(error).__module__.partition(".")[0]
    code, message, status = answer(error)
    says = hide(f"{code}: {message}" if code[:1].isalpha() else "", secrets)
    said = says or (f"HTTP {status}" if status else "")
    if name == "FileExpired" or status in (412, 416):
        return IntegrityError(
            f"{where}: the object changed while it was read",
            hint="put it back, or plan the data set anew",
        )
    if code == "NoSuchUpload":
        return TransientError(f"{where}: the upload is gone ({says})")
    if code == "NoSuchBucket":
        return SetupError(f"{where}: no such bucket", hint="create it, or check the name")
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFoundError(f"{where}: no such object")
    if code in _CREDENTIALS_ENDED:
        return SetupError(
            f"{where}: the credentials have expired ({says})",
            hint="renew them and run the same command again; what is done stays",
        )
    if isinstance(error, PermissionError) or status in (401, 403):
        return _no_permission(where, said or getattr(error, "strerror", None) or name)
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return SetupError(f"{where}: {str(error.strerror).lower()}", hint="check the path")
    if (300 <= status < 500 or status == 501) and not (
        status in _FOR_NOW or code in _DAMAGED_ON_THE_WAY
    ):
        return SetupError(
            f"{where}: the store refused the request ({said})",
            hint="check the URL, and the job's storage options",
        )
    if isinstance(error, OSError):
        if error.errno in _DISK_IS_FULL:
            return SetupError(
                f"{where}: {str(error.strerror).lower()}",
                hint="free space or choose another folder, then run again",
            )
        return _transient(where, error, secrets)
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return SetupError(
            f"{where}: no credentials were found",
            hint="set them in the environment, a profile, or the job's storage options",
        )
    if name in _WRONG_SETTINGS:
        text = hide(" ".join(str(error).split()), secrets)
        return SetupError(
            f"{where}: {text}", hint="check the job's storage.s3 and the AWS configuration"
        )
    if isinstance(error, ValueError) and "range requests" in str(error):
        return SetupError(
            f"{where}: the server does not answer range requests",
            hint="copy the files to a disk or an object store",
        )
    return _transient(where, error, secrets) if package in _NETWORK_PACKAGES else None


def answer(error: BaseException) -> Answer:
    """Return what a store said, as its client's error tells it."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, Mapping):  # of botocore
            about = response.get("Error", {})
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return Answer(
                str(about.get("Code", "")), str(about.get("Message", "")), _as_int(status)
            )
        if response is not None:  # of httpx and requests
            return Answer("", "", _as_int(getattr(response, "status_code", 0)))
    return Answer("", "", _as_int(getattr(error, "status", 0)))  # of aiohttp


def _as_int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def secrets_in(options: Any, *, secret: bool = False) -> Iterator[str]:
    """Yield what stands under the name of a secret, however deep."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from secrets_in(value, secret=secret or bool(_SECRET_NAME.search(str(name))))
    elif isinstance(options, Sequence) and not isinstance(options, str | bytes):
        for value in options:
            yield from secrets_in(value, secret=secret)
    elif secret and options and not isinstance(options, bool):
        yield str(options)


def hide(text: str, secrets: Sequence[str]) -> str:
    """Return a text without secrets, passwords in URLs and queries, which may be signatures."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, "***")
    return _QUERY.sub("?***", _USER.sub("***@", text))


def shown(uri: str) -> str:
    """Return a URI for people to read: without a password, and without a query (a signature)."""
    return _USER.sub("***@", uri.partition("?")[0] if "://" in uri else uri)


def _transient(where: str, error: Exception, secrets: Sequence[str]) -> TransientError:
    code, message, status = answer(error)
    if code:
        told = ": ".join(part for part in (code.strip("0123456789"), message) if part)
        text = f"the store answered with HTTP {status} ({told})"
    else:
        text = f"{type(error).__name__}: {error}"
    hint = None
    if type(error).__name__ == "FlexibleChecksumError":
        hint = (
            "if it stays so, the store has its own idea of checksums: set storage.s3 to "
            "{config_kwargs: {response_checksum_validation: when_required}}"
        )
    return TransientError(f"{where}: {hide(' '.join(text.split()), secrets)}", hint=hint)


def _no_permission(where: str, what: str) -> SetupError:
    return SetupError(
        f"{where}: permission denied ({what})",
        hint="check the path's owner, or the credentials in the environment or the job",
    )


_NETWORK_PACKAGES = (
    *("aiobotocore", "aiohttp", "botocore", "fsspec", "s3fs"),
    *("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"),
)
"""Where errors come from that mean the store did not answer; not all of them are OSErrors."""

_CREDENTIALS_ENDED = (
    *("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
)
_FOR_NOW = (408, 409, 425, 429)
"""What of HTTP's 4xx may go well the next time; 409 is two conditional writes at one moment."""

_DAMAGED_ON_THE_WAY = (
    *("BadDigest", "IncompleteBody", "InvalidDigest", "RequestTimeout"),
    *("XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"),
)
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_WRONG_SETTINGS = (
    *("ConfigNotFound", "ConfigParseError", "InfiniteLoopConfigError", "InvalidConfigError"),
    *("NoRegionError", "ParamValidationError", "ProfileNotFound", "RefreshWithMFAUnsupportedError"),
    *("SSOTokenLoadError", "TokenRetrievalError", "UnauthorizedSSOTokenError"),
    *("UnknownCredentialError",),
)
"""botocore's errors that no further attempt mends."""

_QUERY = re.compile(r"(?<=[^\s?])\?[^\s?]+=\S+")
_USER = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_NAME = re.compile("key|secret|token|password|auth|credential|cookie", re.IGNORECASE)
