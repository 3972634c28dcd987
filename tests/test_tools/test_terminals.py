"""What tools print, where to, and how they end: closed pipes, ASCII, control characters, Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmfocalnet.cli import print_error, print_lines, report_errors

ROOT = Path(__file__).resolve().parents[2]
NAME = 'rose\N{LATIN SMALL LETTER E WITH ACUTE}\udcff\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}.jpg'


@pytest.fixture
def stdout(monkeypatch):
    """Put a stream in the place of stdout, from within a test: pytest has its own before."""

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


def test_control_characters_of_names_are_escaped(capsys):
    print_lines(f'{NAME} is damaged', 'second')
    print_error(NAME)
    out, err = capsys.readouterr()
    escaped = '\N{LATIN SMALL LETTER E WITH ACUTE}\\udcff\\x1b[2J\\u202e.jpg'
    assert out == f'rose{escaped} is damaged\nsecond\n'
    assert err.endswith(f': rose{escaped}\n') and err.count('\n') == 1


def test_a_terminal_that_shows_ascii_only(stdout):
    stream = stdout(io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
    assert code_of(lambda: print('\N{LATIN SMALL LETTER E WITH ACUTE}')) == 0
    assert stream.buffer.getvalue() == b'\\xe9\n'


def test_no_stdout_at_all(stdout):
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
    """A stream whose reader is gone, as of ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, 'w')


def test_a_reader_that_is_gone_ends_quietly(stdout, unread, capsys):
    stdout(unread)
    assert code_of(lambda: print_lines(*range(100_000))) == 141
    unread.close()  # as Python does at its end: nothing is left to be written
    assert not capsys.readouterr().err


def test_a_broken_pipe_to_another_process_is_unexpected(capsys):
    def main():
        raise BrokenPipeError('of a worker')

    assert code_of(main) == 3
    assert 'of a worker' in capsys.readouterr().err


def test_an_error_counts_more_than_a_reader_that_is_gone(stdout, unread):
    def main():
        print('few')
        sys.exit(1)

    stdout(unread)
    assert code_of(main) == 1
    unread.close()


def test_a_tool_whose_reader_is_gone(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    tool = [sys.executable, ROOT / 'tools/make_shapes.py', '--out', tmp_path / 'shapes']
    done = subprocess.run(
        [*tool, '--train', '1', '--val', '1'], stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b'')


def test_an_interrupt_during_the_imports():
    command = [sys.executable, '-X', 'importtime', ROOT / 'tools/make_shapes.py', '--help']
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        for line in process.stderr:
            if line.endswith(' numpy\n'):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT  # 130 in shells
    assert 'Traceback' not in rest


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_every_tool_expects_interrupts_before_the_slow_imports(path):
    text = path.read_text()
    slow = [text.find(f'\n{start}') for start in ('from mmfocalnet', 'import torch')]
    assert 0 < text.find('signal.SIG_DFL') < min(place for place in slow if place > 0)
