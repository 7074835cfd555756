"""The demo: it runs, it is reproducible, and its sentences follow its numbers."""

import pickle
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from skorch.callbacks import Callback

from sklearn_relflat import FeatureSplit, RelativeFlatness, relative_flatness
from sklearn_relflat.__main__ import main, parse
from sklearn_relflat._demo.comparison import clear_sign, spearman
from sklearn_relflat._demo.experiment import (
    FLATNESS_LOSS,
    Candidate,
    Config,
    Demo,
    Scores,
    load_data,
    score_model,
)
from sklearn_relflat._demo.figure import MISSING, make_figure, save_figure
from sklearn_relflat._demo.report import introduction, report
from sklearn_relflat._demo.training import make_net

N_HELD_OUT = 400
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick demo as a user starts it, with worker processes."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, subprocess.run(
        [sys.executable, "-m", "sklearn_relflat", "--quick"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def without_times(text: str) -> str:
    """Output without its last lines, which name the figure and the time."""
    return text[: text.index("Figure:")]


def test_the_command_prints_tables_and_saves_a_figure(quick):
    folder, done = quick
    assert done.returncode == 0, done.stderr
    for heading in ["1. Candidates", "2. Did", "3. The layers", "4. Logistic", "What"]:
        assert f"\n{heading}" in done.stdout
    for name in ["hidden_1", "hidden_2", "output"]:
        assert re.search(rf"^  {name} +\d+ +\d+", done.stdout, re.M)
    assert "seed 0" in done.stdout
    assert "scikit-learn 1." in done.stdout
    assert "300 samples to train on" in done.stdout
    assert "1,497 held-out samples" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 88
    figure = folder / "relative_flatness_demo.png"
    assert done.stdout.splitlines()[-2] == f"Figure: {figure.name}"
    assert figure.read_bytes().startswith(PNG)


def test_the_progress_bar_comes_to_its_end(quick):
    _, done = quick
    last = done.stderr.strip().split("\r")[-1]
    # 4 candidates in 2 folds and on all samples, and the chosen one.
    assert "13/13" in last
    assert "Warning" not in done.stderr


def test_same_numbers_in_one_process_and_in_several(quick, tmp_path, capsys):
    path = tmp_path / "figure.svg"
    main(["--quick", "--n-jobs", "1", "--figure", str(path)])
    printed = capsys.readouterr().out
    assert without_times(printed) == without_times(quick[1].stdout)
    assert path.read_text(encoding="utf-8").count("<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "expected a whole number from 0 to 4294967295, got '-1'"),
        (["--seed", "one"], "expected a whole number from 0"),
        (["--n-jobs", "0"], "expected a number of processes"),
        (["--figure", "nowhere/figure.png"], "a folder that exists, got 'nowhere/"),
        (["--figure", "figure.txt"], "ends in .png, .pdf or .svg, got 'figure.txt'"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_help_does_not_load_torch():
    code = "import sys, sklearn_relflat.__main__; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# The net


class StepLosses(Callback):
    """Notes the loss on all training samples before each step."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.X_, self.y_, self.losses_ = torch.as_tensor(X), torch.as_tensor(y), []

    def on_batch_begin(self, net, **kwargs):
        with torch.no_grad():
            loss = net.get_loss(net.infer(self.X_), self.y_)
        self.losses_.append(float(loss))


@pytest.fixture(scope="module")
def digits():
    X_train, X_held_out, y_train, y_held_out = load_data(Config.quick())
    return (X_train, y_train), (X_held_out, y_held_out)


@pytest.mark.parametrize(
    ("optimizer", "lr"), [(torch.optim.SGD, 0.3), (torch.optim.Adam, 0.02)]
)
def test_training_ends_at_the_loss(optimizer, lr, digits):
    train, _ = digits
    net = make_net(16, 0.3, max_epochs=50, random_state=0)
    net.set_params(net__optimizer=optimizer, net__lr=lr, net__batch_size=32)
    net["net"].callbacks.append(("losses", StepLosses()))
    net.fit(*train)
    losses = dict(net["net"].callbacks_)["losses"].losses_
    assert relative_flatness(net, *train).mean_loss == pytest.approx(0.3, rel=2e-3)
    # It ends when the loss gets there for the first time.
    assert min(losses) > 0.3


def test_training_that_does_not_get_there_ends(digits):
    train, held_out = digits
    net = make_net(16, 1e-9, max_epochs=2, random_state=0).fit(*train)
    assert len(net["net"].history) == 2
    scores = score_model(net, train, held_out)
    assert not Candidate({}, 0.9, 1.0, scores).reached(1e-9)
    assert Candidate({}, 0.9, 1.0, scores).reached(scores.training_loss)


def test_net_is_seeded_and_keeps_no_data(digits):
    train, _ = digits
    nets = [make_net(16, 0.3, 3, random_state=seed).fit(*train) for seed in (0, 0, 1)]
    weights = [net["net"].module_.output.weight.detach() for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert len(pickle.dumps(nets[0])) < train[0].nbytes / 2


@pytest.fixture(scope="module")
def net(digits):
    """A fitted net."""
    net = make_net(16, 0.3, max_epochs=50, random_state=0)
    adam = {"net__optimizer": torch.optim.Adam, "net__batch_size": 32}
    return net.set_params(**adam).fit(*digits[0])


def test_scores_are_what_they_say(net, digits):
    train, held_out = digits
    scores = score_model(net, train, held_out)
    # In double precision: log_loss takes no float32 probability below 1e-7 seriously.
    probability = net.predict_proba(held_out[0]).astype(float)
    probability /= probability.sum(axis=1, keepdims=True)
    expected = log_loss(held_out[1], probability)
    assert scores.held_out_loss == pytest.approx(expected, rel=1e-5)
    assert scores.accuracy == net.score(*held_out)
    assert scores.gap == scores.held_out_loss - scores.training_loss
    expected = log_loss(train[1], net.predict_proba(train[0]))
    assert scores.training_loss == pytest.approx(expected, rel=1e-5)
    assert scores.flatness.loss == FLATNESS_LOSS
    assert scores.flatness_of_training_loss.loss == "cross_entropy"


def test_kappa_of_the_output_layer_is_the_product_that_the_legend_says(net, digits):
    train, held_out = digits
    split = FeatureSplit(FrozenEstimator(net["net"])).fit(*train)
    features = split.transform(net[:-1].transform(train[0]))
    product = 0.2 * np.sum(split.weight_**2) * np.mean(np.sum(features**2, axis=1))
    kappa = score_model(net, train, held_out).flatness.value
    assert kappa == pytest.approx(product, rel=1e-4)


# The sentences


def flatness(value: float, loss: str, mean_loss: float) -> RelativeFlatness:
    """A result with a value."""
    return RelativeFlatness(
        value=value,
        stderr=0.0,
        layer="output",
        loss=loss,
        curvature="hessian",
        method="exact",
        normalize=None,
        statistic="trace",
        n_samples=100,
        n_features=64,
        mean_loss=mean_loss,
        gradient_norm=0.0,
    )


def make_scores(kappa: float, kappa_ce: float, loss: float, gap: float) -> Scores:
    """Scores with noise around a held-out loss that is the same for all models."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=N_HELD_OUT)
    own = np.random.default_rng(int(kappa)).normal(scale=0.01, size=N_HELD_OUT)
    hits = np.arange(N_HELD_OUT) < 0.9 * N_HELD_OUT
    return Scores(
        flatness=flatness(kappa, FLATNESS_LOSS, 1.0),
        flatness_of_training_loss=flatness(kappa_ce, "cross_entropy", loss),
        held_out_losses=loss + gap + noise + own - own.mean() - noise.mean(),
        held_out_hits=hits,
    )


def make_demo(gaps, *, losses=None, accuracies=None, path=None) -> Demo:
    """A demo whose candidates have rising kappa and the given gaps."""
    config = Config(training_loss=0.05)
    n = len(gaps)
    losses, accuracies = losses or [0.05] * n, accuracies or [0.9] * n
    params = {"net__optimizer": torch.optim.SGD, "net__batch_size": 8}
    candidates = [
        Candidate(
            params={**params, "net__lr": 0.1 * (i + 1)},
            cv_accuracy=accuracies[i],
            cv_flatness=100.0 * (i + 1),
            scores=make_scores(100.0 * (i + 1), 10.0, losses[i], gaps[i]),
        )
        for i in range(n)
    ]
    accurate = [i for i in range(n) if accuracies[i] >= max(accuracies) - config.tol]
    both = flatness(100.0, FLATNESS_LOSS, 1.0), flatness(12.8, "cross_entropy", 0.05)
    return Demo(
        config=config,
        n_held_out=N_HELD_OUT,
        candidates=candidates,
        chosen=accurate[0],
        layers={"output": both},
        path=path or {0.1: make_scores(1, 2, 0.5, 0.1), 1.0: make_scores(2, 3, 0, 0.2)},
        seconds=1.0,
    )


def words(demo: Demo) -> str:
    """The report in one line, with single spaces."""
    return " ".join(report(demo).split())


RISING = [0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.24, 0.26, 0.28]
ZIGZAG = [0.1, 0.2, 0.11, 0.19, 0.12, 0.18, 0.13, 0.17, 0.14, 0.1]


@pytest.mark.parametrize(
    ("gaps", "verdict", "relation"),
    [
        (RISING, "has a lower loss on new data", "the sharper, the larger"),
        (RISING[::-1], "has a HIGHER loss on new data", "the sharper, the smaller"),
        (ZIGZAG, "do not clearly differ in their loss on new data", "no clear"),
    ],
    ids=["as hoped", "against the hope", "unclear"],
)
def test_words_follow_the_numbers(gaps, verdict, relation):
    text = words(make_demo(gaps))
    assert verdict in text
    line = re.search(r"kappa and the gap in the loss ([+-][\d.]+) \((.*?)\) (.*)", text)
    assert float(line[1]) == pytest.approx(
        spearmanr(range(10), gaps).statistic, abs=0.005
    )
    assert line[3].startswith(relation)


def test_table_of_pairs():
    table = report(make_demo(RISING)).split("2. Did")[1]
    assert re.search(r"A minus C +-0\.1800 \+- 0\.00\d\d +lower", table)
    assert re.search(r"A minus C .* \+0\.0000 \+- 0\.0000 +unclear", table)
    # Here A is the most accurate, too.
    assert "A minus B" not in table


def test_accuracy_comes_before_flatness():
    demo = make_demo(RISING, accuracies=[0.5, *[0.9] * 4, *[0.8] * 5])
    text = report(demo)
    rows = re.findall(r"^  ([A-D]+) +SGD ([\d.]+)", text, re.M)
    # Flattest of the accurate, sharpest of them, sharpest of all; not the first one.
    assert rows == [("AB", "0.2"), ("C", "0.5"), ("D", "1")]
    assert "A is the flattest accurate one (of 4)" in text


def test_the_smallest_smoothed_risk_is_one_of_the_roles():
    demo = make_demo(RISING)
    assert "E is the" not in report(demo)
    candidates = [
        replace(c, scores=replace(c.scores, smoothed_risk=abs(i - 6) + 0.5))
        for i, c in enumerate(demo.candidates)
    ]
    path = {
        C: replace(scores, smoothed_risk=1.0 / C) for C, scores in demo.path.items()
    }
    text = report(replace(demo, candidates=candidates, path=path))
    assert "E is the one with the smallest smoothed risk of all" in text
    assert re.search(r"^  E +SGD 0\.7", text, re.M)
    assert re.search(r"A minus E +-0\.12", text)
    flat = " ".join(text.split())
    assert "The smoothed risk is smallest at C = 1, the loss on new data" in flat


def test_one_accurate_candidate():
    text = words(make_demo(RISING, accuracies=[0.95, *[0.9] * 9]))
    assert "Only one candidate is accurate: there was nothing to choose." in text


def test_one_candidate_for_all_roles():
    text = report(make_demo([0.1]))
    assert "A is every one of them" in text


def test_nets_that_did_not_arrive_are_left_out():
    text = words(make_demo(RISING, losses=[0.05] * 9 + [0.3]))
    assert "the 9 nets that end at a training loss of 0.05 (1 did not get" in text
    text = words(make_demo(RISING, losses=[0.05] * 7 + [0.3] * 3))
    assert "No rank correlation over the 7 nets" in text
    assert "they are too few" in text


@pytest.mark.parametrize(
    ("kappas", "gaps", "says"),
    [
        ([1.0, 9.0, 2.0], [0.1, 0.2, 0.3], True),
        ([1.0, 9.0, 2.0], [0.1, 0.3, 0.2], False),
        ([1.0, 2.0, 9.0], [0.1, 0.2, 0.3], False),
    ],
    ids=["falls while the gap grows", "gap falls too", "kappa rises"],
)
def test_over_confidence_is_only_called_out_where_it_is(kappas, gaps, says):
    path = {
        10.0**i: make_scores(10 * (i + 1), kappas[i], 0.1**i, gaps[i]) for i in range(3)
    }
    text = words(make_demo(RISING, path=path))
    assert ("over-confident" in text) == says
    rho = spearmanr(kappas, gaps).statistic
    assert f"{rho:+.2f} for kappa CE" in text


def test_rise_of_the_loss():
    # delta = 0.1, m = 64 inputs and kappa = 12.8 give 0.01 / 128 times 12.8.
    assert re.search(r"output +64 +100 +12\.8 +0\.00100", report(make_demo(RISING)))


def test_introduction_names_versions_and_seed():
    text = introduction(Config(seed=7))
    assert "seed 7" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "18 ways" in text


# Statistics


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=30), rng.integers(4, size=30)
    rho, low, high = spearman(x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert low < rho < high
    assert spearman(x, y) == (rho, low, high)
    assert spearman(x, np.ones(30)) == (0, 0, 0)


def test_spearman_interval_covers():
    # Normal pairs with correlation r have the rank correlation 6/pi * asin(r/2).
    r, n_trials, covered = 0.5, 60, 0
    truth = 6 / np.pi * np.arcsin(r / 2)
    rng = np.random.default_rng(0)
    for _ in range(n_trials):
        x, y = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=40).T
        _, low, high = spearman(x, y)
        covered += low <= truth <= high
    # Three standard errors of a share of 60 trials.
    assert covered / n_trials >= 0.86


@pytest.mark.parametrize(
    ("mean", "error", "sign"),
    [(0.3, 0.1, 1), (-0.3, 0.1, -1), (0.2, 0.1, 0), (0, 0, 0)],
)
def test_clear_sign(mean, error, sign):
    assert clear_sign(mean, error) == sign


# The figure


def test_figure_shows_every_candidate():
    demo = make_demo(RISING, accuracies=[0.5, *[0.9] * 4, *[0.8] * 5])
    left, right = make_figure(demo).axes
    points = np.hstack([bars.lines[0].get_data() for bars in left.containers])
    expected = [(c.scores.flatness.value, c.scores.gap) for c in demo.candidates]
    np.testing.assert_allclose(sorted(zip(*points, strict=True)), sorted(expected))
    bars = [
        bar for group in left.containers for bar in group.lines[2][0].get_segments()
    ]
    half = [c.scores.gap_stderr for c in demo.candidates]
    lengths = [bar[1, 1] - bar[0, 1] for bar in bars]
    np.testing.assert_allclose(sorted(lengths), sorted(2 * np.array(half)), atol=1e-12)
    assert {text.get_text() for text in left.texts} == {"AB", "C", "D"}
    gaps = [scores.gap for scores in demo.path.values()]
    for curve in right.containers:
        assert curve.lines[0].get_ydata() == pytest.approx(gaps)
    assert left.get_ylabel()
    assert left.get_ylim() == right.get_ylim()
    for ax in (left, right):
        assert ax.get_xlabel()
        assert ax.get_legend() is not None


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert save_figure(make_demo(RISING), tmp_path / "figure.png") == MISSING
    assert not list(tmp_path.iterdir())
