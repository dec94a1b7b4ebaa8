"""Channels: the ways out of here, one small module each."""

from datetime import timedelta
from typing import Protocol

from services.notifier.notification import Notification


class DeliveryError(Exception):
    """A notification was not taken, or it is unknown whether it was.

    permanent: the same attempt would fail again for ever, so it isn't repeated.
    reached: the receiver may know it all the same (a lost answer), so it is told the end as well.
    retry_after: the pause that the receiver asked for.
    """

    def __init__(
        self,
        reason: str,
        *,
        permanent: bool = False,
        reached: bool = False,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.reached = reached
        self.retry_after = retry_after


class Channel(Protocol):
    """One channel of one receiver."""

    send_resolved: bool
    timeout: timedelta
    """Bound on one `send`; a notification is leased for longer than this."""

    async def send(self, notification: Notification) -> str:
        """Returns once the receiver took it; a text where it took it only in part ("" else).

        Raises DeliveryError. Sent again with the same id when the outcome was lost.
        """
        ...
