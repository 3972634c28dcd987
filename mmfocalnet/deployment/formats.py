"""Write a graph to a file, and run such files on the CPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.export
from torch import Tensor, nn

from mmfocalnet.deployment.graph import ExportGraph
from mmfocalnet.deployment.operators import onnx_translations
from mmfocalnet.deployment.runtimes import load_runtime
from mmfocalnet.errors import UserError

Run = Callable[[np.ndarray], dict[str, np.ndarray]]

OPSET = 18
MIN_SIDE = 64
"""Minimum height and width of the images of an exported file."""

_PACKAGES = {
    'onnx': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'openvino'),
    'torch-export': (),
}
_MAX_ONNX_BYTES = 2**31 - 2**26  # of weights inside the file; a protobuf is limited to 2 GiB


def check_requirements(format: str) -> None:
    """Raise an error if PyTorch or a package for a format is missing or too old.

    Raises:
        UserError: With the command that installs it.
    """
    # The first version with all arguments that `capture` and `write` pass.
    if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 9):
        raise UserError(
            f'Exporting needs PyTorch 2.9 or later, found {torch.__version__}. Install a newer '
            "version, with the extra 'onedl' for mmdet and mmseg."
        )
    for package in _PACKAGES[format]:
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(
                f'--format {format} needs the package {package} ({error}): pip install -e '
                "'.[export]'."
            ) from error


def capture(graph: ExportGraph, image: Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """Record a graph by `torch.export`.

    Args:
        graph: The graph.
        image: Its input; with ``dynamic`` two different images of different height and width.
        dynamic: Whether batch, height and width may differ from those of ``image``.
    """
    shapes = None
    if dynamic:
        height = 2 if graph.raw else 1
        dim = torch.export.Dim  # PyTorch 2.1 has none
        sides = (dim('height', min=MIN_SIDE), dim('width', min=MIN_SIDE))
        shapes = ({0: dim('batch', min=1), height: sides[0], height + 1: sides[1]},)
    with torch.no_grad():
        program = torch.export.export(
            graph,
            (image,),
            dynamic_shapes=shapes,
            strict=False,
            # Comparisons of strides whose result is always the same, but not provably.
            prefer_deferred_runtime_asserts_over_guards=dynamic,
        )
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # with the paths of this machine
    return program


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    format: str,
    output_names: Sequence[str],
    compress: bool = False,
) -> None:
    """Write a recorded graph to a file.

    Args:
        program: The graph.
        path: The file. OpenVINO writes a second one beside it, with the suffix ``.bin``, and so
            does ONNX (``.onnx.data``) if the weights exceed 2 GiB.
        format: A key of `mmfocalnet.deployment.SUFFIXES`.
        output_names: Names of the outputs.
        compress: Store the weights of OpenVINO in half precision. Defaults to False.
    """
    if format == 'torch-export':
        torch.export.save(program, path)
        return
    if format == 'onnx':
        _write_onnx(program, path, output_names)
        return
    import openvino

    source = path.with_suffix('.onnx')
    _write_onnx(program, source, output_names)
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=compress)
    for file in path.parent.glob(f'{source.name}*'):
        file.unlink()


def load(path: Path, format: str, output_names: Sequence[str]) -> Run:
    """Load an exported file on the CPU, with arithmetic in the precision of the file.

    Args:
        path: The file. It must be trusted.
        format: A key of `mmfocalnet.deployment.SUFFIXES`.
        output_names: Names of the outputs, in their order.

    Returns:
        A function from the input to the outputs by name.
    """
    return _load_program(path, output_names) if format == 'torch-export' else load_runtime(path)


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, output_names: Sequence[str]
) -> None:
    with _quiet():
        model = torch.onnx.export(
            program,
            (),
            input_names=['image'],
            output_names=list(output_names),
            dynamic_shapes=(_dynamic_names(program),),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    _drop_metadata(model.model)
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    model.save(path, external_data=weights > _MAX_ONNX_BYTES)


def _dynamic_names(program: torch.export.ExportedProgram) -> dict[int, str]:
    """Names of the dynamic dimensions of the input."""
    *_, image = (node for node in program.graph.nodes if node.op == 'placeholder')
    shape = image.meta['val'].shape
    dynamic = [index for index, side in enumerate(shape) if not isinstance(side, int)]
    return dict(zip(dynamic, ('batch', 'height', 'width'), strict=False))


def _drop_metadata(model: object) -> None:
    """Remove what is for debugging: it contains paths of this machine, and a node's Python code."""
    values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        values += [node, *node.outputs]
    for part in values:
        part.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages about packages that are not needed, and of optimizers about single nodes."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _load_program(path: Path, output_names: Sequence[str]) -> Run:
    module: nn.Module = torch.export.load(path).module()

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(image))
        return {name: out.numpy() for name, out in zip(output_names, outputs, strict=True)}

    return run
