from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def coco_root():
    """A few real COCO images, where they are at hand; they are not part of the project."""
    root = SHARED / 'data' / 'coco'
    if not root.is_dir():
        pytest.skip('no ../shared/data/coco here')
    return root
