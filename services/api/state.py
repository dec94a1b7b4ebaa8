"""What requests share in one api process."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.api.settings import ApiSettings
from services.api.stream import Hub
from services.database import Pool
from services.runtime import Health


@dataclass(frozen=True)
class State:
    """`pool` reads only. `evaluating` bounds the queries that are computed at once."""

    settings: ApiSettings
    pool: Pool
    hub: Hub
    health: Health
    evaluating: asyncio.Semaphore


def _state(request: Request) -> State:
    state: State = request.app.state.vervet
    return state


Shared = Annotated[State, Depends(_state)]
"""The type of a route's parameter that takes the state."""
