"""Remote write into the pipeline: samples that others send, published as an agent's would be.

    body -> samples -> layouts of their series (learned, and known from the database) -> messages

A request is answered once the broker has confirmed all its messages, so that whoever sent it may
forget it. Sent again, it fills the same cells with the same values.
"""

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby, islice
from operator import itemgetter

import numpy as np
import structlog
from asyncpg import Record
from prometheus_client import Counter, Gauge

from schemas.events import EVENT_JSON, AgentStatus, encode_status
from schemas.layouts import Series
from schemas.samples import SAMPLES_MSGPACK, UNSPOOLED, SampleMessage, encode, present_labels
from schemas.topology import EVENTS, INTAKE, PARTITION_HEADER, sample_key
from services.api.assembly import SAMPLES_AT_ONCE, Part, assemble, portions
from services.api.placement import Placement, Recalled, Source, SourceKey
from services.api.remote_write import Samples, Unusual, decompress, read
from services.api.senders import Sender, State
from services.api.telling import Telling
from services.bus import Bus, BusError, Message
from services.clock import instant, now_us
from services.database import Pool, Verdict, verdict

log = structlog.get_logger("vervet.api")

TAKEN = Counter("vervet_write_samples_total", "Samples of remote write that the broker confirmed")
REFUSED = Counter("vervet_write_refused_total", "Samples of remote write refused", ["reason"])
EXEMPLARS = Counter("vervet_write_exemplars_total", "Exemplars that came, and are not kept")
KNOWN = Gauge("vervet_write_series", "Series of remote write that this process knows")

VERSION = "remote write"
"""What stands as the version of a source's agent, since there is none."""

MAX_KNOWN = 2_000_000
"""Series that a process knows at a time (about 0.6 kB each); beyond that it learns all anew."""

LARGE_BYTES = 1024**2
"""Of a compressed body. Such are decompressed off the loop, and one at a time."""

MESSAGES_AT_ONCE = 64
"""Messages that wait for the broker together."""

LOOK_AGAIN_S = 30.0
"""How long after layouts were made one looks for those that other processes made of the same
series: until then ingest has stored them."""

NAMED = 3
"""Refused series that an answer names."""

SOURCE = SourceKey._fields

LAYOUTS_AT_ONCE = 20
"""Layouts that are read from the database together: 30 ms of decoding."""

SOURCES_AT_ONCE = 200
"""Sources of which layouts are asked for together."""

RECALL = f"""
select l.place, l.id, l.hash, array_agg(s.metric order by position) as metrics,
       array_agg(s.labels order by position) as labels
from (select asked.place, id, hash
      from unnest($1::jsonb[], $2::integer[]) with ordinality as asked (source, recalled, place)
      join lateral (select id, hash from layouts
                    where source @> asked.source and source = asked.source and id > asked.recalled
                    order by id limit {LAYOUTS_AT_ONCE}) of_source on true
      order by place, id limit {LAYOUTS_AT_ONCE}) l
join layout_series m on m.layout_id = l.id join series s on s.id = m.series_id
group by l.place, l.id, l.hash order by l.place, l.id
"""


@dataclass(slots=True)
class Outcome:
    """What became of a request whose valid samples are all with the broker."""

    stored: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)
    """Of the first of the refused."""

    def refuse(self, kind: str, count: int, reasons: Iterable[str]) -> None:
        """Count refused samples of one kind."""
        REFUSED.labels(kind).inc(count)
        self.refused += count
        self.reasons += islice(reasons, max(0, NAMED - len(self.reasons)))


@dataclass(frozen=True)
class Bounds:
    """What is taken."""

    requests: int
    """At once."""
    max_bytes: int
    """When decompressed."""
    max_age: timedelta
    max_ahead: timedelta

    def instants_ms(self) -> tuple[int, int]:
        """The first and the last instant that ingest believes."""
        now_ms, millisecond = now_us() // 1000, timedelta(milliseconds=1)
        return now_ms - self.max_age // millisecond, now_ms + self.max_ahead // millisecond


class Intake:
    """Takes requests."""

    def __init__(self, bus: Bus, pool: Pool, bounds: Bounds) -> None:
        self._bus = bus
        self._pool = pool
        self.bounds = bounds
        self._placement = Placement()
        self._senders: dict[SourceKey, Sender] = {}
        self._telling = Telling(bus)
        self._epoch = _new_epoch()
        self._learning = asyncio.Lock()
        self._large = asyncio.Lock()
        self.turns = asyncio.Semaphore(bounds.requests)
        """Of the requests that are taken at once."""

    async def take(self, body: bytes) -> Outcome:
        """Publish what a request holds; returns once the broker has confirmed it.

        Raises Malformed, TooLarge; BusError, or what the database's driver raises, where it is to
        be sent again.
        """
        if len(body) < LARGE_BYTES:
            return await self._take(decompress(body, self.bounds.max_bytes))
        async with self._large:
            return await self._take(
                await asyncio.to_thread(decompress, body, self.bounds.max_bytes)
            )

    async def _take(self, request: bytes) -> Outcome:
        if len(self._placement) > MAX_KNOWN:
            self._placement = Placement()
        placement, outcome, unusual = self._placement, Outcome(), Unusual()
        for part in await _read_whole(placement, request, unusual, outcome):
            for begin in range(0, len(part), SAMPLES_AT_ONCE):
                samples = part[begin : begin + SAMPLES_AT_ONCE]
                samples = _acceptable(placement, samples, self.bounds.instants_ms(), outcome)
                if len(samples):
                    await self._pass_on(placement, samples)
                    outcome.stored += len(samples)
        await self._telling.tell(unusual.metadata)
        KNOWN.set(len(placement))
        return outcome

    async def _pass_on(self, placement: Placement, samples: Samples) -> None:
        if placement.look_again or placement.new(samples.numbers):
            async with self._learning:
                await self._learn(placement, samples)
                await self._look_again(placement)
        parts = assemble(placement, samples)
        messages: list[SampleMessage] = []
        for part in parts:
            sender = self._senders.setdefault(part.source.key, Sender())
            for frames in portions(part.frames):
                sender.seq += 1
                messages.append(SampleMessage(part.source.labels, self._epoch, sender.seq, frames))
        for begin in range(0, len(messages), MESSAGES_AT_ONCE):
            await self._publish(messages[begin : begin + MESSAGES_AT_ONCE])
        TAKEN.inc(len(samples))
        heard = [(part, self._senders.setdefault(part.source.key, Sender())) for part in parts]
        news = [
            self._status(part, sender, state)
            for part, sender in heard
            if (state := sender.hear(part.newest_us, part.ended))
        ]
        for begin in range(0, len(news), MESSAGES_AT_ONCE):
            await asyncio.gather(*map(self._tell, news[begin : begin + MESSAGES_AT_ONCE]))

    async def _publish(self, messages: Sequence[SampleMessage]) -> None:
        """Returns once all are confirmed. Raises BusError; those that were are sent again then."""
        results = await asyncio.gather(
            *(self._publish_one(one) for one in messages), return_exceptions=True
        )
        failed = [one for one in results if isinstance(one, BaseException)]
        if failed:
            # What is sent again has other numbers: those of this epoch end here.
            self._epoch = _new_epoch()
            self._senders = {}
            raise failed[0]

    async def _publish_one(self, message: SampleMessage) -> None:
        source = message.source
        headers = {PARTITION_HEADER: source["instance"]}
        await self._bus.publish(
            INTAKE,
            sample_key(source["job"], source["instance"]),
            Message(encode(message), SAMPLES_MSGPACK, message.message_id, headers),
        )

    async def _learn(self, placement: Placement, samples: Samples) -> None:
        """Put series that are new here into layouts: those of the database, or else new ones."""
        await self._recall(placement, placement.sources(placement.new(samples.numbers)))
        new = placement.new(samples.numbers)
        if new:
            at_us = samples.at_ms * 1000
            placement.hear(samples.numbers, at_us)
            first = dict(zip(samples.numbers[::-1].tolist(), at_us[::-1].tolist(), strict=True))
            for source in placement.place(new, [first[number] for number in new]):
                placement.look_again[source] = time.monotonic() + LOOK_AGAIN_S

    async def _look_again(self, placement: Placement) -> None:
        """Look for layouts that others made meanwhile. Nothing depends on it but their number."""
        now_s = time.monotonic()
        due = [one for one, at_s in placement.look_again.items() if at_s <= now_s]
        try:
            await self._recall(placement, due)
        except Exception as error:
            if verdict(error) is not Verdict.RETRY:
                raise
            placement.look_again.update(dict.fromkeys(due, now_s + LOOK_AGAIN_S))
        else:
            for source in due:
                del placement.look_again[source]

    async def _recall(self, placement: Placement, sources: Sequence[Source]) -> None:
        """Take over what layouts the database has of these beyond those that are known."""
        for begin in range(0, len(sources), SOURCES_AT_ONCE):
            left = sources[begin : begin + SOURCES_AT_ONCE]
            while left:
                rows = await self._pool.fetch(
                    RECALL,
                    [present_labels(one.labels) for one in left],
                    [one.recalled for one in left],
                )
                for place, of_source in groupby(rows, key=itemgetter("place")):
                    placement.recall(left[place - 1], [_recalled(row) for row in of_source])
                # What is left of the source that the bound cut, and of those after it.
                left = left[rows[-1]["place"] - 1 :] if len(rows) == LAYOUTS_AT_ONCE else []

    def _status(self, part: Part, sender: Sender, state: State) -> AgentStatus:
        return AgentStatus(
            state=state,
            source=part.source.labels,
            epoch=self._epoch,
            at=instant(part.newest_us),
            version=VERSION,
            interval_s=min(sender.interval_us / 1_000_000, 86_400),
        )

    async def _tell(self, status: AgentStatus) -> None:
        """Publish what is to be said of a source; when that fails, it is left unsaid."""
        identity = f"{status.epoch}/{secrets.token_hex(8)}"
        message = Message(encode_status(status), EVENT_JSON, identity)
        try:
            await self._bus.publish(EVENTS, status.routing_key, message)
        except BusError as error:
            log.warning("not told", source=status.source, state=status.state, reason=str(error))


async def _read_whole(
    placement: Placement, request: bytes, unusual: Unusual, outcome: Outcome
) -> list[Samples]:
    """All samples of a request, in parts; others get their turn between them. Raises Malformed,
    TooLarge."""
    parts: list[Samples] = []
    at = 0
    while at < len(request):
        if at:
            await asyncio.sleep(0)
        part, at = read(request, at, placement.known, placement.register, unusual)
        parts += [part, unusual.taken()]
    EXEMPLARS.inc(unusual.exemplars)
    if unusual.histograms:
        outcome.refuse("histogram", unusual.histograms, ["native histograms are not supported"])
    return parts


def _acceptable(
    placement: Placement, samples: Samples, instants_ms: tuple[int, int], outcome: Outcome
) -> Samples:
    """The samples without those that are refused, which are counted."""
    bad = samples.numbers < 0
    if bad.any():
        reasons = (placement.reason(number) for number in np.unique(samples.numbers[bad]).tolist())
        outcome.refuse("series", int(bad.sum()), reasons)
        samples = samples[~bad]
    first_ms, last_ms = instants_ms
    far = (samples.at_ms < first_ms) | (samples.at_ms > last_ms)
    if far.any():
        worst = int(samples.at_ms[far][0])
        reason = f"instant {worst} ms is out of bounds: {first_ms} to {last_ms} ms are taken"
        outcome.refuse("instant", int(far.sum()), [reason])
        samples = samples[~far]
    return samples


def _recalled(row: Record) -> Recalled:
    return Recalled(
        row["id"],
        row["hash"],
        tuple(
            Series(metric, {name: text for name, text in labels.items() if name not in SOURCE})
            for metric, labels in zip(row["metrics"], row["labels"], strict=True)
        ),
    )


def _new_epoch() -> str:
    return UNSPOOLED + secrets.token_hex(8)
