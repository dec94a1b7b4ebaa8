"""`/v1/stream`: the live stream over HTTP."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from schemas.samples import SampleMessage
from services.api import store
from services.api.state import Shared
from services.api.stream import CLIENT_QUEUE, samples_event

router = APIRouter()


@router.get("/v1/stream", response_class=EventSourceResponse)
async def stream(
    state: Shared,
    instance: str | None = None,
    metric: Annotated[list[str] | None, Query()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Samples and transitions as they arrive; transitions after Last-Event-ID come first."""
    metrics = frozenset(metric or ())
    with state.hub.listen() as listener:
        sent: set[str] = set()
        if last_event_id:
            for item in await store.transitions_after(state.pool, last_event_id, CLIENT_QUEUE):
                sent.add(item["id"])
                yield ServerSentEvent(event="transition", id=item["id"], data=item)
        while not listener.lagged:
            event = await listener.queue.get()
            if event is None:
                return
            if isinstance(event, SampleMessage):
                samples = samples_event(event, instance, metrics)
                if samples is not None:
                    yield ServerSentEvent(event="samples", data=samples)
            elif event.id not in sent and instance in (None, event.labels.get("instance")):
                item = store.transition_item(event.model_dump())
                yield ServerSentEvent(event="transition", id=event.id, data=item)
        yield ServerSentEvent(event="lagged", data={"queued": CLIENT_QUEUE})
