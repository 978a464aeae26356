"""Requests and answers of `ntcp admin`: one JSON object a line, each request answered once, in order."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ntcpsock._errors import BadMessage

#: Bytes of a request, and of an answer, with their ends of line.
MAX_REQUEST: Final = 4096
MAX_ANSWER: Final = 4 * 1024 * 1024
#: Rows of one answer.
MAX_ROWS: Final = 1000

Who = Annotated[str, Meta(min_length=1, max_length=200)]
Limit = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
#: What has to stand in a name, a node id or an address.
Match = Annotated[str, Meta(max_length=200)]


class Status(msgspec.Struct, frozen=True, tag_field="command", tag="status", forbid_unknown_fields=True):
    """How the server is. Answered with a mapping."""


class ListNodes(msgspec.Struct, frozen=True, tag_field="command", tag="list", forbid_unknown_fields=True):
    """The nodes that are connected: {"nodes": [...], "total": of all, "more": whether some are left out}."""

    match: Match = ""
    limit: Limit = 100


class Show(msgspec.Struct, frozen=True, tag_field="command", tag="show", forbid_unknown_fields=True):
    """All about a name or a node id: its key, its names, its instances."""

    who: Who


class Drop(msgspec.Struct, frozen=True, tag_field="command", tag="drop", forbid_unknown_fields=True):
    """End the sessions and relayed connections of a name, a node id, an address or a network. They may come back."""

    who: Who


class Bans(msgspec.Struct, frozen=True, tag_field="command", tag="bans", forbid_unknown_fields=True):
    """The bans in force."""


class AddBan(msgspec.Struct, frozen=True, tag_field="command", tag="ban", forbid_unknown_fields=True):
    """Ban a name's key, a node id, an address or a network. seconds: None is for ever."""

    who: Who
    seconds: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    why: Annotated[str, Meta(max_length=500)] = ""


class LiftBan(msgspec.Struct, frozen=True, tag_field="command", tag="unban", forbid_unknown_fields=True):
    """Take a ban back."""

    who: Who


class ListNames(msgspec.Struct, frozen=True, tag_field="command", tag="names", forbid_unknown_fields=True):
    """Who has which name, whether connected or not."""

    match: Match = ""
    limit: Limit = 100


class GiveName(msgspec.Struct, frozen=True, tag_field="command", tag="give", forbid_unknown_fields=True):
    """Bind a name to a node id, whoever had it before."""

    name: Who
    node_id: Who


class FreeName(msgspec.Struct, frozen=True, tag_field="command", tag="free", forbid_unknown_fields=True):
    """Bind a name to nobody: the next who comes gets it, as far as the policy lets him."""

    name: Who


class Drain(msgspec.Struct, frozen=True, tag_field="command", tag="drain", forbid_unknown_fields=True):
    """As SIGTERM: no new work, and the end of the process when there is none left."""


Request = Status | ListNodes | Show | Drop | Bans | AddBan | LiftBan | ListNames | GiveName | FreeName | Drain


class Answer(msgspec.Struct, frozen=True):
    """error: what went wrong, and what to do; empty where all is well."""

    result: dict[str, Any] = {}
    error: str = ""


_encode = msgspec.json.Encoder().encode
_requests = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """A line."""
    return _encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises BadMessage."""
    request: Request = _decode(_requests, line)
    return request


def decode_answer(line: bytes) -> Answer:
    """Raises BadMessage."""
    answer: Answer = _decode(_answers, line)
    return answer


def _decode(decoder: Any, line: bytes) -> Any:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadMessage("not a message of ntcp admin", str(error)) from None
