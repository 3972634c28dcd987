"""Check each request before Gradio receives it: sender, path, size, rate and content.

Gradio serves more than the page needs: it downloads URLs, reads files by name and connects to the
Hugging Face Hub. Only the requests listed here reach it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmfocalnet.errors import ConfigError
from mmfocalnet.web.network import AllowedHosts

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_MEGABYTES = 20
# Per address, and in total.
UPLOADS_PER_MINUTE = (20, 30)
CALLS_PER_MINUTE = (300, 600)
WRONG_PASSWORDS_PER_MINUTE = (10, 60)
BODY_SECONDS = 60
API = '/gradio_api'
UPLOAD = f'{API}/upload'
CALL = f'{API}/queue/join'
PAGES = {'/', '/theme.css', '/favicon.ico', f'{API}/queue/data', f'{API}/upload_progress'}
FOLDERS = ('/assets/', '/static/', f'{API}/heartbeat/')

# The page of Gradio contains inline scripts and compiles templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b'content-security-policy', POLICY.encode()),
    (b'x-content-type-options', b'nosniff'),
    (b'x-frame-options', b'DENY'),
    (b'referrer-policy', b'same-origin'),
    (b'cross-origin-opener-policy', b'same-origin'),
    (b'cross-origin-resource-policy', b'same-origin'),
]

log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request is rejected with an HTTP status and the reason."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class RateLimit:
    """Limit the number of events per minute.

    Args:
        each: Maximum number per key.
        total: Maximum number of all keys together.
    """

    def __init__(self, each: int, total: int) -> None:
        self.each, self.total = each, total
        self._events: deque[tuple[float, str]] = deque()

    def is_exceeded(self, key: str) -> bool:
        """Whether a key, or all keys together, reached the maximum."""
        while self._events and self._events[0][0] <= time.monotonic() - 60:
            self._events.popleft()
        count = sum(other == key for _, other in self._events)
        return len(self._events) >= self.total or count >= self.each

    def count(self, key: str) -> None:
        """Count an event of a key."""
        self._events.append((time.monotonic(), key))


def read_password(path: str) -> str:
    """Read a file of one line, ``USER:PASSWORD``.

    Raises:
        ConfigError: If it cannot be read or has another format.
    """
    try:
        text = Path(path).read_text('utf-8').strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'cannot read --auth {path!r} ({error}), expected a file of one line, USER:PASSWORD.'
        ) from error
    if not re.fullmatch(r'[^:\s]+:\S.*', text):
        raise ConfigError(
            f'--auth {path!r} must contain exactly one line, USER:PASSWORD, with both parts.'
        )
    return text


def clean_call(body: bytes, functions: Mapping[int, int]) -> bytes:
    """Keep only the values of a call that the page sends, so that Gradio opens no files or URLs.

    Args:
        body: JSON of Gradio's queue.
        functions: Number of inputs of each function, by index.

    Returns:
        The call; its data are numbers, short strings and nulls. Of an event only the index of the
        selected item is kept.

    Raises:
        RequestError: If it is not a call of the page.
    """
    try:
        call = json.loads(body)
        index = call['fn_index']
        data = call['data']
        session = call['session_hash']
        if not (
            type(index) is int
            and type(data) is list
            and len(data) == functions[index]
            and all(map(_is_plain, data))
            and re.fullmatch(r'\w{1,64}', session, re.ASCII)
        ):
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError(422, 'This is not a call of the page.') from error
    event = call.get('event_data')
    selected = event.get('index') if isinstance(event, dict) else None
    return json.dumps(
        dict(
            fn_index=index,
            data=data,
            session_hash=session,
            event_data=dict(index=selected if type(selected) is int else None, value=None),
        )
    ).encode()


class RequestFilter:
    """ASGI middleware that passes the requests of the page and rejects all others.

    Args:
        app: The app of the page.
        hosts: Accepted values of the Host header.
        folder: Folder of the images that Gradio serves.
        functions: Number of inputs of each function of the page, by index.
        password: ``USER:PASSWORD``, required of every request. Defaults to None: no password.
    """

    def __init__(
        self,
        app: App,
        hosts: AllowedHosts,
        folder: str,
        functions: Mapping[int, int],
        password: str | None = None,
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.folders = (*FOLDERS, f'{API}/file={folder}/')
        self.functions = functions
        self.password = password
        self.uploads = RateLimit(*UPLOADS_PER_MINUTE)
        self.calls = RateLimit(*CALLS_PER_MINUTE)
        self.wrong_passwords = RateLimit(*WRONG_PASSWORDS_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. A failure is logged in one line."""
        if scope['type'] == 'lifespan':
            await self.app(scope, receive, send)
            return
        has_started = False

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            if message['type'] == 'http.response.start':
                has_started = True
                message = {**message, 'headers': [*message.get('headers', ()), *HEADERS]}
            await send(message)

        try:
            await self.app(*await self._check(scope, receive), send_safely)
        except RequestError as error:
            await _answer(scope, send_safely, error)
        except asyncio.CancelledError:
            pass  # the server stops while open pages wait for messages
        except Exception as error:
            log_failure(f'{scope["method"]} {scope["path"]}', error)
            if not has_started:
                await _answer(
                    scope, send_safely, RequestError(500, 'The server failed on this request.')
                )

    async def _check(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Check a request; return the scope and body that Gradio receives."""
        headers = {name.decode('latin-1'): value for name, value in scope['headers']}
        self._check_sender(headers)
        address = (scope.get('client') or ('',))[0]
        self._check_password(headers, address)
        path = scope['path']
        self._check_path(scope['method'], path)
        # Gradio prefers the forwarded host to Host.
        scope = {
            **scope,
            'headers': [
                (name, value)
                for name, value in scope['headers']
                if not name.startswith((b'x-forwarded', b'content-length'))
            ],
        }
        if scope['method'] != 'POST':
            return scope, receive
        rate = self.uploads if path == UPLOAD else self.calls
        if rate.is_exceeded(address):
            raise RequestError(429, 'Too many requests. Wait a minute.', (b'retry-after', b'60'))
        rate.count(address)
        limit = (MAX_MEGABYTES * 2**20 if path == UPLOAD else 0) + 2**14
        body = await _read_body(headers, receive, limit)
        if path == CALL:
            body = clean_call(body, self.functions)
        scope['headers'].append((b'content-length', str(len(body)).encode()))
        return scope, _replay(body, receive)

    def _check_sender(self, headers: Mapping[str, bytes]) -> None:
        host = headers.get('host', b'').decode('latin-1')
        if host not in self.hosts:
            raise RequestError(403, 'The Host header does not match this server.')
        origin = headers.get('origin')
        if origin is not None and origin.decode('latin-1') not in (
            f'http://{host}',
            f'https://{host}',
        ):
            raise RequestError(403, 'The request comes from another site.')

    def _check_password(self, headers: Mapping[str, bytes], address: str) -> None:
        if self.password is None:
            return
        if self.wrong_passwords.is_exceeded(address):
            raise RequestError(
                429, 'Too many wrong passwords. Wait a minute.', (b'retry-after', b'60')
            )
        scheme, _, value = headers.get('authorization', b'').partition(b' ')
        try:
            given = base64.b64decode(value) if scheme.lower() == b'basic' else b''
        except binascii.Error:
            given = b''
        if not secrets.compare_digest(given, self.password.encode()):
            if given:
                self.wrong_passwords.count(address)
            challenge = b'Basic realm="mmfocalnet", charset="UTF-8"'
            raise RequestError(401, 'A password is needed.', (b'www-authenticate', challenge))

    def _check_path(self, method: str, path: str) -> None:
        if method in ('GET', 'HEAD'):
            known = path in PAGES or (path.startswith(self.folders) and '..' not in path)
        else:
            known = method == 'POST' and path in (UPLOAD, CALL)
        if not known:
            raise RequestError(404, 'The page has no such path.')


def log_failure(what: str, error: Exception) -> None:
    """Log a failed request as one line, without a traceback."""
    log.error('%s failed: %s: %s', ascii(what[:200]), type(error).__name__, ascii(str(error)[:200]))


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (int, float) or (type(value) is str and len(value) < 200)


async def _read_body(headers: Mapping[str, bytes], receive: Receive, limit: int) -> bytes:
    try:
        return await asyncio.wait_for(_collect(headers, receive, limit), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise RequestError(408, f'The request took more than {BODY_SECONDS} seconds.') from error


async def _collect(headers: Mapping[str, bytes], receive: Receive, limit: int) -> bytes:
    too_large = RequestError(413, f'The request has more than {limit} bytes.')
    declared = headers.get('content-length', b'0')
    if not declared.isdigit() or len(declared) > 12 or int(declared) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message['type'] == 'http.disconnect':
            raise RequestError(400, 'The connection was closed.')
        body += message.get('body', b'')
        if len(body) > limit:
            raise too_large
        if not message.get('more_body'):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages = [dict(type='http.request', body=body, more_body=False)]

    async def replay() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replay


async def _answer(scope: Scope, send: Send, error: RequestError) -> None:
    # Gradio shows the text of a rejected upload and the detail of a rejected call.
    kind, body = 'text/plain', str(error)
    if scope['path'] == CALL:
        kind, body = 'application/json', json.dumps(dict(detail=body))
    headers = [(b'content-type', f'{kind}; charset=utf-8'.encode()), *error.headers]
    await send(dict(type='http.response.start', status=error.status, headers=headers))
    await send(dict(type='http.response.body', body=body.encode()))
