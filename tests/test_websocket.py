"""A broker's WebSocket: words that say nothing are few, whatever they are."""

from __future__ import annotations

import pytest
from wsproto.frame_protocol import FrameProtocol, Opcode

from ntcpsock._errors import BadMessage
from ntcpsock._traversal.broker.short_keep_alive import ShortKeepAlive, encode_short_keep_alive
from ntcpsock._traversal.broker.websocket import WebSocketMachine

KEEP_ALIVE, ACK = encode_short_keep_alive(ShortKeepAlive(bytes(8), 1, 1, 0), bytes(32))

FRAME = bytes(200)


def opened() -> tuple[WebSocketMachine, WebSocketMachine]:
    """Client and server, in this order."""
    client = WebSocketMachine.client("h")
    lines = [line.split(b": ", 1) for line in client.data_to_send().split(b"\r\n")[1:] if line]
    server = WebSocketMachine.server([(name, value) for name, value in lines])
    client.receive(server.data_to_send())
    return client, server


def word(opcode: Opcode, payload: bytes = b"", *, final: bool = True) -> bytes:
    """One frame of RFC 6455, as a client sends it."""
    return bytes(FrameProtocol(client=True, extensions=[])._serialize_frame(opcode, payload, final))


@pytest.mark.parametrize(
    "said",
    [
        word(Opcode.PING),
        word(Opcode.PONG),
        word(Opcode.BINARY),
        word(Opcode.BINARY, b"short"),
        word(Opcode.BINARY, final=False) + word(Opcode.CONTINUATION),
    ],
    ids=["pings", "pongs", "empty messages", "short messages", "fragments"],
)
def test_words_that_say_nothing_are_few(said: bytes) -> None:
    """Each costs as much as a frame of a node's, and is six bytes long."""
    _, server = opened()
    with pytest.raises(BadMessage, match="says nothing"):
        server.receive(said * 500)
    # As many as it may be have been looked at, and no more.
    assert len(server.data_to_send()) <= 32 * 2


def test_fragments_of_one_message_are_few() -> None:
    _, server = opened()
    with pytest.raises(BadMessage, match="says nothing"):
        server.receive(
            word(Opcode.BINARY, b"x", final=False) + word(Opcode.CONTINUATION, b"x", final=False) * 500
        )


def test_what_comes_between_frames_may_go_on_for_ever() -> None:
    """Somebody in between may ask now and then whether we are there."""
    client, server = opened()
    for _ in range(500):
        client.send(FRAME)
        assert server.receive(client.data_to_send() + word(Opcode.PING) + word(Opcode.PONG)) == [FRAME]
        assert server.data_to_send() == b"\x8a\x00"


def test_a_node_that_only_keeps_itself_alive_may_do_so_for_ever() -> None:
    client, server = opened()
    for said, heard, frame in ((client, server, KEEP_ALIVE), (server, client, ACK)):
        for _ in range(500):
            said.send(frame)
            assert heard.receive(said.data_to_send()) == [frame]


def test_a_frame_may_come_byte_by_byte() -> None:
    client, server = opened()
    for _ in range(3):
        client.send(FRAME)
        data = client.data_to_send()
        arrived = [message for at in range(len(data)) for message in server.receive(data[at : at + 1])]
        assert arrived == [FRAME]
