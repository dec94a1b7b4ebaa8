"""What `vervet export` writes: OpenMetrics, CSV or Parquet, a matrix of samples at a time."""

import csv
import importlib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, Any, Literal, Protocol

import numpy as np

from engine.promql.blocks import NAME, Floats, Instants, Labels
from services.runtime import Unable

Format = Literal["openmetrics", "csv", "parquet"]

ROW_GROUP = 500_000
"""Samples of a Parquet row group: what a reader takes into memory at once."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A label that begins so is a formula to a spreadsheet, unless an apostrophe stands first."""

FIXED = ("metric", "time", "value")
"""Columns of CSV and Parquet besides the labels."""


class Writer(Protocol):
    """Writes samples to a file that the caller opens and closes."""

    def write(self, labels: Sequence[Labels], at: Instants, values: Floats) -> None:
        """Samples of series that have one at every instant; values: (len(at), len(labels))."""

    def finish(self) -> None:
        """What must stand at the end. Without it the file is not whole."""


def writer(form: Format, file: IO[bytes], names: Collection[str]) -> Writer:
    """The writer of a format. names: of all labels; OpenMetrics needs none. Raises Unable."""
    if form == "openmetrics":
        return OpenMetrics(file)
    return Csv(file, names) if form == "csv" else Parquet(file, names)


class OpenMetrics:
    """Exposition text with timestamps, as `promtool tsdb create-blocks-from openmetrics` reads it.

    https://prometheus.io/docs/specs/om/open_metrics_spec/
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, labels: Sequence[Labels], at: Instants, values: Floats) -> None:
        instants = [_seconds(one) for one in at.tolist()]
        for one, column in zip(labels, values.T, strict=True):
            series = exposed(one)
            cells = zip(_numbers(column, infinity="+Inf"), instants, strict=True)
            lines = [f"{series} {value} {instant}\n" for value, instant in cells]
            self._file.write("".join(lines).encode())

    def finish(self) -> None:
        self._file.write(b"# EOF\n")


def exposed(labels: Labels) -> str:
    """`name{label="value"}`, as the exposition formats write a series."""
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items() if name != NAME]
    return f"{labels[NAME]}{{{','.join(pairs)}}}" if pairs else labels[NAME]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _seconds(at_us: int) -> str:
    return f"{at_us // 1_000_000}.{at_us % 1_000_000:06d}".rstrip("0").rstrip(".")


def _numbers(column: Floats, *, infinity: str) -> Iterable[str]:
    """The shortest texts that give the same float64 again."""
    texts = map(repr, column.tolist())
    if np.isfinite(column).all():
        return texts
    words = {"nan": "NaN", "inf": infinity, "-inf": "-Inf"}
    return (words.get(text, text) for text in texts)


class Csv:
    """A row per sample: metric, time, value and a column per label, empty where it has none."""

    def __init__(self, file: IO[bytes], names: Collection[str]) -> None:
        self._file = file
        self._columns = label_columns(names)
        file.write(_row([*FIXED, *self._columns.values()]))

    def write(self, labels: Sequence[Labels], at: Instants, values: Floats) -> None:
        instants = np.datetime_as_string(at.astype("datetime64[us]"), timezone="UTC").tolist()
        for one, column in zip(labels, values.T, strict=True):
            texts = label_cells(self._columns, one)
            start = _row([one[NAME]]).decode().rstrip("\n")
            end = _row([_inert(text) for text in texts]).decode() if texts else "\n"
            comma = "," if texts else ""
            cells = zip(instants, _numbers(column, infinity="Inf"), strict=True)
            lines = [f"{start},{instant},{value}{comma}{end}" for instant, value in cells]
            self._file.write("".join(lines).encode())

    def finish(self) -> None:
        pass


def _row(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def label_columns(names: Collection[str]) -> dict[str, str]:
    """The column of each label: of its name, and `label_…` where that is taken."""
    columns: dict[str, str] = {}
    for name in sorted(names):
        column = name
        while column in FIXED or (column != name and column in names):
            column = f"label_{column}"
        columns[name] = column
    return columns


def label_cells(columns: Mapping[str, str], labels: Labels) -> list[str]:
    """The label values in the order of the columns. Raises Unable for one that has no column."""
    unknown = labels.keys() - columns.keys() - {NAME}
    if unknown:
        raise Unable(f"series with a new label {min(unknown)!r} came up meanwhile: export again")
    return [labels.get(name, "") for name in columns]


class Parquet:
    """The same columns as CSV has, typed; a label that a series lacks is null."""

    def __init__(self, file: IO[bytes], names: Collection[str]) -> None:
        self._arrow, parquet = pyarrow()
        self._columns = label_columns(names)
        arrow = self._arrow
        text = arrow.dictionary(arrow.int32(), arrow.string())
        kinds = (text, arrow.timestamp("us", "UTC"), arrow.float64())
        fields = [*zip(FIXED, kinds, strict=True)]
        fields += [(column, text) for column in self._columns.values()]
        self._schema = arrow.schema(fields)
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._waiting: list[Any] = []
        self._rows = 0

    def write(self, labels: Sequence[Labels], at: Instants, values: Floats) -> None:
        rows = len(at)
        cells = [label_cells(self._columns, one) for one in labels]
        texts = [[one[NAME] for one in labels], *zip(*cells, strict=True)]
        metric, *others = [self._repeated(column, rows) for column in texts]
        instants = self._arrow.array(np.tile(at, len(labels)).astype("datetime64[us]"))
        time = instants.cast(self._schema.field("time").type)
        value = self._arrow.array(np.ascontiguousarray(values.T).reshape(-1))
        self._waiting.append(
            self._arrow.Table.from_arrays([metric, time, value, *others], schema=self._schema)
        )
        self._rows += values.size
        if self._rows >= ROW_GROUP:
            self._flush()

    def _repeated(self, texts: Sequence[str], times: int) -> Any:
        """Each text so many times, as references into the distinct ones."""
        distinct = dict.fromkeys(texts)
        place = {text: index for index, text in enumerate(distinct)}
        indexes = np.repeat(np.array([place[text] for text in texts], np.int32), times)
        missing = indexes == place.get("", -1)
        return self._arrow.DictionaryArray.from_arrays(
            self._arrow.array(indexes, mask=missing), self._arrow.array(list(distinct))
        )

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._arrow.concat_tables(self._waiting))
        self._waiting, self._rows = [], 0

    def finish(self) -> None:
        self._flush()
        self._writer.close()


def pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`. Raises Unable where they are not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise Unable(
            "Parquet needs pyarrow, which is not installed; it comes with the extra `parquet`"
        ) from error
