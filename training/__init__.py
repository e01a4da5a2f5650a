"""Training: stages, data, the state that changes, the loop, the folder of a run. Names are imported when used."""

from typing import TYPE_CHECKING

from util.lazy import lazy_names

if TYPE_CHECKING:
    from training.data import check_batch, open_loader, open_training_set, open_validation
    from training.loop import train
    from training.report import Report
    from training.run import Run, configuration, loading_errors, memory_errors
    from training.start import decided_once, mixed_precision, prepare, processes
    from training.state import TrainingState, initial_network, initial_state

__all__ = [
    'Report',
    'Run',
    'TrainingState',
    'check_batch',
    'configuration',
    'decided_once',
    'initial_network',
    'initial_state',
    'loading_errors',
    'memory_errors',
    'mixed_precision',
    'open_loader',
    'open_training_set',
    'open_validation',
    'prepare',
    'processes',
    'train',
]

__getattr__ = lazy_names(
    __name__,
    {
        'Report': 'report',
        'Run': 'run',
        'TrainingState': 'state',
        'check_batch': 'data',
        'configuration': 'run',
        'decided_once': 'start',
        'initial_network': 'state',
        'initial_state': 'state',
        'loading_errors': 'run',
        'memory_errors': 'run',
        'mixed_precision': 'start',
        'open_loader': 'data',
        'open_training_set': 'data',
        'open_validation': 'data',
        'prepare': 'start',
        'processes': 'start',
        'train': 'loop',
    },
)
