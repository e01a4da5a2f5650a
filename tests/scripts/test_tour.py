"""The notebook runs from the top, and its committed outputs are small and equal to those of a run."""

import re

import pytest

from tests.conftest import EXAMPLES, needs_weights

TOUR = EXAMPLES / 'tour.ipynb'


def scores(notebook) -> dict[tuple[str, str], float]:
    """What the last cell printed: (which masks were given, object) -> mean J in per cent."""
    text = notebook.cells[-1].outputs[0].text
    return {(what, name): float(J) for what, name, J in re.findall(r'^(.*?)  +(\w+) +([\d.]+)$', text, re.MULTILINE)}


@pytest.mark.long
@needs_weights
def test_the_tour_runs():
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    committed, notebook = nbformat.read(TOUR, 4), nbformat.read(TOUR, 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(EXAMPLES)}}).execute()
    found = scores(notebook)
    given, corrected = dict.fromkeys(what for what, _ in found)
    for name in ('swan', 'rider'):
        assert 60 < found[given, name] < found[corrected, name]
    assert found == {key: pytest.approx(value, abs=0.5) for key, value in scores(committed).items()}
    pictures = [[output.output_type for output in cell.get('outputs', ())] for cell in notebook.cells]
    assert sum('display_data' in each for each in pictures) == 3
    assert pictures == [[output.output_type for output in cell.get('outputs', ())] for cell in committed.cells]


def test_its_outputs_are_small():
    assert TOUR.stat().st_size < 200_000
