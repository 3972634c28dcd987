"""Every config file loads and builds with channels that fit, and counts as in the paper."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.archs import ARCHS, CHECKPOINTS

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(p for p in CONFIGS.glob('*/*.py') if not p.parent.name.startswith('_'))

# Millions of parameters counted with the published backbone inside mmdet 3, window 9.
MASK_RCNN_PARAMS = {
    'focalnet_t_srf': 48.675,
    'focalnet_t': 49.426,
    'focalnet_s_srf': 70.913,
    'focalnet_s': 72.448,
    'focalnet_b_srf': 109.543,
    'focalnet_b': 111.589,
}
# The same inside mmseg 1, window 9.
UPERNET_PARAMS = {
    'focalnet_t_srf': 60.823,
    'focalnet_t': 61.573,
    'focalnet_s_srf': 83.061,
    'focalnet_s': 84.595,
    'focalnet_b_srf': 123.681,
    'focalnet_b': 125.726,
}
# Millions of parameters and stochastic depth of the published classifiers.
CLASSIFIER_PARAMS = {
    'focalnet_t_srf': (28.427, 0.2),
    'focalnet_t': (28.648, 0.2),
    'focalnet_s_srf': (49.891, 0.3),
    'focalnet_s': (50.342, 0.3),
    'focalnet_b_srf': (88.148, 0.5),
    'focalnet_b': (88.750, 0.5),
}
# The embeddings of Mask2Former.
EMBEDDINGS = ('query_embed', 'query_feat', 'level_embed')
# Stochastic depth of the released configs.
DROP_PATH = {
    ('t', '1x'): 0.1, ('s', '1x'): 0.2, ('b', '1x'): 0.3,
    ('t', '3x'): 0.3, ('s', '3x'): 0.5, ('b', '3x'): 0.5,
}  # fmt: skip


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(cfg.model)


def parameters_of_norms(model):
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm))
        for parameter in module.parameters()
    }


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_config_builds_and_its_channels_fit(path):
    cfg = Config.fromfile(path)
    ours = ['mmfocalnet', 'mmfocalnet.models.dino']
    assert cfg.custom_imports.imports == ours[: 1 + ('DINO' in cfg.model.type)]
    backbone = cfg.model.backbone
    depths = backbone.get('depths') or ARCHS[backbone.arch]['depths']
    backbone.depths = [1] * len(depths)  # builds in less time
    model = build(cfg)
    outs = model.backbone(torch.empty(2, 3, 64, 96, device='meta'))
    if cfg.model.type == 'FocalNetClassifier':
        assert model.head.in_features == outs[0].shape[1]
        return
    part = next(part for part in ('neck', 'panoptic_head', 'decode_head') if part in cfg.model)
    assert [out.shape[1] for out in outs] == cfg.model[part].in_channels
    # The decoder of Mask2Former reads shapes from the values of tensors.
    if cfg.model[part].type != 'Mask2FormerHead':
        getattr(model, part)(outs)
    if cfg.model.get('auxiliary_head'):
        model.auxiliary_head(outs)


def test_no_config_inherits_from_another_package():
    for path in CONFIGS.rglob('*.py'):
        assert '::' not in path.read_text(), path


@pytest.mark.parametrize('schedule', ['1x', '3x'])
@pytest.mark.parametrize('name', MASK_RCNN_PARAMS)
def test_mask_rcnn_is_the_published_one(name, schedule):
    cfg = Config.fromfile(CONFIGS / f'mask_rcnn/{name}_{schedule}.py')
    params = sum(p.numel() for p in build(cfg).parameters())
    assert round(params / 1e6, 3) == MASK_RCNN_PARAMS[name]
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == DROP_PATH[name.split('_')[1], schedule]
    assert backbone.init_cfg.checkpoint == (
        'https://github.com/microsoft/FocalNet/releases/download/v1.0.0/'
        f'focalnet_{backbone.arch}.pth'
    )
    epochs, steps = {'1x': (12, [9, 11]), '3x': (36, [27, 33])}[schedule]
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[1].milestones == steps


@pytest.mark.parametrize(
    ('path', 'millions'),
    [
        # Counted with the published backbone inside mmdet 3, windows 11, 9, 9, 7.
        ('cascade_rcnn/focalnet_t_srf_3x', 86.417),
        ('cascade_rcnn/focalnet_t_3x', 87.105),
        ('atss/focalnet_t_srf_3x', 36.521),
        ('atss/focalnet_t_3x', 37.209),
        ('sparse_rcnn/focalnet_t_srf_3x', 110.528),
        ('sparse_rcnn/focalnet_t_3x', 111.216),
    ],
)
def test_other_detectors_are_the_published_ones(path, millions):
    cfg = Config.fromfile(CONFIGS / f'{path}.py')
    params = sum(p.numel() for p in build(cfg).parameters())
    assert round(params / 1e6, 3) == millions
    assert cfg.model.backbone.drop_path_rate == 0.3
    assert cfg.train_cfg.max_epochs == 36
    assert cfg.param_scheduler[1].milestones == [27, 33]
    lr, decay = (2.5e-5, 1e-4) if 'sparse' in path else (1e-4, 0.05)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (lr, decay)


@pytest.mark.parametrize('name', UPERNET_PARAMS)
def test_upernet_is_the_published_one(name):
    cfg = Config.fromfile(CONFIGS / f'upernet/{name}_160k_ade20k.py')
    params = sum(p.numel() for p in build(cfg).parameters())
    assert round(params / 1e6, 3) == UPERNET_PARAMS[name]
    optimizer, (warmup, poly) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('FusedAdamW', 6e-5, 0.01)
    assert (warmup.start_factor, warmup.end) == (1e-6, 1500)
    assert (poly.power, poly.eta_min, poly.end) == (1.0, 0.0, 160000)
    assert cfg.model.backbone.drop_path_rate == 0.3


@pytest.mark.parametrize('name', CLASSIFIER_PARAMS)
def test_classifiers_are_the_published_ones(name):
    cfg = Config.fromfile(CONFIGS / f'imagenet/{name}.py')
    params = sum(p.numel() for p in build(cfg).parameters())
    assert (round(params / 1e6, 3), cfg.model.backbone.drop_path_rate) == CLASSIFIER_PARAMS[name]
    assert 'init_cfg' not in cfg.model


def test_recipe_of_imagenet():
    cfg = Config.fromfile(CONFIGS / 'imagenet/focalnet_t.py')
    optimizer, (warmup, cosine) = cfg.optim_wrapper.optimizer, cfg.param_scheduler
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('FusedAdamW', 1e-3, 0.05)
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
    assert (warmup.start_factor, warmup.end) == (0.001, 20)
    assert (cosine.begin, cosine.end, cosine.eta_min_ratio) == (20, 300, 0.01)
    assert cfg.train_cfg.max_epochs == 300
    assert (cfg.model.label_smoothing, cfg.model.mix) == (0.1, dict(mixup=0.8, cutmix=1.0))
    assert cfg.train_pipeline[5].prob == 0.25
    augment = cfg.train_pipeline[4]
    assert (augment.type, augment.aug_num) == ('mmdet.RandAugment', 2)
    assert [operation.prob for [operation] in augment.aug_space] == [0.5] * 30


@pytest.mark.parametrize('size', 'tsb')
def test_fine_tuning_at_384(size):
    cfg = Config.fromfile(CONFIGS / f'imagenet/focalnet_{size}_384.py')
    pretrained = Config.fromfile(CONFIGS / f'imagenet/focalnet_{size}.py')
    assert cfg.model.backbone == pretrained.model.backbone
    assert cfg.model.init_cfg.checkpoint.endswith(f'/focalnet_{cfg.model.backbone.arch}.pth')
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 30
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (4e-5, 1e-8)
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.train_dataloader.dataset.pipeline[2].size == 384
    assert [step.type for step in cfg.test_dataloader.dataset.pipeline] == [
        'LoadImageFromFile',
        'Resize',
        'PackImage',
    ]


@pytest.mark.parametrize(
    ('name', 'millions', 'queries', 'iterations'),
    [
        # With the overlapped embedding of the released checkpoint; the paper prints 226.
        ('focalnet_l_coco_panoptic', 225.901, 200, 737500),
        ('focalnet_l_160k_ade20k_640', 225.854, 100, 160000),
        ('focalnet_t_coco_panoptic', 49.067, 100, 368750),
        ('focalnet_t_coco_instance', 49.053, 100, 368750),
        ('focalnet_t_160k_ade20k_640', 49.071, 100, 160000),
    ],
)
def test_mask2former(name, millions, queries, iterations):
    cfg = Config.fromfile(CONFIGS / f'mask2former/{name}.py')
    model = build(cfg)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions
    head = cfg.model.get('panoptic_head') or cfg.model.decode_head
    assert head.num_queries == queries
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == iterations
    assert cfg.optim_wrapper.clip_grad.max_norm == 0.01
    assert cfg.model.backbone.drop_path_rate == 0.3
    if '_l_' in name:
        assert hasattr(model.backbone.layers[0].blocks[0], 'gamma_1')
        assert cfg.model.backbone.init_cfg.checkpoint.endswith('/focalnet_large_lrf_384.pth')


def test_mask2former_trains_the_backbone_slowly_and_decays_no_norm():
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(CONFIGS / 'mask2former/focalnet_l_coco_panoptic.py')
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(group['params'][0]): group for group in wrapper.param_groups}
    norms = parameters_of_norms(model)
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group['lr'] == pytest.approx(1e-5 if name.startswith('backbone') else 1e-4), name
        exempt = id(parameter) in norms or name.split('.')[-2] in EMBEDDINGS
        assert group['weight_decay'] == (0.0 if exempt else 0.05), name


@pytest.mark.parametrize(
    ('name', 'scales', 'arch', 'drop_path', 'epochs'),
    [
        ('focalnet_l_fl4_5scale_12e', 5, 'large_fl4', 0.3, 12),
        ('focalnet_l_fl3_4scale_12e', 4, 'large_fl3', 0.3, 12),
        ('detrex_focalnet_t_4scale_12e', 4, 'tiny_lrf', 0.1, 12),
        ('detrex_focalnet_s_4scale_12e', 4, 'small_lrf', 0.1, 12),
        ('detrex_focalnet_b_4scale_12e', 4, 'base_lrf', 0.1, 12),
        ('detrex_focalnet_l_fl3_4scale_12e', 4, 'large_fl3', 0.3, 12),
        ('detrex_focalnet_l_fl3_4scale_36e', 4, 'large_fl3', 0.3, 36),
        ('detrex_focalnet_l_fl4_4scale_12e', 4, 'large_fl4', 0.3, 12),
        ('detrex_focalnet_l_fl4_5scale_12e', 5, 'large_fl4', 0.3, 12),
    ],
)
def test_recipes_of_dino(name, scales, arch, drop_path, epochs):
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(CONFIGS / f'dino/{name}.py')
    detrex = name.startswith('detrex')
    backbone, encoding = cfg.model.backbone, cfg.model.positional_encoding
    assert (backbone.arch, backbone.drop_path_rate) == (arch, drop_path)
    assert backbone.init_cfg.checkpoint == CHECKPOINTS[arch]
    assert (encoding.temperature, encoding.offset) == ((10000, -0.5) if detrex else (20, 0.0))
    assert cfg.model.dn_cfg.box_noise_scale == (1.0 if detrex else 0.4)
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[0].end == epochs
    assert cfg.param_scheduler[0].milestones == [{12: 11, 36: 33}[epochs]]
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert cfg.auto_scale_lr.base_batch_size == 16
    transforms = cfg.train_dataloader.dataset.pipeline[4].transforms
    assert transforms[1][0].scales == [(400, 4200), (500, 4200), (600, 4200)]
    assert cfg.train_dataloader.dataset.filter_cfg.filter_empty_gt == detrex

    model = build(cfg)
    assert len(model.neck.convs) == len(backbone.out_indices) == scales - 1
    assert model.num_feature_levels == scales
    normalized = model.backbone.layers[0].blocks[0].modulation.normalize_modulator
    assert normalized == (arch == 'large_fl4' and not detrex)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(group['params'][0]): group for group in wrapper.param_groups}
    norms = parameters_of_norms(model)
    for parameter_name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        slow = parameter_name.startswith('backbone')
        assert group['lr'] == pytest.approx(1e-5 if slow else 1e-4), parameter_name
        exempt = detrex and id(parameter) in norms
        assert group['weight_decay'] == (0.0 if exempt else 1e-4), parameter_name


@pytest.mark.parametrize(('size', 'drop_path'), [('t', 0.2), ('s', 0.2), ('b', 0.3)])
def test_deeper_and_thinner(size, drop_path):
    cfg = Config.fromfile(CONFIGS / f'mask_rcnn/focalnet_{size}_deep_1x.py')
    assert ARCHS[cfg.model.backbone.arch]['focal_levels'] == 3
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.backbone.init_cfg is None


def test_recipe_of_the_paper():
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn/focalnet_t_1x.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('FusedAdamW', 1e-4, 0.05)
    warmup = cfg.param_scheduler[0]
    assert (warmup.start_factor, warmup.end, warmup.by_epoch) == (0.001, 500, False)
    assert cfg.auto_scale_lr.base_batch_size == 16
    first, second = cfg.train_pipeline[4].transforms
    assert [short for short, _ in first[0].scales] == list(range(480, 801, 32))
    assert [short for short, _ in second[0].scales] == [400, 500, 600]
    assert second[1].crop_size == (384, 600)


def test_norm_layers_do_not_decay():
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(CONFIGS / 'mask_rcnn/focalnet_t_1x.py')
    model = MODELS.build(dict(cfg.model.backbone, depths=[1, 1, 1, 1]))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(group['params'][0]): group['weight_decay'] for group in wrapper.param_groups}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if 'norm' in name else 0.05), name


def test_the_config_for_mmdets_analyze_results(tmp_path):
    """The config in docs/training.md; the tool compares the classes of the loaders."""
    from mmdet.datasets import get_loading_pipeline

    page = (CONFIGS.parent / 'docs/training.md').read_text()
    [text] = re.findall(r"```python\n(_base_ = '\.\./mask_rcnn.*?)```", page, re.DOTALL)
    (tmp_path / 'config.py').write_text(text.replace("'../", f"'{CONFIGS}/"))
    cfg = Config.fromfile(tmp_path / 'config.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert len(get_loading_pipeline(cfg.train_dataloader.dataset.pipeline)) == 2
