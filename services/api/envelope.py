"""Answers in the envelope of Prometheus' HTTP API."""

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import Response

from services.api.outgoing import JSON

_to_json = msgspec.json.Encoder().encode


def success(data: Any, warnings: Sequence[str] = ()) -> Response:
    """`data` as an answer, with what the reader should know of it."""
    return Response(b"".join(success_pieces([_to_json(data)], warnings)), media_type=JSON)


def success_pieces(
    data: Sequence[bytes], warnings: Sequence[str] = (), infos: Sequence[str] = ()
) -> list[bytes]:
    """The envelope around JSON that is made already."""
    notes = b"".join(
        b',"%b":%b' % (name, _to_json(list(texts)))
        for name, texts in ((b"warnings", warnings), (b"infos", infos))
        if texts
    )
    return [b'{"status":"success","data":', *data, notes + b"}"]


def limited(items: Sequence[Any], limit: int) -> tuple[Sequence[Any], list[str]]:
    """The first `limit` of them, and the warning that goes with it; 0 is no limit."""
    if not limit or len(items) <= limit:
        return items, []
    return items[:limit], [TRUNCATED]


TRUNCATED = "results truncated due to limit"
