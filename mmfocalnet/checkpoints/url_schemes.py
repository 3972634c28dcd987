"""Schemes of MMEngine's ``CheckpointLoader`` that never unpickle unsafe content.

MMEngine's own schemes fall back to unpickling if a safe load fails. These replacements serve
runners, ``init_detector``, inferencers and ``Pretrained`` initializers. Importing this module
registers them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmfocalnet.checkpoints.dino import class_names, count_classes, find_detector, to_mmdet
from mmfocalnet.checkpoints.read import pop_cached, published_detector, unwrap
from mmfocalnet.checkpoints.safe_load import Loaded, load_file
from mmfocalnet.errors import CheckpointError
from mmfocalnet.files import is_url
from mmfocalnet.text import short_text

# Functions that return a dict from model name to URL.
_ZOOS: dict[str, Callable[[], dict[str, str]]] = {
    'modelzoo': mmengine_checkpoint.get_torchvision_models,
    'torchvision': mmengine_checkpoint.get_torchvision_models,
    'open-mmlab': mmengine_checkpoint.get_external_models,
    'openmmlab': mmengine_checkpoint.get_external_models,
    'mmcls': mmengine_checkpoint.get_mmcls_models,
}


def register_schemes() -> None:
    """Replace all checkpoint loaders of MMEngine by those of this module.

    MMEngine logs the function name without ``load_from_`` as the name of the backend.
    """
    loaders = {
        load_from_source: ['', 'http://', 'https://', 'hf://'],
        load_from_zoo: [f'{name}://' for name in _ZOOS],
        load_from_storage: [r'(\S+\:)?s3://', r'(\S+\:)?petrel://'],
        load_from_pavi: ['pavi://'],
    }
    for loader, prefixes in loaders.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_source(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a file, a URL or a Hugging Face id; by default to the CPU."""
    return _content(pop_cached(filename, map_location or 'cpu'), filename)


def load_from_zoo(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a model of torchvision or OpenMMLab by name, such as ``'torchvision://resnet50'``."""
    scheme, _, name = filename.partition('://')
    if 'mmlab' in scheme:
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    url = _ZOOS[scheme]().get(name)
    if url is None:
        raise CheckpointError(
            f'{short_text(filename)} is not a model of {scheme}. Correct the name, or specify the '
            'path or URL of a checkpoint.'
        )
    if not is_url(url):
        url = os.path.join(mmengine_checkpoint._get_mmengine_home(), url)
    content = load_from_source(url, map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(content) if scheme == 'mmcls' else content


def load_from_storage(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load from an S3 storage through MMEngine's backend ``petrel``."""
    storage = get_file_backend(filename, backend_args={'backend': 'petrel'})
    with NamedTemporaryFile(suffix='.pth') as file:
        file.write(storage.get(filename))
        file.flush()
        return _content(load_file(Path(file.name), map_location or 'cpu', filename), filename)


def load_from_pavi(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Refuse ``pavi://``, because its client unpickles."""
    raise CheckpointError(
        f'{short_text(filename)}: pavi:// is not supported. Download the file and give its path.'
    )


def _content(loaded: Loaded, name: str) -> dict[str, Any]:
    _, content, metadata = loaded
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{short_text(name)} contains a {type(content).__name__}, expected a state dict. Save '
            'model.state_dict() instead.'
        )
    published = published_detector(content, name)
    if published is not None:
        return _rename_detector(published, name)
    if 'state_dict' not in content:
        # MMEngine does not look below the other keys, and would leave the model as it is.
        with suppress(CheckpointError):
            state = unwrap(content, name)
            content = content if state is content else {**content, 'state_dict': state}
    if isinstance(metadata, dict) and 'config' in metadata and 'meta' in content:
        # When MMEngine resumes, it executes this text as Python to compare the number of GPUs.
        content = {**content, 'meta': {k: v for k, v in metadata.items() if k != 'config'}}
    return content


def _rename_detector(published: dict[str, Tensor], name: str) -> dict[str, Any]:
    """A checkpoint in MMEngine's format of a published DINO detector."""
    detector, state = find_detector(published), to_mmdet(published, name=name)
    assert detector, 'see published_detector'
    reduced = count_classes(state) < detector.num_classes
    print_log(
        f'{short_text(name)}: {detector}{", reduced to the 80 classes of COCO" * reduced}.',
        logger='current',
    )
    return dict(
        state_dict=state, meta=dict(dataset_meta=dict(classes=class_names(detector, state)))
    )


register_schemes()
