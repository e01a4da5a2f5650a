"""A contact sheet of training samples: one row a sample, its three frames as the network sees them, masks on top.

    python scripts/show_samples.py --stage 3 --davis_root ../DAVIS --output samples.png
"""
import argparse
import logging
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.augment import IMAGENET_MEAN, IMAGENET_STD
from dataset.io import PALETTE, DataError
from dataset.sampling import Address, AddressedDataset, epoch_order
from dataset.static import StaticDataset, find_pairs
from dataset.video import VideoDataset, find_main


def open_dataset(args: argparse.Namespace) -> AddressedDataset:
    if args.stage == 0:
        return StaticDataset(find_pairs(args.static_root), size=args.crop_size)
    if args.stage == 1:
        return VideoDataset.bl30k(args.bl_root, size=args.crop_size)
    return VideoDataset(find_main(args.davis_root, args.yv_root), size=args.crop_size)


def overlay(rgb: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float32 [3, S, S] normalised and int64 [S, S] -> uint8 [S, S, 3]: tinted objects with a white outline."""
    image = 255 * (rgb.transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN)
    tinted = np.where(target[..., None] > 0, 0.5 * image + 0.5 * PALETTE[target], image)
    sheet = np.ascontiguousarray(tinted.round().clip(0, 255).astype(np.uint8))
    for label in np.unique(target[target > 0]):
        outlines, _ = cv2.findContours((target == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(sheet, outlines, -1, (255, 255, 255))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--stage', type=int, choices=range(4), default=0, help='training stage')
    parser.add_argument('--static_root', type=Path, default='../static', help='static images, for stage 0')
    parser.add_argument('--bl_root', type=Path, default='../BL30K', help='BL30K, for stage 1')
    parser.add_argument('--yv_root', type=Path, default='../YouTube', help='YouTubeVOS, for stages 2 and 3')
    parser.add_argument('--davis_root', type=Path, default='../DAVIS', help='DAVIS, for stages 2 and 3')
    parser.add_argument('--crop_size', type=int, default=384, help='side of a frame in pixels')
    parser.add_argument('--seed', type=int, default=0, help='as for training: these are its first samples')
    parser.add_argument('--max_skip', type=int, default=5, help='frames that may lie between two of a sample')
    parser.add_argument('--count', type=int, default=8, help='samples to show')
    parser.add_argument('--output', type=Path, default='samples.png', help='image file to write')
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(message)s')

    try:
        dataset = open_dataset(args)
        rows = []
        for index in epoch_order(len(dataset), seed=args.seed, epoch=0)[: args.count]:
            sample = dataset[Address(args.seed, 0, int(index), args.max_skip)]
            logging.info('row %d: %s', len(rows) + 1, sample['name'])
            frames = zip(sample['rgb'].numpy(), sample['target'].numpy(), strict=True)
            rows.append(np.concatenate([overlay(rgb, target) for rgb, target in frames], axis=1))
    except DataError as error:
        parser.exit(1, f'{error}\n')
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.output), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)):
        parser.exit(1, f'{args.output}: could not be written\n')


if __name__ == '__main__':
    main()
