"""Recipes for other data: every number of classes, files, pipelines, metrics and schedules."""

import json
import shutil

import cv2
import narrow_models
import numpy as np
import pytest
import torch
from forked_tools import ROOT, run
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner

from mmfocalnet.config import find_dicts
from mmfocalnet.config_writing.base_config import base_reference, read_base
from mmfocalnet.config_writing.child_config import child_config
from mmfocalnet.config_writing.data_settings import label_kind
from mmfocalnet.config_writing.labels import read_labels
from mmfocalnet.config_writing.new_config import new_config
from mmfocalnet.config_writing.schedule import MIN_ITERATIONS
from mmfocalnet.datasets import make_shapes
from mmfocalnet.datasets.data_checks import check_data
from mmfocalnet.errors import ConfigError, DataError
from mmfocalnet.models.pretrained import drop_pretrained

RECIPES = {
    'mask_rcnn': narrow_models.MASK_RCNN,
    'cascade_rcnn': narrow_models.CASCADE_RCNN,
    'atss': narrow_models.ATSS,
    'sparse_rcnn': narrow_models.SPARSE_RCNN,
    'dino': narrow_models.DINO,
    'mask2former': narrow_models.MASK2FORMER,
    'upernet': narrow_models.UPERNET,
    'mask2former_semantic': narrow_models.MASK2FORMER_SEMANTIC,
}
BOX_RECIPES = ('mask_rcnn', 'cascade_rcnn', 'atss', 'sparse_rcnn', 'dino')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'shapes', 4, 2, size=64)


@pytest.fixture
def coco(shapes, tmp_path):
    """A copy of the COCO part whose files tests may change."""
    return shutil.copytree(shapes / 'coco', tmp_path / 'my coco')


def change_files(root, change):
    for path in (root / 'annotations').glob('*.json'):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def boxes_only(content):
    for record in content['annotations']:
        record.pop('segmentation', None)


def one_class(content):
    kept = content['categories'][0]
    content['categories'] = [kept]
    for record in content['annotations']:
        record['category_id'] = kept['id']


def write(recipe, root, folder, **settings):
    """Write a config for data and read it back."""
    base = read_base(str(recipe))
    labels = read_labels(root, label_kind(base), {})
    cfg = new_config(base, labels, **settings)
    out = folder / 'new.py'
    names = ('data_root', 'metainfo')
    out.write_text(child_config(base_reference(str(recipe), str(out)), base, cfg, {}, names))
    found = Config.fromfile(out)
    for key, value in cfg.items():
        assert without_scope(found[key]) == without_scope(value), key
    return found


def without_scope(node):
    if isinstance(node, dict):
        return {k: without_scope(v) for k, v in node.items() if k != '_scope_'}
    return [without_scope(v) for v in node] if isinstance(node, (list, tuple)) else node


def first_loss(cfg, options):
    """The loss of the first batch of two images."""
    pairs = (option.split('=', 1) for option in options)
    values = {k: v if k.endswith('type') else json.loads(v) for k, v in pairs}
    cfg.merge_from_dict({**values, 'train_dataloader.batch_size': 2})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = Runner.build_dataloader(cfg.train_dataloader)
        drop_pretrained(cfg.model)
        model = MODELS.build(cfg.model)
        model.init_weights()
        data = model.data_preprocessor(next(iter(loader)), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    return loss


def demo(name):
    return ROOT / f'configs/demo/{name}.py'


@pytest.mark.parametrize('name', RECIPES)
def test_every_family_trains_on_its_labels(name, shapes, tmp_path):
    semantic = name in ('upernet', 'mask2former_semantic')
    cfg = write(demo(name), shapes / ('ade' if semantic else 'coco'), tmp_path)
    check_data(cfg, ('train', 'val', 'test'))
    assert torch.isfinite(first_loss(cfg, RECIPES[name]))


@pytest.mark.parametrize('change', [boxes_only, one_class])
@pytest.mark.parametrize('name', BOX_RECIPES)
def test_detectors_train_on_boxes_and_on_one_class(name, change, coco, tmp_path):
    change_files(coco, change)
    cfg = write(demo(name), coco, tmp_path)
    check_data(cfg, ('train', 'val', 'test'))
    classes = ('circle',) if change is one_class else ('circle', 'square', 'triangle', 'star')
    assert cfg.train_dataloader.dataset.metainfo.classes == classes
    counts = {
        p.num_classes for p in find_dicts(cfg.model.get('roi_head') or {}) if 'num_classes' in p
    }
    assert counts <= {len(classes)}
    with_masks = any(step.get('with_mask') for step in find_dicts(cfg.train_dataloader))
    assert not (change is boxes_only and with_masks)
    options = [o for o in RECIPES[name] if change is not boxes_only or 'mask_' not in o]
    assert torch.isfinite(first_loss(cfg, options))


@pytest.mark.parametrize(
    'recipe',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco',
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco',
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco',
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712',
        'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1',
        'mmdet::htc/htc-without-semantic_r50_fpn_1x_coco',
        ROOT / 'configs/mask_rcnn/focalnet_t_1x.py',
        ROOT / 'configs/cascade_rcnn/focalnet_t_3x.py',
        ROOT / 'configs/sparse_rcnn/focalnet_t_3x.py',
        ROOT / 'configs/mask2former/focalnet_t_coco_instance.py',
        ROOT / 'configs/dino/focalnet_l_fl4_5scale_finetune.py',
    ],
    ids=str,
)
def test_published_recipes_for_four_classes(recipe, shapes, tmp_path):
    cfg = write(recipe, shapes / 'coco', tmp_path)
    check_data(cfg, ('train', 'val', 'test'))
    assert_counts(cfg, 4)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        assert len(dataset) >= 4
        labels = dataset[0]['data_samples'].gt_instances.labels  # none, if the crop has no boxes
        assert labels.lt(4).all()


def assert_counts(cfg, count):
    """No number of classes of the recipe is left."""
    for part in find_dicts({k: v for k, v in cfg.model.items() if k != 'rpn_head'}):
        if 'num_classes' in part:
            assert part.num_classes == count
        if isinstance(part.get('class_weight'), list):
            assert len(part.class_weight) == count + 1
        assert part.get('num_things_classes', count) == count


@pytest.mark.parametrize(
    'recipe',
    [
        'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
        ROOT / 'configs/upernet/focalnet_t_160k_ade20k.py',
        ROOT / 'configs/mask2former/focalnet_t_160k_ade20k_640.py',
    ],
    ids=str,
)
def test_segmentation_recipes_for_seven_classes(recipe, shapes, tmp_path):
    cfg = write(recipe, shapes / 'ade', tmp_path)
    check_data(cfg, ('train', 'val', 'test'))
    assert_counts(cfg, 7)
    assert cfg.train_dataloader.dataset.reduce_zero_label is True  # the maps have no 0
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
    labels = sample['data_samples'].gt_sem_seg.data.unique().tolist()
    assert set(labels) <= {*range(7), 255}


def test_names_of_semantic_classes(shapes, tmp_path):
    root = shutil.copytree(shapes / 'ade', tmp_path / 'ade')
    (root / 'classes.txt').write_text('a\nb\nc\nd\ne\nf\ng\nh\n')
    labels = read_labels(root, 'semantic', {})
    assert labels.classes == tuple('abcdefgh')
    assert not labels.reduce_zero_label  # eight classes from 0 to 7


def test_boxes_do_not_train_recipes_that_need_masks(coco, tmp_path):
    change_files(coco, boxes_only)
    with pytest.raises(ConfigError, match='masks'):
        write(ROOT / 'configs/mask2former/focalnet_t_coco_instance.py', coco, tmp_path)


def test_schedules_of_few_images(shapes, tmp_path):
    recipe = ROOT / 'configs/mask_rcnn/focalnet_t_1x.py'
    cfg = write(recipe, shapes / 'coco', tmp_path)
    epochs = cfg.train_cfg.max_epochs
    assert epochs == MIN_ITERATIONS // 2, 'two iterations of two images per epoch'
    warm_up, steps = cfg.param_scheduler
    assert warm_up.end == MIN_ITERATIONS // 10
    assert steps.milestones == [epochs * 9 // 12, epochs * 11 // 12] and steps.end == epochs
    assert cfg.train_cfg.val_interval == epochs // 12

    cfg = write(recipe, shapes / 'coco', tmp_path, epochs=24, batch=4)
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.param_scheduler[1].milestones == [18, 22]
    cfg = write(demo('atss'), shapes / 'coco', tmp_path)
    assert cfg.train_cfg == read_base(str(demo('atss'))).train_cfg, 'counted in iterations'


@pytest.mark.parametrize(
    ('size', 'recipe', 'expected'),
    [
        (640, 'mask_rcnn/focalnet_t_1x.py', (1333, 800)),
        (320, 'mask_rcnn/focalnet_t_1x.py', (666, 400)),
        (640, 'demo/mask_rcnn.py', (320, 320)),
        (100, 'demo/mask_rcnn.py', (100, 100)),
    ],
)
def test_image_scale(size, recipe, expected, coco, tmp_path):
    change_files(
        coco, lambda content: [i.update(width=size, height=size) for i in content['images']]
    )
    cfg = write(ROOT / 'configs' / recipe, coco, tmp_path)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == expected


def test_real_data_for_a_small_backbone(tmp_path):
    root = ROOT.parent / 'shared/data/bccd'  # not part of the project
    if not root.is_dir():
        pytest.skip('no ../shared/data/bccd here')
    cfg = write(demo('atss'), root, tmp_path)
    check_data(cfg, ('train', 'val', 'test'))
    assert cfg.metainfo.classes == ('RBC', 'WBC', 'Platelets')
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/test.json'
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (320, 240)
    assert torch.isfinite(first_loss(cfg, narrow_models.ATSS))


def test_folders_of_other_tools(coco, tmp_path):
    """As Roboflow exports them: a JSON file among the images of each split."""
    for split, name in (('train', 'train'), ('val', 'valid')):
        images = coco / f'{split}2017'
        images = images.rename(coco / name)
        file = coco / f'annotations/instances_{split}2017.json'
        file.rename(images / '_annotations.coco.json')
    shutil.rmtree(coco / 'annotations')
    cfg = write(demo('atss'), coco, tmp_path)
    check_data(cfg, ('train', 'val'))
    assert cfg.val_dataloader.dataset.ann_file == 'valid/_annotations.coco.json'


def test_faults_of_the_data(coco, tmp_path):
    def fault(**settings):
        with pytest.raises(DataError) as error:
            write(demo('atss'), **dict(dict(root=coco, folder=tmp_path), **settings))
        return str(error.value)

    assert 'nowhere' in fault(root=tmp_path / 'nowhere')
    file = coco / 'annotations/instances_val2017.json'
    content = file.read_text()
    file.write_text('{')
    assert str(file) in fault()
    file.write_text('{"images": [], "annotations": []}')
    assert 'categories' in fault()
    file.unlink()
    assert 'val' in fault()
    file.write_text(content)
    (coco / 'val2017').rename(coco / 'elsewhere')
    assert str(file) in fault()


def test_tool_writes_nothing_for_faulty_data(coco, tmp_path):
    change_files(coco, lambda content: content['annotations'][0].update(bbox=[1, 2, 'x', 4]))
    flags = (coco, '--recipe', demo('atss'), '--out', 'new.py')
    done = run('new_config', *flags, folder=tmp_path, cwd=tmp_path, code=2)
    assert "[1, 2, 'x', 4]" in done.stderr
    assert not list(tmp_path.glob('*new.py'))


def test_a_swapped_detector_trains_on_own_data_in_two_processes(shapes, tmp_path):
    """mmdet's ATSS, whose neck does not read the first output of the backbone."""
    from forked_tools import end, start_two_trainings

    def tool(name, *flags):
        return run(name, *flags, folder=tmp_path, cwd=tmp_path).stdout

    tool('swap_backbone', 'mmdet::atss/atss_r50_fpn_1x_coco.py', '--out', 'atss.py')
    out = tool('new_config', shapes / 'coco', '--recipe', 'atss.py', '--out', 'mine.py')
    assert 'tools/train.py mine.py' in out
    options = [
        'model.backbone.init_cfg=None',
        'model.backbone.embed_dim=8',
        'model.backbone.depths=[1,1,1,1]',
        'model.neck.in_channels=[8,16,32,64]',
        'train_cfg.max_epochs=2',
        'train_dataloader.dataset.indices=4',
        'train_dataloader.batch_size=1',
        'default_hooks.logger.interval=1',
    ]
    both = start_two_trainings(
        tmp_path / 'mine.py', tmp_path / 'work', options=options, cwd=tmp_path
    )
    codes = [end(process) for process in both]
    log = (tmp_path / 'work.log').read_text()
    assert codes == [0, 0], log
    assert 'Epoch(train)  [2][2/2]' in log or 'Epoch(train) [2][2/2]' in log


@pytest.mark.parametrize(
    ('recipe', 'reason'),
    [
        (
            'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
            'without labels',
        ),
        ('htc/htc_r50_fpn_1x_coco', 'with_seg'),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco', 'proposals'),
        ('qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base', 'train_dataloader'),
        ('reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20', 'ReIDDataset'),
    ],
)
def test_recipes_for_other_tasks_are_refused(recipe, reason, shapes, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        write(f'mmdet::{recipe}', shapes / 'coco', tmp_path)


@pytest.mark.parametrize(
    ('recipe', 'scale'),
    [
        ('ssd/ssd300_coco', (300, 300)),
        ('yolox/yolox_s_8xb8-300e_coco', (640, 640)),
        ('dino/dino-4scale_r50_8xb2-12e_coco', (1333, 800)),
    ],
)
def test_sizes_that_networks_need_stay(recipe, scale, shapes, tmp_path):
    cfg = write(f'mmdet::{recipe}', shapes / 'coco', tmp_path)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == scale


def test_training_and_test_images_are_scaled_alike(shapes, tmp_path):
    recipe = 'mmseg::unet/unet-s5-d16_deeplabv3_4xb4-40k_drive-64x64'
    cfg = write(recipe, shapes / 'ade', tmp_path)
    scales = {
        step.scale
        for split in ('train', 'test')
        for step in find_dicts(cfg[f'{split}_dataloader'])
        if 'scale' in step
    }
    assert len(scales) == 1


def test_repeated_datasets_count(shapes, tmp_path):
    cfg = write('mmdet::ssd/ssd300_coco', shapes / 'coco', tmp_path, batch=4)
    assert cfg.train_cfg.max_epochs == MIN_ITERATIONS // 5, 'five repetitions of four images'


def test_panoptic_fpn_has_boxes_of_things_only(shapes, tmp_path):
    recipe = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco'
    cfg = write(recipe, shapes / 'coco', tmp_path)
    check_data(cfg, ('train', 'val'))
    assert cfg.model.roi_head.bbox_head.num_classes == 4
    assert cfg.model.semantic_head.num_stuff_classes == 3


def test_some_objects_without_masks_are_reported(coco, tmp_path):
    change_files(coco, lambda content: content['annotations'][0].pop('segmentation', None))
    cfg = write(demo('mask_rcnn'), coco, tmp_path)
    with pytest.raises(DataError, match='mask'):
        check_data(cfg, ('train',))


def semantic(root, values):
    """Images and label maps with each of the values in a row."""
    for split in ('train', 'val'):
        for folder in ('images', 'masks'):
            (root / folder / split).mkdir(parents=True)
        cv2.imwrite(str(root / f'images/{split}/a.png'), np.zeros((8, 8, 3), np.uint8))
        label_map = np.resize(np.array(values, np.uint8)[:, None], (8, 8))
        cv2.imwrite(str(root / f'masks/{split}/a.png'), label_map)
    return root


def test_labels_from_zero_with_a_recipe_for_labels_from_one(tmp_path):
    root = semantic(tmp_path / 'data', [0, 1])
    cfg = write('mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512', root, tmp_path)
    check_data(cfg, ('train', 'val'))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        labels = DATASETS.build(cfg.val_dataloader.dataset)[0]['data_samples'].gt_sem_seg.data
    assert labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ('values', 'names'),
    [([0, 255], None), ([1], None), ([0, 1, 2, 3], b'a\nb\n'), ([0, 1], b'\xff\n\xfe\n')],
)
def test_label_maps_that_do_not_fit_are_refused(values, names, tmp_path):
    root = semantic(tmp_path / 'data', values)
    if names:
        (root / 'classes.txt').write_bytes(names)
    with pytest.raises(DataError):
        write(demo('upernet'), root, tmp_path)


def test_byte_order_mark_is_no_part_of_a_name(tmp_path):
    root = semantic(tmp_path / 'data', [0, 1])
    (root / 'classes.txt').write_text('soil\r\nroot\r\n', encoding='utf-8-sig')
    assert read_labels(root, 'semantic', {}).classes == ('soil', 'root')


@pytest.mark.parametrize('out', ['nowhere/new.py', 'new.txt', '.'])
@pytest.mark.parametrize('name', ['new_config', 'swap_backbone'])
def test_files_that_cannot_be_written(name, out, tmp_path, tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ['mmdet::atss/atss_r50_fpn_1x_coco.py']
    flags = [tmp_path, '--recipe', *config] if name == 'new_config' else config
    code, _, error = tool(name, *flags, '--out', out)
    assert code == 2 and '--out' in error and out in error
    assert not list(tmp_path.iterdir())
