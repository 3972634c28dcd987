"""Images in folders per class, transforms and metric of a classifier, crops of the shapes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, METRICS, DefaultScope

from mmfocalnet.datasets import THINGS, ImageFolder, PackImage, RandomResizedCrop, make_shape_crops
from mmfocalnet.datasets.image_folder import check_image_folders
from mmfocalnet.errors import ConfigError, DataError, UserError

CONFIGS = Path(__file__).parents[2] / 'configs'


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 60, 3), 128, np.uint8))


@pytest.fixture
def root(tmp_path):
    for split in ('train', 'val'):
        write(tmp_path / split / 'n02' / 'b.jpg')
        write(tmp_path / split / 'n01' / 'deeper' / 'a.png')
        write(tmp_path / split / 'n01' / 'c.jpg')
        (tmp_path / split / 'n01' / 'c.jpg').rename(tmp_path / split / 'n01' / 'c.JPEG')
        (tmp_path / split / 'n01' / 'readme.txt').touch()
        (tmp_path / split / '.cache').mkdir()
    return tmp_path


def dataset(root, split='train', **kwargs):
    return dict(type='ImageFolder', data_root=str(root), data_prefix=dict(img=split), **kwargs)


def test_labels_are_indices_of_sorted_folders(root):
    assert DATASETS.get('mmengine.ImageFolder') is ImageFolder
    built = DATASETS.build(dataset(root))
    assert built.metainfo['classes'] == ['n01', 'n02']
    listed = [
        (Path(item['img_path']).name, item['gt_label']) for item in map(built.__getitem__, range(3))
    ]
    assert listed == [('c.JPEG', 0), ('a.png', 0), ('b.jpg', 1)]


def test_metainfo_selects_classes(root):
    built = DATASETS.build(dataset(root, metainfo=dict(classes=('n02',))))
    assert len(built) == 1
    assert built[0]['gt_label'] == 0
    with pytest.raises(DataError, match='n03'):
        DATASETS.build(dataset(root, metainfo=dict(classes=('n02', 'n03'))))


def test_missing_folders_and_images(root):
    with pytest.raises(ConfigError, match='test is missing'):
        DATASETS.build(dataset(root, 'test'))
    write(root / 'flat' / 'ILSVRC2012_val_00000001.JPEG.png')
    with pytest.raises(DataError, match='flat has no folders'):
        DATASETS.build(dataset(root, 'flat'))
    (root / 'train' / 'n03').mkdir()
    with pytest.raises(DataError, match='n03 has no images'):
        DATASETS.build(dataset(root))


def test_classes_of_splits_and_model_are_compared(root):
    both = [dataset(root), dataset(root, 'val'), dict(type='CocoDataset')]
    check_image_folders(both, dict(num_classes=2))
    with pytest.raises(ConfigError, match=r'model.num_classes is 1000, .*train has 2 classes'):
        check_image_folders(both, dict(num_classes=1000))
    (root / 'val' / 'n02').rename(root / 'val' / 'n03')
    with pytest.raises(DataError, match=r"train, such as 'n02'; .*val, such as 'n03'"):
        check_image_folders(both, dict(num_classes=2))
    with pytest.raises(ConfigError, match='none is missing'):
        check_image_folders([dataset(root, 'none')], {})


def test_random_regions_keep_to_area_and_aspect():
    crop = RandomResizedCrop(24, area=(0.2, 0.5), aspect=(0.5, 2.0))
    regions = np.array([crop._sample_region(60, 100) for _ in range(300)])
    top, left, height, width = regions.T
    assert (top >= 0).all() and (top + height <= 60).all()
    assert (left >= 0).all() and (left + width <= 100).all()
    area, aspect = height * width / 6000, width / height
    assert 0.18 < area.min() < 0.25 and 0.45 < area.max() < 0.52
    assert 0.45 < aspect.min() < 0.8 and 1.5 < aspect.max() < 2.2
    result = crop.transform({'img': np.zeros((60, 100, 3), np.uint8)})
    assert result['img'].shape == (24, 24, 3)
    assert result['img_shape'] == (24, 24)


def test_the_centre_is_cropped_if_no_region_fits():
    crop = RandomResizedCrop(8, area=(1.0, 1.0))
    assert crop._sample_region(10, 1000) == (0, 493, 10, 13)
    assert crop._sample_region(1000, 10) == (493, 0, 13, 10)
    with pytest.raises(ConfigError, match=r'area=\(0.5, 0.1\)'):
        RandomResizedCrop(8, area=(0.5, 0.1))


def test_packed_for_the_model():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    packed = PackImage()({'img': image, 'gt_label': 3, 'img_path': 'x.jpg', 'flip': True})
    assert packed['inputs'].shape == (3, 2, 4)
    assert packed['inputs'][1, 0].tolist() == [1, 4, 7, 10]
    assert packed['data_samples'].gt_label == 3
    assert packed['data_samples'].img_path == 'x.jpg'
    assert 'gt_label' not in PackImage()({'img': image})['data_samples']


@pytest.mark.parametrize(('name', 'size'), [('focalnet_t', 224), ('focalnet_t_384', 384)])
def test_pipelines_of_imagenet(root, name, size):
    cfg = Config.fromfile(CONFIGS / f'imagenet/{name}.py')
    with DefaultScope.overwrite_default_scope('mmengine'):
        pipelines = [Compose(cfg.train_pipeline), Compose(cfg.test_pipeline)]
    for pipeline in pipelines:
        for path in ('n01/c.JPEG', 'n02/b.jpg'):
            packed = pipeline({'img_path': str(root / 'train' / path), 'gt_label': 1})
            assert packed['inputs'].shape == (3, size, size)
            assert str(packed['inputs'].dtype) == 'torch.uint8'


def test_every_operation_of_rand_augment_changes_only_the_image():
    cfg = Config.fromfile(CONFIGS / 'imagenet/focalnet_t.py')
    image = np.random.default_rng(0).integers(40, 200, (32, 48, 3), np.uint8)
    operations = [operation for (operation,) in cfg.rand_augment.aug_space]
    chances = {op.type: sum(op.type == other.type for other in operations) for op in operations}
    assert len(chances) == 15
    assert set(chances.values()) == {2}
    with DefaultScope.overwrite_default_scope('mmengine'):
        for operation in operations:
            assert operation.prob == 0.5
            before = {'img': image.copy(), 'img_shape': (32, 48), 'gt_label': 7}
            after = Compose([dict(operation, prob=1.0)])(before)
            assert after['img'].shape == image.shape, operation
            assert after['img'].dtype == np.uint8
            assert (after['img'] != image).any(), operation
            assert after['gt_label'] == 7


def test_top_k_accuracy():
    metric = METRICS.build(dict(type='TopKAccuracy', topk=(1, 2)))
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.5, 0.4], [0.2, 0.3, 0.5], [1 / 3] * 3])
    samples = [
        {'pred_scores': row, 'gt_label': label}
        for row, label in zip(scores, [0, 2, 0, 0], strict=True)
    ]
    metric.process({}, samples)
    assert metric.evaluate(4) == {'accuracy/top1': 25.0, 'accuracy/top2': 50.0}
    metric.process({}, [dict(pred_scores=np.full(4, np.nan), gt_label=2)])
    assert metric.evaluate(1) == {'accuracy/top1': 0, 'accuracy/top2': 0}
    with pytest.raises(ConfigError, match='needs 5 classes'):
        METRICS.build(dict(type='TopKAccuracy')).process({}, samples)


@pytest.mark.parametrize('topk', [5, (), (0,), ('1',)])
def test_invalid_topk(topk):
    with pytest.raises(ConfigError, match='topk'):
        METRICS.build(dict(type='TopKAccuracy', topk=topk))


def test_crops_of_shapes(tmp_path):
    out = make_shape_crops(tmp_path / 'crops', 3, 2, size=32)
    stamp = (out / 'shapes.json').stat().st_mtime_ns
    assert make_shape_crops(tmp_path / 'crops', 3, 2, size=32) == out
    assert (out / 'shapes.json').stat().st_mtime_ns == stamp
    crops = sorted(out.glob('*/*/*.jpg'))
    assert {path.parent.name for path in crops} <= set(THINGS)
    assert len({path.name for path in (out / 'train').glob('*/*.jpg')}) >= 6
    assert all(cv2.imread(str(path)).shape == (32, 32, 3) for path in crops)
    with pytest.raises(UserError, match='crops'):
        make_shape_crops(tmp_path / 'crops', 4, 2, size=32)
    with pytest.raises(UserError, match='size'):
        make_shape_crops(tmp_path / 'other', size=8)
    assert [path.name for path in tmp_path.iterdir()] == ['crops']
