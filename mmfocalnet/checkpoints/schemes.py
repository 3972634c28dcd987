"""The schemes of MMEngine's ``CheckpointLoader``, none of which unpickles.

MMEngine's own fall back to unpickling what does not load safely. These serve everything in the
stack that loads checkpoints: runners, ``init_detector``, inferencers, ``Pretrained`` initialisers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mmengine.fileio import get_file_backend
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from mmfocalnet.checkpoints.read import take
from mmfocalnet.checkpoints.safe_load import Loaded, load_file
from mmfocalnet.errors import CheckpointError
from mmfocalnet.files import is_url
from mmfocalnet.text import shown

# Each gives the URLs of its models by name.
_ZOOS: dict[str, Callable[[], dict[str, str]]] = {
    'modelzoo': mmengine_checkpoint.get_torchvision_models,
    'torchvision': mmengine_checkpoint.get_torchvision_models,
    'open-mmlab': mmengine_checkpoint.get_external_models,
    'openmmlab': mmengine_checkpoint.get_external_models,
    'mmcls': mmengine_checkpoint.get_mmcls_models,
}


def register_schemes() -> None:
    """Replace all of MMEngine's loaders of checkpoints by those of this module."""
    zoos = [f'{name}://' for name in _ZOOS]
    loaders = {
        load_from_source: ['', 'http://', 'https://', 'hf://'],
        load_from_zoo: zoos,
        load_from_storage: [r'(\S+\:)?s3://', r'(\S+\:)?petrel://'],
        load_from_pavi: ['pavi://'],
    }
    for loader, prefixes in loaders.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_source(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a file, a URL or a Hugging Face id.

    Args:
        filename: As for `mmfocalnet.checkpoints.fetch`.
        map_location: As for `torch.load`. Defaults to None: the CPU.

    Returns:
        The content; of a safetensors file the state dict.

    Raises:
        CheckpointError: If it cannot be found, downloaded or read, or is not a dict.
    """
    return _content(take(filename, map_location or 'cpu'))


def load_from_zoo(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a model of torchvision or OpenMMLab by its name, such as ``'torchvision://resnet50'``.

    Args:
        filename: Scheme and name.
        map_location: As of `load_from_source`.

    Returns:
        As `load_from_source`.

    Raises:
        CheckpointError: As `load_from_source`, or if there is no such name.
    """
    scheme, _, name = filename.partition('://')
    if 'mmlab' in scheme:
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    url = _ZOOS[scheme]().get(name)
    if url is None:
        raise CheckpointError(
            f'{shown(filename)} is not a model that {scheme} has: correct its name, or give the '
            'path or URL of a checkpoint.'
        )
    if not is_url(url):
        url = os.path.join(mmengine_checkpoint._get_mmengine_home(), url)
    content = load_from_source(url, map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(content) if scheme == 'mmcls' else content


def load_from_storage(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a checkpoint from an S3 storage through MMEngine's backend ``petrel``; as above."""
    storage = get_file_backend(filename, backend_args={'backend': 'petrel'})
    with NamedTemporaryFile(suffix='.pth') as file:
        file.write(storage.get(filename))
        file.flush()
        return _content(load_file(Path(file.name), map_location or 'cpu'))


def load_from_pavi(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Refuse ``pavi://``, whose client unpickles."""
    raise CheckpointError(f'{shown(filename)}: download the file and give its path.')


def _content(loaded: Loaded) -> dict[str, Any]:
    path, content, metadata = loaded
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} holds {type(content).__name__} where a state dict was expected: '
            'save model.state_dict() instead.'
        )
    if isinstance(metadata, dict) and 'config' in metadata and 'meta' in content:
        # MMEngine runs this text as Python when it resumes, to compare a number of GPUs.
        content = {**content, 'meta': {k: v for k, v in metadata.items() if k != 'config'}}
    return content
