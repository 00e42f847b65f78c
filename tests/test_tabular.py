"""Tables of every shape: formats, pieces, roles, domains, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import contraflow as cf
from contraflow import Domain
from contraflow.data import Part, Table, open_table, read_table
from contraflow.data.store import RowStore, split_rows
from contraflow.data.tabular.columns import ColumnStatistics
from contraflow.errors import ConfigurationError, DataError
from contraflow.evaluation import evaluate_likelihood

ROWS = 1000


def table() -> Any:
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "free": rng.normal(3, 1, ROWS),
        "positive": rng.exponential(2, ROWS),
        "share": rng.uniform(0, 1, ROWS),
        "level": rng.integers(1, 6, ROWS),
        "w": rng.uniform(0, 2, ROWS),
    })  # fmt: skip


def write(frame: Any, path: Path) -> Path:
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path, row_group_size=300)
        case ".npy":
            np.save(path, frame.to_numpy(np.float64))
        case ".npz":
            values = frame.to_numpy(np.float64)
            np.savez_compressed(path, x=values[:, :3], level=values[:, 3], w=values[:, 4:])
        case "":
            path.mkdir()
            frame[:400].to_parquet(path / "a.parquet")
            frame[400:].to_parquet(path / "b.parquet")
    return path


# formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npy", "t.npz", "folder"])
def test_every_format_gives_the_same_rows_in_any_pieces(name: str, tmp_path: Path) -> None:
    frame = table()
    file = open_table(write(frame, tmp_path / name))
    wanted = [file.names[3], file.names[0]]
    for size in (1, 77, 10_000):
        pieces = list(file.chunks(wanted, size))
        assert max(map(len, pieces)) <= size
        np.testing.assert_array_equal(np.concatenate(pieces), frame[["level", "free"]].to_numpy())
    assert file.rows in (ROWS, None)


def test_an_npz_names_its_arrays_and_their_columns(tmp_path: Path) -> None:
    file = open_table(write(table(), tmp_path / "t.npz"))
    assert file.names == ("x_0", "x_1", "x_2", "level", "w")
    assert file.expand(["w", "x"]) == ("w", "x_0", "x_1", "x_2")
    by_columns = np.asfortranarray(table().to_numpy(np.float32))
    np.savez(tmp_path / "f.npz", x=by_columns)
    rows = np.concatenate(list(open_table(tmp_path / "f.npz").chunks(size=77)))
    np.testing.assert_array_equal(rows, by_columns)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npy", "t.npz"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_values_are_counted_to_the_end(name: str, value: float, tmp_path: Path) -> None:
    frame = table()
    frame["level"] = frame["level"].astype(float)
    frame.loc[[500, 900], "level"] = value
    file = open_table(write(frame, tmp_path / name))
    message = rf"2 values NaN.* in 2 rows and columns '{file.names[3]}'; .* in data row 501 "
    with pytest.raises(DataError, match=message):
        list(file.chunks(size=100))


def test_what_is_no_number_is_refused_with_its_place(tmp_path: Path) -> None:
    frame = table()
    frame["text"] = ["a"] * ROWS
    frame["flag"] = [True] * ROWS
    file = open_table(write(frame, tmp_path / "t.parquet"))
    assert len(np.concatenate(list(file.chunks(["free"])))) == ROWS  # nobody asked for the others
    for name in ("text", "flag"):
        with pytest.raises(DataError, match=f"column '{name}' holds values of type"):
            list(file.chunks([name]))
    rows = ["a,b", *["1,2"] * 100_000, "1,oslo"]  # in the second block of the file
    (tmp_path / "t.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="column 'b' holds text, first 'oslo' in data row 100001"):
        list(open_table(tmp_path / "t.csv").chunks())


@pytest.mark.parametrize("name", ["t.parquet", "t.npz", "t.npy"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    path = write(table(), tmp_path / name)
    whole = path.read_bytes()
    damages = [b"", whole[: len(whole) // 2]]
    if name != "t.npy":  # raw numbers: no reader can tell a flipped byte
        damages.append(whole[:200] + b"\xff" * 500 + whole[700:])
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            read_table(path)


def test_arrays_of_different_lengths_are_no_table(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((5, 2)), y=np.zeros(4))
    with pytest.raises(DataError, match="expected one length"):
        open_table(tmp_path / "t.npz")


# roles -----------------------------------------------------------------------------------------


def test_roles_go_to_their_places_and_rows_stay_together(tmp_path: Path) -> None:
    frame = table()
    path = write(frame, tmp_path / "t.csv")
    splits = Table(
        path, context_columns="share", weight_column="w", exclude="positive,level"
    ).load()
    assert splits.columns == ("free",)
    assert splits.context_columns == ("share",)
    seen = {}
    for part in (splits.train, splits.validation, splits.test):
        assert part.context is not None
        assert part.weights is not None
        for x, c, w in zip(part.x[:, 0], part.context[:, 0], part.weights, strict=True):
            seen[x.item()] = (c.item(), w.item())
    values = frame.astype(np.float32)
    expected = dict(
        zip(values["free"], zip(values["share"], values["w"], strict=True), strict=True)
    )
    assert seen == expected


def test_files_of_their_own_for_validation_and_test(tmp_path: Path) -> None:
    frame = table()[["free", "positive"]]
    paths = [write(frame[a:b], tmp_path / f"{a}.parquet") for a, b in ((0, 700), (700, 900))]
    splits = Table(paths[0], test_path=paths[1]).load()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [630, 70, 200]
    expected = torch.tensor(frame[700:900].to_numpy(np.float32))
    assert torch.equal(splits.test.x, expected)  # in the file's order


def test_a_table_beyond_memory_is_mapped_and_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(table(), tmp_path / "t.parquet")
    small = Table(path).load()
    monkeypatch.setattr(RowStore.__init__, "__defaults__", (64,))  # bytes in memory
    large = Table(path).load()
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(small, name).x, getattr(large, name).x)


def test_split_rows_gives_exact_shares_at_random() -> None:
    labels = np.concatenate(split_rows(10_001, [0.1, 0.25], seed=1, block=100))
    assert np.bincount(labels).tolist() == [1000, 2500, 6501]
    assert abs(labels[:5000].mean() - labels[5000:].mean()) < 0.1  # of about .3, 5 sigma
    assert not np.array_equal(labels, np.concatenate(split_rows(10_001, [0.1, 0.25], seed=2)))


@pytest.mark.parametrize("weights", [[-1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, np.nan, 1.0], [1.0]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights: got"):
        Part(torch.zeros(3, 1), weights=torch.tensor(weights))


def test_negative_weights_in_a_file_are_refused(tmp_path: Path) -> None:
    frame = table()
    frame.loc[7, "w"] = -1.0
    with pytest.raises(DataError, match=r"weights in column 'w' lie in \[-1,"):
        Table(write(frame, tmp_path / "t.csv"), weight_column="w").load()


def test_a_weighted_evaluation_is_that_of_repeated_rows() -> None:
    flow = cf.flows.MAF(2, transforms=1, hidden_features=(4,)).eval()
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(50) % 4
    weighted = evaluate_likelihood(flow, x, weights=counts.float())
    repeated = evaluate_likelihood(flow, x.repeat_interleave(counts, 0))
    assert weighted.value == pytest.approx(repeated.value, rel=1e-6)
    assert weighted.value != pytest.approx(evaluate_likelihood(flow, x).value, rel=1e-3)
    equal = evaluate_likelihood(flow, x, weights=torch.full((50,), 7.0))
    assert equal.stderr_data == pytest.approx(evaluate_likelihood(flow, x).stderr_data, rel=1e-6)


# columns ---------------------------------------------------------------------------------------


def test_statistics_in_pieces_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(1e6, 1, 3000), rng.integers(0, 3, 3000)], 1)
    statistics = ColumnStatistics(["a", "b"])
    for piece in np.array_split(values, 7):
        statistics.add(piece)
    np.testing.assert_allclose(statistics.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, values.std(0), rtol=1e-9)
    assert statistics.low.tolist() == values.min(0).tolist()
    assert statistics.whole.tolist() == [False, True]
    assert statistics.at_low[1] == (values[:, 1] == 0).sum()


def test_a_constant_column_is_refused_and_a_constant_context_reported(tmp_path: Path) -> None:
    frame = table()[["free", "positive"]].assign(same=5.0)
    path = write(frame, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"1 column with one value only, 'same' \(5\).*exclude"):
        Table(path).load()
    with pytest.warns(UserWarning, match="context columns with one value only, 'same'"):
        Table(path, context_columns="same").load()
    assert Table(path, exclude="same").load().columns == ("free", "positive")


@pytest.mark.parametrize("twin", [lambda x: x, lambda x: 32 + 1.8 * x, lambda x: -x])
def test_twins_are_reported_by_name(twin: Any, tmp_path: Path) -> None:
    frame = table()[["free", "positive"]]
    frame["twin"] = twin(frame["free"])
    with pytest.warns(UserWarning, match="1 pair of columns .*'free' and 'twin'"):
        Table(write(frame, tmp_path / "t.parquet")).load()


@pytest.mark.filterwarnings("error")
def test_columns_that_are_nearly_twins_are_none(tmp_path: Path) -> None:
    frame = table()[["free"]]
    frame["other"] = frame["free"] + 1e-3 * np.random.default_rng(1).normal(size=ROWS)
    Table(write(frame, tmp_path / "t.parquet")).load()


def test_domains_are_found_in_the_data(tmp_path: Path) -> None:
    frame = table().drop(columns="w")
    path = write(frame, tmp_path / "t.parquet")
    support = Table(path).load().support
    assert support is not None
    free, positive, share, level = support
    assert free == Domain()
    assert positive.low == pytest.approx(0, abs=0.01)
    assert positive.high is None
    assert (share.low, share.high) == (0.0, 1.0)
    assert level == Domain(1, 5, integer=True)
    columns = ["free", "positive", "share"]
    assert Table(path, columns=columns, find=False).load().support is None


@pytest.mark.filterwarnings("ignore:.*many rows share one value")
def test_declared_domains_win_and_are_checked(tmp_path: Path) -> None:
    frame = table().drop(columns="w")
    path = write(frame, tmp_path / "t.parquet")
    bounds = {"free": (-10.0, None), "level": (0.0, 9.0)}
    support = Table(path, bounds=bounds, ordinal="level", find=False).load().support
    assert support == (Domain(-10), Domain(), Domain(), Domain(0, 9, integer=True))
    with pytest.raises(DataError, match="'level' reaches 5, beyond its declared end 4"):
        Table(path, bounds={"level": (0.0, 4.0)}).load()
    with pytest.raises(DataError, match="'free' is declared ordinal but holds"):
        Table(path, ordinal="free").load()
    with pytest.raises(DataError, match="no column is called 'fre'; did you mean 'free'"):
        Table(path, bounds={"fre": (0.0, None)}).load()


def test_values_on_a_declared_end_lie_inside(tmp_path: Path) -> None:
    frame = table()[["free", "share"]]
    frame.loc[3, "share"] = 0.0
    frame.loc[4, "share"] = 1.0
    splits = Table(write(frame, tmp_path / "t.parquet"), bounds={"share": (0.0, 1.0)}).load()
    flow = cf.flows.MAF(2, transforms=1, hidden_features=(4,), support=splits.support)
    with torch.no_grad():
        for part in (splits.train, splits.validation, splits.test):
            assert flow.log_prob(part.x).isfinite().all()


def test_heaps_of_one_value_are_reported(tmp_path: Path) -> None:
    frame = table()[["free", "positive"]]
    frame.loc[:300, "positive"] = 0.0
    with pytest.warns(UserWarning, match="30% at 0 in 'positive'"):
        Table(write(frame, tmp_path / "t.parquet")).load()


# domains in a flow -----------------------------------------------------------------------------

SUPPORT = [Domain(), Domain(low=0), Domain(high=2), Domain(-1, 3), Domain(1, 5, integer=True)]


@pytest.mark.parametrize("family", ["ResidualFlow", "MAF", "RealNVP", "InvertibleResNet"])
def test_every_recipe_keeps_its_samples_in_the_support(family: str) -> None:
    torch.manual_seed(0)
    flow = getattr(cf.flows, family)(5, transforms=1, hidden_features=(4,), support=SUPPORT)
    flow.eval()
    x = flow.sample(500)
    assert flow.transform.domain.contains(x, 1).all()
    with torch.no_grad():
        assert flow.log_prob(x).isfinite().all()
    outside = x[:1].clone()
    outside[0, 4] = 2.5
    assert flow.log_prob(outside).item() == -torch.inf
    assert flow.kind == "lower_bound"
    twin = cf.registry.build(cf.registry.configuration(flow))
    assert twin.transform.domain == flow.transform.domain


def test_a_flow_over_a_bounded_column_integrates_to_one() -> None:
    torch.manual_seed(0)
    flow = cf.flows.MAF(1, transforms=1, hidden_features=(4,), support=[Domain(-1, 3)]).double()
    grid = torch.linspace(-1, 3, 20_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        density = flow.log_prob(grid).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, abs=1e-4)
    assert density[0] == 0  # the ends are outside


def test_levels_of_an_ordinal_column_sum_to_one() -> None:
    """exp of the bound, averaged over u, sums to the mass on the levels: 1 but for the margins."""
    torch.manual_seed(0)
    support = [Domain(1, 5, integer=True)]
    flow = cf.flows.MAF(1, transforms=1, hidden_features=(4,), support=support).double()
    levels = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None].repeat(2000, 1)
    with torch.no_grad():
        density = flow.log_prob(levels, generator=torch.Generator().manual_seed(0)).exp()
    assert density.reshape(2000, 5).mean(0).sum().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 1.0, "high": 1.0}, "empty set"),
        ({"low": float("inf")}, "infinite end"),
        ({"low": 0.5, "high": 3.0, "integer": True}, "whole ends"),
        ({"low": 0.0, "integer": True}, "whole ends"),
    ],
)
def test_impossible_domains_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Domain(**arguments)


def test_a_support_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="got 1 domains for events"):
        cf.flows.MAF(2, support=[Domain()])
