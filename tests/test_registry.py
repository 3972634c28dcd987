"""Importing twice, and living beside other classes of the same name."""

import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, DefaultScope
from torch import nn

import mmfocalnet
from mmfocalnet.cli.runner import check_model
from mmfocalnet.errors import ConfigError
from mmfocalnet.registry import register, warn_if_shadowed


@pytest.fixture
def namesake(monkeypatch):
    """A class like that of mmdet's project XDecoder, in mmdet's registry."""
    from mmdet.registry import MODELS as MMDET_MODELS

    class FocalNet(nn.Module):
        pass

    FocalNet.__module__ = 'projects.XDecoder.xdecoder'
    monkeypatch.setitem(MMDET_MODELS._module_dict, 'FocalNet', FocalNet)
    return FocalNet


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    texts = []
    monkeypatch.setattr(
        'mmfocalnet.registry.print_log', lambda text, **settings: texts.append(text)
    )
    return texts


def test_a_shadowing_class_is_reported_and_the_scope_selects_ours(namesake, said):
    tiny = dict(embed_dim=8, depths=[1])
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(MODELS.build(dict(type='FocalNet'))) is namesake
        assert type(MODELS.build(dict(type='mmengine.FocalNet', **tiny))) is mmfocalnet.FocalNet
    warn_if_shadowed()
    [text] = said
    assert "In mmdet's configs type='FocalNet' is that of projects.XDecoder.xdecoder" in text
    assert "type='mmengine.FocalNet'" in text


def test_tools_warn_before_building(namesake, said):
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='mmengine.FocalNet', embed_dim=8, depths=[1]),
        )
    )
    check_model(cfg)
    assert len(said) == 1


def test_no_warning_without_a_shadowing_class(said):
    import mmdet.models  # noqa: F401

    warn_if_shadowed()
    assert not said


def test_another_class_of_the_name_in_the_root_is_refused(monkeypatch):
    class CheckLabelsHook:
        pass

    CheckLabelsHook.__module__ = 'elsewhere'
    monkeypatch.setitem(HOOKS._module_dict, 'CheckLabelsHook', CheckLabelsHook)
    with pytest.raises(ConfigError, match=r'elsewhere.*CheckLabelsHook'):
        register(HOOKS)(mmfocalnet.CheckLabelsHook)


AFRESH = """
import sys
import mmfocalnet
from mmengine.registry import MODELS

first = mmfocalnet.FocalNet(embed_dim=8, depths=[1])
for name in [name for name in sys.modules if name.split('.')[0] == 'mmfocalnet']:
    del sys.modules[name]
import mmfocalnet as again

assert again is not mmfocalnet or again.FocalNet is not type(first)
second = MODELS.build(dict(type='FocalNet', embed_dim=8, depths=[1]))
assert type(second) is again.FocalNet
second.load_state_dict(first.state_dict())
"""


def test_a_second_import_is_harmless():
    """As notebooks and reloaders do it: all modules afresh."""
    result = subprocess.run([sys.executable, '-c', AFRESH], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
