"""Files, folders and globs as sources."""

from pathlib import Path

import pytest

from mmfocalnet.inference.sources import find_sources


@pytest.fixture
def folder(tmp_path):
    for name in ('b.JPG', 'a.png', 'clip.mp4', 'notes.txt', 'sub/a.png', 'sub/deep/c.webp'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder, *inputs):
    sources, problems = find_sources([f'{folder}/{text}' for text in inputs])
    assert not problems
    return [source.path.relative_to(folder).as_posix() for source in sources]


def test_folders_stand_for_the_images_and_videos_in_them(folder):
    assert names(folder, '') == ['a.png', 'b.JPG', 'clip.mp4']
    assert [source.is_video for source in find_sources([str(folder)])[0]] == [False, False, True]


def test_globs_reach_subfolders(folder):
    assert names(folder, 'sub/*') == ['sub/a.png']
    assert names(folder, '**/*.png', 'notes.txt') == ['a.png', 'sub/a.png', 'notes.txt']


def test_no_file_is_included_twice(folder):
    assert names(folder, 'sub/a.png', 'sub', 'sub/*.png', 'sub/../sub/a.png') == ['sub/a.png']


def test_outputs_have_unique_names(folder):
    for name in ('a.jpg', 'A.bmp', 'a_2.png'):
        (folder / name).touch()
    sources, _ = find_sources([str(folder), str(folder / 'sub')])
    found = [source.name for source in sources]
    assert len({name.lower() for name in found}) == len(found) == 7


def test_names_with_brackets_are_files_first(folder):
    (folder / 'x[1].png').touch()
    assert names(folder, 'x[1].png') == ['x[1].png']


def test_a_path_that_is_too_long_is_reported():
    sources, problems = find_sources(['a' * 5000])
    assert not sources
    assert 'aaa' in problems[0]


def test_inputs_without_images_are_reported(folder):
    (folder / 'empty').mkdir()
    sources, problems = find_sources(
        [f'{folder}/empty', f'{folder}/*.gif', f'{folder}/gone.png', f'{folder}/a.png']
    )
    assert len(sources) == 1
    for problem, name in zip(problems, ('empty', '*.gif', 'gone.png'), strict=True):
        assert f'{folder}/{name}' in problem


def test_loops_of_links_are_reported_and_the_rest_is_found(folder):
    """Two links from a folder to itself form 2**40 paths."""
    (folder / 'one.png').symlink_to('two.png')
    (folder / 'two.png').symlink_to('one.png')
    for name in ('left', 'right', 'sub/up'):
        (folder / name).symlink_to(folder)
    for text, count in (('', 3), ('**/*.*', 6), ('left/right', 3), ('**/deep/**', 1)):
        sources, problems = find_sources([f'{folder}/{text}'])
        assert len(sources) == count, text
        loops = {Path(problem.split()[0]).name for problem in problems}
        assert loops == ({'one.png', 'two.png'} if count > 1 else set())
    sources, [problem] = find_sources([str(folder / 'one.png')])
    assert not sources and 'one.png' in problem


def test_globs_follow_links_to_folders(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    (elsewhere / 'far.png').touch()
    (folder / 'sub/link').symlink_to(elsewhere)
    assert names(folder, '**/far.png') == ['sub/link/far.png']


def test_an_unreadable_folder_is_reported(folder, monkeypatch):
    def refuse(self):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(Path, 'iterdir', refuse)
    sources, [problem] = find_sources([str(folder), f'{folder}/a.png'])
    assert len(sources) == 1 and str(folder) in problem
