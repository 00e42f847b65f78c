"""Image sources: their formats, splits, levels and downloads, and every error they can meet."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from contraflow.cli._config import data_source, read_preset
from contraflow.data import (
    BinarizedMnist,
    Cifar10,
    Cifar100,
    FashionMnist,
    ImageFolder,
    Mnist,
    Splits,
    Svhn,
    bin_levels,
    image_folder,
    read_idx,
)
from contraflow.data._pixels import read_pixels
from contraflow.data._unpickle import unpickle_arrays
from contraflow.data.store import RowStore
from contraflow.errors import ConfigurationError, DataError

REAL = os.environ.get("CONTRAFLOW_DATA")  # read before any test takes it away


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("CONTRAFLOW_DATA", raising=False)


def levels(*shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.validation), len(splits.test)


# bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_tile_exactly(bits):
    every = torch.arange(256, dtype=torch.uint8)
    binned = bin_levels(every, bits)
    values, counts = binned.unique(return_counts=True)
    assert values.tolist() == list(range(2**bits))
    assert counts.tolist() == [2 ** (8 - bits)] * 2**bits
    assert bool((binned[1:] >= binned[:-1]).all())  # in order: only neighbours are merged
    assert binned.dtype == torch.uint8
    array = bin_levels(every.numpy(), bits)
    assert array.dtype == np.uint8
    assert array.tolist() == binned.tolist()


@pytest.mark.parametrize("bits", [0, 9, -1, 4.5, 5.0])
@pytest.mark.parametrize(
    "source", [Mnist, FashionMnist, Cifar10, Cifar100, Svhn, functools.partial(ImageFolder, "f")]
)
def test_bits_out_of_range(source, bits):
    with pytest.raises(ConfigurationError, match=rf"got bits={bits}, expected 1 to 8"):
        source(bits=bits)


# mnist and fashion-mnist -------------------------------------------------------------------------


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


@pytest.fixture
def root(tmp_path):
    """A data root with 12 training and 5 test images."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / TRAIN).write_bytes(idx_bytes(levels(12, 28, 28, seed=0)))
    (folder / TEST).write_bytes(idx_bytes(levels(5, 28, 28, seed=1)))
    return tmp_path


def test_mnist_round_trip(root):
    splits = Mnist(root, num_validation=3).load()
    train = torch.from_numpy(levels(12, 28, 28, seed=0)).unsqueeze(1)
    assert torch.equal(splits.train.x, train[:9])
    assert torch.equal(splits.validation.x, train[9:])
    assert torch.equal(splits.test.x, torch.from_numpy(levels(5, 28, 28, seed=1)).unsqueeze(1))
    assert splits.train.x.dtype == torch.uint8
    assert (splits.event_shape, splits.num_bins, splits.name) == ((1, 28, 28), 256, "mnist")


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_lies_in_the_root_itself_packed_or_not(tmp_path, root, packed):
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in (TRAIN, TEST):
        data = (root / "MNIST" / "raw" / name).read_bytes()
        if packed:
            (flat / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (flat / name).write_bytes(data)
    expected = Mnist(root, num_validation=3).load()
    assert torch.equal(Mnist(str(flat), num_validation=3).load().train.x, expected.train.x)


def test_mnist_root_from_the_environment(root, monkeypatch):
    with pytest.raises(DataError, match=r"CONTRAFLOW_DATA is not set.*Download https"):
        Mnist(num_validation=3).load()
    monkeypatch.setenv("CONTRAFLOW_DATA", str(root))
    assert len(Mnist(num_validation=3).load().train) == 9
    with pytest.raises(DataError, match=r"root names.*nowhere, which does not exist.*Download"):
        Mnist(root / "nowhere").load()  # the argument wins
    monkeypatch.setenv("CONTRAFLOW_DATA", str(root / "nowhere"))
    with pytest.raises(DataError, match="the variable CONTRAFLOW_DATA names"):
        Mnist().load()
    monkeypatch.setenv("CONTRAFLOW_DATA", "")
    with pytest.raises(DataError, match="is not set"):
        Mnist().load()


def test_mnist_missing_file_says_where_it_looked(root):
    (root / "MNIST" / "raw" / TEST).unlink()
    with pytest.raises(DataError, match=rf"found none of .*raw.{TEST}.*{TEST}\.gz.*Download"):
        Mnist(root, num_validation=3).load()


def test_mnist_validation_must_leave_something(root):
    with pytest.raises(DataError, match="got 12 training images and num_validation=12"):
        Mnist(root, num_validation=12).load()
    with pytest.raises(ConfigurationError, match="num_validation=0"):
        Mnist(root, num_validation=0)


GOOD = idx_bytes(levels(12, 28, 28, seed=0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "bad magic number, got bytes none"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "bad magic number, got bytes 00 00 0d 03"),
        (b"<htm" + GOOD[4:], "bad magic number"),
        (GOOD[:9], "got 9 bytes, expected 16 or more"),
        (GOOD[:-1], f"got {len(GOOD) - 1} bytes, expected {len(GOOD)} for sizes"),
        (GOOD + b"\x00", f"got {len(GOOD) + 1} bytes, expected {len(GOOD)}"),
        (idx_bytes(np.zeros((12, 32, 32))), r"got sizes \[12, 32, 32\], expected \[N, 28, 28\]"),
        (idx_bytes(np.zeros(12)), r"got sizes \[12\]"),
        (idx_bytes(np.zeros((0, 28, 28))), "N >= 1"),
    ],
)
def test_mnist_damaged_file(root, data, message):
    (root / "MNIST" / "raw" / TRAIN).write_bytes(data)
    with pytest.raises(DataError, match=message):
        Mnist(root, num_validation=3).load()


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"no gzip", lambda d: b""])
def test_idx_damaged_gzip(tmp_path, damage):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(DataError, match=r"images\.gz"):
        read_idx(path)
    path.write_bytes(gzip.compress(GOOD))
    assert read_idx(path).shape == (12, 28, 28)


def test_mnist_at_fewer_bits(root):
    splits = Mnist(root, num_validation=3, bits=5).load()
    x = torch.from_numpy(levels(12, 28, 28, seed=0) // 8).unsqueeze(1)
    assert torch.equal(torch.cat([splits.train.x, splits.validation.x]), x)
    assert torch.equal(splits.test.x, torch.from_numpy(levels(5, 28, 28, seed=1) // 8).unsqueeze(1))
    assert splits.num_bins == 32


def test_fashion_mnist_has_a_folder_of_its_own(root):
    with pytest.raises(DataError, match=r"fashion_mnist: found none of FashionMNIST/raw"):
        FashionMnist(root).load()
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / TRAIN).write_bytes(idx_bytes(levels(7, 28, 28, seed=2)))
    (folder / f"{TEST}.gz").write_bytes(gzip.compress(idx_bytes(levels(2, 28, 28, seed=3))))
    splits = FashionMnist(root, num_validation=1).load()
    assert (splits.name, sizes(splits)) == ("fashion_mnist", (6, 1, 2))
    assert torch.equal(splits.test.x[:, 0], torch.from_numpy(levels(2, 28, 28, seed=3)))


# binarized mnist -------------------------------------------------------------------------------


def bits_of(rows: int, seed: int) -> np.ndarray:
    return levels(rows, 784, seed=seed) // 128


def amat(pixels: np.ndarray) -> bytes:
    return b"".join(b" ".join(b"%d" % pixel for pixel in row) + b" \n" for row in pixels)


@pytest.fixture
def binarized(tmp_path):
    """A data root with 6, 3 and 2 images as .npy."""
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    for seed, (part, rows) in enumerate({"train": 6, "valid": 3, "test": 2}.items()):
        np.save(folder / f"{part}.npy", bits_of(rows, seed))
    return tmp_path


def test_binarized_mnist_from_arrays(binarized):
    splits = BinarizedMnist(binarized).load()
    assert (sizes(splits), splits.num_bins, splits.event_shape) == ((6, 3, 2), 2, (1, 28, 28))
    for seed, part in enumerate((splits.train, splits.validation, splits.test)):
        expected = torch.from_numpy(bits_of(len(part), seed)).reshape(-1, 1, 28, 28)
        assert torch.equal(part.x, expected)


@pytest.mark.parametrize("folder", ["binarized_mnist", "."])
def test_binarized_mnist_from_the_published_text(binarized, folder):
    expected = BinarizedMnist(binarized).load()
    for seed, (part, rows) in enumerate({"train": 6, "valid": 3, "test": 2}.items()):
        (binarized / "binarized_mnist" / f"{part}.npy").unlink()
        path = binarized / folder / f"binarized_mnist_{part}.amat"
        path.write_bytes(amat(bits_of(rows, seed)))
    splits = BinarizedMnist(binarized).load()
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(splits, part).x, getattr(expected, part).x)


ONES = np.ones((2, 784), np.uint8)
BINARIZED_ERRORS = {
    "grey": (2 * ONES, "got values up to 2, expected 0 and 1"),
    "floats": (ONES / 2, "got values of dtype float64, expected uint8"),
    "pictures": (ONES.reshape(2, 28, 28), r"got shape \[2, 28, 28\], expected \[N, 784\]"),
    "no rows": (ONES[:0], "got no rows"),
    "no array": (b"hello", "not a readable .npy file"),
    "cut array": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a readable"),
    "archive": (lambda path: np.savez(path.open("wb"), x=ONES), "several arrays"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the archive is written to an open file
@pytest.mark.parametrize("case", BINARIZED_ERRORS)
def test_binarized_mnist_damaged_array(binarized, case):
    content, message = BINARIZED_ERRORS[case]
    path = binarized / "binarized_mnist" / "valid.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(DataError, match=rf"valid\.npy: .*{message}"):
        BinarizedMnist(binarized).load()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-4], "line 3 has 783 entries"),
        (lambda text: text.replace(b"1 0", b"1 2", 1), "starts with b'.*zeros and ones"),
        (lambda text: text.replace(b"\n", b"", 1), "line 1 has 1568 entries"),
        (lambda text: text.replace(b"1 0 ", b"10 0 ", 1), "line 1 has 784 entries"),
        (lambda text: b"\n\n", "got no rows"),
    ],
)
def test_binarized_mnist_damaged_text(binarized, damage, message):
    (binarized / "binarized_mnist" / "valid.npy").unlink()
    path = binarized / "binarized_mnist_valid.amat"
    path.write_bytes(damage(amat(bits_of(3, seed=1))))
    with pytest.raises(DataError, match=message):
        BinarizedMnist(binarized).load()


# cifar -----------------------------------------------------------------------------------------


def python2_pickle(data: np.ndarray) -> bytes:
    """What Python 2 writes for ``{"data": data}``: its str are bytes to us."""
    state = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R" + state
    raw = data.tobytes()
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        b"\x87R(K\x01K" + bytes([len(data)]) + b"M\x00\x0c\x86" + dtype + b"\x89T"
        + len(raw).to_bytes(4, "little") + raw + b"tbu."
    )  # fmt: skip


STYLES: dict[str, Callable[[np.ndarray], bytes]] = {
    "python 2": python2_pickle,
    "numpy 2": lambda data: pickle.dumps({"data": data}, protocol=2).replace(
        b"numpy.core.multiarray", b"numpy._core.multiarray"
    ),
    "bytes, protocol 2": lambda data: pickle.dumps({b"data": data}, protocol=2),
    "text, protocol 4": lambda data: pickle.dumps({"data": data, "labels": [1]}, protocol=4),
    "text, protocol 5": lambda data: pickle.dumps({"data": data}, protocol=5),
}


def batch(rows: int, seed: int) -> np.ndarray:
    return levels(rows, 3072, seed=seed)


@pytest.fixture
def cifar(tmp_path):
    """A data root with five training batches of four images and three test images."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}").write_bytes(python2_pickle(batch(4, seed=i)))
    (folder / "test_batch").write_bytes(python2_pickle(batch(3, seed=0)))
    return tmp_path


@pytest.mark.parametrize("style", STYLES)
def test_cifar10_round_trip(cifar, style):
    for i, path in enumerate(sorted((cifar / "cifar-10-batches-py").glob("data*")), start=1):
        path.write_bytes(STYLES[style](batch(4, seed=i)))
    splits = Cifar10(cifar, num_validation=3).load()
    rows = np.concatenate([batch(4, seed=i) for i in range(1, 6)])
    x = torch.from_numpy(rows).reshape(-1, 3, 32, 32)
    assert torch.equal(splits.train.x, x[:17])
    assert torch.equal(splits.validation.x, x[17:])
    assert torch.equal(splits.test.x, torch.from_numpy(batch(3, seed=0)).reshape(-1, 3, 32, 32))
    assert (splits.name, splits.num_bins, splits.train.x.dtype) == ("cifar10", 256, torch.uint8)
    assert splits.train.x[0, 1, 2, 3] == rows[0, 1024 + 2 * 32 + 3]  # green, third row
    assert Cifar10(cifar, num_validation=3, bits=3).load().num_bins == 8


def test_cifar10_without_some_batches_warns(cifar):
    folder = cifar / "cifar-10-batches-py"
    for i in (1, 3, 4):
        (folder / f"data_batch_{i}").unlink()
    message = "8 of 50,000 training images.*data_batch_1, data_batch_3, data_batch_4 missing"
    with pytest.warns(UserWarning, match=message):
        splits = Cifar10(cifar, num_validation=1).load()
    assert torch.equal(splits.train.x[0].flatten(), torch.from_numpy(batch(4, seed=2)[0]))
    for i in (2, 5):
        (folder / f"data_batch_{i}").unlink()
    with pytest.raises(DataError, match=r"found none of .*data_batch_5 in .*download=True"):
        Cifar10(cifar).load()


def test_cifar10_needs_its_test_batch(cifar):
    (cifar / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(DataError, match=r"found none of cifar-10-batches-py/test_batch in"):
        Cifar10(cifar).load()


def test_cifar100_round_trip(tmp_path):
    with pytest.raises(DataError, match=r"cifar-100-python/train, cifar-100-python/test in .*tar"):
        Cifar100(tmp_path).load()
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(python2_pickle(batch(9, seed=1)))
    (folder / "test").write_bytes(python2_pickle(batch(2, seed=2)))
    splits = Cifar100(tmp_path, num_validation=4).load()
    assert (splits.name, sizes(splits), splits.num_bins) == ("cifar100", (5, 4, 2), 256)
    assert torch.equal(splits.validation.x[3].flatten(), torch.from_numpy(batch(9, seed=1)[8]))


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_hostile_pickle_is_refused_and_not_run(cifar, protocol):
    mark = cifar / "mark"
    hostile = pickle.dumps({"data": Calls(os.mkdir, str(mark))}, protocol=protocol)
    (cifar / "cifar-10-batches-py" / "data_batch_2").write_bytes(hostile)
    with pytest.raises(DataError, match=r"data_batch_2: .*wants to call (posix|nt)\.mkdir"):
        Cifar10(cifar).load()
    assert not mark.exists()
    pickle.loads(hostile)
    assert mark.exists()  # it would have worked


@pytest.mark.parametrize(
    "name", ["builtins\neval", "numpy\nload", "numpy\nfromfile", "numpy.core.multiarray\nscalar"]
)
def test_pickle_may_not_even_name_other_functions(tmp_path, name):
    path = tmp_path / "p"
    path.write_bytes(b"c" + name.encode() + b"\n.")
    with pytest.raises(DataError, match=f"wants to call {name}".replace("\n", r"\.")):
        unpickle_arrays(path)


def test_pickle_may_not_reach_attributes(tmp_path):
    path = tmp_path / "p"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.")
    with pytest.raises(DataError, match=r"wants to call numpy\.ndarray\.tofile"):
        unpickle_arrays(path)


def test_pickle_cannot_change_what_the_next_one_calls(tmp_path):
    path = tmp_path / "p"
    state = pickle.dumps((None, {"__defaults__": (1, 2, 3)}), protocol=2)[2:-1]
    path.write_bytes(b"\x80\x02cnumpy._core.numeric\n_frombuffer\n" + state + b"b.")
    assert unpickle_arrays(path).__defaults__ == (1, 2, 3)
    path.write_bytes(b"\x80\x02cnumpy._core.numeric\n_frombuffer\n.")
    assert unpickle_arrays(path).__defaults__ is None


GOOD_BATCH = python2_pickle(batch(4, seed=1))
CIFAR_ERRORS = {
    "empty": (b"", "cannot be read as a pickle"),
    "text": (b"<html>not found</html>", "cannot be read as a pickle"),
    "cut": (GOOD_BATCH[:-99], "cannot be read as a pickle.*download it again"),
    "list": (pickle.dumps([1, 2]), "holds a list, expected a dictionary"),
    "other": (pickle.dumps({"labels": [1]}), r"got the entries \['labels'\]"),
    "no array": (pickle.dumps({"data": [1]}), "expected an array called 'data'"),
    "floats": (pickle.dumps({"data": np.zeros((2, 3072))}), "dtype float64 and shape"),
    "grey": (pickle.dumps({"data": levels(2, 1024)}), r"shape \[2, 1024\], expected uint8 \[N, 30"),
    "none": (pickle.dumps({"data": levels(0, 3072)}), "N >= 1"),
    "huge": (
        b"\x80\x02cnumpy\nndarray\n\x8a\x08" + (2**60).to_bytes(8, "little") + b"\x85R.",
        "cannot be read as a pickle",
    ),
}


@pytest.mark.parametrize("case", CIFAR_ERRORS)
def test_cifar_damaged_batch(cifar, case):
    content, message = CIFAR_ERRORS[case]
    (cifar / "cifar-10-batches-py" / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_1: {message}|data_batch_1: .*{message}"):
        Cifar10(cifar).load()


# svhn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["SVHN", "svhn", "."])
def test_svhn_round_trip(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    train, test = levels(32, 32, 3, 8, seed=0), levels(32, 32, 3, 2, seed=1)
    savemat(tmp_path / folder / "train_32x32.mat", {"X": train, "y": np.ones((8, 1))})
    savemat(tmp_path / folder / "test_32x32.mat", {"X": test}, do_compression=True)
    splits = Svhn(tmp_path, num_validation=3).load()
    assert (splits.name, sizes(splits), splits.num_bins) == ("svhn", (5, 3, 2), 256)
    assert splits.event_shape == (3, 32, 32)
    assert torch.equal(splits.test.x, torch.from_numpy(test).permute(3, 2, 0, 1))
    assert torch.equal(splits.validation.x, torch.from_numpy(train).permute(3, 2, 0, 1)[5:])
    assert Svhn(tmp_path, num_validation=3, bits=1).load().train.x.max() == 1


SVHN_ERRORS = {
    "missing": (None, "svhn: found none of SVHN/test_32x32.mat, .*housenumbers/test"),
    "empty": (b"", "cannot be read as a MATLAB file"),
    "text": (b"<html>" * 99, "cannot be read as a MATLAB file"),
    "version 7.3": (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "of version 5"),
    "no X": ({"y": levels(32, 32, 3, 2)}, "holds no array X"),
    "floats": ({"X": np.zeros((32, 32, 3, 2))}, "got X of dtype float64"),
    "rows first": ({"X": levels(2, 32, 32, 3)}, r"shape \[2, 32, 32, 3\], expected uint8 \[32"),
    "none": ({"X": levels(32, 32, 3, 0)}, "N >= 1"),
}


@pytest.mark.parametrize("case", SVHN_ERRORS)
def test_svhn_errors(tmp_path, case):
    content, message = SVHN_ERRORS[case]
    savemat(tmp_path / "train_32x32.mat", {"X": levels(32, 32, 3, 8)})
    if isinstance(content, bytes):
        (tmp_path / "test_32x32.mat").write_bytes(content)
    elif content is not None:
        savemat(tmp_path / "test_32x32.mat", content)
    with pytest.raises(DataError, match=message):
        Svhn(tmp_path, num_validation=3).load()


def test_svhn_cut_short(tmp_path):
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": levels(32, 32, 3, 8)})
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"test_32x32\.mat: cannot be read .* download it again"):
        Svhn(tmp_path, num_validation=3).load()


@pytest.mark.parametrize(
    ("module", "package"), [("scipy.io", "scipy"), ("PIL", "pillow"), ("pooch", "pooch")]
)
def test_missing_packages_are_named(tmp_path, monkeypatch, module, package):
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": levels(32, 32, 3, 8)})
    pictures(tmp_path / "pictures")
    sources = {
        "scipy": Svhn(tmp_path, num_validation=3),
        "pillow": ImageFolder(tmp_path / "pictures"),
        "pooch": Mnist(tmp_path, download=True),
    }
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"pip install {package}"):
        sources[package].load()


# download --------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Any]:
    """A server of the files that a test puts into ``server.files``; it notes what was asked."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            asked.append(name)
            self.send_response(200 if name in files else 404)
            self.send_header("Content-Length", str(len(files.get(name, b""))))
            self.end_headers()
            self.wfile.write(files.get(name, b""))

        def log_message(self, format: str, *args: Any) -> None: ...

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield SimpleNamespace(files=files, asked=asked, url=f"http://127.0.0.1:{httpd.server_port}/")
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def mat(images: np.ndarray) -> bytes:
    out = io.BytesIO()
    savemat(out, {"X": images})
    return out.getvalue()


IDX = {
    f"{name}.gz": gzip.compress(idx_bytes(levels(4, 28, 28, seed=seed)))
    for seed, name in enumerate((TRAIN, TEST))
}
SMALL = {"num_validation": 1}
PUBLISHED: dict[str, tuple[Any, dict[str, Any], dict[str, bytes]]] = {
    "mnist": (Mnist, SMALL, IDX),
    "fashion_mnist": (FashionMnist, SMALL, IDX),
    "cifar10": (
        Cifar10,
        SMALL,
        {
            "cifar-10-python.tar.gz": archive(
                {
                    f"cifar-10-batches-py/{name}": GOOD_BATCH
                    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
                }
            )
        },
    ),
    "cifar100": (
        Cifar100,
        SMALL,
        {
            "cifar-100-python.tar.gz": archive(
                {f"cifar-100-python/{name}": GOOD_BATCH for name in ("train", "test")}
            )
        },
    ),
    "svhn": (
        Svhn,
        SMALL,
        {f"{part}_32x32.mat": mat(levels(32, 32, 3, 4)) for part in ("train", "test")},
    ),
    "binarized_mnist": (
        BinarizedMnist,
        {},
        {f"binarized_mnist_{p}.amat": amat(bits_of(2, 0)) for p in ("train", "valid", "test")},
    ),
}


def publish(monkeypatch, server, name: str) -> tuple[Any, dict[str, Any], dict[str, bytes]]:
    """Let the set's own list of files point to the server, with the hashes of small files."""
    source, options, files = PUBLISHED[name]
    remotes = source.home.remotes
    assert sorted(remote.file_name for remote in remotes) == sorted(files)
    moved = tuple(
        replace(
            remote,
            url=server.url + remote.file_name,
            digest=f"sha256:{hashlib.sha256(files[remote.file_name]).hexdigest()}",
        )
        for remote in remotes
    )
    monkeypatch.setattr(source, "home", replace(source.home, remotes=moved))
    server.files.update(files)
    return source, options, files


@pytest.mark.parametrize("name", PUBLISHED)
def test_download_lays_the_files_out(tmp_path, monkeypatch, server, name):
    source, options, files = publish(monkeypatch, server, name)
    root = tmp_path / "new" / "root"
    splits = source(root, download=True, **options).load()
    assert splits.name == name
    assert sorted(server.asked) == sorted(files)
    again = source(root, **options).load()  # now without leave to download
    assert torch.equal(again.test.x, splits.test.x)
    source(root, download=True, **options).load()
    assert sorted(server.asked) == sorted(files)  # what is there is not fetched again


@pytest.mark.parametrize("name", PUBLISHED)
def test_download_of_other_bytes_is_refused(tmp_path, monkeypatch, server, name):
    source, options, files = publish(monkeypatch, server, name)
    server.files.update({file: data + b"x" for file, data in files.items()})
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1.* could not be fetched .*sha256:"):
        source(tmp_path, download=True, **options).load()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_download_of_a_missing_file_or_into_no_folder(tmp_path, monkeypatch, server):
    publish(monkeypatch, server, "mnist")
    server.files.clear()
    with pytest.raises(DataError, match="404"):
        Mnist(tmp_path, download=True).load()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="which cannot be made"):
        Mnist(tmp_path / "file" / "root", download=True).load()
    with pytest.raises(DataError, match=r"no data root.*CONTRAFLOW_DATA"):
        Mnist(download=True).load()


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_set_says_what_to_download_and_how(tmp_path, name):
    source, options, _ = PUBLISHED[name]
    with pytest.raises(DataError) as caught:
        source(tmp_path, **options).load()
    message = str(caught.value)
    assert all(remote.url in message for remote in source.home.remotes)
    assert f"into {tmp_path / source.home.folder}" in message
    assert "download=True (--data.download true)" in message


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hashes_are_hashes(name):
    for remote in PUBLISHED[name][0].home.remotes:
        kind, digest = remote.digest.split(":")
        assert len(digest) == {"md5": 32, "sha256": 64}[kind]
        assert len(bytes.fromhex(digest)) * 2 == len(digest)


# image folder ----------------------------------------------------------------------------------


def picture(index: int, height: int = 4, width: int = 6) -> np.ndarray:
    """Colour pixels ``[H, W, 3]`` whose first red level is the index."""
    pixels = levels(height, width, 3, seed=index)
    pixels[0, 0, 0] = index
    return pixels


def pictures(folder: Path, count: int = 20, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        Image.fromarray(picture(i)).save(folder / f"{i:03}.png")
    return folder


def indices(x: torch.Tensor) -> list[int]:
    return x[:, 0, 0, 0].tolist()


def test_folder_splits_every_image_once(tmp_path):
    pictures(tmp_path / "a" / "x", 15)
    pictures(tmp_path / "b", 5, first=15)
    splits = ImageFolder(tmp_path / "a" / "..", fraction_validation=0.15, fraction_test=0.2).load()
    assert (sizes(splits), splits.num_bins, splits.event_shape) == ((13, 3, 4), 256, (3, 4, 6))
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(index for part in parts for index in indices(part.x)) == list(range(20))
    for part in parts:
        assert indices(part.x) == sorted(indices(part.x))
        for row, index in zip(part.x, indices(part.x), strict=True):
            assert torch.equal(row, torch.from_numpy(picture(index)).permute(2, 0, 1))
    again, other = (ImageFolder(tmp_path, seed=seed).load().test.x for seed in (0, 1))
    assert indices(ImageFolder(tmp_path).load().test.x) == indices(again) != indices(other)


def test_folder_does_not_depend_on_the_order_of_the_disk(tmp_path, monkeypatch):
    pictures(tmp_path / "a")
    expected = ImageFolder(tmp_path).load()
    walk = image_folder.os.walk
    backwards = lambda *a, **k: ((f, b, names[::-1]) for f, b, names in walk(*a, **k))  # noqa: E731
    monkeypatch.setattr(image_folder.os, "walk", backwards)
    assert torch.equal(ImageFolder(tmp_path).load().train.x, expected.train.x)


@pytest.mark.parametrize("held_out", ["validation", "val", None])
def test_folder_with_parts(tmp_path, held_out):
    pictures(tmp_path / "train", 10)
    pictures(tmp_path / "test" / "deep", 4, first=10)
    pictures(tmp_path / "elsewhere", 3, first=100)
    if held_out is not None:
        pictures(tmp_path / held_out, 2, first=20)
    splits = ImageFolder(tmp_path, fraction_validation=0.3).load()
    assert indices(splits.test.x) == [10, 11, 12, 13]
    if held_out is None:
        assert sizes(splits) == (7, 3, 4)
        assert sorted(indices(splits.train.x) + indices(splits.validation.x)) == list(range(10))
    else:
        assert indices(splits.train.x) == list(range(10))
        assert indices(splits.validation.x) == [20, 21]


@pytest.mark.parametrize("there", [("train",), ("test",), ("train", "test", "val", "validation")])
def test_folder_with_unclear_parts(tmp_path, there):
    for name in there:
        pictures(tmp_path / name, 3)
    with pytest.raises(DataError, match="expected train, test and at most one of"):
        ImageFolder(tmp_path).load()


@pytest.mark.parametrize(
    ("ending", "options"),
    [(".png", {}), (".PNG", {}), (".bmp", {}), (".webp", {"lossless": True})],
)
def test_folder_reads_its_formats_exactly(tmp_path, ending, options):
    for i in range(3):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}{ending}", **options)
    splits = ImageFolder(tmp_path, fraction_validation=0.3, fraction_test=0.3).load()
    expected = torch.from_numpy(picture(indices(splits.test.x)[0])).permute(2, 0, 1)
    assert torch.equal(splits.test.x[0], expected)


def one(path: Path, image: Image.Image, name: str = "7.png", **options: Any) -> torch.Tensor:
    """Read one image through a folder: ``[C, H, W]``."""
    for part in ("train", "validation", "test"):
        (path / part).mkdir(exist_ok=True)
        image.save(path / part / name)
    return ImageFolder(path, **options).load().train.x[0]


def test_folder_reads_jpeg_upright(tmp_path):
    """Black left of white, taken with the camera turned: black above white."""
    image = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 8, 0), 8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees, clockwise
    image.save(tmp_path / "7.jpeg", exif=exif, quality=95)
    x = read_pixels(tmp_path / "7.jpeg", 1, None)
    assert x.shape == (1, 16, 8)
    assert int(x[0, 0].max()) < 40 < 215 < int(x[0, -1].min())


def test_folder_cuts_the_centre_and_resizes(tmp_path):
    pixels = np.zeros((32, 80, 3), np.uint8)
    pixels[:, 24:56] = [10, 200, 30]  # the centre, 32 x 32
    x = one(tmp_path, Image.fromarray(pixels), size=8)
    assert x.shape == (3, 8, 8)
    inner = x[:, :, 2:6]  # beyond the reach of what was cut off: 2 pixels
    assert inner.unique(dim=1).flatten().tolist() == 4 * [10] + 4 * [200] + 4 * [30]
    assert int(x[1, :, 0].min()) > 150
    assert one(tmp_path, Image.fromarray(pixels), size=(4, 10)).shape == (3, 4, 10)


def test_folder_resizes_without_aliasing(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    x = one(tmp_path, Image.fromarray(board), channels=1, size=8).float()
    assert (x - 127.5).abs().max() < 6  # picking pixels would give 0 and 255


def test_folder_of_unequal_sizes(tmp_path):
    pictures(tmp_path / "train", 3)
    pictures(tmp_path / "test", 3)
    Image.fromarray(picture(5, height=9, width=7)).save(tmp_path / "test" / "001.png")
    message = r"test/001\.png: is 9 x 7, expected 4 x 6 .* like .*train/000\.png\. Give size="
    with pytest.raises(DataError, match=message):
        ImageFolder(tmp_path, fraction_validation=0.3).load()
    splits = ImageFolder(tmp_path, fraction_validation=0.3, size=4).load()
    assert splits.event_shape == (3, 4, 4)


def test_folder_larger_than_memory(tmp_path, monkeypatch):
    pictures(tmp_path / "a")
    expected = ImageFolder(tmp_path).load()
    stores: list[RowStore] = []

    def small(*arguments: Any) -> RowStore:
        stores.append(RowStore(*arguments, in_memory=100))
        return stores[-1]

    monkeypatch.setattr(image_folder, "RowStore", small)
    splits = ImageFolder(tmp_path).load()
    assert [store.rows for store in stores] == [16, 2, 2]
    assert torch.equal(splits.train.x, expected.train.x)
    assert torch.equal(splits.test.x, expected.test.x)


def test_folder_at_fewer_bits(tmp_path):
    pictures(tmp_path / "a")
    full, cut = (ImageFolder(tmp_path, bits=bits).load() for bits in (8, 5))
    assert torch.equal(cut.train.x, full.train.x // 8)
    assert cut.num_bins == 32


GREY = levels(4, 6)
COLOUR = picture(3)


def transparent() -> Image.Image:
    image = Image.fromarray(COLOUR).convert("RGBA")
    image.putpixel((1, 2), (1, 2, 3, 254))
    return image


ACCEPTED: dict[str, tuple[Callable[[], Image.Image], int, np.ndarray]] = {
    "grey as colour": (lambda: Image.fromarray(GREY), 3, np.stack([GREY] * 3, -1)),
    "grey": (lambda: Image.fromarray(GREY), 1, GREY[..., None]),
    "colourless": (lambda: Image.fromarray(np.stack([GREY] * 3, -1)), 1, GREY[..., None]),
    "opaque": (lambda: Image.fromarray(COLOUR).convert("RGBA"), 3, COLOUR),
    "opaque grey": (lambda: Image.fromarray(GREY).convert("LA"), 1, GREY[..., None]),
    "bilevel": (lambda: Image.fromarray(GREY > 99), 1, 255 * (GREY > 99)[..., None]),
    "palette": (lambda: Image.fromarray(COLOUR).quantize(256), 3, COLOUR),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_folder_converts_what_is_harmless(tmp_path, case):
    image, channels, expected = ACCEPTED[case]
    x = one(tmp_path, image(), channels=channels)
    assert np.array_equal(x.permute(1, 2, 0).numpy(), expected)


REFUSED: dict[str, tuple[Callable[[], Image.Image], str, int, str]] = {
    "colour": (lambda: Image.fromarray(COLOUR), ".png", 1, "has colours, but channels=1"),
    "transparent": (transparent, ".png", 3, r"transparent pixels \(4\.2% of them\)"),
    "16-bit grey": (lambda: Image.fromarray(GREY.astype(np.uint16)), ".png", 1, "more than 8 bits"),
    "cmyk": (lambda: Image.fromarray(COLOUR).convert("CMYK"), ".jpg", 3, "the mode CMYK"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folder_refuses_what_it_would_have_to_guess(tmp_path, case):
    image, ending, channels, message = REFUSED[case]
    with pytest.raises(DataError, match=rf"train.7\{ending}: .*{message}"):
        one(tmp_path, image(), f"7{ending}", channels=channels)


def test_folder_refuses_16_bit_colours_and_transparent_palettes(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def png(depth: int, colour: int, row: bytes, extra: bytes = b"") -> bytes:
        header = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
        pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")

    path = tmp_path / "0.png"
    path.write_bytes(png(16, 2, bytes(12)))
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        read_pixels(path, 3, None)
    palette = chunk(b"PLTE", bytes(range(6))) + chunk(b"tRNS", b"\x00")  # the first entry
    path.write_bytes(png(8, 3, b"\x00\x01", palette))
    with pytest.raises(DataError, match=r"transparent pixels \(50\.0% of them\)"):
        read_pixels(path, 3, None)
    path.write_bytes(png(8, 3, b"\x01\x01", palette))  # never used
    assert read_pixels(path, 3, None).tolist() == [[[3, 3]], [[4, 4]], [[5, 5]]]


def test_folder_refuses_moving_pictures(tmp_path):
    frames = [Image.fromarray(picture(i)) for i in range(2)]
    frames[0].save(tmp_path / "0.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"0\.webp: has several frames"):
        read_pixels(tmp_path / "0.webp", 3, None)
    frames[0].save(tmp_path / "0.jpg", "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert read_pixels(tmp_path / "0.jpg", 3, None).shape == (3, 4, 6)  # a camera's previews


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("keep", [0, 20, -30])
def test_folder_names_the_damaged_file(tmp_path, ending, keep):
    pictures(tmp_path / "a", 9)
    path = tmp_path / "a" / f"0005{ending}"
    Image.fromarray(levels(40, 60, 3)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"0005\{ending}: cannot be read as an image"):
        ImageFolder(tmp_path).load()


def test_folder_with_no_images(tmp_path):
    with pytest.raises(DataError, match="got no files, expected images"):
        ImageFolder(tmp_path).load()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"got 1 files of types \.txt, expected images \(\.png"):
        ImageFolder(tmp_path).load()
    (tmp_path / "0.png").write_text("hello")
    with pytest.raises(DataError, match="too few images: 1 give parts of 0, 0, 1"):
        ImageFolder(tmp_path).load()
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        ImageFolder(tmp_path / "nowhere").load()
    with pytest.raises(DataError, match=r"0\.png: no such folder"):
        ImageFolder(tmp_path / "0.png").load()


def test_folder_passes_over_hidden_files_and_warns_of_gifs(tmp_path):
    pictures(tmp_path / "a")
    pictures(tmp_path / ".checkpoints", 3)
    (tmp_path / "a" / "._000.png").write_text("left by a Mac")
    (tmp_path / "a" / "labels.csv").write_text("a,b")
    assert sum(sizes(ImageFolder(tmp_path).load())) == 20
    Image.fromarray(GREY).save(tmp_path / "a" / "0.gif")
    with pytest.warns(UserWarning, match="1 images of other kinds than"):
        assert sum(sizes(ImageFolder(tmp_path).load())) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "got channels=2"),
        ({"size": 0}, "got size=0"),
        ({"size": (4, 5, 6)}, r"got size=\(4, 5, 6\)"),
        ({"size": (4, 5.5)}, "got size="),
        ({"fraction_test": 0.0}, "fraction_test=0.0"),
        ({"fraction_test": 0.5, "fraction_validation": 0.5}, "sum below 1"),
    ],
)
def test_folder_options(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ImageFolder("f", **options)
    assert ImageFolder("f", size=[4, 4]) == ImageFolder("f", size=4)  # pyright: ignore
    assert hash(ImageFolder("f", size=4)) == hash(ImageFolder("f", size=(4, 4)))


# command line ----------------------------------------------------------------------------------


def test_sources_can_be_configured(tmp_path):
    pictures(tmp_path / "a")
    config = {"class_path": "ImageFolder", "init_args": {"path": str(tmp_path), "size": [2, 3]}}
    source = data_source(config)
    assert source == ImageFolder(str(tmp_path), size=(2, 3))
    assert source.load().event_shape == (3, 2, 3)
    config = {"class_path": "Svhn", "init_args": {"download": True, "bits": 5}}
    assert data_source(config, str(tmp_path)) == Svhn(str(tmp_path), bits=5, download=True)


@pytest.mark.parametrize(
    ("preset", "source"),
    [
        ("mnist", Mnist("r")),
        ("fashion_mnist", FashionMnist("r")),
        ("binarized_mnist", BinarizedMnist("r")),
        ("cifar10", Cifar10("r")),
    ],
)
def test_presets_leave_the_levels_to_the_data(preset, source):
    content = read_preset(preset)
    assert data_source(content["data"], "r") == source
    assert "num_bins" not in content["model"]["init_args"]


# the published files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Mnist, (55_000, 5_000, 10_000)),
        (FashionMnist, (55_000, 5_000, 10_000)),
        (Cifar10, (45_000, 5_000, 10_000)),
        (Cifar100, (45_000, 5_000, 10_000)),
        (Svhn, (68_257, 5_000, 26_032)),
        (BinarizedMnist, (50_000, 10_000, 10_000)),
    ],
)
@pytest.mark.filterwarnings("ignore:cifar10. 20,000 of 50,000")
def test_published_files(source, expected):
    if REAL is None:
        pytest.skip("CONTRAFLOW_DATA is not set")
    try:
        splits = source(REAL).load()
    except DataError as error:
        if "found none of" not in str(error):
            raise
        pytest.skip(f"{source.__name__} is not there")
    if source is Cifar10 and len(splits.train) == 15_000:
        expected = (15_000, 5_000, 10_000)  # two of five batches
    assert sizes(splits) == expected
    assert splits.train.x.dtype == torch.uint8
    assert splits.num_bins is not None
    assert int(splits.train.x.max()) == splits.num_bins - 1
    means = {"mnist": 33.3, "fashion_mnist": 72.9, "cifar10": 120.7, "binarized_mnist": 0.131}
    if splits.name in means:  # of the grey levels
        assert float(splits.train.x.float().mean()) == pytest.approx(means[splits.name], rel=0.01)
