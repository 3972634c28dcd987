"""Invalid config files end in an error message that names the file and the fault."""

import inspect
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from mmengine.registry import MODELS, DefaultScope

from mmfocalnet.cli.config_flags import load_config
from mmfocalnet.cli.error_handling import RunError, report_errors
from mmfocalnet.cli.run_errors import run_errors
from mmfocalnet.cli.runner import check_model
from mmfocalnet.cli.strategy_checks import check_strategy
from mmfocalnet.config import override
from mmfocalnet.config_writing.base_config import read_base
from mmfocalnet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def load(path, **options):
    return load_config(
        Namespace(
            config=str(path), cfg_options=options, work_dir=None, launcher='none', local_rank=0
        )
    )


def check(path, **options):
    """The checks before a run."""
    cfg = load(path, **options)
    check_strategy(cfg)
    check_model(cfg)


@pytest.fixture
def config(tmp_path):
    """Write a config that inherits one of the demos."""

    def write(text, base='mask_rcnn', name='config.py'):
        path = tmp_path / name
        inherited = f'_base_ = {str(ROOT / f"configs/demo/{base}.py")!r}\n' if base else ''
        path.write_text(inherited + text)
        return path

    return write


@pytest.mark.parametrize('base', ['mask_rcnn', 'atss', 'upernet'])
def test_the_demos_pass(config, base):
    check(config('', base))


# The text of the config, and key tokens of the error message.
MISTAKES = {
    'unknown arch': ("model = dict(backbone=dict(arch='tiny_lfr'))", 'tiny_lfr', 'tiny_lrf'),
    'unknown argument': (
        'model = dict(backbone=dict(embed_dims=8))', 'embed_dims', "'embed_dim'", 'config.py',
    ),
    'another unknown argument': (
        'model = dict(backbone=dict(focal_window=9))', "'focal_window'", "'focal_windows'",
    ),
    'argument like no other': ('model = dict(backbone=dict(zzz=1))', "'zzz'", 'config.py'),
    'misspelt backbone': (
        "model = dict(backbone=dict(type='FocalNett'))", 'FocalNett', "'FocalNet'",
    ),
    'number as mixer': ('model = dict(backbone=dict(mixer=3))', 'mixer', '3'),
    'text as depths': ("model = dict(backbone=dict(depths='2222'))", 'depths', '2222'),
    'no model': ('model = None', 'model', 'None', 'config.py'),
    'text as model': ("model = 'FocalNet'", 'model', "'FocalNet'"),
    'list as model': ('model = [1]', 'model', '[1]'),
    'syntax error': ('model = dict(', 'config.py', 'SyntaxError'),
    'undefined name': ('model = nonsense', 'config.py', 'nonsense'),
    'exception': ('1 / 0', 'config.py', 'ZeroDivisionError'),
    'exit': ('raise SystemExit', 'config.py', 'sys.exit()'),
    'missing import': ("custom_imports = dict(imports=['no_such_package'])", 'no_such_package'),
}  # fmt: skip


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_that_the_checks_find(config, name):
    text, *tokens = MISTAKES[name]
    with pytest.raises(ConfigError) as error:
        check(config(text))
    assert all(token in str(error.value) for token in tokens), error.value


# Found when MMEngine builds the model.
MISSPELT = {
    'argument of a neck': ('neck=dict(out_chanels=1)', 'out_chanels', 'out_channels'),
    'class': ("backbone=dict(type='FocalNett')", 'FocalNett', 'FocalNet'),
    'class of mmdet': ("type='MaskRCNNN'", 'MaskRCNNN', 'MaskRCNN'),
    'class like no other': ("type='Zzz'", 'Zzz', 'config.py'),
}


@pytest.mark.parametrize('name', MISSPELT)
def test_misspelt_names_are_reported_with_the_nearest(config, name):
    text, *tokens = MISSPELT[name]
    cfg = load(config(f'model = dict({text})'))
    with (
        pytest.raises(ConfigError) as error,
        run_errors(cfg),
        DefaultScope.overwrite_default_scope('mmdet'),
    ):
        MODELS.build(cfg.model)
    assert all(repr(token) in str(error.value) or token == 'config.py' for token in tokens)
    assert 'config.py' in str(error.value)


def test_other_errors_of_building_keep_their_traceback(config):
    cfg = load(config('model = dict(neck=[1, 2])'))
    with (
        pytest.raises(RunError) as error,
        run_errors(cfg),
        DefaultScope.overwrite_default_scope('mmdet'),
    ):
        MODELS.build(cfg.model)
    assert isinstance(error.value.__cause__, TypeError)


UNREADABLE = {
    'orphan.py': "_base_ = './gone.py'",
    'three.py': '_base_ = 3',
    'config.txt': '',
    'empty.py': '',
    'list.json': '[1]',
    'cut.json': '{"model": ',
}


@pytest.mark.parametrize('name', UNREADABLE)
def test_files_that_are_not_configs(config, name):
    path = config(UNREADABLE[name], None, name)
    with pytest.raises(ConfigError, match=name):
        check(path)


@pytest.mark.parametrize('base', ['a.py', 'b.py'])
def test_configs_that_inherit_from_themselves(config, base):
    config("_base_ = './a.py'", None, 'b.py')
    path = config(f"_base_ = './{base}'", None, 'a.py')
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)  # each level reads the file
    try:
        with pytest.raises(ConfigError, match=r'a\.py.*_base_'):
            check(path)
    finally:
        sys.setrecursionlimit(limit)


def test_a_binary_file(tmp_path):
    (tmp_path / 'binary.py').write_bytes(bytes(range(256)) * 10)
    with pytest.raises(ConfigError, match=r'binary\.py'):
        check(tmp_path / 'binary.py')


@pytest.mark.parametrize('name', ['', 'gone.py', 'x' * 5000, 'a\0b.py', '/dev/zero'])
def test_missing_files(tmp_path, name):
    with pytest.raises(ConfigError, match='There is no config file'):
        check(f'{tmp_path}/{name}' if name != '/dev/zero' else name)


@pytest.mark.parametrize('heir', [None, "_base_ = './config.yaml'", "_base_ = ['config.yml']"])
def test_yaml_runs_no_code(tmp_path, config, heir):
    text = f"model: !!python/object/apply:os.mkdir ['{tmp_path}/ran']"
    for name in ('config.yaml', 'config.yml'):
        path = config(text, None, name)
    path = config(heir, None, 'heir.py') if heir else path
    with pytest.raises(ConfigError, match='python/object/apply'):
        check(path)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('kind', ['./data/x.y.z', '.a.b', '...', 'a..b.c'])
def test_types_that_are_not_names(config, kind):
    check(config(f'extra = dict(type={kind!r})'))


def test_yaml_aliases_are_counted(config):
    bomb = 'a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n' + ''.join(
        f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 9)
    )
    for text in (bomb, 'a: &a [*a]'):
        with pytest.raises(ConfigError, match='aliases'):
            check(config(text, None, 'bomb.yaml'))
    with pytest.raises(ConfigError, match='unhashable'):
        check(config(f'{bomb}? *a8\n: key\n', None, 'key.yaml'))


def test_repeated_keys_of_yaml_are_refused(config):
    with pytest.raises(ConfigError, match=r"'size' is repeated.*line 3"):
        check(config('size: 1\nother: 2\nsize: 3', None, 'repeated.yaml'))
    merged = 'a: &a {size: 1}\nb: &b {<<: *a, size: 2}\nmodel: {<<: *b, <<: *a, size: 3, type: X}'
    assert load(config(merged, None, 'merged.yaml')).model.size == 3


def test_numbers_of_yaml_need_no_point(config):
    numbers, texts = '[5e-4, 1.0e5, -2E+3, .5e1, 5., 7]', '["5e-4", e4, 5e, 1e4f]'
    text = f'model: {{type: X, numbers: {numbers}, texts: {texts}}}'
    model = load(config(text, None, 'numbers.yaml')).model
    assert model.numbers == [5e-4, 1e5, -2e3, 5.0, 5.0, 7]
    assert model.texts == ['5e-4', 'e4', '5e', '1e4f']


def test_yaml_and_json_are_read(config):
    base = str(ROOT / 'configs/demo/mask_rcnn.py')
    for path in (
        config(f'_base_: {base}\nsize: !!python/tuple [1, 2]', None, 'config.yaml'),
        config(f'{{"_base_": "{base}", "size": [1, 2]}}', None, 'config.json'),
    ):
        check(path)
        assert tuple(load(path).size) == (1, 2)


@pytest.mark.parametrize(
    'name, near',
    [('optim_wraper', 'optim_wrapper'), ('train_cgf', 'train_cfg'), ('stratgy', 'strategy')],
)
def test_overrides_of_misspelt_settings(config, name, near):
    with pytest.raises(ConfigError, match=f"'{name}'.*'{near}'"):
        load(config(''), **{f'{name}.key': 1})
    # A variable of the config, which a hook may read, or a key that is not similar to a setting.
    assert load(config(f'{name} = dict(key=0)'), **{f'{name}.key': 1})[name].key == 1
    assert load(config(''), **{'own_hook.key': 1, 'strategy.type': 'X'}).own_hook.key == 1


@pytest.mark.parametrize(
    'key, copy',
    [
        ('data_root', 'train_dataloader.dataset.data_root'),
        ('train_pipeline.0.to_float32', 'train_dataloader.dataset.pipeline'),
        ('max_epochs', 'train_cfg.max_epochs'),
        ('num_classes', 'model.roi_head.bbox_head.num_classes'),
    ],
)
def test_overrides_of_what_is_not_a_setting(config, key, copy):
    code = """
data_root = 'data/cells/'
train_pipeline = [dict(type='LoadImageFromFile')]
max_epochs = 12
train_dataloader = dict(dataset=dict(data_root=data_root, pipeline=train_pipeline))
train_cfg = dict(_delete_=True, max_epochs=max_epochs)
"""
    with pytest.raises(ConfigError, match=f'{key.partition(".")[0]} is.*{copy}'):
        load(config(code), **{key: 1})
    load(config(code), **{key: 1, copy: 1})


def test_overrides_of_inherited_variables():
    with pytest.raises(
        ConfigError, match=r'train_pipeline is.*train_dataloader\.dataset\.pipeline'
    ):
        override(read_base('mmdet::atss/atss_r50_fpn_1x_coco'), {'train_pipeline.2.scale': (9, 9)})


def test_overrides_that_hooks_or_tools_read(config):
    code = """
steps = 12
tta_pipeline = [dict(type='LoadImageFromFile')]
test_dataloader = dict(dataset=dict(pipeline=tta_pipeline))
"""
    options = {'steps': 1, 'own_key': 2, 'tta_pipeline.0.to_float32': True, 'compile': False}
    cfg = load(config(code), **options)
    assert (cfg.steps, cfg.own_key, cfg.tta_pipeline[0].to_float32) == (1, 2, True)


@pytest.mark.parametrize(
    'options', [{'model': None}, {'model.backbone.depths.7': 1}, {'model.': 1}]
)
def test_overrides_that_cannot_be_applied(config, options):
    with pytest.raises(ConfigError, match='model'):
        check(config(''), **options)


def test_an_unexpected_error_keeps_its_traceback(capsys):
    @report_errors
    def main():
        raise TypeError('unexpected')

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3
    text = capsys.readouterr().err
    assert 'Traceback' in text and 'unexpected' in text


@pytest.mark.parametrize('name', ['unknown argument', 'no model', 'syntax error'])
def test_the_tool_prints_one_message_and_writes_nothing(config, tmp_path, monkeypatch, tool, name):
    from mmfocalnet.datasets import make_shapes

    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path / 'data/shapes', 2, 2, size=64)
    text, *tokens = MISTAKES[name]
    code, _, error = tool('train', config(text))
    assert code == 2, error
    assert 'Traceback' not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith('train.py: ') and all(token in last for token in tokens)
    assert not (tmp_path / 'work_dirs').exists()
