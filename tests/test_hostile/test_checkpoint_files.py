"""Damaged and malicious checkpoints run no code and raise errors without using much memory."""

import collections
import contextlib
import io
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmfocalnet import FocalNet
from mmfocalnet.checkpoints import CheckpointError, load_file, open_checkpoint
from mmfocalnet.checkpoints.layouts import to_transformers
from mmfocalnet.cli.initial_checkpoint import load_initial_checkpoint
from mmfocalnet.conversion.convert import convert, inspect_checkpoint
from mmfocalnet.models import load_pretrained
from mmfocalnet.models.weight_checks import check_fits

safetensors_torch = pytest.importorskip('safetensors.torch')

ROOT = Path(__file__).resolve().parents[2]
TINY = dict(embed_dim=2, depths=(1, 1), focal_levels=1, focal_windows=3)
MEGABYTE = 2**20
# Maximum increase of resident memory while one of these files is read.
ALLOWED = 150 * MEGABYTE


@pytest.fixture(scope='module')
def net():
    net = FocalNet(**TINY)
    net.init_weights()
    return net


@pytest.fixture(scope='module')
def originals(net):
    """Valid files of every kind, as bytes."""
    state = net.state_dict()
    classifier = {key: value for key, value in state.items() if not key.startswith('norm')}
    detector = {f'backbone.{key}': value for key, value in state.items()}
    detector['neck.weight'] = torch.rand(3)
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    training = dict(
        meta=dict(cfg="backbone = dict(type='FocalNet')", mmengine_version='0.10.7', epoch=1),
        state_dict=detector,
        message_hub=dict(log_scalars={'loss': history}, runtime_info={'iter': np.float64(3)}),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[dict(lr=0.1)]),
    )
    return {
        'release.pth': saved({'model': classifier}),
        'legacy.pth': saved({'model': classifier}, legacy=True),
        'detector.pth': saved({'state_dict': detector, 'meta': {'mmdet_version': '2.11.0'}}),
        'training.pth': saved(training),
        'legacy_training.pth': saved(training, legacy=True),
        'ours.safetensors': safetensors_torch.save(
            state, {'format': 'pt', 'mmfocalnet': json.dumps(dict(backbone=dict(use_postln=False)))}
        ),
        'transformers.safetensors': safetensors_torch.save(to_transformers(classifier)),
    }


def saved(content, legacy=False):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@contextlib.contextmanager
def limited_memory(allowed=ALLOWED):
    """Assert a maximum increase of the peak resident memory."""
    if sys.platform != 'linux':
        yield
        return
    Path('/proc/self/clear_refs').write_text('5')  # reset the peak
    before = resident('VmRSS')
    yield
    taken = resident('VmHWM') - before
    assert taken < allowed, f'{taken / MEGABYTE:.0f} MB'


def resident(name):
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{name}:\s+(\d+) kB', status)[1]) * 1024


@contextlib.contextmanager
def alarm(seconds=60):
    """Fail instead of hanging."""

    def stop(*_):
        raise AssertionError(f'not done after {seconds} seconds')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusals(net, path):
    """Call all functions that read a checkpoint; return the messages of those that refuse it."""
    readers = {
        'open': lambda: open_checkpoint(path),
        'convert': lambda: convert(
            inspect_checkpoint(path), path.with_name('converted.pth'), 'ours'
        ),
        'init': lambda: load_pretrained(FocalNet(**TINY), path),
        'load': lambda: load_file(path),
        'start': lambda: load_initial_checkpoint(Config(dict(load_from=str(path)))),
        'test': lambda: check_fits(net, str(path)),
    }
    messages = {}
    for name, read in readers.items():
        try:
            read()
        except CheckpointError as error:
            assert '\n' not in str(error) and len(str(error)) < 5000
            messages[name] = str(error)
    return messages


# --- random damage ----------------------------------------------------------------------------


def places(size):
    """Any offset, more often near both ends, where headers are."""
    ends = st.integers(0, 400).flatmap(lambda i: st.sampled_from([i, size - 1 - i]))
    return st.one_of(st.integers(0, size - 1), ends).map(lambda place: min(max(place, 0), size - 1))


@st.composite
def damaged(draw, content):
    """The bytes with some of them changed, removed, repeated or inserted."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(places(len(content)))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(['flip', 'number', 'cut', 'drop', 'double', 'insert', 'swap']))
        before, there, after = content[:place], content[place:][:length], content[place + length :]
        if kind == 'flip':
            there = bytes([there[0] ^ 1 << draw(st.integers(0, 7))]) + there[1:]
        elif kind == 'number':
            number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1, 10**15]))
            there, after = struct.pack('<Q', number), content[place + 8 :]
        elif kind == 'cut':
            there, after = b'', b''
        elif kind == 'drop':
            there = b''
        elif kind == 'double':
            there = there * draw(st.integers(2, 50))
        elif kind == 'insert':
            there = draw(st.binary(min_size=1, max_size=20)) + there
        else:
            there = there[::-1]
        content = before + there + after or b'\0'
    return content


# Each format and the readers that refuse it: only a state dict in our names can be tested.
FORMATS = {
    'release.pth': {'test'},
    'legacy.pth': {'test'},
    'detector.pth': {'test'},
    'training.pth': {'test'},
    'legacy_training.pth': {'test'},
    'ours.safetensors': set(),
    'transformers.safetensors': {'test'},
}


@pytest.mark.parametrize('name', FORMATS)
def test_valid_files_are_read(net, originals, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(originals[name])
    assert refusals(net, path).keys() == FORMATS[name]


@pytest.mark.fuzz
@pytest.mark.parametrize('name', FORMATS)
def test_damaged_files_are_read_or_refused(net, originals, tmp_path, name):
    path = tmp_path / f'damaged_{name}'

    @given(content=damaged(originals[name]))
    def check(content):
        path.write_bytes(content)
        refusals(net, path)

    with limited_memory():
        check()


@pytest.mark.fuzz
@given(data=st.data())
def test_tools_report_damaged_files_in_one_line(originals, tmp_path, tool, data):
    name = data.draw(st.sampled_from(list(FORMATS)))
    path = tmp_path / f'damaged_{name}'
    path.write_bytes(data.draw(damaged(originals[name])))
    out = tmp_path / 'out.safetensors'
    for command in (
        ['inspect_checkpoint', path],
        ['convert_checkpoint', path, out, '--to', 'ours'],
    ):
        code, _, err = tool(*command)
        assert code in (0, 2)
        assert 'Traceback' not in err
        if code:
            assert len(err.strip().splitlines()) == 1


@pytest.mark.fuzz
@given(data=st.data())
def test_damaged_settings_beside_transformers_weights(net, originals, tmp_path, data):
    (tmp_path / 'model.safetensors').write_bytes(originals['transformers.safetensors'])
    valid = b'{"model_type": "focalnet", "use_post_layernorm": true, "id2label": {"0": "cat"}}'
    (tmp_path / 'config.json').write_bytes(data.draw(damaged(valid)))
    refusals(net, tmp_path / 'model.safetensors')


# --- code -------------------------------------------------------------------------------------


class Call:
    """Object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __call__(self):
        """Makes it callable, so that one call can wrap another."""

    def __reduce__(self):
        return self.call


def calls(mark):
    """Several ways to create a file."""
    mark = str(mark)
    write = f"open({mark!r}, 'w')"
    return {
        'system': Call(os.system, f'touch {mark}'),
        'popen': Call(os.popen, f'touch {mark}'),
        'process': Call(subprocess.check_call, ['touch', mark]),
        'eval': Call(eval, write),
        'exec': Call(exec, write),
        'open': Call(open, mark, 'w'),
        'getattr': Call(Call(getattr, Path(mark), 'touch')),
        'numpy': Call(np.save, mark, np.ones(1)),
        'memmap': Call(np.memmap, mark, 'uint8', 'w+', 0, (1,)),
        'config': Call(Config.fromfile, config_file(mark)),
        'torch': Call(torch.save, 1, mark),
    }


def config_file(mark):
    path = Path(mark).with_name('config.py')
    path.write_text(f"open({mark!r}, 'w').close()\n")
    return str(path)


WHERE = {
    'top': lambda state, call: call,
    'weight': lambda state, call: {'state_dict': {**state, 'x': call}},
    'key': lambda state, call: {'state_dict': {**state, call: torch.ones(1)}},
    'meta': lambda state, call: {'state_dict': state, 'meta': {'cfg': call}},
    'deep': lambda state, call: {'state_dict': state, 'meta': [({'a': [call]},)]},
    'attribute': lambda state, call: with_attribute(state, call),
}


def with_attribute(state, call):
    state = collections.OrderedDict(state)
    state._metadata = call
    return {'model': state}


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('where', WHERE)
def test_pickled_calls_never_run(net, tmp_path, where, legacy):
    mark = tmp_path / 'mark'
    for name, call in calls(mark).items():
        path = tmp_path / f'{name}.pth'
        path.write_bytes(saved(WHERE[where](net.state_dict(), call), legacy))
        assert len(refusals(net, path)) == 6, name
        assert not mark.exists(), name


@pytest.mark.parametrize('name', ['system', 'eval', 'open', 'process', 'numpy', 'config'])
def test_those_calls_would_run(tmp_path, name):
    """Python's unpickler does run them, so the tests above can fail."""
    mark = tmp_path / 'mark'
    pickle.loads(pickle.dumps(calls(mark)[name]))
    assert mark.exists() or mark.with_suffix('.npy').exists()


@pytest.mark.parametrize('place', range(5))
def test_calls_in_the_other_pickles_of_the_old_format(net, originals, tmp_path, place):
    mark, path = tmp_path / 'mark', tmp_path / 'old.pth'
    file = io.BytesIO(originals['legacy.pth'])
    parts = []
    for _ in range(5):
        start = file.tell()
        list(pickle_operations(file))
        parts.append(file.getvalue()[start : file.tell()])
    parts[place] = pickle.dumps(calls(mark)['system'], 2)
    path.write_bytes(b''.join(parts) + file.read())
    assert len(refusals(net, path)) == 6
    assert not mark.exists()


def pickle_operations(file):
    import pickletools

    return pickletools.genops(file)


def test_a_call_in_the_persistent_id_of_a_storage(net, tmp_path):
    mark, path = tmp_path / 'mark', tmp_path / 'storage.pth'

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ('storage', calls(mark)['system'], '0', 'cpu', 1) if thing == 'here' else None

    file = io.BytesIO()
    Pickler(file, 2).dump({'state_dict': {'x': 'here'}})
    path.write_bytes(archive(file.getvalue()))
    assert len(refusals(net, path)) == 6
    assert not mark.exists()


# --- memory and time --------------------------------------------------------------------------


def archive(instructions, compress=zipfile.ZIP_STORED, **entries):
    """A file of PyTorch's zip format around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compress) as archive:
        archive.writestr('a/data.pkl', instructions)
        archive.writestr('a/byteorder', 'little')
        for name, content in {'version': b'3\n', **entries}.items():
            archive.writestr(f'a/{name.replace("__", "/")}', content)
    return file.getvalue()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def number(value):
    return b'\x8a\x08' + struct.pack('<q', value)


def call(name, *arguments):
    module, _, function = name.rpartition('.')
    return f'c{module}\n{function}\n'.encode() + b'(' + b''.join(arguments) + b'tR'


def pickled(*instructions, key=b'X\x01\x00\x00\x00a'):
    return b'\x80\x02}(' + key + b''.join(instructions) + b'u.'


def storage(numbers):
    """Reference to a storage of this many floats."""
    return (
        b'('
        + text('storage')
        + b'ctorch\nFloatStorage\n'
        + text('0')
        + text('cpu')
        + number(numbers)
        + b'tQ'
    )


def tensor(numbers, *size, strides=None):
    sizes = b'(' + b''.join(map(number, size)) + b't'
    steps = b'(' + b''.join(map(number, strides or [1] * len(size))) + b't'
    hooks = b'ccollections\nOrderedDict\n)R'
    return call(
        'torch._utils._rebuild_tensor_v2', storage(numbers), number(0), sizes, steps, b'\x89', hooks
    )


def doubled(times):
    """Bytes whose length is doubled this many times."""
    result = call('_codecs.encode', text('x'), text('latin1'))
    for _ in range(times):
        result = call('_codecs.encode', result, text('hex'))
    return result


GIGA = 2 * 10**9
MANY = 3 * 10**6
TEXT = 'x' * 10**6
PICKLES = {
    'bytearray': pickled(call('builtins.bytearray', number(GIGA))),
    'old bytearray': pickled(call('__builtin__.bytearray', number(GIGA))),
    'indirect bytearray': pickled(
        call(
            'torch._tensor._rebuild_from_type_v2',
            b'cbuiltins\nbytearray\nctorch\nTensor\n(',
            number(GIGA),
            b't}',
        )
    ),
    'ones of a tensor': pickled(call('torch.FloatTensor', number(GIGA))),
    'new tensor': pickled(b'ctorch\nTensor\n(' + number(GIGA) + b't\x81'),
    'storage': pickled(call('torch.storage.UntypedStorage', number(GIGA))),
    'array': pickled(call('numpy.ndarray', b'(' + number(GIGA) + b't')),
    'array of objects': pickled(
        call(
            'numpy.core.multiarray._reconstruct',
            b'cnumpy\nndarray\n(' + number(GIGA // 8) + b't' + text('O'),
        )
    ),
    'wide type': pickled(
        call('numpy.core.multiarray.scalar', call('numpy.dtype', text(f'V{GIGA}'), b'\x89\x88'))
    ),
    'type of objects': pickled(
        call('numpy.core.multiarray.scalar', call('numpy.dtype', text('O'), b'\x89\x88'))
    ),
    'method of another class': pickled(
        call('builtins.getattr', b'cnumpy\nndarray\n', text('tofile'))
    ),
    'long text many times': pickled(
        b'(' + text(TEXT) + b'q\x00',
        *[call('_codecs.encode', b'h\x00', text('utf-32'))] * 2000,
        b't',
    ),
    'long bytes many times': pickled(
        b'(' + text(TEXT) + b'q\x00',
        *[call('_codecs.encode', b'h\x00', text('latin1'))] * 2000,
        b't',
    ),
    'doubled bytes': pickled(doubled(30)),
    'long set many times': pickled(
        b'(](' + b''.join(map(number, range(50000))) + b'eq\x00',
        *[call('builtins.set', b'h\x00')] * 2000,
        b't',
    ),
    'deep list': pickled(b']' * MANY, b'a' * (MANY - 1)),
    'deep tuple': pickled(b')' + b'\x85' * MANY),
    'deep key': pickled(b'K\x01', key=b')' + b'\x85' * MANY),
    'doubled key': pickled(b'K\x01', key=b')' + b'q\x00h\x00\x86' * 90),
    'doubled member of a set': pickled(
        call('builtins.set', b'](' + b')' + b'q\x00h\x00\x86' * 90 + b'e')
    ),
    'doubled size': pickled(call('torch.Size', b')' + b'q\x00h\x00\x86' * 90)),
    'itself': pickled(b']q\x00h\x00a'),
    'many marks': pickled(b'(' * MANY),
    'far memo': pickled(b'r\xff\xff\xff\x7f' + b'K\x01'),
    'missing text': pickled(b'X\xff\xff\xff\x7fabc'),
    'another protocol': b'\x80\x05\x95' + b'\xff' * 8 + b'\x8e' + b'\xff' * 8,
    'nothing': b'\x80\x02.',
    'only marks': b'\x80\x02((((t.',
    'large tensor of a small storage': pickled(tensor(4, GIGA)),
    'large tensor of a large storage': pickled(tensor(GIGA, GIGA)),
    'one number everywhere': pickled(tensor(1, 10**6, 10**6, strides=(0, 0))),
    'negative size': pickled(tensor(4, -4)),
    'sizes that overflow': pickled(tensor(4, 2**62, 2**62)),
}


# Harmless, but not state dicts.
HARMLESS = ('itself', 'nothing', 'far memo', 'only marks')


@pytest.mark.parametrize('format', ['zip', 'old'])
@pytest.mark.parametrize('name', PICKLES)
def test_hostile_pickles_use_little_memory(net, tmp_path, name, format):
    path = tmp_path / 'bomb.pth'
    if format == 'zip':
        path.write_bytes(archive(PICKLES[name], data__0=b'\0' * 16))
    else:
        path.write_bytes(old_format(PICKLES[name]))
    with alarm(), limited_memory():
        refused = refusals(net, path)
    assert len(refused) == 6 or (name in HARMLESS and len(refused) >= 4), refused


def old_format(instructions):
    """The format before PyTorch 1.6 around any pickle."""
    magic, version = 0x1950A86A20F9469CFC6C, 1001
    system = dict(protocol_version=version, little_endian=True, type_sizes={})
    parts = [pickle.dumps(part, 2) for part in (magic, version, system)]
    return b''.join([*parts, instructions, pickle.dumps(['0'], 2), struct.pack('<q', 4), bytes(16)])


@pytest.mark.parametrize('entry', ['data.pkl', 'data/0'])
def test_archives_that_unpack_to_gigabytes(net, tmp_path, entry):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        if entry != 'data.pkl':
            file.writestr('a/data.pkl', pickled(tensor(MEGABYTE, MEGABYTE)))
        file.writestr('a/version', '3\n')
        with file.open(f'a/{entry}', 'w') as part:
            for _ in range(200):
                part.write(bytes(MEGABYTE))
    assert path.stat().st_size < MEGABYTE
    with alarm(), limited_memory():
        refused = refusals(net, path)
    assert len(refused) == 6 and 'compressed' in refused['load']


def test_archives_that_claim_gigabytes(net, originals, tmp_path):
    path = tmp_path / 'bomb.pth'
    content = originals['release.pth']
    entries = [match.start() for match in re.finditer(b'PK\x01\x02', content)]
    for start in entries:
        claimed = bytearray(content)
        claimed[start + 20 : start + 28] = struct.pack('<II', 2**31 - 1, 2**31 - 1)
        path.write_bytes(claimed)
        with alarm(), limited_memory():
            assert len(refusals(net, path)) == 6


def test_archive_entries_that_share_their_bytes(net, tmp_path):
    """5000 entries of the same megabyte."""
    path = tmp_path / 'bomb.pth'
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as entries:
        entries.writestr('a/data.pkl', pickled(b'K\x01'))
        entries.writestr('a/data/0', bytes(MEGABYTE))
        entries.filelist += [entries.getinfo('a/data/0')] * 5000
    path.write_bytes(file.getvalue())
    with alarm(), limited_memory():
        assert len(refusals(net, path)) == 6


def test_an_archive_on_several_disks(net, originals, tmp_path):
    content, path = originals['release.pth'], tmp_path / 'disks.pth'
    end = content.rindex(b'PK\x05\x06')
    disks = b'PK\x06\x07' + struct.pack('<LQL', 0, 0, 5)
    path.write_bytes(content[:end] + disks + content[end:])
    assert len(refusals(net, path)) == 6


def test_torchscript_code(net, tmp_path, loads):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'packed.pth')
    path = tmp_path / 'script.pth'
    with zipfile.ZipFile(tmp_path / 'packed.pth') as packed, zipfile.ZipFile(path, 'w') as stored:
        for name in packed.namelist():
            stored.writestr(name, packed.read(name))
    with alarm(), limited_memory():
        assert len(refusals(net, path)) >= 5


def test_allowed_functions_cannot_be_changed(net, tmp_path):
    """GETATTR of an allowed method, then BUILD with other default arguments."""
    before = HistoryBuffer.min.__defaults__
    pickled = (
        b'\x80\x02cbuiltins\ngetattr\ncmmengine.logging.history_buffer\nHistoryBuffer\n'
        b'X\x03\x00\x00\x00min\x86RN}X\x0c\x00\x00\x00__defaults__K\x05\x85s\x86b.'
    )
    path = tmp_path / 'build.pth'
    path.write_bytes(archive(pickled))
    with alarm(), limited_memory():
        assert len(refusals(net, path)) >= 5
    assert HistoryBuffer.min.__defaults__ == before


@pytest.mark.parametrize('kind', ['u1', 'i1', 'i2', 'u2', 'u8', 'f2', 'f4', '?'])
def test_numeric_arrays_are_read(tmp_path, kind):
    array = np.arange(6).astype(kind).reshape(2, 3)
    torch.save(dict(state_dict=dict(w=torch.ones(1)), meta=dict(palette=array)), tmp_path / 'a.pth')
    palette = load_file(tmp_path / 'a.pth').metadata['palette']
    assert palette.dtype == array.dtype and (palette == array).all()


def test_a_tar_archive_in_disguise(net, tmp_path):
    path = tmp_path / 'tar.pth'
    name = (b'\x80\x02N.' * 6).decode('latin1')
    with tarfile.open(path, 'w', format=tarfile.USTAR_FORMAT, encoding='latin1') as file:
        file.addfile(tarfile.TarInfo(name))
        fifo = tarfile.TarInfo('storages')
        fifo.type = tarfile.FIFOTYPE
        file.addfile(fifo)
    assert path.read_bytes()[:1] == b'\x80'
    with alarm():
        refused = refusals(net, path)
    assert len(refused) == 6 and 'tar archive' in refused['load']


def header(content, length=None, data=b''):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack('<Q', len(content) if length is None else length) + content + data


FLOATS = dict(dtype='F32', shape=[4], data_offsets=[0, 16])
SAFETENSORS = {
    'a huge shape': header({'x': FLOATS | dict(shape=[10**15])}, data=bytes(16)),
    'a huge shape and offsets': header(
        {'x': FLOATS | dict(shape=[10**15], data_offsets=[0, 4 * 10**15])}, data=bytes(16)
    ),
    'sizes that overflow': header(
        {'x': FLOATS | dict(shape=[2**32, 2**32], data_offsets=[0, 0])}, data=bytes(16)
    ),
    'a huge header': header({'x': FLOATS}, length=2**62, data=bytes(16)),
    'a header of all but the end': header({'x': FLOATS}, length=90, data=bytes(16)),
    'shared bytes': header({f'x{i}': FLOATS for i in range(9)}, data=bytes(16)),
    'unused bytes': header({'x': FLOATS}, data=bytes(10**6)),
    'offsets backwards': header({'x': FLOATS | dict(data_offsets=[16, 0])}, data=bytes(16)),
    'a negative shape': header({'x': FLOATS | dict(shape=[-4])}, data=bytes(16)),
    'an unknown type': header({'x': FLOATS | dict(dtype='F32\n')}, data=bytes(16)),
    'a deep header': header(b'{"x":' + b'[' * 10**5 + b']' * 10**5 + b'}'),
    'a duplicate key': header(
        b'{"x":%b,"x":%b}' % ((json.dumps(FLOATS).encode(),) * 2), data=bytes(16)
    ),
    'no dict': header(b'{}', data=b''),
    'deep metadata': header(
        {'__metadata__': {'mmfocalnet': '[' * 10**5 + ']' * 10**5}, 'x': FLOATS}, data=bytes(16)
    ),
    'metadata of a number': header(
        {'__metadata__': {'mmfocalnet': '9' * 5000}, 'x': FLOATS}, data=bytes(16)
    ),
    'metadata that are not text': header({'__metadata__': {'a': 1}, 'x': FLOATS}, data=bytes(16)),
}


@pytest.mark.parametrize('name', SAFETENSORS)
def test_hostile_safetensors_use_little_memory(net, tmp_path, name):
    path = tmp_path / 'bomb.safetensors'
    path.write_bytes(SAFETENSORS[name])
    with alarm(), limited_memory():
        # Some readers accept a duplicate key.
        assert len(refusals(net, path)) >= (3 if name == 'a duplicate key' else 5)


# --- valid files with unusual content ---------------------------------------------------------

BLOCK = 'layers.0.blocks.{}.modulation.f.weight'
DEEP = [[]]
for _ in range(5000):
    DEEP = [DEEP]
UNUSUAL_KEYS = {
    'a number of 5000 digits': BLOCK.format('9' * 5000),
    'a stage of 5000 digits': f'norm{"1" * 5000}.weight',
    'a block far away': BLOCK.format(10**9),
    'a digit of another alphabet': BLOCK.format('٣'),
    'line ends': 'a\nb\r\n.weight',
    'a terminal command': '\x1b]0;owned\x07\x1b[2J',
    'a long key': 'x' * MEGABYTE,
    'an empty key': '',
    'a surrogate': '\ud800',
    'a template': '{i}.{next}',
}


@pytest.mark.parametrize('name', UNUSUAL_KEYS)
def test_unusual_keys_are_escaped_in_errors(net, tmp_path, name):
    path = tmp_path / 'unusual.pth'
    for state in ({}, net.state_dict()):
        torch.save({**state, UNUSUAL_KEYS[name]: torch.ones(5, 2)}, path)
        refused = refusals(net, path)
        assert len(refused) >= 2
        assert all(message.isprintable() for message in refused.values())


UNUSUAL_METADATA = {
    'tensors instead of booleans': {'mmfocalnet': {'backbone': {'use_postln': torch.ones(2)}}},
    'arrays as assumed settings': {
        'mmfocalnet': {'backbone': {'use_postln': False}, 'assumed': [np.ones(2, np.float32)]}
    },
    'lists instead of dicts': {'mmfocalnet': [1], 'config.json': [1], 'cfg': [1]},
    'numbers instead of text': {
        'mmdet_version': 3,
        'cfg': 3,
        'CLASSES': 3,
        'mmengine_version': None,
    },
    'a config of a million brackets': {'cfg': '(' * MEGABYTE},
    'a config of megabytes': {'cfg': '[' + '1,' * 2 * MEGABYTE + ']'},
    'a config that calls': {'cfg': "dict(type='FocalNet', use_postln=print('x'))"},
    'a config of an unknown arch': {'cfg': "dict(type='FocalNet', arch='x' 'y', use_postln=3)"},
    'a long version': {'mmdet_version': 'x\n' * MEGABYTE},
    'no dict': 'text',
}


@pytest.mark.parametrize('name', UNUSUAL_METADATA)
def test_unusual_metadata_are_ignored(net, tmp_path, name, tool):
    path = tmp_path / 'unusual.pth'
    torch.save({'state_dict': net.state_dict(), 'meta': UNUSUAL_METADATA[name]}, path)
    with alarm(), limited_memory(250 * MEGABYTE):
        assert not refusals(net, path)
    code, out, _ = tool('inspect_checkpoint', path)
    assert code == 0 and len(out) < 5000


def test_a_file_with_five_thousand_blocks(net, tmp_path):
    path = tmp_path / 'blocks.pth'
    state = net.state_dict()
    weight = state[BLOCK.format(0)]
    torch.save({**state, **{BLOCK.format(i): weight for i in range(5000)}}, path)
    with alarm(), limited_memory(250 * MEGABYTE):
        assert len(refusals(net, path)) >= 2


# --- paths that are not regular files ---------------------------------------------------------


def irregular_paths(folder):
    """Pipes, devices, links and folders in place of a checkpoint."""
    names = ('empty', 'folder', 'pipe', 'socket', 'loop', 'zero', 'nothing')
    paths = {name: folder / f'{name}.pth' for name in names}
    paths['empty'].touch()
    paths['folder'].mkdir()
    os.mkfifo(paths['pipe'])
    paths['loop'].symlink_to(paths['loop'])
    paths['zero'].symlink_to('/dev/zero')
    paths['nothing'].symlink_to('/dev/null')
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(str(paths['socket']))
    paths['weights'] = folder / 'weights'
    (paths['weights'] / 'model.safetensors').mkdir(parents=True)
    # A name that could also be a Hugging Face id.
    paths['id'] = Path(os.path.relpath(folder / 'id'))
    os.mkfifo(folder / 'id')
    return paths


def test_irregular_paths_are_refused(net, tmp_path):
    for path in irregular_paths(tmp_path).values():
        with alarm(), limited_memory():
            assert len(refusals(net, path)) >= 5, path


def test_reading_does_not_block_on_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir('a')
    os.mkfifo('a/b')
    with alarm(), pytest.raises(CheckpointError, match='a/b'):
        open_checkpoint('a/b')


# --- the tools themselves ---------------------------------------------------------------------


@pytest.mark.parametrize(
    'command',
    [
        ['inspect_checkpoint', 'FILE'],
        ['convert_checkpoint', 'FILE', 'OUT', '--to', 'release'],
        ['train', 'CONFIG', '--resume', 'FILE'],
        ['train', 'CONFIG', '--cfg-options', 'load_from=FILE'],
        ['train', 'CONFIG', '--cfg-options', 'INIT'],
        ['test', 'CONFIG', 'FILE'],
    ],
)
def test_tools_refuse_code_and_bombs(net, tmp_path, monkeypatch, tool, command):
    from mmfocalnet.datasets import make_shapes

    mark = tmp_path / 'mark'
    files = {
        'code.pth': saved(WHERE['meta'](net.state_dict(), calls(mark)['system'])),
        'bomb.pth': archive(PICKLES['bytearray']),
    }
    make_shapes(tmp_path / 'data/shapes', 2, 2, size=64)
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        words = {
            'FILE': [path],
            'OUT': [tmp_path / 'out.pth'],
            'CONFIG': [ROOT / 'configs/demo/mask_rcnn.py', '--work-dir', tmp_path / 'work'],
            'load_from=FILE': [f'load_from={path}'],
            'INIT': [
                'model.backbone.init_cfg.type=Pretrained',
                f'model.backbone.init_cfg.checkpoint={path}',
            ],
        }
        run, *arguments = command
        arguments = [part for word in arguments for part in words.get(word, [word])]
        code, _, error = tool(run, *arguments)
        assert code == 2, error[-3000:]
        assert 'Traceback' not in error
        assert error.strip().splitlines()[-1].startswith(f'{run}.py: ')
        assert name in error
        assert not mark.exists()
