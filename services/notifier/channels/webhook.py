"""Webhooks: an HTTP POST of Alertmanager's body, version 4.

URLs come from the administrator's routing document alone, never from a label, an annotation or a
redirect. So private addresses are allowed on purpose: most receivers of alerts live there.
"""

import asyncio
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import httpx
import msgspec

from schemas.receivers import HttpConfig, WebhookConfig
from services.notifier.channels import DeliveryError
from services.notifier.channels.files import read_secret, secret_value, tls_context
from services.notifier.notification import Notification, one_line, webhook_body

TIMEOUT = timedelta(seconds=10)
"""Of a whole attempt, unless the document says otherwise: a receiver has to queue, not to work."""

CONNECT_TIMEOUT_S = 5.0

MAX_ANSWER_BYTES = 4096
"""Of a refusal's body; it becomes part of the ledger's error."""

MAX_ERROR_CHARS = 300


class WebhookChannel:
    """Posts to one URL. Secrets kept in files are read at each attempt, so they can be rotated."""

    def __init__(self, config: WebhookConfig, http: HttpConfig | None, directory: Path) -> None:
        self.send_resolved = config.send_resolved
        self.timeout = config.timeout or TIMEOUT
        self._config = config
        self._http = http or HttpConfig()
        self._directory = directory
        self._verify: ssl.SSLContext | None = None

    async def send(self, notification: Notification) -> str:
        body = msgspec.json.encode(webhook_body(notification, self._config.max_alerts))
        try:
            url = secret_value(self._config.url, self._config.url_file, self._directory)
            headers = self._headers(notification)
            self._verify = self._verify or tls_context(self._http.tls_config, self._directory)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise DeliveryError(f"cannot be prepared: {error}") from error
        server_name = self._http.tls_config.server_name if self._http.tls_config else None
        extensions = {"sni_hostname": server_name} if server_name else {}
        try:
            async with (
                asyncio.timeout(self.timeout.total_seconds()),
                httpx.AsyncClient(
                    verify=self._verify,
                    follow_redirects=False,
                    trust_env=False,
                    timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
                ) as client,
                client.stream(
                    "POST", url, content=body, headers=headers, extensions=extensions
                ) as answer,
            ):
                if not answer.is_success:
                    raise refusal(answer.status_code, answer.headers, await _start_of(answer))
        except TimeoutError as error:
            reason = f"no answer within {self.timeout.total_seconds():g} s"
            raise DeliveryError(reason, reached=True) from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise DeliveryError("the URL is unusable", permanent=True) from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            said = one_line(str(error)) or "no answer"
            raise DeliveryError(f"cannot connect: {said}") from error
        except httpx.HTTPError as error:
            said = one_line(str(error)) or type(error).__name__
            raise DeliveryError(f"no answer: {said}", reached=True) from error
        return ""

    def _headers(self, notification: Notification) -> list[tuple[str, str]]:
        headers = [
            ("Content-Type", "application/json"),
            ("User-Agent", user_agent()),
            ("Idempotency-Key", notification.id),
            ("X-Vervet-Notification-Id", notification.id),
        ]
        http, directory = self._http, self._directory
        if http.authorization:
            token = secret_value(
                http.authorization.credentials, http.authorization.credentials_file, directory
            )
            headers.append(("Authorization", f"{http.authorization.type} {token}"))
        if http.basic_auth:
            auth = httpx.BasicAuth(
                http.basic_auth.username,
                secret_value(http.basic_auth.password, http.basic_auth.password_file, directory),
            )
            request = next(auth.auth_flow(httpx.Request("POST", "http://basic.invalid")))
            headers.append(("Authorization", request.headers["Authorization"]))
        for name, header in http.http_headers.items():
            secrets = [read_secret(secret) for secret in header.secrets]
            headers += [(name, value) for value in (*header.values, *secrets)]
        return headers


def refusal(status: int, headers: Mapping[str, str], body: str) -> DeliveryError:
    """What an answer other than 2xx means.

    4xx won't change by itself, but for 408 and 429; redirects are not followed. A 5xx may come from
    a proxy whose receiver took the notification, so it counts as possibly told.
    """
    said = f"HTTP {status}" + (f": {body}" if body else "")
    retry = status in (408, 429) or status >= 500
    return DeliveryError(
        said[:MAX_ERROR_CHARS],
        permanent=not retry,
        reached=status >= 500,
        retry_after=parse_retry_after(headers.get("Retry-After"), datetime.now(UTC)),
    )


def parse_retry_after(text: str | None, now: datetime) -> timedelta | None:
    """Seconds or an HTTP date (RFC 9110, section 10.2.3); None where it is neither."""
    if not text:
        return None
    if text.strip().isdecimal():
        return timedelta(seconds=min(int(text), 10**9))
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(timedelta(0), at.replace(tzinfo=at.tzinfo or UTC) - now)


async def _start_of(answer: httpx.Response) -> str:
    """The beginning of an answer as one line; never more than MAX_ANSWER_BYTES are kept."""
    kept = b""
    try:
        async for chunk in answer.aiter_raw(MAX_ANSWER_BYTES):
            kept += chunk
            if len(kept) >= MAX_ANSWER_BYTES:
                break
    except httpx.HTTPError:
        kept += b" (cut off)"  # the status line decides; the rest only explains it
    return one_line(kept[:MAX_ANSWER_BYTES].decode(errors="replace"))


@cache
def user_agent() -> str:
    """Who we say we are."""
    return f"Vervet/{metadata.version('vervet')}"
