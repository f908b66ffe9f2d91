"""A web service for the notes of one person: `python client/notes_service.py`.

Add a note by `curl -d "A note." 127.0.0.1:8000/notes`. The service has no login, so it listens on this machine only.
All requests share one client.
"""

import os
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route

from fedmem import Client
from fedmem.errors import Busy, FedmemError, NothingMatched, Refused, UsageError

STATUSES = {UsageError: 400, NothingMatched: 404, Refused: 409, Busy: 503}


@asynccontextmanager
async def lifespan(app):
    keystore, release = os.environ.get("NOTES_KEYSTORE", "auto"), os.environ.get("NOTES_RELEASE")
    with Client.open("me", keystore=keystore, release=release) as app.state.memory:
        yield


def route(method, path, call):
    """Return a route that runs `call(memory, body text, parameters)` in a thread and sends result or error as JSON."""

    async def serve(request):
        try:
            text, parameters = (await request.body()).decode(), {**request.query_params, **request.path_params}
            return JSONResponse(await run_in_threadpool(call, request.app.state.memory, text, parameters))
        except FedmemError as error:
            status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 500)
            return JSONResponse({"error": str(error)}, status)
        except UnicodeDecodeError:
            return JSONResponse({"error": "The text is not UTF-8. Send it as UTF-8."}, 400)

    return Route(path, serve, methods=[method])


def erase(memory, _, parameters):
    planned = memory.erase.plan(record=[parameters["id"]], blocks=parameters.get("blocks"))
    return {"receipt": str(planned.execute().receipt)}


ROUTES = [
    route("POST", "/notes", lambda memory, text, _: {"id": memory.add(text).id}),
    route("GET", "/notes", lambda memory, _, parameters: [vars(hit) for hit in memory.search(parameters.get("q", ""))]),
    route("DELETE", "/notes/{id}", erase),
    route("GET", "/budget", lambda memory, *_: {"epsilon": str(memory.privacy.budget().epsilon)}),  # it may be infinite
    route("POST", "/learn/{topic}", lambda memory, _, parameters: {"block": memory.learn(parameters["topic"]).id}),
    route("POST", "/answer", lambda memory, text, _: {"text": memory.generate(text)}),
]
app = Starlette(routes=ROUTES, lifespan=lifespan)
if __name__ == "__main__":  # no access log: it would hold the search texts
    uvicorn.run(app, port=int(os.environ.get("NOTES_PORT", "8000")), access_log=False)
