"""The command `vervet`: a subcommand per process, and what operators need around them.

Imports are made when a subcommand needs them, so that an agent loads no server's libraries.
"""

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from schemas.errors import Invalid
from services.bus import Bus
from services.runtime import (
    READY,
    Context,
    Unable,
    serve_health,
    stop_on_signals,
    until_stopped,
    version,
)
from services.settings import ServiceSettings, add_flags, load, required
from services.telemetry import configure_logging, mask_secrets

EXIT_INPUT = 2
"""Exit status when what the user gave cannot be used."""

EXIT_UNAVAILABLE = 69
"""Exit status when something that the command needs is not to be had (sysexits EX_UNAVAILABLE)."""

EXIT_PIPE = 141
"""Exit status when nobody reads the output any more: a shell's for SIGPIPE."""

SERVICES = {
    "agent": "read this host and publish samples",
    "ingest": "store samples in the database",
    "evaluator": "evaluate alert rules on arriving samples",
    "notifier": "deliver notifications",
    "api": "answer queries and serve the page",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, 2 (bad input), 69 (cannot run here) or 130 (second Ctrl-C)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = vars(_parser(given[0] if given else None).parse_args(given))
    command, config = options.pop("command"), options.pop("config", None)
    try:
        status = _COMMANDS[command](command, config, options)
        sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        if command in SERVICES or command == "up":
            raise
        # Whoever read what is printed has seen enough: `vervet query … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)
    except Exception as error:
        known = expected(error)
        if known is None:
            raise
        prefix = "" if isinstance(known, Invalid) else f"vervet {command}: "
        print(mask_secrets(f"{prefix}{known}"), file=sys.stderr)
        sys.exit(EXIT_INPUT if isinstance(known, Invalid) else EXIT_UNAVAILABLE)


def expected(error: BaseException) -> Invalid | Unable | None:
    """What a person is told of an error, wherever it stands in a group; None for a defect."""
    if isinstance(error, (Invalid, Unable)):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((known for one in error.exceptions if (known := expected(one))), None)
    return None


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vervet", description="Metrics monitoring and alerting over RabbitMQ and PostgreSQL."
    )
    parser.add_argument("--version", action="version", version=f"vervet {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="run everything in one process, with its own database")
    for name, text in SERVICES.items():
        service = commands.add_parser(name, help=text)
        if name == "agent":
            service.add_argument("--config", type=Path, help="TOML file [VERVET_CONFIG]")
        if wanted == name:
            add_flags(service, _settings_model(name))
    if wanted == "up":
        add_flags(up, _settings_model("up"))
    migrate = commands.add_parser("migrate", help="declare the topology, migrate the database")
    if wanted == "migrate":
        add_flags(migrate, _settings_model("migrate"))
    health = commands.add_parser("health", help="exit 0 when a process says that it is ready")
    health.add_argument("address", nargs="?", default="127.0.0.1:8420", help="host:port")
    query = commands.add_parser("query", help="ask an api for the value of an expression")
    query.add_argument("expression", help="PromQL")
    _add_api(query)
    query.add_argument("--range", help="over this span up to now, such as 1h")
    query.add_argument("--step", help="between two values of a range, such as 15s")
    query.add_argument("--output", choices=("table", "json", "csv"), default="table", help=TABLE)
    query.add_argument("--explain", action="store_true", help="what it reads and costs instead")
    export = commands.add_parser("export", help="write raw samples to a file")
    export.add_argument("selector", help='PromQL selector, such as up{job="node"}')
    export.add_argument("--start", required=True, help="first instant: 2026-01-31T10:00:00Z")
    export.add_argument("--end", help="up to and without this instant (default: now)")
    export.add_argument(
        "--format",
        choices=("openmetrics", "csv", "parquet"),
        default="openmetrics",
        help="form of the file (default: openmetrics)",
    )
    export.add_argument("--output", type=Path, default=Path("-"), help="file (default: stdout)")
    jobs = commands.add_parser("jobs", help="show the jobs on stored data, or have one run")
    _add_api(jobs)
    jobs.add_argument("--output", choices=("table", "json"), default="table", help=TABLE)
    jobs.add_argument("--run", metavar="NAME", help="run this job as soon as it can be")
    retention = commands.add_parser("retention", help="show or change how long samples are kept")
    for tier, text in TIERS.items():
        retention.add_argument(
            f"--{tier}", metavar="SPAN", help=f"keep {text} so long: 15d, 2y, forever"
        )
    retention.add_argument(
        "--max-size", metavar="SIZE", help="bound on all tiers together: 50GB, none"
    )
    for name, command in (("export", export), ("jobs", jobs), ("retention", retention)):
        if wanted == name:
            from services.operators import OperatorSettings

            add_flags(command, OperatorSettings)
    check = commands.add_parser("check", help="check rule, routing and agent files")
    check.add_argument("kind", choices=("rules", "routing", "agent"), help="what the files are")
    check.add_argument("files", nargs="+", type=Path, help="such as rules.yaml")
    return parser


TABLE = "(default: table)"

TIERS = {"raw": "samples", "5m": "rollups of 5 minutes", "1h": "rollups of an hour"}
"""By tier of history what it holds."""


def _add_api(command: argparse.ArgumentParser) -> None:
    default = os.environ.get("VERVET_API", "127.0.0.1:8420")
    command.add_argument(
        "--api", default=default, help=f"host:port or URL (default: {default}) [VERVET_API]"
    )


def _settings_model(name: str) -> type[ServiceSettings]:
    modules = {
        "up": "services.allinone",
        "migrate": "services.migrate",
    }
    module = modules.get(name, f"services.{name}.settings")
    model: type[ServiceSettings] = getattr(
        importlib.import_module(module), f"{name.title()}Settings"
    )
    return model


def _operators_url(options: dict[str, Any]) -> str:
    """The URL of the database that a command is about. Raises DocumentError."""
    from services.operators import OperatorSettings, operators_database

    settings = load(OperatorSettings, environ=os.environ, flags=options)
    return operators_database(settings.database_url, os.environ)


DEFAULT_CONFIG = Path("/etc/vervet/agent.toml")


def _config_file(given: Path | None) -> Path | None:
    if given is not None:
        return given
    if "VERVET_CONFIG" in os.environ:
        return Path(os.environ["VERVET_CONFIG"])
    return DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None


def _run_service(name: str, config: Path | None, flags: dict[str, str]) -> int:
    file = _config_file(config) if name == "agent" else None
    settings = load(_settings_model(name), environ=os.environ, flags=flags, file=file)
    configure_logging(settings.log_level, settings.log_format)
    serve = importlib.import_module(f"services.{name}.service").serve
    run_loop(_serve(name, settings, serve))
    return 0


def run_loop(work: Any) -> None:
    """asyncio.run, on uvloop where it is installed (the agent's base install has none)."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


async def _serve(name: str, settings: ServiceSettings, serve: Any) -> None:
    async with open_bus(settings, name) as bus:
        context = Context(bus)
        stop_on_signals(context.stopping)
        READY.set_function(lambda: float(context.health.is_ready()))
        own_server = name == "api"
        with nullcontext() if own_server else serve_health(settings.listen, context.health):
            await until_stopped(context, serve(settings, context))


@asynccontextmanager
async def open_bus(settings: ServiceSettings, name: str) -> AsyncIterator[Bus]:
    """The bus that the settings name; an agent may have none and keep what it reads."""
    if name == "agent" and settings.broker_url is None:
        from services.bus_none import NoBus

        yield NoBus()
        return
    from services.bus_rabbit import rabbit_bus

    opened: AbstractAsyncContextManager[Bus] = rabbit_bus(
        required(settings.broker_url, "broker_url"), name=f"vervet {name}"
    )
    async with opened as bus:
        yield bus


def _run_up(_: str, __: Path | None, flags: dict[str, str]) -> int:
    from services.allinone import UpSettings, serve_all

    settings = load(UpSettings, environ=os.environ, flags=flags)
    configure_logging(settings.log_level, settings.log_format)
    run_loop(serve_all(settings))
    return 0


def _run_migrate(_: str, __: Path | None, flags: dict[str, str]) -> int:
    from services.migrate import MigrateSettings, prepare

    settings = load(MigrateSettings, environ=os.environ, flags=flags)
    configure_logging(settings.log_level, settings.log_format)

    async def work() -> None:
        async with open_bus(settings, "migrate") as bus:
            await prepare(settings.database, bus, partitions=settings.partitions)

    asyncio.run(work())
    return 0


def _run_health(_: str, __: Path | None, options: dict[str, Any]) -> int:
    from services.query import NO_ANSWER, cause

    address = options["address"]
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            print(answer.read().decode().strip())
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode().strip(), file=sys.stderr)
    except NO_ANSWER as error:
        print(f"{address}: {cause(error)}", file=sys.stderr)
    return EXIT_UNAVAILABLE


_ASKED = ("api", "expression", "range", "step")


def _run_query(_: str, __: Path | None, options: dict[str, Any]) -> int:
    from services.query import answer, explanation

    api, expression, span, step = (options[name] for name in _ASKED)
    if not options["explain"]:
        print(answer(api, expression, span, step, options["output"]))
        return 0
    if options["output"] == "csv":
        raise Invalid("--output: expected table or json with --explain")
    told = explanation(api, expression, span, step)
    if options["output"] == "json":
        print(json.dumps(told, indent=2))
    else:
        from services.explanation import explained

        print(explained(told))
    return 0


def _run_export(_: str, __: Path | None, options: dict[str, Any]) -> int:
    from services.export import export, request

    asked = request(*(options[name] for name in ("selector", "start", "end", "format", "output")))
    run_loop(export(asked, _operators_url(options)))
    return 0


def _run_jobs(_: str, __: Path | None, options: dict[str, Any]) -> int:
    from services.jobs import answer, run

    if options["run"] is None:
        print(answer(options["api"], options["output"]))
        return 0
    print(asyncio.run(run(_operators_url(options), options["run"])))
    return 0


def _run_retention(_: str, __: Path | None, options: dict[str, Any]) -> int:
    from services.retention import answer

    keep = {tier: options[tier] for tier in TIERS}
    print(asyncio.run(answer(_operators_url(options), keep, options["max_size"])))
    return 0


def _run_check(_: str, __: Path | None, options: dict[str, Any]) -> int:
    from services.documents import DocumentError

    check = _checker(options["kind"])
    failed = False
    for file in options["files"]:
        try:
            check(file)
            print(f"{file}: fine")
        except DocumentError as error:
            print(error, file=sys.stderr)
            failed = True
    return EXIT_INPUT if failed else 0


def _checker(kind: str) -> Callable[[Path], Any]:
    if kind == "agent":
        return lambda file: load(_settings_model("agent"), environ={}, file=file)
    module, function = {
        "rules": ("services.evaluator.rules", "load_rules"),
        "routing": ("services.notifier.routing", "load_routing"),
    }[kind]
    return cast(Callable[[Path], Any], getattr(importlib.import_module(module), function))


_COMMANDS: dict[str, Callable[[str, Path | None, dict[str, Any]], int]] = {
    "up": _run_up,
    "migrate": _run_migrate,
    "health": _run_health,
    "query": _run_query,
    "check": _run_check,
    "export": _run_export,
    "jobs": _run_jobs,
    "retention": _run_retention,
    **dict.fromkeys(SERVICES, _run_service),
}

if __name__ == "__main__":
    main()
