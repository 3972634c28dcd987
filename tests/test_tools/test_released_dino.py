"""Released DINO detectors from the command line: predict, fine-tune, resume."""

import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import narrow_models
import published_dino
import pytest
import torch
from forked_tools import ROOT, assert_same, losses, state
from PIL import Image

from mmfocalnet.inference import load_predictor
from mmfocalnet.released import DETECTORS, RELEASED, Released, configs_folder

NAME = 'focalnet_dino_fl4_5scale'
FINE_TUNE = ROOT / 'configs/dino/focalnet_l_fl4_5scale_finetune.py'
TINY = [
    'train_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
    *narrow_models.DINO,
]


def narrow(base, path, **settings):
    """Write a config like a released one, of the size of the detector with random weights."""
    sizes = published_dino.numbers(NAME)['config']
    cfg = published_dino.config(sizes)
    changes = dict(
        num_queries=sizes['num_queries'],
        backbone=dict(cfg.model.backbone, _delete_=True),
        neck=dict(in_channels=cfg.model.neck.in_channels),
        encoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=sizes['ffn']))),
        decoder=dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=sizes['ffn']))),
        test_cfg=dict(max_per_img=sizes['num_queries']),
    )
    lines = [f'_base_ = {str(base)!r}', f'model = {changes!r}']
    lines += [f'{key} = {value!r}' for key, value in settings.items()]
    path.write_text('\n'.join(lines))
    return path


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A file of FocalNet-DINO with random weights."""
    folder = tmp_path_factory.mktemp('weights')
    model = published_dino.weights(published_dino.numbers(NAME))
    torch.save(dict(model=model), folder / 'detector.pth')
    return folder / 'detector.pth'


@pytest.fixture
def server(weights):
    """Serves the file; returns its URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=weights.parent)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}/{weights.name}'
        running.shutdown()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder for downloads."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub'


def release(monkeypatch, url, config):
    monkeypatch.setitem(RELEASED, 'dino-focalnet-l', Released(url, str(config)))


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((96, 64), 80).convert('RGB').save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png'


def test_every_released_model_has_a_config_and_an_address():
    assert len({model.url for model in RELEASED.values()}) == len(RELEASED)
    for name, model in RELEASED.items():
        assert model.url.startswith('https://')
        assert name not in DETECTORS or model.config
        assert model.config is None or (configs_folder() / model.config).is_file()
    for name in DETECTORS:
        text = (configs_folder() / RELEASED[name].config).read_text()
        assert f"load_from = '{RELEASED[name].url}'" in text


def test_the_docs_list_every_released_detector():
    page = (ROOT / 'docs/dino.md').read_text()
    for name in DETECTORS:
        assert f'`{name}`' in page and RELEASED[name].url in page


def test_predicts_by_name(tool, server, hub, image, tmp_path, monkeypatch):
    config = narrow(ROOT / 'configs/dino/focalnet_l_fl4_5scale_12e.py', tmp_path / 'config.py')
    release(monkeypatch, server, config)
    out = tmp_path / 'out'
    code, _, stderr = tool(
        'infer', image, 'dino-focalnet-l', '--out', out, '--score-thr', 0,
        '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,96)',
    )  # fmt: skip
    assert code == 0, stderr
    assert (out / 'vis/photo.png').is_file()
    assert len(json.loads((out / 'predictions.json').read_text())) == 50
    names = [entry['name'] for entry in json.loads((out / 'categories.json').read_text())]
    assert names[0] == 'person' and len(names) == 80

    # Again without a connection, from Python.
    monkeypatch.setattr('urllib.request.build_opener', None)
    assert load_predictor('dino-focalnet-l').classes == names


def test_offline_the_message_has_the_address_and_the_place(tool, hub, image, tmp_path, monkeypatch):
    url = 'http://127.0.0.1:9/detector.pth'
    release(monkeypatch, url, RELEASED['dino-focalnet-l'].config)
    code, _, stderr = tool('infer', image, 'dino-focalnet-l', '--out', tmp_path / 'out')
    assert code == 2 and 'Traceback' not in stderr
    assert url in stderr and str(hub / 'checkpoints') in stderr
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('arguments', 'token'),
    [
        (['dino-focalnet-l'], 'IMAGES'),
        (['photo.png', 'config.py'], "'config.py' has no checkpoint"),
        (['photo.png', 'other.png'], "'other.png' is not a released detector"),
        (['config.py', 'none.pth'], "'none.pth' is not a released detector"),
        (['photo.png', 'dino-focalnet-xl'], "'dino-focalnet-xl' is not a released detector"),
        (['a.png', 'b.png', 'dino-focalnet-xl'], "'dino-focalnet-xl' is not a released detector"),
        (['photo.png', 'focalnet-tiny-lrf'], "'focalnet-tiny-lrf' is not a released detector"),
        (['{image}', 'dino-focalnet-l', 'none.pth'], "no config file 'dino-focalnet-l'"),
        (['{image}', 'none.py', 'dino-focalnet-l'], "no config file 'none.py'"),
    ],
)
def test_wrong_arguments(tool, image, arguments, token, tmp_path):
    arguments = [argument.format(image=image) for argument in arguments]
    code, _, stderr = tool('infer', *arguments, '--out', tmp_path / 'out')
    assert code == 2 and token in stderr and 'Traceback' not in stderr
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('tool_name', ['infer', 'test', 'train'])
def test_weights_of_the_other_code_base_are_refused(tool, home, image, tool_name, monkeypatch):
    """The position encoding is not visible in the weights."""
    monkeypatch.chdir(home)
    state = published_dino.weights(published_dino.numbers('detrex_fl4_5scale'))
    torch.save(dict(model=state), home / 'detrex.pth')
    config = narrow(ROOT / 'configs/demo/dino.py', home / 'config.py')
    arguments = {
        'infer': [image, config, home / 'detrex.pth', '--out', home / 'out'],
        'test': [config, home / 'detrex.pth'],
        'train': [config, '--cfg-options', f'load_from={home}/detrex.pth'],
    }[tool_name]
    code, _, stderr = tool(tool_name, *arguments)
    assert code == 2 and 'Traceback' not in stderr
    assert 'detrex.pth' in stderr and 'positional_encoding.temperature is 20' in stderr


def test_visualizes_by_name(tool, server, hub, image, tmp_path, monkeypatch):
    config = narrow(ROOT / 'configs/dino/focalnet_l_fl4_5scale_12e.py', tmp_path / 'config.py')
    release(monkeypatch, server, config)
    code, _, stderr = tool(
        'visualize', image, 'dino-focalnet-l', '--what', 'gates', '--out', tmp_path / 'maps',
        '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,96)',
    )  # fmt: skip
    assert code == 0, stderr


def test_a_name_is_also_the_checkpoint_of_a_config(tool, server, hub, image, tmp_path, monkeypatch):
    release(monkeypatch, server, 'none.py')
    config = narrow(ROOT / 'configs/dino/focalnet_l_fl4_5scale_12e.py', tmp_path / 'config.py')
    code, _, stderr = tool(
        'infer', image, config, 'dino-focalnet-l', '--out', tmp_path / 'out',
        '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,96)',
    )  # fmt: skip
    assert code == 0, stderr


def test_a_name_is_a_checkpoint(hub, monkeypatch, weights):
    from mmfocalnet.checkpoints import CheckpointError, fetch

    monkeypatch.setitem(RELEASED, 'focalnet-tiny-lrf', Released('http://127.0.0.1:9/tiny.pth'))
    with pytest.raises(CheckpointError, match=re.escape('127.0.0.1:9/tiny.pth')):
        fetch('focalnet-tiny-lrf')


def test_fine_tunes_on_other_classes(forked_tool, weights, home):
    """The recipe of docs/dino.md; one class has the name of a class of COCO."""
    annotations = home / 'shapes/annotations'
    annotations.parent.mkdir()
    for part in ('train2017', 'val2017'):
        (annotations.parent / part).symlink_to(home / f'data/shapes/coco/{part}')
        source = home / f'data/shapes/coco/annotations/instances_{part}.json'
        content = json.loads(source.read_text())
        content['categories'][1]['name'] = 'Sports-Ball'
        annotations.mkdir(exist_ok=True)
        (annotations / source.name).write_text(json.dumps(content))
    narrow(FINE_TUNE, home / 'recipe.py', load_from=str(weights))
    forked_tool(
        'new_config', home / 'shapes', '--recipe', home / 'recipe.py', '--out', home / 'new.py'
    )
    log = forked_tool(
        'train', home / 'new.py', '--work-dir', home / 'work', '--cfg-options',
        'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4',
        'optim_wrapper.optimizer.lr=0', 'default_hooks.logger.interval=1',
        'train_dataloader.dataset.pipeline.4.transforms.0.0.scales=[(96,96)]',
        'train_dataloader.dataset.pipeline.4.transforms.1.2.scales=[(96,96)]',
        'val_dataloader.dataset.pipeline.1.scale=(96,96)',
    ).stdout  # fmt: skip
    assert '1 of 4 classes are initialized from the checkpoint ("Sports-Ball")' in log
    assert 'size mismatch' not in log and 'unexpected key' not in log

    trained = torch.load(home / 'work/epoch_1.pth', weights_only=False)['state_dict']
    published = published_dino.weights(published_dino.numbers(NAME))
    ball = published['class_embed.0.weight'][37]  # its category id
    for layer in range(6):
        head = trained[f'bbox_head.cls_branches.{layer}.weight']
        assert head.shape[0] == 4
        assert torch.equal(head[1], ball)
        assert not torch.equal(head[0], published['class_embed.0.weight'][1])
    assert torch.equal(trained['query_embedding.weight'], published['transformer.tgt_embed.weight'])


def test_resumes_bit_for_bit_with_frozen_stages_and_checkpointing(forked_tool, home):
    config = ROOT / 'configs/demo/dino.py'

    def train(name, iterations, *flags):
        forked_tool(
            'train', config, '--work-dir', home / name, *flags, '--cfg-options', *TINY,
            f'train_cfg.max_iters={iterations}', 'train_cfg.val_interval=2',
            'default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.max_keep_ckpts=2',
            'model.backbone.frozen_stages=1', 'model.backbone.use_checkpoint=True',
            cwd=home,
        )  # fmt: skip

    train('straight', 4)
    train('resumed', 2)
    train('resumed', 4, '--resume')
    assert_same(losses(home / 'straight'), losses(home / 'resumed'))
    first, last = (state(home / f'straight/iter_{number}.pth') for number in (2, 4))
    assert_same(last, state(home / 'resumed/iter_4.pth'))
    for key in last:
        frozen = re.match(r'/state_dict/backbone\.(patch_embed|layers\.0)\.', key)
        if key.startswith('/state_dict/backbone.'):
            assert torch.equal(first[key], last[key]) == bool(frozen), key
