"""Stores that fsspec reaches, such as S3 and Hugging Face: which files lie at an address, and their bytes."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.config import conf
from fsspec.registry import known_implementations

from lmcore.download.fetch import Body, RemoteFile, TransferError, persist
from lmcore.download.local import WILDCARDS
from lmcore.download.web import NEEDS_CREDENTIALS, WebFile
from lmcore.errors import DataError, LmcoreError, ParameterError
from lmcore.runtime.progress import warn

CHUNK_BYTES = 1 << 22  # one request each, and the most that a broken connection loses
NAME_BYTES = 255  # the most that file systems take
# What fsspec reaches on this machine; download.path is for that, and says what is wrong with it.
NOT_STORES = {"file", "local", "memory", "data", "http", "https"}
EXTRAS = {"s3": "s3", "s3a": "s3", "hf": "hf"}
# Which version of a file it is, by the names that the drivers have for that; a time only where there is no checksum.
MARKS = ("ETag", "etag", "mtime", "last_modified", "LastModified")
OUR_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


def explain_address(address: str) -> str | None:
    """What is wrong with the address of a store; None if nothing is."""
    protocol, separator, path = address.partition("://")
    if "::" in address:
        return "chained addresses (a::b) are not read: fetch the archive and unpack it yourself"
    if not separator or protocol in NOT_STORES or protocol not in fsspec.available_protocols():
        return (
            "must be an address such as https://..., s3://bucket/texts/*.parquet or hf://datasets/OWNER/NAME/*.parquet"
        )
    return None if path.strip("/") else "must name something in the store"


def list_files(address: str) -> tuple[dict[str, RemoteFile], str | None]:
    """The file, the folder's files or those that the pattern matches at `address`, but hidden ones.

    By their names below it; and the version of the whole, a commit, if it has any.
    Raises LmcoreError without the driver, DataError if nothing is there, if access is denied, or if a name cannot be a
    file's name below one folder.
    """
    protocol = address.partition("://")[0]
    system, path = _connect(protocol, address)

    def look() -> tuple[int, dict[str, Mapping[str, Any]], str | None]:
        with _translated(address):
            pinned, version = _pin(system, path) if protocol == "hf" else (path, None)
            return *_look(system, pinned), version

    depth, found, version = persist(look, address, warn)
    folder = "/".join(address.rstrip("/").split("/")[: -depth or None])
    files = {}
    for full, info in found.items():
        name = "/".join(full.split("/")[path.count("/") + 1 - depth :])
        if not any(part.startswith(".") and part.strip(".") for part in name.split("/")):
            _check_name(address, name)
            files[name] = _describe(system, full, info, f"{folder}/{name}")
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    if clash := sorted(folders & files.keys()):  # as stores allow
        raise DataError(f"{address}: {clash[0]!r} is a file and a folder there: choose one by a pattern")
    if not files:
        raise DataError(f"{address}: no files there (hidden ones do not count)")
    return dict(sorted(files.items())), version


class StoredFile:
    """One file in a store, read in ranges."""

    def __init__(self, system: Any, path: str, url: str) -> None:
        self.system, self.path, self.url = system, path, url

    def checksum(self, mark: str | None) -> tuple[str, str] | None:
        """S3's ETag is the MD5 unless the file came in parts or is encrypted with a key of one's own."""
        if "s3" not in self.system.protocol or not re.fullmatch("[0-9a-f]{32}", mark or ""):
            return None
        bucket, key, _ = self.system.split_path(self.path)
        with _translated(self.url):
            head = self.system.call_s3("head_object", Bucket=bucket, Key=key)
        encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
        return None if encrypted else ("md5", mark or "")

    @contextmanager
    def open(self, start: int, mark: str | None) -> Iterator[Body]:
        """The bytes from `start` on if the store still has the version `mark`, else from 0 on."""
        with _translated(self.url):
            info = self.system.info(self.path)
            file = self.system.open(self.path, "rb", block_size=CHUNK_BYTES, cache_type="none")
        version = next((str(info[key]).strip('"') for key in MARKS if info.get(key)), None)
        size = info["size"]
        first = start if mark == version and start <= size else 0
        with file:
            yield Body(first, size, version, self._read(file, first, size))

    def _read(self, file: Any, place: int, size: int) -> Iterator[bytes]:
        while place < size:
            with _translated(self.url):
                file.seek(place)
                chunk = file.read(min(CHUNK_BYTES, size - place))
            if not chunk or len(chunk) > size - place:  # the latter if the server pays no heed to ranges
                return
            yield chunk
            place += len(chunk)


def _connect(protocol: str, address: str) -> tuple[Any, str]:
    """The file system of fsspec for the address, and the address in its words."""
    try:
        fsspec.get_filesystem_class(protocol)
        options = _s3_options() if EXTRAS.get(protocol) == "s3" else {}
    except ImportError:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install -e '.[{extra}]'" if extra else known_implementations[protocol]["err"]
        raise LmcoreError(f"{address}: the driver for {protocol}:// is not installed: {remedy}") from None
    try:
        system, path = fsspec.url_to_fs(address, skip_instance_cache=True, use_listings_cache=False, **options)
    except Exception as error:  # each driver has its own kinds
        raise ParameterError(f"{address}: {_one_line(error)}") from None
    return system, path.rstrip("/")


def _s3_options() -> dict[str, Any]:
    """One trial for each of ours, and no signature where there are no credentials: public buckets need none."""
    from botocore.session import Session

    options: dict[str, Any] = {"config_kwargs": {"retries": {"max_attempts": 0}}}
    configured = {"anon", "key", "profile"} & conf.get("s3", {}).keys()
    if not configured and Session().get_credentials() is None:
        options["anon"] = True
    return options


def _pin(system: Any, path: str) -> tuple[str, str | None]:
    """The path at the commit that its branch has now, so that all of the files are of one version; and the commit."""
    from huggingface_hub import HfApi

    place = system.resolve_path(path)
    if not hasattr(place, "repo_id"):  # a bucket, which has no commits
        return path, None
    commit = HfApi().repo_info(place.repo_id, revision=place.revision, repo_type=place.repo_type).sha
    kind = {"model": ""}.get(place.repo_type, f"{place.repo_type}s/")
    return f"{kind}{place.repo_id}@{commit}/{place.path_in_repo}".rstrip("/"), commit


def _look(system: Any, path: str) -> tuple[int, dict[str, Mapping[str, Any]]]:
    """How many of the path's last parts belong to names, and what is known of every file there, by its whole path."""
    parts = path.split("/")
    first = next((at for at, part in enumerate(parts) if any(character in part for character in WILDCARDS)), None)
    if first is not None:
        depth, found = len(parts) - first, system.glob(path, detail=True)
    elif (info := system.info(path))["type"] == "file":
        depth, found = 1, {path: info}
    else:
        depth, found = 0, system.find(path, detail=True)
    # S3's console makes a folder by an empty file whose name ends with a slash.
    return depth, {name: info for name, info in found.items() if info["type"] == "file" and not name.endswith("/")}


def _describe(system: Any, path: str, info: Mapping[str, Any], url: str) -> RemoteFile:
    """Hugging Face's files are read as what they are, pages of the web; the others through their driver."""
    if system.protocol != "hf":
        return RemoteFile(url=url, origin=StoredFile(system, path, url), bytes=info["size"])
    from huggingface_hub import get_token

    sha256 = info["lfs"].sha256 if info.get("lfs") else None
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    mark = sha256 or info.get("blob_id") or info.get("xet_hash")
    return RemoteFile(
        url=url, origin=WebFile(system.url(path), mark=mark, sha256=sha256, headers=headers), bytes=info["size"]
    )


def _check_name(address: str, name: str) -> None:
    """Raise DataError unless the name stays below the folder that the file is to lie in, on every file system."""
    parts = name.split("/")
    try:
        bad = any(part in {"", ".", ".."} or len(part.encode()) > NAME_BYTES for part in parts)
    except UnicodeEncodeError:
        bad = True
    if bad or re.search(r"[\x00-\x1f\\]", name):
        raise DataError(f"{address}: the name {name!a} cannot be a file's here: choose the others by a pattern")


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """A driver's exceptions as ours: those that may pass, and those that a user must mend."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{url}: not there ({_one_line(error)}): check the address") from None
    except ValueError as error:
        raise DataError(f"{url}: {_one_line(error)}: check the address") from None
    except (LmcoreError, TransferError, *OUR_MISTAKES):
        raise
    except Exception as error:  # each driver has its own kinds
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, PermissionError) or status in NEEDS_CREDENTIALS:
            raise DataError(f"{url}: no access ({_one_line(error)}): check the address and your credentials") from None
        raise TransferError(f"no answer ({_one_line(error)})") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
