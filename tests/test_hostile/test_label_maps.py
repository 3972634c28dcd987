"""Label maps of any format: the inspection reports errors exactly if mmseg would misread them."""

import io
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmfocalnet.datasets.inspection import inspect_dataset
from mmfocalnet.datasets.label_maps import check_label_maps

pytestmark = pytest.mark.fuzz
SIZE = (6, 5)
PIPELINE = [
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='SkipUnreadable', load=dict(type='LoadAnnotations')),
    dict(type='PackSegInputs'),
]
# Formats that store a dtype.
FORMATS = {
    'bool': ('PNG', 'TIFF', 'BMP'),
    'uint8': ('PNG', 'TIFF', 'BMP', 'GIF', 'WEBP', 'JPEG', 'PPM'),
    'uint16': ('PNG', 'TIFF', 'PPM'),
    'int32': ('TIFF',),
    'float32': ('TIFF',),
}
MODES = ('as is',) * 5 + ('P', 'LA', 'RGB', 'RGBA', 'CMYK', 'I', 'F')
SOUND_VALUES = st.sampled_from([0, 1, 2, 3, 255])
VALUES = st.one_of(
    SOUND_VALUES,
    st.sampled_from([-1, 0, 1, 3, 254, 255, 256, 257, 511, 512, 65535, 2**31 - 1]),
)


@st.composite
def stored_maps(draw):
    """The content of a file."""
    dtype = draw(st.sampled_from(sorted(FORMATS)))
    height, width = draw(st.sampled_from([SIZE] * 6 + [SIZE[::-1], (6, 1), (1, 1), (12, 10)]))
    values = draw(st.sampled_from([SOUND_VALUES, SOUND_VALUES, VALUES]))
    choice = draw(st.lists(values, min_size=1, max_size=4))
    picked = draw(st.lists(st.sampled_from(choice), min_size=height, max_size=height))
    with np.errstate(invalid='ignore'):
        labels = np.repeat(np.array(picked)[:, None], width, axis=1).astype(dtype)
    if dtype == 'float32' and draw(st.booleans()):
        labels[0] = np.nan
    image = Image.fromarray(labels)
    mode = draw(st.sampled_from(MODES))
    file = io.BytesIO()
    try:
        image = image if mode == 'as is' else image.convert(mode)
        image.save(file, draw(st.sampled_from(FORMATS[dtype])))
    except (OSError, ValueError):  # not every format stores every mode
        image.convert('L').save(file, 'PNG')
    content = file.getvalue()
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return content


def expected_labels(content, number, reduce):
    """The labels (H, W) in a file; None if training cannot use it."""
    try:
        stored = np.array(Image.open(io.BytesIO(content)))
    except Exception:  # Pillow's decoders raise any type
        return None
    if stored.shape != SIZE or stored.dtype.kind == 'f':
        return None
    stored = stored.astype(int)
    is_drawing = number > 1 and set(stored.flat) == {0, 255}
    if reduce:
        stored = np.where(np.isin(stored, (0, 255)), 255, stored - 1)
    is_valid = np.isin(stored, [*range(number), 255]).all()
    return stored if is_valid and (stored != 255).any() and not is_drawing else None


def test_errors_are_reported_exactly_for_unusable_maps(tmp_path):
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    Image.new('RGB', SIZE[::-1], 'teal').save(tmp_path / 'images/one.jpg')
    outcomes = Counter()

    @given(stored_maps(), st.integers(1, 6), st.booleans())
    def check(content, number, reduce):
        (tmp_path / 'labels/one.png').write_bytes(content)
        config = dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            metainfo=dict(classes=[f'class {index}' for index in range(number)]),
            reduce_zero_label=reduce,
            pipeline=PIPELINE,
        )
        expected = expected_labels(content, number, reduce)
        findings = inspect_dataset(config).findings
        assert (findings.total(errors=True) == 0) == (expected is not None), findings.lines()
        outcomes['refused' if expected is None else 'loaded'] += 1
        if expected is not None:
            check_label_maps(config)
            labels = DATASETS.build(config)[0]['data_samples'].gt_sem_seg.data.numpy()
            assert (labels == expected[None]).all()

    with DefaultScope.overwrite_default_scope('mmseg'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        check()
    assert outcomes['refused'] and outcomes['loaded'], outcomes
