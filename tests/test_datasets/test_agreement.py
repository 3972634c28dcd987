"""What training refuses tools/check_dataset.py reports, and what it passes is trained on."""

import os
from pathlib import Path

import pytest
from tool_runs import assert_contains, assert_refused, assert_trains, change, run

TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))
PANOPTIC_TRAIN, PANOPTIC_VAL = (f'annotations/panoptic_{s}2017.json' for s in ('train', 'val'))


@pytest.fixture
def coco(data):
    return data / 'coco'


def named(file):
    """The file as both tools name it."""
    return f'data/shapes/coco/{file}'


def polygon(*coordinates):
    return {'segmentation': [list(coordinates)]}


def rle(size, counts):
    return {'segmentation': {'size': size, 'counts': counts}}


NAN = float('nan')
# Fields of the first annotation, and what both tools must print.
ANNOTATION = {
    'a coordinate of 1e9': (polygon(1, 1, 9, 1e9, 9, 9), '1000000000.0'),
    'a coordinate of 1e300': (polygon(1, 1, 9, 1e300, 9, 9), '1e+300'),
    'all coordinates out of range': (polygon(*[10**9] * 6), '1000000000'),
    'an integer too large for a float': (polygon(1, 1, 9, 10**400, 9, 9), '1000'),
    'a coordinate that is NaN': (polygon(1, 1, 9, NAN, 9, 9), 'nan'),
    'an infinite coordinate': (polygon(1, 1, 9, -float('inf'), 9, 9), 'inf'),
    'a very long outline': (polygon(*[0, 0, 4000, 4000] * 3000), 'polygon'),
    'a polygon of strings': (polygon(*'123456'), "'1'"),
    'a polygon that is an object': ({'segmentation': [[1, 1, 9, 1, 9, 9], {}]}, 'polygon {}'),
    'RLE of 2^31 pixels': (rle([2**31, 1], [2**31]), 'size [2147483648, 1]'),
    'RLE of too many pixels': (rle([64, 64], [4096, 1]), '4097 pixels'),
    'RLE of negative runs': (rle([64, 64], [5000, -904]), 'run lengths'),
    'RLE of other characters': (rle([64, 64], '\x7f'), 'run lengths'),
    'RLE of strings': (rle([64, 64], ['4096']), 'run lengths'),
    'RLE that ends too early': (rle([64, 64], 'PP4P'), 'run'),
    'a box of 1e308': ({'bbox': [1, 1, 1e308, 9]}, '1e+308'),
    'a box of 1e6': ({'bbox': [5, 5, 1e6, 1e6]}, '[5, 5, 1000000.0, 1000000.0]'),
    'a box of NaN': ({'bbox': [1, NAN, 9, 9]}, 'nan'),
    'a box of strings': ({'bbox': ['1', '1', '9', '9']}, "'1'"),
    'a string as iscrowd': ({'iscrowd': 'no'}, "iscrowd='no'"),
    'a string as ignore': ({'ignore': 'false'}, "ignore='false'"),
    'a string as area': ({'area': 'large'}, "area='large'"),
    'an area that is NaN': ({'area': NAN}, 'area=nan'),
    'a string as category id': ({'category_id': '1'}, "category_id '1'"),
    'an object as id': ({'id': {'id': 1}}, "id={'id': 1}"),
    'a list as image id': ({'image_id': [1]}, 'image_id=[1]'),
    'no mask': ({'segmentation': []}, 'without a mask'),
}


def every(part, **fields):
    """Edit each record: functions from the old to the new value of fields."""

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


def replace_once(before, after):
    """Edit the text of a file."""

    def edit(path):
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return edit


# The file, the edit, and what both tools must print beside the file.
CONTENT = {
    'no annotations': (TRAIN, lambda content: content.update(annotations=[]), '"annotations"'),
    'image ids as strings on one side': (
        TRAIN,
        every('images', id=str),
        'annotations[0] (id 16) has image_id 1',
    ),
    'categories that are not classes': (
        TRAIN,
        every('annotations', category_id=lambda _: 99),
        'category_id 99',
    ),
    'crowds only': (TRAIN, every('annotations', iscrowd=lambda _: 1), '0 with "annotations"'),
    'crowds only, evaluated': (
        VAL,
        every('annotations', iscrowd=lambda _: 1),
        '0 with "annotations"',
    ),
    'polygons of two points only': (
        TRAIN,
        every('annotations', segmentation=lambda _: [[1, 1, 5, 5]]),
        '0 with "annotations"',
    ),
    'small images': (TRAIN, every('images', height=lambda _: 31), 'min_size'),
    'an image without width': (TRAIN, every('images', width=lambda _: 0), 'images[0] (id 1)'),
    'an image of 2^40 pixels': (TRAIN, every('images', width=lambda _: 2**40), 'images[0] (id 1)'),
    'names as numbers': (
        TRAIN,
        first_category(name=1),
        'categories[0] (id 1) has name=1',
        'string',
    ),
    'a space after a name': (TRAIN, first_category(name='circle '), '"circle "', 'spaces'),
    'a capital letter': (TRAIN, first_category(name='Circle'), '"Circle"', 'case'),
    'an image that is a list': (
        TRAIN,
        lambda content: content['images'].append([]),
        'images[4] is',
    ),
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
    'ids of both types': (
        VAL,
        lambda content: content['images'].append(dict(content['images'][0], id='a')),
        'images',
        'strings',
    ),
    'no annotations to evaluate': (
        VAL,
        lambda content: content.update(annotations=[]),
        '"annotations"',
    ),
    'a polygon of two points to evaluate': (
        VAL,
        lambda content: content['annotations'][0].update(polygon(5, 5, 15, 13)),
        'annotations[0]',
        'has 4 coordinates',
    ),
    'an area to evaluate that is ignored': (
        VAL,
        lambda content: content['annotations'][0].update(area=1e11),
        'annotations[0]',
        'area=1',
    ),
    'no mask to evaluate': (
        VAL,
        lambda content: content['annotations'][0].update(segmentation=[], bbox=[0, 0, 0, 0]),
        'annotations[0]',
        'without a mask',
    ),
}


# Edits of the text of the file, and what both tools must print.
TEXT = {
    'two lists of annotations': (
        replace_once('"annotations":', '"annotations":[],"annotations":'),
        '"annotations" of the object with keys',
    ),
    'two boxes': (
        replace_once('"bbox":', '"bbox":[1,1,2,2],"bbox":'),
        '"bbox" of the object with id 16',
    ),
    'two names': (
        replace_once('"name":', '"name":"line","name":'),
        '"name" of the object with id 1',
    ),
    'an empty file': (lambda path: path.write_text(''), 'JSON'),
    'a truncated file': (lambda path: os.truncate(path, path.stat().st_size // 2), 'JSON'),
    'a list as content': (lambda path: path.write_text('[]'), 'COCO format'),
    'an object as images': (replace_once('"images":[', '"images":{},"photos":['), 'COCO format'),
    'deep nesting': (lambda path: path.write_text('[' * 10**6), 'JSON'),
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
    'an id above 24 bits': (PANOPTIC_TRAIN, first_segment(id=2**24), SEGMENT, '16777215'),
    'the id of unlabelled pixels': (PANOPTIC_TRAIN, first_segment(id=0), SEGMENT),
    'a float as category id': (PANOPTIC_TRAIN, first_segment(category_id=1.0), 'category_id=1.0'),
    'a string as id': (PANOPTIC_TRAIN, first_segment(id='7'), "id='7'"),
    'a box of NaN': (PANOPTIC_TRAIN, first_segment(bbox=[1, NAN, 2, 2]), SEGMENT, 'nan'),
    'a category that is not a class': (
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
    'a string as id of a box': (
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


def edit_json(edit):
    return lambda path: change(path, edit)


def update_first(fields):
    return edit_json(lambda content: content['annotations'][0].update(fields))


CASES = [
    *(
        ('mask_rcnn', TRAIN, update_first(fields), ['annotations[0] (id ', *tokens], name)
        for name, (fields, *tokens) in ANNOTATION.items()
    ),
    *(('mask_rcnn', TRAIN, edit, tokens, name) for name, (edit, *tokens) in TEXT.items()),
    *(
        (config, file, edit_json(edit), tokens, name)
        for config, table in (('mask_rcnn', CONTENT), ('mask2former', PANOPTIC))
        for name, (file, edit, *tokens) in table.items()
    ),
]


@pytest.mark.parametrize(
    ('config', 'file', 'edit', 'tokens'), [case[:4] for case in CASES], ids=[c[4] for c in CASES]
)
def test_errors_are_reported_by_both_tools(tool, configs, coco, config, file, edit, tokens):
    edit(coco / file)
    assert_refused(tool, configs[config], named(file), *tokens)


def test_browse_dataset_refuses_invalid_annotations(tool, configs, coco):
    change(coco / TRAIN, lambda content: content['annotations'][0].update(polygon(*[1e9] * 6)))
    code, _, error = tool('browse_dataset', configs['mask_rcnn'], '--output-dir', 'drawn')
    assert code == 2
    assert_contains(error, named(TRAIN), 'annotations[0] (id ')
    assert not Path('drawn').exists()


def test_errors_of_the_test_set(tool, configs, coco):
    options = [
        'test_dataloader.dataset.ann_file=' + TRAIN,
        'test_evaluator.ann_file=' + named(TRAIN),
    ]
    change(coco / TRAIN, without('annotations', 'iscrowd'))
    tokens = (named(TRAIN), 'annotations[0] (id ', 'iscrowd')
    assert_refused(tool, configs['mask_rcnn'], *tokens, options=options, name='test')


def test_annotations_without_masks(tool, configs, coco):
    for file in (TRAIN, VAL):
        change(coco / file, every('annotations', segmentation=lambda _: []))
    boxes = ['train_dataloader.dataset.pipeline.2.with_mask=False']
    # The metric of masks reads them.
    assert_refused(tool, configs['atss'], named(VAL), 'without a mask', options=boxes)
    boxes += [f'{s}_dataloader.dataset.pipeline.2.with_mask=False' for s in ('val', 'test')]
    narrow = ['model.neck.in_channels=[16,32,64]', 'model.test_cfg.score_thr=0']
    assert_trains(tool, configs['atss'], *boxes, *narrow, metrics=['coco/bbox_mAP'])


def test_integers_as_classes_of_the_config(tool, configs, coco):
    options = ['train_dataloader.dataset.metainfo.classes=(1,2,3,4)']
    for name in ('check_dataset', 'train'):
        code, _, error = run(tool, name, configs['mask_rcnn'], *options)
        assert code == 2
        assert_contains(error, 'classes=(1, 2, 3, 4)')


def add_unusual_annotations(content):
    """Add what training and evaluation accept; the first image keeps two normal objects."""
    images, annotations, categories = (
        content[part] for part in ('images', 'annotations', 'categories')
    )
    first = images[0]['id']
    common = {'image_id': first, 'category_id': 1, 'area': 80, 'bbox': [5, 5, 10, 8], 'iscrowd': 0}
    square = {'segmentation': [[5, 5, 15, 5, 15, 13, 5, 13]]}
    unusual = [
        {'bbox': [5, 5, 0, 8], 'segmentation': [[5, 5, 5, 5, 5, 13]]},
        {'area': 0},
        {'bbox': [-200, 5, 10, 8]},
        {'bbox': [-3.5, 5, 10, 8]},
        {'bbox': [5, 5, 600, 600]},
        {'iscrowd': True, **rle([64, 64], [320, 64, 3712])},
        {'segmentation': {'size': [64, 64], 'counts': 'P:8h10Pb3'}},
        {'segmentation': [[-1e6, 5, 15, 5, 15, 13], [20, 20, 30.5, 20, 30, 30]]},
        {'segmentation': [[5, 5, 15, 5, 15, 13] * 500]},
        {'ignore': 1},
        {'category_id': 1.0, 'area': 80.5, 'attributes': {'occluded': True}, 'score': None},
    ]
    largest = max(record['id'] for record in annotations)
    annotations += [
        {**common, **square, **record, 'id': largest + number}
        for number, record in enumerate(unusual, start=1)
    ]
    annotations.append({**common, **square, 'id': largest + 99, 'image_id': 'of another set'})
    annotations.append({**common, 'id': -5, 'category_id': 9, 'iscrowd': None})
    categories.append({'id': 9, 'name': 'comet\x1b[31m'})
    images.append({**images[0], 'id': first + 50, 'date': None})
    content.update(info=None, licenses=[])


def use_unusual_ids(content):
    """Change what only training accepts."""
    first, second, third, *_ = content['annotations']
    first['id'], second['id'] = 0, 'c6a1'
    third.pop('iscrowd')
    third['segmentation'] = [[5, 5, 15, 13], [], [5, 5, 15, 5, 15, 13, 5]]
    every('images', id=str)(content)
    every('annotations', image_id=str)(content)


def rename(coco, file, folder):
    """Rename the first image to a name that JSON may escape."""

    def edit(content):
        old = content['images'][0]['file_name']
        (coco / folder / 'b').mkdir(exist_ok=True)
        (coco / folder / old).rename(coco / folder / 'b/größe.jpg')
        for record in content['images']:
            if record['file_name'] == old:
                record['file_name'] = 'b/größe.jpg'

    change(coco / file, edit)
    path = coco / file
    assert r'b/gr\u00f6\u00dfe.jpg' in path.read_text()
    path.write_text(path.read_text().replace('b/gr', r'b\/gr'))


def test_unusual_boxes_and_masks_are_accepted(tool, configs, coco):
    for file in (TRAIN, VAL):
        change(coco / file, add_unusual_annotations)
    change(coco / TRAIN, use_unusual_ids)
    rename(coco, TRAIN, 'train2017')
    replace_once('"width":', '"width":64,"width":')(coco / TRAIN)
    replace_once('"info":', '"info":{"version":1},"info":')(coco / TRAIN)
    assert_trains(
        tool, configs['mask_rcnn'], 'model.neck.in_channels=[8,16,32,64]',
        metrics=['coco/bbox_mAP', 'coco/segm_mAP'],
    )  # fmt: skip


def test_unusual_panoptic_annotations_are_accepted(tool, configs, coco):
    rename(coco, PANOPTIC_TRAIN, 'train2017')
    folder = coco / 'annotations/panoptic_train2017'
    (folder / 'b').mkdir()
    min(folder.glob('*.png')).rename(folder / 'b/größe.png')
    change(coco / PANOPTIC_TRAIN, lambda content: [
        segment.pop('iscrowd') and None
        for record in content['annotations']
        for segment in record['segments_info']
    ] and None)  # fmt: skip
    change(coco / PANOPTIC_VAL, first_segment(iscrowd=1, bbox=[-5, 0, 30, 30]))
    assert_trains(
        tool, configs['mask2former'], 'model.panoptic_head.in_channels=[8,16,32,64]',
        metrics=['coco_panoptic/PQ', 'coco/bbox_mAP'],
    )  # fmt: skip
