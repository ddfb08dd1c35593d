"""Handles HTTP requests, as componentize-py makes a component of it.

/hello answers a text, /json what the request was, /sha256 the hash of its body, /instance how many requests this
instance has had, /file/PATH a file, /error fails.
"""

import hashlib
import json
import os
import sys

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, OutgoingBody, OutgoingResponse, ResponseOutparam

requests = 0


def body_of(request):
    """All bytes of the request's body."""
    body, parts = request.consume(), []
    with body.stream() as stream:
        while True:
            try:
                parts.append(stream.blocking_read(65536))
            except Err as end:
                if isinstance(end.value, StreamError_Closed):
                    return b"".join(parts)
                raise


def answer_to(request):
    """Status and text."""
    path = request.path_with_query()
    if path == "/hello":
        return 200, "hello from Python"
    if path == "/json":
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return 200, json.dumps({"path": path, "python": version, "greeting": os.environ.get("GREETING")})
    if path == "/sha256":
        return 200, hashlib.sha256(body_of(request)).hexdigest()
    if path == "/instance":
        return 200, str(requests)
    if path.startswith("/file/"):
        with open(path.removeprefix("/file"), encoding="utf-8") as file:
            return 200, file.read()
    if path == "/error":
        raise ValueError("a mistake of the function")
    return 404, "not here"


class IncomingHandler(exports.IncomingHandler):
    """What the server calls."""

    def handle(self, request, response_out):
        global requests
        requests += 1
        status, text = answer_to(request)
        response = OutgoingResponse(Fields())
        response.set_status_code(status)
        body = response.body()
        ResponseOutparam.set(response_out, Ok(response))
        with body.write() as stream:
            stream.blocking_write_and_flush(text.encode() + b"\n")
        OutgoingBody.finish(body, None)
