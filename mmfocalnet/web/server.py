"""The server of the web page. Requires Gradio."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath

import gradio as gr
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mmfocalnet.inference import Predictor
from mmfocalnet.web.interface import CSS, Handlers, build_interface
from mmfocalnet.web.network import AllowedHosts
from mmfocalnet.web.request_filter import API, MAX_MEGABYTES, UPLOAD, RequestFilter
from mmfocalnet.web.uploads import Uploads

# Each session keeps its last prediction in memory; the masks of a large one take 300 MB.
MAX_SESSIONS = 8
MAX_CONNECTIONS = 100
MAX_BYTES = MAX_MEGABYTES * 2**20


def build_app(
    predictor: Predictor, folder: str, host: str, password: str | None = None
) -> RequestFilter:
    """Build the page, the route of its uploads and the filter of its requests.

    Args:
        predictor: The model.
        folder: Folder of the images that Gradio serves.
        host: IP address or name that the server listens on.
        password: ``USER:PASSWORD``. Defaults to None: no password.

    Returns:
        An ASGI app.
    """
    # Gradio writes drawn images to files and does not delete all of them.
    os.environ['GRADIO_TEMP_DIR'] = folder
    uploads = Uploads()
    page = build_interface(Handlers(predictor, uploads))
    page.state_session_capacity = MAX_SESSIONS
    app = Starlette(
        routes=[
            Route(UPLOAD, _upload_route(uploads), methods=['POST']),
            Route(f'{API}/upload_progress', _report_upload),
        ]
    )
    gr.mount_gradio_app(
        app, page, '/', footer_links=[], run_history=False, enable_monitoring=False,
        ssr_mode=False, mcp_server=False, show_error=False, css=CSS,
        # The default fonts would be downloaded from Google.
        theme=gr.themes.Base(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
        max_file_size=f'{MAX_MEGABYTES}mb',
    )  # fmt: skip
    # Events without a function run in the browser.
    functions = {key: len(event.inputs) for key, event in page.fns.items() if event.fn}
    return RequestFilter(app, AllowedHosts(host), folder, functions, password)


def serve(predictor: Predictor, listener: socket.socket, host: str, password: str | None) -> None:
    """Serve the page until it is interrupted.

    Args:
        predictor: The model.
        listener: Socket from `mmfocalnet.web.network.listen`.
        host: IP address or name that it listens on.
        password: ``USER:PASSWORD``, or None.
    """
    # The first run compiles kernels.
    predictor.predict([np.zeros((64, 64, 3), np.uint8)])
    with listener, tempfile.TemporaryDirectory(prefix='mmfocalnet-web-') as folder:
        server = uvicorn.Server(
            uvicorn.Config(
                build_app(predictor, folder, host, password),
                log_level='critical', access_log=False, ws='none', proxy_headers=False,
                server_header=False, limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        name = f'[{host}]' if ':' in host else host
        port = listener.getsockname()[1]
        print(f'The page is at http://{name}:{port}/ until Ctrl-C.', flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
        if not server.started:
            raise RuntimeError('The server of the page did not start.')


def _upload_route(uploads: Uploads) -> Callable[[Request], Awaitable[Response]]:
    async def receive(request: Request) -> Response:
        """Keep one file in memory. Gradio's route would write equal files to one path on disk."""
        parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=0)
        parser.spool_max_size = MAX_BYTES  # larger files would be written to disk
        try:
            file = (await parser.parse())['files']
            content = await file.read()
        except (MultiPartException, KeyError, AttributeError, UnicodeError):
            return PlainTextResponse('Expected one file in a form.', 400)
        if len(content) > MAX_BYTES:
            return PlainTextResponse(f'The file has more than {MAX_MEGABYTES} MB.', 413)
        name = PurePosixPath(file.filename.replace('\\', '/')).name[:100] or 'image'
        return JSONResponse([f'{uploads.add(name, content)}/{name}'])

    return receive


async def _report_upload(request: Request) -> Response:
    """Report each upload as done; Gradio polls this route."""
    return PlainTextResponse('data: {"msg": "done"}\n\n', media_type='text/event-stream')
