"""Run exported files without PyTorch's model code: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmfocalnet.errors import CheckpointError, ConfigError, UserError
from mmfocalnet.text import short_text


class InputInfo(NamedTuple):
    """The input of a graph.

    Attributes:
        name: Its name.
        dtype: ``'uint8'`` or ``'float32'``, or another type that the graph declares.
        shape: Lengths of its dimensions; None for each dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Runtime(Protocol):
    """A loaded graph with one input.

    Attributes:
        input: The input.
        output_names: Names of the outputs.
    """

    input: InputInfo
    output_names: frozenset[str]

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run the graph on a batch; return the outputs by name."""
        ...


def load_runtime(path: Path, device: str = 'cpu') -> Runtime:
    """Load an exported file. Nothing in it is executed.

    Args:
        path: An ``.onnx`` file, or an ``.xml`` file of OpenVINO with the ``.bin`` file beside it.
        device: ``'cpu'``, or for ONNX files such as ``'cuda:0'``. Defaults to ``'cpu'``.

    Raises:
        CheckpointError: If the file is missing, damaged, or of ``torch.export``.
        ConfigError: If the device is unavailable.
        UserError: If the runtime is not installed.
    """
    if path.suffix == '.pt2':
        # Besides pickles, it evaluates expressions, guards and names of functions in the file.
        raise CheckpointError(
            f'{path} is not loaded, because torch.export.load runs code that the file may contain. '
            'Export the model with --format onnx or openvino, or load it in your own program if '
            'you trust its author.'
        )
    if not path.is_file():
        raise CheckpointError(f'{path} is not a file. Fix the path of the exported model.')
    load = OpenVINORuntime if path.suffix == '.xml' else ONNXRuntime
    try:
        return load(path, device)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path} needs the package {error.name}: pip install -e '.[export]'."
        ) from error


class ONNXRuntime:
    """ONNX Runtime on the CPU or a GPU of NVIDIA; a `Runtime`."""

    def __init__(self, path: Path, device: str) -> None:
        import onnxruntime

        provider = _provider(device, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # its own types, one per cause
            raise _damaged(path, error) from error
        if self.session.get_providers()[0] != provider[0]:  # it falls back to the CPU
            raise _no_device(device, f'{provider[0]} cannot be loaded')
        self.input = _only(path, [self._info(node) for node in self.session.get_inputs()])
        self.output_names = frozenset(node.name for node in self.session.get_outputs())

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run the graph on a batch; return the outputs by name."""
        names = sorted(self.output_names)
        return dict(zip(names, self.session.run(names, {self.input.name: batch}), strict=True))

    @staticmethod
    def _info(node: Any) -> InputInfo:
        dtype = node.type.removeprefix('tensor(').removesuffix(')')
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        return InputInfo(node.name, {'float': 'float32'}.get(dtype, dtype), shape)


class OpenVINORuntime:
    """OpenVINO on the CPU; a `Runtime`."""

    def __init__(self, path: Path, device: str) -> None:
        import openvino

        if device != 'cpu':
            raise _no_device(device, f'OpenVINO runs {path} on the CPU')
        # Processors with bfloat16 would use it, and the predictions would differ.
        settings = {'INFERENCE_PRECISION_HINT': 'f32'}
        try:
            self.model = openvino.Core().compile_model(str(path), 'CPU', settings)
        except Exception as error:  # RuntimeError, and others for damaged files
            raise _damaged(path, error) from error
        self.input = _only(path, [self._info(port) for port in self.model.inputs])
        self.output_names = frozenset().union(*(port.names for port in self.model.outputs))

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Run the graph on a batch; return the outputs by name."""
        values = self.model({self.input.name: batch})
        return {name: values[port] for port in self.model.outputs for name in port.names}

    @staticmethod
    def _info(port: Any) -> InputInfo:
        shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
        return InputInfo(port.any_name, port.element_type.to_dtype().name, shape)


def _provider(device: str, available: list[str]) -> tuple[str, dict[str, Any]]:
    """ONNX Runtime's name and settings of a device."""
    if device == 'cpu':
        return 'CPUExecutionProvider', {}
    cuda = re.fullmatch(r'cuda(?::(\d+))?', device)
    if not cuda:
        raise _no_device(device, 'expected cpu or such as cuda:0')
    if 'CUDAExecutionProvider' not in available:
        raise _no_device(device, 'it needs the package onnxruntime-gpu instead of onnxruntime')
    return 'CUDAExecutionProvider', {'device_id': int(cuda[1] or 0)}


def _only(path: Path, inputs: list[InputInfo]) -> InputInfo:
    if len(inputs) != 1:
        raise CheckpointError(
            f'{path} has {len(inputs)} inputs, expected one. Export the model with tools/export.py.'
        )
    return inputs[0]


def _no_device(device: str, reason: str) -> ConfigError:
    return ConfigError(
        f'The device {short_text(repr(device))} is unavailable ({reason}). Specify another, such '
        'as cpu.'
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f'{path} cannot be loaded ({short_text(" ".join(str(error).split()))}): it is damaged, '
        'incomplete or of an unsupported version. Copy it again with the files beside it, or '
        'export the model again.'
    )
