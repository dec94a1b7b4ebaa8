"""The inbox: notifications kept in the database and shown on the page."""

from datetime import timedelta

from services import database
from services.database import Pool, Verdict, describe, verdict
from services.notifier.channels import DeliveryError
from services.notifier.notification import (
    Notification,
    body_text,
    listed,
    title,
    webhook_alert,
)

TIMEOUT = timedelta(seconds=10)

_INSERT = """
insert into inbox (id, at, receiver, status, title, body, labels, alerts)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (id) do nothing
"""


class InboxChannel:
    """Inserts a row; doing so again changes nothing."""

    timeout = TIMEOUT

    def __init__(self, pool: Pool, *, send_resolved: bool = True) -> None:
        self.send_resolved = send_resolved
        self._pool = pool

    async def send(self, notification: Notification) -> str:
        try:
            await self._pool.execute(
                _INSERT,
                notification.id,
                notification.at,
                notification.receiver,
                notification.status,
                title(notification),
                body_text(notification),
                notification.common_labels,
                [webhook_alert(alert) for alert in listed(notification)[0]],
            )
        except database.ERRORS as error:
            permanent = verdict(error) is not Verdict.RETRY
            raise DeliveryError(describe(error), permanent=permanent, reached=True) from error
        return ""
