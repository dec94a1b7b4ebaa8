"""Results of queries as the JSON of Prometheus' HTTP API, in pieces, fast.

A number is a text of the shortest form that reads back, with an exponent below 1e-6 and from 1e21
on; an instant is unix seconds to the millisecond. Whole columns are written by one call of a JSON
library, whose number format then only wants its few exceptions mended.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec
import numpy as np
import orjson

from engine.promql.blocks import Booleans, Columns, Floats, Instants, Labels
from engine.promql.formatting import format_exponent, format_value
from engine.promql.results import Matrix, Result, Scalar, Vector

PIECE_BYTES = 1024**2
"""About how much JSON is made at once, and sent at once."""

CELLS_AT_ONCE = 1 << 15
"""Values of a matrix that are written at once, some milliseconds in which no other thread runs."""

VECTOR_SERIES = 4096
"""Series of an instant vector that are written at once: half a megabyte."""

_to_json = msgspec.json.Encoder().encode

_ARRAYS = orjson.OPT_SERIALIZE_NUMPY
"""orjson is quick with arrays; what it makes of something small takes a page of memory each."""


def numbers(values: Floats) -> list[bytes]:
    """Each value as Prometheus writes it, without quotes."""
    if not values.size:
        return []
    texts = _text(values).split(b",")
    # The library writes null for what is not finite, and exponents for the very small and large.
    places = np.flatnonzero(_unusual(values))
    unusual = values[places].tolist()
    mended = {value: _number(value).encode() for value in set(unusual)}
    for place, value in zip(places.tolist(), unusual, strict=True):
        texts[place] = mended[value]
    return texts


def _number(value: float) -> str:
    small_or_large = 0 < abs(value) < LEAST_DECIMAL or abs(value) >= FIRST_NOT_DECIMAL
    return format_exponent(value) if small_or_large else format_value(value)


LEAST_DECIMAL, FIRST_NOT_DECIMAL = 1e-6, 1e21
"""Between these Prometheus writes numbers without an exponent, as Go's JSON does."""


LEAST_PLAIN, FIRST_UNPLAIN = 1e-5, 1e16
"""Between these the JSON library writes numbers without an exponent."""


def _unusual(values: Floats) -> Booleans:
    size = np.abs(values)
    with np.errstate(invalid="ignore"):
        plain = (size >= LEAST_PLAIN) & (size < FIRST_UNPLAIN)
    plain |= (size == 0) & ~np.signbit(values)
    return np.logical_not(plain)


def instants(at: Instants) -> bytes:
    """The instants (µs) in unix seconds, with commas between them."""
    whole, rest = np.divmod(at, 1_000_000)
    if rest.any():
        return _text((at / 1_000_000).round(3))
    return orjson.dumps(whole, None, _ARRAYS)[1:-1]


def _text(values: Floats) -> bytes:
    """What the JSON library makes of the values, without the point of a whole number."""
    plain = orjson.dumps(np.ascontiguousarray(values), None, _ARRAYS)[1:-1]
    return plain.replace(b".0,", b",").removesuffix(b".0")


def seconds(at_us: int) -> float:
    """Unix seconds to the millisecond, as Prometheus writes them."""
    return round(at_us / 1_000_000, 3)


def metric(labels: Labels) -> bytes:
    """A label set, sorted by name."""
    return _to_json(dict(sorted(labels.items())))


def metrics(labels: Sequence[Labels]) -> Sequence[bytes]:
    """Label sets one by one, of the same columns only once."""
    if isinstance(labels, Columns):
        return labels.remember("json", lambda: [metric(one) for one in labels])
    return [metric(one) for one in labels]


def data(result: Result, at_us: int) -> tuple[str, Iterator[bytes]]:
    """The result's type, and its JSON in pieces. at_us: of a text, which has no instant itself."""
    if isinstance(result, Vector):
        return "vector", _listed(_vector(result))
    if isinstance(result, Matrix):
        return "matrix", _listed(_matrix(result))
    if isinstance(result, Scalar):
        return "scalar", iter([_sample(result.at_us, format_value(result.value))])
    return "string", iter([_sample(at_us, result)])


def _sample(at_us: int, value: str) -> bytes:
    return _to_json([seconds(at_us), value])


def _listed(items: Iterator[Sequence[bytes]]) -> Iterator[bytes]:
    """A JSON array of items, each given in parts."""
    parts: list[bytes] = [b"["]
    size, separated = 1, True
    for item in items:
        if not separated:
            parts.append(b",")
        separated = False
        parts += item
        size += sum(map(len, item))
        if size > PIECE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    parts.append(b"]")
    yield b"".join(parts)


def _vector(vector: Vector) -> Iterator[Sequence[bytes]]:
    before = b',"value":[%b,"' % _to_json(seconds(vector.at_us))
    every, texts = metrics(vector.labels), numbers(vector.values)
    for begin in range(0, len(every), VECTOR_SERIES):
        named = every[begin : begin + VECTOR_SERIES]
        cells = [b'"]},{"metric":', b"", before, b""] * len(named)
        cells[0] = b'{"metric":'
        cells[1::4] = named
        cells[3::4] = texts[begin : begin + VECTOR_SERIES]
        yield b"".join(cells), b'"]}'


def _matrix(matrix: Matrix) -> Iterator[Sequence[bytes]]:
    every = _samples(matrix.at)
    at_once = max(1, CELLS_AT_ONCE // max(1, len(matrix.at)))
    for begin in range(0, len(matrix.labels), at_once):
        labels = matrix.labels[begin : begin + at_once]
        present = matrix.present[:, begin : begin + at_once].T
        cells = matrix.values[:, begin : begin + at_once].T
        texts = iter(numbers(cells.ravel() if present.all() else cells[present]))
        for one, here, count in zip(labels, present, present.sum(axis=1).tolist(), strict=True):
            if count:
                samples = every if count == len(here) else _samples(matrix.at[here])
                values = tuple(islice(texts, count))
                yield b'{"metric":', metric(one), b',"values":[', samples % values, b"]}"


def _samples(at: Instants) -> bytes:
    """Samples at these instants, with a place for each value: written once for all series."""
    return b"[" + instants(at).replace(b",", b',"%b"],[') + b',"%b"]'
