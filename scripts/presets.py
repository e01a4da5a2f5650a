"""Presets: the settings of the rows in the supplementary's tables, as flags of the evaluation scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """The values of flags for rows of the paper. The user adds the data set, and ``--model`` if it is missing."""

    rows: str  # the rows of the paper's tables, with their published results
    dataset: str  # the dataset whose evaluation script offers the preset
    flags: Mapping[str, object] = field(default_factory=dict)

    def changes(self, values: Mapping[str, object]) -> dict[str, object]:
        """The values of this preset's flags in ``values`` that differ from the preset."""
        return {name: values[name] for name, value in self.flags.items() if values[name] != value}


SCHEDULE = {'top': 20, 'mem_every': 5, 'include_last': False}
STM = {'model': ['saves/stm.pth'], 'top': 0, 'mem_every': 5}
PLAIN = {'kernel_sigma': [0], 'flip': False}
MULTI_SCALE = {'kernel_sigma': [0, 7], 'flip': True}
ENSEMBLE = ['saves/stcn.pth', 'saves/stcn_wide.pth', 'saves/stcn_wide_aspp.pth']

VAL = {'year': 2017, 'split': 'val', 'size': [0]}
TESTDEV = VAL | {'split': 'testdev'}
WITHOUT_BL30K = {'model': ['saves/stcn_s03.pth']}

PRESETS = {
    'paper-val': Preset(
        'Table 1, STCN, every 5th only: 85.4 J&F (dot product: 84.1)',
        'davis',
        {**WITHOUT_BL30K, **VAL, **PLAIN, **SCHEDULE},
    ),
    'paper-val-last': Preset(
        'Table 1, STCN, every 5th + last: 83.1 J&F (dot product: 84.3)',
        'davis',
        {**WITHOUT_BL30K, **VAL, **PLAIN, **SCHEDULE, 'include_last': True},
    ),
    'paper-val-ms': Preset(
        'the multi-scale testing of Table 3, but on DAVIS; the paper has no result for it',
        'davis',
        {**VAL, 'size': [480, 600], **MULTI_SCALE, **SCHEDULE},
    ),
    'paper-testdev': Preset(
        'Table 2, Ours: 76.1 J&F (--model saves/stcn.pth, trained with BL30K, too: 77.8)',
        'davis',
        {**WITHOUT_BL30K, **TESTDEV, **PLAIN, **SCHEDULE},
    ),
    'paper-testdev-m3': Preset(
        'Table 2, Ours, M3: 76.5 J&F (--model saves/stcn.pth, trained with BL30K, too: 79.9)',
        'davis',
        {**WITHOUT_BL30K, **TESTDEV, **PLAIN, **SCHEDULE, 'mem_every': 3},
    ),
    'paper-youtube': Preset('Table 3, Ours: 84.2 G', 'youtube', {'size': [480], **PLAIN, **SCHEDULE}),
    'paper-youtube-ms': Preset(
        'Table 3, Ours, MS: 85.2 G', 'youtube', {'size': [480, 600], **MULTI_SCALE, **SCHEDULE}
    ),
    'paper-youtube-ensemble': Preset(
        'Table 3, Ours, MS and ensemble: 86.7 G',
        'youtube',
        {'model': ENSEMBLE, 'size': [480, 600], **MULTI_SCALE, **SCHEDULE},
    ),
    'stm': Preset(
        'Table 1, STM, every 5th + last: 83.3 J&F (L2: 82.7)', 'davis', {**STM, **VAL, **PLAIN, 'include_last': True}
    ),
    'stm-every5': Preset(
        'Table 1, STM, every 5th only: 81.3 J&F (L2: 81.0)', 'davis', {**STM, **VAL, **PLAIN, 'include_last': False}
    ),
}


def flags_text(flags: Mapping[str, object]) -> str:
    """Format flags as they are written on a command line."""
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f'--{name}' if value else f'--no_{name}')
        else:
            values = value if isinstance(value, list) else [value]
            words.append(
                ' '.join([f'--{name}', *(f'{each:g}' if isinstance(each, float) else str(each) for each in values)])
            )
    return ' '.join(words)


def presets_of(dataset: str) -> dict[str, Preset]:
    """The presets that belong to a data set, by name."""
    return {name: preset for name, preset in PRESETS.items() if preset.dataset == dataset}


def presets_text(dataset: str) -> str:
    """The presets of a dataset, for a help text."""
    return '\n'.join(
        [
            'presets and their flags:',
            *(
                f'  {name}: {preset.rows}\n      {flags_text(preset.flags)}'
                for name, preset in presets_of(dataset).items()
            ),
        ]
    )
