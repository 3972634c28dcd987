"""Predictions of exported files equal those of the models."""

import numpy as np
import pytest
import small_detectors
import torch
import yaml
from forked_tools import ROOT
from narrow_models import ATSS, MASK_RCNN, UPERNET

from mmfocalnet.inference import load_predictor
from mmfocalnet.inference.predictor import random_predictor

pytestmark = [pytest.mark.export, pytest.mark.timeout(600)]
for package in ('onnx', 'onnxscript', 'onnxruntime', 'openvino'):
    pytest.importorskip(package)

SIZE = 160  # as the demo's test pipelines scale images
SHALLOW = ['model.backbone.depths=[1,1,1,1]']
OPTIONS = {
    'atss': [*ATSS, *SHALLOW, 'model.test_cfg.score_thr=0.8'],
    'mask_rcnn': [*MASK_RCNN, *SHALLOW, 'model.test_cfg.rcnn.score_thr=0.6'],
    'upernet': [*UPERNET, *SHALLOW],
}


def weights_of(name, config, cfg_options):
    if name in small_detectors.GAIN:
        return small_detectors.build(name).state_dict()
    torch.manual_seed(0)
    model = random_predictor(config, cfg_options).model
    for key, weight in model.named_parameters():
        if 'conv_seg.weight' in key:
            torch.nn.init.normal_(weight)
    return model.state_dict()


@pytest.mark.parametrize(
    ('name', 'format', 'suffix'),
    [('atss', 'onnx', '.onnx'), ('mask_rcnn', 'openvino', '.xml'), ('upernet', 'onnx', '.onnx')],
)
def test_predictions_equal_those_of_the_model(name, format, suffix, tool, tmp_path):
    config, checkpoint = ROOT / f'configs/demo/{name}.py', tmp_path / 'model.pth'
    pairs = (option.split('=', 1) for option in OPTIONS[name])
    cfg_options = {key: yaml.safe_load(value) for key, value in pairs}
    torch.save(dict(state_dict=weights_of(name, config, cfg_options), meta={}), checkpoint)
    file = tmp_path / f'model{suffix}'
    code, stdout, stderr = tool(
        'export', config, checkpoint, '--format', format, '--size', SIZE, SIZE, '--out', file,
        '--cfg-options', *OPTIONS[name],
    )  # fmt: skip
    assert code == 0, stdout + stderr

    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    [expected] = load_predictor(config, checkpoint, cfg_options=cfg_options).predict([image])
    [found] = load_predictor(file).predict([image])
    if name == 'upernet':
        assert len(np.unique(expected.semantic)) > 1
        assert (found.semantic == expected.semantic).mean() > 0.999
        return
    assert len(found.boxes) == len(expected.boxes) > 5
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
    if name == 'mask_rcnn':
        assert (found.masks != expected.masks).mean() < 1e-3
