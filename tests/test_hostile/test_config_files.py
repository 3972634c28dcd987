"""Configs with anything wrong in them end in one sentence that names what it is."""

from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from said import said_by

from mmfocalnet.cli import check_model, check_strategy, load_config, report_errors
from mmfocalnet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
BASES = ('mask_rcnn', 'atss', 'upernet')
# As Python text, for a config is Python.
JUNK = (
    *('None', '0', '-1', '3.5', 'True', "''", "'x'", "b'x'", '[]', '[None]', '{}', '()', 'dict'),
    *("dict(type='FocalNet')", "dict(type='x')", 'dict(type=3)', '[dict()]', "float('nan')"),
    *('10**9', "dict(type='FPN')", '[[1]]', "['a', 'b']", 'object()', 'range(3)', 'len'),
)


def flags(path, **options):
    return Namespace(
        config=str(path), cfg_options=options, work_dir=None, launcher='none', local_rank=0
    )


def said_of(path, **options):
    """The sentence about a config, or None where its model can be built."""

    def build():
        cfg = load_config(flags(path, **options))
        check_strategy(cfg)
        check_model(cfg)

    return said_by(build)


@pytest.fixture
def config(tmp_path):
    """Write a config that inherits one of the demos."""

    def write(text, base='mask_rcnn', name='config.py'):
        path = tmp_path / name
        inherited = f'_base_ = {str(ROOT / f"configs/demo/{base}.py")!r}\n' if base else ''
        path.write_text(inherited + text)
        return path

    return write


def test_the_demos_are_sound(config, count):
    for base in BASES:
        count()
        assert said_of(config('', base)) is None


MODEL_KEYS = {
    'mask_rcnn': ('backbone', 'neck', 'rpn_head', 'roi_head', 'train_cfg', 'test_cfg', 'type'),
    'atss': ('backbone', 'neck', 'bbox_head', 'data_preprocessor', 'type'),
    'upernet': ('backbone', 'decode_head', 'auxiliary_head', 'data_preprocessor', 'type'),
}


@given(data=st.data())
def test_junk_for_a_part_of_the_model(config, data, count):
    count()
    base = data.draw(st.sampled_from(BASES))
    key = data.draw(st.sampled_from(MODEL_KEYS[base]))
    junk = data.draw(st.sampled_from(JUNK))
    # A dict would be merged into the one it inherits.
    text = f'{{**{junk}, "_delete_": True}}' if junk.startswith(('dict(', '{')) else junk
    said_of(config(f'model = dict({key}={text})', base))


SETTINGS = {
    'backbone': ('embed_dim', 'depths', 'focal_levels', 'mixer', 'arch', 'init_cfg', 'out_indices'),
    'neck': ('in_channels', 'out_channels', 'num_outs', 'type', 'norm_cfg', 'nonsense'),
    'rpn_head': ('in_channels', 'feat_channels', 'anchor_generator', 'loss_cls', 'type'),
    'roi_head': ('bbox_head', 'mask_head', 'bbox_roi_extractor', 'type', 'nonsense'),
}


@given(data=st.data())
def test_junk_for_a_setting_of_a_part(config, data, count):
    count()
    part = data.draw(st.sampled_from(sorted(SETTINGS)))
    key = data.draw(st.sampled_from(SETTINGS[part]))
    junk = data.draw(st.sampled_from(JUNK))
    text = f'{{**{junk}, "_delete_": True}}' if junk.startswith(('dict(', '{')) else junk
    said_of(config(f'model = dict({part}=dict({key}={text}))'))


@given(data=st.data())
def test_junk_at_the_top(config, data, count):
    count()
    keys = st.sampled_from(['model', 'strategy', 'runner_type', 'default_scope', 'work_dir', 'x'])
    said_of(config(f'{data.draw(keys)} = {data.draw(st.sampled_from(JUNK))}'))


@given(data=st.data())
def test_a_config_that_was_damaged(config, data, count):
    count()
    text = (ROOT / 'configs/demo/mask_rcnn.py').read_text()
    text = text.replace("'../", f"'{ROOT}/configs/")
    place = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 30))
    # No letters or digits: what is put in must not come to be an endless loop, nor a call.
    put_in = data.draw(st.text('()[]{}=,:\'"#\\\n\t ü\0', max_size=4))
    said_of(config(text[:place] + put_in + text[place + length :], base=None))


# Text of the config, what it inherits, what must be said.
MISTAKES = {
    'a misspelt arch': (
        "model = dict(backbone=dict(arch='tiny_lfr'))",
        "Unknown arch 'tiny_lfr': did you mean 'tiny_lrf'",
    ),
    'a misspelt argument': (
        'model = dict(backbone=dict(embed_dims=8))',
        "unexpected keyword argument 'embed_dims'): did you mean 'embed_dim'.",
    ),
    'another misspelt argument': (
        'model = dict(backbone=dict(focal_window=9))',
        "did you mean 'focal_windows'.",
    ),
    'an unknown argument': ('model = dict(backbone=dict(zzz=1))', "argument 'zzz'): correct that"),
    'a misspelt argument of a neck': (
        'model = dict(neck=dict(out_chanels=1))',
        "did you mean 'out_channels'.",
    ),
    'a misspelt class': (
        "model = dict(backbone=dict(type='FocalNett'))",
        "did you mean 'FocalNet'.",
    ),
    'a misspelt class of mmdet': ("model = dict(type='MaskRCNNN')", "did you mean 'MaskRCNN'."),
    'an unknown class of a module': ("model = dict(type='mmdet.models.Zzz')", 'mmdet.models.Zzz'),
    'an unknown class': ("model = dict(type='Zzz')", 'Zzz is not in the'),
    'text for a backbone': ("model = dict(backbone='FocalNet')", 'model of'),
    'a list for a neck': ('model = dict(neck=[1, 2])', 'model of'),
    'a class that is no model': ('model = dict(type=dict)', 'makes a dict: name a detector'),
    'no model': ('model = None', 'must be a dict with a type, got None'),
    'text for a model': ("model = 'FocalNet'", "must be a dict with a type, got 'FocalNet'"),
    'a list for a model': ('model = [1]', 'must be a dict with a type, got [1]'),
    'no syntax': ('model = dict(', 'cannot be read as a config (SyntaxError'),
    'an unknown name': ('model = nonsense', "name 'nonsense' is not defined"),
    'an error': ('1 / 0', 'ZeroDivisionError'),
    'an end': ('raise SystemExit', 'sys.exit()'),
    'a missing import': ("custom_imports = dict(imports=['no_such_package'])", 'no_such_package'),
    'a number for a mixer': ('model = dict(backbone=dict(mixer=3))', 'There is no mixer 3'),
    'text for depths': ("model = dict(backbone=dict(depths='2222'))", 'depths must list'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_named(config, name, count):
    count()
    text, message = MISTAKES[name]
    said = said_of(config(text))
    assert message in said


def test_files_that_are_no_configs(tmp_path, config, count):
    itself = config("_base_ = './itself.py'", base=None, name='itself.py')
    a, b = (config(f"_base_ = './{other}.py'", None, f'{me}.py') for me, other in ('ab', 'ba'))
    binary = tmp_path / 'binary.py'
    binary.write_bytes(bytes(range(256)) * 10)
    other = config('', None, 'config.txt')
    for path, message in {
        itself: 'itself.py cannot be read as a config: it inherits from itself',
        a: 'a.py cannot be read as a config: it inherits from itself',
        b: 'correct its _base_',
        config("_base_ = './gone.py'", None, 'orphan.py'): 'gone.py',
        config('_base_ = 3', None, 'three.py'): 'three.py cannot be read as a config',
        binary: 'binary.py cannot be read as a config',
        other: 'config.txt cannot be read as a config',
        config('', None, 'empty.py'): 'empty.py has no model',
        config('[1]', None, 'list.json'): 'list.json cannot be read as a config',
        config('{"model": ', None, 'cut.json'): 'cut.json cannot be read as a config',
        tmp_path: 'There is no config file',
        tmp_path / 'gone.py': 'There is no config file',
        tmp_path / ('x' * 5000): 'There is no config file',
        'a\0b.py': 'There is no config file',
        '/dev/zero': 'There is no config file',
    }.items():
        count()
        assert message in said_of(path), path


@pytest.mark.parametrize('heir', [None, "_base_ = './config.yaml'", "_base_ = ['config.yml']"])
def test_yaml_runs_no_code(tmp_path, config, heir):
    text = f"model: !!python/object/apply:os.mkdir ['{tmp_path}/ran']"
    for name in ('config.yaml', 'config.yml'):
        path = config(text, None, name)
    path = config(heir, None, 'heir.py') if heir else path
    assert 'python/object/apply' in said_of(path)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('kind', ['./data/x.y.z', '.a.b', '...', 'a..b.c'])
def test_types_that_are_no_names(config, kind):
    assert said_of(config(f'extra = dict(type={kind!r})')) is None


def test_yaml_aliases_are_counted(config):
    bomb = 'a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n' + ''.join(
        f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]\n' for n in range(1, 9)
    )
    for text in (bomb, 'a: &a [*a]'):
        assert 'aliases' in said_of(config(text, None, 'bomb.yaml'))


def test_yaml_and_json_are_read(config):
    base = str(ROOT / 'configs/demo/mask_rcnn.py')
    for path in (
        config(f'_base_: {base}\nsize: !!python/tuple [1, 2]', None, 'config.yaml'),
        config(f'{{"_base_": "{base}", "size": [1, 2]}}', None, 'config.json'),
    ):
        assert said_of(path) is None
        assert tuple(load_config(flags(path)).size) == (1, 2)


def test_options_that_do_not_fit(config, count):
    for options in ({'model': None}, {'model.backbone': 3}, {'model.backbone.depths.7': 1}):
        count()
        assert said_of(config(''), **options)


def test_a_bug_keeps_its_traceback(capsys):
    @report_errors
    def main():
        raise TypeError('of our own')

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 3
    assert 'Traceback' in (said := capsys.readouterr().err) and 'of our own' in said


def test_a_class_that_stumbles_is_told_with_its_place(config, count):
    count()
    with pytest.raises(
        ConfigError, match=r'model of .*config.py does not fit .* in .*\.py, line \d+'
    ):
        check_model(load_config(flags(config('model = dict(roi_head=dict(bbox_head=[1]))'))))


@pytest.mark.parametrize(
    'name',
    [
        'a misspelt argument',
        'text for a backbone',
        'no model',
        'no syntax',
        'a misspelt class',
    ],
)
def test_the_tool_ends_with_that_sentence(config, tmp_path, monkeypatch, tool, name, count):
    from mmfocalnet.datasets import make_shapes

    count()
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path / 'data/shapes', 2, 2, size=64)
    text, message = MISTAKES[name]
    code, _, error = tool('train', config(text))
    assert code == 2, error
    assert 'Traceback' not in error
    last = error.strip().splitlines()[-1]
    assert last.startswith('train.py: ') and message in last
    assert not (tmp_path / 'work_dirs').exists()
