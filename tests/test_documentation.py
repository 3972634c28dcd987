"""Pages outside the site link to what exists, and the API reference has every public name.

`make docs` checks the pages of the site.
"""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob('*.md'), *ROOT.glob('configs/*/*.md'), *ROOT.glob('.github/**/*.md')]
PUBLIC = [
    'mmfocalnet',
    'mmfocalnet.checkpoints',
    'mmfocalnet.datasets',
    'mmfocalnet.datasets.inspection',
    'mmfocalnet.inference',
    'mmfocalnet.models',
    'mmfocalnet.ops',
    'mmfocalnet.visualization',
]


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading).lower().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_exist(page):
    for link in re.findall(r'\]\((?!https?:)([^)]+)\)', page.read_text()):
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def documented_objects():
    """The objects that the pages in docs/api list."""
    for page in (ROOT / 'docs/api').glob('*.md'):
        directives = re.findall(r'^\.\. (\S+):: (\S+)$', page.read_text(), re.MULTILINE)
        for directive, name in directives:
            if directive == 'currentmodule':
                module = import_module(name)
            else:
                yield getattr(module, name)


def test_the_api_reference_has_every_public_name():
    documented = {id(thing) for thing in documented_objects()}
    missing = [
        f'{module}.{name}'
        for module in PUBLIC
        for name in import_module(module).__all__
        if name != '__version__' and id(getattr(import_module(module), name)) not in documented
    ]
    assert not missing
