"""Time the training pipelines of configs."""

import io
import json
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from benchmarking.detectors import DETECTORS, ROOT
from mmfocalnet.datasets import make_shapes
from mmfocalnet.engine.seeding import SAMPLE, SeededIndex
from mmfocalnet.errors import UserError

IMAGES = 100


@contextmanager
def training_images(args):
    """The folder of --data-root, or generated images of 480x640."""
    if args.data_root:
        yield Path(args.data_root)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_shapes(Path(folder, 'shapes'), num_train=16, num_val=1, size=(480, 640))


def training_set(name, root):
    """The training set of a config below a folder with the layouts of COCO and ADE20K."""
    cfg = Config.fromfile(ROOT / DETECTORS[name])
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(root / ('ade' if cfg.default_scope == 'mmseg' else 'coco'))
    if 'ann_file' in dataset:
        file = Path(dataset.data_root, dataset.ann_file)
        _check_exists(file)
        categories = json.loads(file.read_text())['categories']
        dataset.metainfo = dict(classes=[category['name'] for category in categories])
    else:
        _check_exists(Path(dataset.data_root, dataset.data_prefix.img_path))
    # pycocotools prints its progress.
    with DefaultScope.overwrite_default_scope(cfg.default_scope), redirect_stdout(io.StringIO()):
        return DATASETS.build(dataset)


def _check_exists(path):
    if not path.exists():
        raise UserError(
            f'--data-root: {path} does not exist. Specify a folder with coco/ and ade/, as '
            'tools/make_shapes.py writes it, or leave out the flag.'
        )


def pipeline_seconds(dataset):
    """Processor seconds per image of each step of a pipeline, on one core as in a worker."""
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    taken = Counter()
    for position in range(IMAGES):
        index = SeededIndex(position % len(dataset), (SAMPLE, 0, position))
        steps = [('read annotations', lambda _, index=index: dataset.get_data_info(index))]
        steps += [(step_name(transform), transform) for transform in dataset.pipeline.transforms]
        results = None
        for name, step in steps:
            start = time.process_time()
            results = step(results)
            taken[name] += time.process_time() - start
            if results is None:  # unreadable
                break
    torch.set_num_threads(threads)
    cv2.setNumThreads(cv2_threads)
    return {name: total / IMAGES for name, total in taken.items()}


def step_name(transform):
    return type(getattr(transform, 'load', transform)).__name__
