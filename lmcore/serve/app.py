"""The application's routes: OpenAI's completions and models, health, metrics, and the page."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from lmcore.serve.api_errors import ApiError, explain_validation
from lmcore.serve.engine import Engine, Item, Submission
from lmcore.serve.metrics import Metrics
from lmcore.serve.middleware import CLIENT_CLOSED, RequestFilter
from lmcore.serve.openai_schema import CompletionRequest
from lmcore.serve.params import ServerParams
from lmcore.serve.parse_request import build_requests, check_logprobs, check_request, read_prompt, require_model
from lmcore.serve.responses import ResponseWriter, frame_event
from lmcore.tokenizer.base import Tokenizer

PAGE = Path(__file__).with_name("page.html")
# The rest of the policy is in the page itself; a page cannot set this part.
PAGE_HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
NO_CHAT = "this server has a base model, which continues a text and knows no turns: use /v1/completions"


def build_app(engine: Engine, tokenizer: Tokenizer, params: ServerParams, metrics: Metrics) -> FastAPI:
    """Return the application, which starts and stops the engine with itself."""

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        engine.stop()

    app = FastAPI(title="lmcore serve", docs_url=None, redoc_url=None, lifespan=live)
    app.add_middleware(RequestFilter, params=params, metrics=metrics)
    add_error_handlers(app)
    add_server_routes(app, engine, params.name, metrics)
    add_completions(app, engine, tokenizer, params)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Return every error in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def respond(_: Request, error: ApiError) -> JSONResponse:
        return error.respond()

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        return explain_validation(error.errors()).respond()

    @app.exception_handler(HTTPException)
    async def reshape(request: Request, error: HTTPException) -> JSONResponse:
        place = f"{request.method} {request.url.path[:100]}: " if error.status_code in (404, 405) else ""
        return ApiError(error.status_code, f"{place}{error.detail}", headers=error.headers).respond()

    @app.exception_handler(Exception)
    async def fail(_request: Request, _error: Exception) -> JSONResponse:
        return ApiError(500, "the server failed at this request; its log has more").respond()


def add_server_routes(app: FastAPI, engine: Engine, model: str, metrics: Metrics) -> None:
    """Add the models, health, metrics, the page, and a 404 for chat."""
    described = {"id": model, "object": "model", "created": 0, "owned_by": "lmcore"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        require_model(name, model)
        return described

    @app.get("/health")
    async def report_health() -> JSONResponse:
        if engine.failure:
            return JSONResponse({"status": "failed", "reason": type(engine.failure).__name__}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def report_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def show_page() -> FileResponse:
        return FileResponse(PAGE, headers=PAGE_HEADERS)

    @app.post("/v1/chat/completions")
    async def refuse_chat() -> None:
        raise ApiError(404, NO_CHAT, code="no_chat")


def add_completions(app: FastAPI, engine: Engine, tokenizer: Tokenizer, params: ServerParams) -> None:
    """Add `POST /v1/completions`."""
    context_length = engine.decoder.context_length

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        check_request(body, params, engine.max_texts)
        prompts = await asyncio.to_thread(lambda: [read_prompt(one, tokenizer, context_length) for one in body.prompt])
        check_logprobs(body, prompts)
        writer = ResponseWriter(body, prompts, params.name, tokenizer)
        submission = engine.submit(
            build_requests(body, prompts),
            streams=bool(body.stream),
            echo_logprobs=bool(body.echo) and body.logprobs is not None,
        )
        items = None
        try:
            items = await read_while_connected(submission, request)
        finally:
            if items is None or not body.stream:
                engine.cancel(submission)
        if items is None:
            return Response(status_code=CLIENT_CLOSED)
        if body.stream:
            return EventStream(engine, submission, writer, items)
        return Response(writer.write(items), media_type="application/json")


async def read_while_connected(submission: Submission, request: Request) -> list[Item] | None:
    """Return the first items of a submission, without streaming all of them; None if the client disconnects before."""
    reading = asyncio.ensure_future(submission.read())
    leaving = asyncio.ensure_future(await_disconnect(request))
    try:
        await asyncio.wait([reading, leaving], return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else None
    finally:
        reading.cancel()
        leaving.cancel()


async def await_disconnect(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """The items of a submission as server-sent events; the rest is cancelled when the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, engine: Engine, submission: Submission, writer: ResponseWriter, first: list[Item]) -> None:
        self._engine, self._submission = engine, submission
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(iterate_events(submission, writer, first), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._engine.cancel(self._submission)


async def iterate_events(submission: Submission, writer: ResponseWriter, items: list[Item]) -> AsyncIterator[bytes]:
    """Yield all events of a stream that begins with `items`; an error in between is the last one."""
    try:
        while True:
            if events := writer.write_events(items):
                yield events
            if submission.is_over:
                break
            items = await submission.read()
    except ApiError as error:
        yield frame_event(bytes(error.respond().body))
        return
    yield writer.write_end()
