"""Helpers that several test files share: comparisons, a reference for the memory read, and archives."""

import io
import json
import math
import socket
import stat
import tarfile
import zipfile
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from model.aggregate import aggregate
from model.image import IMAGE_MEAN, IMAGE_STD
from scripts.sources import Source


def assert_close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, torch.from_numpy(expected).reshape(found.shape), atol=tolerance, rtol=0)


def assert_same_objects(prob, expected):
    """Compare the probabilities of three objects, ``prob [1, 3, H, W]``, and their aggregation with published ones.

    The aggregation computes ``p / (1 - p)``, which multiplies the rounding error of a probability near 1 by thousands.
    The tolerance is therefore small for the aggregation of the published probabilities, and larger for that of ours.
    """
    assert_close(prob[0, :, ::2, ::2], expected['object_prob'])
    given = torch.from_numpy(expected['object_prob']).transpose(0, 1)
    assert_close(aggregate(given).softmax(dim=1), expected['aggregated'])
    assert_close(aggregate(prob).softmax(dim=1)[0, :, ::2, ::2], expected['aggregated'], tolerance=5e-3)


def normalised(frame):
    return ((frame.float() / 255 - torch.tensor(IMAGE_MEAN)[:, None, None]) / torch.tensor(IMAGE_STD)[:, None, None])[
        None, :, :96, :176
    ]


def unpadded_pixels(prob):
    """Drop the padding from every second pixel of 112 x 192, counted from (0, 0); the frame begins at (1, 5)."""
    return prob[..., 1:56, 3:94].astype(np.float32)


def dense_read(keys, values, query, top_k, metric='l2', sigma=None):
    """One object: keys [T, Ck, h, w], values [T, Cv, h, w], query [Ck, h, w] -> [Cv, h, w]."""
    scale = math.sqrt(len(query))
    keys, values = (x.double().flatten(2).transpose(0, 1).flatten(1) for x in (keys, values))  # [C, N]
    q = query.double().flatten(1)
    if metric == 'l2':
        S = -(keys[:, :, None] - q[:, None]).square().sum(0) / scale
    else:
        S = keys.T @ q / scale
    E = (S - S.amax(0)).exp()
    if sigma:
        grid = torch.cartesian_prod(*(torch.arange(size) for size in query.shape[1:])).double()
        E = E * (-torch.cdist(grid[S.argmax(1)], grid).square() / (2 * sigma**2)).exp()
    if top_k:
        threshold = E.topk(min(top_k, len(E)), dim=0).values[-1]
        E = E.masked_fill(E < threshold, 0)
    return (values @ (E / E.sum(0))).unflatten(1, query.shape[1:]).float()


def free_port() -> int:
    with socket.socket() as test:
        test.bind(('127.0.0.1', 0))
        return test.getsockname()[1]


class Here:
    """In place of a ``ProcessPoolExecutor``: calls in this process, which need not start an interpreter."""

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def change_meta(root, change):
    path = root / 'valid' / 'meta.json'
    meta = json.loads(path.read_text())
    change(meta['videos'])
    path.write_text(json.dumps(meta))


def make_zip(files: dict[str, bytes], *, inside: str = '') -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(inside + name, content)
    return stream.getvalue()


def zip_with(*members: tuple[str, bytes], mode: int = 0, **changes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo('x')
            info.filename = name  # past the constructor, which mends some names
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return stream.getvalue()


def tar_with(*members: dict) -> bytes:
    """A tar, written header by header, since tarfile would refuse to write some of these members."""
    data = b''
    for member in members:
        info = tarfile.TarInfo(member['name'])
        content = member.get('content', b'')
        info.size = len(content)
        for key in member.keys() - {'name', 'content'}:
            setattr(info, key, member[key])
        data += info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)
    return data + bytes(10_240)


def hostile_source(folder: Path, content: bytes, suffix: str) -> Source:
    """An archive in ``folder/inside``, and in ``folder/outside`` a file that it must not touch."""
    (folder / 'outside').mkdir()
    (folder / 'outside' / 'precious').write_bytes(b'precious')
    target = folder / 'inside'
    target.mkdir()
    (target / f'evil{suffix}').write_bytes(content)
    return Source('evil', 'http://a', 'http://a', target, target / f'evil{suffix}', holds=('JPEGImages',))


def everything(folder: Path) -> dict[str, tuple]:
    return {
        str(path): (
            stat.S_IFMT(path.lstat().st_mode),
            path.lstat().st_nlink,
            path.read_bytes() if path.is_file() else b'',
        )
        for path in folder.rglob('*')
    }
