"""Messages of dependencies that the tools filter."""

import logging
import warnings

import pytest

from mmfocalnet.cli.error_handling import report_errors
from mmfocalnet.compat import log_filters


def test_imports_print_all_but_the_filtered_lines(monkeypatch, capsys):
    def load(name):
        print(log_filters.PRINTED[0])
        if name.endswith('.datasets'):
            print('Another line.')
        warnings.warn(f'{log_filters.WARNINGS[0]}, ...', stacklevel=1)

    monkeypatch.setattr(log_filters.importlib, 'import_module', load)
    with warnings.catch_warnings(record=True) as shown:
        log_filters.import_datasets('mmdet')
    assert capsys.readouterr().out == 'Another line.\n'
    assert not shown


def test_other_warnings_are_shown():
    with pytest.warns(UserWarning, match='unrelated'), warnings.catch_warnings():
        log_filters.import_datasets(None)
        warnings.warn('unrelated', stacklevel=1)


def test_the_log_keeps_all_but_the_filtered_messages():
    logger, records = logging.Logger('test'), []
    logger.addHandler(logging.Handler())
    logger.handlers[0].emit = records.append
    log_filters.filter_log(logger)
    for message in (*log_filters.LOGGED, 'another'):
        logger.warning(f'{message} in future')
    assert [record.getMessage() for record in records] == ['another in future']


def test_tools_show_all_but_the_filtered_warnings():
    def main():
        for message in (*log_filters.WARNINGS, 'another'):
            warnings.warn(f'{message} in future', stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        report_errors(main)()
    assert [str(one.message) for one in shown] == ['another in future']
