"""The webhook channel against a real HTTP server."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from schemas.receivers import WebhookConfig
from services.notifier.channels import DeliveryError
from services.notifier.channels.webhook import (
    MAX_ERROR_CHARS,
    WebhookChannel,
    parse_retry_after,
)
from services.notifier.notification import Alert, Notification

AT = datetime(2026, 1, 1, tzinfo=UTC)
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def notification() -> Notification:
    return Notification(
        id="a1b2",
        receiver="ops",
        group_key="{}:{}",
        group_labels={},
        reason="first notification",
        at=AT,
        alerts=(Alert(status="firing", labels={"a": "b"}, annotations={}, starts_at=AT),),
    )


@dataclass
class Server:
    """An HTTP server that says what a test tells it to, byte by byte."""

    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    then: Answer | None = None
    port: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append((head[0], headers, body))
            writer.write(self.answer)
            await writer.drain()
            if self.then:
                await self.then(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up
        finally:
            writer.close()


@asynccontextmanager
async def serving(server: Server, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    opened = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=context)
    server.port = opened.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        opened.close()


def channel(server: Server, tmp_path: Path = Path(), **config: Any) -> WebhookChannel:
    given = {"url": f"http://127.0.0.1:{server.port}/hook?token=CANARY", **config}
    given = {key: value for key, value in given.items() if value is not None}
    parsed = WebhookConfig.model_validate(given)
    return WebhookChannel(parsed, parsed.http_config, tmp_path)


async def refused(server: Server, **config: Any) -> DeliveryError:
    async with serving(server):
        with pytest.raises(DeliveryError) as caught:
            await channel(server, **config).send(notification())
    assert "CANARY" not in str(caught.value)
    return caught.value


async def test_a_notification_is_posted_with_its_stable_id() -> None:
    async with serving(Server()) as server:
        assert await channel(server).send(notification()) == ""
    ((line, headers, body),) = server.requests
    assert line == "POST /hook?token=CANARY HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("Vervet/")
    assert headers["idempotency-key"] == headers["x-vervet-notification-id"] == "a1b2"
    assert json.loads(body)["version"] == "4"


async def test_headers_and_credentials_come_from_the_document_and_its_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    http = {
        "authorization": {"credentials_file": "token"},
        "http_headers": {"X-Team": {"values": ["ops"], "secrets": ["t"]}},
    }
    async with serving(Server()) as server:
        await channel(server, tmp_path, http_config=http).send(notification())
        basic = {"basic_auth": {"username": "u", "password": "p"}}
        await channel(server, tmp_path, http_config=basic).send(notification())
        (tmp_path / "url").write_text(f"http://127.0.0.1:{server.port}/from-file\n")
        await channel(server, tmp_path, url=None, url_file="url").send(notification())
    (_, first, _), (_, second, _), (line, _, _) = server.requests
    assert first["authorization"] == "Bearer s3cret"
    assert first["x-team"] == "t"
    assert second["authorization"] == "Basic dTpw"
    assert line.startswith("POST /from-file ")


async def test_a_secret_with_a_line_break_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a\r\nX-Evil: b")
    async with serving(Server()) as server:
        http = {"authorization": {"credentials_file": "token"}}
        with pytest.raises(DeliveryError, match="control character") as caught:
            await channel(server, tmp_path, http_config=http).send(notification())
    assert "Evil" not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "permanent", "reached"),
    [
        (301, True, False),
        (302, True, False),
        (400, True, False),
        (401, True, False),
        (404, True, False),
        (408, False, False),
        (422, True, False),
        (429, False, False),
        (500, False, True),
        (502, False, True),
        (503, False, True),
    ],
)
async def test_a_status_says_whether_to_try_again(
    status: int, permanent: bool, reached: bool
) -> None:
    error = await refused(Server(f"HTTP/1.1 {status} X\r\nContent-Length: 4\r\n\r\nwhy\n".encode()))
    assert (error.permanent, error.reached) == (permanent, reached)
    assert str(error) == f"HTTP {status}: why"


async def test_a_redirect_is_not_followed() -> None:
    async with serving(Server()) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/"
        answer = f"HTTP/1.1 307 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        error = await refused(Server(answer.encode()))
    assert error.permanent
    assert elsewhere.requests == []


async def test_a_pause_that_the_receiver_asks_for_is_heard() -> None:
    error = await refused(
        Server(b"HTTP/1.1 429 X\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n")
    )
    assert error.retry_after == timedelta(seconds=120)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("30", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 00:01:00 GMT", timedelta(minutes=1)),
        ("Wed, 31 Dec 2025 23:00:00 GMT", timedelta(0)),
        ("soon", None),
        ("-5", None),
        ("9" * 30, timedelta(seconds=10**9)),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, expected: timedelta | None) -> None:
    assert parse_retry_after(text, AT) == expected


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("answer", "then"), [(b"", hang), (b"HTTP/1.1 5", drip), (b"", drip)])
async def test_a_receiver_that_does_not_finish_is_left_in_time(answer: bytes, then: Answer) -> None:
    started = asyncio.get_running_loop().time()
    error = await refused(Server(answer, then), timeout="300ms")
    assert asyncio.get_running_loop().time() - started < 3
    assert (error.permanent, error.reached) == (False, True)


async def test_an_endless_refusal_is_cut_off() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"y" * 65536)
            await writer.drain()

    error = await refused(Server(b"HTTP/1.1 400 X\r\n\r\n", pour), timeout="5s")
    assert str(error).startswith("HTTP 400: yyyy")
    assert len(str(error)) <= MAX_ERROR_CHARS


async def test_a_slow_body_of_a_success_is_not_waited_for() -> None:
    async with serving(Server(b"HTTP/1.1 200 OK\r\n\r\n", hang)) as server:
        async with asyncio.timeout(5):
            assert await channel(server).send(notification()) == ""


async def test_a_lost_answer_may_have_been_told_and_a_closed_port_was_not() -> None:
    error = await refused(Server(b""))
    assert (error.permanent, error.reached) == (False, True)
    async with serving(Server()) as gone:
        pass
    with pytest.raises(DeliveryError, match="cannot connect") as caught:
        await channel(gone).send(notification())
    assert (caught.value.permanent, caught.value.reached) == (False, False)


async def test_tls_is_verified_unless_the_document_says_otherwise(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(wrong)
    for served, tls, taken in (
        (context, {}, False),
        (context, {"ca_file": "ca.pem"}, True),
        (wrong, {"ca_file": "ca.pem"}, False),
        (wrong, {"insecure_skip_verify": True}, True),
    ):
        async with serving(Server(), served) as server:
            url = f"https://127.0.0.1:{server.port}/"
            one = channel(server, tmp_path, url=url, http_config={"tls_config": tls})
            if taken:
                await one.send(notification())
            else:
                with pytest.raises(DeliveryError, match="cannot connect"):
                    await one.send(notification())
        assert len(server.requests) == taken


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with serving(Server()) as server:
        await channel(server).send(notification())
    assert len(server.requests) == 1
