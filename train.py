"""Train an STCN: one of the paper's four stages, from images on disk to weights that the evaluation scripts load.

python train.py --stage 0 --id s0
python train.py --stage 3 --id s03 --load_network saves/s0/s0.pth
python train.py --id s03 --resume
torchrun --nproc_per_node=2 train.py --stage 3 --id s03 --load_network saves/s0/s0.pth
"""

import argparse
import dataclasses
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from training.stages import STAGES, Stage
from util.cli import not_negative, positive, run_main

if TYPE_CHECKING:
    from training.run import Run

log = logging.getLogger(__name__)

# A run may continue with others of these, but not unnoticed: they change what comes out.
RECIPE = (
    'batch_size',
    'iterations',
    'steps',
    'lr',
    'gamma',
    'warmup',
    'clip_norm',
    'average',
    'bootstrap',
    'seed',
    'crop_size',
    'crop_scale',
    'synthetic_root',
    'video_root',
    'video_list',
    'video_repeat',
    'difficulty',
    'clip_frames',
    'hold_aside',
    'no_amp',
    'amp_dtype',
)
OUT_OF_MEMORY = (
    'out of GPU memory; --accumulation N computes the batch in N parts, with the same result; a smaller '
    '-b/--batch_size or --crop_size takes less, too. --resume continues from the last checkpoint'
)
SESSION = ('resume', 'debug', 'device')  # not kept for the next one


def training_parser() -> argparse.ArgumentParser:
    table = ['stage  data                          batch  iterations  rate x0.1 at  max-skip @ percent of iterations']
    names = {0: 'static images', 1: 'BL30K', 2: 'DAVIS, YouTubeVOS after BL30K', 3: 'DAVIS, YouTubeVOS'}
    for number, stage in STAGES.items():
        skips = ' '.join(f'{skip}@{percent}' for percent, skip in stage.max_skip) if number else '-'
        table.append(
            f'{number:<6} {names[number]:<30}{stage.batch_size:<6} {stage.iterations:<11} {stage.steps[0]:<13} {skips}'
        )
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='\n'.join(table),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='train.py --stage {0,1,2,3} --id NAME [flags]',
    )

    add = parser.add_argument_group('run').add_argument
    add('--id', required=True, type=run_id, help='the run is kept in saves/ID; NULL: it is kept nowhere')
    add(
        '--resume',
        action='store_true',
        help='continue the run from its newest complete checkpoint, with its flags '
        'where no others are given; from the start if it has none',
    )
    add(
        '--save_every',
        type=positive,
        default=1000,
        help='iterations between checkpoints, of which 3 are kept (default: %(default)s)',
    )
    add(
        '--log_every',
        type=positive,
        default=50,
        help='iterations between log lines and TensorBoard scalars, and '
        'looks at whether the loss is finite (default: %(default)s)',
    )
    add('--images_every', type=positive, default=500, help='iterations between image grids (default: %(default)s)')
    add(
        '--debug',
        action='store_true',
        help='log every iteration, and name the operation that a gradient that is '
        'no number comes from; slow (default: off)',
    )

    add = parser.add_argument_group('data').add_argument
    add('--stage', type=int, choices=STAGES, help='stage of the training; see the table below')
    add('--static_root', default='../static', help='static images, stage 0 (default: %(default)s)')
    add('--bl_root', default='../BL30K', help='BL30K, stage 1 (default: %(default)s)')
    add(
        '--yv_root',
        default='../YouTube',
        help='YouTubeVOS, with train_480p; stages 2 and 3; none: without it (default: %(default)s)',
    )
    add(
        '--davis_root',
        default='../DAVIS',
        help='DAVIS, with 2017/trainval; stages 2 and 3; none: without it (default: %(default)s)',
    )
    add(
        '--video_root',
        nargs='+',
        default=[],
        metavar='FOLDER',
        help='videos of your own in FOLDER/JPEGImages/VIDEO and FOLDER/Annotations/VIDEO, beside what is there of '
        'DAVIS and YouTubeVOS; stages 2 and 3; see docs/train.md (default: none)',
    )
    add('--video_list', metavar='FILE', help='names of the videos of --video_root to take, one a line (default: all)')
    add(
        '--video_repeat',
        type=positive,
        default=1,
        metavar='N',
        help='a video of --video_root is drawn N times as often as one of YouTubeVOS, where one of DAVIS is drawn '
        '5 times as often (default: %(default)s)',
    )
    add(
        '--synthetic_root',
        metavar='FOLDER',
        help='image and mask pairs: clips of several moving objects composed of '
        'them stand in for BL30K (stage 1) and for half of the clips of stages 2 and 3 (default: none)',
    )
    add(
        '--hold_aside',
        nargs='+',
        default=[],
        metavar='VIDEO',
        help='videos of DAVIS, YouTubeVOS or --video_root not to train on, for selection (default: none)',
    )
    add(
        '--crop_scale',
        nargs=2,
        type=float,
        metavar=('MIN', 'MAX'),
        help="area of the random crop of a video as a fraction of the frame's (default: 0.36 1; 0.25 1 in stage 1)",
    )
    add('--crop_size', type=positive, default=384, help='side of a training frame (default: %(default)s)')
    add('--num_workers', type=int, default=8, help='that load data, for each process (default: %(default)s)')
    add(
        '--difficulty',
        choices=('plain', 'hard'),
        default='plain',
        help='of the clips that --synthetic_root makes. hard: objects that look alike, more motion, objects that '
        'vanish behind others and come back, blur (default: %(default)s)',
    )
    add(
        '--clip_frames',
        type=clip_length,
        default=3,
        metavar='N',
        help='frames of a clip: each is segmented from all before it (default: %(default)s, as in the paper)',
    )
    add(
        '--cache_stills',
        metavar='FOLDER',
        help='keep image and mask pairs decoded in it, up to 4 bytes a pixel (default: none)',
    )
    add('--seed', type=int, default=0, help='of samples and initial weights (default: %(default)s)')

    add = parser.add_argument_group('validation').add_argument
    add(
        '--evaluate_every',
        type=positive,
        metavar='N',
        help='segment the videos of --hold_aside every N iterations, at the end, and at the beginning of a run with '
        '--load_network: J and F go to the log and to '
        'TensorBoard, the best network to best.pth. 250 frames of 854 x 480 with one object take about a minute on '
        'two CPU cores with stcn_light (default: never)',
    )
    add(
        '--evaluate_size',
        type=not_negative,
        default=480,
        metavar='PIXELS',
        help='largest shorter side at which the network works then; smaller frames, and all with 0, are taken as they '
        'are (default: %(default)s, as in the data of the paper)',
    )

    add = parser.add_argument_group('network').add_argument
    add('--arch', help='a name in model/variants.py (default: that of the file to start from, or stcn)')
    add(
        '--similarity',
        choices=('l2', 'dot'),
        help='of the memory read (default: that of the file to start from, or of the variant)',
    )
    add(
        '--load_network',
        metavar='FILE',
        help='start from these weights: a published file or our own; a stage 0 '
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
        help="ImageNet weights in torchvision's layout, for the "
        "backbones that they fit; 'none': random weights (default: torchvision's IMAGENET1K_V1, downloaded once)",
    )

    add = parser.add_argument_group('optimization (default: that of the stage)').add_argument
    add(
        '-b',
        '--batch_size',
        type=positive,
        help='samples an iteration, of all GPUs together. The published code '
        'counted those of one GPU of two: its -b 8 is 16 here, its -b 4 is 8',
    )
    add('-i', '--iterations', type=positive, help='the iteration to end at; max-skip follows in percent of it')
    add('--steps', type=int, nargs='*', help='iterations at which the rate is multiplied by --gamma')
    add('--lr', type=float, help=f'learning rate ({STAGES[0].lr} in all stages)')
    add('--gamma', type=float, help=f'see --steps ({STAGES[0].gamma} in all stages)')
    add('--warmup', type=int, help='iterations in which the rate rises linearly (none in all stages)')
    add(
        '--bootstrap',
        type=int,
        nargs=2,
        metavar=('FROM', 'TO'),
        help='iterations between which the pixels that '
        'count fall from all to the hardest 15%% ({} {} in all stages)'.format(*STAGES[0].bootstrap),
    )
    add('--clip_norm', type=float, help='largest norm of the gradient (default: no bound)')
    add(
        '--average',
        type=decay,
        metavar='DECAY',
        help='keep an exponential moving average of the weights, in which the last 1 / (1 - DECAY) iterations count '
        'most, 0.999 for instance; the final weights are then the average, and so is what the other scripts and '
        '--load_network take from a checkpoint (default: none)',
    )
    add(
        '--accumulation',
        type=positive,
        default=1,
        help='parts that a batch is computed in, to save memory: the result is the same (default: %(default)s)',
    )

    add = parser.add_argument_group('device').add_argument
    add('--device', help='e.g. cuda:1 or cpu (default: the GPU, if there is one)')
    add('--no_amp', action='store_true', help='float32 throughout (default: mixed precision on a GPU)')
    add(
        '--amp_dtype',
        choices=('float16', 'bfloat16'),
        help='mixed precision of this type, on a CPU, too (default: float16 on a GPU, none on a CPU)',
    )
    add(
        '--recompute',
        action='store_true',
        help='keep no activations inside encoders and decoder for the backward '
        'pass, compute them again: slower, with less memory (default: off)',
    )
    add(
        '--compile',
        action='store_true',
        help='compile encoders and decoder with torch.compile, which takes minutes at first (default: off)',
    )
    add('--benchmark', action='store_true', help='let cuDNN try which algorithms are fastest (default: off)')
    return parser


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


def main() -> int:
    parser = training_parser()
    args = parser.parse_args()  # --help must not wait for the imports below
    if args.load_network and args.load_model:
        parser.error('--load_network begins a stage, --load_model continues one: expected only one of them')

    import torch
    from torch.utils.data import DataLoader

    from dataset.held_aside import find_held_aside
    from dataset.sampling import AddressSampler, check_batch
    from dataset.training import open_training_set
    from training.average import WeightAverage
    from training.evaluation import Validation
    from training.loop import train
    from training.report import Report
    from training.run import Run, loading_errors, start_worker
    from training.state import TrainingState, initial_network
    from util.distributed import broadcast, choose_device, process_group, rank, world_size

    device = choose_device(args.device)
    if rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)
    with process_group('nccl' if device.type == 'cuda' else 'gloo'):
        run = Run(Path('saves') / args.id if args.id != 'NULL' and rank() == 0 else None)
        args, checkpoint = broadcast(begin(parser, args, run) if rank() == 0 else None)
        stage = stage_of(parser, args)
        amp_dtype = None if args.no_amp or device.type == 'cpu' else torch.float16
        if args.amp_dtype and not args.no_amp:
            amp_dtype = getattr(torch, args.amp_dtype)
        torch.manual_seed(args.seed)
        torch.backends.cudnn.benchmark = args.benchmark
        torch.autograd.set_detect_anomaly(args.debug)
        try:
            check_batch(stage.batch_size, accumulation=args.accumulation, world_size=world_size())
        except ValueError as error:
            parser.error(f'--batch_size: {error}')

        dataset = open_training_set(
            stage.data,
            size=args.crop_size,
            static_root=args.static_root,
            bl_root=args.bl_root,
            yv_root=args.yv_root,
            davis_root=args.davis_root,
            synthetic_root=args.synthetic_root,
            video_roots=args.video_root,
            video_list=args.video_list,
            video_repeat=args.video_repeat,
            hold_aside=args.hold_aside,
            crop_scale=args.crop_scale,
            cache_dir=args.cache_stills,
            frames=args.clip_frames,
            difficulty=args.difficulty,
        )
        validation = None
        if args.evaluate_every:
            validation = Validation(
                find_held_aside(
                    args.hold_aside,
                    davis_root=args.davis_root,
                    yv_root=args.yv_root,
                    video_roots=args.video_root,
                ),
                every=args.evaluate_every,
                at_start=args.load_network is not None,
                size=args.evaluate_size,
                best=run.best() if checkpoint else None,
            )
        network = initial_network(
            arch=args.arch,
            similarity=args.similarity,
            single_object=args.stage == 0,
            checkpoint=checkpoint,
            weights=args.load_network,
            backbone_files=args.backbone_weights,
        )
        network.to(device, memory_format=torch.channels_last)
        state = TrainingState(
            network,
            torch.optim.Adam(network.parameters(), betas=(0.9, 0.999), weight_decay=1e-7, fused=True),
            torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16),
            average=None if args.average is None else WeightAverage(network, args.average),
        )
        if args.compile:
            network.compiled()
        if checkpoint:
            state.restore(*checkpoint)
            log.info('continuing after iteration %d of %s', state.iteration, checkpoint[1])
        del checkpoint  # as large as the state

        sampler = AddressSampler(
            len(dataset),
            batch_size=stage.batch_size,
            iterations=stage.iterations,
            seed=args.seed,
            start=state.iteration,
            accumulation=args.accumulation,
            rank=rank(),
            world_size=world_size(),
            schedule=stage.max_skip,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=args.num_workers,
            worker_init_fn=start_worker,
            pin_memory=device.type == 'cuda',
        )
        run.write_configuration(configuration(args, stage, network.config))
        with loading_errors(), Report(run.folder, start=state.iteration, iterations=stage.iterations) as report:
            try:
                signal = train(
                    state,
                    iter(loader),
                    stage,
                    run,
                    report,
                    device=device,
                    accumulation=args.accumulation,
                    amp_dtype=amp_dtype,
                    clip_norm=args.clip_norm,
                    recompute=args.recompute,
                    validation=validation,
                    log_every=1 if args.debug else args.log_every,
                    images_every=args.images_every,
                    save_every=args.save_every,
                )
            except torch.OutOfMemoryError as error:
                raise MemoryError(f'{OUT_OF_MEMORY} ({str(error).partition(chr(10))[0]})') from error
        if signal:
            log.warning('stopped by signal %d after iteration %d; --resume continues', signal, state.iteration)
            return 128 + signal
        run.finish(state.result())
    return 0


def begin(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    run: 'Run',
) -> tuple[argparse.Namespace, tuple[dict, Path] | None]:
    """The flags, completed by those of the run that is to be resumed, and the checkpoint to continue, if any."""
    from model import CheckpointError
    from model.checkpoint import read_checkpoint
    from util.distributed import launch_id, restarted

    saved = run.configuration()
    same_launch = saved is not None and saved['launch'] is not None and saved['launch'] == launch_id()
    if args.resume or restarted() or same_launch:
        if saved:
            parser.set_defaults(**saved['flags'])
            args = parser.parse_args()
            if args.stage != saved['flags']['stage']:
                raise CheckpointError(
                    f'{run.folder}: is a run of stage {saved["flags"]["stage"]}, not {args.stage}; '
                    'begin another --id with --load_network'
                )
            for name in RECIPE:
                before, now = saved['flags'].get(name, parser.get_default(name)), getattr(args, name)
                if before != now:
                    log.warning('%s: continues with --%s %s, was %s', run.folder, name, now, before)
        checkpoint = run.newest()
        if checkpoint:
            return args, checkpoint
    elif run.checkpoints():
        raise CheckpointError(f'{run.folder}: holds a run already; --resume continues it, another --id begins anew')
    if args.load_model:
        return args, (read_checkpoint(args.load_model), Path(args.load_model))
    return args, None


def stage_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Stage:
    """The stage with what the flags change of it; ends the program on flags that cannot be."""
    from model import VARIANTS

    if args.stage is None:
        parser.error('--stage is needed: 0, 1, 2 or 3')
    if args.arch not in (None, *VARIANTS):
        parser.error(f'--arch: expected one of {", ".join(VARIANTS)}, found {args.arch}')
    if args.crop_size % 16:
        parser.error(f'--crop_size: expected a multiple of 16, found {args.crop_size}')
    if args.video_root and STAGES[args.stage].data != 'main':
        parser.error(f'--video_root: expected --stage 2 or 3, which train on real videos, found {args.stage}')
    if not args.video_root and (args.video_list or args.video_repeat != 1):
        parser.error('--video_list and --video_repeat: expected --video_root, which they are about')
    if args.evaluate_every and not args.hold_aside:
        parser.error('--evaluate_every: expected videos to evaluate, --hold_aside VIDEO ..., found none')
    names = ('batch_size', 'iterations', 'steps', 'lr', 'gamma', 'warmup', 'bootstrap')
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(STAGES[args.stage], **changes)


def configuration(args: argparse.Namespace, stage: Stage, network_config: object) -> dict:
    """All that a result depends on, and what ``begin`` has to know, for ``config.json``."""
    import torch

    from training.run import code_version
    from util.distributed import launch_id, world_size

    flags = {name: value for name, value in vars(args).items() if name not in SESSION}
    return {
        'flags': flags,
        'stage': dataclasses.asdict(stage),
        'network': dataclasses.asdict(network_config),
        'commit': code_version(),
        'torch': torch.__version__,
        'processes': world_size(),
        'launch': launch_id(),
    }


if __name__ == '__main__':
    run_main(main)
