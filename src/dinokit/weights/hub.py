"""From a name to files on disk: local path, then cache, then network. The only module that speaks to one.

Promise: what is in the cache needs no network; an unreachable hub is said within 5 seconds (15 where it swallows packets), with
what to do about it; a half file is never used. `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` are honoured.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from dinokit.atomic import file_sha256, write_atomically
from dinokit.errors import HubError, UnknownModelError, WeightsError
from dinokit.weights import zoo
from dinokit.weights.files import (
    FOLDER_CONFIG,
    FOLDER_PREPROCESSOR,
    FOLDER_WEIGHTS,
    read_json,
)

PROBE_SECONDS = 3.0
DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """How to ask the hub; the defaults are those of `from_pretrained`."""

    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False


class MissingFileError(HubError):
    """The repository is there, this file in it is not."""


def endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def repository_of(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """(Repository id, revision) behind a name, which may end in `@revision`; a known misspelling is corrected with a warning.

    Raises:
        UnknownModelError: the name belongs to no repository.
    """
    bare, _, at = name.partition("@")
    source = zoo.lookup(bare)
    if source is not None and source.corrected_from:
        warnings.warn(
            f"there is no model {bare!r} on the hub; using {source.name!r}, which is meant.", UserWarning, stacklevel=3
        )
    repo_id = source.repo_id if source is not None and source.repo_id else bare
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise UnknownModelError(
            f"no model {name!r}: it is neither a file, nor a folder here, nor a known name.{zoo.did_you_mean(bare)} "
            f"`dinokit models` lists the known names; a hub id reads ORGANISATION/NAME."
        )
    return repo_id, revision or at or None


def fetch(name_or_path: str | Path, filename: str, options: HubOptions = HubOptions()) -> Path:
    """One file of a local folder or of a hub repository.

    Raises:
        MissingFileError: the repository or folder has no such file.
        UnknownModelError: no such repository.
        HubError: not in the cache, and the hub can't be reached or refuses.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise MissingFileError(f"{folder} has no file {filename}.")
        return folder / filename
    bundled = _bundled(name_or_path)
    if bundled is not None:
        return fetch(bundled, filename, options)
    repo_id, revision = repository_of(str(name_or_path), options.revision)
    if not options.force_download:
        cached = _cached(repo_id, filename, revision, options.cache_dir)
        if cached is not None:
            return cached
    if options.local_files_only or is_offline():
        raise HubError(_not_cached(repo_id, filename, options, "the network is switched off"))
    _ask(repo_id, filename, revision, options)
    return _download(repo_id, filename, revision, options)


def fetch_model(name_or_path: str | Path, options: HubOptions = HubOptions()) -> Path:
    """A file or folder that `files.read` can open: local as it is, from the hub with configuration and weights beside it."""
    path = Path(name_or_path)
    if path.exists():
        return path
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise UnknownModelError(f"{path} does not exist.")
    bundled = _bundled(name_or_path)
    if bundled is not None:
        return bundled
    source = zoo.lookup(str(name_or_path).partition("@")[0])
    if source is not None and source.url:
        return fetch_url(source.url, source.sha256, options)
    if source is not None and source.filename:
        file = fetch(name_or_path, source.filename, options)
        check_sha256(file, source.sha256)
        return file
    config = fetch(name_or_path, FOLDER_CONFIG, options)
    # The other files come from the commit that gave the configuration, even if the branch moves meanwhile.
    pinned = replace(options, revision=config.parent.name)
    repo_id, _ = repository_of(str(name_or_path))
    _fetch_optional(repo_id, FOLDER_PREPROCESSOR, pinned)
    for filename in FOLDER_WEIGHTS:
        weights = _fetch_optional(repo_id, filename, pinned)
        if weights is not None:
            if filename.endswith(".index.json"):
                for shard in sorted(set(read_json(weights).get("weight_map", {}).values())):
                    fetch(repo_id, str(shard), pinned)
            return config.parent
    raise MissingFileError(
        f"{repo_id} has none of {', '.join(FOLDER_WEIGHTS)}; dinokit reads no other weight files of a repository."
    )


def _bundled(name: str | Path) -> Path | None:
    """The folder of a network that comes with this package, its weights' sum checked; None for other names."""
    source = zoo.lookup(str(name).partition("@")[0])
    if source is None or source.folder is None:
        return None
    check_sha256(source.folder / FOLDER_WEIGHTS[0], source.sha256)
    return source.folder


def fetch_url(url: str, sha256: tuple[str, ...], options: HubOptions = HubOptions()) -> Path:
    """A file of Meta's server, kept where torch.hub keeps it, so that either finds what the other downloaded."""
    import torch

    folder = Path(options.cache_dir) if options.cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    target = folder / url.rsplit("/", 1)[1]
    if target.is_file() and not options.force_download:
        check_sha256(target, sha256)
        return target
    if options.local_files_only or is_offline():
        raise HubError(
            f"{target} is not there, and the network is switched off. Download {url} elsewhere and put it there."
        )
    _probe(url, f"{target} is not there. Download {url} elsewhere and put it there.")
    folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(target, lambda file: _stream(url, file, sha256))


def check_sha256(path: Path, accepted: tuple[str, ...]) -> None:
    """Compare a file with published sums; nothing to do where none was published.

    Raises:
        WeightsError: another sum.
    """
    if accepted and (found := file_sha256(path)) not in accepted:
        raise WeightsError(
            f"{path} has sha256 {found}; published: {' or '.join(accepted)}. Delete it and download it again."
        )


def _cached(repo_id: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, filename, cache_dir=cache_dir, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _fetch_optional(repo_id: str, filename: str, options: HubOptions) -> Path | None:
    """The file, or None where the repository does not have it, or where offline work finds it in no cache."""
    try:
        return fetch(repo_id, filename, options)
    except MissingFileError:
        return None
    except HubError:
        if options.local_files_only or is_offline():
            return None
        raise


def _ask(repo_id: str, filename: str, revision: str | None, options: HubOptions) -> None:
    """One quick question before the hub's client starts its patient retries."""
    url = f"{endpoint()}/{repo_id}/resolve/{revision or 'main'}/{filename}"
    status, reason = _probe(url, _not_cached(repo_id, filename, options, "{reason}"), options.token)
    if status == 404:
        code = reason.lower()
        if "entry" in code:
            raise MissingFileError(f"{repo_id} has no file {filename} at revision {revision or 'main'}.")
        if "revision" in code:
            raise UnknownModelError(f"{repo_id} has no revision {revision!r} on {endpoint()}.")
        raise UnknownModelError(f"no model {repo_id!r} on {endpoint()}.{zoo.did_you_mean(repo_id)}")
    if status in (401, 403):
        raise HubError(
            f"{endpoint()} refuses {repo_id} ({status}): it does not exist, is private or is gated."
            f"{zoo.did_you_mean(repo_id) if zoo.lookup(repo_id) is None else ''} For a private one set HF_TOKEN."
        )
    if status >= 400:
        wait = (
            "too many requests; wait a while, or set HF_TOKEN"
            if status == 429
            else "the hub has a fault; try again later"
        )
        raise HubError(_not_cached(repo_id, filename, options, f"status {status}: {wait}"))


def _probe(url: str, message: str, token: str | bool | None = None) -> tuple[int, str]:
    """(Status, error code) of a HEAD request. In a thread, since name resolution knows no time limit."""
    answer: list[tuple[int, str] | OSError] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers=_headers(token))  # noqa: S310 - the hub's address
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:  # noqa: S310
                answer.append((response.status, ""))
        except urllib.error.HTTPError as error:
            answer.append((error.code, error.headers.get("X-Error-Code") or ""))
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 1.0)
    if not answer:
        answer.append(TimeoutError())
    if isinstance(answer[0], OSError):
        reason = getattr(answer[0], "reason", answer[0])
        said = (
            f"no answer within {PROBE_SECONDS:.0f} s"
            if isinstance(reason, TimeoutError)
            else str(getattr(reason, "strerror", None) or reason).lower()
        )
        raise HubError(message.replace("{reason}", said)) from answer[0]
    return answer[0]


def _headers(token: str | bool | None) -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return dict(build_hf_headers(token=token))


def _download(repo_id: str, filename: str, revision: str | None, options: HubOptions) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                repo_id,
                filename,
                revision=revision,
                cache_dir=options.cache_dir,
                token=options.token,
                force_download=options.force_download,
                endpoint=endpoint(),
                etag_timeout=PROBE_SECONDS,
            )
        )
    except (OSError, _transport_error()) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubError(_not_cached(repo_id, filename, options, f"the download failed: {reason}")) from error


def _transport_error() -> type[Exception]:
    """What the hub client's HTTP library raises when a connection breaks: the base of the client's own status errors.

    The client has changed that library more than once, so it is not named here.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__[1:] if base.__module__.split(".")[0] != "huggingface_hub")


def _stream(url: str, file: IO[bytes], sha256: tuple[str, ...]) -> None:
    """Copy a URL into `file`, with progress on a terminal; refuses a short body or a wrong sum."""
    from tqdm import tqdm

    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - an address of the zoo's table
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=url.rsplit("/", 1)[1], unit="B", unit_scale=True, disable=None) as bar:
                while block := response.read(1 << 20):
                    digest.update(block)
                    file.write(block)
                    bar.update(len(block))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise HubError(f"{url}: the download broke off ({error}); try again.") from error
    if size and file.tell() != size:
        raise HubError(f"{url}: got {file.tell():,} of {size:,} bytes; try again.")
    if sha256 and digest.hexdigest() not in sha256:
        raise HubError(f"{url}: the sha256 is {digest.hexdigest()}, published: {' or '.join(sha256)}. It was not kept.")


def _not_cached(repo_id: str, filename: str, options: HubOptions, reason: str) -> str:
    from huggingface_hub import constants

    cache = options.cache_dir or constants.HF_HUB_CACHE
    return (
        f"cannot reach {endpoint()} ({reason}) and {repo_id} ({filename})\n"
        f"       is not in the cache ({cache}).\n"
        f"  - no internet here?  on a machine with internet:  hf download {repo_id} --local-dir DIR\n"
        f"                       then:                        dinokit embed photos/ --model DIR\n"
        f"  - behind a mirror?   set HF_ENDPOINT;  proxy: HTTPS_PROXY\n"
        f"  - just trying it?    dinokit demo   (no download)"
    )


def is_cached(name: str, cache_dir: str | Path | None = None) -> bool:
    """Whether the weights of a known name lie on disk."""
    options = HubOptions(cache_dir=cache_dir, local_files_only=True)
    source = zoo.lookup(name)
    if source is not None and source.folder is not None:
        return source.folder.is_dir()
    try:
        if source is not None and source.url:
            return fetch_url(source.url, (), options).is_file()
        names = (source.filename,) if source is not None and source.filename else FOLDER_WEIGHTS
        return any(_fetch_optional(name, weights, options) is not None for weights in names)
    except HubError:
        return False
