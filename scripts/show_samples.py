"""Make a contact sheet of training samples: each row is a sample, with its frames and masks as the network sees them.

python scripts/show_samples.py --stage 3 --davis_root ../DAVIS --output samples.png
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dataset
import training
from scripts.training_flags import clip_length
from training.stages import STAGES
from util.cli import not_negative, positive, run_main
from util.files import atomic_path

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--stage', type=int, choices=STAGES, default=0, help='training stage')
    parser.add_argument('--static_root', type=Path, default='../static', help='static images, for stage 0')
    parser.add_argument('--bl_root', type=Path, default='../BL30K', help='BL30K, for stage 1')
    parser.add_argument('--yv_root', type=Path, default='../YouTube', help='YouTubeVOS, for stages 2 and 3')
    parser.add_argument('--davis_root', type=Path, default='../DAVIS', help='DAVIS, for stages 2 and 3')
    parser.add_argument('--video_root', type=Path, nargs='+', default=[], metavar='FOLDER', help='as for train.py')
    parser.add_argument('--synthetic_root', type=Path, help='folder of image and mask pairs, as for train.py')
    parser.add_argument(
        '--difficulty',
        choices=('plain', 'hard'),
        default='plain',
        help='difficulty of synthetic clips, as for train.py',
    )
    parser.add_argument('--clip_frames', type=clip_length, default=3, help='frames in a clip')
    parser.add_argument('--crop_size', type=positive, default=384, help='side of a frame in pixels')
    parser.add_argument('--seed', type=not_negative, default=0, help='seed of the training whose samples are shown')
    parser.add_argument('--max_skip', type=not_negative, default=5, help='most frames to skip between two of a sample')
    parser.add_argument('--count', type=positive, default=8, help='number of samples')
    parser.add_argument('--output', type=Path, default='samples.png', help='image file to write')
    args = parser.parse_args(argv)

    samples = training.open_training_set(
        STAGES[args.stage].data,
        size=args.crop_size,
        static_root=args.static_root,
        bl_root=args.bl_root,
        yv_root=args.yv_root,
        davis_root=args.davis_root,
        video_roots=args.video_root,
        synthetic_root=args.synthetic_root,
        frames=args.clip_frames,
        difficulty=args.difficulty,
    )
    rows = []
    for index in dataset.epoch_order(len(samples), seed=args.seed, epoch=0)[: args.count]:
        sample = samples[dataset.Address(args.seed, 0, int(index), args.max_skip)]
        log.info('row %d: %s', len(rows) + 1, sample['name'])
        frames = zip(sample['rgb'].numpy(), sample['target'].numpy(), strict=True)
        rows.append(np.concatenate([dataset.draw_sample(rgb, target) for rgb, target in frames], axis=1))
    with atomic_path(args.output) as temporary:
        Image.fromarray(np.concatenate(rows)).save(
            temporary, format='JPEG' if args.output.suffix.lower() in ('.jpg', '.jpeg') else 'PNG'
        )
    return 0


if __name__ == '__main__':
    run_main(main)
