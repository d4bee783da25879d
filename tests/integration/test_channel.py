"""Messages between the driver and a stage arrive whole, in order, or not at all."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from handlers.pipeline.channel import MAX_BYTES, Channel, Closed, Message

Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = Channel.connect("127.0.0.1", server.getsockname()[1])
        far, _ = server.accept()
    yield near, far
    near.close()
    far.close()


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def receive(channel: Channel, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        messages += channel.receive()
    return messages


def test_messages_arrive_whole_and_in_order_however_they_are_cut(ends: Ends) -> None:
    near, far = ends
    stream = b"".join(frame(b'{"n":%d}' % n) for n in range(50))

    for start in range(0, len(stream), 7):
        far.sendall(stream[start : start + 7])

    assert [message["n"] for message in receive(near, 50)] == list(range(50))


def test_a_large_message_arrives(ends: Ends) -> None:
    near, far = ends
    tokens = list(range(200_000))
    other = Channel(far)
    threading.Thread(target=lambda: near.send({"tokens": tokens}), daemon=True).start()

    assert receive(other, 1) == [{"tokens": tokens}]


def test_a_peer_that_hangs_up_is_noticed_at_once(ends: Ends) -> None:
    near, far = ends
    far.close()

    with pytest.raises(Closed):
        near.receive()


@pytest.mark.parametrize(
    "stream", [struct.pack("!I", MAX_BYTES + 1), frame(b"{"), frame(b"[1]"), frame(b"\xff\xfe")]
)
def test_what_is_no_message_ends_the_connection(ends: Ends, stream: bytes) -> None:
    near, far = ends
    far.sendall(stream)

    with pytest.raises(Closed):
        near.receive()


def test_sending_to_a_closed_peer_says_so(ends: Ends) -> None:
    near, far = ends
    far.close()

    def send_until_it_is_noticed() -> None:
        for _ in range(100):
            near.send({"n": 1})

    with pytest.raises(Closed):
        send_until_it_is_noticed()
