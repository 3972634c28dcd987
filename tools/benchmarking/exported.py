"""An exported model: the time of one image in PyTorch and in each file."""

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
    runtimes = {str(file): load_runtime(file) for file in args.files}
    size = common_size(args.size, runtimes)
    graph = load_graph(args, runtimes)
    [batch] = make_inputs(graph, random_image(), dtype='uint8', size=size, resize=None)
    image = torch.from_numpy(batch)
    runs = {'PyTorch': partial(graph, image), 'torch.compile': partial(torch.compile(graph), image)}
    for name, runtime in runtimes.items():
        runs[name] = partial(runtime, batch.astype(runtime.input.dtype))
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


def common_size(size, runtimes):
    """Height and width of the input of all files."""
    sizes = {tuple(size)} if size else set()
    for name, runtime in runtimes.items():
        *_, height, width, channels = runtime.input.shape
        if channels != 3:
            raise UserError(f'{name} was exported with --raw: export it without.')
        if height and width:
            sizes.add((height, width))
    if len(sizes) != 1:
        found = ', '.join(f'{height} {width}' for height, width in sorted(sizes)) or 'any'
        raise UserError(f'The files need one size, found {found}: specify --size HEIGHT WIDTH.')
    return sizes.pop()


def load_graph(args, runtimes):
    first, *_ = runtimes.values()
    if any(name.startswith('stage') for name in first.output_names):
        return backbone_graph(read_model_config(args.config), args.checkpoint)
    predictor = load_predictor(args.config, args.checkpoint)
    return model_graph(predictor.model, predictor.task)


def megabytes(file):
    """Size of an exported file with its weights."""
    others = file.with_suffix('.bin'), file.with_name(f'{file.name}.data')
    return sum(part.stat().st_size for part in (file, *others) if part.exists()) / 1e6
