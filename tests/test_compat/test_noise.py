"""Messages of dependencies that the tools filter."""

import logging
import warnings

import pytest

from mmfocalnet.compat import noise


def test_imports_print_all_but_the_filtered_lines(monkeypatch, capsys):
    def load(name):
        print(noise.PRINTED[0])
        if name.endswith('.datasets'):
            print('Another line.')
        warnings.warn(f'{noise.WARNINGS[0]}, ...', stacklevel=1)

    monkeypatch.setattr(noise.importlib, 'import_module', load)
    with warnings.catch_warnings(record=True) as shown:
        noise.import_datasets('mmdet')
    assert capsys.readouterr().out == 'Another line.\n'
    assert not shown


def test_other_warnings_are_shown():
    with pytest.warns(UserWarning, match='unrelated'), warnings.catch_warnings():
        noise.import_datasets(None)
        warnings.warn('unrelated', stacklevel=1)


def test_the_log_keeps_all_but_the_filtered_messages():
    logger, records = logging.Logger('test'), []
    logger.addHandler(logging.Handler())
    logger.handlers[0].emit = records.append
    noise.filter_log(logger)
    for message in (*noise.LOGGED, 'another'):
        logger.warning(f'{message} in future')
    assert [record.getMessage() for record in records] == ['another in future']
