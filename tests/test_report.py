"""The report renders whole, alone and honestly; the figures draw what they were given."""

import base64
import math
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from contraflow import report
from contraflow.report import ReportContents, read_metrics, render_report
from contraflow.report._canvas import best_format, data_uri, encode
from contraflow.report._text import bound, number, rounded_to
from contraflow.report._verdict import judge

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
