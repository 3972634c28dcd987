"""No tool unpickles unsafe content, each checkpoint is read once, checked content is used."""

import http.server
import shutil
import threading

import pytest
import torch
from forked_tools import ROOT
from mmengine.config import Config, DictAction
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmfocalnet.checkpoints import CheckpointError, read, safe_load
from mmfocalnet.cli import runner as runs
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.visualization.gallery import make_gallery

CONFIG = ROOT / 'configs/demo/mask_rcnn.py'


class Code:
    """Unpickling it creates a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), 'w'))


@pytest.fixture
def mark(tmp_path):
    """The file that unpickled code would create."""
    path = tmp_path / 'code_ran'
    yield path
    assert not path.exists()


@pytest.fixture
def bomb(mark, tmp_path):
    path = tmp_path / 'bomb.pth'
    torch.save({'state_dict': {}, 'meta': Code(mark)}, path)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub/checkpoints'


@pytest.fixture
def changing_server(hub):
    """A server that sends each of several files once; yields it as a function, and its requests."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = answers.pop(0)
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()

        def serve(*files):
            answers[:] = [file.read_bytes() for file in files]
            return f'http://127.0.0.1:{httpd.server_port}/iter_2.pth'

        yield serve, asked
        httpd.shutdown()


@pytest.fixture
def start(tool, tiny_options, tmp_path):
    """Run train.py or test.py on the tiny dataset; returns exit code, stdout and stderr."""

    def run(name, *arguments, options=()):
        flags = ['--work-dir', tmp_path / 'work']
        return tool(name, CONFIG, *arguments, *flags, '--cfg-options', *tiny_options, *options)

    return run


# One iteration without validation; the checkpoint has two.
SHORT = ['train_cfg.max_iters=1', 'train_cfg.val_begin=9']
RESUMED = ['train_cfg.max_iters=3', 'train_cfg.val_begin=9']


def test_each_tool_downloads_a_url_once(start, trained, bomb, changing_server):
    serve, asked = changing_server
    url = serve(trained, bomb)
    code, out, error = start('test', url)
    assert code == 0 and 'coco/bbox_mAP' in out, error
    code, out, error = start('train', '--resume', url, options=RESUMED)
    assert code == 0 and 'Iter(train) [3/3]' in out, error
    assert len(asked) == 1


def test_a_cached_file_of_the_same_name_is_not_used(start, trained, bomb, changing_server, hub):
    serve, asked = changing_server
    hub.mkdir(parents=True)
    shutil.copy(bomb, hub / 'iter_2.pth')
    code, _, error = start('test', serve(trained))
    assert code == 0, error
    assert asked


def test_a_link_changed_after_the_checks_is_not_followed_again(
    start, trained, bomb, tmp_path, monkeypatch
):
    link = tmp_path / 'link.pth'
    link.symlink_to(trained)
    build = runs.Runner.from_cfg

    def replace_link(cfg):
        link.unlink()
        link.symlink_to(bomb)
        return build(cfg)

    monkeypatch.setattr(runs.Runner, 'from_cfg', replace_link)
    code, out, error = start('train', options=[f'load_from={link}', *SHORT])
    assert code == 0 and f'Load checkpoint from {link}' in out, error


def test_train_test_and_resume_read_each_checkpoint_once(start, trained, tmp_path, loads):
    pretrained = tmp_path / 'pretrained.pth'
    state = safe_load.load_file(trained).content['state_dict']
    backbone = {k.removeprefix('backbone.'): v for k, v in state.items() if 'backbone.' in k}
    torch.save(backbone, pretrained)
    loads.clear()
    init = [
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={pretrained}',
    ]
    assert start('train', options=[f'load_from={trained}', *init, *SHORT])[0] == 0
    assert loads == {'pretrained.pth': 1, 'iter_2.pth': 1}
    loads.clear()
    assert start('train', '--resume', trained, options=RESUMED)[0] == 0
    assert start('test', trained)[0] == 0
    assert loads == {'iter_2.pth': 2}


def test_other_tools_read_a_checkpoint_once(tool, trained, shapes, tiny_options, tmp_path, loads):
    image = shapes / 'coco/val2017/000000100001.jpg'
    options = ['--cfg-options', *tiny_options]
    commands = [
        ('infer', image, CONFIG, trained, '--out', tmp_path / 'out', *options),
        ('visualize', image, CONFIG, trained, '--out', tmp_path / 'maps', *options),
        ('inspect_checkpoint', trained),
        ('convert_checkpoint', trained, tmp_path / 'new.pth', '--to', 'ours'),
    ]
    for command in commands:
        loads.clear()
        code, _, error = tool(*command)
        assert code == 0, error
        assert loads == {'iter_2.pth': 1}, command


def test_the_gallery_of_the_report_reads_a_checkpoint_once(trained, tiny_options, loads):
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(evaluated(tiny_options))
    gallery = make_gallery(trained.parent, cfg, 1)
    assert len(gallery.images) == 1, gallery.skipped
    assert loads == {'iter_2.pth': 1}


def evaluated(options):
    """Options of a command line as a dict."""
    pairs = dict(option.split('=') for option in options)
    return {key: DictAction._parse_iterable(value) for key, value in pairs.items()}


def test_loading_functions_of_mmdet_and_mmengine(trained, tiny_options, bomb, mark, loads):
    from mmdet.apis import init_detector

    options = evaluated(option for option in tiny_options if option.startswith('model.'))
    init_detector(str(CONFIG), str(trained), device='cpu', cfg_options=options)
    with pytest.raises(CheckpointError, match=r'bomb\.pth'):
        init_detector(str(CONFIG), str(bomb), device='cpu', cfg_options=options)
    with pytest.raises(CheckpointError, match=r'bomb\.pth'):
        load_checkpoint(nn.Linear(1, 1), str(bomb))


def test_all_schemes_of_mmengine_are_replaced():
    """Includes schemes that later versions of MMEngine add."""
    modules = {prefix: loader.__module__ for prefix, loader in CheckpointLoader._schemes.items()}
    others = {
        prefix
        for prefix, module in modules.items()
        if module != 'mmfocalnet.checkpoints.url_schemes'
    }
    assert not others


@pytest.mark.parametrize('scheme', ['open-mmlab', 'openmmlab', 'mmcls'])
def test_model_zoos(scheme, trained, bomb, tmp_path, monkeypatch):
    from mmfocalnet.checkpoints import url_schemes

    for file, code in ((trained, False), (bomb, True)):
        monkeypatch.setitem(url_schemes._ZOOS, scheme, lambda file=file: {'net': str(file)})
        monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
        if code:
            with pytest.raises(CheckpointError, match=r'bomb\.pth'):
                CheckpointLoader.load_checkpoint(f'{scheme}://net')
        else:
            assert CheckpointLoader.load_checkpoint(f'{scheme}://net')['state_dict']
    with pytest.raises(CheckpointError, match='none'):
        CheckpointLoader.load_checkpoint(f'{scheme}://none')


def test_storages(trained, bomb, monkeypatch):
    from mmfocalnet.checkpoints import url_schemes

    class Storage:
        def get(self, name):
            return (bomb if 'bomb' in name else trained).read_bytes()

    monkeypatch.setattr(url_schemes, 'get_file_backend', lambda *_, **__: Storage())
    assert CheckpointLoader.load_checkpoint('s3://bucket/iter_2.pth')['state_dict']
    with pytest.raises(CheckpointError, match=r'bomb\.pth .*open'):
        CheckpointLoader.load_checkpoint('petrel:s3://bucket/bomb.pth')
    with pytest.raises(CheckpointError, match='pavi://x'):
        CheckpointLoader.load_checkpoint('pavi://x')


def test_resuming_does_not_run_a_config_in_the_checkpoint(start, trained, mark, tmp_path):
    content = safe_load.load_file(trained).content
    content['meta']['config'] = f"open({str(mark)!r}, 'w')"
    torch.save(content, tmp_path / 'iter_2.pth')
    code, out, error = start('train', '--resume', tmp_path / 'iter_2.pth', options=RESUMED)
    assert code == 0 and 'Iter(train) [3/3]' in out, error


INVALID_META = {
    'a number': 5,
    'none': None,
    'no epoch': dict(iter=2),
    'a negative epoch': dict(epoch=-1, iter=2),
    'a large iteration': dict(epoch=0, iter=2**62),
    'text as epoch': dict(epoch='1', iter=2),
    'a fraction as iteration': dict(epoch=0, iter=2.5),
}


@pytest.mark.parametrize('name', INVALID_META)
def test_invalid_metadata_cannot_be_resumed(trained, tmp_path, name):
    path = with_meta(trained, tmp_path, INVALID_META[name])
    with pytest.raises(CheckpointError, match=r'unusual\.pth.*meta'):
        load_initial_checkpoint(
            Config(dict(load_from=str(path), resume=True, work_dir=str(tmp_path)))
        )
    load_initial_checkpoint(Config(dict(load_from=str(path), work_dir=str(tmp_path))))


@pytest.mark.parametrize('seed', [-1, 2**40, 'x', True, [1]])
def test_invalid_seeds_are_ignored(trained, tmp_path, seed):
    path = with_meta(trained, tmp_path, dict(epoch=0, iter=2, seed=seed))
    cfg = Config(dict(load_from=str(path), resume=True, work_dir=str(tmp_path)))
    with read.cached_reads():
        load_initial_checkpoint(cfg)
        assert read.pop_cached(path).content['meta']['seed'] is None
    assert 'randomness' not in cfg


def test_invalid_metadata_in_test_and_resume(start, trained, tmp_path):
    path = with_meta(trained, tmp_path, 5)
    assert start('test', path)[0] == 0
    assert start('train', '--resume', path)[0] == 2
    content = safe_load.load_file(trained).content
    content['state_dict']['roi_head.bbox_head.fc_cls.bias'] = torch.ones(5, dtype=torch.int64)
    torch.save(content, path)
    code, _, error = start('train', '--resume', path)
    assert code == 2 and 'unusual.pth' in error and 'fc_cls.bias' in error
    path = with_meta(
        trained, tmp_path, dict(epoch=0, iter=2, seed='x', dataset_meta=[1], CLASSES=3)
    )
    code, out, error = start('train', '--resume', path, options=RESUMED)
    assert code == 0 and 'Iter(train) [3/3]' in out, error


def with_meta(trained, folder, meta):
    content = safe_load.load_file(trained).content
    torch.save({**content, 'meta': meta}, folder / 'unusual.pth')
    return folder / 'unusual.pth'


def test_reads_are_cached_in_the_context_only(trained):
    with read.cached_reads():
        first = read.load_once(trained)
        assert read.load_once(trained) is first
        with read.cached_reads():
            assert read.pop_cached(trained) is first
        assert read.load_once(trained) is not first
    assert read.load_once(trained) is not read.load_once(trained)
