"""What channels read from files that a routing document names: secrets and certificates."""

import ssl
from pathlib import Path

from pydantic import SecretStr

from schemas.receivers import TlsConfig

MAX_SECRET_BYTES = 64 * 1024


def read_secret(value: SecretStr) -> str:
    """A secret that goes into a header. Raises ValueError where a line break would end it."""
    text = value.get_secret_value()
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError("a secret holds a line break or another control character")
    return text


def secret_value(value: SecretStr | None, file: str | None, directory: Path) -> str:
    """A secret given as such or as the name of a file, which may stand beside the document."""
    if value is not None:
        return read_secret(value)
    if file is None:
        return ""
    with (directory / file).open("rb") as opened:
        data = opened.read(MAX_SECRET_BYTES)
    return read_secret(SecretStr(data.decode().strip()))


def tls_context(config: TlsConfig | None, directory: Path) -> ssl.SSLContext:
    """A client's TLS settings: verified unless the document says insecure_skip_verify."""
    config = config or TlsConfig()
    cafile = str(directory / config.ca_file) if config.ca_file else None
    context = ssl.create_default_context(cafile=cafile)
    version = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
    context.minimum_version = version[config.min_version]
    if config.cert_file:
        key = str(directory / config.key_file) if config.key_file else None
        context.load_cert_chain(str(directory / config.cert_file), key)
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
