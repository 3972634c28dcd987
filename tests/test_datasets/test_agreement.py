"""What training refuses tools/check_dataset.py reports, and what it passes is trained on."""

import pytest
from faulty import assert_refused, change, copy_small, make_small

TRAIN = 'coco/annotations/instances_train2017.json'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture
def data(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return copy_small(made, tmp_path)


def polygon(*coordinates):
    return dict(segmentation=[list(coordinates)])


FAULTS = {
    # name: what the first annotation gets, and what is named
    'coordinates of 1e300': (polygon(1, 1, 9, 1e300, 9, 9), '1e+300'),
    'a coordinate that is NaN': (polygon(1, 1, 9, float('nan'), 9, 9), 'nan'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_of_an_annotation(tool, data, name):
    edit, *tokens = FAULTS[name]
    change(data / TRAIN, lambda content: content['annotations'][0].update(edit))
    assert_refused(tool, 'mask_rcnn', f'data/shapes/{TRAIN}: annotations[0] (id ', *tokens)
