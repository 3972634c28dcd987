"""Graphs equal the models they are built from, before anything is exported."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseDataPreprocessor
from small_focalnet import small
from torch import nn

from mmfocalnet.deployment.backbone import BackboneNetwork
from mmfocalnet.deployment.description import describe, find_resize
from mmfocalnet.deployment.graph import ExportGraph, Preprocessing
from mmfocalnet.deployment.images import make_inputs, random_image
from mmfocalnet.deployment.kernels import crop_kernels, support
from mmfocalnet.deployment.semantic import AdaptiveAveragePooling
from mmfocalnet.deployment.source import default_size, model_graph
from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.inference.predictor import random_predictor

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/demo'
CHANNELS = [8, 16, 32, 64]
MODELS = {
    'upernet': {},
    'mask2former_semantic': {'model.data_preprocessor.test_cfg': dict(size_divisor=32)},
}


def image(height=50, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope='module')
def segmentor():
    """A predictor with a narrow model of a demo's config."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            options = {
                'model.backbone.embed_dim': 8,
                'model.decode_head.in_channels': CHANNELS,
                'model.auxiliary_head.in_channels': 32,
                **MODELS[name],
            }
            made[name] = random_predictor(CONFIGS / f'{name}.py', options)
        return made[name]

    return make


@torch.no_grad()
@pytest.mark.parametrize('grid_sample', [True, False])
@pytest.mark.parametrize('name', MODELS)
def test_segmentors_equal_the_model(segmentor, name, grid_sample):
    predictor = segmentor(name)
    [data] = predictor.preprocess([image()])
    data.pop('images')
    # Not `predict`, which scales the logits to the original image.
    expected = predictor.test_step(data)[0].seg_logits.data
    graph = model_graph(copy.deepcopy(predictor.model), 'semantic', grid_sample=grid_sample)
    [found] = graph(torch.from_numpy(image()[None]))
    assert graph.output_names == ('seg_logits',)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)


def test_a_segmentor_with_one_output_is_refused(segmentor):
    model = copy.deepcopy(segmentor('upernet').model)
    model.decode_head.out_channels = 1
    with pytest.raises(ConfigError, match='out_channels=1'):
        model_graph(model, 'semantic')


PREPROCESSORS = [
    dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True, pad_size_divisor=32, pad_value=3),
    dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=False),
    dict(type='mmdet.DetDataPreprocessor', mean=None, std=None, pad_size_divisor=16),
    dict(type='mmseg.SegDataPreProcessor', bgr_to_rgb=True, size=(64, 64)),
    dict(type='mmseg.SegDataPreProcessor', test_cfg=dict(size_divisor=32), pad_val=2, size=(9, 9)),
]


def build_preprocessor(**settings):
    import mmseg.models  # noqa: F401
    from mmengine.registry import MODELS as REGISTRY

    return REGISTRY.build(
        {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], **settings}
    )


@pytest.mark.parametrize('settings', PREPROCESSORS)
def test_preprocessing_equals_that_of_the_model(settings):
    source = build_preprocessor(**settings)
    ours = Preprocessing(source)
    images = [image(), image()[::-1].copy()]
    tensors = [torch.from_numpy(one).permute(2, 0, 1) for one in images]
    samples = None
    if 'Seg' in settings['type']:
        from mmseg.structures import SegDataSample

        samples = [SegDataSample(), SegDataSample()]
    expected = source(dict(inputs=tensors, data_samples=samples))['inputs']
    found = ours.pad(ours(torch.from_numpy(np.stack(images))))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('source', 'token'),
    [
        (lambda: BaseDataPreprocessor(), 'BaseDataPreprocessor'),
        (
            lambda: build_preprocessor(
                type='mmseg.SegDataPreProcessor', test_cfg=dict(size=(64, 64))
            ),
            'test_cfg.size',
        ),
    ],
)
def test_unsupported_preprocessing(source, token):
    with pytest.raises(ConfigError, match=token):
        Preprocessing(source())


@pytest.mark.parametrize('size', [1, 2, 3, 6, (None, 2), (4, 3)])
def test_adaptive_pooling_equals_that_of_pytorch(size):
    x = torch.randn(2, 3, 7, 11)
    expected = nn.AdaptiveAvgPool2d(size)(x)
    torch.testing.assert_close(AdaptiveAveragePooling(size)(x), expected)


def backbone_graph(raw=False, **settings):
    preprocessing = dict(bgr_to_rgb=True, pad_size_divisor=32)
    source = build_preprocessor(type='mmdet.DetDataPreprocessor', **preprocessing)
    return ExportGraph(BackboneNetwork(small(**settings)), Preprocessing(source), raw).eval()


def zero_outside(kernels, size):
    margin = (kernels.shape[-1] - size) // 2
    inner = slice(margin, margin + size)
    centre = kernels[..., inner, inner].clone()
    kernels.zero_()
    kernels[..., inner, inner] = centre


def convolutions(graph):
    return [
        stage.blocks[0].modulation.focal_layers[0][0] for stage in graph.network.backbone.layers
    ]


@torch.no_grad()
def test_zero_rings_are_cropped():
    graph = backbone_graph(focal_windows=9, focal_levels=1, depths=(1, 1), out_indices=[0, 1])
    first, second = convolutions(graph)
    zero_outside(first.weight, 3)
    x = torch.from_numpy(image()[None])
    before = graph(x)
    text = crop_kernels(graph)
    assert '1 of 2' in text and '1 from 9x9 to 3x3' in text
    # 8 * 81 + 16 * 81 / 4 before, 8 * 9 + 16 * 81 / 4 after.
    assert '59%' in text
    layers = [
        stage.blocks[0].modulation.focal_layers[0][0] for stage in graph.network.backbone.layers
    ]
    assert layers[0].kernel_size == (3, 3) and layers[1] is second
    torch.testing.assert_close(graph(x), before, rtol=1e-5, atol=1e-5)
    assert crop_kernels(graph) is None


@pytest.mark.parametrize('size', [1, 3, 5, 7])
@pytest.mark.parametrize('place', [(0, 0), (0, -1), (-1, 0), (-1, -1), (0, None), (None, -1)])
def test_support_is_found_from_any_side(size, place):
    """One nonzero number at a corner or edge of the window."""
    kernels = torch.zeros(4, 1, 7, 7)
    margin = (7 - size) // 2
    window = kernels[2, 0, margin : 7 - margin, margin : 7 - margin]
    row, column = (size // 2 if index is None else index for index in place)
    window[row, column] = -1e-30
    assert support(kernels) == size


def test_zero_kernels_have_support_1():
    assert support(torch.zeros(2, 1, 5, 5)) == 1


@torch.no_grad()
@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
@pytest.mark.parametrize('raw', [False, True])
def test_inputs_of_a_dynamic_graph(raw, dtype):
    graph = backbone_graph(raw, out_indices=[3])
    resize = dict(scale=[160, 120], keep_ratio=True)
    inputs = make_inputs(
        graph, random_image(), dtype='float32' if raw else dtype, size=None, resize=resize
    )
    shapes = [batch.shape[2:] if raw else batch.shape[1:3] for batch in inputs]
    assert shapes[0] == (120, 160) and len(set(shapes)) == 3
    assert {len(batch) for batch in inputs} == {1, 2}
    assert {batch.dtype.name for batch in inputs} == {'float32' if raw else dtype}


@pytest.mark.parametrize('shape', [(50, 40), (40, 50), (640, 200), (64, 96)])
def test_inputs_of_a_fixed_graph(shape):
    graph = backbone_graph(out_indices=[3])
    photo = np.full((*shape, 3), 200, np.uint8)
    [batch] = make_inputs(graph, photo, dtype='uint8', size=(64, 96), resize=None)
    assert batch.shape == (1, 64, 96, 3)
    inside = (batch[0] == 200).all(-1)
    factor = min(64 / shape[0], 96 / shape[1])
    assert inside.sum() == round(shape[0] * factor) * round(shape[1] * factor)
    assert (batch[0][~inside] == [104, 116, 124]).all()  # the mean, BGR


@torch.no_grad()
def test_a_raw_graph_equals_the_graph_of_the_image():
    graph = backbone_graph(out_indices=[3])
    [batch] = make_inputs(graph, random_image(), dtype='uint8', size=(64, 96), resize=None)
    expected = graph(torch.from_numpy(batch))
    graph.raw = True
    [batch] = make_inputs(graph, random_image(), dtype='float32', size=(64, 96), resize=None)
    torch.testing.assert_close(graph(torch.from_numpy(batch)), expected)


@pytest.mark.parametrize(
    ('resize', 'expected'),
    [
        (dict(scale=[1333, 800], keep_ratio=True), (800, 1344)),
        (dict(scale=[800, 1333], keep_ratio=True), (800, 1344)),
        (dict(scale=[320, 400], keep_ratio=False), (416, 320)),
    ],
)
def test_default_size(resize, expected):
    assert default_size(resize, 32) == expected


def test_no_default_size_without_scaling():
    with pytest.raises(ConfigError, match='--size'):
        default_size(None, 32)


@pytest.mark.parametrize(
    ('steps', 'expected'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], ([1333, 800], True)),
        ([dict(type='mmdet.Resize', scale=(512, 512))], ([512, 512], False)),
        ([dict(type='Resize', scale=640)], ([640, 640], False)),
        ([dict(type='Resize', scale_factor=2.0)], None),
        ([], None),
    ],
)
def test_scaling_of_the_test_pipeline(steps, expected):
    inner = dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile'), *steps])
    cfg = Config(dict(test_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=inner))))
    found = find_resize(cfg)
    assert (found and (found['scale'], found['keep_ratio'])) == expected
    assert find_resize(Config(ConfigDict())) is None


@torch.no_grad()
@pytest.mark.parametrize('raw', [False, True])
def test_description(raw):
    graph = backbone_graph(raw, out_indices=[1, 3])
    outputs = dict(zip(graph.output_names, [np.zeros((1, 16, 4, 4), np.float32)] * 2, strict=True))
    content = describe(graph, outputs, 'float32', (64, 96))
    layout, channels = ('BCHW', 'RGB') if raw else ('BHWC', 'BGR')
    assert content['input'] == dict(name='image', dtype='float32', layout=layout, channels=channels)
    assert content['task'] == 'features' and list(content['outputs']) == ['stage1', 'stage3']
    assert content['normalization']['mean'] == [123.675, 116.28, 103.53]
    assert content['normalization']['in_graph'] is not raw
    assert content['size'] == [64, 96]


def test_an_image_that_is_too_narrow_to_scale():
    graph = backbone_graph()
    image = np.zeros((1, 5000, 3), np.uint8)
    with pytest.raises(UserError, match='5000x1'):
        make_inputs(graph, image, dtype='uint8', size=(64, 96), resize=None)
