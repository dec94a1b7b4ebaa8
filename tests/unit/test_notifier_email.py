"""The email channel against a real SMTP server."""

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from hypothesis import given
from hypothesis import strategies as st

from schemas.receivers import EmailConfig
from services.notifier.channels import DeliveryError
from services.notifier.channels.email import EmailChannel, compose
from services.notifier.notification import Alert, Notification

AT = datetime(2026, 1, 1, tzinfo=UTC)


def notification(summary: str = "disk full", **labels: str) -> Notification:
    every = {"alertname": "Disk", **labels}
    return Notification(
        id="a1b2",
        receiver="ops",
        group_key="{}:{}",
        group_labels=every,
        reason="first notification",
        at=AT,
        external_url="http://vervet.example",
        alerts=(
            Alert(status="firing", labels=every, annotations={"summary": summary}, starts_at=AT),
        ),
    )


class Mailbox:
    """An SMTP server's handler; `refuse` maps recipients to answers, `data` answers the message."""

    def __init__(self) -> None:
        self.taken: list[Envelope] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.encrypted: list[bool] = []
        self.refuse: dict[str, str] = {}
        self.data = "250 taken"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.encrypted.append(session.ssl is not None)
        if self.data.startswith("250"):
            self.taken.append(envelope)
        return self.data

    def authenticate(
        self, server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword
    ) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"right", handled=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def smtp(
    mailbox: Mailbox, authority: trustme.CA | None = None, *, implicit: bool = False
) -> AsyncIterator[int]:
    context = None
    if authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)

    def session() -> SMTP:
        return SMTP(
            mailbox,
            hostname="localhost",
            tls_context=None if implicit else context,
            authenticator=mailbox.authenticate,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(session, "127.0.0.1", 0, ssl=context if implicit else None)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def channel(port: int, directory: Path, **config: Any) -> EmailChannel:
    given = {
        "to": "ops@example.org, Night <night@example.org>",
        "from": "Vervet <vervet@example.org>",
        "smarthost": f"localhost:{port}",
        "require_tls": False,
        **config,
    }
    return EmailChannel(EmailConfig.model_validate(given), directory)


def read(envelope: Envelope) -> EmailMessage:
    assert isinstance(envelope.content, bytes)
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


async def test_a_notification_arrives_as_text_and_html_with_a_stable_id(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with smtp(mailbox) as port:
        one = channel(port, tmp_path, headers={"X-Team": "ops"})
        assert await one.send(notification()) == ""
        await one.send(notification())
    first, second = (read(envelope) for envelope in mailbox.taken)
    assert mailbox.taken[0].mail_from == "vervet@example.org"
    assert mailbox.taken[0].rcpt_tos == ["ops@example.org", "night@example.org"]
    assert first["Subject"] == "[FIRING:1] Disk"
    assert first["Message-ID"] == second["Message-ID"] == "<a1b2@example.org>"
    assert first["X-Vervet-Notification-Id"] == "a1b2"
    assert first["X-Team"] == "ops"
    kinds = {part.get_content_type(): part.get_content() for part in first.iter_parts()}
    assert "disk full" in kinds["text/plain"]
    assert "<td>disk full</td>" in kinds["text/html"]


EVIL = (
    "x@y\r\nBcc: evil@example.org\r\n\r\n<script>alert(1)</script>\n.\nRCPT TO:<evil@example.org>"
)


async def test_labels_start_no_header_no_recipient_and_no_markup(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with smtp(mailbox) as port:
        await channel(port, tmp_path).send(notification(EVIL, instance=EVIL))
    (envelope,) = mailbox.taken
    assert envelope.rcpt_tos == ["ops@example.org", "night@example.org"]
    message = read(envelope)
    assert message["Bcc"] is None
    assert set(message.keys()) == {
        *("From", "To", "Subject", "Date", "Message-ID", "X-Vervet-Notification-Id"),
        *("Auto-Submitted", "MIME-Version", "Content-Type"),
    }
    html = message.get_body(("html",))
    assert html is not None
    assert "<script" not in html.get_content()


@given(st.text(), st.text())
def test_a_message_can_be_made_of_any_text(name: str, summary: str) -> None:
    config = EmailConfig.model_validate(
        {"to": "ops@example.org", "from": "v@example.org", "smarthost": "h:25"}
    )
    data = compose(notification(summary, instance=name), config).as_bytes()
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert message["To"] == "ops@example.org"
    assert message["Bcc"] is None
    assert max(len(line) for line in data.split(b"\r\n")) <= 998
    data.decode("ascii")


async def test_starttls_is_required_and_verified_by_default(
    tmp_path: Path, authority: trustme.CA
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    mailbox = Mailbox()
    async with smtp(mailbox, authority) as port:
        with pytest.raises(DeliveryError, match="certificate") as caught:
            await channel(port, tmp_path, require_tls=True).send(notification())
        assert (caught.value.permanent, caught.value.reached) == (False, False)
        trusted = {"require_tls": True, "tls_config": {"ca_file": "ca.pem"}}
        await channel(port, tmp_path, **trusted).send(notification())
        other = channel(port, tmp_path, **trusted, smarthost=f"127.0.0.1:{port}")
        with pytest.raises(DeliveryError, match=r"127\.0\.0\.1"):
            await other.send(notification())
    assert mailbox.encrypted == [True]
    async with smtp(Mailbox()) as port:
        with pytest.raises(DeliveryError, match="STARTTLS"):
            await channel(port, tmp_path, **trusted).send(notification())


async def test_a_server_that_speaks_tls_from_the_start(
    tmp_path: Path, authority: trustme.CA
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    mailbox = Mailbox()
    async with smtp(mailbox, authority, implicit=True) as port:
        one = channel(port, tmp_path, force_implicit_tls=True, tls_config={"ca_file": "ca.pem"})
        await one.send(notification())
    assert len(mailbox.taken) == 1


async def test_the_server_is_given_the_user_and_password_of_the_document(
    tmp_path: Path, authority: trustme.CA
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "password").write_text("right\n")
    mailbox = Mailbox()
    common = {"require_tls": True, "tls_config": {"ca_file": "ca.pem"}, "auth_username": "u"}
    async with smtp(mailbox, authority) as port:
        await channel(port, tmp_path, **common, auth_password_file="password").send(notification())
        with pytest.raises(DeliveryError, match="535") as caught:
            await channel(port, tmp_path, **common, auth_password="CANARY").send(notification())
    assert set(mailbox.logins) == {(b"u", b"right"), (b"u", b"CANARY")}
    assert caught.value.permanent
    assert "CANARY" not in str(caught.value)


async def test_a_password_is_not_sent_in_the_clear_to_another_host(tmp_path: Path) -> None:
    one = channel(25, tmp_path, smarthost="mail.invalid:25", auth_username="u", auth_password="p")
    with pytest.raises(DeliveryError, match="not sent without TLS") as caught:
        await one.send(notification())
    assert caught.value.permanent


@pytest.mark.parametrize(
    ("answer", "permanent"), [("550 no such user", True), ("450 come back later", False)]
)
async def test_what_the_server_says_decides_whether_to_try_again(
    answer: str, permanent: bool, tmp_path: Path
) -> None:
    mailbox = Mailbox()
    mailbox.refuse = dict.fromkeys(["ops@example.org", "night@example.org"], answer)
    async with smtp(mailbox) as port:
        with pytest.raises(DeliveryError, match=answer[4:]) as caught:
            await channel(port, tmp_path).send(notification())
    assert (caught.value.permanent, caught.value.reached) == (permanent, False)
    mailbox.refuse, mailbox.data = {}, answer
    async with smtp(mailbox) as port:
        with pytest.raises(DeliveryError, match=answer[4:]) as caught:
            await channel(port, tmp_path).send(notification())
    assert caught.value.permanent is permanent


async def test_a_recipient_that_is_refused_keeps_none_of_the_others_from_it(
    tmp_path: Path,
) -> None:
    mailbox = Mailbox()
    mailbox.refuse = {"night@example.org": "550 unknown"}
    async with smtp(mailbox) as port:
        note = await channel(port, tmp_path).send(notification())
    assert note == "refused for night@example.org: 550 unknown"
    assert mailbox.taken[0].rcpt_tos == ["ops@example.org"]


async def test_a_server_that_is_away_was_not_told_and_one_that_hangs_up_may_have_been(
    tmp_path: Path,
) -> None:
    async with smtp(Mailbox()) as port:
        pass
    with pytest.raises(DeliveryError) as caught:
        await channel(port, tmp_path).send(notification())
    assert (caught.value.permanent, caught.value.reached) == (False, False)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        while line := await reader.readline():
            if line.startswith(b"DATA"):
                break
            writer.write(b"250 fine\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "localhost", 0, family=2)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(DeliveryError) as caught:
        await channel(port, tmp_path).send(notification())
    server.close()
    assert (caught.value.permanent, caught.value.reached) == (False, True)
