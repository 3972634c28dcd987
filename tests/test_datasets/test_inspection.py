"""Every kind of fault, made in a small set, is found with its file and id."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from mmfocalnet.datasets import METAINFO, make_shapes
from mmfocalnet.datasets.image_files import MAX_BYTES
from mmfocalnet.datasets.dataset_configs import find_datasets
from mmfocalnet.datasets.inspection import inspect_dataset
from mmfocalnet.datasets.inspection import findings as kinds
from mmfocalnet.errors import ConfigError, DataError

LISTS = ('images', 'annotations', 'categories')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 12, 2, size=64)


@pytest.fixture
def data(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'shapes')


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Instances:
    scope, name = 'mmdet', 'instances_train2017.json'
    evaluator = None

    def __init__(self, root):
        self.root = root / 'coco'
        self.path = self.root / 'annotations' / self.name
        self.content = json.loads(self.path.read_text())
        self.images, self.annotations, self.categories = (self.content[part] for part in LISTS)
        self.config = dict(
            type='CocoDataset',
            data_root=str(self.root),
            ann_file=f'annotations/{self.name}',
            data_prefix=dict(img='train2017/'),
            metainfo=METAINFO['detection'],
            pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)],
        )

    @property
    def photograph(self):
        return self.root / 'train2017' / self.images[0]['file_name']

    def inspect(self):
        self.path.write_text(json.dumps(self.content))
        with DefaultScope.overwrite_default_scope(self.scope):
            return inspect_dataset(self.config, self.evaluator)

    def only(self, kind, *others):
        """What is found of a kind; nothing else but the other kinds may be found."""
        findings = self.inspect().findings
        lines = findings.lines()
        headings = {line.split(': ')[1] for line in lines if not line.startswith(' ')}
        assert headings == {kind.title, *(other.title for other in others)}, lines
        return findings.shown(kind)


class Panoptic(Instances):
    name = 'panoptic_train2017.json'

    def __init__(self, root):
        super().__init__(root)
        self.folder = self.root / 'annotations/panoptic_train2017'
        self.config.update(
            type='CocoPanopticDataset',
            data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
            metainfo=METAINFO['panoptic'],
        )

    @property
    def segment(self):
        return self.annotations[0]['segments_info'][0]

    @property
    def map(self):
        return self.folder / self.annotations[0]['file_name']


class Semantic:
    def __init__(self, root):
        self.root = root / 'ade'
        self.config = dict(
            type='BaseSegDataset',
            data_root=str(self.root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            metainfo=METAINFO['semantic'],
            reduce_zero_label=True,
        )
        self.photograph = min((self.root / 'images/training').iterdir())
        self.map = min((self.root / 'annotations/training').iterdir())

    def inspect(self):
        with DefaultScope.overwrite_default_scope('mmseg'):
            return inspect_dataset(self.config)

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


@pytest.mark.parametrize('kind', [Instances, Panoptic, Semantic])
def test_a_clean_set_and_its_counts(data, kind):
    source = kind(data)
    report = source.inspect()
    assert report.findings.lines() == []
    assert report.images == 12
    counts = report.counts
    if kind is Semantic:
        labels = [np.array(Image.open(path)) for path in source.map.parent.iterdir()]
        numbers = [sum((label == i).sum() for label in labels) for i in range(1, 8)]
        images = [sum((label == i).any() for label in labels) for i in range(1, 8)]
    else:
        lists = [
            (record['image_id'], segment['category_id'])
            for record in source.annotations
            for segment in record.get('segments_info', [record])
        ]
        ids = range(1, len(counts.names) + 1)
        numbers = [sum(label == i for _, label in lists) for i in ids]
        images = [len({image for image, label in lists if label == i}) for i in ids]
    assert counts.numbers.tolist() == numbers
    assert counts.images.tolist() == images
    assert len(counts.lines()) == len(counts.names) + 1


@pytest.mark.parametrize('kind', [Instances, Panoptic, Semantic])
def test_pictures_that_cannot_be_read(data, kind):
    source = kind(data)
    id_ = '' if kind is Semantic else f' (image {source.images[0]["id"]})'
    halve(source.photograph)
    assert source.only(kinds.DAMAGED_IMAGE) == [
        f'{source.photograph}{id_} is damaged or not an image'
    ]
    source.photograph.write_bytes(b'')
    assert source.only(kinds.DAMAGED_IMAGE) == [f'{source.photograph}{id_} is empty']
    os.truncate(source.photograph, MAX_BYTES + 1)
    (what,) = source.only(kinds.DAMAGED_IMAGE)
    assert what.startswith(f'{source.photograph}{id_} has {MAX_BYTES + 1} bytes')


@pytest.mark.parametrize('kind', [Instances, Panoptic, Semantic])
def test_12_bits_stored_in_16(data, kind):
    source = kind(data)
    Image.fromarray(np.full((64, 64), 4095, np.uint16)).save(source.photograph, 'PNG')
    (what,) = source.only(kinds.DARK_IMAGE)
    assert str(source.photograph) in what and '4095' in what


@pytest.mark.parametrize('kind', [Instances, Panoptic])
def test_missing_images(data, kind):
    source = kind(data)
    source.photograph.unlink()
    what = f'{source.photograph} (image {source.images[0]["id"]}) is missing'
    assert source.only(kinds.MISSING_IMAGE) == [what]


@pytest.mark.parametrize('kind', [Panoptic, Semantic])
def test_missing_and_damaged_maps(data, kind):
    source = kind(data)
    os.truncate(source.map, MAX_BYTES + 1)
    (what,) = source.only(kinds.DAMAGED_MAP)
    assert str(source.map) in what and f'{MAX_BYTES + 1} bytes' in what
    source.map.write_bytes(bytes(99))
    (what,) = source.only(kinds.DAMAGED_MAP)
    assert str(source.map) in what and 'is damaged or not an image' in what
    source.map.unlink()
    (what,) = source.only(kinds.MISSING_MAP)
    assert str(source.map) in what and what.endswith('is missing')


@pytest.mark.parametrize('kind', [Panoptic, Semantic])
def test_a_map_of_another_size(data, kind):
    source = kind(data)
    picture = cv2.imread(str(source.map), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(source.map), picture.repeat(2, axis=0))
    others = [kinds.SEGMENT_AREA] if kind is Panoptic else []
    (what,) = source.only(kinds.MAP_SIZE, *others)
    assert str(source.map) in what and what.endswith('is 64x128, its image 64x64')


def test_an_image_of_another_size(instances):
    picture = cv2.imread(str(instances.photograph))
    cv2.imwrite(str(instances.photograph), picture[:, :40])
    assert instances.only(kinds.IMAGE_SIZE) == [
        f'{instances.photograph} (image 1) is 40x64, the annotations have 64x64'
    ]


def test_an_image_that_its_exif_tag_turns(instances):
    picture = Image.open(instances.photograph).crop((0, 0, 40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # by a quarter
    picture.save(instances.photograph, exif=exif)
    instances.images[0].update(width=40)
    what = instances.only(kinds.IMAGE_SIZE, kinds.MASK_SIZE, *over_border(instances, width=40))
    assert 'is 64x40 (as its EXIF tag turns it), the annotations have 40x64' in what[0]


def over_border(instances, width):
    """The kinds of findings of boxes in the first image if it were narrower."""
    boxes = [a['bbox'] for a in instances.annotations if a['image_id'] == 1]
    if any(box[0] >= width for box in boxes):
        yield kinds.BOX_OUTSIDE
    if any(box[0] < width and box[0] + box[2] > width + 1 for box in boxes):
        yield kinds.BOX_OVER_BORDER


CHANGES = {
    # kind: what is done to the first annotation, and how the finding ends
    'no width': (kinds.BOX_EMPTY, {'bbox': [3, 4, 0, 9]}, '[3, 4, 0, 9], area {area}'),
    'no area': (kinds.BOX_EMPTY, {'area': 0}, 'area 0'),
    'outside': (kinds.BOX_OUTSIDE, {'bbox': [64, 4, 9, 9]}, '[64, 4, 9, 9]'),
    'above': (kinds.BOX_OUTSIDE, {'bbox': [0, -9, 9, 9]}, '[0, -9, 9, 9]'),
    'over': (kinds.BOX_OVER_BORDER, {'bbox': [60, 4, 9, 9]}, '[60, 4, 9, 9], by 5 pixels'),
    'three': (kinds.BOX_FORMAT, {'bbox': [1, 2, 3]}, '[1, 2, 3]'),
    'nan': (kinds.BOX_FORMAT, {'bbox': [1, 2, float('nan'), 3]}, '[1, 2, nan, 3]'),
    'no box': (kinds.BOX_FORMAT, {'bbox': None}, 'None'),
    'two points': (kinds.POLYGON_LEFT_OUT, {'segmentation': [[1, 1, 9, 9]]}, 'has 4 coordinates'),
    'odd': (kinds.POLYGON_LEFT_OUT, {'segmentation': [[1, 1, 9, 9, 1, 9, 4]]}, 'has 7 coordinates'),
    'words': (kinds.POLYGON, {'segmentation': [list('abcdef')]}, 'expected a list of numbers'),
    'a number': (kinds.MASK_FORMAT, {'segmentation': 5}, '5'),
    'no mask': (kinds.NO_MASK, {'segmentation': []}, '(image 1)'),
    'rle size': (
        kinds.MASK_SIZE,
        {'segmentation': {'size': [64, 63], 'counts': [4032]}},
        'has size [64, 63], expected [64, 64]',
    ),
    'rle runs': (
        kinds.MASK_SIZE,
        {'segmentation': {'size': [64, 64], 'counts': [4000, 97]}},
        'has runs of 4097 pixels, expected 4096',
    ),
    'rle text': (
        kinds.MASK_SIZE,
        {'segmentation': {'size': [64, 64], 'counts': 'oooo1'}},
        'has runs of 2097151 pixels, expected 4096',
    ),
    'category': (kinds.SKIPPED_CATEGORY, {'category_id': 77}, 'has category_id 77'),
    'image': (kinds.UNKNOWN_IMAGE, {'image_id': 78}, 'has image_id 78'),
    'second': (kinds.DUPLICATE_ANNOTATION, {'id': 'of the second'}, ''),
    'incomplete': (kinds.INCOMPLETE, {'area': None}, 'lacks area'),
    'list': (
        kinds.INCOMPLETE,
        {'category_id': []},
        'has category_id=[], expected an integer or a string',
    ),
}


@pytest.mark.parametrize('name', CHANGES)
def test_objects(instances, name):
    kind, change, end = CHANGES[name]
    first, second = instances.annotations[:2]
    first.update(change)
    if name == 'second':
        first['id'] = second['id']
    (what,) = instances.only(kind)
    assert f'{instances.path}: annotations[' in what and f'(id {first["id"]})' in what
    assert what.endswith(end.format(**first))


def test_what_is_fine(instances):
    first, second, third, *_ = instances.annotations
    first.update(segmentation=[[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30]])
    second.update(segmentation={'size': [64, 64], 'counts': [0, 4096]}, iscrowd=1)
    third.update(bbox=[-0.5, 0, 64.9, 64.5])
    instances.images[0].update(height=64.0)
    assert instances.inspect().findings.lines() == []
    instances.config['pipeline'] = []
    del first['segmentation']
    assert instances.inspect().findings.lines() == []


def test_runs_as_cocos_own_coder_writes_them(instances):
    from pycocotools import mask as coco_mask

    from mmfocalnet.datasets.inspection.masks import decode_runs

    rng = np.random.default_rng(0)
    for shape in ((64, 64), (1, 5), (700, 300)):
        mask = cv2.GaussianBlur(rng.random(shape), (0, 0), 3) > 0.5
        text = coco_mask.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
        flat = mask.ravel(order='F')
        edges = np.flatnonzero(np.diff(flat, prepend=False, append=~flat[-1]))
        assert decode_runs(text) == np.diff(edges, prepend=0).tolist()


def test_ids_and_names_that_occur_twice(instances):
    instances.images.append(dict(instances.images[0]))
    assert instances.only(kinds.DUPLICATE_IMAGE) == [
        f'{instances.path}: {instances.photograph} (image 1)'
    ]
    instances.images[-1]['id'] = 99
    (what,) = instances.only(kinds.SAME_FILE, kinds.NO_ANNOTATIONS)
    assert what == f'{instances.photograph} (image 99) and image 1'
    del instances.images[-1]
    instances.categories.append({'id': 4, 'name': 'comet'})
    (what,) = instances.only(kinds.DUPLICATE_CATEGORY, kinds.UNUSED_CLASS, kinds.UNUSED_CATEGORY)
    assert what == f'{instances.path}: category 4 ("comet")'


def test_classes_and_categories_without_use(instances):
    instances.categories.append({'id': 9, 'name': 'comet'})
    for record in instances.annotations:
        record['category_id'] = min(record['category_id'], 3)
    findings = instances.inspect().findings
    assert findings.shown(kinds.UNUSED_CLASS) == [f'{instances.path}: "star"']
    assert findings.shown(kinds.UNUSED_CATEGORY) == [f'{instances.path}: "comet" (id 9)']
    assert findings.count(errors=True) == 0


def test_classes_that_the_file_lacks(instances):
    instances.config['metainfo'] = dict(classes=('circle', 'hexagon'))
    findings = instances.inspect().findings
    assert 'the file lacks "hexagon"' in findings.shown(kinds.CLASSES)[0]
    assert findings.count(errors=True) == 1


def test_images_without_annotations(instances):
    instances.annotations[:] = [a for a in instances.annotations if a['image_id'] != 2]
    (what,) = instances.only(kinds.NO_ANNOTATIONS)
    assert what.endswith('000000000002.jpg (image 2)')


def test_at_most_ten_of_a_kind_are_named(instances):
    number = len(instances.annotations)
    assert number > 12
    for record in instances.annotations:
        record['bbox'] = []
    findings = instances.inspect().findings
    assert len(findings.shown(kinds.BOX_FORMAT)) == 10
    assert findings.number(kinds.BOX_FORMAT) == findings.count(errors=True) == number
    assert findings.lines()[0] == f'ERROR: {kinds.BOX_FORMAT.title}: {number}'
    assert findings.lines()[-1] == f'    ... and {number - 10} more'


@pytest.mark.parametrize(
    ('text', 'fault'),
    [
        ('{"images": [', 'is no valid JSON'),
        ('', 'is no valid JSON'),
        ('[]', 'is not in COCO format'),
        ('{"images": {}, "annotations": [], "categories": []}', 'is not in COCO format'),
    ],
)
def test_files_that_cannot_be_inspected(instances, text, fault):
    instances.path.write_text(text)
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(DataError, match=fault),
    ):
        inspect_dataset(instances.config)


def test_a_set_without_images(instances):
    instances.images.clear()
    instances.annotations.clear()
    assert instances.only(kinds.NO_IMAGES, kinds.UNUSED_CLASS) == [str(instances.path)]


def test_segments_that_are_not_drawn(panoptic):
    picture = cv2.imread(str(panoptic.map))
    others = panoptic.annotations[0]['segments_info'][1:]
    first = panoptic.segment['id']
    rgb = [first & 255, first >> 8 & 255, first >> 16]
    picture[(picture == rgb[::-1]).all(axis=2)] = (0, 0, 200)
    cv2.imwrite(str(panoptic.map), picture)
    (lacking,) = panoptic.only(kinds.SEGMENT_NOT_DRAWN, kinds.SEGMENT_NOT_LISTED)
    (drawn,) = panoptic.only(kinds.SEGMENT_NOT_LISTED, kinds.SEGMENT_NOT_DRAWN)
    assert others and lacking == f'{panoptic.map} (image 1): {first}'
    assert drawn == f'{panoptic.map} (image 1): 200, {panoptic.segment["area"]} pixels'


def test_segments_in_segments_info(panoptic):
    id_ = panoptic.segment['id']
    segments = f'{panoptic.path}: annotations[0].segments_info'
    name = f'{segments}[0] (id {id_}) in {panoptic.photograph} (image 1)'
    area = panoptic.segment['area']
    panoptic.segment['area'] += 7
    (what,) = panoptic.only(kinds.SEGMENT_AREA)
    assert what.endswith(f'has {area} pixels, {area + 7} in segments_info')
    panoptic.evaluator = dict(type='CocoPanopticMetric', ann_file=str(panoptic.path))
    assert panoptic.only(kinds.EVALUATED_AREA) == [what]
    panoptic.evaluator = None
    panoptic.segment['area'] = area
    panoptic.segment['category_id'] = 70
    assert panoptic.only(kinds.UNKNOWN_CATEGORY) == [f'{name} has category_id 70, of no category']
    panoptic.segment['category_id'] = 1
    panoptic.annotations[0]['segments_info'].append(panoptic.segment)
    (what,) = panoptic.only(kinds.DUPLICATE_ANNOTATION)
    assert f'(id {id_}) in {panoptic.photograph}' in what
    panoptic.annotations[0]['segments_info'].pop()
    panoptic.segment['bbox'] = [0, 0, 0, 0]
    (what,) = panoptic.only(kinds.BOX_EMPTY)
    assert name in what
    del panoptic.segment['id']
    (what,) = panoptic.only(kinds.INCOMPLETE, kinds.SEGMENT_NOT_LISTED)
    assert what == f'{segments}[0] lacks id'


def test_panoptic_records(panoptic):
    panoptic.annotations[0]['image_id'] = 50
    (what,) = panoptic.only(kinds.UNKNOWN_IMAGE, kinds.NO_ANNOTATIONS, kinds.SEGMENT_NOT_LISTED)
    assert what == f'{panoptic.path}: annotations[0] has image_id 50'
    panoptic.annotations[0]['image_id'] = 1
    del panoptic.categories[0]['isthing']
    (what,) = panoptic.only(kinds.INCOMPLETE)
    assert what == f'{panoptic.path}: categories[0] (id 1) lacks isthing'


@pytest.mark.parametrize('reduce', [True, False])
def test_label_values(semantic, reduce):
    semantic.config['reduce_zero_label'] = reduce
    labels = np.array(Image.open(semantic.map))
    labels[:2] = 9
    labels[2] = 0
    labels[3] = 255
    Image.fromarray(labels).save(semantic.map)
    findings = semantic.inspect().findings
    shown = findings.shown(kinds.LABEL_RANGE)
    expected = '1 to 7, or 0 or 255' if reduce else '0 to 6, or 255'
    assert f'{semantic.map} has the value 9 in 128 pixels; expected {expected} for ' in ' '.join(
        shown
    )
    if reduce:
        assert findings.count(errors=True) == 1


def test_label_values_of_16_bits(semantic):
    labels = np.array(Image.open(semantic.map)).astype(np.uint16)
    labels[0] = 257
    Image.fromarray(labels).save(semantic.map)
    (what,) = semantic.only(kinds.LABEL_RANGE)
    assert f'{semantic.map} has the value 257 in 64 pixels' in what


def test_label_maps_in_colour_and_without_labels(semantic):
    Image.fromarray(np.full((64, 64, 3), 5, np.uint8)).save(semantic.map)
    assert semantic.only(kinds.MAP_CHANNELS) == [f'{semantic.map} has 3 channels, expected one']
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(semantic.map)
    assert semantic.only(kinds.NO_ANNOTATIONS) == [
        f'{semantic.map} has no labels but those to ignore'
    ]


def test_a_palette_is_read_by_its_numbers(semantic):
    picture = Image.fromarray(np.array(Image.open(semantic.map)))
    picture.putpalette([value for number in range(256) for value in (number, 0, 255 - number)])
    picture.save(semantic.map)
    assert Image.open(semantic.map).mode == 'P'
    assert semantic.inspect().findings.lines() == []


def test_maps_and_images_without_each_other(semantic):
    semantic.photograph.unlink()
    assert semantic.only(kinds.UNUSED_MAP) == [str(semantic.map)]
    for path in semantic.photograph.parent.iterdir():
        path.unlink()
    assert semantic.only(kinds.NO_IMAGES, kinds.UNUSED_MAP, kinds.UNUSED_CLASS) == [
        f'{semantic.photograph.parent} has no files *.jpg'
    ]


def test_a_list_of_images(semantic):
    names = [semantic.photograph.stem, 'gone']
    (semantic.root / 'list.txt').write_text('\n'.join(names))
    semantic.config['ann_file'] = 'list.txt'
    findings = semantic.inspect().findings
    assert findings.shown(kinds.MISSING_IMAGE) == [
        f'{semantic.photograph.parent}/gone.jpg is missing'
    ]
    assert findings.shown(kinds.MISSING_MAP) == [f'{semantic.map.parent}/gone.png is missing']
    assert findings.number(kinds.UNUSED_MAP) == 0


def test_some_of_the_classes_of_ade20k(semantic):
    semantic.config.update(type='ADE20KDataset', metainfo=dict(classes=('sky', 'wall')))
    del semantic.config['reduce_zero_label']
    report = semantic.inspect()
    assert report.findings.number(kinds.LABEL_RANGE) == 0  # the other 148 are ignored
    labels = [np.array(Image.open(path)) for path in semantic.map.parent.iterdir()]
    assert report.counts.numbers.tolist() == [
        sum((label == number).sum() for label in labels) for number in (3, 1)
    ]


def test_settings_that_mmseg_refuses(semantic):
    semantic.config.update(type='ADE20KDataset', metainfo=dict(classes=('dragon',)))
    with pytest.raises(DataError, match='ADE20KDataset does not take its settings'):
        semantic.inspect()


def test_datasets_inside_others():
    one, two = dict(type='CocoDataset', ann_file='1'), dict(type='CocoDataset', ann_file='2')
    wrapped = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='ConcatDataset',
            datasets=[one, dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=two)],
        ),
    )
    assert list(find_datasets(wrapped)) == [one, two]


@pytest.mark.parametrize('kind', ['NoSuchDataset', 'BaseVideoDataset'])
def test_datasets_of_other_kinds(kind):
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(ConfigError, match=f'{kind} is a dataset that cannot be checked'),
    ):
        inspect_dataset(dict(type=kind))


def test_files_elsewhere():
    with pytest.raises(ConfigError, match='is not on this machine'):
        inspect_dataset(dict(type='mmdet.CocoDataset', ann_file='s3://bucket/instances.json'))


@pytest.mark.parametrize('kind', ['CocoDataset', 'CocoPanopticDataset'])
def test_real_images_of_coco(coco_root, kind):
    panoptic = kind == 'CocoPanopticDataset'
    name = 'panoptic' if panoptic else 'instances'
    seg = dict(seg='annotations/panoptic_train2017/') if panoptic else {}
    with DefaultScope.overwrite_default_scope('mmdet'):
        report = inspect_dataset(
            dict(
                type=kind,
                data_root=str(coco_root),
                ann_file=f'annotations/{name}_train2017.json',
                data_prefix=dict(img='train2017/', **seg),
            )
        )
    assert report.findings.count(errors=True) == 0, report.findings.lines()
    assert report.images == len(list(Path(coco_root, 'train2017').iterdir()))
    assert report.counts.numbers.sum() > 0


def test_objects_without_iscrowd_are_faults_where_they_are_evaluated(instances):
    del instances.annotations[3]['iscrowd']
    assert kinds.NO_CROWD.title not in str(instances.inspect().findings.lines())
    instances.evaluator = dict(type='CocoMetric', ann_file=str(instances.path))
    [place] = instances.only(kinds.NO_CROWD)
    assert f'annotations[3] (id {instances.annotations[3]["id"]})' in place
