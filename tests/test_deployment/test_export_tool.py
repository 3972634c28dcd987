"""tools/export.py from the command line: wrong usage, and torch.export of a narrow backbone."""

import json
import sys

import numpy as np
import pytest
import torch
from forked_tools import ROOT
from narrow_models import MASK2FORMER, UPERNET
from PIL import Image
from small_focalnet import classifier_state

from mmfocalnet import FocalNet
from mmfocalnet.deployment import formats
from mmfocalnet.deployment.formats import MIN_SIDE

UPERNET_CONFIG = ROOT / 'configs/demo/upernet.py'
BACKBONE = ['--backbone-only', '--size', 64, 96, '--cfg-options', 'model.backbone.embed_dim=8']
can_export = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 9), reason='needs PyTorch 2.9'
)


@pytest.fixture(autouse=True)
def _any_version(monkeypatch, request):
    """Check the other errors with any version of PyTorch and without the extra packages."""
    if not request.node.get_closest_marker('skipif'):
        monkeypatch.setattr(formats, 'check_requirements', lambda format: None)


@pytest.mark.parametrize(
    ('arguments', 'tokens'),
    [
        ([UPERNET_CONFIG, '--out', 'model.pt2'], ['model.pt2', '.onnx']),
        ([UPERNET_CONFIG, '--out', '.onnx'], ['.onnx must be a name']),
        ([UPERNET_CONFIG, '--out', 'model.onnx', '--format', 'openvino'], ['model.onnx', '.xml']),
        ([UPERNET_CONFIG, '--out', 'none/model.onnx'], ['none/model.onnx']),
        ([UPERNET_CONFIG, '--out', 'm.onnx', '--size', 64, 64, '--dynamic'], ['--dynamic']),
        ([UPERNET_CONFIG, '--out', 'm.onnx', '--size', 64, MIN_SIDE - 1], [str(MIN_SIDE - 1)]),
        ([UPERNET_CONFIG, '--out', 'm.onnx', '--cfg-options', *UPERNET], ['--size']),
        ([UPERNET_CONFIG, '--out', 'm.onnx', '--image', 'none.jpg'], ['none.jpg']),
        ([UPERNET_CONFIG, 'none.pth', '--out', 'm.onnx'], ['none.pth']),
        (['none.py', '--out', 'm.onnx'], ['none.py']),
        (['none.py', '--out', 'm.onnx', '--raw', '--dtype', 'float32'], ['--raw', '--dtype']),
        ([ROOT / 'configs/imagenet/focalnet_t.py', '--out', 'm.onnx'], ['segmentation model']),
        ([ROOT / 'configs/demo/sparse_rcnn.py', '--out', 'm.onnx'], ['EmbeddingRPNHead']),
        (['dino-focalnet-s', 'none.pth', '--out', 'm.onnx'], ['dino-focalnet-s']),
        (
            [ROOT / 'configs/demo/mask2former.py', '--out', 'm.onnx', '--cfg-options']
            + MASK2FORMER,
            ['panoptic', '--backbone-only'],
        ),
        (
            [UPERNET_CONFIG, '--out', 'm.onnx', '--backbone-only', '--cfg-options']
            + ['model.backbone._delete_=True', 'model.backbone.type=mmseg.ResNet']
            + ['model.backbone.depth=18'],
            ['ResNet', 'FocalNet'],
        ),
    ],
)
def test_user_errors(tool, tmp_path, monkeypatch, arguments, tokens):
    monkeypatch.chdir(tmp_path)
    code, _, stderr = tool('export', *arguments)
    assert code == 2 and 'Traceback' not in stderr
    assert all(token in stderr for token in tokens)
    assert not list(tmp_path.iterdir())


def test_the_smallest_size_is_that_of_the_library(tool, tmp_path):
    code, _, stderr = tool('export', 'none.py', '--out', tmp_path / 'm.onnx', '--size', 64, 64)
    assert MIN_SIDE == 64 and code == 2 and 'none.py' in stderr


def test_a_checkpoint_of_another_model(tool, tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.zeros(2))), tmp_path / 'other.pth')
    code, _, stderr = tool(
        'export', UPERNET_CONFIG, tmp_path / 'other.pth', '--out', tmp_path / 'm.onnx',
        '--size', 64, 64, '--cfg-options', *UPERNET,
    )  # fmt: skip
    assert code == 2 and 'other.pth' in stderr and not (tmp_path / 'm.onnx').exists()


def test_weights_of_other_files_are_kept(tool, tmp_path):
    (tmp_path / 'model.bin').write_text('other')
    arguments = ['none.py', '--out', tmp_path / 'model.xml', '--format', 'openvino']
    assert 'model.bin' in tool('export', *arguments)[2]
    (tmp_path / 'model.xml').write_text('exported before')
    assert 'none.py' in tool('export', *arguments)[2]
    assert (tmp_path / 'model.bin').read_text() == 'other'


@pytest.mark.parametrize('content', ['{"file": "model.xml"}', '[]', 'text'])
def test_the_json_file_of_another_model_is_kept(tool, tmp_path, content):
    (tmp_path / 'model.json').write_text(content)
    code, _, stderr = tool('export', UPERNET_CONFIG, '--out', tmp_path / 'model.onnx')
    assert code == 2 and 'model.json' in stderr
    assert (tmp_path / 'model.json').read_text() == content


@can_export
def test_a_missing_package(tool, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)  # the first that is looked for
    code, _, stderr = tool('export', UPERNET_CONFIG, '--out', tmp_path / 'm.onnx')
    assert code == 2 and 'package onnx ' in stderr and "'.[export]'" in stderr


def test_an_old_pytorch(tool, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch, '__version__', '2.8.1+cpu')
    with pytest.raises(formats.UserError, match=r'2\.8\.1'):
        formats.check_requirements('onnx')


@can_export
def test_a_backbone_of_a_classifier(tool, tmp_path):
    """Its 3x3 kernels are padded to 9x9 by the config, and cropped for the file."""
    torch.manual_seed(0)
    settings = dict(embed_dim=8, depths=(1, 1, 2, 1), focal_levels=1, focal_windows=3)
    net = FocalNet(**settings)
    net.init_weights()
    torch.save(dict(model=classifier_state(net)), tmp_path / 'classifier.pth')
    Image.fromarray(np.full((50, 40, 3), 90, np.uint8)).save(tmp_path / 'photo.png')
    out = tmp_path / 'model.pt2'
    code, stdout, stderr = tool(
        'export', UPERNET_CONFIG, tmp_path / 'classifier.pth', '--out', out,
        '--format', 'torch-export', '--image', tmp_path / 'photo.png', *BACKBONE,
        'model.backbone.depths=[1,1,2,1]', 'model.backbone.focal_levels=1',
        'model.backbone.focal_windows=9',
    )  # fmt: skip
    assert code == 0, stderr
    assert '5 of 5 focal kernels' in stdout and '5 from 9x9 to 3x3' in stdout and '89%' in stdout
    assert 'stage3 ' in stdout and str(out) in stdout
    content = json.loads((tmp_path / 'model.json').read_text())
    assert content['file'] == 'model.pt2' and content['format'] == 'torch-export'
    assert content['task'] == 'features' and content['size'] == [64, 96]
    module = torch.export.load(out).module()
    outputs = module(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))
    assert [tuple(out.shape[1:]) for out in outputs] == [
        (8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)
    ]  # fmt: skip
    assert str(ROOT).encode() not in out.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@can_export
def test_a_file_that_differs_is_not_written(tool, tmp_path, monkeypatch):
    load = formats.load

    def load_damaged(*args):
        run = load(*args)
        return lambda image: {name: out * 1.001 for name, out in run(image).items()}

    monkeypatch.setattr('mmfocalnet.deployment.export.load', load_damaged)
    (tmp_path / 'model.pt2').write_text('an older file')
    (tmp_path / 'model.json').write_text('{"file": "model.pt2"}')
    code, _, stderr = tool(
        'export', UPERNET_CONFIG, '--out', tmp_path / 'model.pt2', '--format', 'torch-export',
        *BACKBONE,
    )  # fmt: skip
    assert code == 2 and 'stage0' in stderr and 'Traceback' not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.json', 'model.pt2']
    assert (tmp_path / 'model.pt2').read_text() == 'an older file'
