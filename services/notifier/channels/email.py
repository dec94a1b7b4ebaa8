"""E-mail over SMTP, with TLS unless the document says otherwise.

Recipients come from the routing document alone; labels reach the subject and the body only, and
there without line breaks or as escaped text.
"""

import asyncio
import ssl
from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, getaddresses, parseaddr
from html import escape
from ipaddress import ip_address
from pathlib import Path

import aiosmtplib

from schemas.receivers import EmailConfig
from services.notifier.channels import DeliveryError
from services.notifier.channels.files import secret_value, tls_context
from services.notifier.notification import (
    Notification,
    body_text,
    describe,
    listed,
    one_line,
    title,
)

TIMEOUT = timedelta(seconds=30)
"""Of a whole attempt: greylisting servers answer slowly."""

IMPLICIT_TLS_PORT = 465


class EmailChannel:
    """Sends to the recipients of one configuration, in one SMTP transaction."""

    timeout = TIMEOUT

    def __init__(self, config: EmailConfig, directory: Path) -> None:
        self.send_resolved = config.send_resolved
        self._config = config
        self._directory = directory
        host, _, port = (config.smarthost or "").rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._implicit_tls = (
            self._port == IMPLICIT_TLS_PORT
            if config.force_implicit_tls is None
            else config.force_implicit_tls
        )

    async def send(self, notification: Notification) -> str:
        config = self._config
        message = compose(notification, config)
        encrypted = self._implicit_tls or bool(config.require_tls)
        if config.auth_username and not encrypted and not _is_loopback(self._host):
            reason = "a password is not sent without TLS; set require_tls"
            raise DeliveryError(reason, permanent=True)
        try:
            tls = tls_context(config.tls_config, self._directory)
            password = secret_value(
                config.auth_password, config.auth_password_file, self._directory
            )
        except (OSError, ssl.SSLError, ValueError) as error:
            raise DeliveryError(f"cannot be prepared: {error}") from error
        client = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            local_hostname=config.hello or "localhost",
            timeout=TIMEOUT.total_seconds(),
            use_tls=self._implicit_tls,
            start_tls=bool(config.require_tls) and not self._implicit_tls,
            tls_context=tls,
        )
        return await self._transmit(client, message, password)

    async def _transmit(self, client: aiosmtplib.SMTP, message: EmailMessage, password: str) -> str:
        config = self._config
        sender = parseaddr(str(message["From"]))[1]
        recipients = [address for _, address in getaddresses([config.to])]
        data_begun = False
        try:
            async with asyncio.timeout(TIMEOUT.total_seconds()):
                await client.connect()
                if config.auth_username:
                    await client.login(config.auth_username, password)
                data_begun = True
                refused, _ = await client.sendmail(sender, recipients, message.as_bytes())
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [one.code for one in error.recipients]
            said = "; ".join(f"{one.recipient}: {one.message}" for one in error.recipients)
            raise DeliveryError(
                one_line(said), permanent=all(code >= 500 for code in codes)
            ) from error
        except aiosmtplib.SMTPResponseException as error:
            said = one_line(f"SMTP {error.code}: {error.message}")
            raise DeliveryError(said, permanent=error.code >= 500) from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            said = one_line(str(error)) or type(error).__name__
            raise DeliveryError(said, reached=data_begun) from error
        finally:
            client.close()
        return "; ".join(
            one_line(f"refused for {address}: {answer.code} {answer.message}")
            for address, answer in refused.items()
        )


def compose(notification: Notification, config: EmailConfig) -> EmailMessage:
    """The message: stable in all but its MIME boundary, so that a repeat is seen to be one."""
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    own = {name.lower() for name in config.headers}
    domain = parseaddr(config.from_ or "")[1].rpartition("@")[2] or "localhost"
    ours = {
        "From": config.from_ or "",
        "To": config.to,
        "Subject": title(notification),
        "Date": format_datetime(notification.at),
        "Message-ID": f"<{notification.id}@{domain}>",
        "X-Vervet-Notification-Id": notification.id,
        "Auto-Submitted": "auto-generated",
    }
    for name, value in ours.items():
        if name.lower() not in own:
            message[name] = value
    for name, value in config.headers.items():
        message[name] = value
    message.set_content(body_text(notification))
    message.add_alternative(_html(notification), subtype="html")
    return message


def _html(notification: Notification) -> str:
    shown, more = listed(notification)
    rows = "".join(
        f"<tr><td>{escape(alert.status)}</td><td>{escape(describe(alert))}</td>"
        f"<td>{escape(' '.join(f'{k}={v}' for k, v in sorted(alert.labels.items())))}</td></tr>\n"
        for alert in shown
    )
    rest = f"<p>… and {more} more</p>\n" if more else ""
    url = escape(notification.external_url, quote=True)
    link = f'<p><a href="{url}">{url}</a></p>\n' if url else ""
    return (
        f"<!doctype html>\n<html><body>\n<h3>{escape(title(notification))}</h3>\n"
        f"<table>\n{rows}</table>\n{rest}{link}</body></html>\n"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
