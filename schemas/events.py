"""Events: what agents say besides samples, as JSON on `vervet.events`, key `agent.<instance>`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.bodies import Instant, Text, decode_body
from schemas.samples import check_source
from schemas.topology import key_word

EVENT_JSON = "application/vnd.vervet.event+json"


class AgentStatus(BaseModel):
    """An agent came, went, or tells that it lives: what tells "silent" from "said goodbye"."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["agent"] = "agent"
    state: Literal["started", "stopping"]
    source: dict[str, str]
    epoch: Text
    at: Instant
    version: Text = ""
    interval_s: float = Field(15.0, gt=0, le=86_400)
    """Seconds between messages, so that others know when silence begins."""

    @property
    def routing_key(self) -> str:
        return f"agent.{key_word(self.source['instance'])}.status"


def encode_status(status: AgentStatus) -> bytes:
    """The JSON body."""
    return status.model_dump_json().encode()


def decode_status(body: bytes) -> AgentStatus:
    """The status of a JSON body. Raises Invalid with the reason."""
    status = decode_body(AgentStatus, body, "event")
    check_source(status.source)
    return status
