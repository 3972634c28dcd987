"""Output and exit codes of tools: closed pipes, ASCII, control characters, Ctrl-C."""

import importlib.abc
import io
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmfocalnet.cli.error_handling import print_error, print_lines, report_errors

ROOT = Path(__file__).resolve().parents[2]
NAME = 'rose\N{LATIN SMALL LETTER E WITH ACUTE}\udcff\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}.jpg'


@pytest.fixture
def stdout(monkeypatch):
    """Replace stdout by a stream. A function, because pytest replaces stdout before each test."""

    def put(stream):
        monkeypatch.setattr(sys, 'stdout', stream)
        return stream

    return put


def code_of(main):
    """The exit code of a command."""
    try:
        report_errors(main)()
    except SystemExit as end:
        return end.code
    return 0


def test_control_characters_of_file_names_are_escaped(capsys):
    print_lines(f'{NAME} is damaged', 'second')
    print_error(NAME)
    out, err = capsys.readouterr()
    escaped = '\N{LATIN SMALL LETTER E WITH ACUTE}\\udcff\\x1b[2J\\u202e.jpg'
    assert out == f'rose{escaped} is damaged\nsecond\n'
    assert err.endswith(f': rose{escaped}\n') and err.count('\n') == 1


def test_an_ascii_terminal(stdout):
    stream = stdout(io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
    assert code_of(lambda: print('\N{LATIN SMALL LETTER E WITH ACUTE}')) == 0
    assert stream.buffer.getvalue() == b'\\xe9\n'


def test_a_closed_stdout(stdout):
    stdout(None)
    assert code_of(lambda: print_lines('lost')) == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs Linux')
def test_a_full_stdout_is_an_error(stdout, capsys):
    with open('/dev/full', 'w') as full:
        stdout(full)
        assert code_of(lambda: print_lines('lost')) == 2
    assert 'stdout' in capsys.readouterr().err


@pytest.fixture
def unread():
    """A pipe whose reader is closed, as of ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, 'w')


def test_a_closed_reader_ends_the_tool_without_a_message(stdout, unread, capsys):
    stdout(unread)
    assert code_of(lambda: print_lines(*range(100_000))) == 141
    unread.close()  # as Python does when it ends
    assert not capsys.readouterr().err


def test_a_broken_pipe_to_another_process_is_an_unexpected_error(capsys):
    def main():
        raise BrokenPipeError('of a worker')

    assert code_of(main) == 3
    assert 'of a worker' in capsys.readouterr().err


def test_an_exit_code_takes_precedence_over_a_closed_reader(stdout, unread):
    def main():
        print('few')
        sys.exit(1)

    stdout(unread)
    assert code_of(main) == 1
    unread.close()


def test_a_tool_with_a_closed_reader(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    tool = [sys.executable, ROOT / 'tools/make_shapes.py', '--out', tmp_path / 'shapes']
    done = subprocess.run(
        [*tool, '--train', '1', '--val', '1'], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b'')


def test_an_interrupt_during_the_imports_prints_no_traceback(tmp_path):
    tool = [ROOT / 'tools/make_shapes.py', '--out', tmp_path / 'shapes']
    command = [sys.executable, '-X', 'importtime', *tool]
    # Shells start background jobs, such as `make test &`, with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    signal.signal(signal.SIGINT, before)
    with process:
        for line in process.stderr:
            if line.endswith(' numpy\n'):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT  # 130 in shells
    assert 'Traceback' not in rest


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_tools_handle_interrupts_before_their_first_slow_import(path, monkeypatch):
    handlers = []

    class FirstSlowImport(BaseException):
        pass

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, *_):
            if name.split('.')[0] in ('mmfocalnet', 'torch', 'mmengine', 'numpy'):
                handlers.append(signal.getsignal(signal.SIGINT))
                raise FirstSlowImport

    with monkeypatch.context() as patch:
        for name in list(sys.modules):
            if name.split('.')[0] in ('mmfocalnet', 'torch', 'mmengine', 'numpy'):
                patch.delitem(sys.modules, name)
        patch.setattr(sys, 'meta_path', [Finder(), *sys.meta_path])
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(FirstSlowImport):
                runpy.run_path(str(path), run_name='not_main')
        finally:
            signal.signal(signal.SIGINT, before)
    assert handlers == [signal.SIG_DFL]
