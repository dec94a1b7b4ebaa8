"""The web application: routes, error formats, security headers, and the page's files."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api import errors, prometheus, queries, resources, sse, write
from services.api.state import State
from services.runtime import health_response

PAGE = Path(__file__).parent / "static"

PROBES = ["GET", "HEAD"]
"""How load balancers ask whether a process lives."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_RAW_HEADERS = [(name.lower().encode(), text.encode()) for name, text in SECURITY_HEADERS.items()]


class SecurityHeaders:
    """Adds SECURITY_HEADERS to every answer, and leaves all else alone: who reads the request sees
    at once that its client went away."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_RAW_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)


def create_app(state: State, page: Path | None = None) -> FastAPI:
    """The application around one process' state. It does no work until it is asked."""
    app = FastAPI(title="Vervet", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.state.vervet = state
    errors.install(app)
    # First, since they are asked most often; and without what FastAPI does for a route.
    app.add_route(write.PATH, write.write, methods=["POST"])
    for path, answer in queries.ROUTES.items():
        route = Route(path, answer, methods=queries.GET_OR_FORM)
        route.methods = set(queries.GET_OR_FORM)  # without HEAD, as in Prometheus
        app.router.routes.append(route)
    app.include_router(prometheus.router)
    app.include_router(queries.explain_router)
    app.include_router(resources.router)
    app.include_router(sse.router)
    _add_operations(app, state)
    _add_page(app, page or PAGE)

    app.add_middleware(SecurityHeaders)
    return app


def _add_operations(app: FastAPI, state: State) -> None:
    @app.api_route("/-/healthy", methods=PROBES, include_in_schema=False)
    async def healthy() -> PlainTextResponse:
        return PlainTextResponse("healthy\n")

    @app.api_route("/-/ready", methods=PROBES, include_in_schema=False)
    async def ready() -> PlainTextResponse:
        status, text = health_response(state.health)
        return PlainTextResponse(text, int(status.split()[0]))

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, page: Path) -> None:
    """The page and its files; where it was not built, a sentence that says how to build it."""
    if not (page / "index.html").exists():

        @app.get("/", include_in_schema=False)
        async def unbuilt() -> Any:
            return PlainTextResponse("The page is not built. Run: make web\n", 404)

        return
    app.mount("/assets", StaticFiles(directory=page / "assets"), name="assets")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(page / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        path = page / name
        if path.parent != page or not path.is_file():
            return errors.problem(404, f"there is no /{name}")
        return FileResponse(path)
