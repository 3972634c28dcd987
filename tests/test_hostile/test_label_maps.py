"""Label maps of any kind: check_dataset reports an error, or mmseg loads what is meant."""

import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from said import said_by

from mmfocalnet.datasets.inspection import inspect_dataset
from mmfocalnet.datasets.label_maps import check_label_maps

SIZE = (6, 5)
PIPELINE = [
    dict(type='SkipUnreadable', load=dict(type='LoadImageFromFile')),
    dict(type='SkipUnreadable', load=dict(type='LoadAnnotations')),
    dict(type='PackSegInputs'),
]
# Of each dtype, formats that store it.
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


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('maps')
    for name in ('images', 'labels'):
        (folder / name).mkdir()
    Image.new('RGB', SIZE[::-1], 'teal').save(folder / 'images/one.jpg')
    return folder


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


@given(stored_maps(), st.integers(1, 6), st.booleans())
def test_maps_are_reported_or_loaded(folder, count, content, number, reduce):
    count()
    (folder / 'labels/one.png').write_bytes(content)
    classes = [f'class {place}' for place in range(number)]
    config = dict(
        type='BaseSegDataset',
        data_root=str(folder),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=classes),
        reduce_zero_label=reduce,
        pipeline=PIPELINE,
    )
    with DefaultScope.overwrite_default_scope('mmseg'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if inspect_dataset(config).findings.count(errors=True):
            return
        assert said_by(lambda: check_label_maps(config)) is None
        labels = DATASETS.build(config)[0]['data_samples'].gt_sem_seg.data.numpy()
    assert labels.shape == (1, *SIZE)
    stored = np.array(Image.open(io.BytesIO(content))).astype(int)
    if reduce:
        stored = np.where(np.isin(stored, (0, 255)), 255, stored - 1)
    assert (labels == stored).all()
    assert np.isin(labels, [*range(number), 255]).all()
