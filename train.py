"""Train an STCN: one of the paper's four stages, from images on disk to weights that the evaluation scripts load.

python train.py --stage 0 --id s0
python train.py --stage 3 --id s03 --load_network saves/s0/s0.pth
python train.py --id s03 --resume
torchrun --nproc_per_node=2 train.py --stage 3 --id s03 --load_network saves/s0/s0.pth
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import model
import training
from model.variants import VARIANTS
from scripts.training_flags import training_parser
from training.stages import STAGES, Stage
from util.cli import run_main

if TYPE_CHECKING:
    import torch

    from dataset.sampling import AddressedDataset
    from training.evaluation import Validation

log = logging.getLogger(__name__)

# These flags change the result. A run may continue with other values of them, and a warning says so.
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
SESSION = ('resume', 'debug', 'device')  # flags that a run does not keep when it is resumed


def main(argv: Sequence[str] | None = None) -> int:
    parser = training_parser(__doc__)
    args = parser.parse_args(argv)
    if args.load_network and args.load_model:
        parser.error('--load_network begins a stage, --load_model continues one: expected only one of them')
    # From here on the modules of ``training`` are imported when they are used: --help must not wait for torch.
    with training.processes(args.device) as device:
        run = training.Run.named(args.id)
        args, checkpoint = training.decided_once(begin, parser, argv, args, run)
        stage = stage_of(parser, args)
        try:
            training.check_batch(stage, accumulation=args.accumulation)
        except ValueError as error:
            parser.error(f'--batch_size: {error}')
        training.prepare(seed=args.seed, benchmark=args.benchmark, debug=args.debug)
        amp_dtype = training.mixed_precision(device, name=args.amp_dtype, off=args.no_amp)

        dataset = training_set(args, stage)
        validation = validation_of(args, run, continued=checkpoint is not None)
        network = training.initial_network(
            arch=args.arch,
            similarity=args.similarity,
            single_object=args.stage == 0,
            checkpoint=checkpoint,
            weights=args.load_network,
            backbone_files=args.backbone_weights,
        )
        state = training.initial_state(
            network,
            device=device,
            amp_dtype=amp_dtype,
            average=args.average,
            compiled=args.compile,
            checkpoint=checkpoint,
        )
        del checkpoint  # as large as the state
        flags = {name: value for name, value in vars(args).items() if name not in SESSION}
        run.write_configuration(training.configuration(flags, stage, network))
        signal = learn(args, state, dataset, stage, run, validation, device=device, amp_dtype=amp_dtype)
        if signal:
            log.warning('stopped by signal %d after iteration %d; --resume continues', signal, state.iteration)
            return 128 + signal
        run.finish(state.result())
    return 0


def begin(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, args: argparse.Namespace, run: 'training.Run'
) -> tuple[argparse.Namespace, tuple[dict, Path] | None]:
    """The flags, completed by those of the run that is to be resumed, and the checkpoint to continue, if any."""
    if run.continues(resume=args.resume) and (saved := run.configuration()):
        parser.set_defaults(**saved['flags'])
        args = parser.parse_args(argv)
        if args.stage != saved['flags']['stage']:
            raise model.CheckpointError(
                f'{run.folder}: is a run of stage {saved["flags"]["stage"]}, not {args.stage}; '
                'start a new run, with another --id, from --load_network'
            )
        for name in RECIPE:
            before, now = saved['flags'].get(name, parser.get_default(name)), getattr(args, name)
            if before != now:
                log.warning('%s: continues with --%s %s, was %s', run.folder, name, now, before)
    return args, run.start(resume=args.resume, file=args.load_model)


def stage_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Stage:
    """The stage with the changes that the flags make. Flags that do not go together end the program."""
    if args.stage is None:
        parser.error('--stage is needed: 0, 1, 2 or 3')
    if args.arch not in (None, *VARIANTS):
        parser.error(f'--arch: expected one of {", ".join(VARIANTS)}, found {args.arch}')
    if args.crop_size % 16:
        parser.error(f'--crop_size: expected a multiple of 16, found {args.crop_size}')
    if args.crop_scale and not 0 < args.crop_scale[0] <= args.crop_scale[1] <= 1:
        parser.error(f'--crop_scale: expected two numbers from 0 to 1 in order, found {args.crop_scale}')
    if args.video_root and STAGES[args.stage].data != 'main':
        parser.error(f'--video_root: expected --stage 2 or 3, which train on real videos, found {args.stage}')
    if not args.video_root and (args.video_list or args.video_repeat != 1):
        parser.error('--video_list and --video_repeat: expected --video_root, whose videos they are about')
    if args.evaluate_every and not args.hold_aside:
        parser.error('--evaluate_every: expected videos to evaluate, --hold_aside VIDEO ..., found none')
    names = ('batch_size', 'iterations', 'steps', 'lr', 'gamma', 'warmup', 'bootstrap')
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(STAGES[args.stage], **changes)


def training_set(args: argparse.Namespace, stage: Stage) -> 'AddressedDataset':
    """The samples of the stage."""
    return training.open_training_set(
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


def validation_of(args: argparse.Namespace, run: 'training.Run', *, continued: bool) -> 'Validation | None':
    """Validation on the videos of ``--hold_aside``, if it is asked for. A run that goes on keeps its best network."""
    if not args.evaluate_every:
        return None
    return training.open_validation(
        args.hold_aside,
        davis_root=args.davis_root,
        yv_root=args.yv_root,
        video_roots=args.video_root,
        every=args.evaluate_every,
        at_start=args.load_network is not None,
        size=args.evaluate_size,
        best=run.best() if continued else None,
    )


def learn(
    args: argparse.Namespace,
    state: 'training.TrainingState',
    dataset: 'AddressedDataset',
    stage: Stage,
    run: 'training.Run',
    validation: 'Validation | None',
    *,
    device: 'torch.device',
    amp_dtype: 'torch.dtype | None',
) -> int:
    """Train to the end of the stage. Returns 0, or the signal that ended it early."""
    loader = training.open_loader(
        dataset,
        stage,
        seed=args.seed,
        start=state.iteration,
        accumulation=args.accumulation,
        num_workers=args.num_workers,
        device=device,
    )
    with (
        training.loading_errors(),
        training.memory_errors(),
        training.Report(run.folder, start=state.iteration, iterations=stage.iterations) as report,
    ):
        return training.train(
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
            keep_every=args.keep_every,
        )


if __name__ == '__main__':
    run_main(main)
