"""What the demo prints: tables, and sentences that are made of the numbers."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from sklearn.model_selection import ParameterGrid
from tabulate import SEPARATING_LINE, tabulate

from sklearn_relflat._demo.comparison import (
    clear_sign,
    letters,
    paired_difference,
    roles,
    spearman,
)
from sklearn_relflat._demo.experiment import Config, Demo, Scores

PACKAGES = ("sklearn-relflat", "scikit-learn", "skorch", "torch", "numpy")
TITLE = "Which of my equally accurate models will hold up? A demo of relative flatness"
WIDTH = 84
WORDS = {-1: "lower", 0: "unclear", 1: "higher"}
# With fewer, a bootstrap interval of a rank correlation means nothing.
MIN_CANDIDATES = 8
SCORE_HEADER = ["kappa", "kappa CE", "train", "S", "new", "gap", "acc."]
# Relative size of the perturbations of features that one column speaks of.
DELTA = 0.1


def introduction(config: Config) -> str:
    """Text that says what is about to be computed.

    Parameters
    ----------
    config : Config
        What is computed.

    Returns
    -------
    text : str
        Several lines.
    """
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    versions += [f"Python {platform.python_version()}", f"seed {config.seed}"]
    data = (
        f"Data: load_digits of scikit-learn, {config.n_train} samples to train on, the "
        "rest held out."
    )
    nets = (
        f"Nets: {len(ParameterGrid(config.grid))} ways to train one ReLU network with "
        "skorch, by optimizer, learning rate and batch size. Each training ends at a "
        f"mean cross-entropy of {config.training_loss:g} on its training samples, "
        "because flatness is to be compared at equal training loss."
    )
    search = (
        f"Search: GridSearchCV with {config.n_folds} folds. "
        f"FlattestWithin({config.tol:g}) chooses the flattest of the candidates whose "
        f"accuracy is within {config.tol:g} of the best: the accurate ones."
    )
    paragraphs = [", ".join(versions), data, nets, search]
    return "\n\n".join([TITLE, *(wrapped(text, "") for text in paragraphs)])


def report(demo: Demo) -> str:
    """Tables of the results, and what they mean in words.

    Parameters
    ----------
    demo : Demo
        The results.

    Returns
    -------
    text : str
        Many lines.
    """
    parts = [
        _candidates_part(demo),
        _verdict_part(demo),
        _layers_part(demo),
        _path_part(demo),
        _meaning_part(demo),
    ]
    return "\n\n".join(parts)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequence of str
        Cells.

    Returns
    -------
    table : str
        Lines with a rule below the header.

    Examples
    --------
    >>> print(format_table(["layer", "kappa"], [["output", "9.5"]]))
      layer   kappa
      ------  -----
      output    9.5
    """
    align = ["left", *["right"] * (len(header) - 1)]
    # As a first row: a header of tabulate's own is given more room than it needs.
    table = tabulate(
        [header, SEPARATING_LINE, *rows],
        tablefmt="simple",
        colalign=align,
        disable_numparse=True,
    )
    return "\n".join(f"  {line}".rstrip() for line in table.splitlines()[1:-1])


def wrapped(text: str, indent: str = "  ") -> str:
    """Break a paragraph into lines of the report's width.

    Parameters
    ----------
    text : str
        The paragraph.
    indent : str, default="  "
        Beginning of every line.

    Returns
    -------
    text : str
        The lines.
    """
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def describe_training(params: dict[str, Any]) -> str:
    """Return the parameters of a candidate in a few words."""
    optimizer = params["net__optimizer"].__name__
    return f"{optimizer} {params['net__lr']:g} / {params['net__batch_size']}"


def _score_cells(scores: Scores) -> list[str]:
    """Cells on flatness and losses, for the columns of SCORE_HEADER."""
    return [
        f"{scores.flatness.value:,.0f}",
        f"{scores.flatness_of_training_loss.value:.1f}",
        f"{scores.training_loss:.4f}",
        f"{scores.smoothed_risk:.3f}",
        f"{scores.held_out_loss:.4f}",
        f"{scores.gap:.4f}",
        f"{scores.accuracy:.3f}",
    ]


def _candidates_part(demo: Demo) -> str:
    """Return the table of the candidates that have a role."""
    rows = []
    for index, letter in letters(demo).items():
        candidate = demo.candidates[index]
        training = describe_training(candidate.params)
        accuracy = f"{candidate.cv_accuracy:.3f}"
        rows.append([letter, training, accuracy, *_score_cells(candidate.scores)])
    legend = [f"  {letter} is the {role}" for letter, (_, role) in roles(demo).items()]
    header = ["", "trained with", "CV acc.", *SCORE_HEADER]
    return f"""\
1. Candidates of the search, refitted on all {demo.config.n_train} training samples

{format_table(header, rows)}

  By the folds of the search, and E by the training samples alone, net
{chr(10).join(legend)}

  trained   optimizer, learning rate / samples in a batch
  CV acc.   mean accuracy over the folds of the search
  kappa     relative flatness of the output layer on the training samples, for the
            squared error on the logits; a large number is sharp. The search used it.
            (Of an output layer it is 2/10 * ||weight||^2 * mean ||features||^2.)
  kappa CE  the same for the cross-entropy, the loss that the nets were trained with
  train     mean cross-entropy on the training samples
  S         smoothed risk: the same when each sample is perturbed as much as their
            density says, an estimate of "new" from the training samples alone
  new       the same on {demo.n_held_out:,} held-out samples
  gap       new minus train
  acc.      accuracy on the held-out samples"""


def _pairs(demo: Demo) -> str:
    """Return a table of A against the others, on the held-out samples."""
    table = roles(demo)
    first = demo.candidates[table["A"][0]].scores
    rows = []
    for letter, (index, _) in table.items():
        if index == table["A"][0]:
            continue
        other = demo.candidates[index].scores
        loss = paired_difference(first.held_out_losses, other.held_out_losses)
        hits = paired_difference(first.held_out_hits, other.held_out_hits)
        rows.append(
            [
                f"A minus {letter}",
                "{:+.4f} +- {:.4f}".format(*loss),
                WORDS[clear_sign(*loss)],
                "{:+.4f} +- {:.4f}".format(*hits),
                WORDS[clear_sign(*hits)],
            ]
        )
    if not rows:
        return "  A is every one of them: there is nothing to compare."
    return format_table(["", "loss on new data", "", "accuracy", ""], rows)


def _plain_words(demo: Demo) -> str:
    """Return the table of pairs in one sentence."""
    table = roles(demo)
    flattest, sharpest = table["A"][0], table["C"][0]
    if flattest == sharpest:
        return "Only one candidate is accurate: there was nothing to choose."
    losses = [demo.candidates[i].scores.held_out_losses for i in (flattest, sharpest)]
    words = {
        -1: "has a lower loss on new data than the sharpest of them.",
        0: "and the sharpest of them do not clearly differ in their loss on new data.",
        1: "has a HIGHER loss on new data than the sharpest of them.",
    }
    sign = clear_sign(*paired_difference(*losses))
    return f"In plain words: here the flattest of the accurate nets {words[sign]}"


def _relation(name: str, x: Sequence[float], y: Sequence[float], seed: int) -> str:
    """Return a line on a rank correlation and what its interval allows to say."""
    rho, low, high = spearman(x, y, seed)
    verdict = "no clear relation"
    if low > 0:
        verdict = "the sharper, the larger"
    elif high < 0:
        verdict = "the sharper, the smaller"
    return f"  {name}  {rho:+.2f}  ({low:+.2f} to {high:+.2f})  {verdict}"


def _correlations(demo: Demo) -> str:
    """Return rank correlations over all candidates."""
    config = demo.config
    arrived = [c for c in demo.candidates if c.reached(config.training_loss)]
    left_out = len(demo.candidates) - len(arrived)
    loss = f"{config.training_loss:g}"
    which = f"the {len(arrived)} nets that end at a training loss of {loss}"
    if left_out:
        which += f" ({left_out} did not get there)"
    if len(arrived) < MIN_CANDIDATES:
        return wrapped(f"No rank correlation over {which}: they are too few.")
    scores = [c.scores for c in arrived]
    squared = [s.flatness.value for s in scores]
    entropy = [s.flatness_of_training_loss.value for s in scores]
    gaps, errors = [s.gap for s in scores], [1 - s.accuracy for s in scores]
    intervals = "with intervals of 95 % (bootstrap over the nets)"
    lines = [
        wrapped(f"Spearman's rank correlation over {which}, {intervals}:"),
        "",
        _relation("kappa    and the gap in the loss", squared, gaps, config.seed),
        _relation("kappa CE and the gap in the loss", entropy, gaps, config.seed),
        _relation("kappa    and the rate of errors ", squared, errors, config.seed),
    ]
    return "\n".join(lines)


def _verdict_part(demo: Demo) -> str:
    """Return what the held-out samples say about flatness."""
    return f"""\
2. Did the flatter ones hold up?

{_pairs(demo)}

  +-: standard error over the held-out samples; within two of them, it is unclear

{wrapped(_plain_words(demo))}

{_correlations(demo)}"""


def _layers_part(demo: Demo) -> str:
    """Return the table of the layers of the chosen net."""
    rows = []
    for name, (squared, entropy) in demo.layers.items():
        rise = DELTA**2 / (2 * entropy.n_features) * entropy.value
        rows.append(
            [
                name,
                str(entropy.n_features),
                f"{squared.value:,.0f}",
                f"{entropy.value:.1f}",
                f"{rise:.5f}",
                entropy.method.replace("_", " "),
            ]
        )
    header = ["layer", "inputs", "kappa", "kappa CE", "rise of the loss", "computed"]
    return f"""\
3. The layers of net A

{format_table(header, rows)}

  rise of the loss: by how much the mean training loss rises, to second order, when
  the inputs of the layer are perturbed by {DELTA:.0%} of their norm, on average over
  random orthogonal matrices: {DELTA:g}^2 / (2 inputs) * kappa CE (Theorem 5)"""


def _path_part(demo: Demo) -> str:
    """Return the table of the logistic regressions, and what it shows."""
    rows = [[f"{C:g}", *_score_cells(scores)] for C, scores in demo.path.items()]
    Cs, scores = list(demo.path), list(demo.path.values())
    gaps = [s.gap for s in scores]
    squared = spearman([s.flatness.value for s in scores], gaps)[0]
    entropy = [s.flatness_of_training_loss.value for s in scores]
    peak = int(np.argmax(entropy))
    text = (
        f"The rank correlation with the gap is {squared:+.2f} for kappa and "
        f"{spearman(entropy, gaps)[0]:+.2f} for kappa CE."
    )
    if peak < len(Cs) - 1 and gaps[-1] > gaps[peak]:
        text += (
            f" From C = {Cs[peak]:g} to C = {Cs[-1]:g}, kappa CE falls from "
            f"{entropy[peak]:.1f} to {entropy[-1]:.1f} although the gap grows: at a "
            f"training loss of {scores[-1].training_loss:.4f}, a model is so sure of "
            "its training samples that their cross-entropy has hardly any curvature "
            "left. It looks flat, and is over-confident."
        )
    smoothed = [s.smoothed_risk for s in scores]
    if np.isfinite(smoothed).all():
        new = [s.held_out_loss for s in scores]
        text += (
            f" The smoothed risk is smallest at C = {Cs[int(np.argmin(smoothed))]:g}, "
            f"the loss on new data at C = {Cs[int(np.argmin(new))]:g}; their rank "
            f"correlation is {spearman(smoothed, new)[0]:+.2f}."
        )
    return f"""\
4. Logistic regressions over C, which do NOT end at the same training loss

{format_table(["C", *SCORE_HEADER], rows)}

{wrapped(text)}"""


def _meaning_part(demo: Demo) -> str:
    """Return what may be concluded and what not."""
    return f"""\
What this means
  - Relative flatness speaks for the gap: how much worse the loss becomes on new data.
    The theory promises nothing about accuracy, whatever section 2 shows on it here.
  - Compare models at equal training loss. Where training losses differ (section 4), a
    small gap is no small loss: look at both.
  - The loss in the definition of kappa matters, also at equal training loss: compare
    the lines for kappa and kappa CE in section 2.
  - Choose among accurate candidates. A model that has learned nothing is flat. To get
    the smallest loss on new data, choose by the smoothed risk: in the experiment
    "selection" the flattest of the accurate was no better than a draw among them.
  - This is one split of one small data set. The intervals are over the candidates of
    this run and say nothing about other data; try --seed {demo.config.seed + 1}."""
