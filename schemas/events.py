"""Events: what agents say besides samples, as JSON on `vervet.events`, key `agent.<instance>`."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from schemas.errors import Invalid
from schemas.topology import key_word

EVENT_JSON = "application/vnd.vervet.event+json"


class AgentStatus(BaseModel):
    """An agent came, went, or tells that it lives: what tells "silent" from "said goodbye"."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["agent"] = "agent"
    state: Literal["started", "stopping"]
    source: dict[str, str]
    epoch: str
    at: AwareDatetime
    version: str = ""
    interval_s: float = 15.0
    """Seconds between messages, so that others know when silence begins."""

    @property
    def routing_key(self) -> str:
        return f"agent.{key_word(self.source['instance'])}.status"


def encode_status(status: AgentStatus) -> bytes:
    """The JSON body."""
    return status.model_dump_json().encode()


def decode_status(body: bytes) -> AgentStatus:
    """The status of a JSON body. Raises Invalid with the reason."""
    try:
        status = AgentStatus.model_validate_json(body)
    except ValidationError as error:
        raise Invalid(f"event: {error.errors(include_url=False)[0]['msg']}") from error
    if not status.source.get("instance") or not status.source.get("job"):
        raise Invalid("event: source: job and instance are needed")
    return status
