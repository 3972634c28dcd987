"""Every kind of error or warning, made in a small set, is found with its file and id."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from mmfocalnet.datasets import METAINFO, make_shapes
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.datasets.image_files import MAX_BYTES
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.datasets.inspection import inspect_dataset
from mmfocalnet.datasets.inspection.masks import decode_runs
from mmfocalnet.errors import ConfigError, DataError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 12, 2, size=64)


@pytest.fixture
def data(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'shapes')


class Instances:
    name = 'instances_train2017.json'
    evaluator = None

    def __init__(self, root):
        self.root = root / 'coco'
        self.path = self.root / 'annotations' / self.name
        self.content = json.loads(self.path.read_text())
        self.images, self.annotations, self.categories = (
            self.content[part] for part in ('images', 'annotations', 'categories')
        )
        self.image = self.root / 'train2017' / self.images[0]['file_name']
        self.config = dict(
            type='mmdet.CocoDataset',
            data_root=str(self.root),
            ann_file=f'annotations/{self.name}',
            data_prefix=dict(img='train2017/'),
            metainfo=METAINFO['detection'],
            pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
        )

    def inspect(self):
        self.path.write_text(json.dumps(self.content))
        return inspect_dataset(self.config, self.evaluator)

    def only(self, kind, *others):
        """The findings of a kind; all other kinds but the given ones must have none."""
        findings = self.inspect().findings
        lines = findings.lines()
        headings = {line.split(': ')[1] for line in lines if not line.startswith(' ')}
        assert headings == {kind.title, *(other.title for other in others)}, lines
        return findings.shown(kind)


class Panoptic(Instances):
    name = 'panoptic_train2017.json'

    def __init__(self, root):
        super().__init__(root)
        self.segment = self.annotations[0]['segments_info'][0]
        self.map = self.path.with_suffix('') / self.annotations[0]['file_name']
        self.config.update(
            type='mmdet.CocoPanopticDataset',
            data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
            metainfo=METAINFO['panoptic'],
        )


class Semantic:
    images = None

    def __init__(self, root):
        self.root = root / 'ade'
        self.config = dict(
            type='BaseSegDataset',
            data_root=str(self.root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            metainfo=METAINFO['semantic'],
            reduce_zero_label=True,
        )
        self.image = min((self.root / 'images/training').iterdir())
        self.map = min((self.root / 'annotations/training').iterdir())

    def inspect(self):
        with DefaultScope.overwrite_default_scope('mmseg'):
            return inspect_dataset(self.config)

    def labels(self):
        return [np.array(Image.open(path)) for path in self.map.parent.iterdir()]

    only = Instances.only


@pytest.fixture
def instances(data):
    return Instances(data)


@pytest.fixture
def panoptic(data):
    return Panoptic(data)


@pytest.fixture
def semantic(data):
    return Semantic(data)


@pytest.fixture(params=[Instances, Panoptic, Semantic])
def source(request, data):
    return request.param(data)


def assert_tokens(texts, *tokens):
    """Assert that there is one text, with all tokens."""
    (text,) = texts
    assert [token for token in map(str, tokens) if token not in text] == [], text


def test_counts_of_a_clean_set(source):
    report = source.inspect()
    assert report.findings.lines() == []
    assert report.images == 12
    counts = report.counts
    ids = range(1, len(counts.names) + 1)
    if isinstance(source, Semantic):
        labels = source.labels()
        numbers = [sum((label == i).sum() for label in labels) for i in ids]
        images = [sum((label == i).any() for label in labels) for i in ids]
    else:
        listed = [
            (record['image_id'], segment['category_id'])
            for record in source.annotations
            for segment in record.get('segments_info', [record])
        ]
        numbers = [sum(label == i for _, label in listed) for i in ids]
        images = [len({image for image, label in listed if label == i}) for i in ids]
    assert counts.numbers.tolist() == numbers
    assert counts.images.tolist() == images
    assert len(counts.lines()) == len(counts.names) + 1


def test_unreadable_images(source):
    name = f'{source.image} (image 1)' if source.images else source.image
    content = source.image.read_bytes()
    source.image.write_bytes(content[: len(content) // 2])
    assert_tokens(source.only(kinds.DAMAGED_IMAGE), f'{name} is damaged')
    source.image.write_bytes(b'')
    assert_tokens(source.only(kinds.DAMAGED_IMAGE), f'{name} is empty')
    os.truncate(source.image, MAX_BYTES + 1)
    assert_tokens(source.only(kinds.DAMAGED_IMAGE), f'{name} has {MAX_BYTES + 1} bytes')
    source.image.unlink()
    if source.images:
        assert source.only(kinds.MISSING_IMAGE) == [f'{name} is missing']
    else:
        assert source.only(kinds.UNUSED_MAP) == [str(source.map)]


@pytest.mark.parametrize('channels', [1, 3])
def test_12_bits_stored_in_16(source, channels):
    values = np.linspace(0, 4095, 64 * 64 * channels).reshape(64, 64, channels)
    cv2.imwrite(str(source.root / 'deep.png'), values.astype(np.uint16))
    (source.root / 'deep.png').rename(source.image)
    # Dark images of 8 bits are accepted.
    other = sorted(source.image.parent.iterdir())[1]
    Image.new('RGB', (64, 64), (9, 9, 9)).save(other)
    assert_tokens(source.only(kinds.DARK_IMAGE), source.image, '4095')


@pytest.mark.parametrize('kind', [Panoptic, Semantic])
def test_missing_and_damaged_maps(data, kind):
    source = kind(data)
    os.truncate(source.map, MAX_BYTES + 1)
    assert_tokens(source.only(kinds.DAMAGED_MAP), source.map, f'{MAX_BYTES + 1} bytes')
    source.map.write_bytes(bytes(99))
    assert_tokens(source.only(kinds.DAMAGED_MAP), source.map, 'is damaged')
    source.map.unlink()
    assert_tokens(source.only(kinds.MISSING_MAP), source.map, 'is missing')


@pytest.mark.parametrize('kind', [Panoptic, Semantic])
def test_a_map_of_another_size(data, kind):
    source = kind(data)
    labels = cv2.imread(str(source.map), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(source.map), labels.repeat(2, axis=0))
    others = [kinds.SEGMENT_AREA] if kind is Panoptic else []
    assert_tokens(source.only(kinds.MAP_SIZE, *others), source.map, '64x128, its image 64x64')


def test_an_image_of_another_size(instances):
    image = cv2.imread(str(instances.image))
    cv2.imwrite(str(instances.image), image[:, :40])
    name = f'{instances.image} (image 1)'
    assert_tokens(instances.only(kinds.IMAGE_SIZE), name, '40x64', '64x64')


def test_an_image_with_exif_rotation(instances):
    image = Image.open(instances.image).crop((0, 0, 40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(instances.image, exif=exif)
    instances.images[0].update(width=40)
    instances.annotations[:] = [a for a in instances.annotations if a['image_id'] != 1]
    found = instances.only(kinds.IMAGE_SIZE, kinds.NO_ANNOTATIONS)
    assert_tokens(found, '64x40', 'EXIF', '40x64')


# Kind, edit of the first annotation, and the end of the finding.
CHANGES = {
    'no width': (kinds.BOX_EMPTY, {'bbox': [3, 4, 0, 9]}, '[3, 4, 0, 9], area {area}'),
    'no area': (kinds.BOX_EMPTY, {'area': 0}, 'area 0'),
    'outside': (kinds.BOX_OUTSIDE, {'bbox': [64, 4, 9, 9]}, '[64, 4, 9, 9]'),
    'above': (kinds.BOX_OUTSIDE, {'bbox': [0, -9, 9, 9]}, '[0, -9, 9, 9]'),
    'over': (kinds.BOX_OVER_BORDER, {'bbox': [60, 4, 9, 9]}, '[60, 4, 9, 9], by 5 pixels'),
    'three': (kinds.BOX_FORMAT, {'bbox': [1, 2, 3]}, '[1, 2, 3]'),
    'no box': (kinds.BOX_FORMAT, {'bbox': None}, 'None'),
    'two points': (kinds.POLYGON_LEFT_OUT, {'segmentation': [[1, 1, 9, 9]]}, '4 coordinates'),
    'odd': (kinds.POLYGON_LEFT_OUT, {'segmentation': [[1, 1, 9, 9, 1, 9, 4]]}, '7 coordinates'),
    'a number': (kinds.MASK_FORMAT, {'segmentation': 5}, '5'),
    'category': (kinds.SKIPPED_CATEGORY, {'category_id': 77}, 'category_id 77'),
    'image': (kinds.UNKNOWN_IMAGE, {'image_id': 78}, 'image_id 78'),
    'incomplete': (kinds.INCOMPLETE, {'area': None}, 'area'),
}


@pytest.mark.parametrize('name', CHANGES)
def test_objects(instances, name):
    kind, change, end = CHANGES[name]
    first = instances.annotations[0]
    first.update(change)
    (text,) = instances.only(kind)
    assert f'{instances.path}: annotations[0] (id {first["id"]})' in text
    assert text.endswith(end.format(**first))


def test_accepted_objects(instances):
    first, second, third, *_ = instances.annotations
    first.update(segmentation=[[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30]])
    second.update(segmentation={'size': [64, 64], 'counts': [0, 4096]}, iscrowd=1)
    third.update(bbox=[-0.5, 0, 64.9, 64.5])
    instances.images[0].update(height=64.0)
    assert instances.inspect().findings.lines() == []
    instances.config['pipeline'] = []
    del first['segmentation']
    assert instances.inspect().findings.lines() == []


def test_runs_as_pycocotools_encodes_them():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for shape in ((64, 64), (1, 5), (700, 300)):
        mask = cv2.GaussianBlur(rng.random(shape), (0, 0), 3) > 0.5
        text = coco_mask.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
        flat = mask.ravel(order='F')
        edges = np.flatnonzero(np.diff(flat, prepend=False, append=~flat[-1]))
        assert decode_runs(text) == np.diff(edges, prepend=0).tolist()


def test_duplicate_ids_and_files(instances):
    first, second = instances.annotations[:2]
    before, first['id'] = first['id'], second['id']
    assert_tokens(instances.only(kinds.DUPLICATE_ANNOTATION), f'(id {first["id"]})')
    first['id'] = before
    instances.images.append(dict(instances.images[0]))
    assert_tokens(instances.only(kinds.DUPLICATE_IMAGE), f'{instances.image} (image 1)')
    instances.images[-1]['id'] = 99
    found = instances.only(kinds.SAME_FILE, kinds.NO_ANNOTATIONS)
    assert_tokens(found, f'{instances.image} (image 99)', 'image 1')
    del instances.images[-1]
    instances.categories.append({'id': 4, 'name': 'comet'})
    found = instances.only(kinds.DUPLICATE_CATEGORY, kinds.UNUSED_CLASS, kinds.UNUSED_CATEGORY)
    assert_tokens(found, f'{instances.path}: category 4 ("comet")')


def test_unused_classes_and_categories(instances):
    instances.categories.append({'id': 9, 'name': 'comet'})
    for record in instances.annotations:
        record['category_id'] = min(record['category_id'], 3)
    findings = instances.inspect().findings
    assert findings.shown(kinds.UNUSED_CLASS) == [f'{instances.path}: "star"']
    assert findings.shown(kinds.UNUSED_CATEGORY) == [f'{instances.path}: "comet" (id 9)']
    assert findings.total(errors=True) == 0


def test_images_without_annotations(instances):
    instances.annotations[:] = [a for a in instances.annotations if a['image_id'] != 2]
    assert_tokens(instances.only(kinds.NO_ANNOTATIONS), '000000000002.jpg (image 2)')


def test_ten_findings_of_a_kind_are_kept(instances):
    number = len(instances.annotations)
    assert number > 12
    for record in instances.annotations:
        record['bbox'] = []
    findings = instances.inspect().findings
    assert len(findings.shown(kinds.BOX_FORMAT)) == 10
    assert findings.count(kinds.BOX_FORMAT) == findings.total(errors=True) == number
    assert findings.lines()[0] == f'ERROR: {kinds.BOX_FORMAT.title}: {number}'
    assert f'{number - 10} more' in findings.lines()[-1]


def test_a_set_without_images(instances):
    instances.images.clear()
    instances.annotations.clear()
    assert instances.only(kinds.NO_IMAGES, kinds.UNUSED_CLASS) == [str(instances.path)]


def test_objects_without_iscrowd_are_errors_in_evaluation(instances):
    del instances.annotations[3]['iscrowd']
    assert instances.inspect().findings.count(kinds.NO_CROWD) == 0
    instances.evaluator = dict(type='CocoMetric', ann_file=str(instances.path))
    id_ = instances.annotations[3]['id']
    assert_tokens(instances.only(kinds.NO_CROWD), f'annotations[3] (id {id_})')


def test_segments_missing_in_the_map(panoptic):
    image = cv2.imread(str(panoptic.map))
    id_ = panoptic.segment['id']
    bgr = [id_ >> 16, id_ >> 8 & 255, id_ & 255]
    image[(image == bgr).all(axis=2)] = (0, 0, 200)
    cv2.imwrite(str(panoptic.map), image)
    missing = panoptic.only(kinds.SEGMENT_NOT_DRAWN, kinds.SEGMENT_NOT_LISTED)
    assert_tokens(missing, f'{panoptic.map} (image 1): {id_}')
    extra = panoptic.only(kinds.SEGMENT_NOT_LISTED, kinds.SEGMENT_NOT_DRAWN)
    assert_tokens(extra, f'{panoptic.map} (image 1): 200, {panoptic.segment["area"]} pixels')


def test_areas_of_segments(panoptic):
    area = panoptic.segment['area']
    panoptic.segment['area'] += 7
    found = panoptic.only(kinds.SEGMENT_AREA)
    assert_tokens(found, panoptic.map, f'{area} pixels', area + 7)
    panoptic.evaluator = dict(type='CocoPanopticMetric', ann_file=str(panoptic.path))
    assert panoptic.only(kinds.EVALUATED_AREA) == found


def test_segments_info(panoptic):
    segments = panoptic.annotations[0]['segments_info']
    name = f'{panoptic.path}: annotations[0].segments_info[0]'
    place = f'{name} (id {panoptic.segment["id"]}) in {panoptic.image} (image 1)'
    panoptic.segment['category_id'] = 70
    assert_tokens(panoptic.only(kinds.UNKNOWN_CATEGORY), place, 'category_id 70')
    panoptic.segment['category_id'] = 1
    segments.append(panoptic.segment)
    assert_tokens(panoptic.only(kinds.DUPLICATE_ANNOTATION), f'(id {panoptic.segment["id"]})')
    segments.pop()
    panoptic.segment['bbox'] = [0, 0, 0, 0]
    assert_tokens(panoptic.only(kinds.BOX_EMPTY), place)
    del panoptic.segment['id']
    found = panoptic.only(kinds.INCOMPLETE, kinds.SEGMENT_NOT_LISTED)
    assert_tokens(found, name, 'lacks id')


def test_panoptic_records(panoptic):
    panoptic.annotations[0]['image_id'] = 50
    found = panoptic.only(kinds.UNKNOWN_IMAGE, kinds.NO_ANNOTATIONS, kinds.SEGMENT_NOT_LISTED)
    assert_tokens(found, f'{panoptic.path}: annotations[0] has image_id 50')
    panoptic.annotations[0]['image_id'] = 1
    del panoptic.categories[0]['isthing']
    found = panoptic.only(kinds.INCOMPLETE)
    assert_tokens(found, f'{panoptic.path}: categories[0] (id 1) lacks isthing')


@pytest.mark.parametrize(
    ('reduce', 'expected'), [(True, '1 to 7, or 0 or 255'), (False, '0 to 6, or 255')]
)
def test_label_values(semantic, reduce, expected):
    semantic.config['reduce_zero_label'] = reduce
    labels = np.array(Image.open(semantic.map))
    labels[:2], labels[2], labels[3] = 9, 0, 255
    Image.fromarray(labels).save(semantic.map)
    shown = semantic.inspect().findings.shown(kinds.LABEL_RANGE)
    # Without reduce_zero_label, 7 has no class either.
    text = next(text for text in shown if f'{semantic.map} has the value 9' in text)
    assert '128 pixels' in text and expected in text
    assert reduce == (len(shown) == 1)


def test_a_set_without_images_that_has_maps(semantic):
    for path in semantic.image.parent.iterdir():
        path.unlink()
    found = semantic.only(kinds.NO_IMAGES, kinds.UNUSED_MAP, kinds.UNUSED_CLASS)
    assert_tokens(found, semantic.image.parent, '*.jpg')


def test_a_list_of_images(semantic):
    (semantic.root / 'list.txt').write_text(f'{semantic.image.stem}\ngone')
    semantic.config['ann_file'] = 'list.txt'
    findings = semantic.inspect().findings
    assert_tokens(findings.shown(kinds.MISSING_IMAGE), f'{semantic.image.parent}/gone.jpg')
    assert_tokens(findings.shown(kinds.MISSING_MAP), f'{semantic.map.parent}/gone.png')
    assert findings.count(kinds.UNUSED_MAP) == 0


def test_some_of_the_classes_of_ade20k(semantic):
    semantic.config.update(type='ADE20KDataset', metainfo=dict(classes=('sky', 'wall')))
    del semantic.config['reduce_zero_label']
    report = semantic.inspect()
    assert report.findings.count(kinds.LABEL_RANGE) == 0  # the other 148 are ignored
    expected = [sum((label == value).sum() for label in semantic.labels()) for value in (3, 1)]
    assert report.counts.numbers.tolist() == expected


def test_maps_without_labels(semantic):
    Image.new('L', (64, 64), 255).save(semantic.map)
    assert_tokens(semantic.only(kinds.NO_ANNOTATIONS), semantic.map)


def test_settings_that_mmseg_refuses(semantic):
    semantic.config.update(type='ADE20KDataset', metainfo=dict(classes=('dragon',)))
    with pytest.raises(DataError, match='ADE20KDataset'):
        semantic.inspect()


def test_wrapped_datasets_are_found():
    one, two = dict(type='CocoDataset', ann_file='1'), dict(type='CocoDataset', ann_file='2')
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=two)
    wrapped = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[one, balanced]),
    )
    assert list(find_datasets(wrapped)) == [one, two]


@pytest.mark.parametrize(
    ('kind', 'path'),
    [
        ('NoSuchDataset', ''),
        ('BaseVideoDataset', ''),
        ('mmdet.CocoDataset', 's3://bucket/instances.json'),
    ],
)
def test_datasets_that_cannot_be_inspected(kind, path):
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(ConfigError, match=path or kind),
    ):
        inspect_dataset(dict(type=kind, ann_file=path))
