"""Write a FocalNet in the layouts of mmfocalnet, timm, transformers and the 2022 release.

The functions take a state dict in the release's names, for timm and transformers without output
norms, and all constructor arguments of `FocalNet` as ``settings``. They raise `CheckpointError` if
the path has another suffix or cannot be written, or if the library does not support the settings.
"""

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

from mmfocalnet.checkpoints.layouts import State, to_timm, to_transformers
from mmfocalnet.errors import CheckpointError

_SUFFIXES = {
    'ours': ('.pth', '.safetensors'),
    'release': ('.pth',),
    'timm': ('.pth', '.bin', '.safetensors'),
    'transformers': ('',),
}
# Settings that are constants in the other libraries' FocalNets.
_FIXED = {
    'timm': dict(patch_size=4, focal_factor=2, patch_norm=True),
    'transformers': dict(focal_factor=2, patch_norm=True),
}


def write_ours(state: State, meta: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a ``.pth`` or ``.safetensors`` file for ``init_cfg`` and MMEngine's ``load_from``.

    Args:
        state: State dict of a FocalNet or of a complete model.
        meta: Metadata; a ``.safetensors`` file stores ``'mmfocalnet'`` only.
        path: The file. A ``.pth`` has the keys ``'state_dict'`` and ``'meta'``.
    """
    path = _destination(path, 'ours')
    if path.suffix == '.safetensors':
        text = {'format': 'pt', 'mmfocalnet': json.dumps(meta['mmfocalnet'])}
        _save_safetensors(_compact(state), text, path)
    else:
        _save_pickle({'meta': dict(meta), 'state_dict': _compact(state)}, path)


def write_release(state: State, path: str | os.PathLike) -> None:
    """Write a ``.pth`` for the 2022 release's classification code, with the key ``'model'``."""
    _save_pickle({'model': _compact(state)}, _destination(path, 'release'))


def write_timm(state: State, settings: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a file for ``timm.create_model(..., checkpoint_path=...)``.

    Load a file without final norm and classifier by
    ``timm.models.load_checkpoint(..., strict=False)``.
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
    """Write a new or empty folder for transformers' ``from_pretrained``.

    ``labels`` has ``id2label`` and ``label2id``; by default the classes are ``LABEL_0`` and so on.
    """
    path = _destination(path, 'transformers')
    _check_expressible(settings, 'transformers')
    save = _safetensors_writer()
    config = json.dumps(_transformers_config(state, settings) | dict(labels or {}), indent=2)

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / 'config.json').write_text(config + '\n')
        save(to_transformers(_compact(state)), {'format': 'pt'}, folder / 'model.safetensors')

    _replace(fill, path)


def _transformers_config(state: State, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the ``config.json`` of transformers' FocalNet."""
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
    except RuntimeError as error:  # unknown user
        raise CheckpointError(
            f'{path} cannot be written ({error}). Specify another path.'
        ) from error
    if path.name in ('', '..'):
        raise CheckpointError(f"'{path}' is not the name of a new file or folder. Specify one.")
    known = {suffix for choices in _SUFFIXES.values() for suffix in choices if suffix}
    if path.suffix not in suffixes and not (to == 'transformers' and path.suffix not in known):
        wanted = f'a {" or ".join(suffixes)} file' if suffixes != ('',) else 'a folder'
        raise CheckpointError(f'--to {to} writes {wanted}, not {path}. Specify such a path.')
    return path


def _check_expressible(settings: Mapping[str, Any], to: str) -> None:
    wrong = [
        f'{key}={settings[key]}' for key, value in _FIXED[to].items() if settings[key] != value
    ]
    if wrong:
        raise CheckpointError(
            f'FocalNet in {to} does not support {", ".join(wrong)}. Keep the checkpoint in '
            "mmfocalnet's layout (--to ours)."
        )


def _compact(state: State) -> State:
    """Give every tensor a separate storage of its size.

    PyTorch writes the complete storage of a view, and safetensors refuses shared storages.
    """
    compact, storages = {}, set()
    for key, value in state.items():
        storage = value.untyped_storage()
        full = storage.nbytes() == value.numel() * value.element_size()
        compact[key] = value if full and storage.data_ptr() not in storages else value.clone()
        storages.add(storage.data_ptr())
    return compact


def _save_pickle(content: dict[str, Any], path: Path) -> None:
    def save(part: Path) -> None:
        with part.open('wb') as file:  # torch.save hides the reason if a file cannot be opened
            torch.save(content, file)

    _replace(save, path)


def _save_safetensors(state: State, metadata: dict[str, str], path: Path) -> None:
    save = _safetensors_writer()
    _replace(lambda part: save(state, metadata, part), path)


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


def _replace(save: Callable[[Path], None], path: Path) -> None:
    """Write under a temporary name in the same folder, then rename."""
    part = path.with_name(f'.{path.name}.partial-{os.getpid()}')
    try:
        save(part)
        os.replace(part, path)
    except Exception as error:  # the operating system, PyTorch and safetensors
        reason = ' '.join(str(getattr(error, 'strerror', None) or error).split())
        raise CheckpointError(f'{path} cannot be written ({reason}).{_advice(error)}') from error
    finally:
        with suppress(OSError):  # it may not exist
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _advice(error: Exception) -> str:
    if not isinstance(error, OSError):  # another path would not help
        return ''
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return ' Specify a new or empty folder.'
    return ' Specify a path in an existing, writable folder.'
