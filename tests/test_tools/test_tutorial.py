"""The commands of docs/bccd.md run in their order, with a short training.

On the images of BCCD if ../shared/data has them, else on generated ones with its names.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import cv2
import pytest

from mmfocalnet.datasets import draw_image

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / 'shared/data/bccd'
PAGE = (ROOT / 'docs/bccd.md').read_text()
CLASSES = ['RBC', 'WBC', 'Platelets']
# In the order of the page. Downloads, installations and the GPU are left out.
COMMANDS = [
    line
    for block in re.findall(r'```bash\n(.*?)```', PAGE, re.DOTALL)
    for line in block.replace('\\\n', '').splitlines()
    if line.startswith('python') and '--amp' not in line
]
SHORT = 'train_cfg.max_iters=20 train_cfg.val_interval=20'


def write_split(folder, split, number):
    """Write shapes of the first three classes as cells."""
    (folder / split).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(number):
        sample = draw_image(index, 'train' if split == 'train' else 'val')
        name = f'BloodImage_{index:05}.jpg'
        cv2.imwrite(str(folder / split / name), sample.image[..., ::-1])
        images.append(dict(id=index + 1, file_name=name, height=160, width=160))
        for segment in sample.segments:
            if segment.category_id <= len(CLASSES):
                box = dict(bbox=segment.bbox, area=segment.bbox[2] * segment.bbox[3], iscrowd=0)
                ids = dict(image_id=index + 1, category_id=segment.category_id)
                annotations.append(dict(**box, **ids, id=len(annotations) + 1))
    categories = [dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / f'annotations/{split}.json').write_text(json.dumps(content))


@pytest.mark.e2e
@pytest.mark.export
@pytest.mark.slow
def test_the_commands_of_the_tutorial(run, tmp_path):
    (tmp_path / 'data').mkdir()
    for folder in ('configs', 'tools'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    data = tmp_path / 'data/bccd'
    if REAL.exists():
        data.symlink_to(REAL)
    else:
        for split, number in (('train', 32), ('val', 8), ('test', 8)):
            write_split(data, split, number)
    outputs = {}
    for command in COMMANDS:
        command = command.replace('iter_600', 'iter_20')
        words = [sys.executable, *shlex.split(command)[1:]]
        if 'train.py' in words[1]:
            words += ['--cfg-options', *SHORT.split()]
        outputs[Path(words[1]).stem] = run(*words, cwd=tmp_path).stdout
    assert 'errors: 0' in outputs['check_dataset']
    assert re.search(r'\(test\).* coco/bbox_mAP: \d', outputs['test'])
    written = [
        'my_bccd.py',
        'atss_focalnet/report.html',
        'maps',
        'results',
        'exported_results',
    ]
    assert all((tmp_path / 'work_dirs' / name).exists() for name in written)


def test_the_config_of_the_tutorial():
    shown = re.search(r'```python\n(_base_.*?)```', PAGE, re.DOTALL)[1]
    assert (ROOT / 'configs/bccd/atss_focalnet.py').read_text().endswith(shown)
