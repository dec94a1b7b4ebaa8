"""The database's migrations: numbered plain SQL, applied in order, each in one transaction."""

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Migration:
    """One numbered file. `checksum` is over its bytes, so that a later edit is noticed."""

    number: int
    name: str
    sql: str
    checksum: str


def migrations() -> list[Migration]:
    """All of them in order. Raises ValueError where a number is missing or stands twice."""
    found = []
    for entry in resources.files(__name__).iterdir():
        if entry.name.endswith(".sql"):
            sql = entry.read_text(encoding="utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            found.append(Migration(int(entry.name[:4]), entry.name, sql, checksum))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are not numbered in a row: {[m.name for m in found]}")
    return found
