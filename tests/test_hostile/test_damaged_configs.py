"""A damaged config file is read, or ends in an error that names it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmfocalnet.config import read_config
from mmfocalnet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.fuzz
@given(data=st.data())
def test_a_damaged_config(tmp_path, data):
    text = (ROOT / 'configs/demo/mask_rcnn.py').read_text()
    text = text.replace("'../", f"'{ROOT}/configs/")
    place = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 30))
    # No letters or digits, which could make an endless loop or a call.
    inserted = data.draw(st.text('()[]{}=,:\'"#\\\n\t ü\0', max_size=4))
    path = tmp_path / 'damaged.py'
    path.write_text(text[:place] + inserted + text[place + length :])
    try:
        cfg = read_config(str(path))
    except ConfigError as error:
        assert 'damaged.py' in str(error)
    else:
        assert cfg.filename == str(path)
