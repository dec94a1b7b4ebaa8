"""What an expression reads and costs: `/v1/explain`, and `vervet query --explain`."""

from dataclasses import dataclass

from engine.promql import Matrix, Result, Vector
from engine.promql.blocks import NAME
from engine.promql.matchers import Matcher, MatchOp
from services.api.costs import Costs, Read
from services.api.evaluating import Asked
from services.clock import rfc3339


@dataclass(frozen=True, slots=True)
class SelectorReads:
    """What one selector of the expression read. storage: its samples by where they were stored."""

    selector: str
    start: str
    end: str
    series: int
    layouts: int
    instants: int
    samples: int
    storage: dict[str, int]
    read_s: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an expression read and what it cost. Spans are in seconds of the wall clock."""

    query: str
    type: str
    start: str
    end: str
    step_s: float
    steps: int
    lookback_s: float
    selectors: list[SelectorReads]
    samples_read: int
    result_series: int
    result_samples: int
    queue_s: float
    read_s: float
    evaluate_s: float


def explanation(asked: Asked, result: Result, costs: Costs) -> Explanation:
    """The explanation of an answer that was computed."""
    return Explanation(
        query=asked.query.text,
        type=asked.query.kind,
        start=rfc3339(asked.start_us),
        end=rfc3339(asked.end_us),
        step_s=asked.step_us / 1e6,
        steps=asked.steps,
        lookback_s=asked.query.lookback_us / 1e6,
        selectors=[_selector(read) for read in costs.reads],
        samples_read=costs.samples,
        result_series=len(result.labels) if isinstance(result, Vector | Matrix) else 1,
        result_samples=_samples(result),
        queue_s=costs.phases["queue"],
        read_s=costs.phases["read"],
        evaluate_s=costs.phases["evaluate"],
    )


def _samples(result: Result) -> int:
    match result:
        case Vector():
            return len(result.labels)
        case Matrix():
            return int(result.present.sum())
        case _:
            return 1


def _selector(read: Read) -> SelectorReads:
    return SelectorReads(
        selector=selector_text(read.select.matchers),
        start=_shown(read.select.start_us),
        end=_shown(read.select.end_us),
        series=read.series,
        layouts=read.layouts,
        instants=read.instants,
        samples=read.samples,
        storage=dict(read.tiers),
        read_s=read.seconds,
    )


def _shown(at_us: int) -> str:
    """The instant; beyond the calendar, the microseconds since 1970."""
    try:
        return rfc3339(at_us)
    except OverflowError:
        return str(at_us)


def selector_text(matchers: tuple[Matcher, ...]) -> str:
    """The matchers as a selector is written."""
    name, rest = "", list(matchers)
    if matchers and matchers[0].name == NAME and matchers[0].op is MatchOp.EQUAL:
        name, rest = matchers[0].value, rest[1:]
    inner = ",".join(map(str, rest))
    return f"{name}{{{inner}}}" if inner or not name else name
