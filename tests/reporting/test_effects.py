import math

import pytest
from matplotlib.figure import Figure

from diffsae_lens.reporting._effects import (
    plot_ablation_curve,
    plot_dose_response,
    plot_sayings,
)
from diffsae_lens.results import CurveRow, DoseRow, SayingRow, Table
from tests.reporting.rows import make


def rate(value):
    return {"attack_rate": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def test_curves_show_every_order_with_its_area():
    rates = {"attribution": [1.0, 0.5, 0.0], "by chance": [1.0, 1.0, 0.9]}
    curve = Table(
        tuple(
            make(CurveRow, order=order, n_features=n, group="trigger", **rate(value))
            for order, values in rates.items()
            for n, value in zip((0, 8, 32), values, strict=True)
        )
    )
    figure = plot_ablation_curve(curve, controls=["by chance"])
    assert isinstance(figure, Figure)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "attribution, area 0.38"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "8", "32"]
    blue, grey = (line for line in figure.axes[0].lines if len(line.get_xdata()))
    assert (blue.get_color(), grey.get_color()) == ("#0072B2", "#5c6570")
    with pytest.raises(ValueError, match="`group`"):
        plot_ablation_curve(curve, group="benign")
    with pytest.raises(ValueError, match="`controls`"):
        plot_ablation_curve(curve, controls=["random"])


def test_doses_are_drawn_beside_a_random_direction():
    table = Table(
        tuple(
            make(DoseRow, direction=direction, dose=dose, group="benign", **rate(value))
            for direction, dose, value in (
                ("features", 0.0, 0.0), ("features", 2.0, 0.7), ("random", 2.0, 0.0),
            )
        )
    )  # fmt: skip
    figure = plot_dose_response(table)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in lines] == [[0.0, 0.7], [0.0, 0.0]]


@pytest.mark.parametrize("said", [["2022", "2023", "2024"], ["in 2024", "FY2024", None]])
def test_years_and_sayings_are_drawn(said):
    rows = [
        make(SayingRow, said=text, group="other", log_odds=log_odds, **rate(value))
        for text, log_odds, value in zip(said, (-1.0, None, 5.0), (0.0, 0.0, 1.0), strict=True)
    ]
    figure = plot_sayings(Table(tuple(rows)), said="year")
    drawn = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert drawn == ["nothing" if text is None else text for text in said]
    assert math.isnan(figure.axes[1].lines[1].get_ydata()[1])
    assert figure.axes[1].get_xlabel() == "year"
    with pytest.raises(ValueError, match="no rows"):
        plot_sayings(Table(()))
