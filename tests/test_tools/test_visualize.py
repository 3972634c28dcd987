"""tools/visualize.py: a picture in, PNGs out, for a config of each family."""

import runpy
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TINY = ['--cfg-options', 'model.backbone.embed_dim=8', 'model.backbone.depths=[1,1,2,1]']
CONFIGS = [
    'mask_rcnn/focalnet_t_1x',
    'cascade_rcnn/focalnet_t_srf_3x',
    'atss/focalnet_t_3x',
    'sparse_rcnn/focalnet_t_3x',
    'upernet/focalnet_s_160k_ade20k',
    'mask2former/focalnet_l_160k_ade20k_640',
    'mask2former/focalnet_t_coco_panoptic',
    'imagenet/focalnet_t',
]


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    file = tmp_path / 'picture.png'
    Image.fromarray(values).save(file)
    return file


@pytest.fixture
def draw(picture, tmp_path, monkeypatch, capsys):
    """The tool in this process; returns its exit code and what it printed."""

    def _draw(config, *flags, image=picture):
        config = ROOT / 'configs' / f'{config}.py'
        argv = ['visualize.py', image, config, *flags]
        monkeypatch.setattr(sys, 'argv', list(map(str, argv)))
        # A logger of an earlier call would write to what was stdout then.
        monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            runpy.run_path(str(ROOT / 'tools/visualize.py'), run_name='__main__')
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return _draw


def save_checkpoint(config, file, prefix='', **changes):
    torch.manual_seed(1)
    backbone = Config.fromfile(ROOT / f'configs/{config}.py').model.backbone
    backbone.update(init_cfg=None, embed_dim=8, depths=[1, 1, 2, 1], **changes)
    net = MODELS.build(backbone)
    net.init_weights()
    torch.save({'state_dict': {prefix + k: v for k, v in net.state_dict().items()}}, file)
    return net


# Small enough for the paper's kernels and scales.
SCALE = 'test_dataloader.dataset.pipeline.1.scale=(80,80)'


@pytest.mark.parametrize('config', CONFIGS)
def test_draws_everything_for_every_family(config, draw, tmp_path):
    # A classifier's images are as small as it is.
    options = [] if config.startswith('imagenet') else [SCALE]
    code, out = draw(config, '--out', tmp_path / 'maps', *TINY, *options)
    assert code == 0, out
    assert out.count('the weights are random') == 1  # and nothing was downloaded
    files = {file.name: Image.open(file) for file in (tmp_path / 'maps').iterdir()}
    assert set(files) == {
        'picture_gates_stage3_block0.png',
        'picture_modulator_stage3_block0.png',
        'kernels_stage3_block0.png',
        'picture_erf_stage3.png',
    }
    for picture in files.values():
        assert np.asarray(picture.convert('L')).std() > 10


def test_from_the_shell_with_a_detectors_checkpoint(run, picture, tmp_path):
    checkpoint = tmp_path / 'model.pth'
    save_checkpoint('demo/mask_rcnn', checkpoint, prefix='backbone.')
    out = run(
        sys.executable, ROOT / 'tools/visualize.py', picture, ROOT / 'configs/demo/mask_rcnn.py',
        checkpoint, '--what', 'gates', '--stage', '-2', '--block', '0', *TINY, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert f'Loaded {checkpoint} (' in out and 'random' not in out
    drawn = tmp_path / 'work_dirs/mask_rcnn/maps'
    assert [file.name for file in drawn.iterdir()] == ['picture_gates_stage2_block0.png']


def test_the_checkpoint_is_what_is_drawn(draw, tmp_path):
    """A backbone's own, a whole model's and a local init_cfg agree; random weights differ."""
    alone, whole = tmp_path / 'alone.pth', tmp_path / 'whole.pth'
    save_checkpoint('demo/upernet', alone)
    save_checkpoint('demo/upernet', whole, prefix='backbone.')
    key = 'model.backbone.init_cfg'
    local = [f'{key}.type=Pretrained', f'{key}.checkpoint={alone}']
    drawn = []
    cases = ([alone], []), ([whole], []), ([], local), ([], [])
    for number, (checkpoint, options) in enumerate(cases):
        folder = tmp_path / f'maps{number}'
        code, out = draw(
            'demo/upernet', *checkpoint, '--what', 'modulator', '--out', folder, *TINY, *options
        )
        assert code == 0, out
        drawn.append((folder / 'picture_modulator_stage3_block0.png').read_bytes())
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]


def test_kernels_before_and_after_expansion(draw, tmp_path):
    """Released kernels of 3 and 5 in a model of window 9: 9 and 11."""
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
    # The padding is white in the middle of the colour scale; without it colour is everywhere.
    coloured = [
        (np.ptp(pixels[..., :3].astype(int), axis=2) > 60).mean() for pixels in (before, after)
    ]
    assert coloured[0] > 2 * coloured[1]


def test_a_block_without_levels_and_a_long_name(draw, picture, tmp_path):
    long = picture.rename(tmp_path / f'{"ä" * 120}.png')
    options = [*TINY, 'model.backbone.focal_levels=0']
    code, out = draw('demo/mask_rcnn', '--out', tmp_path / 'maps', *options, image=long)
    assert code == 0 and 'this block has no focal levels' in out
    assert {file.name.lstrip('ä') for file in (tmp_path / 'maps').iterdir()} == {
        '_gates_stage3_block0.png', '_modulator_stage3_block0.png', '_erf_stage3.png',
    }  # fmt: skip


def test_mistakes_end_in_one_sentence_and_leave_nothing(draw, picture, tmp_path):
    other = tmp_path / 'other.pth'
    save_checkpoint('demo/mask_rcnn', other, use_layerscale=True)
    (tmp_path / 'note.jpg').write_text('no picture')
    out = tmp_path / 'maps'
    grey = [*TINY, 'model.backbone.in_chans=1']
    cases = [
        (['--stage', 4, *TINY], 'no stage 4 in the model: give 0 to 3'),
        (['--stage', 2, '--block', 2, *TINY], 'no block 2 in stage 2: give 0 to 1'),
        ([tmp_path / 'gone.pth', *TINY], 'no checkpoint file'),
        ([other, *TINY], 'another architecture'),
        (['--device', 'nonsense', *TINY], "device 'nonsense' cannot be used"),
        (['--what', 'kernels', '--pretrained-window', 4, *TINY], 'window=4 is no kernel size'),
        (['--what', 'nothing'], 'invalid choice'),
        (['--cfg-options', 'nonsense'], 'KEY=VALUE'),
        (grey, 'in_chans=1, and a picture has 3'),
    ]  # fmt: skip
    for flags, sentence in cases:
        code, printed = draw('demo/mask_rcnn', '--out', out, *flags)
        assert code == 2, printed
        assert sentence in printed and 'Traceback' not in printed
    for image, sentence in (('gone.png', 'gone.png'), (tmp_path / 'note.jpg', 'note.jpg')):
        code, printed = draw('demo/mask_rcnn', '--out', out, *TINY, image=image)
        assert code == 2 and sentence in printed
    code, printed = draw('demo/mask_rcnn', '--out', picture, *TINY)
    assert code == 2 and '--out' in printed and 'Not a directory' in printed
    assert not out.exists()


def test_a_model_of_another_backbone_is_refused(draw, tmp_path):
    config = tmp_path / 'resnet.py'
    config.write_text(
        "default_scope = 'mmdet'\n"
        "model = dict(type='FCOS', backbone=dict(type='ResNet', depth=18))\n"
    )
    code, printed = draw(str(config.with_suffix('')))
    assert code == 2 and 'ResNet contains no FocalNet' in printed
    config.write_text("model = dict(type='Nothing')\n")
    code, printed = draw(str(config.with_suffix('')))
    assert code == 2 and 'has no backbone to look into' in printed
