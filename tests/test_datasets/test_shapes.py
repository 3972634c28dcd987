"""The sample set: its labels agree with each other, and its folder is complete or absent."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmfocalnet.datasets import (
    CLASSES,
    METAINFO,
    STUFF,
    THINGS,
    draw_image,
    make_shapes,
    shapes,
    shapes_files,
)
from mmfocalnet.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = {'num_train': 3, 'num_val': 2, 'size': 64}
SPLITS = {'train2017': 'training', 'val2017': 'validation'}


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    return make_shapes(
        tmp_path_factory.mktemp('set') / 'shapes', num_train=24, num_val=8, size=(96, 128)
    )


@pytest.fixture(scope='module')
def samples() -> list[shapes.Sample]:
    return [draw_image(index) for index in range(120)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def annotation(made: Path, kind: str, split: str) -> dict:
    return json.loads((made / 'coco' / 'annotations' / f'{kind}_{split}.json').read_text())


def panoptic_map(made: Path, split: str, file_name: str) -> np.ndarray:
    path = made / 'coco' / 'annotations' / f'panoptic_{split}' / file_name
    blue_green_red = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int64)
    return blue_green_red @ (256**2, 256, 1)


def test_segments_describe_the_panoptic_map(samples):
    for sample in samples:
        ids, areas = np.unique(sample.panoptic, return_counts=True)
        assert dict(zip(ids, areas, strict=True)) == {s.id: s.area for s in sample.segments}
        assert set(np.unique(sample.semantic)) == {s.category_id for s in sample.segments}
        for segment in sample.segments:
            rows, columns = np.nonzero(sample.panoptic == segment.id)
            x, y, width, height = segment.bbox
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


def test_number_size_and_balance_of_shapes(samples):
    for sample in samples:
        things = [segment for segment in sample.segments if segment.is_thing]
        assert 2 <= len(things) <= 6
        assert min(thing.area for thing in things) >= 48
        assert 1 <= len(sample.segments) - len(things) <= 2
    categories = [segment.category_id for sample in samples for segment in sample.segments]
    counts = np.bincount(categories, minlength=len(CLASSES) + 1)[1:]
    for group in (counts[: len(THINGS)], counts[len(THINGS) :]):
        assert group.min() > 0.7 * group.mean()


def test_shapes_overlap_and_stay_visible():
    rng = np.random.default_rng(0)
    touching = 0
    for _ in range(50):
        placed, layers = shapes._place_shapes(rng, (160, 160))
        for number, shape in enumerate(placed, start=1):
            visible = (layers == number).sum()
            assert visible >= shape.area / 2
            touching += visible < shape.mask.sum()
    assert touching > 25


def test_labels_match_the_drawing(monkeypatch):
    """Without blur, grain and textures, each label's region has one colour."""
    monkeypatch.setattr(shapes, '_add_camera_noise', lambda rng, canvas: canvas)
    monkeypatch.setattr(
        shapes, '_two_tone', lambda rng, base, tone: np.broadcast_to(base, (*tone.shape, 3))
    )
    for index in range(20):
        sample = draw_image(index)
        for segment in sample.segments:
            mask = (sample.panoptic == segment.id).astype(np.uint8)
            # Edges are mixed colours.
            inner = cv2.erode(mask, np.ones((5, 5)), borderValue=0) > 0
            assert np.ptp(sample.image[inner], axis=0).max() < 1


def test_shapes_contrast_with_their_surroundings(samples):
    clear = []
    for sample in samples:
        for segment in (s for s in sample.segments if s.is_thing):
            inside = sample.panoptic == segment.id
            ring = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9))) > inside
            difference = sample.image[inside].mean(axis=0) - sample.image[ring].mean(axis=0)
            clear.append(np.linalg.norm(difference) > 40)
    assert np.mean(clear) > 0.95


def test_drawing_depends_on_every_argument():
    base = draw_image(5, size=64)
    again = draw_image(5, 'train', (64, 64), 0)
    assert np.array_equal(base.image, again.image)
    assert np.array_equal(base.panoptic, again.panoptic)
    for other in (
        draw_image(6, size=64),
        draw_image(5, 'val', size=64),
        draw_image(5, size=64, seed=1),
    ):
        assert not np.array_equal(base.image, other.image)
    assert draw_image(5, size=(64, 100)).image.shape == (64, 100, 3)


def test_same_arguments_give_the_same_bytes(tmp_path):
    first, second = (contents(make_shapes(tmp_path / name, **SMALL)) for name in 'ab')
    assert first == second


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few = contents(make_shapes(tmp_path / 'few', **SMALL))
    more = contents(make_shapes(tmp_path / 'more', **{**SMALL, 'num_train': 5}))
    images = {name: data for name, data in few.items() if not name.endswith('.json')}
    assert images.items() <= more.items()


@pytest.mark.parametrize('split', SPLITS)
def test_all_labels_agree(made, split):
    instances = COCO(made / 'coco' / 'annotations' / f'instances_{split}.json')
    panoptic = annotation(made, 'panoptic', split)
    assert [image['id'] for image in panoptic['images']] == instances.getImgIds()
    for record in panoptic['annotations']:
        ids = panoptic_map(made, split, record['file_name'])
        semantic = np.zeros_like(ids)
        for segment in record['segments_info']:
            assert (ids == segment['id']).sum() == segment['area']
            semantic[ids == segment['id']] = segment['category_id']
        assert semantic.min() > 0

        folder = made / 'ade' / 'annotations' / SPLITS[split]
        labels = cv2.imread(str(folder / record['file_name']), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and np.array_equal(labels, semantic)

        things = {s['id']: s for s in record['segments_info'] if s['category_id'] <= len(THINGS)}
        found = instances.imgToAnns[record['image_id']]
        assert [a['id'] for a in found] == list(things)
        for one in found:
            assert np.array_equal(instances.annToMask(one) > 0, ids == one['id'])
            assert coco_mask.area(one['segmentation']) == one['area']
            assert {key: one[key] for key in things[one['id']]} == things[one['id']]


@pytest.mark.parametrize('split', SPLITS)
def test_every_image_has_its_files(made, split):
    images = annotation(made, 'instances', split)['images']
    assert len(images) == {'train2017': 24, 'val2017': 8}[split]
    for image in images:
        coco = made / 'coco' / split / image['file_name']
        ade = made / 'ade' / 'images' / SPLITS[split] / image['file_name']
        assert coco.read_bytes() == ade.read_bytes()
        assert cv2.imread(str(coco)).shape == (image['height'], image['width'], 3) == (96, 128, 3)


def test_ids_are_unique_and_fit_into_24_bits(made):
    files = [annotation(made, 'panoptic', split) for split in SPLITS]
    image_ids = [image['id'] for file in files for image in file['images']]
    segment_ids = [
        segment['id']
        for file in files
        for record in file['annotations']
        for segment in record['segments_info']
    ]
    for ids in (image_ids, segment_ids):
        assert len(set(ids)) == len(ids)
    last = draw_image(shapes.MAX_COUNT - 1, 'val', size=64)
    assert last.panoptic.max() < 256**3


def test_categories(made):
    panoptic = annotation(made, 'panoptic', 'val2017')['categories']
    assert [category['name'] for category in panoptic] == list(CLASSES)
    assert [category['id'] for category in panoptic] == list(range(1, len(CLASSES) + 1))
    assert [c['name'] for c in panoptic if not c['isthing']] == list(STUFF)
    assert annotation(made, 'instances', 'val2017')['categories'] == panoptic[: len(THINGS)]


def test_a_complete_set_is_not_written_again(tmp_path, monkeypatch):
    out = make_shapes(tmp_path / 'shapes', **SMALL)
    monkeypatch.setattr(shapes_files, '_write_shapes', None)
    assert make_shapes(tmp_path / 'shapes', **SMALL) == out


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / 'shapes').mkdir()
    assert (make_shapes(tmp_path / 'shapes', **SMALL) / 'coco/annotations').is_dir()


def test_a_set_of_other_parameters_is_kept(tmp_path):
    before = contents(make_shapes(tmp_path / 'shapes', **SMALL))
    with pytest.raises(UserError, match=r'"seed": 0.* "seed": 1'):
        make_shapes(tmp_path / 'shapes', **SMALL, seed=1)
    assert contents(tmp_path / 'shapes') == before


@pytest.mark.parametrize('name', ['out/notes.txt', 'out/shapes.json', 'out'])
def test_other_files_are_kept(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('mine')
    with pytest.raises(UserError, match=f'{tmp_path}/out'):
        make_shapes(tmp_path / 'out', **SMALL)
    assert contents(tmp_path) == {name: b'mine'}


def test_an_interrupted_call_leaves_no_files(tmp_path, monkeypatch):
    def interrupted(index, *arguments):
        if index == 2:
            raise KeyboardInterrupt
        return draw_image(index, *arguments)

    monkeypatch.setattr(shapes_files, 'draw_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / 'shapes', **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('other_seed', [0, 1])
def test_concurrent_calls(tmp_path, monkeypatch, other_seed):
    out = tmp_path / 'shapes'
    write = shapes_files._write_shapes

    def overtaken(root, parameters):
        write(root, parameters)
        monkeypatch.setattr(shapes_files, '_write_shapes', write)
        make_shapes(out, **SMALL, seed=other_seed)

    monkeypatch.setattr(shapes_files, '_write_shapes', overtaken)
    if other_seed == 0:
        assert make_shapes(out, **SMALL) == out
    else:
        with pytest.raises(UserError, match='"seed": 1'):
            make_shapes(out, **SMALL)
    assert list(tmp_path.iterdir()) == [out]
    assert json.loads((out / 'shapes.json').read_text())['seed'] == other_seed


def test_without_hard_links_the_images_are_copied(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError

    linked = contents(make_shapes(tmp_path / 'linked', **SMALL))
    monkeypatch.setattr(os, 'link', no_links)
    assert contents(make_shapes(tmp_path / 'copied', **SMALL)) == linked


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('num_train', 0),
        ('num_val', -1),
        ('num_train', 100_001),
        ('num_train', 1.5),
        ('size', 63),
        ('size', (64, 4096)),
        ('size', (64, 64, 3)),
        ('size', '96'),
        ('seed', -1),
    ],
)
def test_invalid_arguments_of_sets(tmp_path, key, value):
    with pytest.raises(UserError, match=key):
        make_shapes(tmp_path / 'shapes', **{**SMALL, key: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('arguments', 'key'), [((0, 'test'), 'split'), ((-1,), 'index')])
def test_invalid_arguments_of_images(arguments, key):
    with pytest.raises(UserError, match=key):
        draw_image(*arguments)


def test_command_line(tmp_path, tool):
    out = tmp_path / 'shapes'
    code, printed, _ = tool('make_shapes', '--out', out, '--train', 3, '--val', 2, '--size', 64)
    assert code == 0 and printed.count('\n') == 1
    assert contents(out) == contents(make_shapes(tmp_path / 'same', **SMALL))
    code, printed, error = tool('make_shapes', '--out', tmp_path / 'other', '--size', 8)
    assert code == 2 and not printed
    assert error.startswith('make_shapes.py: size') and error.count('\n') == 1


def test_mmdet_reads_boxes_and_masks(made):
    coco = pytest.importorskip('mmdet.datasets').CocoDataset
    dataset = coco(
        ann_file='annotations/instances_train2017.json',
        data_root=str(made / 'coco'),
        data_prefix={'img': 'train2017/'},
        metainfo=METAINFO['detection'],
        filter_cfg={'filter_empty_gt': True, 'min_size': 32},
        pipeline=[
            {'type': 'mmdet.LoadImageFromFile'},
            {'type': 'mmdet.LoadAnnotations', 'with_bbox': True, 'with_mask': True},
            {'type': 'mmdet.FilterAnnotations', 'min_gt_bbox_wh': (1, 1), 'by_mask': True},
            {'type': 'mmdet.Resize', 'scale': (256, 192), 'keep_ratio': True},
            {'type': 'mmdet.RandomFlip', 'prob': 1.0},
            {'type': 'mmdet.PackDetInputs'},
        ],
    )
    assert len(dataset) == 24
    records = annotation(made, 'instances', 'train2017')['annotations']
    for index in range(3):
        item = dataset[index]
        truth = item['data_samples'].gt_instances
        assert item['inputs'].shape == (3, 192, 256)
        mine = [one for one in records if one['image_id'] == index + 1]
        assert (truth.labels + 1).tolist() == [one['category_id'] for one in mine]
        # Twice the size, so four times the pixels.
        assert truth.masks.masks.sum((1, 2)).tolist() == [4 * one['area'] for one in mine]


def test_mmdet_reads_segments(made):
    panoptic = pytest.importorskip('mmdet.datasets').CocoPanopticDataset
    dataset = panoptic(
        ann_file='annotations/panoptic_val2017.json',
        data_root=str(made / 'coco'),
        data_prefix={'img': 'val2017/', 'seg': 'annotations/panoptic_val2017/'},
        metainfo=METAINFO['panoptic'],
    )
    assert len(dataset) == 8
    for number in range(8):
        item, sample = dataset.get_data_info(number), draw_image(number, 'val', (96, 128))
        assert Path(item['seg_map_path']).is_file()
        assert [
            (s['id'], s['category'] + 1, bool(s['is_thing'])) for s in item['segments_info']
        ] == [(s.id, s.category_id, s.is_thing) for s in sample.segments]


def test_mmseg_reads_labels(made):
    base = pytest.importorskip('mmseg.datasets').BaseSegDataset
    dataset = base(
        data_root=str(made / 'ade'),
        data_prefix={'img_path': 'images/validation', 'seg_map_path': 'annotations/validation'},
        metainfo=METAINFO['semantic'],
        img_suffix='.jpg',
        seg_map_suffix='.png',
        reduce_zero_label=True,
        pipeline=[
            {'type': 'mmseg.LoadImageFromFile'},
            {'type': 'mmseg.LoadAnnotations'},
            {'type': 'mmseg.PackSegInputs'},
        ],
    )
    assert len(dataset) == 8
    read = dataset[0]['data_samples'].gt_sem_seg.data[0].numpy()
    assert np.array_equal(read, draw_image(0, 'val', (96, 128)).semantic - 1)


@pytest.mark.parametrize(
    ('name', 'task'),
    [('instance', 'detection'), ('panoptic', 'panoptic'), ('semantic', 'semantic')],
)
def test_classes_and_palette_of_the_configs(name, task):
    config = ROOT / f'configs/_base_/datasets/shapes_{name}.py'
    cfg = Config.fromfile(config)
    for split in ('train', 'val', 'test'):
        metainfo = cfg[f'{split}_dataloader'].dataset.metainfo
        assert {key: list(value) for key, value in metainfo.items()} == {
            key: list(value) for key, value in METAINFO[task].items()
        }
