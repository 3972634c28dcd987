"""Downloads from servers that hang, send slowly, truncate, redirect or change the file."""

import contextlib
import hashlib
import http.server
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from mmfocalnet.checkpoints import CheckpointError, download, fetch, open_checkpoint
from mmfocalnet.files import PARTIAL

FORKS = multiprocessing.get_context('fork')


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder that downloads go to."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub/checkpoints'


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 1.0)


@pytest.fixture
def content(tmp_path):
    torch.save({'weight': torch.ones(5000)}, tmp_path / 'made.pth')
    return (tmp_path / 'made.pth').read_bytes()


class Server:
    """A web server on this machine.

    Attributes:
        answers: Function of the handler that answers each path.
        requests: Requested paths.
    """

    def __init__(self, port):
        self.url = f'http://127.0.0.1:{port}'
        self.answers = {}
        self.requests = []

    def send(self, path, content, length=True):
        """Answer with a file."""

        def answer(handler):
            head(handler, len(content) if length else None)
            handler.wfile.write(content)

        self.answers[path] = answer
        return self.url + path


def head(handler, length=None, code=200, **headers):
    handler.send_response(code)
    if length is not None:
        handler.send_header('Content-Length', str(length))
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.end_headers()


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.requests.append(self.path)
            with contextlib.suppress(ConnectionError):  # closed by the client
                served.answers[self.path](self)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        httpd.daemon_threads = True
        served = Server(httpd.server_port)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield served
        httpd.shutdown()


def left_in(hub):
    """Files except the lock."""
    return [path.name for path in hub.iterdir() if path.name != '.mmfocalnet.lock']


def refusal(hub, url):
    with pytest.raises(CheckpointError) as error:
        fetch(url)
    assert url.partition('#')[0] in str(error.value)
    assert '\n' not in str(error.value)
    assert not left_in(hub)
    return str(error.value)


def test_without_network(hub):
    refusal(hub, 'http://127.0.0.1:9/f.pth')


def test_a_url_is_downloaded_once(hub, server, content):
    url = server.send('/files/focalnet_tiny.pth?download=1', content)
    for _ in range(2):
        assert open_checkpoint(url).state['weight'].sum() == 5000
    assert len(server.requests) == 1
    [name] = left_in(hub)
    assert name.endswith('-focalnet_tiny.pth')


def test_truncated_files_and_other_content_are_refused(hub, server, content):
    def cut(handler):
        head(handler, len(content))
        handler.wfile.write(content[:500])

    server.answers['/short.pth'] = cut
    assert 'truncated' in refusal(hub, f'{server.url}/short.pth')
    # HTTP/1.0 without a length ends where the connection does.
    assert 'truncated' in refusal(hub, server.send('/cut.pth', content[:-500], length=False))
    assert 'HTML' in refusal(hub, server.send('/page.pth', b'<html></html>'))
    assert 'truncated' in refusal(hub, server.send('/', b'abc'))
    open_checkpoint(server.send('/short.pth', content))


def silence(handler):
    time.sleep(20)


def no_body(handler):
    head(handler, 1000)
    time.sleep(20)


def slow_headers(handler):
    for character in 'HTTP/1.0 200 OK\r\n' + 'X-Header: 1\r\n' * 100:
        handler.wfile.write(character.encode())
        handler.wfile.flush()
        time.sleep(0.2)


def slow_content(handler):
    head(handler, 10**6)
    handler.wfile.write(bytes(5000))
    for _ in range(100):
        handler.wfile.write(b'.')
        handler.wfile.flush()
        time.sleep(0.2)


@pytest.mark.parametrize('answer', [silence, no_body, slow_headers, slow_content])
def test_slow_and_silent_servers_time_out(hub, server, answer):
    server.answers['/slow.pth'] = answer
    start = time.monotonic()
    refusal(hub, f'{server.url}/slow.pth')
    assert time.monotonic() - start < 15  # TIMEOUT is a second here


def test_size_limits(hub, server, content, monkeypatch):
    monkeypatch.setattr(download, 'MAX_GIGABYTES', 1e-6)
    url = server.send('/large.pth', content)
    assert 'max_gb' in refusal(hub, url)
    assert 'max_gb' in refusal(hub, server.send('/unannounced.pth', content, length=False))
    assert fetch(f'{url}#max_gb=1').is_file()


def test_sha256(hub, server, content):
    url = server.send('/f.pth', content)
    right, wrong = hashlib.sha256(content).hexdigest(), 64 * '0'
    assert wrong in refusal(hub, f'{url}#sha256={wrong}')
    path = fetch(f'{url}#max_gb=1&sha256={right.upper()}')
    assert path == fetch(url)
    with pytest.raises(CheckpointError, match=wrong):
        fetch(f'{url}#sha256={wrong}')


@pytest.mark.parametrize(
    'fragment',
    [
        'sha256=',
        'sha256=&max_gb=1',
        'sha256=12',
        'max_gb=much',
        'max_gb=-1',
        'max_gb=nan',
        'md5=12',
        'main',
    ],
)
def test_invalid_fragments(fragment):
    with pytest.raises(CheckpointError, match=fragment):
        fetch(f'https://example.org/f.pth#{fragment}')


def test_http_without_sha256_logs_a_warning(hub, server, content, monkeypatch):
    warned = []
    monkeypatch.setattr(download, 'print_log', lambda text, *_: warned.append(text))
    url = server.send('/f.pth', content)
    fetch(f'{url}#sha256={hashlib.sha256(content).hexdigest()}')
    assert not warned
    url = server.send('/g.pth', content)
    fetch(url)
    assert len(warned) == 1 and url in warned[0]


@pytest.mark.parametrize('target', ['file:///etc/hostname', 'ftp://127.0.0.1:9/f.pth'])
def test_redirects_to_other_schemes_are_refused(hub, server, target):
    server.answers['/f.pth'] = lambda handler: head(handler, 0, 302, Location=target)
    refusal(hub, f'{server.url}/f.pth')


def test_a_redirect_from_https_to_http_is_refused():
    request = download.urllib.request.Request('https://example.org/f.pth')
    follow = download._Redirects().redirect_request
    with pytest.raises(ValueError, match=r'http://example\.org'):
        follow(request, None, 302, 'Found', {}, 'http://example.org/f.pth')
    assert follow(request, None, 302, 'Found', {}, 'https://example.org/g.pth')


def test_several_processes_download_once(hub, server, content):
    def slowly(handler):
        head(handler, len(content))
        handler.wfile.write(content[:5000])
        handler.wfile.flush()
        time.sleep(0.5)
        handler.wfile.write(content[5000:])

    server.answers['/f.pth'] = slowly
    processes = [FORKS.Process(target=fetch, args=(f'{server.url}/f.pth',)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(server.requests) == 1


def test_partial_files_of_a_killed_process_are_removed(hub, server, content):
    server.answers['/slow.pth'] = no_body
    process = FORKS.Process(target=fetch, args=(f'{server.url}/slow.pth',))
    process.start()
    until = time.monotonic() + 30
    while not list(hub.glob(f'{PARTIAL}*')):
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert list(hub.glob(f'{PARTIAL}*'))
    path = fetch(server.send('/f.pth', content))
    assert left_in(hub) == [path.name]


def test_all_users_can_use_the_lock(hub, server, content):
    fetch(server.send('/f.pth', content))
    assert (hub / '.mmfocalnet.lock').stat().st_mode & 0o666 == 0o666


def test_a_cache_that_is_not_a_folder(hub, server, content):
    Path(hub.parent).write_text('a file')
    with pytest.raises(CheckpointError, match=str(hub)):
        fetch(server.send('/f.pth', content))
