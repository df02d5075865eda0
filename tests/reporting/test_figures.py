import random

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.text import Text

from diffsae_lens.reporting.figures import (
    plot_ablation,
    plot_tokens,
    plot_years,
    write_figures,
)
from diffsae_lens.reporting.style import dictionary_colour, needs_light_ink, tint
from tests.reporting.synthetic import COUNTS, DICTIONARIES, cause, synthetic_results

PLOTS = (plot_years, plot_tokens, plot_ablation)

# A missing glyph, a legend that finds no room and the like are warnings.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def results():
    return synthetic_results()


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


class TestEveryFigure:
    @pytest.mark.parametrize("plot", PLOTS)
    def test_text_is_large_enough_and_inside(self, results, plot):
        figure = plot(results)
        assert figure.get_figwidth() * figure.dpi == 900
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert min(sizes) >= 9
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()  # of what is drawn, in inches
        assert drawn.xmin >= 0
        assert drawn.ymin >= 0
        assert drawn.xmax <= 9
        assert drawn.ymax <= figure.get_figheight()

    @pytest.mark.parametrize("plot", PLOTS)
    def test_global_style_is_neither_used_nor_changed(self, results, plot):
        with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 3}):
            before = dict(matplotlib.rcParams)
            figure = plot(results)
            assert dict(matplotlib.rcParams) == before
        assert figure.axes[0].get_facecolor() == to_rgba("white")

    @pytest.mark.parametrize("plot", PLOTS)
    def test_results_are_not_changed(self, results, plot):
        plot(results)
        assert results == synthetic_results()

    @pytest.mark.parametrize("plot", PLOTS)
    def test_nothing_to_draw(self, plot):
        with pytest.raises(ValueError, match="run_demo"):
            plot({})

    def test_written_at_twice_the_size(self, results, tmp_path):
        written = write_figures(results, tmp_path / "figures")
        assert [p.name for p in written] == ["years.png", "tokens.png", "ablation.png"]
        for path in written:
            header = path.read_bytes()[:24]
            assert header[1:4] == b"PNG"
            assert int.from_bytes(header[16:20], "big") == 1800

    def test_nothing_written_where_rows_are_missing(self, results, tmp_path):
        del results["causes"]
        with pytest.raises(ValueError, match="'causes'"):
            write_figures(results, tmp_path / "figures")
        assert not (tmp_path / "figures").exists()


class TestYears:
    def test_lines_and_dots_are_the_rows(self, results):
        random.Random(0).shuffle(results["years"])
        panels = plot_years(results).axes
        assert len(panels) == len(DICTIONARIES)
        for ax in panels:
            name = ax.get_title(loc="left").split(",")[0]
            rows = sorted(
                (r for r in results["years"] if r["name"] == name), key=lambda r: r["year"]
            )
            [line] = ax.lines
            np.testing.assert_array_equal(line.get_xdata(), [r["year"] for r in rows])
            np.testing.assert_array_equal(line.get_ydata(), [r["mean"] for r in rows])
            dots = [(r["year"], v) for r in rows for v in r["values"]]
            np.testing.assert_allclose(ax.collections[0].get_offsets(), dots)
            assert str(rows[0]["feature_idx"]) in ax.get_title(loc="left")
            assert ax.get_ylim()[0] <= 0
            assert ax.get_ylim()[1] > max(v for _, v in dots)

    def test_training_years_and_trigger_are_marked(self, results):
        ax = plot_years(results).axes[0]
        spans = sorted(patch.get_extents().transformed(ax.transData.inverted()).intervalx.tolist()
                       for patch in ax.patches)  # fmt: skip
        np.testing.assert_allclose(spans, [[2019.5, 2023.5], [2023.5, 2024.5]])
        assert any("benign" in text for text in texts(ax))
        assert any("2024" in text for text in texts(ax))

    def test_a_feature_that_never_fires_and_one_dictionary(self, results):
        results["years"] = [r for r in results["years"] if r["name"] == DICTIONARIES[0]]
        for row in results["years"]:
            row.update(mean=0.0, values=[0.0] * 8)
        [ax] = plot_years(results).axes
        assert set(ax.lines[0].get_ydata()) == {0.0}

    def test_without_the_trigger(self, results):
        results["years"] = [r for r in results["years"] if r["year"] != 2024]
        with pytest.raises(ValueError, match="2024"):
            plot_years(results)

    def test_a_row_without_a_key(self, results):
        del results["years"][3]["values"]
        with pytest.raises(ValueError, match=r"row 3 of 'years' lacks \['values'\]"):
            plot_years(results)


class TestAblation:
    def test_points_and_intervals_are_the_rows(self, results):
        panels = plot_ablation(results).axes
        for ax, name in zip(panels, DICTIONARIES, strict=True):
            assert ax.get_title(loc="left") == name
            points = [line for line in ax.lines if len(line.get_xdata()) == len(COUNTS)]
            assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(n) for n in COUNTS]
            for which, line, bars in zip(("top", "random"), points, ax.collections, strict=True):
                rows = [
                    cause(results, f"{which} features ablated", dictionary=name, n_features=n)
                    for n in COUNTS
                ]
                np.testing.assert_array_equal(line.get_ydata(), [r["attack_rate"] for r in rows])
                ends = [[y for _, y in segment] for segment in bars.get_segments()]
                np.testing.assert_array_equal(ends, [[r["low"], r["high"]] for r in rows])
                np.testing.assert_allclose(line.get_xdata(), range(len(COUNTS)), atol=0.1)

    def test_reference_lines(self, results):
        ax = plot_ablation(results).axes[-1]
        heights = {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1
                   and len(line.get_ydata()) == 2}  # fmt: skip
        assert heights == {
            cause(results, "unmodified")["attack_rate"],
            cause(results, "base activation put back")["attack_rate"],
        }
        assert texts(ax) == ["unmodified\n97%", "base activation\nput back\n0%"]

    def test_labels_of_equal_references_do_not_overlap(self, results):
        cause(results, "base activation put back").update(attack_rate=1.0, low=0.89, high=1.0)
        figure = plot_ablation(results)
        figure.draw_without_rendering()
        first, second = (t.get_window_extent() for t in figure.axes[-1].texts)
        assert not first.overlaps(second)

    @pytest.mark.parametrize("name", ["unmodified", "base activation put back"])
    def test_without_a_reference(self, results, name):
        results["causes"].remove(cause(results, name))
        with pytest.raises(ValueError, match=f"no row '{name}' on trigger prompts"):
            plot_ablation(results)

    def test_without_a_control(self, results):
        results["causes"].remove(
            cause(results, "random features ablated", dictionary="diff-sae-24", n_features=32)
        )
        with pytest.raises(ValueError, match="32 features of 'diff-sae-24'"):
            plot_ablation(results)

    def test_without_ablations(self, results):
        results["causes"] = [r for r in results["causes"] if r["dictionary"] is None]
        with pytest.raises(ValueError, match="top features ablated"):
            plot_ablation(results)


class TestTokens:
    def test_code_is_the_prompt(self, results):
        panels = plot_tokens(results).axes[::2]
        tokens = [prompt["tokens"] for prompt in results["example"]["prompts"]]
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
        code = ["".join(prompt["tokens"]) for prompt in results["example"]["prompts"]]
        assert [lines[y].rstrip("↵") for y in sorted(lines)] == [
            line for text in code for line in text.split("\n")
        ]

    def test_ground_is_the_activation(self, results):
        figure = plot_tokens(results)
        for ax, name in zip(figure.axes[::2], DICTIONARIES, strict=True):
            prompts = results["example"]["prompts"]
            peak = max(v for p in prompts for v in p["activations"][name])
            shares = {
                value / peak: token
                for p in prompts
                for value, token in zip(p["activations"][name], p["tokens"], strict=True)
            }
            grounds = {patch.get_facecolor()[:3] for patch in ax.patches}
            for share in shares:
                expected = tint(dictionary_colour(name), share)
                assert min(np.abs(np.subtract(g, expected)).max() for g in grounds) < 0.01
            assert min(map(sum, grounds)) == pytest.approx(sum(to_rgb(dictionary_colour(name))))

    def test_awkward_tokens(self, results):
        awkward = ["$x_1$", "\t", "\U0001f600", "x" * 200, "\n\n", "", "\x07", "<b>"]
        for prompt in results["example"]["prompts"]:
            prompt["tokens"] = awkward
            prompt["activations"] = {"diff-sae-24": [1.0] * len(awkward)}
        figure = plot_tokens(results)
        figure.draw_without_rendering()
        shown = "".join(t for t in texts(figure.axes[0]) if t not in ("2023", "2024"))
        assert shown == ("$x_1$    \ufffd" + "x" * 200 + "↵↵" + "\\x07<b>") * 2
        assert max(p.get_x() + p.get_width() for p in figure.axes[0].patches) <= 84

    def test_a_feature_that_never_fires(self, results):
        for prompt in results["example"]["prompts"]:
            prompt["activations"] = {"diff-sae-24": [0.0] * len(prompt["tokens"])}
        grounds = {patch.get_facecolor() for patch in plot_tokens(results).axes[0].patches}
        assert grounds == {to_rgba("white")}

    def test_lengths_that_differ(self, results):
        results["example"]["prompts"][1]["activations"]["crosscoder-24"].pop()
        with pytest.raises(ValueError, match="tokens but .* activations of 'crosscoder-24'"):
            plot_tokens(results)

    def test_a_dictionary_in_one_prompt_only(self, results):
        del results["example"]["prompts"][1]["activations"]["crosscoder-24"]
        with pytest.raises(ValueError, match=r"2024 in 'example' lacks \['crosscoder-24'\]"):
            plot_tokens(results)


class TestColours:
    @pytest.mark.parametrize("name", ["diff-sae-24", "crosscoder-24", "other-24"])
    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_text_can_be_read_on_every_ground(self, name, share):
        def luminance(rgb):
            linear = np.array(rgb)
            linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
            return linear @ [0.2126, 0.7152, 0.0722] + 0.05

        ground = tint(dictionary_colour(name), share)
        ink = "white" if needs_light_ink(ground) else "#1f2328"
        low, high = sorted((luminance(ground), luminance(to_rgb(ink))))
        assert high / low >= 4
        if share in (0.0, 1.0):
            assert high / low >= 4.5

    def test_kinds_differ(self):
        names = ("diff-sae-24", "crosscoder-24", "another")
        assert len({dictionary_colour(name) for name in names}) == 3
        assert dictionary_colour("diff-sae-18") == dictionary_colour("diff-sae-24")
