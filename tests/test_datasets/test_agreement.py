"""What training refuses tools/check_dataset.py reports, and what it passes is trained on."""

import os

import pytest
from faulty import assert_names, assert_refused, change, copy_small, make_small, write_flat

from mmfocalnet.datasets.inspection import chart

TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))
PANOPTIC_TRAIN, PANOPTIC_VAL = (f'annotations/panoptic_{s}2017.json' for s in ('train', 'val'))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('configs')
    return {name: write_flat(name, folder) for name in ('mask_rcnn', 'mask2former', 'atss')}


@pytest.fixture
def coco(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Drawing takes longer than all the rest.
    monkeypatch.setattr(chart, 'draw_counts', lambda *_: None)
    return copy_small(made, tmp_path) / 'coco'


def named(file):
    """The file as both tools name it."""
    return f'data/shapes/coco/{file}'


def polygon(*coordinates):
    return {'segmentation': [list(coordinates)]}


def rle(size, counts):
    return {'segmentation': {'size': size, 'counts': counts}}


NAN = float('nan')
# What the first annotation gets, and what is named.
ANNOTATION = {
    'coordinates of 1e9': (polygon(1, 1, 9, 1e9, 9, 9), '1000000000.0'),
    'coordinates of 1e300': (polygon(1, 1, 9, 1e300, 9, 9), '1e+300'),
    'all coordinates far away': (polygon(*[10**9] * 6), '1000000000'),
    'an integer that no float holds': (polygon(1, 1, 9, 10**400, 9, 9), '1000'),
    'a coordinate that is NaN': (polygon(1, 1, 9, NAN, 9, 9), 'nan'),
    'an infinite coordinate': (polygon(1, 1, 9, -float('inf'), 9, 9), 'inf'),
    'an endless outline': (polygon(*[0, 0, 4000, 4000] * 3000), 'polygon'),
    'a polygon of strings': (polygon(*'123456'), "'1'"),
    'one polygon that is none': ({'segmentation': [[1, 1, 9, 1, 9, 9], {}]}, 'polygon {}'),
    'RLE of 2^31 pixels': (rle([2**31, 1], [2**31]), 'size [2147483648, 1]'),
    'RLE of too many pixels': (rle([64, 64], [4096, 1]), '4097 pixels'),
    'RLE of negative runs': (rle([64, 64], [5000, -904]), 'runs'),
    'RLE of strings': (rle([64, 64], ['4096']), 'runs'),
    'RLE that ends too early': (rle([64, 64], 'PP4P'), 'runs'),
    'a box of 1e308': ({'bbox': [1, 1, 1e308, 9]}, '1e+308'),
    'a box of NaN': ({'bbox': [1, NAN, 9, 9]}, 'nan'),
    'a box of strings': ({'bbox': ['1', '1', '9', '9']}, "'1'"),
    'a crowd in words': ({'iscrowd': 'no'}, "iscrowd='no'"),
    'an ignored object in words': ({'ignore': 'false'}, "ignore='false'"),
    'an area in words': ({'area': 'large'}, "area='large'"),
    'an area that is NaN': ({'area': NAN}, 'area=nan'),
    'a category in words': ({'category_id': '1'}, "category_id '1'"),
    'an object as id': ({'id': {'id': 1}}, "id={'id': 1}"),
    'a list as image id': ({'image_id': [1]}, 'image_id=[1]'),
    'an integer of a thousand digits as id': ({'id': 10**999}, 'id=1000'),
    'no mask': ({'segmentation': []}, 'without a mask'),
}


@pytest.mark.parametrize('name', ANNOTATION)
def test_faults_of_an_annotation(tool, configs, coco, name):
    edit, *tokens = ANNOTATION[name]
    change(coco / TRAIN, lambda content: content['annotations'][0].update(edit))
    assert_refused(tool, configs['mask_rcnn'], f'{named(TRAIN)}: annotations[0] (id ', *tokens)


def every(part, **fields):
    """A change of each record: what a field becomes, from its value."""

    def edit(content):
        for record in content[part]:
            record.update({key: make(record.get(key)) for key, make in fields.items()})

    return edit


def without(part, key):
    def edit(content):
        del content[part][0][key]

    return edit


def first_category(**fields):
    return lambda content: content['categories'][0].update(fields)


def twice(before, after):
    """The text of a file with a key more."""

    def edit(path):
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return edit


# The changed file, the change, and what is named beside the file. All but those of the
# validation set are of training.
CONTENT = {
    'no annotations': (TRAIN, lambda content: content.update(annotations=[]), '"annotations"'),
    'image ids as strings on one side': (
        TRAIN,
        every('images', id=str),
        'annotations[0] (id 16) has image_id 1',
    ),
    'no classes': (TRAIN, every('annotations', category_id=lambda _: 99), 'category_id 99'),
    'small images': (TRAIN, every('images', height=lambda _: 31), 'min_size'),
    'an image of no size': (TRAIN, every('images', width=lambda _: 0), 'images[0] (id 1)'),
    'an image of 2^40 pixels': (TRAIN, every('images', width=lambda _: 2**40), 'images[0] (id 1)'),
    'names as numbers': (
        TRAIN,
        first_category(name=1),
        'categories[0] (id 1) has name=1',
        'string',
    ),
    'a space after a name': (TRAIN, first_category(name='circle '), '"circle "', 'spaces'),
    'a capital letter': (TRAIN, first_category(name='Circle'), '"Circle"', 'case'),
    'records that are lists': (TRAIN, lambda content: content['images'].append([]), 'images[4] is'),
    'annotation ids from 0': (
        VAL,
        lambda content: content['annotations'][0].update(id=0),
        'annotations[0] (id 0)',
    ),
    'annotation ids as strings': (
        VAL,
        every('annotations', id=lambda id_: f'6b1-{id_}'),
        "annotations[0] (id '6b1-",
    ),
    'no iscrowd': (VAL, without('annotations', 'iscrowd'), 'annotations[0]', 'iscrowd'),
    'ids of both kinds': (
        VAL,
        lambda content: content['images'].append(dict(content['images'][0], id='a')),
        'images',
        'strings',
    ),
    'nothing to evaluate': (VAL, lambda content: content.update(annotations=[]), '"annotations"'),
    'no mask to evaluate': (
        VAL,
        lambda content: content['annotations'][0].update(segmentation=[], bbox=[0, 0, 0, 0]),
        'annotations[0]',
        'without a mask',
    ),
}


@pytest.mark.parametrize('name', CONTENT)
def test_faults_of_a_file(tool, configs, coco, name):
    file, edit, *tokens = CONTENT[name]
    change(coco / file, edit)
    assert_refused(tool, configs['mask_rcnn'], named(file), *tokens)


# As CONTENT, of the text.
TEXT = {
    'a list of annotations more': (
        twice('"annotations":', '"annotations":[],"annotations":'),
        '"annotations" of the object with the keys',
    ),
    'a box more': (twice('"bbox":', '"bbox":[1,1,2,2],"bbox":'), '"bbox" of the object with id 16'),
    'a name more': (twice('"name":', '"name":"line","name":'), '"name" of the object with id 1'),
    'nothing': (lambda path: path.write_text(''), 'JSON'),
    'half of it': (lambda path: os.truncate(path, path.stat().st_size // 2), 'JSON'),
    'a list': (lambda path: path.write_text('[]'), 'COCO format'),
    'no list': (twice('"images":[', '"images":{},"pictures":['), 'COCO format'),
    'deep nesting': (lambda path: path.write_text('[' * 10**6), 'JSON'),
    'a number of 5000 digits': (twice('"id":16', f'"id":1{"0" * 5000}'), 'JSON'),
    **{
        f'written as {encoding}': (
            lambda path, encoding=encoding: path.write_text(path.read_text(), encoding),
            'UTF-8 without BOM',
        )
        for encoding in ('utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32')
    },
    'Latin-1': (
        lambda path: path.write_bytes(path.read_bytes().replace(b'circle', b'circl\xe9')),
        'UTF-8',
    ),
    'a FIFO': (lambda path: (path.unlink(), os.mkfifo(path)), 'regular file'),
    'a device': (lambda path: (path.unlink(), path.symlink_to('/dev/zero')), 'regular file'),
    'a folder': (lambda path: (path.unlink(), path.mkdir()), 'regular file'),
}


@pytest.mark.parametrize('name', TEXT)
def test_faults_of_the_text(tool, configs, coco, name):
    edit, *tokens = TEXT[name]
    edit(coco / TRAIN)
    assert_refused(tool, configs['mask_rcnn'], named(TRAIN), *tokens)


def first_segment(**fields):
    return lambda content: content['annotations'][0]['segments_info'][0].update(fields)


SEGMENT = 'annotations[0].segments_info[0] (id '
PANOPTIC = {
    'no iscrowd': (
        PANOPTIC_VAL,
        lambda content: content['annotations'][0]['segments_info'][0].pop('iscrowd') and None,
        SEGMENT,
        'iscrowd',
    ),
    'ids beyond the colours': (PANOPTIC_TRAIN, first_segment(id=2**24), SEGMENT, '16777215'),
    'an id of unlabelled pixels': (PANOPTIC_TRAIN, first_segment(id=0), SEGMENT),
    'an id in words': (PANOPTIC_TRAIN, first_segment(id='7'), "id='7'"),
    'a box of NaN': (PANOPTIC_TRAIN, first_segment(bbox=[1, NAN, 2, 2]), SEGMENT, 'nan'),
    'a category of no class': (
        PANOPTIC_TRAIN,
        lambda content: (
            content['categories'].append({'id': 9, 'name': 'comet', 'isthing': 1}),
            first_segment(category_id=9)(content),
        )[1],
        SEGMENT,
        'category_id 9',
    ),
    'an image without its map': (
        PANOPTIC_TRAIN,
        lambda content: content['images'][0].update(file_name='größe.jpg'),
        'annotations/panoptic_train2017/größe.png (image 1)',
        'missing',
    ),
    'an id of boxes as a string': (
        VAL,
        lambda content: content['annotations'][1].update(id='a'),
        "annotations[1] (id 'a')",
    ),
    'no things': (
        PANOPTIC_TRAIN,
        every('categories', isthing=lambda _: 0),
        'filter_cfg',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', PANOPTIC)
def test_faults_of_a_panoptic_file(tool, configs, coco, name):
    file, edit, *tokens = PANOPTIC[name]
    change(coco / file, edit)
    assert_refused(tool, configs['mask2former'], named(file), *tokens)


def test_classes_of_the_config_that_are_numbers(tool, configs, coco):
    options = ['train_dataloader.dataset.metainfo.classes=(1,2,3,4)']
    for name in ('check_dataset', 'train'):
        code, _, error = tool(name, configs['mask_rcnn'], '--cfg-options', *options)
        assert code == 2
        assert_names(error, ['classes', '1', 'strings'])
