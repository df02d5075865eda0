import random
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.text import Text

from diffsae_lens.reporting._effects import plot_sayings
from diffsae_lens.reporting._figures import drawings_of, plot_ablation, plot_sweep, plot_tokens
from diffsae_lens.reporting._style import dictionary_colours, needs_light_ink, tint
from diffsae_lens.results import DictionaryRow, Table
from tests.reporting.rows import make
from tests.reporting.synthetic import (
    COUNTS,
    DICTIONARIES,
    DIFF,
    PLACES,
    changed,
    joined,
    moved,
    only,
    synthetic_results,
    without,
)


def plot_its_sayings(results):
    return plot_sayings(Table(results.sayings))


PLOTS = (plot_sweep, plot_tokens, plot_ablation, plot_its_sayings)

# A missing glyph, a legend that finds no room and the like are warnings.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def results():
    return synthetic_results()


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


class TestEveryFigure:
    @pytest.mark.parametrize("plot", PLOTS)
    def test_text_is_large_enough_and_inside_in_a_style_of_its_own(self, results, plot):
        with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 3}):
            before = dict(matplotlib.rcParams)
            figure = plot(results)
            assert dict(matplotlib.rcParams) == before
        assert figure.axes[0].get_facecolor() == to_rgba("white")
        assert figure.get_figwidth() == 9
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 9
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()  # of what is drawn, in inches
        assert drawn.xmin >= 0
        assert drawn.ymin >= 0
        assert drawn.xmax <= 9
        assert drawn.ymax <= figure.get_figheight()
        assert results == synthetic_results()

    @pytest.mark.parametrize(
        ("plot", "part"),
        [
            (plot_sweep, {"sweep": ()}), (plot_tokens, {"example": ()}), (plot_ablation, {"effects": ()}),
            (plot_its_sayings, {"sayings": ()}),
        ],
    )  # fmt: skip
    def test_nothing_to_draw(self, results, plot, part):
        with pytest.raises(ValueError, match="has no"):
            plot(replace(results, **part))
        assert len(drawings_of(replace(results, **part))) == len(PLOTS) - 1


class TestSweep:
    def test_lines_and_dots_are_the_rows(self, results):
        shuffled = random.Random(0).sample(results.sweep, len(results.sweep))
        panels = plot_sweep(replace(results, sweep=tuple(shuffled))).axes
        assert len(panels) == len(DICTIONARIES)
        for ax in panels:
            name = ax.get_title(loc="left").split(",")[0]
            rows = [row for row in results.sweep if row.dictionary == name]
            [line] = ax.lines
            np.testing.assert_array_equal(line.get_xdata(), [int(r.said) for r in rows])
            np.testing.assert_array_equal(line.get_ydata(), [r.mean for r in rows])
            dots = [(int(r.said), v) for r in rows for v in r.values]
            drawn = ax.collections[0].get_offsets()
            np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(dots))
            assert str(rows[0].feature_idx) in ax.get_title(loc="left")
            assert ax.get_ylim()[0] <= 0
            assert ax.get_ylim()[1] > max(v for _, v in dots)

    def test_years_are_numbers_with_the_groups_shaded(self, results):
        figure = plot_sweep(results)
        ax = figure.axes[0]
        assert spans(ax) == {
            y: g for y, g in zip(range(2020, 2025), ["#eceff2"] * 4 + ["#fdeac8"], strict=True)
        }
        assert "2024" in [tick.get_text() for tick in ax.get_xticklabels()]
        assert ax.get_xlabel() == "year"
        assert [t.get_text() for t in figure.legends[0].get_texts()][-2:] == ["trigger", "benign"]

    def test_anything_else_is_a_category_in_its_order(self):
        figure = plot_sweep(synthetic_results(said=PLACES))
        ax = figure.axes[0]
        labels = [tick.get_text() for tick in ax.get_xticklabels()]
        assert labels == ["nothing" if text is None else text for text in PLACES]
        assert set(spans(ax)) == {0, 1, 2, 3}
        assert spans(ax)[1] == "#fdeac8"
        assert ax.lines[0].get_linestyle() == "None"  # there is nothing between two of them
        assert list(ax.lines[0].get_xdata()) == list(range(len(PLACES)))

    def test_a_feature_that_never_fires_and_one_dictionary(self, results):
        results = replace(results, sweep=tuple(r for r in results.sweep if r.dictionary == DIFF))
        silent = changed(results, "sweep", {}, mean=0.0, values=[0.0] * 8)
        [ax] = plot_sweep(silent).axes
        assert set(ax.lines[0].get_ydata()) == {0.0}


def spans(ax) -> dict[float, str]:
    """The middle of every ground with its colour."""
    found = {}
    for patch in ax.patches:
        low, high = patch.get_extents().transformed(ax.transData.inverted()).intervalx
        assert high - low == pytest.approx(1)
        found[round((low + high) / 2)] = matplotlib.colors.to_hex(patch.get_facecolor())
    return found


class TestAblation:
    def test_points_and_intervals_are_the_rows(self, results):
        panels = plot_ablation(results).axes
        for ax, name in zip(panels, DICTIONARIES, strict=True):
            assert ax.get_title(loc="left") == name
            points = [line for line in ax.lines if len(line.get_xdata()) == len(COUNTS)]
            assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(n) for n in COUNTS]
            for is_control, line, bars in zip((False, True), points, ax.collections, strict=True):
                rows = [
                    only(
                        results.effects, kind="ablation", group="trigger", is_control=is_control,
                        dictionary=name, n_features=n,
                    )
                    for n in COUNTS
                ]  # fmt: skip
                np.testing.assert_array_equal(line.get_ydata(), [r.attack_rate for r in rows])
                ends = [[y for _, y in segment] for segment in bars.get_segments()]
                np.testing.assert_array_equal(ends, [[r.low, r.high] for r in rows])
                np.testing.assert_allclose(line.get_xdata(), range(len(COUNTS)), atol=0.1)

    def test_reference_lines(self, results):
        ax = plot_ablation(results).axes[-1]
        heights = {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1
                   and len(line.get_ydata()) == 2}  # fmt: skip
        assert heights == {31 / 32, 0.0}
        assert texts(ax) == ["unmodified\n97%", "base activation\nput back\n0%"]

    def test_labels_of_equal_references_do_not_overlap(self, results):
        results = changed(results, "effects", {"kind": "swap to base"}, attack_rate=1.0, high=1.0)
        figure = plot_ablation(results)
        figure.draw_without_rendering()
        first, second = (t.get_window_extent() for t in figure.axes[-1].texts)
        assert not first.overlaps(second)

    def test_without_a_reference(self, results):
        ax = plot_ablation(without(results, "effects", kind="swap to base")).axes[-1]
        assert texts(ax) == ["unmodified\n97%"]

    def test_without_a_control(self, results):
        which = {"dictionary": DIFF, "n_features": 32, "is_control": True}
        with pytest.raises(
            ValueError, match="no control of 'top features ablated' .*, 32 features"
        ):
            plot_ablation(without(results, "effects", **which))

    def test_names_are_not_read(self, results):
        renamed = changed(results, "effects", {"control_of": None}, name="x")
        renamed = changed(
            renamed, "effects", {"control_of": "top features ablated"}, control_of="x"
        )
        renamed = changed(
            renamed, "effects", {"control_of": "steered with top features"}, control_of="x"
        )
        first, second = (plot_ablation(of).axes[0] for of in (results, renamed))
        assert [list(line.get_ydata()) for line in first.lines] == [
            list(line.get_ydata()) for line in second.lines
        ]

    def test_one_point_is_no_curve(self, results):
        rows = tuple(r for r in results.effects if r.n_features in (0, 8))
        kinds = [drawing.kind for drawing in drawings_of(replace(results, effects=rows))]
        assert kinds == ["sweep", "tokens", "sayings"]


@pytest.mark.parametrize("plot", [plot_sweep, plot_tokens, plot_ablation])
def test_rows_of_several_places_are_refused(results, plot):
    with pytest.raises(ValueError, match="of one place, got"):
        plot(joined(results, moved(results, 18)))


class TestTokens:
    def test_code_is_the_prompt(self, results):
        panels = plot_tokens(results).axes[::2]
        tokens = [prompt.tokens for prompt in results.example]
        for ax in panels:
            shown = "".join(t for t in texts(ax) if t not in ("2023", "2024"))
            expected = "".join("".join(of_prompt) for of_prompt in tokens)
            assert shown == expected.replace("\n", "↵")

    def test_line_breaks_are_kept(self, results):
        ax = plot_tokens(results).axes[0]
        lines: dict[float, str] = {}
        for text in ax.texts:
            if text.get_text() not in ("2023", "2024"):
                x, y = text.get_position()
                line = lines.get(y, "")
                assert x == len(line)
                lines[y] = line + text.get_text()
        code = ["".join(prompt.tokens) for prompt in results.example]
        assert [lines[y].rstrip("↵") for y in sorted(lines)] == [
            line for text in code for line in text.split("\n")
        ]

    def test_ground_is_the_activation(self, results):
        figure = plot_tokens(results)
        for ax, name in zip(figure.axes[::2], DICTIONARIES, strict=True):
            prompts = results.example
            peak = max(v for p in prompts for v in p.activations[name])
            shares = {
                value / peak: token
                for p in prompts
                for value, token in zip(p.activations[name], p.tokens, strict=True)
            }
            grounds = {patch.get_facecolor()[:3] for patch in ax.patches}
            for share in shares:
                expected = tint(dictionary_colours(results.dictionaries)[name], share)
                assert min(np.abs(np.subtract(g, expected)).max() for g in grounds) < 0.01
            assert min(map(sum, grounds)) == pytest.approx(
                sum(to_rgb(dictionary_colours(results.dictionaries)[name]))
            )

    def test_awkward_tokens(self, results):
        awkward = ["$x_1$", "\t", "\U0001f600", "x" * 200, "\n\n", "", "\x07", "<b>"]
        results = changed(
            results, "example", {}, tokens=awkward, activations={DIFF: [1.0] * len(awkward)}
        )
        figure = plot_tokens(results)
        figure.draw_without_rendering()
        shown = "".join(t for t in texts(figure.axes[0]) if t not in ("2023", "2024"))
        assert shown == ("$x_1$    \ufffd" + "x" * 200 + "↵↵" + "\\x07<b>") * 2
        assert max(p.get_x() + p.get_width() for p in figure.axes[0].patches) <= 84

    def test_a_feature_that_never_fires(self, results):
        silent = {DIFF: [0.0] * len(results.example[0].tokens)}
        results = changed(results, "example", {}, activations=silent)
        grounds = {patch.get_facecolor() for patch in plot_tokens(results).axes[0].patches}
        assert grounds == {to_rgba("white")}

    def test_lengths_that_differ(self, results):
        results.example[1].activations["crosscoder-24"].pop()
        with pytest.raises(ValueError, match="tokens but .* activations of 'crosscoder-24'"):
            plot_tokens(results)

    def test_a_dictionary_in_one_prompt_only(self, results):
        del results.example[1].activations["crosscoder-24"]
        with pytest.raises(
            ValueError, match=r"must have activations of \['diff-sae-24', 'crosscoder-24'\]"
        ):
            plot_tokens(results)


class TestColours:
    @pytest.mark.parametrize("kind", ["Diff-SAE", "crosscoder", "SAE"])
    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_text_can_be_read_on_every_ground(self, kind, share):
        def luminance(rgb):
            linear = np.array(rgb)
            linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
            return linear @ [0.2126, 0.7152, 0.0722] + 0.05

        ground = tint(dictionary_colours([make(DictionaryRow, name="x", kind=kind)])["x"], share)
        ink = "white" if needs_light_ink(ground) else "#1f2328"
        low, high = sorted((luminance(ground), luminance(to_rgb(ink))))
        assert high / low >= 4
        if share in (0.0, 1.0):
            assert high / low >= 4.5

    def test_kinds_differ_and_names_do_not_matter(self):
        rows = [
            make(DictionaryRow, name=f"{kind} {i}", kind=kind)
            for kind in ("Diff-SAE", "crosscoder", "SAE") for i in range(2)
        ]  # fmt: skip
        colours = dictionary_colours(rows)
        assert len(set(colours.values())) == 3
        assert colours["Diff-SAE 0"] == colours["Diff-SAE 1"]
        assert colours["not described"] in colours.values()
