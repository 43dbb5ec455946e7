"""Objects in buckets, through fsspec: s3://bucket/key (the extra `s3`), gs://bucket/key (the extra `gs`).

    found = look("s3://bucket/weights.pth")
    for block in found.blocks(start=0): ...

Credentials and endpoints come from the environment or the usual files, as s3fs and gcsfs find them: AWS_PROFILE,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..params import without_credentials

SCHEMES = ("s3", "gs")
_TAGS = ("generation", "VersionId", "ETag", "etag")  # what says that an object is still the same, the surest first
_BLOCK = 1 << 20  # bytes


class BrokenOffError(OSError):
    """The bucket's server broke off, or is in trouble: another attempt may help."""


class UnreachableError(OSError):
    """There is no way to the bucket's server."""


@dataclass(frozen=True)
class Found:
    """An object as it is now."""

    files: Any  # of fsspec
    path: str
    validator: str | None  # names its present content

    def blocks(self, start: int) -> Iterator[bytes]:
        """Its bytes from `start` on. Raises as `look` does."""
        with _translated():
            source = self.files.open(self.path, "rb")
        with source:
            source.seek(start)
            while block := _read(source):
                yield block


def look(uri: str) -> Found:
    """The object behind an address.

    Raises:
        CheckpointError: the package that reads such buckets is not installed.
        BrokenOffError: the server is in trouble.
        UnreachableError: there is no way to it.
        OSError: there is no such object, or this account may not read it.
    """
    import fsspec

    scheme = uri.partition(":")[0]
    with _translated():
        try:  # no instance or listing is kept: the object may have changed since
            files, path = fsspec.url_to_fs(uri, skip_instance_cache=True, use_listings_cache=False)
        except ImportError:
            raise CheckpointError(
                f"{without_credentials(uri)} needs the extra `{scheme}` of Refit: "
                f"`uv pip install --python .venv -e '.[{scheme}]'`"
            ) from None
        said = files.info(path)
    return Found(files, path, next((str(said[tag]) for tag in _TAGS if said.get(tag)), None))


def _read(source: Any) -> bytes:
    with _translated():
        return bytes(source.read(_BLOCK))


@contextmanager
def _translated() -> Iterator[None]:
    """The many errors of the clients (botocore's, aiohttp's, Google's) as ours, by what they are called."""
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except FileNotFoundError:
        raise OSError("there is no such object") from None
    except PermissionError as error:
        raise OSError(f"this account may not read it ({error})") from None
    except Exception as error:
        names = " ".join(kind.__name__ for kind in type(error).__mro__)
        if "Credentials" in names or "RefreshError" in names:
            raise OSError(f"no account for it is set up here ({error})") from None
        kind = UnreachableError if "Connection" in names and "Connect" in type(error).__name__ else BrokenOffError
        raise kind(" ".join(str(error).split()) or type(error).__name__) from None
