"""Compares this project's data sets with the usual pipeline, a sequence of torchvision transforms."""

import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from dataset.augment import FILL, IMAGENET_MEAN, IMAGENET_STD, init_worker, random_spline
from dataset.sampling import Address
from dataset.static import Pair, StaticDataset, find_pairs
from dataset.video import TrainingVideo, VideoDataset, find_videos


def start() -> None:
    """Set this process up like one that loads data: with one thread, a seed, and no log lines about single files."""
    logging.getLogger().setLevel(logging.WARNING)
    init_worker(0)
    torch.set_num_threads(1)
    random.seed(0)


def compare_static(root: Path, *, size: int, count: int, cache_stills: str | None) -> None:
    """Print a line for each folder of static images."""
    usual = usual_static(size)
    everything = find_pairs(root, cache_dir=cache_stills)
    for folder in sorted({Path(pair.image).parent for pair in everything}):
        pairs = [pair for pair in everything if Path(pair.image).parent == folder]
        random.shuffle(pairs)
        dataset = StaticDataset(pairs, size=size)
        compare(
            f'static, {folder.name}',
            lambda i, dataset=dataset: dataset[Address(0, 0, i % len(dataset))],
            lambda i, pairs=pairs: usual(pairs[i % len(pairs)]),
            count,
        )


def compare_davis(root: Path, *, size: int, count: int) -> None:
    """Print a line for the videos of DAVIS, if they exist."""
    base = root / '2017' / 'trainval'
    videos = [
        video
        for video in find_videos(base / 'JPEGImages' / '480p', base / 'Annotations' / '480p')
        if min(Image.open(Path(video.images) / video.frames[0]).size) == 480
    ]
    if videos:
        usual = usual_video(size)
        dataset = VideoDataset(videos, size=size)
        compare(
            'video, DAVIS at 854 x 480',
            lambda i: dataset[Address(0, 0, i % len(dataset))],
            lambda i: usual(videos[i % len(videos)]),
            count,
        )


def compare(name: str, ours: Callable[[int], object], usual: Callable[[int], object], count: int) -> None:
    """Time both pipelines, sample by sample in turns, and print one line. A first round warms the file cache."""
    seconds = {ours: [], usual: []}
    for index in [*range(min(count, 5)), *range(count)]:
        for pipeline in (usual, ours):
            start = time.process_time()
            pipeline(index)
            seconds[pipeline].append(time.process_time() - start)
    own, other = (statistics.fmean(seconds[pipeline][-count:]) for pipeline in (ours, usual))
    print(
        f'{name:30s} usual {1000 * other:6.1f} ms ({1 / other:5.1f}/s)   '
        f'ours {1000 * own:6.1f} ms ({1 / own:5.1f}/s)   {other / own:.1f}x'
    )


def seeded(transform: Callable, image: Image.Image, seed: int) -> Image.Image:
    torch.manual_seed(seed)
    return transform(image)


def usual_static(size: int) -> Callable[[Pair], tuple[Tensor, Tensor]]:
    """The augmentation of static images (supplementary F.3.1) as a chain of torchvision's transforms."""
    bilinear = InterpolationMode.BILINEAR

    def geometry(fill: tuple[int, ...] | int) -> tuple[Callable, Callable]:
        zoom = transforms.RandomAffine(0, scale=(0.8, 1.5), interpolation=bilinear, fill=fill)
        affine = transforms.RandomAffine(20, scale=(0.9, 1.1), shear=10, interpolation=bilinear, fill=fill)
        base = transforms.Compose([zoom, transforms.RandomHorizontalFlip()])
        return base, transforms.Compose([affine, transforms.Resize(size, bilinear), transforms.RandomCrop(size)])

    (image_base, image_frame), (mask_base, mask_frame) = geometry(FILL), geometry(0)
    base_colour = transforms.Compose([transforms.ColorJitter(0.1, 0.05, 0.05, 0.05), transforms.RandomGrayscale(0.05)])
    frame_colour = transforms.ColorJitter(0.1, 0.05, 0.05)
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    rng = np.random.default_rng(0)

    def bend(image: Image.Image, spline: np.ndarray | None) -> Image.Image:
        if spline is None:
            return image
        return Image.fromarray(cv2.remap(np.asarray(image), spline - 0.5, None, cv2.INTER_LINEAR))

    def sample(pair: Pair) -> tuple[Tensor, Tensor]:
        image, mask = Image.open(pair.image).convert('RGB'), Image.open(pair.mask).convert('L')
        seed = random.getrandbits(32)
        image, mask = base_colour(seeded(image_base, image, seed)), seeded(mask_base, mask, seed)
        rgb, masks = [], []
        for _ in range(3):
            seed, spline = random.getrandbits(32), random_spline(rng, size)
            rgb.append(finish(bend(frame_colour(seeded(image_frame, image, seed)), spline)))
            masks.append(np.asarray(bend(seeded(mask_frame, mask, seed), spline)) > 127)
        return torch.stack(rgb), torch.from_numpy(np.stack(masks).astype(np.int64))

    return sample


def usual_video(size: int) -> Callable[[TrainingVideo], tuple[Tensor, Tensor]]:
    """The augmentation of videos (supplementary F.3.2) as a chain of torchvision's transforms."""
    bilinear, nearest = InterpolationMode.BILINEAR, InterpolationMode.NEAREST

    def geometry(interpolation: InterpolationMode, fill: tuple[int, ...] | int) -> tuple[Callable, Callable]:
        crop = transforms.RandomResizedCrop(size, (0.36, 1), (0.75, 1.25), interpolation)
        affine = transforms.RandomAffine(15, shear=10, interpolation=interpolation, fill=fill)
        return transforms.Compose([transforms.RandomHorizontalFlip(), crop]), affine

    (image_clip, image_frame), (mask_clip, mask_frame) = geometry(bilinear, FILL), geometry(nearest, 0)
    clip_colour = transforms.Compose([transforms.ColorJitter(0.1, 0.03, 0.03), transforms.RandomGrayscale(0.05)])
    frame_colour = transforms.ColorJitter(0.01, 0.01, 0.01)
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def sample(video: TrainingVideo) -> tuple[Tensor, Tensor]:
        clip_seed = random.getrandbits(32)
        rgb, masks = [], []
        for name in sorted(random.sample(video.frames, 3)):
            image = Image.open(Path(video.images) / name).convert('RGB')
            mask = Image.open((Path(video.masks) / name).with_suffix('.png'))
            seed = random.getrandbits(32)
            image = frame_colour(clip_colour(seeded(image_clip, image, clip_seed)))
            rgb.append(finish(seeded(image_frame, image, seed)))
            masks.append(np.asarray(seeded(mask_frame, seeded(mask_clip, mask, clip_seed), seed)))
        return torch.stack(rgb), torch.from_numpy(np.stack(masks).astype(np.int64))

    return sample
