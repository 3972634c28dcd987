"""tools/visualize.py with a config of each model family."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TINY = ['--cfg-options', 'model.backbone.embed_dim=8', 'model.backbone.depths=[1,1,2,1]']
CONFIGS = [
    'mask_rcnn/focalnet_t_1x',
    'atss/focalnet_t_3x',
    'upernet/focalnet_s_160k_ade20k',
    'mask2former/focalnet_l_160k_ade20k_640',
    'mask2former/focalnet_t_coco_panoptic',
    'imagenet/focalnet_t',
]


@pytest.fixture
def image(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    file = tmp_path / 'image.png'
    Image.fromarray(values).save(file)
    return file


@pytest.fixture
def draw(image, tmp_path, monkeypatch, tool):
    """Run the tool in this process; return its exit code and output."""

    def _draw(config, *flags, image=image):
        monkeypatch.chdir(tmp_path)
        code, out, error = tool('visualize', image, ROOT / 'configs' / f'{config}.py', *flags)
        return code, out + error

    return _draw


def save_checkpoint(config, file, prefix='', **changes):
    torch.manual_seed(1)
    backbone = Config.fromfile(ROOT / f'configs/{config}.py').model.backbone
    backbone.update(init_cfg=None, embed_dim=8, depths=[1, 1, 2, 1], **changes)
    net = MODELS.build(backbone)
    net.init_weights()
    torch.save({'state_dict': {prefix + k: v for k, v in net.state_dict().items()}}, file)
    return net


# Smaller than the paper's image sizes.
SCALE = 'test_dataloader.dataset.pipeline.1.scale=(80,80)'


@pytest.mark.parametrize('config', CONFIGS)
def test_every_family_draws_all_kinds(config, draw, tmp_path):
    # A classifier's images are small.
    options = [] if config.startswith('imagenet') else [SCALE]
    code, out = draw(config, '--out', tmp_path / 'maps', *TINY, *options)
    assert code == 0, out
    assert out.count('random') == 1  # and nothing was downloaded
    files = {file.name: Image.open(file) for file in (tmp_path / 'maps').iterdir()}
    assert set(files) == {
        'image_gates_stage3_block0.png',
        'image_modulator_stage3_block0.png',
        'kernels_stage3_block0.png',
        'image_erf_stage3.png',
    }
    for file in files.values():
        assert np.asarray(file.convert('L')).std() > 10


@pytest.mark.e2e
def test_from_the_shell_with_a_checkpoint_of_a_detector(run, image, tmp_path):
    checkpoint = tmp_path / 'model.pth'
    save_checkpoint('demo/mask_rcnn', checkpoint, prefix='backbone.')
    out = run(
        sys.executable, ROOT / 'tools/visualize.py', image, ROOT / 'configs/demo/mask_rcnn.py',
        checkpoint, '--what', 'gates', '--stage', '-2', '--block', '0', *TINY, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert f'Loaded {checkpoint} (' in out and 'random' not in out
    drawn = tmp_path / 'work_dirs/mask_rcnn/maps'
    assert [file.name for file in drawn.iterdir()] == ['image_gates_stage2_block0.png']


def test_weights_come_from_the_checkpoint_or_a_local_init_cfg(draw, tmp_path):
    """Checkpoints of a backbone and of a model and init_cfg agree; random weights differ."""
    backbone, model = tmp_path / 'backbone.pth', tmp_path / 'model.pth'
    save_checkpoint('demo/upernet', backbone)
    save_checkpoint('demo/upernet', model, prefix='backbone.')
    key = 'model.backbone.init_cfg'
    local = [f'{key}.type=Pretrained', f'{key}.checkpoint={backbone}']
    drawn = []
    cases = ([backbone], []), ([model], []), ([], local), ([], [])
    for number, (checkpoint, options) in enumerate(cases):
        folder = tmp_path / f'maps{number}'
        code, out = draw(
            'demo/upernet', *checkpoint, '--what', 'modulator', '--out', folder, *TINY, *options
        )
        assert code == 0, out
        drawn.append((folder / 'image_modulator_stage3_block0.png').read_bytes())
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]


def test_kernels_before_and_after_expansion(draw, tmp_path):
    """Kernel sizes 3 and 5 of the checkpoint become 9 and 11 in a model of window 9."""
    checkpoint, out = tmp_path / 'srf.pth', tmp_path / 'maps'
    save_checkpoint('mask_rcnn/focalnet_t_srf_1x', checkpoint, focal_windows=3)
    for flags in ([], ['--pretrained-window', 3]):
        code, printed = draw(
            'mask_rcnn/focalnet_t_srf_1x', checkpoint, '--what', 'kernels', '--out', out,
            *flags, *TINY, SCALE,
        )  # fmt: skip
        assert code == 0, printed
    after, before = (np.asarray(Image.open(file)) for file in sorted(out.iterdir()))
    assert sorted(file.name for file in out.iterdir()) == [
        'kernels_stage3_block0.png',
        'kernels_stage3_block0_window3.png',
    ]
    # The zeros of the padding are white.
    coloured = [
        (np.ptp(pixels[..., :3].astype(int), axis=2) > 60).mean() for pixels in (before, after)
    ]
    assert coloured[0] > 2 * coloured[1]


def test_block_without_levels_and_long_file_name(draw, image, tmp_path):
    long = image.rename(tmp_path / f'{"ä" * 120}.png')
    options = [*TINY, 'model.backbone.focal_levels=0']
    code, out = draw('demo/mask_rcnn', '--out', tmp_path / 'maps', *options, image=long)
    assert code == 0 and 'no focal levels' in out
    assert {file.name.lstrip('ä') for file in (tmp_path / 'maps').iterdir()} == {
        '_gates_stage3_block0.png', '_modulator_stage3_block0.png', '_erf_stage3.png',
    }  # fmt: skip


@pytest.mark.parametrize(
    ('flags', 'token'),
    [
        (['--stage', 4, *TINY], 'stage 4'),
        (['--stage', 2, '--block', 2, *TINY], 'block 2'),
        (['gone.pth', *TINY], 'gone.pth'),
        (['other.pth', *TINY], 'other.pth'),
        (['--device', 'nonsense', *TINY], 'nonsense'),
        (['--what', 'kernels', '--pretrained-window', 4, *TINY], 'window=4'),
        (['--what', 'nothing'], 'nothing'),
        (['--cfg-options', 'nonsense'], 'KEY=VALUE'),
        ([*TINY, 'model.backbone.in_chans=1'], 'in_chans=1'),
        (['--out', 'image.png', *TINY], '--out'),
    ],
)
def test_wrong_flags_exit_with_2_and_write_nothing(draw, tmp_path, flags, token):
    save_checkpoint('demo/mask_rcnn', tmp_path / 'other.pth', use_layerscale=True)
    code, printed = draw('demo/mask_rcnn', '--out', tmp_path / 'maps', *flags)
    assert code == 2, printed
    assert token in printed and 'Traceback' not in printed
    assert not (tmp_path / 'maps').exists()


@pytest.mark.parametrize('name', ['gone.png', 'note.jpg'])
def test_unreadable_images_exit_with_2(draw, tmp_path, name):
    (tmp_path / 'note.jpg').write_text('not an image')
    code, printed = draw('demo/mask_rcnn', '--out', tmp_path / 'maps', *TINY, image=name)
    assert code == 2 and name in printed
    assert not (tmp_path / 'maps').exists()


@pytest.mark.parametrize(
    ('model', 'token'),
    [
        ("dict(type='FCOS', backbone=dict(type='ResNet', depth=18))", 'ResNet'),
        ("dict(type='Nothing')", 'backbone'),
    ],
)
def test_models_without_focalnet_exit_with_2(draw, tmp_path, model, token):
    config = tmp_path / 'other.py'
    config.write_text(f"default_scope = 'mmdet'\nmodel = {model}\n")
    code, printed = draw(str(config.with_suffix('')))
    assert code == 2 and token in printed
