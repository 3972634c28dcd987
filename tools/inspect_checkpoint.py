"""Print the FocalNet architecture of a checkpoint: python tools/inspect_checkpoint.py SRC"""

import argparse
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.checkpoint_flags import add_source_flags, inspect_source
from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    add_source_flags(parser)
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.conversion.architecture import find_config, output_stages
from mmfocalnet.conversion.convert import loading_problem


def count(state):
    return f'{sum(value.numel() for value in state.values()) / 1e6:.3f} M'


def describe(args, found):
    """Source, architecture and number of parameters, line by line."""
    network, architecture = found.network, found.architecture
    yield f'source: {network}'
    if network.detector:
        yield f'config: {config_of(args, found)}'
    differences = ', '.join(architecture.differences)
    yield f'nearest: {architecture.nearest}' + f' (differs in {differences})' * bool(differences)
    for name, value in architecture.settings.items():
        origin = architecture.origins.get(name)
        yield f'{name}: {value}' + (f' ({origin})' if origin else '')
    total = f' of {count(found.checkpoint.state)} in the file' if network.others else ''
    yield f'parameters: {count(network.state)}{total}'


def config_of(args, found):
    """The config of a published detector, with the settings to change."""
    known = find_config(found.network.detector, found.architecture)
    if known is None:
        return 'none for this architecture'
    config, changes = known
    options = [f'load_from={args.source}', *(f'{key}={value}' for key, value in changes.items())]
    return f'configs/{config} --cfg-options {" ".join(options)}'


def backbone(args, found):
    """Lines to paste into a config."""
    prefix = '' if args.prefix is None else f', prefix={args.prefix!r}'
    arguments = dict(type='FocalNet', **found.architecture.backbone())
    stages = output_stages(found.network.state)
    if 0 < len(stages) < len(found.architecture.settings['depths']):
        arguments['out_indices'] = tuple(stages)
    yield 'backbone = dict('
    yield from (f'    {name}={value!r},' for name, value in arguments.items())
    yield f"    init_cfg=dict(type='Pretrained', checkpoint={args.source!r}{prefix}),"
    yield ')'


@report_errors
def main():
    args = parse_args()
    found = inspect_source(args)
    print_lines(*describe(args, found))
    problem = loading_problem(found)
    if problem:
        print_lines(f'does not load: {problem}')
    else:
        print_lines('', *backbone(args, found))


if __name__ == '__main__':
    main()
