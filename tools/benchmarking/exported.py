"""An exported model: the time of one image in PyTorch and in each file."""

import json
import statistics
from functools import partial

import torch

from benchmarking.timing import Machine, counted, seconds
from mmfocalnet.config import read_model_config
from mmfocalnet.deployment.images import make_inputs, random_image
from mmfocalnet.deployment.runtimes import load_runtime
from mmfocalnet.deployment.source import backbone_graph, model_graph
from mmfocalnet.errors import UserError
from mmfocalnet.inference import load_predictor


def measure_exported(args):
    """Medians of the rows, the FLOPs of the network and the rates of the machine."""
    description = read_description(args.files[0])
    graph = load_graph(args, description['task'])
    size = tuple(args.size or description['size'] or ())
    if not size:
        raise UserError(f'{args.files[0]} has a dynamic size: specify --size HEIGHT WIDTH.')
    dtype = description['input']['dtype']
    [batch] = make_inputs(graph, random_image(), dtype=dtype, size=size, resize=None)
    image = torch.from_numpy(batch)
    runs = {'PyTorch': partial(graph, image), 'torch.compile': partial(torch.compile(graph), image)}
    runs |= {file.name: partial(load_runtime(file), batch) for file in args.files}
    machine = Machine(args)
    with torch.no_grad():
        for run in runs.values():
            run()
        taken = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                taken[name].append(seconds(run, args.device))
            machine.measure()
        flops = counted(runs['PyTorch'])
    return {name: statistics.median(times) for name, times in taken.items()}, flops, machine


def read_description(file):
    try:
        return json.loads(file.with_suffix('.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(
            f'{file} has no description {file.with_suffix(".json")} ({error}): export the model '
            'with tools/export.py.'
        ) from error


def load_graph(args, task):
    if task == 'features':
        return backbone_graph(read_model_config(args.config), args.checkpoint)
    predictor = load_predictor(args.config, args.checkpoint)
    return model_graph(predictor.model, predictor.task)


def megabytes(file):
    """Size of an exported file with its weights."""
    others = file.with_suffix('.bin'), file.with_name(f'{file.name}.data')
    return sum(part.stat().st_size for part in (file, *others) if part.exists()) / 1e6
