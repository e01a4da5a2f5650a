"""Serve a page on this computer, in which you paint objects on a clip, propagate, correct, and download the masks."""

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import adapting
from scripts.flags import add_inference_flags, inference_config, load_networks, make_ready, parse_flags
from util.cli import HelpFormatter, positive, run_main
from util.errors import MissingPackageError, UserError
from util.offline import stay_local

log = logging.getLogger(__name__)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add('--port', type=positive, default=7860, help='port of the page, http://127.0.0.1:PORT')
    add('--max_seconds', type=positive, default=60, help='longest clip in seconds')
    add(
        '--max_megabytes',
        type=positive,
        default=200,
        help='largest upload in megabytes; its frames may take ten times that on disk',
    )
    add(
        '--adapt_seconds',
        type=positive,
        default=adapting.SECONDS,
        help='how many seconds "Adapt to this video" trains: processor time on a CPU, clock time on a GPU',
    )
    add_inference_flags(parser, model=None, size=[480])
    return parse_flags(parser, argv=argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    check_port(args.port)
    # gradio reads settings from the environment when it is imported, and some would open the page to the network.
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]
    os.environ |= {
        'GRADIO_ANALYTICS_ENABLED': 'False',
        'HF_HUB_OFFLINE': '1',
        'NO_PROXY': ','.join(['127.0.0.1', 'localhost', os.environ.get('NO_PROXY', '')]),
    }
    stay_local()  # otherwise gradio would fetch an address that a request gives in place of a file
    # After these signals, too, temporary files are deleted. SIGHUP comes when the terminal closes; nohup ignores it.
    for name in ('SIGTERM', 'SIGHUP'):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix='stcn_web_', ignore_cleanup_errors=True) as root:
        os.environ['GRADIO_TEMP_DIR'] = str(Path(root, 'gradio'))
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f'the page needs {error.name}: pip install -r requirements-extras.txt'
            ) from error
        from scripts.web_server import serve  # it imports gradio and torch, which --help need not wait for
        from scripts.web_tabs import Adaptation, Tabs

        networks = load_networks(args)
        tabs = Tabs(
            networks,
            Path(root, 'clips'),
            inference_config(args, networks),
            max_seconds=args.max_seconds,
            max_bytes=args.max_megabytes * 10**6,
            object_chunk=args.object_chunk,
            adapting=Adaptation(partial(adapting.begin, args), partial(make_ready, args=args), args.adapt_seconds),
        )
        try:
            serve(tabs, port=args.port)
        except KeyboardInterrupt:
            log.info('stopped; the clips and their masks are deleted')
        finally:
            tabs.close()
    return 0


def check_port(port: int) -> None:
    """Raise ``UserError`` if the page cannot use this port."""
    with socket.socket() as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind(('127.0.0.1', port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f'port {port}: expected a free port for the page, cannot open it ({error}); choose another --port'
            ) from error


if __name__ == '__main__':
    run_main(main)
