"""`vervet up`: what its services are told."""

from pathlib import Path

import pytest

from services.allinone import UpSettings, settings_of_parts
from services.notifier.settings import NotifierSettings


@pytest.mark.parametrize(
    ("listen", "environ", "link"),
    [
        ("127.0.0.1:8420", {}, "http://127.0.0.1:8420"),
        ("10.0.0.5:9000", {}, "http://10.0.0.5:9000"),
        (":9000", {}, "http://127.0.0.1:9000"),
        ("[::1]:9000", {}, "http://[::1]:9000"),
        ("127.0.0.1:9000", {"VERVET_EXTERNAL_URL": "https://page.example"}, "https://page.example"),
    ],
)
def test_links_in_notifications_lead_to_where_the_page_is(
    listen: str, environ: dict[str, str], link: str, tmp_path: Path
) -> None:
    own = settings_of_parts(UpSettings(listen=listen), tmp_path, environ)["notifier"]
    assert isinstance(own, NotifierSettings)
    assert own.external_url == link
