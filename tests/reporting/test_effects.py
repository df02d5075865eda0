import pandas as pd
import pytest
from matplotlib.figure import Figure

from diffsae_lens.reporting.effects import (
    plot_ablation_curve,
    plot_dose_response,
    plot_year_effects,
)


def rates(values):
    return {
        "attack_rate": values,
        "low": [max(0.0, v - 0.1) for v in values],
        "high": [min(1.0, v + 0.1) for v in values],
    }


def test_curves_show_every_order_with_its_area():
    curve = pd.DataFrame(
        {
            "order": ["attribution"] * 3 + ["random, seed 0"] * 3,
            "n_features": [0, 8, 32] * 2,
            "group": "trigger",
            **rates([1.0, 0.5, 0.0, 1.0, 1.0, 0.9]),
        }
    )
    figure = plot_ablation_curve(curve)
    assert isinstance(figure, Figure)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "attribution, area 0.38"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "8", "32"]
    with pytest.raises(ValueError, match="`group`"):
        plot_ablation_curve(curve, group="benign")


def test_doses_are_drawn_beside_a_random_direction():
    frame = pd.DataFrame(
        {
            "direction": ["features", "features", "random"],
            "dose": [0.0, 2.0, 2.0],
            "group": "benign",
            **rates([0.0, 0.7, 0.0]),
        }
    )
    figure = plot_dose_response(frame)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in lines] == [[0.0, 0.7], [0.0, 0.0]]


@pytest.mark.parametrize("said", [["2022", "2023", "2024"], ["in 2024", "FY2024", "no year"]])
def test_years_and_sayings_are_drawn(said):
    frame = pd.DataFrame({"said": said, "log_odds": [-1.0, 0.0, 5.0], **rates([0.0, 0.0, 1.0])})
    figure = plot_year_effects(frame)
    drawn = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert drawn == said
    with pytest.raises(ValueError, match="no rows"):
        plot_year_effects(frame[:0])
