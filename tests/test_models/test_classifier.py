"""The image classifier: modes, mixing, and checkpoints in all supported layouts."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch.nn import functional as F

from mmfocalnet import FocalNetClassifier
from mmfocalnet.checkpoints import CheckpointError
from mmfocalnet.errors import ConfigError
from mmfocalnet.models import mixup
from mmfocalnet.models.mixup import BatchMix, cut_and_paste

CONFIGS = Path(__file__).parents[2] / 'configs'
TINY = dict(type='FocalNet', embed_dim=8, depths=[1, 1, 1, 1], focal_windows=3, drop_path_rate=0.0)


def classifier(num_classes=5, windows=3, **kwargs):
    backbone = dict(TINY, focal_windows=windows, out_indices=[3])
    model = MODELS.build(
        dict(type='FocalNetClassifier', backbone=backbone, num_classes=num_classes, **kwargs)
    )
    model.init_weights()
    return model


def samples(*labels):
    return [BaseDataElement(gt_label=torch.tensor(label)) for label in labels]


def release(model):
    """State dict of a model under the names of the release."""
    state = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix('backbone.').replace('norm3.', 'norm.')
        state[key] = value.clone()
    return state


def mmpretrain(model):
    """State dict of a model under the names of mmpretrain's ``ImageClassifier``."""
    return {
        key.replace('head.', 'head.fc.'): value.clone() for key, value in model.state_dict().items()
    }


def randomise(model):
    """Give every weight a random value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 40, 33)


def test_modes(images):
    model = classifier().eval()
    logits = model(images)
    assert logits.shape == (3, 5)
    features = model.backbone(images)[-1].mean((2, 3))
    torch.testing.assert_close(logits, F.linear(features, model.head.weight, model.head.bias))
    given = samples(4, 0, 2)
    predicted = model(images, given, mode='predict')
    assert predicted == given
    for sample, row in zip(predicted, logits, strict=True):
        torch.testing.assert_close(sample.pred_scores, row.softmax(0))
        assert sample.pred_label == row.argmax()
    assert len(model(images, mode='predict')) == 3
    with pytest.raises(ConfigError, match="'train'"):
        model(images, mode='train')


def test_loss_smooths_labels_and_reaches_every_weight(images):
    model = classifier(label_smoothing=0.1)
    loss = model(images, samples(1, 1, 3), mode='loss')['loss']
    soft = torch.full((3, 5), 0.02)
    soft[[0, 1, 2], [1, 1, 3]] += 0.9
    expected = -(soft * model(images).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_initialisation_of_the_head():
    model = classifier(num_classes=1000)
    assert abs(model.head.weight.std() - 0.02) < 1e-3
    assert model.head.weight.abs().max() <= 2
    assert not model.head.bias.any()


@pytest.mark.parametrize(
    ('change', 'argument', 'value'),
    [
        (dict(num_classes=0), 'num_classes', '0'),
        (dict(label_smoothing=1.0), 'label_smoothing', '1.0'),
        (dict(label_smoothing='abc'), 'label_smoothing', 'abc'),
        (dict(mix=True), 'mix', 'True'),
        (dict(mix=dict(mixup='abc')), 'mixup', 'abc'),
        (dict(mix=dict(mixup=0, cutmix=0)), 'model.mix', 'cutmix=0'),
        (dict(mix=dict(mixup=-1)), 'mixup', '-1'),
        (dict(mix=dict(switch_prob=2)), 'switch_prob', '2'),
        (dict(backbone=TINY), 'out_indices', '[3]'),
        (dict(backbone=dict(type='BaseDataPreprocessor')), 'backbone', 'BaseDataPreprocessor'),
        (dict(init_cfg=dict(type='Xavier')), 'init_cfg', 'Xavier'),
    ],
    ids=str,
)
def test_invalid_arguments(change, argument, value):
    cfg = dict(type='FocalNetClassifier', backbone=dict(TINY, out_indices=[3]))
    with pytest.raises(ConfigError) as error:
        MODELS.build({**cfg, **change})
    assert argument in str(error.value) and value in str(error.value)


# Mixing


def test_mixup_blends_images_and_labels_alike(monkeypatch):
    monkeypatch.setattr(mixup, 'draw_share', lambda alpha: 0.75)
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)  # image i is 1 in channel i
    mixed, targets = BatchMix(cutmix=0)(images, torch.arange(3), 3)
    # The mean of channel i is the share of image i, and so is the target of class i.
    torch.testing.assert_close(mixed.mean((2, 3)), targets)
    torch.testing.assert_close(targets.diagonal().min(), torch.tensor(0.75))
    torch.testing.assert_close(targets.sum(1), torch.ones(3))


def test_distribution_of_the_share():
    shares = torch.tensor([mixup.draw_share(0.8) for _ in range(3000)])
    assert abs(shares.mean() - 0.5) < 0.02
    # The variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert abs(shares.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01


def test_cutmix_targets_are_shares_of_pixels():
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 20, 30)
    before = images.clone()
    shares = set()
    for _ in range(20):
        mixed, targets = BatchMix(mixup=0)(images, torch.arange(4), 4)
        torch.testing.assert_close(mixed.mean((2, 3)), targets)
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}
        shares.add(round(targets.diagonal().min().item(), 3))
    assert len(shares) > 5
    assert torch.equal(images, before)


def test_cutmix_rectangle_has_the_aspect_of_the_image(monkeypatch):
    monkeypatch.setattr(torch, 'randint', lambda high, size: torch.tensor(high // 2))
    black, white = torch.zeros(1, 1, 40, 80), torch.ones(1, 1, 40, 80)
    pasted, kept = cut_and_paste(black, white, 0.75)
    assert pasted.sum(2).max() == 20
    assert pasted.sum(3).max() == 40
    assert kept == 0.75
    assert cut_and_paste(black, white, 1.0)[1] == 1


def test_switch_prob():
    def blends(switch_prob):
        mix = BatchMix(switch_prob=switch_prob)
        return sum(not mix._cuts() for _ in range(200))

    assert blends(0) == 200
    assert blends(1) == 0
    assert 60 < blends(0.5) < 140


def test_the_loss_of_a_mixed_batch(images, monkeypatch):
    monkeypatch.setattr(mixup, 'draw_share', lambda alpha: 0.5)
    model = classifier(mix=dict(mixup=0.8, cutmix=0), label_smoothing=0.0).eval()
    loss = model(images, samples(0, 1, 2), mode='loss')['loss']
    assert loss > 0
    assert not torch.allclose(loss, F.cross_entropy(model(images), torch.arange(3)))


# Checkpoints


@pytest.fixture
def trained(tmp_path):
    model = randomise(classifier())
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'ours.pth')
    torch.save({'model': release(model)}, tmp_path / 'release.pth')
    torch.save({'state_dict': mmpretrain(model)}, tmp_path / 'mmpretrain.pth')
    return model


def test_checkpoint_loads_into_a_dense_backbone_with_other_windows(trained, tmp_path, images):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.pth'))
    dense = MODELS.build(dict(TINY, focal_windows=9, init_cfg=init_cfg))
    dense.init_weights()
    torch.testing.assert_close(dense.eval()(images)[3], trained.backbone(images)[0])


@pytest.mark.parametrize('name', ['ours.pth', 'release.pth', 'mmpretrain.pth'])
def test_complete_classifier_loads(trained, tmp_path, images, name):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / name))
    model = classifier(windows=5, init_cfg=init_cfg).eval()
    torch.testing.assert_close(model(images), trained(images))


@pytest.mark.parametrize('name', ['ours.pth', 'release.pth', 'mmpretrain.pth'])
def test_mmengine_loads_by_names(trained, tmp_path, images, name):
    model = classifier().eval()
    load_checkpoint(model, str(tmp_path / name), strict=True)
    torch.testing.assert_close(model(images), trained(images))
    for theirs in (release(trained), mmpretrain(trained)):
        assert set(model.rename(theirs)) == set(model.state_dict())


def test_another_number_of_classes_needs_a_new_head(trained, tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'release.pth'))
    with pytest.raises(CheckpointError, match=r'release.pth.* 5 .* 7'):
        classifier(7, init_cfg=init_cfg)
    backbone = dict(TINY, out_indices=[3], init_cfg=init_cfg)
    model = FocalNetClassifier(backbone, num_classes=7)
    model.init_weights()
    torch.testing.assert_close(
        model.backbone.layers[0].blocks[0].mlp.fc1.weight,
        trained.backbone.layers[0].blocks[0].mlp.fc1.weight,
    )


def test_checkpoint_without_head_raises(tmp_path):
    torch.save(MODELS.build(dict(TINY, out_indices=[3])).state_dict(), tmp_path / 'dense.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'dense.pth'))
    with pytest.raises(CheckpointError, match=r'head.weight, head.bias'):
        classifier(init_cfg=init_cfg)


def test_check_pretrained_works_on_the_meta_device(trained, tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'release.pth'))
    cfg = dict(type='FocalNetClassifier', backbone=dict(TINY, out_indices=[3]))
    with torch.device('meta'):
        MODELS.build(dict(cfg, num_classes=5, init_cfg=init_cfg)).check_pretrained()
        wrong = MODELS.build(dict(cfg, num_classes=6, init_cfg=init_cfg))
    with pytest.raises(CheckpointError, match=r' 5 .* 6'):
        wrong.check_pretrained()


def test_classifier_of_transformers_loads(tmp_path, images):
    transformers = pytest.importorskip('transformers')
    config = transformers.FocalNetConfig(
        embed_dim=8, depths=[1, 1, 1, 1], focal_levels=[2] * 4, focal_windows=[3] * 4,
        hidden_sizes=[8, 16, 32, 64], num_labels=5,
    )  # fmt: skip
    theirs = randomise(transformers.FocalNetForImageClassification(config))
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'theirs.pth'))
    ours = classifier(init_cfg=init_cfg).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-4, rtol=1e-4)


def test_norms_and_biases_do_not_decay():
    from mmengine.optim import build_optim_wrapper

    cfg = Config.fromfile(CONFIGS / 'imagenet/focalnet_t.py')
    model = classifier()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(group['params'][0]): group['weight_decay'] for group in wrapper.param_groups}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim == 1 else 0.05), name
