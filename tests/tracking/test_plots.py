"""Plots: downsampling, colors and markers, axes."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from gpt2lab.tracking import plots, records

STYLE = (Path(plots.__file__).parent / "style.css.j2").read_text()
LIGHT, DARK = (re.findall(r"--run\d: (#\w{6})", line) for line in STYLE.splitlines() if "--run0:" in line)
PAPER = {"light": (LIGHT, "#ffffff"), "dark": (DARK, "#14171b")}

# Linear RGB as seen with color vision deficiency: Machado, Oliveira and Fernandes 2009, severity 1.0.
COLOR_VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
    ),
}


def linear(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def luminance(color):
    return linear(color) @ [0.2126, 0.7152, 0.0722]


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("mode", PAPER)
@pytest.mark.parametrize("vision", COLOR_VISION)
def test_any_two_colors_can_be_distinguished(mode, vision):
    colors, _ = PAPER[mode]
    assert len(colors) == len(plots.COLORS)
    for one, other in itertools.combinations(colors, 2):
        apart = np.linalg.norm(lab(COLOR_VISION[vision] @ linear(one)) - lab(COLOR_VISION[vision] @ linear(other)))
        assert apart > 20, (one, other)  # CIE76; 2.3 is a just noticeable difference


@pytest.mark.parametrize("mode", PAPER)
def test_lines_have_enough_contrast_with_the_page(mode):
    colors, paper = PAPER[mode]
    for color in colors:
        brighter, darker = sorted((luminance(color), luminance(paper)), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 3, color  # WCAG 2.2, 1.4.11


def test_svg_colors_are_variables_of_the_page(make_run):
    assert tuple(LIGHT) == plots.COLORS
    (line,) = plots.build_lines([records.read(make_run())])
    svg = plots.to_svg(plots.loss_figure([line], plots.Reference("some <label>", 9.0)), "Loss")
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert {"var(--run0)", "var(--faint)", "var(--reference)", "var(--page)"} <= set(re.findall(r"var\([^)]*\)", svg))
    assert "some &lt;label&gt;" in svg


def test_plots_of_one_page_have_distinct_ids(make_run):
    drawn = plots.build_lines([records.read(make_run())])
    ids = []
    for label in ("one", "two"):
        svg = plots.to_svg(plots.loss_figure(drawn), label)
        ids.append(set(re.findall(r'\bid="([^"]+)"', svg)))
        assert ids[-1] >= set(re.findall(r"#(\w+)", svg))  # all references exist
    assert ids[0]
    assert not ids[0] & ids[1]


def test_the_loss_axis_of_a_long_run_leaves_out_its_first_steps(make_run):
    (short,) = plots.build_lines([records.read(make_run("short"))])
    assert plots.loss_range([short]) is None
    steps = np.arange(1, 10_001.0)
    losses = records.Curve(steps, 3 + 8 * np.exp(-steps / 100))
    long = short._replace(run=dataclasses.replace(short.run, metrics={"train/loss": losses}))
    low, high = plots.loss_range([long], plots.Reference("GPT-2", 2.9))
    shown = (losses.values > low) & (losses.values < high)
    assert low < 2.9
    assert high < 3.5
    assert 0.95 <= shown.mean() < 1
    assert plots.loss_range([long, short]) is None
    sparse = records.Curve(*(values[::50] for values in losses))  # as the logs of others are
    few = short._replace(run=dataclasses.replace(short.run, metrics={"train/loss": sparse}))
    assert plots.loss_range([long, few])
    assert plots.loss_figure([long]).axes[0].get_ylim() == plots.loss_range([long])


@pytest.mark.parametrize("count", [0, 1, 399, 400, 401, 20_000])
def test_downsampling_keeps_the_mean_the_extremes_and_the_order(count):
    values = np.random.default_rng(0).normal(size=count)
    steps = np.arange(1, count + 1, dtype=float)
    few = plots.downsample(records.Curve(steps, values), 400)
    assert len(few.steps) == min(count, 400)
    assert (np.diff(few.steps) > 0).all()
    if count:
        assert few.low.min() == values.min()
        assert few.high.max() == values.max()
        assert ((few.low <= few.mean) & (few.mean <= few.high)).all()
        np.testing.assert_allclose(few.mean.mean(), values.mean(), atol=2e-2)


def test_runs_with_different_batch_sizes_are_drawn_over_tokens(make_run):
    same = [records.read(make_run(name)) for name in ("a", "b")]
    assert [line.scale for line in plots.build_lines(same)] == [1, 1]
    larger = records.read(make_run("c", settings={"train.total_batch_size": 16384}))
    assert [line.scale for line in plots.build_lines([*same, larger])] == [8192, 8192, 16384]


def test_many_runs_have_distinct_styles(make_run):
    run = records.read(make_run())
    styles = [str(line.style) for line in plots.build_lines([run] * 18)]
    assert len(set(styles)) == 18


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (0.25, "0.25"), (999, "999"), (999.9, "1K"), (921_600, "922K"), (999_999, "1M"), (1e10, "10B")],
)
def test_format_number(number, shown):
    assert plots.format_number(number) == shown
