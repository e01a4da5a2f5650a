"""Export a network to ONNX, to segment videos without PyTorch.

    python scripts/export.py --output ../onnx/light
    python scripts/export.py --model ../saves/stcn.pth --output ../onnx/stcn --half --size 480

OUTPUT/encode_query.onnx    a frame -> its key and features
OUTPUT/encode_memory.onnx   a frame and its masks -> key and value of a memory frame
OUTPUT/read.onnx            keys and values of all memory frames, key of a frame -> readout
OUTPUT/decode.onnx          readout and features -> a logit for each pixel and object

Height, width, and the numbers of objects and memory frames are free. The metadata of each file describe its inputs and
outputs, and hold the checkpoint's hash and the settings below. examples/onnx_video.py is a program that uses them.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference.config import LIGHT_WEIGHTS
from scripts.flags import add_inference_flag, inference_config, parse_flags
from util.cli import DescriptionHelpFormatter, run_main, sha256


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DescriptionHelpFormatter)
    parser.add_argument(
        '--model',
        type=Path,
        default=LIGHT_WEIGHTS,
        metavar='FILE',
        help='checkpoint file, a published one or our own (default: the light one, weights/stcn_light.pth)',
    )
    parser.add_argument('--output', type=Path, required=True, help='a new folder for the four files')
    parser.add_argument('--half', action='store_true', help='use float16 in encoders and decoder, for half the size')
    add_inference_flag(parser, 'size', nargs=1)
    for name in ('top', 'mem_every', 'include_last'):
        add_inference_flag(parser, name)
    args = parse_flags(parser, argv=argv)

    from model import load_network
    from model.export import export_network

    network = load_network(args.model)
    config = inference_config(args, [network])
    settings = {'sha256': sha256(args.model), 'inference': dataclasses.asdict(config)}
    export_network(network, args.output, settings=settings, top_k=config.top_k, half=args.half)
    total = sum(file.stat().st_size for file in args.output.iterdir())
    print(f'{args.output}: {total / 2**20:.1f} MiB')
    return 0


if __name__ == '__main__':
    run_main(main)
