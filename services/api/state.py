"""What requests share in one api process."""

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from services.api.evaluating import Turns
from services.api.intake import Intake
from services.api.outgoing import Outgoing
from services.api.settings import ApiSettings
from services.api.stream import Hub
from services.database import Pool
from services.frames import Reader
from services.runtime import Health


@dataclass(frozen=True)
class State:
    """`pool` reads only, and `reader` through it.

    `turns` bounds the queries that are answered at once.
    """

    settings: ApiSettings
    pool: Pool
    reader: Reader
    hub: Hub
    health: Health
    turns: Turns
    intake: Intake | None = None
    """What takes remote write; None where it is off."""
    outgoing: Outgoing = field(default_factory=Outgoing)
    """The large answers that are being sent."""


async def _state(request: Request) -> State:
    """A coroutine, since FastAPI calls functions in a thread."""
    state: State = request.app.state.vervet
    return state


Shared = Annotated[State, Depends(_state)]
"""The type of a route's parameter that takes the state."""
