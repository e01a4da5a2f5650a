"""README and docs: their commands are understood by the scripts, their Python runs, their links lead somewhere."""

import argparse
import importlib
import itertools
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dataset.io import list_frames, read_mask
from scripts import flags
from tests.conftest import EXAMPLES, REPOSITORY, needs_weights

PAGES = sorted(path for pattern in ('*.md', '*/*.md') for path in REPOSITORY.glob(pattern))

RECORD = """
record() { printf '%s\\0' "$@" >&3; printf '\\n\\0' >&3; }
python() { record python "$@"; }
torchrun() { record torchrun "$@"; }
source() { record source "$@"; }
export -f record python torchrun
# The chain is a shell script, whose commands are recorded in turn.
scripts/train_chain.sh() { PATH=/usr/bin:/bin bash "$REPOSITORY/scripts/train_chain.sh" "$@"; }
scripts/train_light.sh() { record scripts/train_light.sh "$@"; }
command_not_found_handle() { record "$@"; }
PATH=/nowhere
"""


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f'{self.page}: {" ".join(self.words)}'


def shown(page: Path) -> list[str]:
    """The shell code on a page: its blocks, and commands within the text."""
    text = page.read_text()
    blocks = re.findall(r'^```bash\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r'`((?:\w+=\S+ )*(?:python|torchrun|scripts/\w+\.sh)\s[^`]+)`', text)
    return blocks + [command.replace('\n', ' ') for command in inline]


def recorded(code: str, folder: Path) -> list[tuple[str, ...]]:
    """The commands that bash would run, with loops, variables and quotes resolved by bash. None of them is run."""
    (folder / 'commands').touch()
    subprocess.run(
        [shutil.which('bash'), '-c', f'exec 3>>"$0"\n{RECORD}{code}', str(folder / 'commands')],
        cwd=folder,
        env={'REPOSITORY': str(REPOSITORY), 'HOME': str(folder)},
        check=True,
        timeout=60,
    )
    words = (folder / 'commands').read_text().split('\0')[:-1]
    (folder / 'commands').unlink()
    commands, command = [], []
    for word in words:
        if word == '\n':
            commands.append(tuple(command))
            command = []
        else:
            command.append(word)
    return commands


@pytest.fixture(scope='module')
def commands(tmp_path_factory) -> list[Command]:
    folder = tmp_path_factory.mktemp('shell')
    return [
        Command(str(page.relative_to(REPOSITORY)), words)
        for page in PAGES
        for code in shown(page)
        for words in recorded(code, folder)
    ]


class Understood(Exception):
    """The script has parsed its command line."""


@pytest.fixture
def understand(monkeypatch, tmp_path):
    """Calls the script of a command until it has parsed its arguments. The files that these name exist."""
    (tmp_path / 'checkout').mkdir()
    monkeypatch.chdir(tmp_path / 'checkout')
    parse_args, inference_config = argparse.ArgumentParser.parse_args, flags.inference_config

    def end_of_arguments(*args):
        parse_args(*args)
        raise Understood

    def end_of_flags(*args):
        inference_config(*args)
        raise Understood

    def understand(script: str, *words: str) -> None:
        for name in (word.rpartition('=')[2] for word in words):
            if name.endswith('.pth'):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).touch()
        module = importlib.import_module(script.removesuffix('.py').replace('/', '.'))
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [script, *words])
            # These scripts check after parsing which flags go together.
            if {'parse_flags', 'evaluation_parser'} & set(vars(module)):
                patch.setattr(flags, 'inference_config', end_of_flags)
            else:
                patch.setattr(argparse.ArgumentParser, 'parse_args', end_of_arguments)
            with pytest.raises(Understood):
                module.main()

    return understand


def test_scripts_understand_their_commands(commands, understand, capsys):
    wrong, seen = [], set()
    for command in commands:
        words = command.words
        if words[0] not in ('python', 'torchrun'):
            continue
        number = next((i for i, word in enumerate(words) if word.endswith('.py')), None)
        if number is None:
            assert '-m' in words, str(command)  # a module of another package
            continue
        script = Path(words[number]).resolve()
        script = script.relative_to(REPOSITORY) if script.is_relative_to(REPOSITORY) else Path(words[number])
        seen.add(script.as_posix())
        if '--help' in words:
            continue
        try:
            understand(script.as_posix(), *words[number + 1 :])
        except SystemExit:
            wrong.append(f'{command}\n    {capsys.readouterr().err.strip().splitlines()[-1]}')
    assert not wrong, '\n'.join(wrong)
    assert {'train.py', 'eval_davis.py', 'eval_youtube.py', 'scripts/eval_folder.py', 'scripts/ablate.py'} <= seen
    assert len(seen) >= 18


def test_files_of_the_repository_that_commands_name_are_there(commands):
    for command in commands:
        if command.words[0] in ('bash', 'scripts/train_light.sh'):
            for word in command.words:
                if word.startswith(('scripts/', 'tests/')):
                    assert (REPOSITORY / word).exists(), str(command)


def test_the_shell_code_is_run_by_nobody(tmp_path):
    code = 'for a in 1 "2 3"; do\n  python x.py --a $a --b "$a" \\\n --c  # what\ndone\ntouch file && rm -r /nowhere'
    assert recorded(code, tmp_path) == [
        ('python', 'x.py', '--a', '1', '--b', '1', '--c'),
        ('python', 'x.py', '--a', '2', '3', '--b', '2 3', '--c'),
        ('touch', 'file'),
        ('rm', '-r', '/nowhere'),
    ]
    assert not list(tmp_path.iterdir())


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def test_links_lead_to_files_and_headings():
    wrong, seen = [], 0
    for page in PAGES:
        text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r'\]\(([^)\s]+)\)', text):
            if target.startswith(('http://', 'https://')):
                continue
            seen += 1
            path, _, anchor = target.partition('#')
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in headings(file)):
                wrong.append(f'{page.relative_to(REPOSITORY)}: {target}')
    assert not wrong, '\n'.join(wrong)
    assert seen > 40


def test_the_readme_is_short_and_has_a_picture():
    text = (REPOSITORY / 'README.md').read_text()
    assert len(text.split()) <= 900
    [picture] = re.findall(r'!\[[^]]+\]\((.*?)\)', text)
    assert text.index(picture) < text.index('\n## ')
    assert (REPOSITORY / picture).stat().st_size <= 200_000


def test_every_page_can_be_found():
    """The README or a page that it leads to has a link to each page of docs."""
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text())
    }
    assert {page for page in PAGES if page.parent.name == 'docs'} <= linked


@needs_weights
@pytest.mark.parametrize('page', ['README.md', 'docs/python.md'])
def test_python_runs(page, tmp_path, monkeypatch):
    """All blocks of a page, in a folder with the beginning of the clips, beside a checkout named stcn."""
    here = tmp_path / 'here'
    for clip in ('blackswan', 'crossing'):
        for folder, count in (('JPEGImages', 3), ('Annotations', 1)):
            (here / 'examples' / clip / folder).mkdir(parents=True)
            for path in list_frames(EXAMPLES / clip / folder)[:count]:
                shutil.copy(path, here / path.relative_to(REPOSITORY))
    (here / 'weights').symlink_to(REPOSITORY / 'weights')
    (tmp_path / 'stcn').symlink_to(REPOSITORY)
    monkeypatch.chdir(here)
    # Networks adapt for three iterations: each look at the clock is ten seconds later.
    monkeypatch.setattr(time, 'process_time', itertools.count(step=10).__next__)
    programs = re.findall('```python\n(.*?)```', (REPOSITORY / page).read_text(), re.DOTALL)
    for program in programs:
        exec(program, {})
    [written] = (here / 'output').iterdir()
    clip = {'swan': 'blackswan'}.get(written.name, written.name)
    paths = list_frames(written)
    assert len(paths) == 3
    for path in paths:
        truth = read_mask(EXAMPLES / clip / 'truth' / 'Annotations' / path.name)
        assert np.mean(read_mask(path) == truth) > 0.97
