"""Try a model in the browser: python tools/web.py configs/demo/mask_rcnn.py CHECKPOINT"""

import argparse
import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet import web
from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.cli.flags import add_cfg_options


def parse_args():
    parser = argparse.ArgumentParser(description='Serve a web page with predictions for images')
    parser.add_argument(
        'config', help='config file, or without a checkpoint a name such as dino-focalnet-l'
    )
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file of the model')
    parser.add_argument(
        '--host', default=web.HOST, help='address to listen on (default: %(default)s, this machine)'
    )
    parser.add_argument('--port', type=int, help='default: the first free one from 7860')
    parser.add_argument(
        '--auth', metavar='FILE', help='file of one line, USER:PASSWORD, which visitors must enter'
    )
    parser.add_argument('--device', default='cpu', help='such as cuda:0 (default: cpu)')
    add_cfg_options(parser)
    return parser.parse_intermixed_args()  # the checkpoint may come after flags


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.deployment import SUFFIXES
from mmfocalnet.errors import UserError
from mmfocalnet.inference import load_predictor
from mmfocalnet.web.network import AllowedHosts, listen
from mmfocalnet.web.request_filter import read_password


@report_errors
def main():
    args = parse_args()
    if args.config.endswith(tuple(SUFFIXES.values())):
        raise UserError(
            f'{args.config} is an exported model, without the maps that the page draws. '
            'Specify a config and a checkpoint.'
        )
    # SIGTERM and a closed terminal must remove the temporary folder too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    password = read_password(args.auth) if args.auth is not None else None
    listener = listen(args.host, args.port)
    if not AllowedHosts(args.host).is_local:
        access = 'with the password of --auth' if password else 'without a password (see --auth)'
        print(
            f'Warning: --host {args.host} makes the page available to other machines {access}. '
            'The connection is not encrypted.',
            file=sys.stderr,
        )
    web.import_gradio()
    from mmfocalnet.web.server import serve

    predictor = load_predictor(args.config, args.checkpoint, args.device, args.cfg_options)
    serve(predictor, listener, args.host, password)


if __name__ == '__main__':
    main()
