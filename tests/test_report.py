"""The report renders whole, alone and honestly; the figures draw what they were given."""

import base64
import math
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

import contraflow as cf
from contraflow import report
from contraflow.cli import main
from contraflow.cli._run import write_text
from contraflow.errors import ConfigurationError, ConvergenceError
from contraflow.evaluation import calibrate
from contraflow.report import ReportContents, comparison, read_metrics, render_report
from contraflow.report._canvas import best_format, data_uri, encode
from contraflow.report._text import bound, number, rounded_to
from contraflow.report._verdict import judge
from contraflow.transforms import Standardise

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>&'
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects the tags, addresses and visible text of a page."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "action", "data", "poster", "background"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def certificate(*bounds: float | None, certified: bool = True) -> dict[str, object]:
    blocks = [
        {"name": f"block{i}", "lipschitz": limit, "method": "product of norms"}
        for i, limit in enumerate(bounds)
    ]
    return {
        "certified": certified,
        "blocks": [{"name": "actnorm", "lipschitz": None, "method": "closed form"}, *blocks],
        "lipschitz_forward": 3.5,
        "lipschitz_inverse": 40.0 if certified else None,
        "dtype": "float32",
    }


def evaluation(**changes: object) -> dict[str, object]:
    return {
        "value": 3.28413,
        "unit": "bits_per_dim",
        "kind": "unbiased",
        "stderr": 0.0004,
        "stderr_data": 0.012,
        "bias_bound": 0.0,
        "n": 10000,
        "value_protocol": None,
        "round_trip_error": 3.1e-6,
        "round_trip_error_float64": 2.4e-13,
        "split": "test",
        "draws": 4,
    } | changes


def contents(layout: str) -> ReportContents:
    """Return contents for one layout of the data: complete for images, else its own figures."""
    rng = np.random.default_rng(0)
    if layout == "nothing":
        return ReportContents(title="nothing")
    shapes = {
        "image": (30, 1, 8, 8),
        "plane": (400, 2),
        "table": (100, 3),
    }
    data = rng.random(shapes[layout])
    grid = (np.linspace(-1, 2, 20), np.linspace(-1, 2, 15), rng.normal(size=(15, 20)))
    return ReportContents(
        title=f"run on {layout}",
        command="contraflow train preset",
        configuration="model:\n  flow: residual\n",
        environment={"torch": "2.9.0"},
        metrics=[
            {"step": float(i), "train/loss": 5.0 / (1 + i), "val/loss": 6.0 / (1 + i)}
            for i in range(40 if layout == "image" else 0)
        ],
        evaluation=evaluation(),
        certificate=certificate(0.9, 0.97) if layout == "image" else None,
        data=data,
        samples=rng.random(shapes[layout]),
        reconstructions=None if layout == "table" else data[:5] + 1e-6,
        columns=["a", "$b", "c_with_a_long_name"] if layout == "table" else None,
        density=grid if layout == "plane" else None,
    )


# The page


@pytest.mark.parametrize("layout", ["image", "plane", "table", "nothing"])
def test_page_is_whole_and_needs_nothing_else(layout: str) -> None:
    markup = render_report(contents(layout))
    page = Page(markup)
    headings = ("Likelihood", "Samples", "Reconstruction", "Training", "Certificate")
    assert all(f"<h2>{heading}</h2>" in markup for heading in headings)
    assert "http://" not in markup
    assert "https://" not in markup
    assert "<script" not in markup
    assert "@import" not in markup
    assert "url(" not in markup
    assert not page.handlers
    pictures = page.tags.count("img")
    assert pictures == {"nothing": 0, "image": 5, "plane": 2, "table": 1}[layout]
    # Light, dark, and both for a narrow screen; grids of images fit every screen.
    assert len(page.addresses) == 4 * pictures - (6 if layout == "image" else 0)
    for address in page.addresses:
        check_data_uri(address)


def check_data_uri(address: str) -> None:
    kind, payload = address.split(";base64,")
    drawing = base64.b64decode(payload, validate=True)
    if kind == "data:image/png":
        assert drawing.startswith(PNG)
        return
    assert kind == "data:image/svg+xml"
    root = ElementTree.fromstring(drawing)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.startswith(("#", "data:"))


def test_missing_parts_name_their_commands() -> None:
    text = " ".join(Page(render_report(contents("nothing"))).text.split())
    for command in ("train PRESET", "evaluate RUN", "certify RUN", "sample RUN", "report RUN"):
        assert f"contraflow {command}" in text
    assert "invertible" not in text


def test_hostile_text_is_escaped_everywhere() -> None:
    block = {"name": HOSTILE, "lipschitz": 1.5, "method": HOSTILE}
    hostile = ReportContents(
        title=HOSTILE,
        command=HOSTILE,
        configuration=HOSTILE,
        environment={HOSTILE: HOSTILE},
        evaluation=evaluation(
            kind=HOSTILE, unit=HOSTILE, split=HOSTILE, value=HOSTILE, value_protocol=HOSTILE
        ),
        certificate={"certified": False, "blocks": [block], "dtype": HOSTILE},
    )
    markup = render_report(hostile)
    page = Page(markup)
    assert page.tags.count("img") == 1  # the chart of bounds
    assert "script" not in page.tags
    assert not page.handlers
    assert page.text.count(HOSTILE) >= 12  # shown, not dropped
    assert "<h1>&quot;&gt;&lt;img src=x onerror=alert(1)&gt;&lt;script&gt;" in markup


# The verdict


@pytest.mark.parametrize(
    "failing",
    [
        pytest.param(certificate(0.9, 1.02, certified=False), id="bound above one"),
        pytest.param(certificate(0.9, 1.02, certified=True), id="contradiction"),
        pytest.param(certificate(0.9, 1.0, certified=True), id="bound of one"),
        pytest.param(certificate(math.nan, certified=True), id="bound NaN"),
        pytest.param(certificate(math.inf, certified=False), id="bound infinite"),
        pytest.param(certificate(None, certified=False), id="no bound"),
        pytest.param({"certified": "yes", "blocks": []}, id="not a truth value"),
        pytest.param({}, id="empty"),
    ],
)
def test_failing_certificate_says_not_certified(failing: dict[str, object]) -> None:
    verdict = judge(failing)
    assert verdict.headline == "NOT certified"
    assert verdict.mood == "bad"
    assert verdict.sentence.startswith("NOT certified. ")
    assert "invertible" not in verdict.sentence + verdict.summary


def test_page_of_a_failing_flow_never_calls_it_invertible() -> None:
    failing = certificate(0.9, math.inf, 1.02, certified=False)
    text = Page(render_report(ReportContents(title="run", certificate=failing))).text
    assert text.count("NOT certified") >= 2  # headline and section
    assert "invertible" not in text
    assert "Certified" not in text
    assert "2 of 3 bounded blocks have no bound below 1: block1 (infinite), block2 (1.020)" in text


def test_certificate_says_what_was_proved() -> None:
    text = Page(render_report(ReportContents(title="run", certificate=certificate(0.9, 0.97)))).text
    assert "NOT certified" not in text
    assert "each of the 2 contractive blocks proves that the flow is invertible" in text
    assert "largest bound is 0.9700" in text
    closed = Page(render_report(ReportContents(title="run", certificate=certificate()))).text
    assert "no contractive block" in closed
    assert "closed-form inverse" in closed


def test_bounds_are_rounded_up_and_never_to_one() -> None:
    assert bound(0.92341) == "0.9235"
    assert bound(0.97) == "0.9700"
    assert bound(0.99999999) == "0.99999999"
    for limit in np.random.default_rng(0).uniform(0.001, 1.0, 200):
        assert limit <= float(bound(float(limit))) < 1.0


# Numbers


def test_numbers_are_plain() -> None:
    assert rounded_to(3.28413, 0.0121, 0.0002) == "3.284"
    assert number(None) == "not given"
    assert number(True) == "True"
    assert number(-math.inf).endswith("infinite")
    assert number(-math.inf) != number(math.inf)
    broken = evaluation(value=math.nan, stderr=math.inf, round_trip_error=math.nan, kind=None)
    text = Page(render_report(ReportContents(title="run", evaluation=broken))).text
    assert text.count("NaN (not a number)") == 3
    assert "infinite estimator" in text
    assert "kind not given" in text


def test_headline_carries_value_kind_and_errors() -> None:
    markup = render_report(ReportContents(title="run", evaluation=evaluation(bias_bound=0.02)))
    headline = Page(markup.split("<section")[0]).text
    for part in ("3.284", "bits/dim", "unbiased", "±\u00a00.012 data", "bias ≤\u00a00.020"):
        assert part in headline


# Contents


def test_metrics_keep_what_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/loss\n0,9,1.5,\n0,19,nan,\n0,19,,1.25\n")
    rows = read_metrics(path)
    assert rows[0] == {"epoch": 0.0, "step": 9.0, "train/loss": 1.5}
    assert math.isnan(rows[1]["train/loss"])
    assert rows[2] == {"epoch": 0.0, "step": 19.0, "val/loss": 1.25}
    path.write_text("step,train/loss\n9,low\n")
    with pytest.raises(ValueError, match=r"line 2: got 'low' in column 'train/loss'"):
        read_metrics(path)


def test_contents_reject_arrays_that_disagree() -> None:
    rows = np.zeros((4, 2))
    with pytest.raises(ValueError, match="event shapes"):
        ReportContents(title="run", data=rows, samples=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="reconstructions"):
        ReportContents(title="run", data=rows, reconstructions=np.zeros((5, 2)))
    with pytest.raises(ValueError, match="column names"):
        ReportContents(title="run", data=rows, columns=["a"])
    with pytest.raises(ValueError, match="log_density"):
        ReportContents(title="run", density=(np.zeros(3), np.zeros(2), np.zeros((3, 2))))


# Figures


def test_curves_ignore_the_first_steps_but_say_so() -> None:
    rows = [{"step": float(i), "train/loss": 1e6 if i < 3 else 2.0 + 0.01 * i} for i in range(100)]
    rows[50]["train/loss"] = math.nan
    axes = report.training_curves(rows).axes[0]
    low, high = axes.get_ylim()
    assert 1.5 < low < 2.1
    assert 2.9 < high < 3.5
    remarks = axes.get_title(loc="right")
    assert "beyond the axis" in remarks
    assert "1 not finite" in remarks
    with pytest.raises(ValueError, match="train/loss"):
        report.training_curves([{"step": 1.0, "lr": 0.1}])


def test_image_grid_is_pixel_exact(tmp_path: Path) -> None:
    images = np.zeros((4, 1, 2, 2))
    images[1] = 1.0
    images[2, 0, 0, 0] = 0.5
    images[3, 0, 1, 1] = math.inf
    report.save_samples(tmp_path / "samples.png", images, value_range=(0.0, 1.0))
    sheet = imread(tmp_path / "samples.png")  # [H, W, 4]
    half = sheet.shape[0] // 2
    corner = sheet[[2, 2, half + 20, -3], [2, -3, 2, -3], :3]
    np.testing.assert_allclose(corner[0], 0.0, atol=1 / 255)
    np.testing.assert_allclose(corner[1], 1.0, atol=1 / 255)
    np.testing.assert_allclose(corner[2], 0.5, atol=1 / 255)
    assert corner[3, 0] > 0.8 > corner[3, 2]  # not finite: the colour of failure
    np.testing.assert_allclose(sheet[half, half, :3], 1.0)  # the gap is paper


def test_value_range_follows_the_data() -> None:
    assert report.image_value_range(np.array([0, 255], dtype=np.uint8)) == (0.0, 255.0)
    assert report.image_value_range(np.array([0.0, 0.98])) == (0.0, 1.0)
    assert report.image_value_range(np.array([-1.0, 1.0, math.nan])) == (-1.0, 1.0)
    assert report.image_value_range(np.full(3, math.nan)) == (0.0, 1.0)


@pytest.mark.parametrize(
    "shape",
    [(7, 1, 8, 8), (7, 3, 8, 8), (7, 2, 8, 8), (7, 8, 8), (50, 2), (50, 3), (50, 7), (50, 1)],
)
def test_samples_of_every_layout_are_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(size=shape)
    report.save_samples(tmp_path / "samples.png", samples)
    picture = imread(tmp_path / "samples.png")
    assert picture[..., :3].std() > 0.01  # not a blank sheet


def test_shapes_without_a_drawing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, D\]"):
        report.save_samples(tmp_path / "samples.png", np.zeros((2, 2, 2, 2, 2)))
    with pytest.raises(ValueError, match="not empty"):
        report.save_samples(tmp_path / "samples.png", np.zeros((0, 1, 4, 4)))
    page = render_report(ReportContents(title="run", samples=np.zeros((2, 1, 1, 1, 1))))
    assert "no drawing" in page


def test_rows_that_are_not_finite_are_counted() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2))
    points[:3, 0] = math.nan
    axes = report.plane(points, points[3:]).axes
    assert axes[0].get_title(loc="left") == "data (3 not finite)"
    assert axes[1].get_title(loc="left") == "samples"


def test_bounds_of_many_blocks_and_of_broken_ones_are_drawn() -> None:
    for blocks in (
        [("a", 0.9), ("b", 1.2), ("c", math.nan), ("d", math.inf)],
        [(f"block{i}", 0.5 + 0.01 * i) for i in range(60)],
    ):
        axes = report.lipschitz_bars(blocks).axes[0]
        assert len(axes.patches) == len(blocks)
    with pytest.raises(ValueError, match="no block"):
        report.lipschitz_bars([])


def test_large_clouds_become_png_and_small_drawings_svg() -> None:
    rng = np.random.default_rng(0)
    assert best_format(report.plane(rng.normal(size=(3000, 2)), None)) == "png"
    assert best_format(report.image_grid(rng.random((3, 1, 4, 4)))) == "png"
    assert best_format(report.lipschitz_bars([("a", 0.9)])) == "svg"


def test_equal_figures_give_equal_bytes() -> None:
    rows = [{"step": float(i), "train/loss": 1.0 / (1 + i)} for i in range(20)]
    once, twice = (data_uri(report.training_curves(rows)) for _ in range(2))
    assert once == twice
    other = data_uri(report.training_curves(rows, theme=report.DARK))
    assert once != other


def test_global_settings_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    encode(report.lipschitz_bars([("a", 0.9), ("b", 1.1)]), "svg")
    assert dict(matplotlib.rcParams) == before
    folder = Path(report.__file__).parent
    assert not [file for file in folder.glob("*.py") if "matplotlib.pyplot" in file.read_text()]


# Stages, calibration, rows that stand out


def stages(with_lattice: bool = True) -> report.Stages:
    rng = np.random.default_rng(0)
    lattice = rng.normal(size=(3, 15, 21, 2))
    lines = (lattice[:, :3], lattice[:, 3:]) if with_lattice else (None, None)
    return report.Stages(
        ["data", "after block 1", "latent"], rng.normal(size=(3, 50, 2)), *lines, "block 1 of 2 (B)"
    )


def test_stages_of_a_flow_are_its_own_intermediates() -> None:
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(2, transforms=6, hidden_features=(8,), mixing=False).eval()
    x = torch.randn(40, 2)
    traced = report.trace_stages(flow, x)
    assert isinstance(flow.transform, cf.Sequential)
    assert list(traced.names) == ["data", *(f"after block {i}" for i in (1, 2, 4, 5)), "latent"]
    assert traced.blocks == "blocks 1, 2, 4, 5 of 6 (ResidualBlock)"
    np.testing.assert_array_equal(traced.points[0], x)
    outputs = flow.transform.intermediates(x)
    behind = [i for i, p in enumerate(flow.transform) if type(p).__name__ == "ResidualBlock"]
    np.testing.assert_allclose(traced.points[2], outputs[behind[1]].detach(), atol=1e-6)
    np.testing.assert_allclose(traced.points[-1], outputs[-1].detach(), atol=1e-6)
    # The lattice: unit circles in latent space, and its data-side curves map back onto them.
    assert traced.circles is not None
    radii = np.hypot(*np.moveaxis(traced.circles[-1], -1, 0))
    np.testing.assert_allclose(radii, [[1.0], [2.0], [3.0]] * np.ones(181), atol=1e-6)
    again = flow.transform(torch.from_numpy(traced.circles[0]).reshape(-1, 2))[0].detach()
    np.testing.assert_allclose(again, traced.circles[-1].reshape(-1, 2), atol=1e-4)


def test_stages_of_short_and_of_conditional_flows() -> None:
    torch.manual_seed(0)
    for depth in (1, 2, 3):
        flow = cf.flows.RealNVP(2, transforms=depth, hidden_features=(4,)).eval()
        names = list(report.trace_stages(flow, torch.randn(9, 2)).names)
        assert names[0] == "data"
        assert names[-1] == "latent"
        assert len(set(names)) == len(names) == depth + 1
    flow = cf.flows.MAF(2, context=1, transforms=3, hidden_features=(4,)).eval()
    traced = report.trace_stages(flow, torch.randn(9, 2), torch.randn(9, 1))
    assert traced.circles is None
    with pytest.raises(ConfigurationError, match=r"expected \(2,\)"):
        report.trace_stages(cf.flows.MAF(3), torch.randn(9, 3))


def test_every_stage_is_a_panel_and_colours_keep_identity() -> None:
    figure = report.stages_plot(stages())
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(stages().names)
    clouds = [axes.collections[0] for axes in figure.axes]
    colours = [cloud.get_facecolors() for cloud in clouds]  # pyright: ignore
    np.testing.assert_array_equal(colours[0], colours[2])
    assert len(np.unique(colours[0].round(6), axis=0)) == 50
    back = report.lattice_plot(stages())
    titles = [axes.get_title(loc="left") for axes in back.axes]
    assert titles == ["latent", "after block 1", "data"]
    with pytest.raises(ValueError, match="without circles"):
        report.lattice_plot(stages(with_lattice=False))


def test_a_page_shows_stages_and_calibration() -> None:
    flow = cf.Flow(Standardise(2), event_shape=(2,))
    rng = torch.Generator().manual_seed(0)
    good = calibrate(flow, torch.randn(500, 2, generator=rng))
    page = ReportContents(title="run", stages=stages(), calibration=good)
    text = Page(render_report(page)).text
    assert "between, behind block 1 of 2 (B)" in text
    assert "39.3%, 86.5% and 98.9%" in text
    assert "All 3 curves stay inside the band" in text
    assert "That is no proof" in text
    narrow = calibrate(flow, 3 * torch.randn(500, 2, generator=rng))
    text = Page(render_report(ReportContents(title="run", calibration=narrow))).text
    assert "2 of 2 coordinates and the radius leave the band" in text
    assert "too narrow (under-dispersed)" in text
    assert "stay inside" not in text


def test_calibration_draws_the_band_and_the_radius() -> None:
    flow = cf.Flow(Standardise(3), event_shape=(3,))
    result = calibrate(flow, torch.randn(200, 3, generator=torch.Generator().manual_seed(0)))
    axes = report.calibration_plot(result).axes[0]
    labels = [label.get_text() for label in axes.get_legend().get_texts()]  # pyright: ignore
    assert labels[0] == "99% band, all 4 curves together"
    assert labels[2] == "radius"
    radius = next(line for line in axes.lines if line.get_label() == "radius")
    u = np.asarray(radius.get_xdata())
    expected = (result.u[:, -1].numpy()[:, None] <= u).mean(axis=0) - u
    np.testing.assert_allclose(np.asarray(radius.get_ydata()), expected, atol=1e-12)


def test_the_slowest_and_least_likely_rows_are_picked() -> None:
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(3, transforms=2, hidden_features=(8,)).eval()
    draw = report.draw_samples(flow, 60, generator=torch.Generator().manual_seed(1))
    same = flow.sample(60, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw.x, same, atol=1e-5, rtol=0)
    slow = report.pick_slowest(draw)
    assert slow is not None
    assert slow.facts["steps"] == sorted(draw.steps.tolist(), reverse=True)[:8]
    assert max(slow.facts["error bound"]) > 0
    x = torch.randn(50, 3)
    x[17] = 40.0
    picked = report.pick_least_likely(
        flow, x, title="rows", what="rows", facts={"row": torch.arange(50)}
    )
    assert picked.facts["row"][0] == 17
    expected = flow.log_prob(x).detach().sort().values[:8]
    np.testing.assert_allclose(picked.facts["log p"], expected, rtol=1e-5)
    assert "in nats, exact." in picked.note
    closed = report.draw_samples(cf.flows.RealNVP(2, transforms=1).eval(), 5)
    assert report.pick_slowest(closed) is None


def test_random_likelihoods_are_told_with_their_error() -> None:
    torch.manual_seed(0)
    flow = cf.flows.ResidualFlow(
        shape=(1, 2, 2), num_bins=4, scales=0, tail=1, hidden_features=(4,)
    ).eval()
    x = torch.randint(0, 4, (20, 1, 2, 2)).float()
    picked = report.pick_least_likely(
        flow, x, title="rows", what="rows", facts={}, generator=torch.Generator().manual_seed(0)
    )
    assert "lower bound" in picked.note
    assert min(picked.facts["±"]) > 0
    markup = render_report(ReportContents(title="run", picked=[picked], data=x.numpy()))
    assert markup.count('<div class="tiles">') == 1
    assert Page(markup).tags.count("img") == 8
    assert Page(markup).text.count("log p −") == 8


def test_picked_rows_are_a_table_with_context() -> None:
    picked = report.Picked(
        HOSTILE, HOSTILE, np.array([[1.5, -2.0]]), {"log p": [-7.25], "error bound": [math.inf]},
        np.array([[0.125]]),
    )  # fmt: skip
    hostile = ReportContents(
        title="run", picked=[picked], columns=[HOSTILE, "b"], context_columns=[HOSTILE],
        missing={"Samples": HOSTILE}, flow=HOSTILE, data_set=HOSTILE,
    )  # fmt: skip
    page = Page(render_report(hostile))
    assert "img" not in page.tags
    assert page.text.count(HOSTILE) == 7
    for cell in ("−7.25", "none known", "1.5", "−2", "0.125"):
        assert cell in page.text


# Tables of every width


@pytest.mark.parametrize(("width", "pictures"), [(3, 1), (6, 1), (7, 2), (30, 2)])
def test_tables_show_marginals_and_pairs(width: int, pictures: int) -> None:
    rng = np.random.default_rng(0)
    data, samples = rng.normal(size=(80, width)), rng.normal(size=(80, width))
    markup = render_report(ReportContents(title="run", data=data, samples=samples))
    assert Page(markup).tags.count("img") == pictures
    assert ("24 of 30 columns" in markup) == (width == 30)
    assert (f"6 of {width} columns" in markup) == (width > 6)


def test_the_columns_that_differ_most_are_chosen() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2000, 9))
    samples = rng.normal(size=(2000, 9))
    samples[:, 7] += 1.0  # a marginal
    data[:, 4] = 0.9 * data[:, 1] + 0.44 * data[:, 4]  # a correlation, marginals equal
    data[:5, 0] = math.nan
    assert report.most_different(data, samples, 3) == [1, 4, 7]
    assert report.most_different(data[:, :3], samples[:, :3], 6) == [0, 1, 2]


# Several runs


def test_a_comparison_keeps_the_order_and_names_no_winner() -> None:
    runs = [contents("image"), contents("image"), contents("plane")]
    markup = report.render_comparison(runs)
    page = Page(markup)
    for forbidden in ("http://", "https://", "<script", "@import", "url("):
        assert forbidden not in markup
    for address in page.addresses:
        check_data_uri(address)
    order = [page.text.index(f"run on {name}") for name in ("image (1)", "image (2)", "plane")]
    assert order == sorted(order)
    assert "best" not in page.text.lower()
    assert "3.284 ± 4.0×10⁻⁴ ± 0.012" in page.text
    assert page.text.count("NOT certified") == 0
    assert "not computed" in page.text  # the plane was not certified
    assert page.text.count("contraflow train preset") == 3


def test_a_comparison_says_what_cannot_be_compared() -> None:
    same = [contents("image"), contents("image")]
    assert comparison.remarks(same) == []
    for change, word in (
        ({"unit": "nats"}, "units"), ({"n": 12}, "rows"), ({"kind": "exact"}, "kinds")
    ):  # fmt: skip
        other = ReportContents(title="b", evaluation=evaluation(**change))
        (remark,) = comparison.remarks([same[0], other])
        assert word in remark
    (remark,) = comparison.remarks([same[0], ReportContents(title="b", data_options="moons")])
    assert "different data" in remark


def test_a_comparison_escapes_and_survives_what_is_missing() -> None:
    bare = ReportContents(title=HOSTILE, flow=HOSTILE, data_set=HOSTILE, command=HOSTILE,
                          missing={"Likelihood": HOSTILE, "Samples": HOSTILE})  # fmt: skip
    page = Page(report.render_comparison([bare, ReportContents(title="b")]))
    assert "img" not in page.tags
    assert not page.handlers
    assert page.text.count(HOSTILE) >= 9
    assert page.text.count("not evaluated") == 3
    assert "No run logged a validation loss." in page.text


def test_validation_curves_of_many_runs_stay_apart() -> None:
    log = [{"step": float(i), "val/loss": 2.0 / (1 + i)} for i in range(5)]
    axes = report.validation_curves([(f"run{i}", log) for i in range(6)]).axes[0]
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == 6
    with pytest.raises(ValueError, match="val/loss"):
        report.validation_curves([("a", [{"step": 0.0, "train/loss": 1.0}])])


# The command


TINY = [
    "--model.transforms", "2", "--model.hidden_features", "[8]", "--trainer.max_epochs", "1",
    "--trainer.check_val_every_n_epoch", "1", "--optimisation.batch_size", "400",
]  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on a table of two columns, one of them conditional."""
    folder = tmp_path_factory.mktemp("runs")
    rows = np.random.default_rng(0).normal(size=(400, 3))
    np.savetxt(folder / "t.csv", rows, delimiter=",", header="a,b,c", comments="")
    for name, more in (("joint", []), ("given", ["--data.context_columns", "c"])):
        data = ["--data.path", str(folder / "t.csv"), "--data.columns", "a,b", *more]
        assert main(["train", "table", *data, "--out", str(folder), "--name", name, *TINY]) == 0
    return folder


def test_reports_of_joint_and_conditional_runs_are_complete(tables: Path) -> None:
    texts = {}
    for name in ("joint", "given"):
        assert main(["report", str(tables / name)]) == 0
        texts[name] = Page((tables / name / "report.html").read_text()).text
        assert "To add this part" not in texts[name]
        assert not list((tables / name).glob("*.partial"))
    assert "inside the three curves" in texts["joint"]
    assert "inside the three curves" not in texts["given"]
    assert "Each row moves under its own context" in texts["given"]
    assert "given c" in texts["given"]


def test_a_report_of_several_runs_lies_in_their_common_folder(
    tables: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["report", str(tables / "joint"), str(tables / "given")]) == 0
    assert Path(capsys.readouterr().out.strip()) == tables.resolve() / "comparison.html"
    text = Page((tables / "comparison.html").read_text()).text
    assert "contraflow train table" in text
    assert "different data" in text


def test_a_report_without_its_data_says_how_to_get_them(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tables / "t.csv").rename(tables / "moved.csv")
    try:
        out = tmp_path / "r.html"
        assert main(["report", str(tables / "joint"), "--out", str(out)]) == 0
        error = capsys.readouterr().err
        text = Page(out.read_text()).text
        assert main(["report", str(tables / "given"), "--out", str(out)]) == 0
        given = Page(out.read_text()).text
    finally:
        (tables / "moved.csv").rename(tables / "t.csv")
    assert "t.csv" in error
    assert "Traceback" not in error
    for what in ("likelihood was not evaluated", "calibration was not measured",
                 "No reconstruction was computed", "No points were followed",
                 "Some rows are missing"):  # fmt: skip
        assert what in text, what
    assert text.count("t.csv") >= 5  # each section says which file
    assert "2\u202f000 samples" in text  # drawn all the same
    assert "Certified: an upper bound below 1" in text
    assert "No samples were drawn" in given  # they need contexts
    assert given.count("t.csv") >= 6


def test_a_damaged_flow_gives_a_report_and_exit_code_1(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConvergenceError("lattice: 3 rows did not converge")

    monkeypatch.setattr("contraflow.cli._contents.trace_stages", fail)
    out = tmp_path / "r.html"
    assert main(["report", str(tables / "joint"), "--out", str(out)]) == 1
    assert "3 rows did not converge" in Page(out.read_text()).text
    assert "3 rows did not converge" in capsys.readouterr().err


def test_a_report_is_written_whole_or_not_at_all(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.txt"
    out.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match="full"):
            write_text(out, "after")
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["r.txt"]
    write_text(out, "after")
    assert out.read_text() == "after"
