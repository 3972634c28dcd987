"""Read checkpoints: safetensors, folders, Hugging Face ids, NaN and infinite weights, memory."""

import functools
import hashlib
import http.server
import io
import json
import subprocess
import sys
import threading

import pytest
import torch
from small_focalnet import SMALL

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import CheckpointError, check_finite, fetch, open_checkpoint
from mmfocalnet.models import load_pretrained

safetensors_torch = pytest.importorskip('safetensors.torch')
huggingface_hub = pytest.importorskip('huggingface_hub')


@pytest.fixture
def net():
    net = FocalNet(**SMALL)
    net.init_weights()
    return net


def equal(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[k], expected[k]) for k in state
    )


def test_safetensors_with_metadata(net, tmp_path):
    path = tmp_path / 'net.safetensors'
    safetensors_torch.save_file(net.state_dict(), path, {'format': 'pt', 'run': '7'})
    checkpoint = open_checkpoint(path)
    assert equal(checkpoint.state, net.state_dict())
    assert checkpoint.metadata == {'format': 'pt', 'run': '7'}


def test_the_format_is_detected_from_the_content(net, tmp_path):
    safetensors_torch.save_file(net.state_dict(), tmp_path / 'net.pth')
    assert equal(open_checkpoint(tmp_path / 'net.pth').state, net.state_dict())


@pytest.mark.parametrize('length', [0, 5, 8, 9, 100, 4000, -1])
def test_truncated_safetensors(net, tmp_path, length):
    content = safetensors_torch.save(net.state_dict())
    (tmp_path / 'short.safetensors').write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=r'bytes\) is truncated .*safetensors'):
        open_checkpoint(tmp_path / 'short.safetensors')


def test_changed_weights_are_found_by_their_checksum(net, tmp_path):
    path = tmp_path / 'net.pth'
    torch.save(net.state_dict(), path)
    content = bytearray(path.read_bytes())
    weight = net.patch_embed.proj.weight.detach().numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r'net\.pth is damaged'):
        open_checkpoint(path)


@pytest.mark.skipif(not hasattr(torch.serialization, 'set_crc32_options'), reason='PyTorch 2.6')
def test_checksums_are_optional(net, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net.state_dict(), tmp_path / 'net.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert equal(open_checkpoint(tmp_path / 'net.pth').state, net.state_dict())


@pytest.mark.fuzz
def test_damaged_safetensors_raise_one_line_errors(net, tmp_path):
    content = safetensors_torch.save(net.state_dict())
    refused = 0
    for place in range(0, 400, 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        (tmp_path / 'bad.safetensors').write_bytes(damaged)
        try:
            load_pretrained(FocalNet(**SMALL), tmp_path / 'bad.safetensors')
        except CheckpointError as error:
            assert '\n' not in str(error)
            assert 'bad.safetensors' in str(error)
            refused += 1
    assert refused > 30


def test_a_folder_needs_weights_and_a_valid_config(net, tmp_path):
    with pytest.raises(CheckpointError, match=r'model\.safetensors'):
        fetch(tmp_path)
    torch.save(net.state_dict(), tmp_path / 'pytorch_model.bin')
    assert fetch(tmp_path) == tmp_path / 'pytorch_model.bin'
    (tmp_path / 'config.json').write_text('{"a": 1}')
    assert open_checkpoint(tmp_path).metadata == {'config.json': {'a': 1}}
    (tmp_path / 'config.json').write_text('{"a"')
    with pytest.raises(CheckpointError, match=r'config\.json'):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_nonfinite_value_is_found(value, dtype):
    state = {'a': torch.zeros(3, 4, dtype=dtype), 'n': torch.tensor(3), 'none': torch.empty(0)}
    check_finite(state)
    state['a'][1, 2] = value
    with pytest.raises(CheckpointError, match=r'1 of 3 tensors \(a\)'):
        check_finite(state, 'net.pth')


def test_many_nonfinite_tensors_are_counted_and_ten_listed():
    state = {f'k{i}': torch.tensor([float('nan')]) for i in range(12)}
    with pytest.raises(CheckpointError, match=r'12 of 12 tensors \(k0, .*, k9 and 2 more\)'):
        check_finite(state)


def test_float8_weights_are_checked():
    state = {'a': torch.ones(3).to(torch.float8_e4m3fn)}
    check_finite(state)
    state = {'a': torch.tensor([1, float('nan'), 1]).to(torch.float8_e4m3fn)}
    with pytest.raises(CheckpointError, match=r'1 of 1 tensors \(a\)'):
        check_finite(state)


def test_large_values_are_finite():
    check_finite({'a': torch.full((1000,), 6e4, dtype=torch.float16)})
    check_finite({'a': torch.full((1000,), 3e38)})


def test_pretrained_weights_must_be_finite(net, tmp_path):
    net.layers[0].blocks[0].norm1.weight.data[0] = float('nan')
    torch.save(net.state_dict(), tmp_path / 'nan.pth')
    with pytest.raises(CheckpointError, match=r'nan\.pth .*layers\.0\.blocks\.0\.norm1\.weight'):
        load_pretrained(FocalNet(**SMALL), tmp_path / 'nan.pth')


# --- the Hugging Face hub, simulated by a local server -------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Pages of a hub for the real client; its requests are listed under None."""
    pages = {None: []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, with_body):
            pages[None].append(self.path)
            content = pages.get(self.path)
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header('X-Error-Code', 'EntryNotFound')
            else:
                self.send_header('ETag', f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header('X-Repo-Commit', 'a' * 40)
            self.send_header('Content-Length', str(len(content or b'')))
            self.end_headers()
            if with_body and content:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = functools.partial(
            huggingface_hub.hf_hub_download,
            endpoint=f'http://127.0.0.1:{server.server_port}',
            cache_dir=tmp_path / 'cache',
        )
        monkeypatch.setattr(huggingface_hub, 'hf_hub_download', client)
        yield pages
        server.shutdown()


def page(repository, name):
    return f'/{repository}/resolve/main/{name}'


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
@pytest.mark.parametrize('id_', ['microsoft/focalnet-small', 'hf://microsoft/focalnet-small'])
def test_a_hub_id_is_downloaded_once(net, hub, name, id_):
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    hub[page('microsoft/focalnet-small', name)] = (
        safetensors_torch.save(net.state_dict())
        if name == 'model.safetensors'
        else buffer.getvalue()
    )
    hub[page('microsoft/focalnet-small', 'config.json')] = json.dumps({'model_type': 'x'}).encode()
    checkpoint = open_checkpoint(id_)
    assert equal(checkpoint.state, net.state_dict())
    assert checkpoint.metadata['config.json'] == {'model_type': 'x'}
    asked = len(hub[None])
    assert equal(open_checkpoint(id_).state, net.state_dict())
    assert len(hub[None]) == asked


def test_a_hub_id_without_config(net, hub):
    hub[page('timm/focalnet_x.ms', 'model.safetensors')] = safetensors_torch.save(net.state_dict())
    assert open_checkpoint('timm/focalnet_x.ms').metadata == {}


def test_a_hub_id_without_weights(hub):
    with pytest.raises(CheckpointError, match=r"'timm/none' .*model\.safetensors"):
        fetch('timm/none')


def test_a_hub_id_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(CheckpointError, match='timm/none') as error:
        fetch('timm/none')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['hf://', 'hf://a/b/c', 'hf://a b/c'])
def test_invalid_hub_ids(name):
    with pytest.raises(CheckpointError, match=name):
        fetch(name)


def test_a_hub_id_without_the_client(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(CheckpointError, match=r'mmfocalnet\[hf\]'):
        fetch('timm/none')


def test_safetensors_without_the_package(net, tmp_path, monkeypatch):
    safetensors_torch.save_file(net.state_dict(), tmp_path / 'net.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(CheckpointError, match=r'mmfocalnet\[hf\]'):
        open_checkpoint(tmp_path / 'net.safetensors')


# --- memory ---------------------------------------------------------------------------------

MEASURE = """
import sys, time
from mmfocalnet.checkpoints import check_finite, open_checkpoint
from mmfocalnet.checkpoints.layouts import select_network

def status(name):
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

before, anonymous = status('VmRSS'), status('RssAnon')
start = time.perf_counter()
if sys.argv[2] == 'ours':
    network = select_network(open_checkpoint(sys.argv[1]))
    check_finite(network.state)
else:
    import torch
    torch.load(sys.argv[1], weights_only=True)
seconds = time.perf_counter() - start
print(seconds, status('VmHWM') - before, status('RssAnon') - anonymous)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_huge_checkpoint_needs_no_more_memory_than_its_file(tmp_path, suffix):
    """2.6 GB: peak at most 1.2 times the file, of which less than 5 % are anonymous memory.

    Prints the time and that of torch.load alone; both read the file from the page cache.
    """
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in FocalNet('huge_fl4').state_dict().items()}
    state = {key: torch.ones(shape) for key, shape in shapes.items()}
    path, plain = tmp_path / f'huge{suffix}', tmp_path / 'huge.pth'
    torch.save(state, plain)
    if suffix == '.safetensors':
        safetensors_torch.save_file(state, path)
    del state

    def measure(file, how):
        command = [sys.executable, '-W', 'ignore', '-c', MEASURE, str(file), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return map(float, done.stdout.split())

    seconds, peak, anonymous = measure(path, 'ours')
    alone, *_ = measure(plain, 'torch.load')
    size = path.stat().st_size
    print(
        f'{path.name}: {size / 1e9:.2f} GB; {seconds:.1f} s, torch.load {alone:.1f} s (ratio '
        f'{seconds / alone:.2f}); peak {peak / size:.2f} of the file, {anonymous / size:.3f} '
        'anonymous'
    )
    assert size > 2.5e9
    assert peak < 1.2 * size
    assert anonymous < 0.05 * size
