"""Requests that the web page accepts and rejects. Gradio is not required."""

import asyncio
import base64
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.web import network, request_filter
from mmfocalnet.web.network import AllowedHosts
from mmfocalnet.web.request_filter import (
    CALL,
    CALLS_PER_MINUTE,
    UPLOAD,
    UPLOADS_PER_MINUTE,
    RateLimit,
    RequestError,
    RequestFilter,
    clean_call,
    read_password,
)
from mmfocalnet.web.uploads import MAX_UPLOADS, Uploads

FOLDER = '/tmp/mmfocalnet-web-x'
FUNCTIONS = {1: 3, 3: 2}
CALLING = dict(fn_index=1, data=['key', 0.3, 3], session_hash='abc')


class Page:
    """Replaces Gradio: answers and records each request."""

    def __init__(self):
        self.requests = []

    async def __call__(self, scope, receive, send):
        body = (await receive()).get('body', b'') if scope['method'] == 'POST' else b''
        self.requests.append((scope, body))
        await send(dict(type='http.response.start', status=200, headers=[]))
        await send(dict(type='http.response.body', body=b'page'))


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def app(page):
    return RequestFilter(page, AllowedHosts('127.0.0.1'), FOLDER, FUNCTIONS)


def ask(app, method='GET', path='/', *chunks, client='10.0.0.1', **headers):
    """The answer to one request: status, headers and text."""
    headers = {'host': '127.0.0.1:7860', **headers}
    raw = [(key.replace('_', '-').encode(), value.encode()) for key, value in headers.items()]
    scope = dict(type='http', method=method, path=path, client=(client, 1), headers=raw)
    waiting = [dict(type='http.request', body=chunk, more_body=True) for chunk in chunks]
    waiting.append(dict(type='http.request', body=b'', more_body=False))
    answer = []

    async def receive():
        return waiting.pop(0) if waiting else await asyncio.Event().wait()

    async def send(message):
        answer.append(message)

    asyncio.run(app(scope, receive, send))
    start, *bodies = answer
    return start['status'], dict(start['headers']), b''.join(b['body'] for b in bodies).decode()


@pytest.mark.parametrize(
    'path',
    [
        '/', '/theme.css', '/assets/index.js', '/static/img/logo.svg', '/gradio_api/queue/data',
        '/gradio_api/heartbeat/abc', f'/gradio_api/file={FOLDER}/0a/image.webp',
    ],
)  # fmt: skip
def test_requests_of_the_page_pass(app, page, path):
    assert ask(app, path=path)[::2] == (200, 'page')
    assert len(page.requests) == 1


OTHER_PATHS = {
    'GET': [
        '/config', '/assets/../../etc/passwd', '/monitoring', '/gradio_api/info',
        '/gradio_api/file=/etc/passwd', f'/gradio_api/file={FOLDER}/../secret',
        f'/gradio_api/file={FOLDER}', '/gradio_api/file=http://127.0.0.1:1/',
        '/gradio_api/proxy=http://127.0.0.1:1/', '/gradio_api/run-history/buckets',
    ],
    'POST': [
        '/', '/login', '/gradio_api/run/upload', '/gradio_api/call/upload',
        '/gradio_api/component_server', '/gradio_api/stream/1', '/gradio_api/vibe-edit',
    ],
    'OPTIONS': ['/'], 'DELETE': ['/'], 'PUT': [UPLOAD],
}  # fmt: skip


@pytest.mark.parametrize('method', OTHER_PATHS)
def test_other_requests_are_not_found(app, page, method):
    statuses = {path: ask(app, method, path)[0] for path in OTHER_PATHS[method]}
    assert statuses == dict.fromkeys(OTHER_PATHS[method], 404)
    assert not page.requests


LOCAL = ['127.0.0.1:7860', 'localhost:7860', 'LOCALHOST', 'localhost:8080', '[::1]:7860']
FOREIGN = ['evil.example:7860', 'localhost.evil.example', 'x@localhost', 'a b', '', '127.0.0.1:7/']


@pytest.mark.parametrize(
    ('host', 'known', 'unknown'),
    [
        ('127.0.0.1', LOCAL, [*FOREIGN, '192.0.2.1:7860', 'gpu:7860']),
        ('localhost', LOCAL, FOREIGN),
        ('::1', LOCAL, FOREIGN),
        ('0.0.0.0', [*LOCAL, '192.0.2.1', 'gpu:7860', 'GPU.lab.example', 'gpu.local'], FOREIGN),
        ('192.0.2.1', ['192.0.2.1:7860', 'gpu:7860'], FOREIGN),
        ('box.example', ['box.example:7860'], FOREIGN),
    ],
)
def test_the_host_header_must_name_the_server(monkeypatch, page, host, known, unknown):
    monkeypatch.setattr(network.socket, 'gethostname', lambda: 'gpu.lab.example')
    app = RequestFilter(page, AllowedHosts(host), FOLDER, FUNCTIONS)
    assert {name: ask(app, host=name)[0] for name in known} == dict.fromkeys(known, 200)
    assert {name: ask(app, host=name)[0] for name in unknown} == dict.fromkeys(unknown, 403)
    assert AllowedHosts(host).is_local == (host in ('127.0.0.1', 'localhost', '::1'))


@pytest.mark.parametrize(
    ('origin', 'status'),
    [
        ('http://127.0.0.1:7860', 200),
        ('https://127.0.0.1:7860', 200),
        ('http://localhost:7860', 403),
        ('http://127.0.0.1:7861', 403),
        ('http://evil.example', 403),
        ('null', 403),
    ],
)
def test_requests_of_other_sites_are_rejected(app, origin, status):
    body = json.dumps(CALLING).encode()
    assert ask(app, 'POST', CALL, body, origin=origin)[0] == status


def test_all_responses_have_security_headers(app):
    for answer in (ask(app), ask(app, path='/config'), ask(app, host='evil')):
        headers = answer[1]
        assert headers[b'x-content-type-options'] == b'nosniff'
        assert headers[b'x-frame-options'] == b'DENY'
        assert headers[b'referrer-policy'] == b'same-origin'
        assert b"frame-ancestors 'none'" in headers[b'content-security-policy']
        assert b"default-src 'self'" in headers[b'content-security-policy']


def basic(text):
    return 'Basic ' + base64.b64encode(text.encode()).decode()


def test_all_requests_require_the_password(page):
    app = RequestFilter(page, AllowedHosts('127.0.0.1'), FOLDER, FUNCTIONS, 'me:sécret:1')
    body = json.dumps(CALLING).encode()
    for request in (('GET', '/'), ('POST', CALL, body), ('POST', UPLOAD), ('GET', '/theme.css')):
        assert ask(app, *request)[0] == 401
        assert ask(app, *request)[1][b'www-authenticate'].startswith(b'Basic ')
        assert ask(app, *request, authorization=basic('me:sécret:1'))[0] == 200
    for wrong in ('Basic', 'Basic %%%', 'Bearer me', basic('me:'), basic('me:secret:1')):
        assert ask(app, authorization=wrong)[0] == 401


def test_wrong_passwords_are_limited(page):
    app = RequestFilter(page, AllowedHosts('127.0.0.1'), FOLDER, FUNCTIONS, 'me:secret')
    tried = [ask(app, authorization=basic(f'me:{n}'))[0] for n in range(12)]
    assert tried == [401] * 10 + [429] * 2
    assert ask(app, authorization=basic('me:secret'))[0] == 429
    assert ask(app, authorization=basic('me:secret'), client='10.0.0.2')[0] == 200


@pytest.mark.parametrize('text', [None, b'', b'me', b'me:', b':secret', b'a:b\nc:d', b'\xff:a'])
def test_an_invalid_password_file_is_an_error(tmp_path, text):
    path = tmp_path / 'auth.txt'
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=r'--auth .*auth\.txt'):
        read_password(str(path))
    path.write_text('me:sécret: 1\n', 'utf-8')
    assert read_password(str(path)) == 'me:sécret: 1'


@pytest.mark.parametrize(('path', 'limit'), [(UPLOAD, 20 * 2**20 + 2**14), (CALL, 2**14)])
def test_large_bodies_are_rejected(app, page, path, limit):
    assert ask(app, 'POST', path, b'x', content_length=str(limit + 1))[0] == 413
    assert ask(app, 'POST', path, b'x', content_length='9' * 5000)[0] == 413
    assert ask(app, 'POST', path, b'x', content_length='-1')[0] == 413
    assert ask(app, 'POST', path, *[bytes(limit // 4 + 1)] * 4)[0] == 413
    assert not page.requests


def test_slow_bodies_are_rejected(app, monkeypatch):
    monkeypatch.setattr(request_filter, 'BODY_SECONDS', 0.05)

    async def drip(scope, receive, send):
        async def never():
            await asyncio.Event().wait()

        await app(scope, never, send)

    assert ask(drip, 'POST', UPLOAD)[0] == 408


def test_an_upload_passes_unchanged(app, page):
    assert ask(app, 'POST', UPLOAD, b'ab', b'cd')[0] == 200
    assert page.requests[0][1] == b'abcd'


@pytest.mark.parametrize(
    ('path', 'body', 'limits'),
    [(UPLOAD, b'', UPLOADS_PER_MINUTE), (CALL, json.dumps(CALLING).encode(), CALLS_PER_MINUTE)],
)
def test_requests_per_minute_are_limited(app, monkeypatch, path, body, limits):
    now = [1000.0]
    monkeypatch.setattr(request_filter.time, 'monotonic', lambda: now[0])
    app.uploads, app.calls = RateLimit(2, 3), RateLimit(2, 3)
    assert limits[0] <= limits[1]
    one = [ask(app, 'POST', path, body)[0] for _ in range(3)]
    other = [ask(app, 'POST', path, body, client='10.0.0.2')[0] for _ in range(2)]
    assert (one, other) == ([200, 200, 429], [200, 429])
    assert ask(app)[0] == 200
    _, headers, text = ask(app, 'POST', path, body)
    assert headers[b'retry-after'] == b'60'
    assert json.loads(text)['detail'] if path == CALL else text
    now[0] += 60
    assert ask(app, 'POST', path, body)[0] == 200


def test_a_failure_is_logged_in_one_line(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError('out of\nmemory \x1b[31m')

    with caplog.at_level(logging.ERROR):
        app = RequestFilter(broken, AllowedHosts('127.0.0.1'), FOLDER, FUNCTIONS)
        status, _, body = ask(app)
    assert status == 500 and 'memory' not in body
    [record] = caplog.records
    text = logging.Formatter().format(record)
    assert 'RuntimeError' in text and text.isprintable()


def test_gradio_does_not_receive_forwarded_hosts(app, page):
    ask(app, 'GET', '/', x_forwarded_host='evil.example', x_forwarded_proto='https')
    assert [name for name, _ in page.requests[0][0]['headers']] == [b'host']


def changed(**fields):
    return json.dumps({**CALLING, **fields}).encode()


@pytest.mark.parametrize(
    'body',
    [
        changed(data=[dict(path='/etc/passwd', meta=dict(_type='gradio.FileData')), 0.3, 3]),
        changed(data=[dict(path='http://127.0.0.1:1/'), 0.3, 3]),
        changed(data=[['key'], 0.3, 3]),
        changed(data=['k' * 10**4, 0.3, 3]),
        changed(data=['key', 0.3]),
        changed(data='key'),
        changed(fn_index=0),
        changed(fn_index=True),
        changed(fn_index=None),
        changed(fn_index=[]),
        changed(session_hash=None),
        changed(session_hash='../x'),
        changed(session_hash='a' * 65),
        *(b'', b'[', b'[]', b'\xff', b'[' * 10**4, b'1', b'{"data": []}'),
    ],
)
def test_other_calls_are_rejected(body):
    with pytest.raises(RequestError):
        clean_call(body, FUNCTIONS)


def test_other_fields_of_a_call_are_dropped():
    call = dict(
        CALLING, event_id='1', oauth_token='t', simple_format=True, trigger_id=5, batched=True,
        event_data=dict(index=2, value=dict(path='/etc/passwd')),
    )  # fmt: skip
    assert json.loads(clean_call(json.dumps(call).encode(), FUNCTIONS)) == dict(
        CALLING, event_data=dict(index=2, value=None)
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
JUNK_CALLS = st.fixed_dictionaries(
    dict(fn_index=st.sampled_from([1, 3, 99]) | JSON, data=st.lists(JSON, max_size=4) | JSON),
    optional=dict(
        session_hash=st.just('abc') | JSON,
        event_data=st.fixed_dictionaries(dict(index=JSON)) | JSON,
    ),
)


@settings(max_examples=100, deadline=None)
@given(JUNK_CALLS | JSON)
def test_any_json_is_rejected_or_reduced_to_plain_values(call):
    try:
        cleaned = json.loads(clean_call(json.dumps(call).encode(), FUNCTIONS))
    except RequestError:
        return
    assert set(cleaned) == {'fn_index', 'data', 'session_hash', 'event_data'}
    assert len(cleaned['data']) == FUNCTIONS[cleaned['fn_index']]
    assert all(not isinstance(value, (dict, list, bool)) for value in cleaned['data'])
    assert isinstance(cleaned['event_data']['index'], (int, type(None)))


def test_uploads_have_unique_keys_and_are_read_once():
    uploads = Uploads()
    keys = [uploads.add('a.jpg', b'same') for _ in range(MAX_UPLOADS + 2)]
    assert [uploads.take(key) for key in keys[2:]] == [('a.jpg', b'same')] * MAX_UPLOADS
    # The oldest were dropped, the others were read.
    for key in (*keys[:3], '', None, 5, '/etc/passwd'):
        with pytest.raises(UserError):
            uploads.take(key)
