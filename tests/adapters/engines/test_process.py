from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lockstep.adapters.engines.process import Worker, WorkerFailed, group_peak_gib

ROOT = Path(__file__).parents[3]

ECHO = """
def start(**settings):
    return lambda **ask: {"seconds": 0.5, **settings, **ask}, {"echo": "1.0"}
serve(start)
"""


def running(program, tmp_path) -> Worker:
    return Worker(program, tmp_path / "logs" / "one.log")


def state(pid: int) -> str:
    """The kernel's letter for what a process does; empty: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Whether the process still runs: a zombie that nobody has reaped does not."""
    return state(pid) not in ("", "Z")


def test_it_is_told_its_settings_and_then_asked(scripted, tmp_path):
    with running(scripted(ECHO, size=3), tmp_path) as one:
        assert one.start() == {"echo": "1.0"}
        assert one.ask(number=1) == {"seconds": 0.5, "size": 3, "number": 1}
        assert one.ask(number=2)["number"] == 2
        assert one.peak_gib is not None and 0.001 < one.peak_gib < 1.0


def test_what_it_prints_is_kept_and_is_no_answer(scripted, tmp_path):
    body = ECHO.replace(
        "return lambda", 'print("hello from a library"); os.system("echo and from a child"); return lambda'
    )
    with running(scripted(body), tmp_path) as one:
        one.start()
        assert one.ask(a=1)["a"] == 1
    said = one.log.read_text()
    assert "hello from a library" in said and "and from a child" in said


def test_long_answers_arrive_whole(scripted, tmp_path):
    body = "serve(lambda **_: (lambda **ask: {'seconds': 1, 'tokens': list(range(ask['count']))}, {'a': 'b'}))"
    with running(scripted(body), tmp_path) as one:
        one.start()
        assert one.ask(count=300_000)["tokens"] == list(range(300_000))
        assert one.ask(count=2)["tokens"] == [0, 1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit('no such model')", "exit with code 1"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("channel = Channel(); time.sleep(60)", "nothing within 1 s"),
        ("print('ready!', flush=True); time.sleep(60)", "ready!"),
        ("print('[1, 2]', flush=True); time.sleep(60)", "JSON object"),
        ("Channel().answer(found=1); time.sleep(60)", "names versions"),
    ],
)
def test_one_that_does_not_start_is_named_with_the_reason(body, said, scripted, tmp_path):
    with (
        running(scripted(f"sys.stderr.write('last words')\n{body}", limit=1.0), tmp_path) as one,
        pytest.raises(WorkerFailed, match=r"worker \(one\)") as failure,
    ):
        one.start()
    assert said in str(failure.value)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("time.sleep(60)", "nothing within 2 s"),
    ],
)
def test_one_that_fails_at_work_is_named_with_its_last_words(work, said, scripted, tmp_path):
    body = f"serve(lambda **_: (lambda **ask: {work}, {{'a': 'b'}}))"
    with running(scripted(body, limit=2.0), tmp_path) as one:
        one.start()
        with pytest.raises(WorkerFailed, match=said):
            one.ask()


def test_one_that_is_gone_cannot_be_asked(scripted, tmp_path):
    with running(scripted("channel = Channel(); channel.asked(); channel.answer(versions={})"), tmp_path) as one:
        one.start()
        time.sleep(0.3)
        with pytest.raises(WorkerFailed, match="exit with code 0"):
            one.ask()


WITH_CHILD = """
def start(**_):
    child = subprocess.Popen([sys.executable, "-c", "data = bytearray(200 << 20); import time; time.sleep(600)"])
    time.sleep(1.0)
    return lambda **ask: {"seconds": 1.0, "child": child.pid}, {"a": "b"}
serve(start)
"""


def test_children_are_counted_and_end_with_it(scripted, tmp_path):
    with running(scripted(WITH_CHILD), tmp_path) as one:
        one.start()
        child = one.ask()["child"]
        assert alive(child)
        assert one.peak_gib is not None and one.peak_gib > 200 / 1024
    deadline = time.monotonic() + 5.0
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def test_a_paused_one_does_nothing_and_goes_on(scripted, tmp_path):
    body = """
def start(**_):
    import threading
    count = [0]
    def spin():
        while True:
            count[0] += 1
    threading.Thread(target=spin, daemon=True).start()
    return lambda **ask: {"seconds": 1.0, "cpu": time.process_time()}, {"pid": str(os.getpid())}
serve(start)
"""
    with running(scripted(body), tmp_path) as one:
        one.start()
        before = one.ask()["cpu"]
        one.pause()
        time.sleep(0.5)
        one.resume()
        assert one.ask()["cpu"] - before < 0.3
        one.pause()  # a stopped group can be ended


def test_closing_twice_is_safe(scripted, tmp_path):
    one = running(scripted(ECHO), tmp_path)
    one.start()
    one.close()
    one.close()


PARENT = """
import sys, time
from pathlib import Path
from lockstep.adapters.engines.process import Worker, Program
one = Worker(Program("one", Path(sys.executable), Path(sys.argv[1]), {}), Path(sys.argv[2]))
print(one.start()["pid"], flush=True)
one.pause()
print("paused", flush=True)
time.sleep(600)
"""


def test_a_paused_one_does_not_outlive_us(scripted, tmp_path):
    script = scripted("serve(lambda **_: (lambda **ask: {'seconds': 1}, {'pid': str(os.getpid())}))").script
    command = [sys.executable, "-c", PARENT, str(script), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "paused\n"
        deadline = time.monotonic() + 30.0
        while state(child) != "T" and time.monotonic() < deadline:  # the kernel wakes and ends what has stopped already
            time.sleep(0.01)
        parent.kill()
    deadline = time.monotonic() + 30.0
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(child)


def test_memory_of_no_group_is_unknown():
    assert group_peak_gib(2**22 + 1) is None
    assert group_peak_gib(os.getpgid(0))
