"""The web page: what it computes, what it says about wrong files, and the page in a browser."""

import importlib.util
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmfocalnet.datasets import draw_image
from mmfocalnet.errors import UserError
from mmfocalnet.inference import ImageError, Prediction, Segment, load_predictor
from mmfocalnet.visualization import modulation_maps, prepare_image
from mmfocalnet.web import HOST
from mmfocalnet.web.look import (
    MAX_SIDE,
    describe_found,
    describe_run,
    draw_found,
    draw_maps,
    look_at,
    read_upload,
    sample_pictures,
)

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools/web.py'
CONFIG = ROOT / 'configs/demo/mask_rcnn.py'
OPTIONS = {'model.backbone.embed_dim': 8, 'model.neck.in_channels': [8, 16, 32, 64]}
# Runs the tool and prints every address that its process asks for.
WATCHED = """
import runpy, sys
def hook(event, args):
    if event == 'socket.connect' and isinstance(args[1], tuple):
        print('CONNECTS TO', args[1][0], flush=True)
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(OPTIONS)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp('model') / 'random.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


@pytest.fixture(scope='module')
def predictor(checkpoint):
    return load_predictor(CONFIG, checkpoint, cfg_options=OPTIONS)


@pytest.fixture(scope='module')
def picture():
    return draw_image(0, 'val', size=(64, 96)).image[..., ::-1]


@pytest.fixture(scope='module')
def look(predictor, picture):
    return look_at(predictor, picture)


def test_without_gradio_it_says_what_to_install(run, tmp_path, checkpoint):
    (tmp_path / 'gradio.py').write_text("raise ModuleNotFoundError('No module named gradio')")
    result = run(
        sys.executable, TOOL, CONFIG, checkpoint, env={'PYTHONPATH': str(tmp_path)}, code=2
    )
    assert "pip install -e '.[web]'" in result.stderr
    assert 'Traceback' not in result.stderr


def test_it_listens_to_this_machine_only_unless_told_otherwise(monkeypatch):
    spec = importlib.util.spec_from_file_location('web_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['web.py', 'config.py', 'checkpoint.pth'])
    assert tool.parse_args().host == HOST == '127.0.0.1'
    monkeypatch.setattr(sys, 'argv', ['web.py', 'c.py', 'c.pth', '--host', '0.0.0.0'])
    assert tool.parse_args().host == '0.0.0.0'


def test_other_scores_need_no_other_run(look, predictor, monkeypatch):
    monkeypatch.setattr(predictor.model, 'forward', None)
    middle = float(np.median(look.prediction.scores))
    counts = [int(describe_found(look, thr).split()[0]) for thr in (0, middle, 1)]
    assert counts[0] == len(look.prediction.scores) > counts[1] > counts[2] == 0
    everything, nothing = draw_found(look, 0), draw_found(look, 1)
    assert everything.shape == nothing.shape == (64 * 6, 96 * 6, 3)  # enlarged to be readable
    assert (everything != nothing).any()
    assert len(look.prediction.scores) == counts[0]


def test_the_maps_are_those_of_the_last_block_of_each_stage(look, predictor, picture):
    _, pixels = prepare_image(picture, predictor.cfg)
    assert len(look.maps) == 4
    for stage, maps in enumerate(look.maps):
        wanted = modulation_maps(predictor.model, pixels, stage)
        assert maps.gates.shape[0] == 3
        np.testing.assert_allclose(maps.gates, wanted.gates, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(maps.modulator, wanted.modulator, rtol=1e-4, atol=1e-5)
    for drawn in draw_maps(look, 0):
        assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
        assert drawn.std() > 10


def test_the_run_is_described(look, predictor):
    said = describe_run(predictor, look)
    millions = sum(p.numel() for p in predictor.model.parameters()) / 1e6
    assert 'MaskRCNN with FocalNet (width 8, depths 1-1-2-1, focal levels 2)' in said
    assert f'{millions:.1f} M parameters' in said
    assert f'{look.milliseconds:.0f} ms for 96x64 pixels on cpu' in said


@pytest.mark.parametrize(
    ('fields', 'said'),
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
def test_every_task_is_counted_and_drawn(fields, said):
    height, width = fields.get('semantic', np.zeros((1, 2))).shape
    image = np.zeros((height, width, 3), np.uint8)
    prediction = Prediction(
        image=image,
        classes=['cat', 'dog', 'sky'],
        palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)],
        **fields,
    )
    look = SimpleNamespace(prediction=prediction)
    assert describe_found(look, 0.3) == said
    drawn = draw_found(look, 0.3)
    factor = 640 // max(height, width)
    assert drawn.shape == (height * factor, width * factor, 3)
    assert drawn.any()


def upload(tmp_path, content):
    path = tmp_path / 'holiday.jpg'
    path.write_bytes(content)
    return path


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def test_an_upload_is_read_and_deleted(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = upload(tmp_path, png(pixels))
    np.testing.assert_array_equal(read_upload(path), pixels[..., ::-1])
    assert not path.exists()


def test_a_large_upload_is_scaled_down(tmp_path):
    path = upload(tmp_path, png(np.zeros((2 * MAX_SIDE, 100, 3), np.uint8)))
    assert read_upload(path).shape == (MAX_SIDE, 50, 3)


def test_a_bad_upload_is_named_as_its_owner_does_and_deleted(tmp_path):
    path = upload(tmp_path, b'not a picture')
    with pytest.raises(ImageError, match=r'^holiday\.jpg is no picture'):
        read_upload(path)
    assert not path.exists()


def test_too_many_pixels_are_refused(tmp_path):
    header = bytearray(png(np.zeros((1, 1), np.uint8)))
    header[16:24] = (20000).to_bytes(4, 'big') * 2
    # The header's check sum.
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, 'big')
    with pytest.raises(ImageError, match=r'holiday\.jpg has 20000x20000 pixels'):
        read_upload(upload(tmp_path, bytes(header)))


def test_models_of_other_classes_have_no_examples():
    assert sample_pictures(['person', 'bicycle']) == []
    assert len(sample_pictures(['circle', 'square', 'triangle', 'star'])) == 6


@pytest.fixture
def handlers(predictor):
    pytest.importorskip('gradio')
    from mmfocalnet.web.page import Handlers

    return Handlers(predictor)


def test_a_good_upload_fills_every_output_and_a_bad_one_only_the_message(handlers, tmp_path):
    import gradio as gr

    from mmfocalnet.web.page import OUTPUTS

    good = handlers.upload(upload(tmp_path, png(np.zeros((64, 64, 3), np.uint8))), 0.3, 3)
    bad = handlers.upload(tmp_path / '<b>gone.jpg', 0.3, 3)
    assert len(good) == len(bad) == 1 + OUTPUTS
    assert good[0]['visible'] is False and good[1].maps
    assert bad[0]['visible'] is True and '&lt;b&gt;gone.jpg' in bad[0]['value']
    assert bad[1:] == [gr.skip()] * OUTPUTS


def test_a_picture_that_the_server_forgot_is_no_error(handlers):
    import gradio as gr

    assert handlers.rescore(None, 0.5) == handlers.restage(None, 0) == (gr.skip(), gr.skip())


@pytest.mark.parametrize(('host', 'port'), [(HOST, 'taken'), (HOST, 70000), ('no.such.', None)])
def test_an_address_that_cannot_be_used_is_one_sentence(predictor, host, port):
    pytest.importorskip('gradio')
    from mmfocalnet.web.page import serve

    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1] if port == 'taken' else port
        with pytest.raises(UserError, match=f'--host {host}, --port .*: give .* a free port'):
            serve(predictor, host, port)


def cli_options():
    return [f'{key}={value}'.replace(' ', '') for key, value in OPTIONS.items()]


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='module')
def server(checkpoint, tmp_path_factory):
    """The running tool: the address of its page, and what it has printed."""
    pytest.importorskip('gradio')
    log = tmp_path_factory.mktemp('web') / 'log.txt'
    temp = tmp_path_factory.mktemp('temp')
    command = [
        sys.executable, '-c', WATCHED, TOOL, CONFIG, checkpoint, '--port', free_port(),
        '--cfg-options', *cli_options(),
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
        pytest.skip('no chromium here')
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
    """The page, loaded, with what the browser complained about and asked for."""
    page = chromium.new_page()
    page.errors, page.asked = [], []
    page.on('console', lambda said: said.type == 'error' and page.errors.append(said.text))
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('request', lambda request: page.asked.append(request.url))
    page.goto(server.url)
    # The first example is shown at once.
    page.locator('#run', has_text=' ms for 160x160 pixels').wait_for()
    yield page
    page.close()


def set_score(page, score):
    page.locator('#score input[type=number]').fill(str(score))
    page.keyboard.press('Enter')


def wait_for_count(page, pattern):
    page.locator('#count span.prose', has_text=re.compile(pattern)).wait_for()


@pytest.mark.web
def test_upload_score_stage_and_bad_file_in_a_browser(server, page, picture, tmp_path):
    image, text = tmp_path / 'shapes.png', tmp_path / 'notes.jpg'
    image.write_bytes(png(np.ascontiguousarray(picture[..., ::-1])))
    text.write_text('not a picture')

    page.set_input_files('input[type=file]', image)
    page.locator('#run', has_text=' ms for 96x64 pixels').wait_for()
    drawn = page.locator('#found img').get_attribute('src')
    set_score(page, 1)
    wait_for_count(page, r'^\s*0 objects')
    page.wait_for_function('old => document.querySelector("#found img").src !== old', arg=drawn)
    set_score(page, 0)
    wait_for_count(page, r'^\s*[1-9]\d* objects')

    maps = page.locator('#maps img')
    assert maps.count() == 2
    before = maps.first.get_attribute('src')
    page.locator('#maps input[type=radio]').first.click()
    page.wait_for_function('old => document.querySelector("#maps img").src !== old', arg=before)

    page.set_input_files('input[type=file]', text)
    message = page.locator('#message [role=alert]')
    message.wait_for()
    assert 'notes.jpg is no picture' in message.inner_text()
    page.locator('#examples button').nth(1).click()
    message.wait_for(state='hidden')
    page.locator('#run', has_text=' ms for 160x160 pixels').wait_for()

    assert page.errors == []
    assert page.asked and all(url.startswith((server.url, 'data:', 'blob:')) for url in page.asked)


@pytest.mark.web
def test_a_large_file_is_refused_in_a_browser(page, tmp_path):
    large = tmp_path / 'large.png'
    with large.open('wb') as file:
        file.truncate(20 * 2**20 + 1)
    page.set_input_files('input[type=file]', large)
    page.get_by_text('File(s) exceed the maximum allowed size of 20').wait_for()


@pytest.mark.web
def test_the_server_asks_nobody_and_leaves_no_files(server):
    """The last one: it stops the server."""
    assert files(server.temp)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    assert not files(server.temp)
    lines = server.log.read_text().splitlines()
    asked = {line.split()[-1] for line in lines if line.startswith('CONNECTS TO')}
    assert asked <= {HOST}, asked


def files(folder):
    return [path for path in folder.rglob('*') if path.is_file()]
