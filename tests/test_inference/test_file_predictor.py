"""The files written for images and videos of each task."""

import json
import shutil
from copy import deepcopy

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import decode

from mmfocalnet.compat.panopticapi import rgb2id
from mmfocalnet.inference import read_image
from mmfocalnet.inference.file_predictor import FilePredictor
from mmfocalnet.inference.results import Results
from mmfocalnet.inference.sources import find_sources


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / 'photos'
    (folder / 'sub').mkdir(parents=True)
    for name, size in (('a.png', (40, 64)), ('b.jpg', (40, 64)), ('sub/a.png', (64, 40))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    return folder


def write_video(path, frames, codec='MJPG', size=(48, 32)):
    random = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 5, size)
    for _ in range(frames):
        writer.write(random.integers(0, 256, (*size[::-1], 3), np.uint8))
    writer.release()
    return path


def predict(predictor, inputs, out, **options):
    sources, problems = find_sources([str(text) for text in inputs])
    assert not problems
    run = FilePredictor(predictor, out, **options)
    written = run(sources)
    assert all(path.exists() for path in written)
    assert not list(out.rglob('.partial*'))
    return run


def read_json(path):
    return json.loads(path.read_text())


def test_boxes_and_masks_in_cocos_format(predictor, photos, tmp_path):
    out = tmp_path / 'out'
    model = predictor('mask_rcnn')
    run = predict(model, [photos, photos / 'sub'], out, score_thr=0.0)
    assert not run.problems
    assert sorted(path.name for path in (out / 'vis').iterdir()) == ['a.png', 'a_2.png', 'b.jpg']
    assert read_image(out / 'vis/a_2.png').shape == (64, 40, 3)

    results = read_json(out / 'predictions.json')
    assert {entry['image_id'] for entry in results} == {1, 2, 3}
    images = read_json(out / 'images.json')
    assert [(image['id'], image['name']) for image in images] == [(1, 'a'), (2, 'b'), (3, 'a_2')]
    assert images[2]['file_name'] == f'{photos}/sub/a.png' and images[2]['height'] == 64
    first = [entry for entry in results if entry['file_name'] == f'{photos}/a.png']
    prediction = model.predict([read_image(photos / 'a.png')])[0]
    assert len(first) == len(prediction.scores)
    for entry, box, label, mask in zip(
        first, prediction.boxes, prediction.labels, prediction.masks, strict=True
    ):
        left, top, width, height = entry['bbox']
        np.testing.assert_allclose([left, top, left + width, top + height], box, atol=0.02)
        assert entry['category_id'] == label + 1
        assert (decode(entry['segmentation']) == mask).all()
    assert read_json(out / 'categories.json')[3] == dict(id=4, name='star')


def test_pycocotools_reads_them(predictor, photos, tmp_path):
    predict(predictor('mask_rcnn'), [photos], tmp_path / 'out', score_thr=0.0)
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=id_, width=64, height=40) for id_ in (1, 2)],
        categories=read_json(tmp_path / 'out/categories.json'),
        annotations=[],
    )
    truth.createIndex()
    assert truth.loadRes(str(tmp_path / 'out/predictions.json')).getAnnIds()


def test_threshold_and_batches(predictor, photos, tmp_path):
    scores = []
    for batch_size, score_thr in ((1, 0.0), (2, 0.0), (2, 0.99)):
        out = tmp_path / f'{batch_size}_{score_thr}'
        predict(
            predictor('mask_rcnn'), [photos, photos / 'sub'], out,
            batch_size=batch_size, score_thr=score_thr,
        )  # fmt: skip
        scores.append([entry['score'] for entry in read_json(out / 'predictions.json')])
    one, two, high = scores
    assert high == []
    assert one
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert (read_image(tmp_path / '2_0.99/vis/a.png') == read_image(photos / 'a.png')).all()


def test_category_ids_of_the_annotation_file_are_used(predictor, photos, tmp_path, monkeypatch):
    model = predictor('mask_rcnn')
    categories = [
        dict(id=id_, name=name)
        for id_, name in ((90, 'star'), (7, 'circle'), (8, 'square'), (9, 'triangle'))
    ]
    (tmp_path / 'annotations.json').write_text(json.dumps(dict(categories=categories)))
    cfg = deepcopy(model.cfg)
    cfg.test_dataloader.dataset.update(data_root=str(tmp_path), ann_file='annotations.json')
    monkeypatch.setattr(model, 'cfg', cfg)
    run = predict(model, [photos], tmp_path / 'out', score_thr=0.0)
    assert run.results.ids_from == tmp_path / 'annotations.json'
    assert read_json(tmp_path / 'out/categories.json')[-1] == dict(id=90, name='star')
    ids = {entry['category_id'] for entry in read_json(tmp_path / 'out/predictions.json')}
    assert ids <= {7, 8, 9, 90}


def test_semantic_maps_contain_class_indices(predictor, photos, tmp_path):
    model = predictor('upernet')
    predict(model, [photos], tmp_path / 'out')
    with Image.open(tmp_path / 'out/pred/b.png') as image:
        assert image.mode == 'L'
        values = np.asarray(image)
    assert (values == model.predict([read_image(photos / 'b.jpg')])[0].semantic).all()
    assert read_json(tmp_path / 'out/categories.json')[0] == dict(id=0, name='circle')
    assert not (tmp_path / 'out/predictions.json').exists()


def test_panoptic_maps_in_cocos_format(predictor, photos, tmp_path):
    out = tmp_path / 'out'
    predict(predictor('mask2former'), [photos], out)
    content = read_json(out / 'predictions.json')
    assert [category['isthing'] for category in content['categories']] == [1] * 4 + [0] * 3
    assert [image['width'] for image in content['images']] == [64, 64]
    for annotation in content['annotations']:
        with Image.open(out / 'panoptic' / annotation['file_name']) as image:
            ids = rgb2id(np.asarray(image))
        assert annotation['segments_info']
        for segment in annotation['segments_info']:
            assert (ids == segment['id']).sum() == segment['area']
            assert 1 <= segment['category_id'] <= 7


def test_videos(predictor, photos, tmp_path):
    video = write_video(tmp_path / 'a.avi', 3)
    out = tmp_path / 'out'
    run = predict(
        predictor('mask_rcnn'), [photos / 'a.png', video], out, batch_size=2, score_thr=0.0
    )
    assert not run.problems
    drawn = cv2.VideoCapture(str(out / 'vis/a_2.mp4'))
    assert drawn.get(cv2.CAP_PROP_FPS) == 5
    frames = []
    while (read := drawn.read())[0]:
        frames.append(read[1])
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 3
    results = read_json(out / 'predictions.json')
    assert {(entry['image_id'], entry.get('frame')) for entry in results} == {
        (1, None), (2, 0), (3, 1), (4, 2),
    }  # fmt: skip


def test_maps_of_videos_are_in_a_folder(predictor, tmp_path):
    predict(predictor('upernet'), [write_video(tmp_path / 'a.avi', 2)], tmp_path / 'out')
    maps = sorted((tmp_path / 'out/pred').rglob('*.png'))
    assert [path.relative_to(tmp_path / 'out/pred').as_posix() for path in maps] == [
        'a/000000.png', 'a/000001.png',
    ]  # fmt: skip


def test_invalid_inputs_are_reported_and_the_rest_is_predicted(predictor, photos, tmp_path):
    whole = write_video(tmp_path / 'whole.avi', 6).read_bytes()
    (photos / 'cut.avi').write_bytes(whole[: len(whole) // 2])
    (photos / 'text.avi').write_text('text')
    (photos / 'text.jpg').write_text('text')
    Image.new('RGB', (900, 1)).save(photos / 'line.png')
    out = tmp_path / 'out'
    run = predict(predictor('mask_rcnn'), [photos], out, batch_size=4)
    assert len(run.problems) == 4
    for tokens in (('cut.avi', 'of 6'), ('line.png', '900x1'), ('text.avi',), ('text.jpg',)):
        assert any(all(token in problem for token in tokens) for problem in run.problems)
    assert sorted(path.name for path in (out / 'vis').iterdir()) == ['a.png', 'b.jpg', 'cut.mp4']


def interrupt(*_):
    raise KeyboardInterrupt


def test_no_incomplete_files_remain(predictor, photos, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    model = predictor('mask_rcnn')
    with monkeypatch.context() as patch:
        patch.setattr(FilePredictor, '_add_frame', interrupt)
        FilePredictor(model, out)(find_sources([str(write_video(tmp_path / 'a.avi', 2))])[0])
    assert list((out / 'vis').iterdir()) == []
    predict(model, [photos], out)
    shutil.copytree(out, tmp_path / 'first')
    monkeypatch.setattr(json, 'dumps', interrupt)
    with pytest.raises(KeyboardInterrupt):
        FilePredictor(model, out)(find_sources([str(photos)])[0])
    before = (tmp_path / 'first/predictions.json').read_text()
    assert (out / 'predictions.json').read_text() == before


def full_disk(path, *_):
    raise OSError(28, 'No space left on device', str(path))


@pytest.mark.parametrize(('failure', 'interrupted'), [(interrupt, True), (full_disk, False)])
def test_predictions_before_a_failure_are_kept(
    predictor, photos, tmp_path, monkeypatch, failure, interrupted
):
    out = tmp_path / 'out'
    save = Results.add

    def add_one(self, prediction, name, **origin):
        if self.images:
            failure(f'{name}.jpg')
        save(self, prediction, name, **origin)

    monkeypatch.setattr(Results, 'add', add_one)
    run = predict(predictor('mask_rcnn'), [photos], out, score_thr=0.0)
    assert run.interrupted is interrupted
    assert len(run.problems) == 1 and ('disk' in run.problems[0]) is not interrupted
    assert {entry['image_id'] for entry in read_json(out / 'predictions.json')} == {1}


def test_nothing_is_written_without_predictions(predictor, tmp_path):
    (tmp_path / 'text.jpg').write_text('text')
    run = FilePredictor(predictor('mask_rcnn'), tmp_path / 'out')
    assert run(find_sources([str(tmp_path / 'text.jpg')])[0]) == []
    assert not (tmp_path / 'out').exists()


def test_file_names_of_the_maximum_length(predictor, photos, tmp_path):
    for name in ('a' * 250 + '.png', 'ä' * 125 + '.png', '日' * 83 + '.jpg'):
        shutil.copy(photos / 'a.png', photos / name)
    run = predict(predictor('upernet'), [photos], tmp_path / 'out')
    assert not run.problems
    assert len(list((tmp_path / 'out/pred').iterdir())) == 5
