"""Data sources: what they read, how they split, and every error they can meet."""

import pickle
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from contraflow.data import Digits, Mnist, Part, Planar, Splits, Table, read_table
from contraflow.distributions.planar import planar_set
from contraflow.errors import ConfigurationError, ConvergenceError, DataError, nearest

# errors ----------------------------------------------------------------------------------------


def test_convergence_error_keeps_its_solution_through_pickle():
    error = pickle.loads(pickle.dumps(ConvergenceError("missed", solution=[1, 2])))
    assert (str(error), error.solution) == ("missed", [1, 2])


def test_nearest_ignores_case_and_may_find_nothing():
    assert nearest("Rings", ["rings", "Moons"]) == "; did you mean 'rings'?"
    assert nearest("moon", ["rings", "Moons"]) == "; did you mean 'Moons'?"
    assert nearest("moon", []) == ""


# splits ----------------------------------------------------------------------------------------


def part(rows: int = 4, features: int = 2, context: int | None = None) -> Part:
    return Part(
        torch.zeros(rows, features), None if context is None else torch.zeros(rows, context)
    )


@pytest.mark.parametrize("shape", [(5,), (0, 2), (5, 0)])
def test_part_needs_rows_and_an_event(shape):
    with pytest.raises(DataError, match="expected \\[N, \\*event\\]"):
        Part(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(5,), (4, 1), (5, 0), (5, 1, 1)])
def test_part_needs_one_context_row_for_each_row(shape):
    with pytest.raises(DataError, match=r"expected \[5, M\]"):
        Part(torch.zeros(5, 2), torch.zeros(shape))


@pytest.mark.parametrize(
    "other",
    [part(features=3), part(context=1), Part(torch.zeros(4, 2, dtype=torch.float64))],
)
def test_parts_must_agree(other):
    with pytest.raises(DataError, match="validation part"):
        Splits("s", part(), other, part())
    with pytest.raises(DataError, match="test part"):
        Splits("s", part(), part(), other)


def test_splits_check_names():
    both = part(context=3)
    splits = Splits("s", both, both, both, columns=("a", "b"), context_columns=("c", "d", "e"))
    assert (splits.event_shape, splits.context_features) == ((2,), 3)
    with pytest.raises(DataError, match="expected 2 names"):
        Splits("s", both, both, both, columns=("a",))
    with pytest.raises(DataError, match="every name once"):
        Splits("s", both, both, both, columns=("a", "a"))
    with pytest.raises(DataError, match="expected 3 names"):
        Splits("s", both, both, both, context_columns=("c",))
    image = Part(torch.zeros(4, 1, 2, 2))
    with pytest.raises(DataError, match="not flat"):
        Splits("s", image, image, image, columns=("a",))


@pytest.mark.parametrize("value", [-1.0, 3.0, 0.5, float("nan")])
def test_splits_check_levels(value):
    good = part()
    assert Splits("s", good, good, good, num_bins=3).num_bins == 3
    bad = Part(torch.tensor([[0.0, value]]))
    with pytest.raises(DataError, match="integers 0 to 2"):
        Splits("s", good, good, bad, num_bins=3)


# planar and digits -----------------------------------------------------------------------------


def test_planar_splits():
    splits = Planar("rings", num_train=30, num_validation=20, num_test=10, seed=3).load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [30, 20, 10]
    rng = torch.Generator().manual_seed(3)
    expected = planar_set("rings").sample(10, rng, dtype=torch.float32)
    assert torch.equal(splits.test.x, expected)
    assert not torch.equal(splits.validation.x[:10], expected)
    longer = Planar("rings", num_train=99, num_validation=20, num_test=10, seed=3).load()
    assert torch.equal(longer.test.x, splits.test.x)
    assert torch.equal(longer.validation.x, splits.validation.x)
    other = Planar("rings", num_train=30, num_validation=20, num_test=10, seed=4).load()
    assert not torch.equal(other.test.x, splits.test.x)


def test_planar_defaults_and_errors():
    assert Planar() == Planar("checkerboard", 200_000, 10_000, 100_000, seed=0)
    with pytest.raises(ConfigurationError, match="did you mean 'moons'"):
        Planar("moon")
    with pytest.raises(ConfigurationError, match="num_test=0"):
        Planar("moons", num_test=0)


def test_digits_are_all_there_once():
    splits = Digits().load()
    parts = (splits.train, splits.validation, splits.test)
    assert [tuple(p.x.shape) for p in parts] == [(n, 1, 8, 8) for n in (1257, 180, 360)]
    assert (splits.num_bins, splits.columns, splits.context_features) == (17, None, 0)
    x = torch.cat([p.x for p in parts])
    assert x.dtype == torch.float32
    images = torch.from_numpy(load_digits(return_X_y=True)[0]).float().reshape(-1, 8, 8)
    assert torch.equal(x.flatten(1).unique(dim=0), images.flatten(1).unique(dim=0))
    assert (x.min(), x.max()) == (0, 16)
    # train_test_split takes the first rows of a permutation that numpy has frozen.
    order = np.random.RandomState(0).permutation(1797)
    rest = order[360:][np.random.RandomState(0).permutation(1437)]
    assert torch.equal(splits.test.x[:, 0], images[order[:360]])
    assert torch.equal(splits.validation.x[:, 0], images[rest[:180]])
    assert torch.equal(splits.train.x[:, 0], images[rest[180:]])
    assert torch.equal(Digits().load().train.x, splits.train.x)


def test_digits_without_sklearn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        Digits().load()


# table -----------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Write text or an array to a file and return its path."""

    def to(content: str | bytes | np.ndarray, name: str = "t.csv"):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to


def numbers(rows: int, columns: str = "a,b,c") -> str:
    """CSV whose row i holds i, i**2, i**3, ..."""
    count = columns.count(",") + 1
    lines = [",".join(str(i ** (j + 1)) for j in range(count)) for i in range(rows)]
    return "\n".join([columns, *lines]) + "\n"


def test_table_splits_every_row_once(write):
    splits = Table(write(numbers(50)), fraction_validation=0.2, fraction_test=0.1).load()
    parts = (splits.train, splits.validation, splits.test)
    assert [len(p) for p in parts] == [35, 10, 5]
    assert (splits.name, splits.columns, splits.context_columns) == ("t", ("a", "b", "c"), None)
    x = torch.cat([p.x for p in parts])
    assert x.dtype == torch.float32
    order = x[:, 0].argsort()
    assert not torch.equal(order, torch.arange(50))  # shuffled
    expected = torch.arange(50.0).unsqueeze(-1) ** torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(x[order], expected)


def test_table_seed_decides_the_split(write):
    path = write(numbers(50))
    first, again, other = (Table(path, seed=seed).load().train.x for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("columns", ["c, a", ["c", "a"], ("c", "a")])
def test_table_columns_come_in_the_order_asked(write, columns):
    table = Table(write(numbers(20)), columns=columns, context_columns="b")
    splits = table.load()
    assert (splits.columns, splits.context_columns) == (("c", "a"), ("b",))
    x, context = splits.train.x, splits.train.context
    assert context is not None
    assert torch.equal(x[:, 0], x[:, 1] ** 3)
    assert torch.equal(context[:, 0], x[:, 1] ** 2)
    assert hash(table) == hash(Table(table.path, ("c", "a"), ("b",)))


def test_table_context_leaves_the_other_columns(write):
    splits = Table(write(numbers(20)), context_columns="b").load()
    assert (splits.columns, splits.context_columns) == (("a", "c"), ("b",))
    assert splits.train.context is not None
    assert torch.equal(splits.train.context[:, 0], splits.train.x[:, 0] ** 2)
    with pytest.raises(DataError, match="at least one column to model"):
        Table(write(numbers(20)), context_columns="a,b,c").load()


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8])
def test_table_npy_names_its_columns(write, dtype):
    array = np.stack([np.arange(16), np.arange(16) ** 2], 1).astype(dtype)
    splits = Table(write(array, "t.npy"), context_columns="column_0").load()
    assert (splits.columns, splits.context_columns) == (("column_1",), ("column_0",))
    assert splits.train.context is not None
    assert torch.equal(splits.train.x, splits.train.context**2)


def test_table_wrong_choices():
    with pytest.raises(ConfigurationError, match="fraction_test=0"):
        Table("t.csv", fraction_test=0.0)
    with pytest.raises(ConfigurationError, match="sum below 1"):
        Table("t.csv", fraction_test=0.5, fraction_validation=0.5)
    with pytest.raises(ConfigurationError, match=r"\['a'\] named more than once"):
        Table("t.csv", columns="a,b", context_columns="a")
    with pytest.raises(ConfigurationError, match="got no columns"):
        Table("t.csv", columns="")


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_table_unknown_column_offers_the_nearest(write, suffix):
    content = numbers(20, "voltage,power") if suffix == "csv" else np.zeros((20, 2))
    path = write(content, f"t.{suffix}")
    wrong, right = ("volage", "voltage") if suffix == "csv" else ("colunm_1", "column_1")
    with pytest.raises(DataError, match=f"'{wrong}'; did you mean '{right}'"):
        Table(path, columns=wrong).load()
    with pytest.raises(DataError, match=f"'{wrong}'; did you mean '{right}'"):
        Table(path, context_columns=wrong).load()


@pytest.mark.parametrize(
    ("name", "message"),
    [("t.csv", "no such file"), ("", "folder without .parquet files"), ("t.xls", "'.xls'")],
)
def test_table_missing_or_foreign_file(tmp_path, name, message):
    (tmp_path / "t.xls").write_text("a\n1\n")
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_table_too_few_rows(write):
    with pytest.raises(DataError, match="4 give 4 to train on and 0 and 0 to validate and test"):
        Table(write(numbers(4))).load()
    assert len(Table(write(numbers(6))).load().test) == 1


CSV_ERRORS = {
    "empty": ("", "file is empty"),
    "blank": ("\n\n", "file is empty"),
    "header alone": ("a,b\n", "got no rows"),
    "no header": ("1,2\n3,4\n", "holds only numbers"),
    "nameless": (",a\n0,1\n", "column 1 of the header has no name.*index=False"),
    "twice": ("a,b,a\n1,2,3\n", r"names \['a'\] more than once"),
    "short": ("a,b\n1,2\n3\n", "1 row ragged, first line 3 with 1 field, expected 2"),
    "long": ("a,b\n1,2,3\n4,5,6\n", "2 rows ragged, first line 2 with 3 fields, expected 2"),
    "text": ("a,b\n1,2\n3,oslo\n", "column 'b' holds text, first 'oslo' in data row 2"),
    "bool": ("a,b\n1,True\n3,False\n", "column 'b' holds text, first 'True'"),
    "semicolons": ("a;b\n1;2\n3;4\n", "separator must be a comma"),
    "nan": ("a,b\n1,2\n3,nan\n,nan\n", r"3 values NaN.*in 2 rows and columns 'a', 'b'"),
    "first": ("a,b\n1,2\n3,nan\n,nan\n", r"first is NaN or missing, in data row 2.*column 'b'"),
    "inf": ("a,b\n1,2\n-inf,4\n", r"1 value .* the first is infinite, in data row 2"),
    "latin1": ("a,b\n1,2\n3,é\n".encode("latin-1"), "not CSV text in UTF-8"),
    "nul": (b"a,b\n1,\x00\n", "CSV|text"),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_csv_errors(write, case):
    content, message = CSV_ERRORS[case]
    with pytest.raises(DataError, match=message):
        read_table(write(content))


def test_csv_reads_what_people_write(write):
    text = '\ufeffnote,"a b", c \r\n"x, ""y""",1, 2.5\r\n\r\n"z, w",-3e-2,18446744073709551616\r\n'
    names, values = read_table(write(text), ["c", "a b"])  # note holds text, but nobody asked
    assert names == ("c", "a b")
    assert values.tolist() == [[2.5, 1.0], [2.0**64, -0.03]]
    assert read_table(write("a,b\n1,2\n\n3,4\n"))[1].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    with pytest.raises(DataError, match=r"1 value NaN, missing .* data row 2"):
        read_table(write("a\n0.1\n\n0.3\n"))  # of one column, a blank line is a missing value


def test_csv_without_pyarrow_says_what_to_install(write, monkeypatch):
    monkeypatch.delitem(sys.modules, "contraflow.data.tabular.csv_file", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package 'pyarrow'.*contraflow\[train\]"):
        read_table(write("a\n1\n"))


NPY_ERRORS = {
    "flat": (np.zeros(5), r"got shape \[5\], expected \[N, D\]"),
    "no columns": (np.zeros((5, 0)), r"has the shape \[5, 0\]"),
    "no rows": (np.zeros((0, 2)), "got no rows"),
    "text": (np.array([["a", "b"]]), "has values of dtype <U1"),
    "bool": (np.ones((5, 2), dtype=bool), "dtype bool"),
    "complex": (np.ones((5, 2), dtype=complex), "dtype complex128"),
    "nan": (np.array([[1.0, 2.0], [np.inf, np.nan]]), "2 values NaN.*in 1 row .*is infinite"),
    "no npy": ("a,b\n1,2\n", "not a readable .npy file"),
    "empty": ("", "not a readable .npy file"),
}


@pytest.mark.parametrize("case", NPY_ERRORS)
def test_npy_errors(write, case):
    content, message = NPY_ERRORS[case]
    with pytest.raises(DataError, match=message):
        read_table(write(content, "t.npy"))


def test_npy_truncated_pickled_or_zipped(tmp_path, write):
    path = write(np.zeros((9, 9)), "t.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="not a readable"):
        read_table(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable"):
        read_table(path)
    with path.open("wb") as file:
        np.savez(file, x=np.zeros((2, 2)))
    with pytest.raises(DataError, match="several arrays"):
        read_table(path)


def test_table_refuses_what_float32_would_blur(write):
    seconds = 1.7e9 + np.arange(100.0)  # float32 near there counts in steps of 128
    with pytest.raises(DataError, match=r"rounds column 'column_0' by up to 6\.\de\+01"):
        Table(write(seconds.reshape(-1, 1), "t.npy")).load()
    with pytest.raises(DataError, match="float32"):
        Table(write(np.linspace(0, 1e300, 100).reshape(-1, 1), "t.npy")).load()
    assert Table(write((seconds - 1.7e9).reshape(-1, 1), "t.npy")).load().train.x.max() >= 90


def test_sources_are_values():
    assert Mnist("r") == Mnist("r", num_validation=5_000)
    assert Digits() == Digits()
    with pytest.raises(AttributeError):
        setattr(Planar(), "seed", 1)  # noqa: B010
