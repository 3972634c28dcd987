"""Predictions of all tasks, batches, thresholds, and rejected inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.infer import BaseInferencer

from mmfocalnet.errors import CheckpointError, ConfigError
from mmfocalnet.inference import ImageError, draw, load_predictor
from mmfocalnet.inference.colors import find_palette
from mmfocalnet.inference.predictor import random_predictor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def images():
    random = np.random.default_rng(0)
    sizes = [(64, 64), (48, 96), (64, 64)]
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def test_boxes_and_masks(predictor, images):
    model = predictor('mask_rcnn')
    assert model.task == 'boxes and masks'
    assert model.classes == ['circle', 'square', 'triangle', 'star']
    prediction = model.predict(images[1:2])[0]
    count = len(prediction.scores)
    assert count > 0
    assert prediction.boxes.shape == (count, 4)
    assert prediction.masks.shape == (count, 48, 96)
    assert prediction.masks.dtype == bool
    assert prediction.boxes[:, 2].max() <= 96
    assert (np.diff(prediction.scores) <= 0).all()
    assert prediction.overlay.shape == (48, 96, 3)


def test_boxes_without_masks(predictor, images):
    model = predictor('atss')
    assert model.task == 'boxes'
    assert model.predict(images[:1])[0].masks is None


def test_semantic(predictor, images):
    model = predictor('upernet')
    assert model.task == 'semantic'
    prediction = model.predict(images[1:2])[0]
    assert prediction.semantic.shape == (48, 96)
    assert prediction.semantic.max() < len(model.classes) == 7
    assert prediction.overlay.shape == (48, 96, 3)


def test_panoptic(predictor, images):
    model = predictor('mask2former')
    assert model.task == 'panoptic'
    assert model.things == 4
    prediction = model.predict(images[1:2])[0]
    ids, areas = np.unique(prediction.panoptic[prediction.panoptic > 0], return_counts=True)
    assert len(ids) > 0
    assert {segment.id: segment.area for segment in prediction.segments} == dict(
        zip(ids.tolist(), areas.tolist(), strict=True)
    )
    assert all(segment.is_thing == (segment.label < 4) for segment in prediction.segments)
    assert (prediction.overlay != images[1][..., ::-1]).any()


def test_panoptic_maps_may_be_empty(predictor, images, monkeypatch):
    model = predictor('mask2former')
    monkeypatch.setitem(model.model.panoptic_fusion_head.test_cfg, 'object_mask_thr', 1.0)
    prediction = model.predict(images[:1])[0]
    assert prediction.segments == []
    assert not prediction.panoptic.any()
    assert (prediction.overlay == images[0][..., ::-1]).all()


@pytest.mark.parametrize('name', ['mask_rcnn', 'upernet'])
def test_batches_predict_what_single_images(predictor, images, name):
    model = predictor(name)
    together = model.predict(images)
    for image, prediction in zip(images, together, strict=True):
        alone = model.predict([image])[0]
        assert prediction.image is image
        if name == 'upernet':
            assert (prediction.semantic == alone.semantic).mean() > 0.999
        else:
            np.testing.assert_allclose(prediction.scores, alone.scores, atol=1e-4)
            # Of almost equal scores either may come first.
            np.testing.assert_allclose(
                np.sort(prediction.boxes, 0), np.sort(alone.boxes, 0), atol=1e-2
            )


def test_thresholds_choose_without_running_again(predictor, images):
    prediction = predictor('mask_rcnn').predict(images[:1], score_thr=1.1)[0]
    middle = float(np.median(prediction.scores))
    assert (prediction.overlay == images[0][..., ::-1]).all()
    kept = prediction.above(middle)
    assert 0 < len(kept.scores) < len(prediction.scores)
    assert kept.scores.min() >= middle
    assert len(kept.masks) == len(kept.boxes) == len(kept.labels) == len(kept.scores)
    some, all_ = (draw(prediction, images[0], score) for score in (middle, 0.0))
    assert (some == kept.overlay).all()
    assert (some != all_).any()
    assert (some != images[0][..., ::-1]).any()


def test_predictors_of_two_scopes_alternate(predictor, images):
    detector, segmentor = predictor('mask_rcnn'), predictor('upernet')
    for model in (segmentor, detector, segmentor):
        assert len(model.predict(images[:1])) == 1


def test_an_image_of_one_pixel(predictor):
    assert predictor('mask_rcnn').predict([np.zeros((1, 1, 3), np.uint8)])[0].overlay.size == 3


@pytest.mark.parametrize(
    ('image', 'token'),
    [
        ('photo.jpg', 'photo.jpg'),
        (np.zeros((8, 8), np.uint8), r'\(8, 8\)'),
        (np.zeros((8, 8, 3), np.float32), 'float32'),
        (np.zeros((0, 10, 3), np.uint8), r'\(0, 10, 3\)'),
        (np.zeros((8, 8, 3), np.uint8).tolist(), r'\.\.\.'),
        (np.zeros((1, 900, 3), np.uint8), '900x1'),
    ],
)
def test_other_inputs_are_rejected(predictor, image, token):
    with pytest.raises(ImageError, match=token):
        predictor('mask_rcnn').predict([image])


def test_classes_of_the_checkpoint_override_those_of_the_config(random_model, tmp_path):
    config, checkpoint, options = random_model('mask_rcnn')
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    names = ('a', 'b', 'c', 'd')
    path = tmp_path / 'named.pth'
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(CLASSES=names))), path)
    assert load_predictor(config, path, cfg_options=options).classes == list(names)
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=names[:3]))), path)
    with pytest.raises(ConfigError, match='num_classes is 4'):
        load_predictor(config, path, cfg_options=options)


BAD_WEIGHTS = {
    'NaN': lambda weight: weight.fill_(float('nan')),
    'infinite': lambda weight: weight.fill_(float('inf')),
    'integer': torch.Tensor.long,
    'boolean': torch.Tensor.bool,
    'complex': lambda weight: weight.to(torch.complex64),
}


@pytest.mark.parametrize('kind', BAD_WEIGHTS)
def test_weights_other_than_finite_floats_are_rejected(random_model, tmp_path, kind):
    config, checkpoint, options = random_model('mask_rcnn')
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    key = 'roi_head.bbox_head.fc_cls.bias'
    state[key] = BAD_WEIGHTS[kind](state[key])
    torch.save(dict(state_dict=state), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=rf'bad\.pth.*{key}'):
        load_predictor(config, tmp_path / 'bad.pth', cfg_options=options)


NAMES = ['a', 'b', 'c', 'd']
MALFORMED_META = {
    'a number': 5,
    'a list': [1, 2],
    'classes: a number': dict(dataset_meta=dict(classes=5)),
    'classes: numbers': dict(dataset_meta=dict(classes=[1, 2, 3, 4])),
    'classes: a dict': dict(dataset_meta=dict(classes={'a': 1})),
    'a list of datasets': dict(dataset_meta=[dict(classes=NAMES)]),
    'keys: numbers': dict(dataset_meta={1: 2, 'classes': NAMES}),
    'palette: names': dict(dataset_meta=dict(classes=NAMES, palette=['red'] * 4)),
    'names of a million letters': dict(dataset_meta=dict(classes=['x' * 10**6 + n for n in NAMES])),
    'names that clear a terminal': dict(dataset_meta=dict(classes=['\x1b[2J' + n for n in NAMES])),
}


@pytest.mark.parametrize('name', MALFORMED_META)
def test_malformed_metadata_are_ignored(random_model, images, tmp_path, name):
    config, checkpoint, options = random_model('mask_rcnn')
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save(dict(state_dict=state, meta=MALFORMED_META[name]), tmp_path / 'malformed.pth')
    predictor = load_predictor(config, tmp_path / 'malformed.pth', cfg_options=options)
    assert len(predictor.palette) == len(predictor.classes) == 4
    assert all(0 <= value <= 255 for color in predictor.palette for value in color)
    assert all(label.isprintable() and len(label) <= 100 for label in predictor.classes)
    if name.startswith('names'):
        assert predictor.predict(images[:1], score_thr=0.0)[0].overlay.size


@pytest.mark.parametrize(
    'colors',
    [
        None, 5, 'random', ['red'] * 4, [[float('nan')] * 3] * 4,
        [[1], [2, 3], 4, 5], [[-1, 0, 0]] * 4, [[0, 0, 256]] * 4, [[0, 0, 0, 0]] * 4,
        [[0, 0, 0]] * 3, {'a': [0, 0, 0]}, [[None] * 3] * 4,
    ],
)  # fmt: skip
def test_malformed_palettes_are_replaced(colors):
    palette = find_palette(colors, 4)
    assert palette == find_palette([], 4)
    assert all(0 <= value <= 255 for color in palette for value in color)


def test_the_palette_of_the_dataset_is_used():
    colors = [[0, 128, 255], (1, 2, 3)]
    assert (
        find_palette(np.array(colors), 2) == find_palette(colors, 1)[:2] == list(map(tuple, colors))
    )


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('this code ran')",)


def test_errors_name_the_invalid_argument(random_model, tmp_path):
    config, checkpoint, options = random_model('mask_rcnn')
    with pytest.raises(ConfigError, match=r'none\.py'):
        load_predictor('none.py', checkpoint)
    with pytest.raises(CheckpointError, match=r'none\.pth'):
        load_predictor(config, tmp_path / 'none.pth', cfg_options=options)
    with pytest.raises(CheckpointError, match=r'upernet\.pth'):
        load_predictor(config, random_model('upernet')[1], cfg_options=options)
    with pytest.raises(ConfigError, match="device 'gpu'"):
        load_predictor(config, checkpoint, 'gpu', options)
    with pytest.raises(ConfigError, match="device 'meta'"):
        load_predictor(config, checkpoint, 'meta', options)
    with pytest.raises(ConfigError, match="default_scope='other'"):
        load_predictor(config, checkpoint, cfg_options=dict(default_scope='other'))
    torch.save(dict(state_dict={}, meta=Harmful()), tmp_path / 'harmful.pth')
    with pytest.raises(CheckpointError, match=r'harmful\.pth'):
        load_predictor(config, tmp_path / 'harmful.pth', cfg_options=options)


@pytest.mark.parametrize('size', [(96, 160), (97, 160), (60, 33)])
def test_modulation_maps_match_those_of_the_prediction(predictor, size):
    """Padding included, which changes the global context."""
    from mmfocalnet.visualization import modulation_maps, prepare_image, watch_modulation

    mask_rcnn = predictor('mask_rcnn')
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    with watch_modulation(mask_rcnn.model, stage=2) as seen:
        mask_rcnn.predict([image])
    maps = modulation_maps(mask_rcnn.model, prepare_image(image, mask_rcnn.cfg)[1], stage=2)
    np.testing.assert_allclose(maps.gates, seen[0].gates, atol=1e-5)


def test_it_is_an_inferencer_of_mmengine(predictor, images):
    inferencer = predictor('atss')
    assert isinstance(inferencer, BaseInferencer)
    found = inferencer(images, batch_size=2, score_thr=0.5)['predictions']
    assert [prediction.score_thr for prediction in found] == [0.5] * 3
    for prediction, alone in zip(found, inferencer.predict(images), strict=True):
        np.testing.assert_allclose(prediction.scores, alone.scores, atol=1e-4)
    [sample] = inferencer(images[0], return_datasamples=True)['predictions']
    assert len(sample.pred_instances) == len(found[0].scores)


@pytest.fixture
def nan_memory():
    """New tensors contain NaN until something is written to them."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_without_a_checkpoint_all_weights_are_initialized(nan_memory):
    model = random_predictor(ROOT / 'configs/demo/dino.py').model
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


def test_a_config_without_test_dataloader_is_rejected(random_model):
    config, checkpoint, options = random_model('mask_rcnn')
    with pytest.raises(ConfigError, match='test_dataloader'):
        load_predictor(config, checkpoint, cfg_options=dict(options, test_dataloader=None))
