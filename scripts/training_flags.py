"""The flags of ``train.py``."""

import argparse
import re
from collections.abc import Callable

from model.similarity import SIMILARITIES
from training.stages import STAGES
from util.cli import not_negative, not_negative_number, positive

Add = Callable[..., argparse.Action]


def training_parser(description: str) -> argparse.ArgumentParser:
    """The parser of ``train.py``, with its flags in groups and a table of the stages below."""
    table = ['stage  data                          batch  iterations  rate x0.1 at  max-skip @ percent of iterations']
    names = {0: 'static images', 1: 'BL30K', 2: 'DAVIS, YouTubeVOS after BL30K', 3: 'DAVIS, YouTubeVOS'}
    for number, stage in STAGES.items():
        skips = ' '.join(f'{skip}@{percent}' for percent, skip in stage.max_skip) if number else '-'
        table.append(
            f'{number:<6} {names[number]:<30}{stage.batch_size:<6} {stage.iterations:<11} {stage.steps[0]:<13} {skips}'
        )
    parser = argparse.ArgumentParser(
        description=description,
        epilog='\n'.join(table),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='train.py --stage {0,1,2,3} --id NAME [flags]',
    )
    add_run_flags(parser.add_argument_group('run').add_argument)
    add = parser.add_argument_group('data').add_argument
    add_data_flags(add)
    add_sample_flags(add)
    add_validation_flags(parser.add_argument_group('validation').add_argument)
    add_network_flags(parser.add_argument_group('network').add_argument)
    add_optimization_flags(parser.add_argument_group('optimization (default: that of the stage)').add_argument)
    add_device_flags(parser.add_argument_group('device').add_argument)
    return parser


def add_run_flags(add: Add) -> None:
    """Add flags for the files and logs of the run."""
    add('--id', required=True, type=run_id, help='name of the run, which is saved in saves/ID; NULL: nothing is saved')
    add(
        '--resume',
        action='store_true',
        help='continue the run from its newest complete checkpoint, with the flags that it was started with unless '
        'others are given. A run without a checkpoint begins at the start',
    )
    add(
        '--save_every',
        type=positive,
        default=1000,
        help='iterations between checkpoints; the newest 3 are kept (default: %(default)s)',
    )
    add(
        '--keep_every',
        type=positive,
        metavar='N',
        help='iterations between checkpoints that are never deleted, kept_<iteration>.pth; the published code kept '
        'one every 50000 (default: none)',
    )
    add(
        '--log_every',
        type=positive,
        default=50,
        help='iterations between log lines and TensorBoard scalars, and between checks that the loss is finite '
        '(default: %(default)s)',
    )
    add('--images_every', type=positive, default=500, help='iterations between image grids (default: %(default)s)')
    add(
        '--debug',
        action='store_true',
        help='log every iteration, and report the first operation whose gradient is NaN; slow (default: off)',
    )


def add_data_flags(add: Add) -> None:
    """Add flags for the data sets."""
    add('--stage', type=int, choices=STAGES, help='stage of the training; see the table below')
    add('--static_root', default='../static', help='folder of the static images for stage 0 (default: %(default)s)')
    add('--bl_root', default='../BL30K', help='folder of BL30K for stage 1 (default: %(default)s)')
    add(
        '--yv_root',
        default='../YouTube',
        help='folder of YouTubeVOS, with train_480p, for stages 2 and 3; none: do not use it (default: %(default)s)',
    )
    add(
        '--davis_root',
        default='../DAVIS',
        help='folder of DAVIS, with 2017/trainval, for stages 2 and 3; none: do not use it (default: %(default)s)',
    )
    add(
        '--video_root',
        nargs='+',
        default=[],
        metavar='FOLDER',
        help='videos of your own in FOLDER/JPEGImages/VIDEO and FOLDER/Annotations/VIDEO for stages 2 and 3, in '
        'addition to DAVIS and YouTubeVOS; see docs/train.md (default: none)',
    )
    add('--video_list', metavar='FILE', help='list of the videos of --video_root to use, one per line (default: all)')
    add(
        '--video_repeat',
        type=positive,
        default=1,
        metavar='N',
        help='how often an epoch has each video of --video_root; those of YouTubeVOS are in it once, those of DAVIS '
        '5 times (default: %(default)s)',
    )
    add(
        '--synthetic_root',
        metavar='FOLDER',
        help='folder of image and mask pairs. Clips of several moving objects are composed from them and '
        'replace BL30K (stage 1) and half of the clips of stages 2 and 3 (default: none)',
    )
    add(
        '--hold_aside',
        nargs='+',
        default=[],
        metavar='VIDEO',
        help='videos of DAVIS, YouTubeVOS or --video_root that are not trained on, for validation (default: none)',
    )


def add_sample_flags(add: Add) -> None:
    """Add flags for the samples that are made from the data."""
    add(
        '--crop_scale',
        nargs=2,
        type=float,
        metavar=('MIN', 'MAX'),
        help="area of the random crop of a video as a fraction of the frame's (default: 0.36 1; 0.25 1 in stage 1)",
    )
    add('--crop_size', type=positive, default=384, help='side of a frame in pixels (default: %(default)s)')
    add(
        '--num_workers',
        type=not_negative,
        default=8,
        help='processes that load data for each training process (default: %(default)s)',
    )
    add(
        '--difficulty',
        choices=('plain', 'hard'),
        default='plain',
        help='difficulty of the clips of --synthetic_root. hard: with similar objects, more motion, occlusions, blur '
        'and, in stages 2 and 3, objects of the videos (default: %(default)s)',
    )
    add(
        '--clip_frames',
        type=clip_length,
        default=3,
        metavar='N',
        help='frames in a clip; each is segmented from all frames before it (default: %(default)s, as in the paper)',
    )
    add(
        '--cache_stills',
        metavar='FOLDER',
        help='folder in which decoded image and mask pairs are cached, up to 4 bytes a pixel (default: no cache)',
    )
    add(
        '--seed',
        type=not_negative,
        default=0,
        help='seed of samples and initial weights (default: %(default)s)',
    )


def add_validation_flags(add: Add) -> None:
    """Add flags for validation during the training."""
    add(
        '--evaluate_every',
        type=positive,
        metavar='N',
        help='segment and score the videos of --hold_aside every N iterations, at the end and, with --load_network, '
        'at the beginning. J and F are logged, also to TensorBoard, and the best network is saved as best.pth. With '
        'stcn_light, 250 frames of 854 x 480 with one object take about a minute on two CPU cores (default: never)',
    )
    add(
        '--evaluate_size',
        type=not_negative,
        default=480,
        metavar='PIXELS',
        help='limit of the shorter side of a frame in --evaluate_every, in pixels; larger ones are reduced to it. 0: '
        'no frame is resized (default: %(default)s, as in the data of the paper)',
    )


def add_network_flags(add: Add) -> None:
    """Add flags for the network and its initial weights."""
    add('--arch', help='network variant, from model/variants.py (default: that of the loaded file, or stcn)')
    add(
        '--similarity',
        choices=tuple(SIMILARITIES),
        help='similarity of the memory read (default: that of the loaded file, or of the variant)',
    )
    add(
        '--load_network',
        metavar='FILE',
        help='start from the weights in this file, a published one or our own. A stage 0 '
        'network gets an input channel for the other objects (default: none)',
    )
    add(
        '--load_model',
        metavar='FILE',
        help="continue this training checkpoint, ours or the release's, under a new --id (default: none)",
    )
    add(
        '--backbone_weights',
        nargs='+',
        metavar='FILE',
        help="files of ImageNet weights in torchvision's layout, each for the "
        "backbone that it fits; 'none': random weights (default: torchvision's IMAGENET1K_V1, downloaded once)",
    )


def add_optimization_flags(add: Add) -> None:
    """Add flags that change the optimization of the stage."""
    add(
        '-b',
        '--batch_size',
        type=positive,
        help='samples in each iteration, on all GPUs together. The published code counted the samples on one of two '
        'GPUs: its -b 8 is -b 16 here, and its -b 4 is -b 8',
    )
    add(
        '-i',
        '--iterations',
        type=positive,
        help='iterations of the whole training; the schedule of max-skip is in percent of them',
    )
    add('--steps', type=not_negative, nargs='*', help='iterations at which the learning rate is multiplied by --gamma')
    add('--lr', type=not_negative_number, help=f'learning rate ({STAGES[0].lr} in all stages)')
    add(
        '--gamma',
        type=not_negative_number,
        help=f'factor of the rate at each of --steps ({STAGES[0].gamma} in all stages)',
    )
    add('--warmup', type=not_negative, help='first iterations, in which the rate rises linearly (none in all stages)')
    add(
        '--bootstrap',
        type=not_negative,
        nargs=2,
        metavar=('FROM', 'TO'),
        help='iterations between which the loss goes from all pixels to the hardest 15%% ({} {} in all stages)'.format(
            *STAGES[0].bootstrap
        ),
    )
    add('--clip_norm', type=not_negative_number, help='clip the gradient to this norm (default: no clipping)')
    add(
        '--average',
        type=decay,
        metavar='DECAY',
        help='keep an exponential moving average of the weights over about the last 1 / (1 - DECAY) iterations; for '
        'example 0.999. The final weights are then the average, and other scripts and --load_network use the average '
        'in a checkpoint (default: none)',
    )
    add(
        '--accumulation',
        type=positive,
        default=1,
        help='number of parts in which a batch is computed, to save memory; results differ only by rounding (default: '
        '%(default)s)',
    )


def add_device_flags(add: Add) -> None:
    """Add flags for the device and the precision."""
    add(
        '--device', help='device to train on, e.g. cuda:1, mps or cpu (default: the GPU if there is one, on a Mac mps)'
    )
    add('--no_amp', action='store_true', help='use float32 only (default: mixed precision on a GPU)')
    add(
        '--amp_dtype',
        choices=('float16', 'bfloat16'),
        help='type of mixed precision, also on a CPU (default: float16 on a GPU, no mixed precision on a CPU)',
    )
    add(
        '--recompute',
        action='store_true',
        help='compute the activations of encoders and decoder again in the backward pass instead of keeping them, '
        'which is slower and takes less memory (default: off)',
    )
    add(
        '--compile',
        action='store_true',
        help='compile encoders and decoder with torch.compile, which takes minutes at first (default: off)',
    )
    add('--benchmark', action='store_true', help='let cuDNN measure which algorithms are fastest (default: off)')


def run_id(text: str) -> str:
    if not re.fullmatch(r'[\w.-]*\w[\w.-]*', text):
        raise argparse.ArgumentTypeError(f'expected letters, digits, dots, dashes and underscores, found {text!r}')
    return text


def clip_length(text: str) -> int:
    if (frames := positive(text)) < 2:
        raise argparse.ArgumentTypeError(f'expected two frames or more, found {text}')
    return frames


def decay(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'expected a number from 0 to just below 1, found {text}')
    return value
