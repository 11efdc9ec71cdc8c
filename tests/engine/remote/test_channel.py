"""Messages between two ends: whole, in order, and nobody waits for a reader."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.engine.remote.channel import Channel


@pytest.fixture
def ends():
    left, right = (Channel(connection) for connection in multiprocessing.Pipe())
    yield left, right
    left.flush()
    shut(left)
    shut(right)
    left.close()
    right.close()


def shut(channel: Channel) -> None:
    """What the end of the process would do: the other side reads the end of the file."""
    import socket

    with socket.socket(fileno=os.dup(channel._connection.fileno())) as twin:
        twin.shutdown(socket.SHUT_RDWR)


def drain(channel: Channel) -> list:
    found = []
    with pytest.raises(EOFError):
        while (message := channel.get(5.0)) is not None:
            found.append(message)
    return found


def test_there_and_back(ends):
    left, right = ends
    left.put({"a": 1})
    assert right.get(5.0) == {"a": 1}
    right.put(None.__class__)
    assert left.get(5.0) is type(None)


def test_who_asks_an_empty_channel_gets_nothing_in_the_time_it_gave(ends):
    started = time.monotonic()
    assert ends[0].get() is None
    assert time.monotonic() - started < 0.1
    assert ends[0].get(0.05) is None
    assert 0.04 < time.monotonic() - started < 5.0


def test_both_may_send_more_than_a_pipe_holds_before_either_reads(ends):
    block = b"x" * (1 << 20)
    for channel in ends:
        for number in range(8):
            channel.put((number, block))
    for channel in ends:
        assert [channel.get(10.0) for _ in range(8)] == [(number, block) for number in range(8)]


def test_what_cannot_be_sent_fails_where_it_is_sent(ends):
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        ends[0].put(threading.Lock())
    ends[0].put("still open")
    assert ends[1].get(5.0) == "still open"


def test_what_was_sent_before_the_end_is_handed_out_and_the_end_stays(ends):
    left, right = ends
    for number in range(100):
        left.put(number)
    left.flush()
    shut(left)
    assert drain(right) == list(range(100))
    for seconds in (0.0, 1.0, None):
        with pytest.raises(EOFError):
            right.get(seconds)


def test_half_a_message_is_not_a_message():
    mine, theirs = multiprocessing.Pipe()
    channel = Channel(mine)
    theirs.send_bytes(pickle.dumps("whole"))
    os.write(theirs.fileno(), (1000).to_bytes(4, "big") + b"only the beginning")
    theirs.close()
    assert drain(channel) == ["whole"]
    channel.close()


def test_sending_to_a_peer_that_is_gone_is_no_error():
    mine, theirs = multiprocessing.Pipe()
    channel = Channel(mine)
    theirs.close()
    for _ in range(10):
        channel.put(b"x" * 100_000)
    with pytest.raises(EOFError):
        channel.get(5.0)
    channel.close()
    assert mine.closed


def test_close_does_not_wait_for_a_peer_that_neither_reads_nor_ends():
    mine, theirs = multiprocessing.Pipe()
    channel = Channel(mine)
    channel.put(b"x" * (8 << 20))
    started = time.monotonic()
    channel.close(0.1)
    assert time.monotonic() - started < 3.0
    assert not mine.closed, "its threads still use it"
    theirs.close()
    channel.close()


@given(st.lists(st.tuples(st.sampled_from(["put", "get"]), st.binary(max_size=300)), max_size=40))
def test_messages_come_in_the_order_in_which_they_were_put(actions):
    mine, theirs = multiprocessing.Pipe()
    left, right = Channel(mine), Channel(theirs)
    sent, found = [], []
    for action, content in actions:
        if action == "put":
            left.put(content)
            sent.append(content)
        elif (message := right.get()) is not None:
            found.append(message)
    left.flush()
    shut(left)
    assert found + drain(right) == sent
    left.close()
    right.close()
