"""What the web page's guard lets pass; needs no Gradio."""

import asyncio
import base64
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.web import address, guard
from mmfocalnet.web.address import Hosts
from mmfocalnet.web.guard import (
    CALL,
    CALLS_PER_MINUTE,
    MAX_UPLOADS,
    UPLOAD,
    UPLOADS_PER_MINUTE,
    Guard,
    Rate,
    RequestError,
    Uploads,
    clean_call,
    read_password,
)

FOLDER = '/tmp/mmfocalnet-web-x'
FUNCTIONS = {1: 3, 3: 2}
CALLING = dict(fn_index=1, data=['key', 0.3, 3], session_hash='abc')


class Page:
    """Stands for Gradio: answers everything, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    async def __call__(self, scope, receive, send):
        body = (await receive()).get('body', b'') if scope['method'] == 'POST' else b''
        self.asked.append((scope, body))
        await send(dict(type='http.response.start', status=200, headers=[]))
        await send(dict(type='http.response.body', body=b'page'))


@pytest.fixture
def page():
    return Page()


@pytest.fixture
def guarded(page):
    return Guard(page, Hosts('127.0.0.1'), FOLDER, FUNCTIONS)


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
def test_what_the_page_needs_passes(guarded, page, path):
    assert ask(guarded, path=path)[::2] == (200, 'page')
    assert len(page.asked) == 1


@pytest.mark.parametrize(
    ('method', 'path'),
    [
        ('GET', '/config'),
        ('GET', '/assets/../../etc/passwd'),
        ('GET', '/monitoring'),
        ('GET', '/gradio_api/file=/etc/passwd'),
        ('GET', f'/gradio_api/file={FOLDER}/../secret'),
        ('GET', f'/gradio_api/file={FOLDER}'),
        ('GET', '/gradio_api/file=http://127.0.0.1:1/'),
        ('GET', '/gradio_api/proxy=http://127.0.0.1:1/'),
        ('GET', '/gradio_api/run-history/buckets'),
        ('GET', '/gradio_api/info'),
        ('POST', '/'),
        ('POST', '/login'),
        ('POST', '/gradio_api/run/upload'),
        ('POST', '/gradio_api/call/upload'),
        ('POST', '/gradio_api/component_server'),
        ('POST', '/gradio_api/stream/1'),
        ('POST', '/gradio_api/vibe-edit'),
        ('OPTIONS', '/'),
        ('DELETE', '/'),
        ('PUT', UPLOAD),
    ],
)
def test_what_the_page_does_not_need_is_not_found(guarded, page, method, path):
    assert ask(guarded, method, path)[0] == 404
    assert not page.asked


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
def test_only_the_servers_own_names_are_answered(monkeypatch, page, host, known, unknown):
    monkeypatch.setattr(address.socket, 'gethostname', lambda: 'gpu.lab.example')
    guarded = Guard(page, Hosts(host), FOLDER, FUNCTIONS)
    assert {name: ask(guarded, host=name)[0] for name in known} == dict.fromkeys(known, 200)
    assert {name: ask(guarded, host=name)[0] for name in unknown} == dict.fromkeys(unknown, 403)
    assert Hosts(host).is_local == (host in ('127.0.0.1', 'localhost', '::1'))


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
def test_other_sites_are_refused(guarded, origin, status):
    body = json.dumps(CALLING).encode()
    assert ask(guarded, 'POST', CALL, body, origin=origin)[0] == status


def test_every_answer_has_the_security_headers(guarded):
    for answer in (ask(guarded), ask(guarded, path='/config'), ask(guarded, host='evil')):
        headers = answer[1]
        assert headers[b'x-content-type-options'] == b'nosniff'
        assert headers[b'x-frame-options'] == b'DENY'
        assert headers[b'referrer-policy'] == b'same-origin'
        assert b"frame-ancestors 'none'" in headers[b'content-security-policy']
        assert b"default-src 'self'" in headers[b'content-security-policy']


def basic(text):
    return 'Basic ' + base64.b64encode(text.encode()).decode()


def test_a_password_opens_everything_and_nothing_is_open_without(page):
    guarded = Guard(page, Hosts('127.0.0.1'), FOLDER, FUNCTIONS, 'me:sécret:1')
    body = json.dumps(CALLING).encode()
    for request in (('GET', '/'), ('POST', CALL, body), ('POST', UPLOAD), ('GET', '/theme.css')):
        assert ask(guarded, *request)[0] == 401
        assert ask(guarded, *request)[1][b'www-authenticate'].startswith(b'Basic ')
        assert ask(guarded, *request, authorization=basic('me:sécret:1'))[0] == 200
    for wrong in ('Basic', 'Basic %%%', 'Bearer me', basic('me:'), basic('me:secret:1')):
        assert ask(guarded, authorization=wrong)[0] == 401


def test_passwords_cannot_be_tried_at_will(page):
    guarded = Guard(page, Hosts('127.0.0.1'), FOLDER, FUNCTIONS, 'me:secret')
    tried = [ask(guarded, authorization=basic(f'me:{n}'))[0] for n in range(12)]
    assert tried == [401] * 10 + [429] * 2
    assert ask(guarded, authorization=basic('me:secret'))[0] == 429
    assert ask(guarded, authorization=basic('me:secret'), client='10.0.0.2')[0] == 200


@pytest.mark.parametrize('text', [None, b'', b'me', b'me:', b':secret', b'a:b\nc:d', b'\xff:a'])
def test_a_wrong_password_file_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / 'auth.txt'
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=r'--auth .*auth\.txt'):
        read_password(str(path))


def test_a_password_file_is_one_line(tmp_path):
    path = tmp_path / 'auth.txt'
    path.write_text('me:sécret: 1\n', 'utf-8')
    assert read_password(str(path)) == 'me:sécret: 1'


@pytest.mark.parametrize(('path', 'limit'), [(UPLOAD, 20 * 2**20 + 2**14), (CALL, 2**14)])
def test_large_bodies_are_refused_declared_or_not(guarded, page, path, limit):
    assert ask(guarded, 'POST', path, b'x', content_length=str(limit + 1))[0] == 413
    assert ask(guarded, 'POST', path, b'x', content_length='9' * 5000)[0] == 413
    assert ask(guarded, 'POST', path, b'x', content_length='-1')[0] == 413
    assert ask(guarded, 'POST', path, *[bytes(limit // 4 + 1)] * 4)[0] == 413
    assert not page.asked


def test_slow_bodies_are_refused(guarded, monkeypatch):
    monkeypatch.setattr(guard, 'BODY_SECONDS', 0.05)

    async def drip(scope, receive, send):
        async def never():
            await asyncio.Event().wait()

        await guarded(scope, never, send)

    assert ask(drip, 'POST', UPLOAD)[0] == 408


def test_an_upload_passes_as_it_is(guarded, page):
    assert ask(guarded, 'POST', UPLOAD, b'ab', b'cd')[0] == 200
    assert page.asked[0][1] == b'abcd'


@pytest.mark.parametrize(
    ('path', 'body', 'limits'),
    [(UPLOAD, b'', UPLOADS_PER_MINUTE), (CALL, json.dumps(CALLING).encode(), CALLS_PER_MINUTE)],
)
def test_requests_per_minute_are_limited_per_address_and_in_total(
    guarded, monkeypatch, path, body, limits
):
    now = [1000.0]
    monkeypatch.setattr(guard.time, 'monotonic', lambda: now[0])
    guarded.uploads, guarded.calls = Rate(2, 3), Rate(2, 3)
    assert limits[0] <= limits[1]
    one = [ask(guarded, 'POST', path, body)[0] for _ in range(3)]
    other = [ask(guarded, 'POST', path, body, client='10.0.0.2')[0] for _ in range(2)]
    assert (one, other) == ([200, 200, 429], [200, 429])
    assert ask(guarded)[0] == 200
    _, headers, text = ask(guarded, 'POST', path, body)
    assert headers[b'retry-after'] == b'60'
    # Gradio's page shows the text of a refused upload, but the detail of a refused call.
    assert (json.loads(text)['detail'] if path == CALL else text).startswith('Too many')
    now[0] += 60
    assert ask(guarded, 'POST', path, body)[0] == 200


def test_a_failure_is_one_line_without_a_traceback(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError('out of\nmemory \x1b[31m')

    with caplog.at_level(logging.ERROR):
        status, _, text = ask(Guard(broken, Hosts('127.0.0.1'), FOLDER, FUNCTIONS))
    assert status == 500 and 'memory' not in text
    [record] = caplog.records
    said = logging.Formatter().format(record)
    assert 'RuntimeError' in said and said.isprintable()


def test_gradio_is_not_told_of_other_hosts(guarded, page):
    ask(guarded, 'GET', '/', x_forwarded_host='evil.example', x_forwarded_proto='https')
    assert [name for name, _ in page.asked[0][0]['headers']] == [b'host']


@pytest.mark.parametrize(
    'change',
    [
        dict(data=[dict(path='/etc/passwd', meta=dict(_type='gradio.FileData')), 0.3, 3]),
        dict(data=[dict(path='http://127.0.0.1:1/'), 0.3, 3]),
        dict(data=[['key'], 0.3, 3]),
        dict(data=['k' * 10**4, 0.3, 3]),
        dict(data=['key', 0.3]),
        dict(data='key'),
        dict(fn_index=0),
        dict(fn_index=True),
        dict(fn_index=None),
        dict(fn_index=[]),
        dict(session_hash=None),
        dict(session_hash='../x'),
        dict(session_hash='a' * 65),
    ],
)
def test_calls_that_the_page_does_not_make_are_refused(change):
    with pytest.raises(RequestError):
        clean_call(json.dumps({**CALLING, **change}).encode(), FUNCTIONS)


@pytest.mark.parametrize('body', [b'', b'[', b'[]', b'\xff', b'[' * 10**4, b'1', b'{"data": []}'])
def test_calls_that_are_no_calls_are_refused(body):
    with pytest.raises(RequestError):
        clean_call(body, FUNCTIONS)


def test_nothing_else_of_a_call_reaches_gradio():
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
def test_any_json_is_refused_or_holds_plain_values_only(call):
    try:
        cleaned = json.loads(clean_call(json.dumps(call).encode(), FUNCTIONS))
    except RequestError:
        return
    assert set(cleaned) == {'fn_index', 'data', 'session_hash', 'event_data'}
    assert len(cleaned['data']) == FUNCTIONS[cleaned['fn_index']]
    assert all(not isinstance(value, (dict, list, bool)) for value in cleaned['data'])
    assert isinstance(cleaned['event_data']['index'], (int, type(None)))


def test_equal_files_are_kept_apart_and_read_once():
    uploads = Uploads()
    keys = [uploads.add('holiday.jpg', b'same') for _ in range(MAX_UPLOADS)]
    assert len(set(keys)) == MAX_UPLOADS
    assert [uploads.take(key) for key in keys] == [('holiday.jpg', b'same')] * MAX_UPLOADS
    for key in (keys[0], '', None, 5, '/etc/passwd'):
        with pytest.raises(UserError):
            uploads.take(key)


def test_no_more_files_are_kept_than_fit():
    uploads = Uploads()
    keys = [uploads.add('a', b'') for _ in range(MAX_UPLOADS + 2)]
    for key in keys[:2]:
        with pytest.raises(UserError):
            uploads.take(key)
    assert all(uploads.take(key) for key in keys[2:])
