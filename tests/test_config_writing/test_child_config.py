"""A written config resolves to the changed copy of its base."""

import copy

import pytest
from mmengine.config import Config

from mmfocalnet.config_writing.child_config import child_config

BASE = """
model = dict(
    type='Detector',
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN')),
    neck=None,
    heads=[dict(type='Head', num_classes=80, loss=dict(weight=[1.0, 2.0])) for _ in range(3)],
    keys={'backbone.norm': dict(lr_mult=0.1)},
)
pipeline = [dict(type='Load', with_mask=True), dict(type='Resize', scale=(1333, 800))]
loader = dict(dataset=dict(pipeline=pipeline))
epochs = 12
"""


def set_backbone(cfg):
    cfg.model.backbone = dict(type='FocalNet', focal_windows=[9] * 4, out_indices=(1,))


def set_all_heads(cfg):
    for head in cfg.model.heads:
        head.num_classes = 3
        head.loss.weight = [1.0] * 30 + [0.1]


def set_one_head(cfg):
    cfg.model.heads[1].num_classes = 3
    cfg.model.heads[1].loss.new = dict(type='L1')


def set_keys_with_dots_in_a_list(cfg):
    cfg.model.heads[0]['a.b'] = 1


def replace_one_head(cfg):
    cfg.model.heads[1] = dict(type='Other')


def change_nested_pipeline(cfg):
    cfg.loader.dataset.pipeline[0].with_mask = False
    cfg.loader.dataset.pipeline[1].scale = (320, 240)


def drop_step(cfg):
    del cfg.loader.dataset.pipeline[0]


def replace_none(cfg):
    cfg.model.neck = dict(type='FPN', in_channels=[96, 192])


def replace_dict_by_none(cfg):
    cfg.model.backbone.norm_cfg = None


def remove_key(cfg):
    del cfg.model.backbone['depth']


def set_keys_with_dots(cfg):
    cfg.model['keys']['backbone.norm'].lr_mult = 1.0
    cfg.model['keys']['neck.0'] = dict(lr_mult=2)


def add_key(cfg):
    cfg.custom_imports = dict(imports=['math'], allow_failed_imports=False)
    cfg.epochs = 1e-4


CHANGES = [
    set_backbone,
    set_all_heads,
    set_one_head,
    set_keys_with_dots_in_a_list,
    replace_one_head,
    change_nested_pipeline,
    drop_step,
    replace_none,
    replace_dict_by_none,
    remove_key,
    set_keys_with_dots,
    add_key,
]


def written(tmp_path, change, notes):
    base, child = tmp_path / 'base.py', tmp_path / 'child.py'
    base.write_text(BASE)
    old = Config.fromfile(base)
    new = copy.deepcopy(old)
    change(new)
    child.write_text(child_config('base.py', old, new, notes))
    return child.read_text(), Config.fromfile(child), new


@pytest.mark.parametrize('change', CHANGES)
def test_written_config_equals_the_changed_one(change, tmp_path):
    text, found, expected = written(tmp_path, change, {})
    for key, value in expected.items():
        assert found[key] == value, text
    assert max(map(len, text.splitlines())) <= 100


def test_unchanged_settings_are_not_written(tmp_path):
    text, _, _ = written(tmp_path, set_all_heads, {})
    assert 'backbone' not in text and 'epochs' not in text
    assert text.count('num_classes = 3') == 1, 'a loop over the heads'
    assert '[1.0] * 30 + [0.1]' in text


def test_evaluation_does_not_follow_the_settings_of_training():
    old = {f'{split}_dataloader': {'batch': 1} for split in ('train', 'val', 'test')}
    new = {key: {'batch': 2} for key in old}
    assert child_config('base.py', old, new, {}).splitlines()[1:] == [
        'train_dataloader = dict(batch=2)',
        'val_dataloader = dict(batch=2)',
        'test_dataloader = val_dataloader',
    ]


def test_variables_without_use_are_left_out():
    old = dict(data_root='a/', metainfo=dict(classes=('x',)), ann_file='a/train.json')
    new = dict(old, data_root='b/', ann_file='b/train.json')
    variables = ('data_root', 'metainfo')
    text = child_config('base.py', old, new, {}, variables)
    assert text.splitlines()[1:] == ["data_root = 'b/'", "ann_file = data_root + 'train.json'"]
    new = dict(old, extra={'no name': 1, 'metainfo': old['metainfo']})
    text = child_config('base.py', old, new, {}, variables)
    assert text.splitlines()[1:] == [
        "metainfo = dict(classes=('x',))",
        "extra = {'no name': 1, 'metainfo': metainfo}",
    ]


def test_notes_become_comments(tmp_path):
    notes = {'model.backbone': 'was ResNet', 'model.backbone.out_indices': 'stride 8'}
    text, found, expected = written(tmp_path, set_backbone, notes)
    assert '# was ResNet' in text
    assert any('out_indices=(1,)' in line and '# stride 8' in line for line in text.splitlines())
    assert found.model == expected.model
