"""The command that tries families and writes the table of the documentation."""


def test_writes_the_table_of_a_package(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the tool changes folder and environment: restore them
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    page = tmp_path / 'page.md'
    page.write_text(
        '# Page\n\n## mmdet\n\nText.\n\n| old |\n|---|\n\n## mmseg\n\n| kept |\n\nEnd.\n'
    )
    code, out, _ = tool(
        'try_detectors',
        'mmdet',
        '--build',
        '--jobs',
        1,
        '--only',
        'yolof',
        'cornernet',
        '--out',
        page,
    )
    assert code == 0
    assert 'mmdet yolof: works' in out and 'mmdet: 1 of 1' in out
    text = page.read_text()
    assert '| yolof | yolof_r50-c5_8xb8-1x_coco.py | works |' in text
    assert '| cornernet |' in text and '[4, 4]' in text
    assert '| old |' not in text and '| kept |' in text and text.endswith('End.\n')
