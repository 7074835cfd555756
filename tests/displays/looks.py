"""What a reader sees of a figure: whether its texts are apart, and can be read."""

from itertools import combinations

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.legend import Legend
from matplotlib.text import Text

#: Overlaps of less than this many pixels are the margins of the boxes.
SLACK = 1.0


def texts(figure):
    """Texts of a drawn figure that are seen, those of a legend as one box."""
    figure.draw_without_rendering()
    legends = figure.findobj(Legend)
    hidden = unseen(figure)
    hidden |= {id(text) for legend in legends for text in legend.findobj(Text)}
    found = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]
    return found + [("legend", legend.get_window_extent()) for legend in legends]


def unseen(figure):
    """Identities of texts that are not drawn: labels of ticks beyond the limits."""
    found = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            place = axis.get_transform().transform
            low, high = sorted(place(axis.get_view_interval()))
            slack = 1e-9 * (high - low)
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                within = low - slack <= place(tick.get_loc()) <= high + slack
                if not (within and ax.axison and axis.get_visible()):
                    found |= {id(tick.label1), id(tick.label2)}
    return found


def overlapping(figure):
    """Pairs of texts that cover each other."""
    return [
        (a, b)
        for (a, box), (b, other) in combinations(texts(figure), 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > SLACK
        and min(box.y1, other.y1) - max(box.y0, other.y0) > SLACK
    ]


def cut_off(figure):
    """Texts that reach beyond the figure's edge."""
    edge = figure.bbox
    return [
        text
        for text, box in texts(figure)
        if box.x0 < edge.x0 - SLACK
        or box.y0 < edge.y0 - SLACK
        or box.x1 > edge.x1 + SLACK
        or box.y1 > edge.y1 + SLACK
    ]


def unreadable(figure):
    """Texts outside of axes whose colour is too near that of the figure."""
    ground = luminance(figure.get_facecolor())
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            light = luminance(text.get_color())
            high, low = max(light, ground), min(light, ground)
            if (high + 0.05) / (low + 0.05) < 3:
                found.append(text.get_text())
    return found


def luminance(color):
    """Relative luminance of the web's guidelines for contrast."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in to_rgb(color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def check_looks(display):
    """Assert that a figure of its own, at the default size, can be read."""
    assert not overlapping(display.figure_)
    assert not cut_off(display.figure_)
    assert not unreadable(display.figure_)
    plt.close(display.figure_)
