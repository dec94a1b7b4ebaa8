"""What the operators' commands share: which database they are about, and how it is reached."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from pydantic import Field, SecretStr

from services.database import (
    ERRORS,
    Pool,
    SchemaMissing,
    address,
    check_schema,
    describe,
    open_pool,
)
from services.embedded import running_url, state_directory
from services.runtime import Unable
from services.settings import DatabaseUrl, MissingSetting, Settings, required


class OperatorSettings(Settings):
    """`vervet export`, `jobs` and `retention`."""

    database_url: DatabaseUrl | None = Field(
        None,
        description="postgresql://user:password@host:5432/database; the default is that of a "
        "running `vervet up`",
    )


def operators_database(given: SecretStr | None, environ: Mapping[str, str]) -> str:
    """The URL of the database that a command is about: as given, else of the `vervet up` here.

    Raises MissingSetting.
    """
    if given is None:
        home = state_directory(environ, os.geteuid())
        running = running_url(home / "postgres")
        if running is not None:
            return running
        raise MissingSetting(
            [
                f"no `vervet up` runs on {home} (VERVET_HOME); for another database set "
                "VERVET_DATABASE_URL or --database-url"
            ]
        )
    return required(given, "database_url")


@asynccontextmanager
async def operators_pool(
    url: str, *, read_only: bool = False, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Pool]:
    """One connection to a database with our schema. Raises Unable, of what is done with it too."""
    try:
        async with open_pool(url, size=1, read_only=read_only, settings=settings) as pool:
            await check_schema(pool)
            yield pool
    except (SchemaMissing, *ERRORS) as error:
        raise Unable(f"{address(url)}: {describe(error)}") from error
