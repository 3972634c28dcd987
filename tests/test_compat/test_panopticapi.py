"""Ids and colours, panoptic quality against a reference and the original tool, and registration."""

import importlib
import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

from mmfocalnet.compat import ensure_panopticapi
from mmfocalnet.compat.panopticapi import (
    MMDET_MODULES,
    MODULES,
    OFFSET,
    VOID,
    PanopticapiFinder,
    PQStat,
    id2rgb,
    rgb2id,
)
from mmfocalnet.datasets import METAINFO, make_shapes

ROOT = Path(__file__).parents[2]
DATA = ROOT / 'tests' / 'data' / 'panoptic'

DetDataSample = importlib.import_module('mmdet.structures').DetDataSample
# The modules of mmdet that use the names; `import_module`, as mmdet.apis hides the module's name.
panoptic_utils, coco_panoptic_metric, det_inferencer = map(importlib.import_module, MMDET_MODULES)

# Hides an installed panopticapi, so that the tests are the same with one installed.
HIDE = """
    import sys
    class Hide:
        def find_spec(self, name, path=None, target=None):
            if name.partition('.')[0] == 'panopticapi':
                raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    sys.meta_path.insert(0, Hide())
"""


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """Let mmdet use our names, also with an installed panopticapi."""
    names = dict(PQStat=PQStat, OFFSET=OFFSET, VOID=VOID, rgb2id=rgb2id, id2rgb=id2rgb)
    for module in (panoptic_utils, coco_panoptic_metric, det_inferencer):
        for name in names.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, names[name])


# Colours and ids


def test_every_byte_of_an_id_is_a_colour_channel():
    assert rgb2id((1, 2, 3)) == 1 + 2 * 256 + 3 * 65536
    assert id2rgb(197121) == [1, 2, 3]
    ids = np.array([[0, 1, 255], [256, 65536, OFFSET - 1]])
    colors = [[[0, 0, 0], [1, 0, 0], [255, 0, 0]], [[0, 1, 0], [0, 0, 1], [255, 255, 255]]]
    assert id2rgb(ids).tolist() == colors and rgb2id(np.array(colors)).tolist() == ids.tolist()


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.int64, np.uint64, np.float64])
@pytest.mark.parametrize('size', [(37, 53), (0, 4)])
def test_ids_and_colours_are_inverse(dtype, size):
    largest = min(OFFSET, np.iinfo(dtype).max) if dtype != np.float64 else OFFSET
    ids = np.random.default_rng(0).integers(0, largest, size).astype(dtype)
    before = ids.copy()
    colors = id2rgb(ids)
    assert colors.shape == (*size, 3) and colors.dtype == np.uint8
    back = rgb2id(colors)
    assert back.shape == size and back.dtype == np.int32 and np.array_equal(back, ids)
    assert np.array_equal(ids, before), 'the argument is not changed'
    assert np.array_equal(rgb2id(colors[:, :, ::-1].copy()[:, :, ::-1]), ids), 'strides'
    assert np.array_equal(rgb2id(colors.astype(np.int64)), ids)


def test_single_ids_and_colours():
    for number in (0, 7, 256, 65535, OFFSET - 1):
        color = id2rgb(number)
        assert all(type(byte) is int for byte in color)
        for given in (color, tuple(color), np.array(color, np.uint8), id2rgb(np.int64(number))):
            assert rgb2id(given) == number and type(rgb2id(given)) is int


@pytest.mark.parametrize('ids', [-1, OFFSET, np.array([[0, OFFSET]]), np.array([[-1, 5]])])
def test_ids_out_of_range_raise(ids):
    with pytest.raises(ValueError, match='16777215'):
        id2rgb(ids)


# Panoptic quality. mmdet matches the segments and counts them in our PQStat.


def segment(number, category, crowd=0):
    return dict(id=number, category_id=category, iscrowd=crowd)


def score(folder, true_map, true, pred_map, pred):
    """Counts (tp, fp, fn, sum of IoU) of category 1 in one image."""
    areas = dict(zip(*np.unique(true_map, return_counts=True), strict=True))
    true = [{**info, 'area': int(areas[info['id']])} for info in true]
    pair = []
    for name, ids, infos in (('true', true_map, true), ('pred', pred_map, pred)):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / '0.png'), id2rgb(ids)[:, :, ::-1])
        infos = [dict(info) for info in infos]
        pair.append(dict(image_id=0, file_name='0.png', segments_info=infos))
    stat = panoptic_utils.pq_compute_single_core(
        0, [pair], str(folder / 'true'), str(folder / 'pred'), dict.fromkeys((1, 2))
    )
    return stat[1].tp, stat[1].fp, stat[1].fn, float(stat[1].iou)


def row(**lengths):
    """A map of one row of runs: id 3 twice, then id 0 once, from `row(_3=2, _0=1)`."""
    return np.repeat([int(name[1:]) for name in lengths], list(lengths.values()))[None]


TEN = row(_1=10)
FOUND = [segment(1, 1)]
CROWD = [segment(1, 1, crowd=1)]
CASES = {
    'perfect': (TEN, FOUND, TEN, FOUND, (1, 0, 0, 1.0)),
    'IoU 0.6': (TEN, FOUND, row(_5=6, _0=4), [segment(5, 1)], (1, 0, 0, 0.6)),
    'IoU 0.5 is no match': (TEN, FOUND, row(_5=5, _0=5), [segment(5, 1)], (0, 1, 1, 0)),
    'other category': (TEN, FOUND, TEN, [segment(1, 2)], (0, 0, 1, 0)),
    'nothing predicted': (TEN, FOUND, row(_0=10), [], (0, 0, 1, 0)),
    'void is not in the union': (row(_1=4, _0=6), FOUND, TEN, FOUND, (1, 0, 0, 1.0)),
    'mostly void': (row(_2=4, _0=6), [segment(2, 2)], TEN, FOUND, (0, 0, 0, 0)),
    'crowd missed': (TEN, CROWD, row(_0=10), [], (0, 0, 0, 0)),
    'half crowd': (row(_1=5, _2=5), [*CROWD, segment(2, 2)], TEN, FOUND, (0, 1, 0, 0)),
}


@pytest.mark.parametrize('case', CASES)
def test_counts_by_hand(tmp_path, case):
    *image, expected = CASES[case]
    assert score(tmp_path, *image) == pytest.approx(expected)


def make_stat(**counts):
    stat = PQStat()
    for name, value in counts.items():
        category, field = name[1:].split('_')
        setattr(stat[int(category)], field, value)
    return stat


CATEGORIES = {1: dict(isthing=1), 2: dict(isthing=0), 3: dict(isthing=1), 4: dict(isthing=0)}


def test_average_by_hand():
    stat = make_stat(c1_tp=2, c1_iou=1.5, c1_fp=1, c1_fn=3, c2_tp=1, c2_iou=0.9, c3_fn=2)
    mean, each = stat.pq_average(CATEGORIES, isthing=None)
    assert each == {
        1: pytest.approx(dict(pq=1.5 / 4, sq=0.75, rq=0.5)),
        2: pytest.approx(dict(pq=0.9, sq=0.9, rq=1)),
        3: dict(pq=0, sq=0, rq=0),
        4: dict(pq=0, sq=0, rq=0),
    }
    assert mean == pytest.approx(dict(pq=1.275 / 3, sq=1.65 / 3, rq=0.5, n=3)), (
        'the fourth is empty'
    )
    things, each = stat.pq_average(CATEGORIES, isthing=True)
    assert things == pytest.approx(dict(pq=0.1875, sq=0.375, rq=0.25, n=2)) and list(each) == [1, 3]
    stuff, each = stat.pq_average(CATEGORIES, isthing=False)
    assert stuff == pytest.approx(dict(pq=0.9, sq=0.9, rq=1, n=1)) and list(each) == [2, 4]


def test_average_does_not_change_the_counts():
    stat = make_stat(c1_tp=1, c1_iou=1.0)
    assert stat.pq_average(CATEGORIES, None) == stat.pq_average(CATEGORIES, None)
    assert list(stat.per_category) == [1]


def test_average_over_no_categories_is_zero():
    nothing = dict(pq=0, sq=0, rq=0, n=0)
    assert PQStat().pq_average(CATEGORIES, isthing=None)[0] == nothing
    only_things = {1: dict(isthing=True)}
    assert make_stat(c1_tp=1, c1_iou=1.0).pq_average(only_things, isthing=False)[0] == nothing


def test_stats_add_up():
    first, second = (
        make_stat(c1_tp=1, c1_iou=0.75, c2_fp=2),
        make_stat(c1_tp=2, c1_iou=1.5, c3_fn=1),
    )
    total = PQStat()
    for stat in (first, second):
        total += stat
    assert total.per_category == make_stat(c1_tp=3, c1_iou=2.25, c2_fp=2, c3_fn=1).per_category
    assert first[1].tp == 1 and second[1].tp == 2, 'the summands are not changed'


def test_stats_can_be_sent_between_processes():
    from mmengine.evaluator.metric import _to_cpu

    stat = make_stat(c1_tp=2, c1_iou=1.5)
    for back in (pickle.loads(pickle.dumps(stat)), _to_cpu([stat])[0]):
        assert type(back) is PQStat and back.per_category == stat.per_category
        assert back[5].is_empty, 'new categories can still be added'


def test_average_equals_the_original_tool():
    """On 16 images of COCO: mmdet's counts per category, and the original tool's averages."""
    counts = json.loads((DATA / 'category_counts.json').read_text())
    expected = json.loads((DATA / 'expected_pq.json').read_text())
    stat = make_stat(
        **{
            f'c{row["category"]}_{name}': row[name]
            for row in counts
            for name in ('tp', 'fp', 'fn', 'iou')
        }
    )
    categories = {row['category']: row for row in counts}
    for name, isthing in (('All', None), ('Things', True), ('Stuff', False)):
        mean, _ = stat.pq_average(categories, isthing=isthing)
        assert mean == pytest.approx(expected[name], abs=1e-9, rel=0)


# mmdet's metric, on a generated set


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'set', 1, 3, size=96) / 'coco'


def load_truth(root):
    """The samples of mmdet's dataset, with the truth as the prediction."""
    dataset = mmdet_dataset(root)
    classes = METAINFO['panoptic']['classes']
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        ids = rgb2id(cv2.imread(info['seg_map_path'])[:, :, ::-1])
        labels = np.full(ids.shape, len(classes))
        for number, true in enumerate(info['segments_info'], start=1):
            labels[ids == true['id']] = true['category'] + number * panoptic_utils.INSTANCE_OFFSET
        yield dict(
            pred_panoptic_seg=dict(sem_seg=torch.from_numpy(labels)[None]),
            ori_shape=ids.shape,
            **{key: info[key] for key in ('img_id', 'img_path', 'segments_info', 'seg_map_path')},
        )


def mmdet_dataset(root, **kwargs):
    from mmdet.datasets import CocoPanopticDataset

    return CocoPanopticDataset(
        data_root=str(root),
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
        metainfo=METAINFO['panoptic'],
        **kwargs,
    )


def evaluate(root, samples, ann_file=True, **kwargs):
    annotations = root / 'annotations'
    metric = coco_panoptic_metric.CocoPanopticMetric(
        ann_file=str(annotations / 'panoptic_val2017.json') if ann_file else None,
        seg_prefix=str(annotations / 'panoptic_val2017'),
        **kwargs,
    )
    metric.dataset_meta = METAINFO['panoptic']
    samples = list(samples)
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize(
    'saved, nproc, ann_file', [(False, 1, True), (True, 1, False), (True, 2, True)]
)
def test_the_truth_scores_100(shapes, tmp_path, saved, nproc, ann_file):
    where = dict(outfile_prefix=str(tmp_path / 'out')) if saved else {}
    scores = evaluate(
        shapes, load_truth(shapes), ann_file=ann_file, classwise=True, nproc=nproc, **where
    )
    assert len(scores) == 9 and all(s == pytest.approx(100) for s in scores.values()), scores


@pytest.mark.parametrize('saved', [False, True])
def test_a_wrong_prediction_scores_less(shapes, tmp_path, saved):
    def shift(sample):
        seg = sample['pred_panoptic_seg']['sem_seg']
        seg[:, :, 8:] = seg[:, :, :-8].clone()
        return sample

    where = dict(outfile_prefix=str(tmp_path / 'out')) if saved else {}
    scores = evaluate(shapes, map(shift, load_truth(shapes)), nproc=2, **where)
    assert 20 < scores['coco_panoptic/PQ'] < 90


def test_saved_results_contain_the_prediction(shapes, tmp_path):
    samples = list(load_truth(shapes))
    maps = [sample['pred_panoptic_seg']['sem_seg'][0].numpy().copy() for sample in samples]
    assert evaluate(shapes, samples, format_only=True, outfile_prefix=str(tmp_path / 'out')) == {}
    saved = json.loads((tmp_path / 'out.panoptic.json').read_text())['annotations']
    assert [record['image_id'] for record in saved] == [s['img_id'] for s in samples]
    for record, expected in zip(saved, maps, strict=True):
        image = cv2.imread(str(tmp_path / 'out.panoptic' / record['file_name']))
        assert np.array_equal(rgb2id(image[:, :, ::-1]), expected)
        assert {info['id'] for info in record['segments_info']} == set(np.unique(expected))


def test_inferencer_returns_ids_as_colours():
    sample = DetDataSample(metainfo=dict(img_path='a.jpg'))
    ids = torch.tensor([[[1000, 2001], [7, 3]]])  # 7: one more than the last class
    sample.pred_panoptic_seg = PixelData(sem_seg=ids)
    inferencer = SimpleNamespace(model=SimpleNamespace(dataset_meta=dict(classes='ABCDEFG')))
    result = det_inferencer.DetInferencer.pred2dict(inferencer, sample)
    assert rgb2id(result['panoptic_seg']).tolist() == [[1000, 2001], [VOID, 3]]


# Registration


@pytest.fixture
def no_panopticapi(monkeypatch):
    """As in a new process without panopticapi."""
    hide(monkeypatch)
    names = {}
    exec(textwrap.dedent(HIDE.replace('sys.meta_path.insert(0, Hide())', '')), names)
    monkeypatch.setattr(sys, 'meta_path', [names['Hide'](), *sys.meta_path])


def hide(monkeypatch):
    finders = [f for f in sys.meta_path if not isinstance(f, PanopticapiFinder)]
    monkeypatch.setattr(sys, 'meta_path', finders)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)


def install(monkeypatch, folder, **sources):
    hide(monkeypatch)
    (folder / 'panopticapi').mkdir()
    for name, source in sources.items():
        (folder / 'panopticapi' / f'{name}.py').write_text(source)
    monkeypatch.syspath_prepend(str(folder))


def test_missing_panopticapi_is_replaced(no_panopticapi):
    assert ensure_panopticapi() == 'mmfocalnet'
    modules, finders = [sys.modules[name] for name in MODULES], list(sys.meta_path)
    assert ensure_panopticapi() == 'mmfocalnet'
    assert [sys.modules[name] for name in MODULES] == modules
    assert sys.meta_path == finders

    import panopticapi
    from panopticapi import evaluation, utils

    assert panopticapi.utils is utils and panopticapi.evaluation is evaluation
    assert (utils.rgb2id, utils.id2rgb) == (rgb2id, id2rgb)
    assert (evaluation.PQStat, evaluation.OFFSET, evaluation.VOID) == (PQStat, 256**3, 0)


def test_replacement_is_a_package_that_reloads(no_panopticapi):
    ensure_panopticapi()
    for name in MODULES:
        module = sys.modules[name]
        assert importlib.util.find_spec(name) is module.__spec__
        assert importlib.reload(module) is module and ensure_panopticapi() == 'mmfocalnet'
    with pytest.raises(ImportError):
        importlib.import_module('panopticapi.combine_semantic_and_instance_predictions')
    with pytest.raises(ImportError):
        from panopticapi.utils import IdGenerator  # noqa: F401


def test_installed_panopticapi_is_left_untouched(monkeypatch, tmp_path):
    install(
        monkeypatch,
        tmp_path,
        __init__='',
        utils='rgb2id = id2rgb = None',
        evaluation='PQStat = OFFSET = VOID = None',
    )
    monkeypatch.setattr(panoptic_utils, 'PQStat', None)
    finders = list(sys.meta_path)
    assert ensure_panopticapi() == 'panopticapi'
    assert sys.meta_path == finders
    for name in MODULES:
        assert sys.modules[name].__file__.startswith(str(tmp_path))
    assert sys.modules['panopticapi.utils'].rgb2id is None
    assert sys.modules['panopticapi.evaluation'].PQStat is None
    assert panoptic_utils.PQStat is None, 'mmdet is not changed either'


@pytest.mark.parametrize(
    'evaluation', ["raise AttributeError('np.float')", 'import PIL_that_is_missing', 'a b']
)
def test_broken_panopticapi_is_replaced_with_a_warning(monkeypatch, tmp_path, evaluation):
    install(monkeypatch, tmp_path, __init__='', utils='', evaluation=evaluation)
    with pytest.warns(UserWarning, match='panopticapi') as caught:
        assert ensure_panopticapi() == 'mmfocalnet'
    assert len(caught) == 1
    assert sys.modules['panopticapi.utils'].rgb2id is rgb2id
    assert ensure_panopticapi() == 'mmfocalnet', 'and no further warning'


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('entry', ['folder', 'none', 'empty module'])
def test_folder_or_empty_module_of_that_name_is_replaced(
    monkeypatch, tmp_path, no_panopticapi, entry
):
    if entry == 'folder':  # such as a clone of its repository in the working directory
        install(monkeypatch, tmp_path)
    else:
        module = None if entry == 'none' else ModuleType('panopticapi')
        monkeypatch.setitem(sys.modules, 'panopticapi', module)
    assert ensure_panopticapi() == 'mmfocalnet'
    assert sys.modules['panopticapi'].utils.rgb2id is rgb2id


def test_mmdet_imported_before(no_panopticapi, monkeypatch):
    # Modules with the names that mmdet sets; the new process below imports the real ones.
    states = [
        dict(PQStat=None, rgb2id=None, VOID=0, OFFSET=256**3),
        dict(panopticapi=None, PQStat=None, VOID=None, id2rgb=None, rgb2id=None),
        dict(id2rgb='other', VOID=None),
    ]
    modules = []
    for name, state in zip(MMDET_MODULES, states, strict=True):
        modules.append(ModuleType(name))
        vars(modules[-1]).update(state)
        monkeypatch.setitem(sys.modules, name, modules[-1])
    ensure_panopticapi()
    functional, metric, apis = (
        {name: vars(module)[name] for name in vars(module) if not name.startswith('__')}
        for module in modules
    )
    assert functional == dict(PQStat=PQStat, rgb2id=rgb2id, VOID=0, OFFSET=256**3)
    assert metric == dict(
        panopticapi=sys.modules['panopticapi'], PQStat=PQStat, VOID=0, id2rgb=id2rgb, rgb2id=rgb2id
    )
    assert apis == dict(id2rgb='other', VOID=0), 'only names that are None are set'


@pytest.mark.e2e
def test_new_process_loads_and_scores_panoptic_data(shapes):
    """With mmdet imported while panopticapi was missing."""
    code = textwrap.dedent(HIDE) + textwrap.dedent(f"""
        import mmfocalnet.registered
        assert not any(name.split('.')[0] == 'mmdet' for name in sys.modules), 'a slow import'
        from mmfocalnet.compat import ensure_panopticapi, panopticapi
        from mmfocalnet.compat.module_finder import ImportTrigger
        finders = list(sys.meta_path)
        ours = (panopticapi.PanopticapiFinder, ImportTrigger)
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, ours)]
        for name in panopticapi.MODULES:
            del sys.modules[name]

        import torch
        import mmdet.apis
        from mmdet.datasets import CocoPanopticDataset
        from mmdet.evaluation import CocoPanopticMetric
        from mmdet.utils import register_all_modules
        register_all_modules()
        try:
            CocoPanopticMetric(seg_prefix='')
        except RuntimeError as error:
            assert 'not installed' in str(error)
        else:
            raise AssertionError('panopticapi is not hidden')
        sys.meta_path[:] = finders

        assert ensure_panopticapi() == 'mmfocalnet'
        CocoPanopticMetric(seg_prefix='')
        names = {{'panopticapi'}}.union(*panopticapi.MODULES.values())
        left = [
            (module, name)
            for module in list(sys.modules) if module.startswith('mmdet.')
            for name in names if vars(sys.modules[module]).get(name, ...) is None
        ]
        assert not left, left

        dataset = CocoPanopticDataset(
            data_root={str(shapes)!r},
            ann_file='annotations/panoptic_val2017.json',
            data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
            metainfo={METAINFO['panoptic']!r},
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadPanopticAnnotations'),
                dict(type='Resize', scale=(128, 128)),
                dict(type='RandomFlip', prob=0.5),
                dict(type='PackDetInputs'),
            ],
        )
        loader = torch.utils.data.DataLoader(dataset, num_workers=1, collate_fn=list)
        for (sample,) in loader:
            sample = sample['data_samples']
            labels = sample.gt_sem_seg.sem_seg
            assert labels.shape == (1, 128, 128) and labels.max() < 7, labels.unique()
            assert len(sample.gt_instances) == len(sample.gt_instances.masks) > 0
        """)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
