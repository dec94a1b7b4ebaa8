"""Answers in the envelope of Prometheus' HTTP API."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import msgspec
from fastapi import Response

from services.api.outgoing import JSON

_to_json = msgspec.json.Encoder().encode


def success(data: Any) -> Response:
    """`data` as an answer."""
    return Response(b"".join(success_pieces([_to_json(data)])), media_type=JSON)


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


def listed(items: Sequence[Any]) -> list[bytes]:
    """The JSON of a long list, made a part at a time: the JSON library lets no other thread work
    meanwhile."""
    return [b"[", *_parts(items, list), b"]"]


def mapped(items: Sequence[tuple[str, Any]]) -> list[bytes]:
    """The JSON of a large object, as `listed`."""
    return [b"{", *_parts(items, dict), b"}"]


def _parts(items: Sequence[Any], container: Callable[[Any], Any]) -> Iterator[bytes]:
    parts = (
        _to_json(container(items[begin : begin + AT_ONCE]))[1:-1]
        for begin in range(0, len(items), AT_ONCE)
    )
    return islice(chain.from_iterable((b",", part) for part in parts), 1, None)


AT_ONCE = 4096
"""Items that are written in a row: some milliseconds."""


def limited(items: Sequence[Any], limit: int) -> tuple[Sequence[Any], list[str]]:
    """The first `limit` of them, and the warning that goes with it; 0 is no limit."""
    if not limit or len(items) <= limit:
        return items, []
    return items[:limit], [TRUNCATED]


TRUNCATED = "results truncated due to limit"
