import importlib
import sys

import pytest

from mmfocalnet.compat.module_finder import ImportTrigger, ModulePatch


def double(module):
    module.number = 2 * module.number


@pytest.mark.parametrize('before', [False, True])
def test_a_module_changes_whether_it_is_imported_before_or_after(monkeypatch, tmp_path, before):
    (tmp_path / 'patched_module.py').write_text('number = 1')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    if before:
        importlib.import_module('patched_module')
    finders = len(sys.meta_path)
    ModulePatch('patched_module', double).install()
    assert before == ('patched_module' in sys.modules)
    module = importlib.import_module('patched_module')
    assert module.number == 2
    assert importlib.reload(module).number == 2
    assert len(sys.meta_path) == finders + 1
    del sys.modules['patched_module']


def test_the_same_patch_is_installed_once(monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    finders = len(sys.meta_path)
    for _ in range(2):
        ModulePatch('not_imported', double).install()
    assert len(sys.meta_path) == finders + 1


def test_a_trigger_is_called_before_its_modules_are_imported(monkeypatch, tmp_path):
    (tmp_path / 'triggering_module.py').write_text('import os; value = os.environ["TRIGGERED"]')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    finders = len(sys.meta_path)
    trigger = ImportTrigger(
        ('another_module', 'triggering_module'), lambda: monkeypatch.setenv('TRIGGERED', 'yes')
    )
    for _ in range(2):
        trigger.install()
    assert len(sys.meta_path) == finders + 1
    assert importlib.import_module('triggering_module').value == 'yes'
    del sys.modules['triggering_module']
