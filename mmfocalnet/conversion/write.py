"""Writing a FocalNet in the layouts of mmfocalnet, timm, transformers and the 2022 release."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmfocalnet.checkpoints.layouts import State, to_timm, to_transformers
from mmfocalnet.errors import CheckpointError

_SUFFIXES = {
    'ours': ('.pth', '.safetensors'),
    'release': ('.pth',),
    'timm': ('.pth', '.bin', '.safetensors'),
    'transformers': ('',),
}
# What the other libraries' FocalNets cannot be told to do otherwise.
_FIXED = {
    'timm': dict(patch_size=4, focal_factor=2, patch_norm=True),
    'transformers': dict(focal_factor=2, patch_norm=True),
}


def write_ours(state: State, meta: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint of mmfocalnet's: ``init_cfg`` and MMEngine's ``load_from`` take it.

    Args:
        state: State dict of a FocalNet in the release's names, or of a whole model.
        meta: Metadata, of which ``'mmfocalnet'`` goes into a ``.safetensors`` file as well.
        path: A ``.pth`` (state dict below ``'state_dict'``, metadata below ``'meta'``) or
            ``.safetensors`` file.

    Raises:
        CheckpointError: If it has another suffix or cannot be written.
    """
    path = _destination(path, 'ours')
    if path.suffix == '.safetensors':
        text = {'format': 'pt', 'mmfocalnet': json.dumps(meta['mmfocalnet'])}
        _save_safetensors(_compact(state), text, path)
    else:
        _save_pickle({'meta': dict(meta), 'state_dict': _compact(state)}, path)


def write_release(state: State, path: str | os.PathLike) -> None:
    """Write a ``.pth`` as the 2022 release's classification code reads it.

    Args:
        state: State dict in the release's names.
        path: The file; the state dict lies below ``'model'``.

    Raises:
        CheckpointError: If it has another suffix or cannot be written.
    """
    _save_pickle({'model': _compact(state)}, _destination(path, 'release'))


def write_timm(state: State, settings: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a file that ``timm.create_model(..., checkpoint_path=...)`` reads.

    Without final norm and classifier: ``timm.models.load_checkpoint(..., strict=False)``.

    Args:
        state: State dict in the release's names, without output norms.
        settings: All arguments of `FocalNet`.
        path: A ``.pth``, ``.bin`` or ``.safetensors`` file.

    Raises:
        CheckpointError: If timm has no such network, or the file has another suffix or cannot
            be written.
    """
    path = _destination(path, 'timm')
    _check_expressible(settings, 'timm')
    renamed = to_timm(_compact(state), settings['use_postln'])
    if path.suffix == '.safetensors':
        _save_safetensors(renamed, {'format': 'pt'}, path)
    else:
        _save_pickle(renamed, path)


def write_transformers(
    state: State,
    settings: Mapping[str, Any],
    path: str | os.PathLike,
    labels: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that transformers' ``from_pretrained`` opens.

    Args:
        state: State dict in the release's names, without output norms.
        settings: All arguments of `FocalNet`.
        path: The folder, new or empty.
        labels: ``id2label`` and ``label2id`` of the classes. Defaults to None: numbers.

    Raises:
        CheckpointError: If transformers has no such network, or the folder cannot be written.
    """
    path = _destination(path, 'transformers')
    _check_expressible(settings, 'transformers')
    save = _safetensors_writer()
    config = json.dumps(transformers_config(state, settings) | dict(labels or {}), indent=2)

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / 'config.json').write_text(config + '\n')
        save(to_transformers(_compact(state)), {'format': 'pt'}, folder / 'model.safetensors')

    _put(fill, path)


def transformers_config(state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of transformers' FocalNet.

    Args:
        state: State dict in the release's names; its head gives the number of classes.
        settings: All arguments of `FocalNet`.

    Returns:
        The content of the file.
    """
    stages = len(settings['depths'])
    config = dict(
        architectures=['FocalNetBackbone'],
        model_type='focalnet',
        num_channels=settings['in_chans'],
        patch_size=settings['patch_size'],
        embed_dim=settings['embed_dim'],
        hidden_sizes=[settings['embed_dim'] * 2**i for i in range(stages)],
        depths=settings['depths'],
        focal_levels=settings['focal_levels'],
        focal_windows=settings['focal_windows'],
        mlp_ratio=float(settings['mlp_ratio']),
        use_conv_embed=settings['use_conv_embed'],
        use_layerscale=settings['use_layerscale'],
        use_post_layernorm=settings['use_postln'],
        use_post_layernorm_in_modulation=settings['use_postln_in_modulation'],
        normalize_modulator=settings['normalize_modulator'],
    )
    if 'head.weight' in state:
        classes = range(state['head.weight'].shape[0])
        config.update(
            architectures=['FocalNetForImageClassification'],
            id2label={str(i): f'LABEL_{i}' for i in classes},
            label2id={f'LABEL_{i}': i for i in classes},
        )
    return config


def _destination(path: str | os.PathLike, to: str) -> Path:
    try:
        path, suffixes = Path(path).expanduser(), _SUFFIXES[to]
    except RuntimeError as error:  # there is no such user
        raise CheckpointError(f'{path} cannot be written ({error}): give another place.') from error
    if path.name in ('', '..'):
        raise CheckpointError(f"'{path}' names no new file or folder: give one.")
    known = {suffix for choices in _SUFFIXES.values() for suffix in choices if suffix}
    if path.suffix not in suffixes and not (to == 'transformers' and path.suffix not in known):
        wanted = f'a {" or ".join(suffixes)} file' if suffixes != ('',) else 'a folder'
        raise CheckpointError(f'{path} does not fit --to {to}: it writes {wanted}, so name one.')
    return path


def _check_expressible(settings: Mapping[str, Any], to: str) -> None:
    wrong = [
        f'{key}={settings[key]}' for key, value in _FIXED[to].items() if settings[key] != value
    ]
    if wrong:
        owner = "timm's" if to == 'timm' else "transformers'"
        raise CheckpointError(
            f"{owner} FocalNet cannot have {', '.join(wrong)}: keep this one in mmfocalnet's "
            'layout (--to ours).'
        )


def _compact(state: State) -> State:
    """Give every tensor a storage of its own, and of its size.

    PyTorch writes the whole storage of a view, and safetensors refuses shared ones.
    """
    compact, storages = {}, set()
    for key, value in state.items():
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.numel() * value.element_size()
        own = whole and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        compact[key] = value if own else value.clone()
    return compact


def _save_pickle(content: dict[str, Any], path: Path) -> None:
    def save(part: Path) -> None:
        with part.open('wb') as file:  # torch.save itself hides why a file cannot be opened
            torch.save(content, file)

    _put(save, path)


def _save_safetensors(state: State, metadata: dict[str, str], path: Path) -> None:
    save = _safetensors_writer()
    _put(lambda part: save(state, metadata, part), path)


def _safetensors_writer() -> Callable[[State, dict[str, str], Path], None]:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise CheckpointError(
            "Writing safetensors needs the safetensors package: pip install 'mmfocalnet[hf]'."
        ) from error

    def save(state: State, metadata: dict[str, str], path: Path) -> None:
        path.touch()
        mode = path.stat().st_mode
        save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
        path.chmod(mode)  # safetensors makes its files private

    return save


def _put(save: Callable[[Path], None], path: Path) -> None:
    """Write under a temporary name beside the destination, then rename."""
    part = path.with_name(f'.{path.name}.partial-{os.getpid()}')
    try:
        save(part)
        os.replace(part, path)
    except Exception as error:  # the disk, PyTorch and safetensors each raise their own
        reason = ' '.join(str(getattr(error, 'strerror', None) or error).split())
        raise CheckpointError(f'{path} cannot be written ({reason}){_advice(error)}.') from error
    finally:
        with suppress(OSError):  # where nothing could be written, nothing is left
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _advice(error: Exception) -> str:
    if not isinstance(error, OSError):  # no other place would help
        return ''
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return ': name a new or empty folder'
    return ': give another place, whose folder exists and is yours to write'
