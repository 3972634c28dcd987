"""The web page: its analysis of images, its HTTP interface, and the page in a browser."""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmfocalnet.datasets import draw_image
from mmfocalnet.errors import UserError
from mmfocalnet.inference import ImageError, Prediction, Segment, load_predictor
from mmfocalnet.visualization import modulation_maps, prepare_image
from mmfocalnet.web import HOST
from mmfocalnet.web.analysis import (
    MAX_SIDE,
    analyze,
    describe_prediction,
    describe_run,
    draw_maps,
    draw_prediction,
    example_images,
    read_upload,
)
from mmfocalnet.web.network import listen
from mmfocalnet.web.request_filter import API, CALL, UPLOAD, RateLimit

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/web.py'
# Runs the tool and prints each address that its process connects to.
WATCHED = """
import runpy, sys
def hook(event, args):
    if event == 'socket.connect' and isinstance(args[1], tuple):
        print('CONNECTS TO', args[1][0], flush=True)
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def model(trained_run, trained):
    """Config and checkpoint."""
    return trained_run / 'mask_rcnn.py', trained


@pytest.fixture(scope='module')
def predictor(model):
    return load_predictor(*model)


@pytest.fixture(scope='module')
def image():
    return draw_image(0, 'val', size=(64, 96)).image[..., ::-1]


@pytest.fixture(scope='module')
def analysis(predictor, image):
    return analyze(predictor, image)


@pytest.mark.parametrize('password', [None, 'me:secret'])
def test_other_machines_cause_a_warning(tool, monkeypatch, tmp_path, password):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    command = ['web', 'config.py', 'none.pth', '--port', 0]
    if password:
        (tmp_path / 'auth.txt').write_text(password)
        command += ['--auth', tmp_path / 'auth.txt']
    code, out, err = tool(*command)
    assert code == 2 and "pip install -e '.[web]'" in err and 'Warning' not in err
    code, out, err = tool(*command, '--host', '0.0.0.0')
    assert code == 2 and 'Warning: --host 0.0.0.0' in err and 'secret' not in out + err


def test_exported_models_are_refused(tool):
    code, _, err = tool('web', 'model.onnx')
    assert code == 2 and 'model.onnx' in err


@pytest.mark.parametrize(
    ('host', 'port', 'token'),
    [
        (HOST, 'taken', "--host '127.0.0.1', --port "),
        (HOST, 70000, '--port 70000'),
        ('no.such.', 0, "--host 'no.such.'"),
    ],
)
def test_an_unavailable_address_is_an_error(host, port, token):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1] if port == 'taken' else port
        with pytest.raises(UserError, match=re.escape(token)):
            listen(host, port)


def test_the_default_host_is_this_machine(tool, monkeypatch):
    hosts = []

    def stop(host, port):
        hosts.append(host)
        raise UserError('stop')

    monkeypatch.setattr('mmfocalnet.web.network.listen', stop)
    for flags in ((), ('--host', '0.0.0.0')):
        assert tool('web', 'config.py', 'none.pth', *flags)[0] == 2
    assert hosts == [HOST, '0.0.0.0'] == ['127.0.0.1', '0.0.0.0']


def test_another_minimum_score_does_not_run_the_model(analysis, predictor, monkeypatch):
    monkeypatch.setattr(predictor.model, 'forward', None)
    middle = float(np.median(analysis.prediction.scores))
    counts = [int(describe_prediction(analysis, thr).split()[0]) for thr in (0, middle, 1)]
    assert counts[0] == len(analysis.prediction.scores) > counts[1] > counts[2] == 0
    everything, nothing = draw_prediction(analysis, 0), draw_prediction(analysis, 1)
    assert everything.shape == nothing.shape == (64 * 6, 96 * 6, 3)  # enlarged to be readable
    assert (everything != nothing).any()
    assert len(analysis.prediction.scores) == counts[0]


def test_maps_of_the_last_block_of_each_stage(analysis, predictor, image):
    _, pixels = prepare_image(image, predictor.cfg)
    assert len(analysis.maps) == 4
    for stage, maps in enumerate(analysis.maps):
        wanted = modulation_maps(predictor.model, pixels, stage)
        assert maps.gates.shape[0] == 3
        np.testing.assert_allclose(maps.gates, wanted.gates, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(maps.modulator, wanted.modulator, rtol=1e-4, atol=1e-5)
    for drawn in draw_maps(analysis, 0):
        assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
        assert drawn.std() > 10


def test_description_of_the_run(analysis, predictor):
    text = describe_run(predictor, analysis)
    millions = sum(p.numel() for p in predictor.model.parameters()) / 1e6
    assert 'MaskRCNN with FocalNet (width 8, depths 1-1-2-1, focal levels 2)' in text
    assert f'{millions:.1f} M parameters' in text
    assert f'{analysis.milliseconds:.0f} ms for 96x64 pixels on cpu' in text


@pytest.mark.parametrize(
    ('fields', 'text'),
    [
        (dict(task='semantic', semantic=np.array([[0, 2], [2, 2]])), '2 classes: 75% sky, 25% cat'),
        (
            dict(
                task='panoptic',
                panoptic=np.array([[1, 2]], np.int32),
                segments=[Segment(1, 0, 1, True), Segment(2, 0, 1, True)],
            ),
            '2 segments: 2 cat',
        ),
        (
            dict(
                task='boxes',
                boxes=np.zeros((2, 4)),
                labels=np.array([1, 0]),
                scores=np.array([0.5, 0.2]),
            ),
            '1 object: 1 dog',
        ),
    ],
)
def test_predictions_of_each_task_are_counted_and_drawn(fields, text):
    height, width = fields.get('semantic', np.zeros((1, 2))).shape
    image = np.zeros((height, width, 3), np.uint8)
    prediction = Prediction(
        image=image,
        classes=['cat', 'dog', 'sky'],
        palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)],
        **fields,
    )
    analysis = SimpleNamespace(prediction=prediction)
    assert describe_prediction(analysis, 0.3) == text
    drawn = draw_prediction(analysis, 0.3)
    factor = 640 // max(height, width)
    assert drawn.shape == (height * factor, width * factor, 3)
    assert drawn.any()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def png_of(width, height):
    """The header of an image without its pixels."""
    header = bytearray(png(np.zeros((1, 1), np.uint8)))
    header[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    # The checksum of the header.
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, 'big')
    return bytes(header)


def test_uploads_are_read():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(read_upload('a.png', png(pixels)), pixels[..., ::-1])


def test_large_uploads_are_scaled_down():
    pixels = np.zeros((2 * MAX_SIDE, 100, 3), np.uint8)
    assert read_upload('a.png', png(pixels)).shape == (MAX_SIDE, 50, 3)


def test_images_too_narrow_for_the_model_are_an_error(predictor):
    image = read_upload('a.png', png(np.zeros((MAX_SIDE, 1, 3), np.uint8)))
    with pytest.raises(ImageError, match=f'1x{MAX_SIDE}'):
        analyze(predictor, image)


@pytest.mark.parametrize(
    ('content', 'token'),
    [
        (b'not an image', ''),
        (b'', ''),
        (png(np.eye(99, dtype=np.uint8))[:60], ''),
        (png_of(20000, 20000), '20000x20000'),
        (png_of(8000, 8000), '8000x8000'),
        (png(np.zeros((20000, 1), np.uint8)), '1x20000'),  # too narrow to scale
        (png(np.zeros((4, 20000), np.uint8)), '20000x4'),
    ],
)
def test_errors_of_uploads_name_the_file(content, token):
    with pytest.raises(ImageError, match=rf'^holiday\.jpg.*{token}'):
        read_upload('holiday.jpg', content)


def test_models_of_other_classes_have_no_examples():
    assert example_images(['person', 'bicycle']) == []
    assert len(example_images(['circle', 'square', 'triangle', 'star'])) == 6


@pytest.fixture(scope='module')
def served(predictor, tmp_path_factory):
    """The page without a network: its app, a client and its folder."""
    pytest.importorskip('gradio')
    from starlette.testclient import TestClient

    from mmfocalnet.web.server import build_app

    folder = tmp_path_factory.mktemp('served')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GRADIO_TEMP_DIR', str(folder))
        app = build_app(predictor, str(folder), HOST)
        app.uploads = app.calls = RateLimit(10**6, 10**6)
        with TestClient(app, base_url=f'http://{HOST}:7860') as client:
            yield SimpleNamespace(app=app, client=client, folder=folder, predictor=predictor)


FUNCTIONS = ('show_upload', 'show_example', 'show_first', 'set_score', 'set_stage')


def join(served, function, *data, session, event=None):
    """Queue a call; return the response."""
    index = dict(zip(FUNCTIONS, served.app.functions, strict=True))[function]
    return post(served, dict(fn_index=index, data=data, session_hash=session, event_data=event))


def post(served, body):
    """Queue any JSON, including NaN."""
    headers = {'content-type': 'application/json'}
    return served.client.post(CALL, content=json.dumps(body), headers=headers)


def result(served, session):
    """The last result of a session."""
    text = served.client.get(f'{API}/queue/data', params=dict(session_hash=session)).text
    sent = [json.loads(line.removeprefix('data: ')) for line in text.split('\n') if line]
    return [message for message in sent if message['msg'] == 'process_completed'][-1]


def call(served, function, *data, session, event=None):
    """The outputs of a call of the page."""
    assert join(served, function, *data, session=session, event=event).status_code == 200
    done = result(served, session)
    assert done['success'], done
    return done['output']['data']


def send_file(served, content, name='holiday.png'):
    """Upload as the page does; return the key of the file."""
    response = served.client.post(UPLOAD, files=dict(files=(name, content)))
    assert response.status_code == 200, response.text
    [path] = response.json()
    return path.split('/')[0]


def has_message(output):
    return output[0]['visible']


@pytest.mark.web
def test_visitors_with_the_same_file_get_separate_results(served):
    content = png(np.full((64, 96, 3), 7, np.uint8))

    def visit(number):
        key = send_file(served, content)
        return call(served, 'show_upload', key, 0.3, 3, session=f'same{number}')

    with ThreadPoolExecutor(12) as pool:
        outputs = list(pool.map(visit, range(12)))
    assert [has_message(output) for output in outputs] == [False] * 12
    assert sum(' ms for 96x64 pixels' in output[2] for output in outputs) == 12


@pytest.mark.web
def test_an_upload_is_read_once_and_never_written(served, monkeypatch):
    def fail(*args):
        raise AssertionError('an upload goes to a temporary file')

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, 'rollover', fail)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    content = png(noise)
    assert len(content) > 4 * 2**20
    key = send_file(served, content)
    assert not has_message(call(served, 'show_upload', key, 0.3, 3, session='once'))
    assert all(path.read_bytes() != content for path in files(served.folder))
    assert has_message(call(served, 'show_upload', key, 0.3, 3, session='once'))


@pytest.mark.web
def test_old_drawn_images_are_deleted_and_examples_stay(served):
    from gradio.route_utils import delete_files_created_by_app

    page = served.app.app.routes[-1].app.get_blocks()
    assert page.delete_cache == (60, 600)
    delete_files_created_by_app(page, age=-1)
    examples = files(served.folder)
    output = call(served, 'show_first', 0.3, 3, session='old')
    drawn = [Path(value['path']) for value in (output[3], output[5], output[6])]
    assert len(examples) == 6 and all(path.is_file() for path in drawn)
    delete_files_created_by_app(page, age=-1)
    assert files(served.folder) == examples


@pytest.mark.web
def test_calls_cannot_read_or_delete_files(served):
    examples = files(served.folder)
    assert len(examples) >= 6
    for path in (str(examples[0]), '/etc/passwd', 'http://127.0.0.1:1/a.png'):
        data = dict(path=path, url=path, meta=dict(_type='gradio.FileData'))
        for function, values in (
            ('show_upload', (data, 0.3, 3)),
            ('show_upload', ('key', data, 3)),
            ('set_score', (None, data)),
        ):
            assert join(served, function, *values, session='files').status_code == 422
        assert has_message(call(served, 'show_upload', path, 0.3, 3, session='files'))
    assert set(examples) <= set(files(served.folder))


@pytest.mark.web
@pytest.mark.parametrize(
    ('content', 'name', 'token'),
    [
        (b'not an image', '../<b>gone.jpg', '&lt;b&gt;gone.jpg'),
        (png(np.zeros((20000, 1), np.uint8)), 'a.png', '1x20000'),
        (png(np.zeros((MAX_SIDE, 1), np.uint8)), 'a.png', f'1x{MAX_SIDE}'),
    ],
)
def test_a_bad_file_is_a_message_and_the_last_prediction_stays(served, content, name, token, capfd):
    key = send_file(served, content, name)
    output = call(served, 'show_upload', key, 0.3, 3, session='bad')
    assert has_message(output) and token in output[0]['value']
    assert all(value == dict(__type__='update') for value in output[2:])
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.web
def test_an_unexpected_error_is_a_message_and_a_line_in_the_log(served, monkeypatch, caplog, capfd):
    def fail(images):
        raise RuntimeError('DefaultCPUAllocator: not enough memory')

    monkeypatch.setattr(served.predictor, 'predict', fail)
    with caplog.at_level(logging.ERROR):
        output = call(served, 'show_first', 0.3, 3, session='fails')
    assert has_message(output) and 'Allocator' not in output[0]['value']
    assert ['RuntimeError' in record.getMessage() for record in caplog.records] == [True]
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.web
@pytest.mark.parametrize(
    ('function', 'data', 'event'),
    [
        ('show_example', (0.3, 3), dict(index=6, value=None)),
        ('show_example', (0.3, 3), dict(index=-1, value=None)),
        ('show_example', (0.3, 3), None),
        ('show_first', (float('nan'), 3), None),
        ('show_first', (1e308, 3), None),
        ('show_first', ('0.3', 3), None),
        ('show_first', (0.3, 1.0), None),
        ('set_score', (None, -0.1), None),
        ('set_stage', (None, 4), None),
    ],
)
def test_invalid_values_are_messages(served, function, data, event, capfd):
    assert has_message(call(served, function, *data, session='values', event=event))
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.web
def test_an_expired_session_is_not_an_error(served):
    for function, value in (('set_score', 0.5), ('set_stage', 0)):
        output = call(served, function, None, value, session='forgotten')
        assert not has_message(output)
        assert output[1:] == [dict(__type__='update')] * 2


@pytest.mark.web
def test_the_queue_is_limited(served, monkeypatch):
    from mmfocalnet.web.interface import MAX_QUEUE

    proceed = threading.Event()

    def wait(images):
        proceed.wait(60)
        raise ImageError('after the wait')

    monkeypatch.setattr(served.predictor, 'predict', wait)
    sessions = [f'queue{number}' for number in range(MAX_QUEUE + 20)]
    codes = [
        join(served, 'show_first', 0.3, 3, session=session).status_code for session in sessions
    ]
    proceed.set()
    accepted = [session for session, code in zip(sessions, codes, strict=True) if code == 200]
    assert set(codes) == {200, 503}
    assert MAX_QUEUE <= len(accepted) <= MAX_QUEUE + 2  # and those that run
    assert all(result(served, session)['success'] for session in accepted)


VALUES = st.none() | st.integers(-2, 7) | st.integers() | st.floats() | st.text(max_size=20)
CALLS = st.fixed_dictionaries(
    dict(
        fn_index=st.integers(0, 7),
        data=st.lists(VALUES, min_size=2, max_size=3),
        session_hash=st.just('junk') | st.sampled_from(['', None, '../..', 'x' * 99]),
    ),
    optional=dict(
        event_data=VALUES | st.fixed_dictionaries(dict(index=VALUES)),
        trigger_id=VALUES,
        event_id=VALUES,
        batched=st.booleans(),
    ),
)
FORMS = st.lists(
    st.sampled_from(
        [
            b'--x\r\n', b'--x--\r\n', b'\r\n', b'\xff\x00', b'a: b\r\n', b'data',
            b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n',
            b'Content-Disposition: form-data; name="files"\r\n',
            b'Content-Disposition: form-data; name="other"; filename="b"\r\n',
            b'Content-Disposition: form-data; name="files"; filename="/../.."\r\n',
        ]
    ),
    max_size=12,
).map(b''.join)  # fmt: skip
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.web
@QUICK
@given(CALLS)
def test_any_call_is_answered_without_a_traceback(served, capfd, body):
    response = post(served, body)
    assert response.status_code in (200, 422)
    if response.status_code == 200:
        assert result(served, 'junk')['success']
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.web
@QUICK
@given(FORMS | st.binary(max_size=100), st.sampled_from(['multipart/form-data; boundary=x', 'a/b']))
def test_any_upload_is_answered_without_a_traceback(served, capfd, body, kind):
    before = files(served.folder)
    response = served.client.post(UPLOAD, content=body, headers={'content-type': kind})
    assert response.status_code in (200, 400)
    assert files(served.folder) == before
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.web
@QUICK
@given(
    st.sampled_from(
        ['', 'assets/', 'static/', 'gradio_api/file=', 'gradio_api/queue/data?session_hash=']
    ),
    st.text(max_size=20).map(quote) | st.just('%2e%2e/%00'),
)
def test_any_path_is_answered_without_a_traceback(served, capfd, start, end):
    assert served.client.get(f'/{start}{end}').status_code in (200, 400, 403, 404, 422, 500)
    assert 'Traceback' not in ''.join(capfd.readouterr())


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(model, folder):
    """Run the tool."""
    log, temp = folder / 'log.txt', folder / 'temp'
    temp.mkdir()
    command = [
        sys.executable, '-c', WATCHED, ROOT / 'tools/web.py', *model, '--port', free_port(),
    ]  # fmt: skip
    with log.open('w') as out:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'TMPDIR': str(temp)},
        )
    try:
        yield SimpleNamespace(process=process, log=log, temp=temp, url=wait_for_page(process, log))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope='module')
def server(model, tmp_path_factory):
    pytest.importorskip('gradio')
    with running(model, tmp_path_factory.mktemp('web')) as server:
        yield server


def wait_for_page(process, log):
    for _ in range(600):
        for line in log.read_text().splitlines():
            if line.startswith('The page is at '):
                return line.split()[4]
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope='module')
def chromium():
    playwright = pytest.importorskip('playwright.sync_api')
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)
    if browser is None:
        pytest.skip('chromium is not installed')
    flags = [
        '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
        '--disable-background-networking', '--disable-component-update',
    ]  # fmt: skip
    with playwright.sync_playwright() as play:
        window = play.chromium.launch(executable_path=browser, args=flags)
        yield window
        window.close()


@pytest.fixture
def page(server, chromium):
    """The loaded page, with the errors and requests of the browser."""
    page = chromium.new_page()
    page.errors, page.requests = [], []
    page.on('console', lambda text: text.type == 'error' and page.errors.append(text.text))
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('request', lambda request: page.requests.append(request.url))
    page.goto(server.url)
    # The first example is analyzed at once.
    page.locator('#run', has_text=' ms for 160x160 pixels').wait_for()
    yield page
    page.close()


def set_score(page, score):
    page.locator('#score input[type=number]').fill(str(score))
    page.keyboard.press('Enter')


def wait_for_count(page, pattern):
    page.locator('#count span.prose', has_text=re.compile(pattern)).wait_for()


@pytest.mark.web
def test_upload_score_stage_and_error_in_a_browser(server, page, image, tmp_path):
    photo, text = tmp_path / 'shapes.png', tmp_path / 'notes.jpg'
    photo.write_bytes(png(np.ascontiguousarray(image[..., ::-1])))
    text.write_text('not an image')

    page.set_input_files('input[type=file]', photo)
    page.locator('#run', has_text=' ms for 96x64 pixels').wait_for()
    set_score(page, 1)
    wait_for_count(page, r'^\s*0 objects')
    empty = page.locator('#found img').get_attribute('src')
    set_score(page, 0)
    wait_for_count(page, r'^\s*[1-9]\d* objects')
    page.wait_for_function('old => document.querySelector("#found img").src !== old', arg=empty)

    maps = page.locator('#maps img')
    assert maps.count() == 2
    before = maps.first.get_attribute('src')
    page.locator('#maps input[type=radio]').first.click()
    page.wait_for_function('old => document.querySelector("#maps img").src !== old', arg=before)

    page.set_input_files('input[type=file]', text)
    message = page.locator('#message [role=alert]')
    message.wait_for()
    assert message.inner_text().startswith('notes.jpg')
    page.locator('#examples button').nth(1).click()
    message.wait_for(state='hidden')
    page.locator('#run', has_text=' ms for 160x160 pixels').wait_for()

    assert page.errors == []
    assert page.requests and all(
        url.startswith((server.url, 'data:', 'blob:')) for url in page.requests
    )


@pytest.mark.web
def test_a_large_file_is_rejected_in_a_browser(page, tmp_path):
    large = tmp_path / 'large.png'
    with large.open('wb') as file:
        file.truncate(20 * 2**20 + 1)
    page.set_input_files('input[type=file]', large)
    page.get_by_text('File(s) exceed the maximum allowed size of 20').wait_for()


@pytest.mark.web
def test_the_server_opens_no_connection_and_leaves_no_files(server, page):
    """The last test: it stops the server while a page is open."""
    assert files(server.temp)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    assert not files(server.temp)
    text = server.log.read_text()
    assert 'CONNECTS TO' not in text
    assert 'Traceback' not in text


@pytest.mark.web
def test_a_terminated_server_leaves_no_files(model, tmp_path):
    pytest.importorskip('gradio')
    with running(model, tmp_path) as server:
        with urlopen(server.url) as response:
            assert response.status == 200
        assert files(server.temp)
        server.process.terminate()
        assert server.process.wait(20) == 128 + signal.SIGTERM
        assert not files(server.temp)
        assert 'Traceback' not in server.log.read_text()


def files(folder):
    return [path for path in folder.rglob('*') if path.is_file()]
