"""Exported models: input arrays, predictions as of mmdet and mmseg, and unusable files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmfocalnet.deployment.runtimes import InputInfo, load_runtime
from mmfocalnet.errors import CheckpointError, ConfigError, UserError
from mmfocalnet.inference import ExportedPredictor, ImageError, load_predictor
from mmfocalnet.inference.exported import paste_masks, semantic_map
from mmfocalnet.inference.pipeline import build_pipeline
from mmfocalnet.inference.results import Results

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
DESCRIPTION = {
    'format': 'onnx',
    'file': 'model.onnx',
    'task': 'boxes',
    'input': {'name': 'image', 'dtype': 'uint8', 'layout': 'BHWC', 'channels': 'BGR'},
    'size': None,
    'resize': {'scale': [96, 64], 'keep_ratio': True},
    'normalization': {'in_graph': True, 'mean': MEAN, 'std': STD, 'channels': 'RGB'},
    'classes': ['cat', 'dog'],
    'palette': [[1, 2, 3], [4, 5, 6]],
}
RAW = {'input.dtype': 'float32', 'input.layout': 'BCHW', 'input.channels': 'RGB'}
DETECTIONS = {
    'boxes': [[8.0, 4.0, 40.0, 44.0], [-4.0, 0.0, 500.0, 500.0], [0.0, 0.0, 0.0, 0.0]],
    'scores': [0.75, 0.5, 0.0],
    'labels': [1, 0, 0],
}


class FakeRuntime:
    """Returns the same outputs for every image and keeps the batches."""

    def __init__(self, outputs, shape, dtype='uint8'):
        self.outputs = outputs
        self.input = InputInfo('image', dtype, shape)
        self.output_names = frozenset(outputs)
        self.batches = []

    def __call__(self, batch):
        self.batches.append(batch)
        return {name: np.stack([values] * len(batch)) for name, values in self.outputs.items()}


def describe(changes):
    """``DESCRIPTION`` with other values of dotted keys."""
    content = json.loads(json.dumps(DESCRIPTION))
    for key, value in changes.items():
        *parents, last = key.split('.')
        node = content
        for parent in parents:
            node = node[parent]
        node[last] = value
    return content


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A predictor whose graph returns the given outputs."""

    def make(outputs, batch=None, **changes):
        content = describe(changes)
        (tmp_path / 'model.json').write_text(json.dumps(content))
        size = content['size'] or (None, None)
        layout, dtype = (content['input'][key] for key in ('layout', 'dtype'))
        shape = (batch, 3, *size) if layout == 'BCHW' else (batch, *size, 3)
        outputs = {
            name: np.asarray(values, np.int64 if name == 'labels' else np.float32)
            for name, values in outputs.items()
        }
        runtime = FakeRuntime(outputs, shape, dtype)
        monkeypatch.setattr('mmfocalnet.inference.exported.load_runtime', lambda *_: runtime)
        return load_predictor(tmp_path / 'model.onnx')

    return make


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)


def pipeline_input(image, scope='mmdet', **resize):
    """What the test pipeline of mmdet or mmseg makes of an image: (H, W, 3)."""
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', **resize)]
    pack = dict(mmdet='PackDetInputs', mmseg='PackSegInputs')[scope]
    dataset = dict(type='CocoDataset', pipeline=[*steps, dict(type=pack, meta_keys=())])
    cfg = Config(dict(default_scope=scope, test_dataloader=dict(dataset=dataset)))
    return build_pipeline(cfg)(image)['inputs'].permute(1, 2, 0).numpy()


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize('size', [(40, 80), (81, 33), (200, 130)])
def test_images_are_scaled_as_by_the_test_pipeline(exported, scope, keep_ratio, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    predictor = exported(DETECTIONS, resize={'scale': [96, 64], 'keep_ratio': keep_ratio})
    predictor.predict([image])
    [[found]] = predictor.runtime.batches
    expected = pipeline_input(image, scope, scale=(96, 64), keep_ratio=keep_ratio)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_images_keep_their_size_if_the_pipeline_does_not_scale(exported, image):
    predictor = exported(DETECTIONS, resize=None)
    predictor.predict([image])
    np.testing.assert_array_equal(predictor.runtime.batches[0][0], image)


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_raw_inputs_are_normalized_as_by_mmdet(exported, image, bgr_to_rgb):
    from mmdet.models import DetDataPreprocessor

    channels = 'RGB' if bgr_to_rgb else 'BGR'
    changes = {**RAW, 'input.channels': channels, 'normalization.channels': channels}
    predictor = exported(DETECTIONS, resize=None, **changes)
    predictor.predict([image])
    preprocessor = DetDataPreprocessor(MEAN, STD, bgr_to_rgb=bgr_to_rgb)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    expected = preprocessor(dict(inputs=[pixels], data_samples=None))['inputs'].numpy()
    np.testing.assert_allclose(predictor.runtime.batches[0], expected, atol=1e-6)


def test_float_images_keep_their_values_and_may_be_rgb(exported, image):
    changes = {'input.dtype': 'float32', 'input.channels': 'RGB'}
    predictor = exported(DETECTIONS, resize=None, **changes)
    predictor.predict([image])
    [[found]] = predictor.runtime.batches
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, image[..., ::-1])


def test_detections_are_scaled_back_and_clipped(exported, image):
    predictor = exported(DETECTIONS)  # scaled from 80x40 to 96x48
    [prediction] = predictor.predict([image], score_thr=0.6)
    assert predictor.task == prediction.task == 'boxes' and prediction.masks is None
    np.testing.assert_allclose(
        prediction.boxes, [[8 / 1.2, 4 / 1.2, 40 / 1.2, 44 / 1.2], [0, 0, 80, 40]], rtol=1e-6
    )
    assert prediction.labels.tolist() == [1, 0]
    assert prediction.scores.tolist() == [0.75, 0.5]
    assert prediction.palette == [(1, 2, 3), (4, 5, 6)]
    assert prediction.overlay.shape == image.shape and prediction.score_thr == 0.6


def test_masks_are_pasted_as_by_mmdet():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    random = np.random.default_rng(0)
    corners = random.uniform(-20, 100, (40, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    # Around an integer, narrow, outside.
    boxes[:3] = [[3, 3, 31, 31], [10.2, 5, 10.4, 60], [90, 70, 120, 90]]
    masks = random.random((40, 28, 28), np.float32)
    expected, _ = _do_paste_mask(
        torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), 64, 80, skip_empty=False
    )
    found = paste_masks(masks, boxes, (64, 80))
    # Rounding may differ where the probability is the threshold.
    clear = (expected - 0.5).abs().numpy() > 1e-5
    np.testing.assert_array_equal(found[clear], (expected >= 0.5).numpy()[clear])
    assert clear.mean() > 0.999 and found.any() and not found.all()


def test_boxes_and_masks(exported, image):
    masks = np.ones((3, 28, 28)) * [[[0.9]], [[0.1]], [[0.9]]]
    predictor = exported({**DETECTIONS, 'masks': masks}, task='boxes and masks', resize=None)
    [prediction] = predictor.predict([image])
    assert prediction.masks.shape == (2, 40, 80)
    assert prediction.masks.sum((1, 2)).tolist() == [32 * 36, 0]
    assert prediction.masks[0, 4:40, 8:40].all()


def test_semantic_maps_are_those_of_mmseg(exported, image):
    from mmseg.models.utils import resize

    logits = np.random.default_rng(0).normal(size=(2, 48, 96)).astype(np.float32)
    predictor = exported({'seg_logits': logits}, task='semantic')
    [prediction] = predictor.predict([image])
    scaled = resize(torch.from_numpy(logits)[None], (40, 80), mode='bilinear', align_corners=False)
    assert prediction.semantic.dtype == np.int64
    agreement = (prediction.semantic == scaled[0].argmax(0).numpy()).mean()
    assert agreement > 0.999 and set(prediction.semantic.ravel()) == {0, 1}


def test_inputs_of_a_fixed_size_are_padded_with_the_mean(exported, image):
    predictor = exported(DETECTIONS, size=[64, 112])
    predictor.predict([image])
    [[found]] = predictor.runtime.batches
    np.testing.assert_array_equal(
        found[:48, :96], pipeline_input(image, scale=(96, 64), keep_ratio=True)
    )
    mean = np.round(MEAN[::-1])
    assert (found[48:] == mean).all() and (found[:, 96:] == mean).all()


def test_padding_of_normalized_inputs_is_zero(exported, image):
    predictor = exported(DETECTIONS, size=[64, 112], **RAW)
    predictor.predict([image])
    [[found]] = predictor.runtime.batches
    assert found.shape == (3, 64, 112)
    assert not found[:, 48:].any() and not found[..., 96:].any() and found[:, :48, :96].all()


@pytest.mark.parametrize(
    ('keep_ratio', 'scaled'), [(True, (24, 48)), (False, (64, 48)), (None, (24, 48))]
)
def test_images_are_scaled_to_fit_into_a_fixed_size(exported, image, keep_ratio, scaled):
    resize = None if keep_ratio is None else {'scale': [96, 64], 'keep_ratio': keep_ratio}
    predictor = exported(DETECTIONS, size=[64, 48], resize=resize)
    [prediction] = predictor.predict([image])
    [[found]] = predictor.runtime.batches
    assert found.shape == (64, 48, 3)
    if scaled[0] < 64:
        assert (found[scaled[0] :] == found[-1, -1]).all()
        assert (found[scaled[0] - 1] != found[-1, -1]).any()
    factors = np.divide(scaled, image.shape[:2])
    top_left = np.divide([4, 8], factors)[::-1]
    np.testing.assert_allclose(prediction.boxes[0, :2], top_left, rtol=1e-6)


def test_detections_in_the_padding_are_dropped(exported, image):
    boxes = [[90.0, 40.0, 110.0, 60.0], [97.0, 0.0, 110.0, 20.0], [0.0, 49.0, 20.0, 60.0]]
    outputs = {'boxes': boxes, 'scores': [0.9, 0.8, 0.7], 'labels': [0, 0, 0]}
    [prediction] = exported(outputs, size=[64, 112]).predict([image])
    np.testing.assert_allclose(prediction.boxes, [[75, 40 / 1.2, 80, 40]], rtol=1e-6)


def test_semantic_padding_is_cropped():
    logits = np.zeros((2, 64, 112), np.float32)
    logits[0, :48, :96] = 1
    logits[1, 48:] = logits[1, :, 96:] = 9
    assert not semantic_map(logits, (96, 48), (40, 80)).any()


def test_of_equal_logits_the_first_class_is_predicted():
    assert not semantic_map(np.zeros((2, 4, 4), np.float32), (4, 4), (8, 8)).any()


@pytest.mark.parametrize(('batch', 'lengths'), [(None, [2, 1, 1]), (1, [1, 1, 1, 1])])
def test_consecutive_images_of_one_size_form_a_batch(exported, image, batch, lengths):
    images = [image, image[::-1], image[:30], image]
    predictor = exported(DETECTIONS, batch=batch)
    predictions = predictor.predict(images)
    assert [len(array) for array in predictor.runtime.batches] == lengths
    assert all(p.image is image for p, image in zip(predictions, images, strict=True))
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ('image', 'token'),
    [
        (np.zeros((8, 8, 3), np.float32), 'float32'),
        (np.zeros((1, 900, 3), np.uint8), '900x1'),
    ],
)
def test_other_images_are_rejected(exported, image, token):
    with pytest.raises(ImageError, match=token):
        exported(DETECTIONS).predict([image])


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('format', 'openvino'),
        ('task', 'features'),
        ('task', 'panoptic'),
        ('task', ['boxes']),
        ('input.name', 1),
        ('input.dtype', 'float16'),
        ('input.layout', 'HWC'),
        ('input.channels', 'GRAY'),
        ('size', [64]),
        ('size', [64, 0]),
        ('size', [64, 1e9]),
        ('size', [64, True]),
        ('resize', 'no'),
        ('resize.scale', 64),
        ('resize.scale', [2**40, 64]),
        ('resize.keep_ratio', 'yes'),
        ('normalization.mean', [1, 2]),
        ('normalization.mean', [1, 2, float('nan')]),
        ('normalization.mean', [1, 2, 10**400]),
        ('normalization.std', [1, 1, 0]),
        ('normalization.channels', None),
        ('classes', []),
        ('classes', [1]),
    ],
)
def test_each_value_of_the_description_is_checked(exported, key, value):
    with pytest.raises(ConfigError) as caught:
        exported(DETECTIONS, **{key: value})
    assert 'model.json' in str(caught.value) or key == 'task'
    assert key in str(caught.value) or value == 'features'


@pytest.mark.parametrize(
    'text', [None, '', '[]', '{"format": "onnx"}', '[' * 100_000, '\xff', 'null']
)
def test_malformed_descriptions(exported, tmp_path, text):
    exported(DETECTIONS)  # its runtime stays
    (tmp_path / 'model.json').unlink()
    if text is not None:
        (tmp_path / 'model.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(ConfigError, match=r'model\.json'):
        load_predictor(tmp_path / 'model.onnx')


def test_class_names_and_colors_are_sanitized(exported):
    predictor = exported(DETECTIONS, classes=['\x1b[31m', 'x' * 1000], palette='red')
    assert '\x1b' not in predictor.classes[0] and len(predictor.classes[1]) == 100
    assert len(predictor.palette) == 2


def test_the_graph_must_match_its_description(exported, tmp_path):
    runtime = exported(DETECTIONS).runtime
    matching = runtime.input
    for input_ in (
        matching._replace(name='x'),
        matching._replace(dtype='float32'),
        matching._replace(shape=(None, 64, 64, 3)),
        matching._replace(shape=(None, None, None, 4)),
        matching._replace(shape=(2, None, None, 3)),
        matching._replace(shape=(None, 3)),
    ):
        runtime.input = input_
        with pytest.raises(CheckpointError, match=r'model\.onnx does not match model\.json'):
            load_predictor(tmp_path / 'model.onnx')
    with pytest.raises(CheckpointError, match='masks'):
        exported(DETECTIONS, task='boxes and masks')


def test_more_classes_than_names(exported, image):
    with pytest.raises(CheckpointError, match='at least 2 classes'):
        exported(DETECTIONS, classes=['cat']).predict([image])
    logits = np.zeros((3, 48, 96))
    with pytest.raises(CheckpointError, match='at least 3 classes'):
        exported({'seg_logits': logits}, task='semantic').predict([image])


def test_arguments_that_an_exported_model_does_not_have(exported, tmp_path):
    exported(DETECTIONS)
    model = tmp_path / 'model.onnx'
    for arguments in ((model, 'a.pth'), ('config.py', model), (model, None, 'cpu', dict(a=1))):
        with pytest.raises(ConfigError, match=r'model\.onnx is an exported model'):
            load_predictor(*arguments)


def test_files_of_torch_export_are_not_opened(tmp_path):
    (tmp_path / 'model.pt2').write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'model\.pt2 .*torch\.export\.load'):
        load_predictor(tmp_path / 'model.pt2')


@pytest.mark.parametrize(('name', 'package'), [('a.onnx', 'onnxruntime'), ('a.xml', 'openvino')])
def test_missing_files_and_packages(tmp_path, monkeypatch, name, package):
    with pytest.raises(CheckpointError, match=name):
        load_runtime(tmp_path / name)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b'')
    with pytest.raises(UserError, match=rf'{package}.*\[export\]'):
        load_runtime(tmp_path / name)


def test_infer_writes_the_results_of_an_exported_model(exported, tool, image, tmp_path):
    import mmcv

    exported(DETECTIONS)
    mmcv.imwrite(image, str(tmp_path / 'photo.png'))
    model, out = tmp_path / 'model.onnx', tmp_path / 'out'
    code, stdout, stderr = tool('infer', tmp_path / 'photo.png', model, '--out', out)
    assert code == 0 and 'category_id starts at 1' in stdout and not stderr
    found = json.loads((out / 'predictions.json').read_text())
    assert [(entry['category_id'], entry['score']) for entry in found] == [(2, 0.75), (1, 0.5)]
    assert (out / 'vis/photo.png').is_file()
    for arguments in (('config.py', model), (model, '--cfg-options', 'a=1')):
        code, _, stderr = tool('infer', tmp_path / 'photo.png', *arguments, '--out', out)
        assert code == 2 and 'model.onnx is an exported model' in stderr


def onnx_model(path, task, size=None):
    """Write an ONNX file, and the JSON file beside it; return the path.

    ``seg_logits`` are the blue channel and 100; boxes and masks are constant.
    """
    onnx = pytest.importorskip('onnx')
    from onnx import TensorProto, helper, numpy_helper

    sides = size or ['height', 'width']
    node, constants, outputs = helper.make_node, {}, {}
    nodes = [node('Cast', ['image'], ['pixels'], to=TensorProto.FLOAT)]
    if task == 'semantic':
        constants = {
            'weight': np.float32([[[[1]], [[0]], [[0]]], [[[0]], [[0]], [[0]]]]),
            'bias': np.float32([0, 100]),
        }
        nodes.append(node('Transpose', ['pixels'], ['planes'], perm=[0, 3, 1, 2]))
        nodes.append(node('Conv', ['planes', 'weight', 'bias'], ['seg_logits']))
        outputs['seg_logits'] = (TensorProto.FLOAT, ['batch', 2, *sides])
    else:
        masks = np.zeros((3, 28, 28))
        masks[0, :14] = 1
        constants = {
            'boxes_of_one': np.float32(DETECTIONS['boxes']),
            'scores_of_one': np.float32(DETECTIONS['scores']),
            'labels_of_one': np.int64(DETECTIONS['labels']),
            'masks_of_one': np.float32(masks),
            'image_axes': np.int64([1, 2, 3]),
            'zero': np.float32(0),
        }
        # A zero per image, to which the constants are added.
        nodes.append(node('ReduceSum', ['pixels', 'image_axes'], ['sums'], keepdims=0))
        nodes.append(node('Mul', ['sums', 'zero'], ['zeros']))
        for name, dims in (('boxes', 2), ('scores', 1), ('labels', 1), ('masks', 3)):
            dtype = TensorProto.INT64 if name == 'labels' else TensorProto.FLOAT
            constants[f'{name}_axes'] = np.arange(1, dims + 1)
            nodes.append(node('Unsqueeze', ['zeros', f'{name}_axes'], [f'{name}_zeros']))
            nodes.append(node('Cast', [f'{name}_zeros'], [f'{name}_cast'], to=dtype))
            nodes.append(node('Add', [f'{name}_cast', f'{name}_of_one'], [name]))
            outputs[name] = (dtype, ['batch', *constants[f'{name}_of_one'].shape])
    graph = helper.make_graph(
        nodes,
        'test',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, ['batch', *sides, 3])],
        [helper.make_tensor_value_info(name, *info) for name, info in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    content = describe({'task': task, 'size': size})
    path.with_suffix('.json').write_text(json.dumps(content))
    return path


def to_openvino(path):
    """Convert an ONNX file; return the path of the ``.xml`` file."""
    openvino = pytest.importorskip('openvino')
    openvino.save_model(openvino.convert_model(str(path)), str(path.with_suffix('.xml')), False)
    description = path.with_suffix('.json')
    description.write_text(description.read_text().replace('"onnx"', '"openvino"'))
    return path.with_suffix('.xml')


@pytest.fixture(params=['onnxruntime', 'openvino'])
def file_of(request, tmp_path):
    """Write a file of a runtime; return its path."""
    pytest.importorskip(request.param)

    def write(task, size=None):
        path = onnx_model(tmp_path / 'model.onnx', task, size)
        return path if request.param == 'onnxruntime' else to_openvino(path)

    return write


@pytest.mark.export
@pytest.mark.parametrize('size', [None, [64, 112]])
def test_runtimes_predict_boxes_and_masks(file_of, image, size):
    predictor = load_predictor(file_of('boxes and masks', size))
    assert isinstance(predictor, ExportedPredictor)
    predictions = predictor.predict([image, image, image[:30]])
    for prediction in predictions[:2]:
        assert prediction.labels.tolist() == [1, 0] and prediction.labels.dtype == np.int64
        assert prediction.scores.tolist() == [0.75, 0.5]
        np.testing.assert_allclose(prediction.boxes[1], [0, 0, 80, 40])
        assert prediction.masks[0, 4:20, 8:33].all() and not prediction.masks[0, 21:].any()
    assert predictions[2].masks.shape == (2, 30, 80)


@pytest.mark.export
@pytest.mark.parametrize('size', [None, [64, 112]])
def test_runtimes_predict_semantic_maps(file_of, image, size):
    image[:, :40], image[:, 40:] = 255, 0
    [prediction] = load_predictor(file_of('semantic', size)).predict([image])
    assert (prediction.semantic[:, :38] == 0).all() and (prediction.semantic[:, 42:] == 1).all()


@pytest.mark.export
def test_damaged_files(file_of):
    path = file_of('semantic')
    content = path.read_bytes()
    for damaged in (b'', content[: len(content) // 2], b'\x00' * 1000, b'<html>'):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=path.name):
            load_predictor(path)


@pytest.mark.export
def test_openvino_needs_the_weights(tmp_path):
    pytest.importorskip('openvino')
    path = to_openvino(onnx_model(tmp_path / 'model.onnx', 'boxes and masks'))
    path.with_suffix('.bin').unlink()
    with pytest.raises(CheckpointError, match=r'model\.xml'):
        load_predictor(path)


@pytest.mark.export
@pytest.mark.parametrize('device', ['cuda:0', 'gpu'])
def test_unavailable_devices(file_of, device, monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CPUExecutionProvider'])
    with pytest.raises(ConfigError, match=device):
        load_predictor(file_of('semantic'), device=device)


@pytest.mark.export
def test_no_model_code_is_imported(file_of):
    code = (
        'import sys, numpy as np\n'
        'from mmfocalnet.inference import load_predictor\n'
        'load_predictor(sys.argv[1]).predict([np.zeros((40, 80, 3), np.uint8)])\n'
        'assert not {"mmdet", "mmseg"} & set(sys.modules)\n'
    )
    subprocess.run([sys.executable, '-c', code, str(file_of('semantic'))], check=True)


def test_category_ids_of_the_description(exported, tmp_path):
    outputs = dict(boxes=[[0, 0, 4, 4]], scores=[0.9], labels=[1])
    ids = list(range(10, 10 + len(DESCRIPTION['classes'])))
    predictor = exported(outputs, task='boxes', category_ids=ids)
    results = Results(tmp_path, predictor)
    assert [category['id'] for category in results.categories] == ids
    assert results.ids_from == tmp_path / 'model.json'
    with pytest.raises(ConfigError, match='category_ids'):
        exported(outputs, task='boxes', category_ids=ids[1:])
