"""Export a graph to a file that is checked before it gets its name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mmfocalnet.deployment.check import FLOAT16, FLOAT32, compare
from mmfocalnet.deployment.description import describe, json_path
from mmfocalnet.deployment.formats import capture, load, write
from mmfocalnet.deployment.graph import ExportGraph
from mmfocalnet.deployment.images import make_inputs
from mmfocalnet.deployment.kernels import crop_kernels
from mmfocalnet.files import PARTIAL

# Sizes that no stride divides: nothing is derived from their being multiples.
_DYNAMIC_EXAMPLE = (2, 607, 833)


@dataclass(frozen=True)
class Options:
    """How to export a graph.

    Attributes:
        format: A key of `mmfocalnet.deployment.SUFFIXES`.
        size: Height and width of the images. Defaults to None: dynamic, as is the batch.
        dtype: Type of the input, ``'uint8'`` or ``'float32'``. Defaults to ``'uint8'``.
        half: Whether the network is in half precision. Defaults to False.
    """

    format: str
    size: tuple[int, int] | None = None
    dtype: str = 'uint8'
    half: bool = False


@dataclass(frozen=True)
class Metadata:
    """What belongs to a model besides its graph.

    Attributes:
        resize: The scaling of its test pipeline (`find_resize`). Defaults to None: unknown.
        classes: Names of its classes. Defaults to none.
        palette: A color per class. Defaults to none.
        category_ids: Ids of the classes in the annotation file. Defaults to None: unknown.
    """

    resize: dict[str, Any] | None = None
    classes: Sequence[str] = ()
    palette: Sequence[Sequence[int]] = ()
    category_ids: Sequence[int] | None = None


def export(
    graph: ExportGraph,
    path: Path,
    options: Options,
    image: np.ndarray,
    metadata: Metadata,
) -> Iterator[str]:
    """Export a graph, check the file and write a JSON file beside it.

    Args:
        graph: The graph, in eval mode. It is modified: focal kernels are cropped, and with
            ``options.half`` its network is in half precision.
        path: The file, in an existing folder.
        options: The format and its settings.
        image: The image to check the file with: BGR, uint8, (H, W, 3).
        metadata: What else the JSON file contains.

    Yields:
        Lines that report the progress.

    Raises:
        ExportError: If the file computes something else than PyTorch. Nothing is written.
    """
    inputs = make_inputs(
        graph, image, dtype=options.dtype, size=options.size, resize=metadata.resize
    )
    # Before anything is changed for the export, so that the check covers the changes.
    expected = [_run(graph, batch) for batch in inputs]
    if cropped := crop_kernels(graph):
        yield cropped
    in_openvino = options.format == 'openvino'  # which converts the weights itself
    if options.half and not in_openvino:
        graph.network.half()
    started = time.monotonic()
    program = capture(graph, _example(inputs[0], options, graph), options.size is None)
    names = graph.output_names
    with TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as folder:
        file = Path(folder, path.name)
        write(program, file, options.format, names, options.half and in_openvino)
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
        yield f'{options.format}: {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s'
        run = load(file, options.format, names)
        tolerance = FLOAT16 if options.half else FLOAT32
        for batch, outputs in zip(inputs, expected, strict=True):
            difference = compare(outputs, run(batch), tolerance)
            yield f'checked with {"x".join(map(str, batch.shape))}: {difference}'
        del run
        content = {
            'format': options.format,
            'file': path.name,
            **describe(graph, expected[0], options.dtype, options.size),
            'resize': metadata.resize,
            'classes': list(metadata.classes),
            'palette': [list(map(int, color)) for color in metadata.palette],
            'category_ids': metadata.category_ids,
        }
        lines = [f' {json.dumps(key)}: {json.dumps(value)}' for key, value in content.items()]
        json_path(file).write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
        # The file itself last: its presence means that it is complete.
        parts = sorted(Path(folder).iterdir(), key=lambda part: (part == file, part.name))
        for part in parts:
            os.replace(part, path.with_name(part.name))
    yield f'Written: {", ".join(str(path.with_name(part.name)) for part in reversed(parts))}'


@torch.no_grad()
def _run(graph: ExportGraph, batch: np.ndarray) -> dict[str, np.ndarray]:
    outputs = graph(torch.from_numpy(batch))
    return {name: out.numpy() for name, out in zip(graph.output_names, outputs, strict=True)}


def _example(batch: np.ndarray, options: Options, graph: ExportGraph) -> torch.Tensor:
    """An input to record the graph with."""
    if options.size is not None:
        return torch.from_numpy(batch)
    count, *sides = _DYNAMIC_EXAMPLE
    shape = (count, 3, *sides) if graph.raw else (count, *sides, 3)
    return torch.zeros(shape, dtype=torch.from_numpy(batch).dtype)
