"""Colours and markers of the experiments' figures, told apart by the colour-blind."""

#: Okabe and Ito's palette, dark ones first, without the yellow that white hides.
OKABE_ITO = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
