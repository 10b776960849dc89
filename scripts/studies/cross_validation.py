"""Choosing a model: N folds against one split, and a public leaderboard that is looked at too often."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datamodules.hw1_covid import CovidData
from scripts.studies.lab.evidence import Finding, Measurements, Study, Table, across, effect, mean_and_spread


@dataclass(frozen=True)
class Settings:
    """Rows to choose with, folds, candidates (numbers of features), repeats a seed; submissions and public rows."""

    used_rows: int = 120
    folds: int = 5
    features: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 18, 26, 38, 55, 80)
    ridge: float = 1e-3
    repeats: int = 40
    submissions: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    public_rows: int = 200
    edition: str | None = None


def squared_errors(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], count: int, ridge: float
) -> np.ndarray:
    """Errors (N,) on test rows of linear regression on the `count` features that correlate most in training."""
    x, y = train
    centred, scale = x - x.mean(0), x.std(0) + 1e-9
    z, target = centred / scale, y - y.mean()
    used = np.argsort(-np.abs(z.T @ target), kind="stable")[:count]
    weights = np.linalg.solve(z[:, used].T @ z[:, used] + ridge * len(z) * np.eye(len(used)), z[:, used].T @ target)
    said = ((test[0] - x.mean(0)) / scale)[:, used] @ weights + y.mean()
    return (said - test[1]) ** 2


def fold_errors(x: np.ndarray, y: np.ndarray, folds: int, features: tuple[int, ...], ridge: float) -> np.ndarray:
    """Mean squared error on the held-out part, (folds, candidates)."""
    part = np.arange(len(y)) % folds
    return np.array(
        [
            [
                squared_errors((x[part != k], y[part != k]), (x[part == k], y[part == k]), count, ridge).mean()
                for count in features
            ]
            for k in range(folds)
        ]
    )


def leaderboard(
    y: np.ndarray, public: int, submissions: tuple[int, ...], rng: np.random.Generator
) -> tuple[list[float], list[float]]:
    """Public and private error of the submission that is best in public, by how many there were.

    All are equally good: the truth with noise of their own, as wide as the truth's spread is a tenth of.
    """
    count = max(submissions)
    errors = (0.1 * y.std() * rng.standard_normal((count, len(y)))) ** 2
    seen, hidden = errors[:, :public].mean(1), errors[:, public:].mean(1)
    best = [int(seen[:n].argmin()) for n in submissions]
    typical = float(hidden.mean())
    return [float(seen[i]) / typical for i in best], [float(hidden[i]) / typical for i in best]


def run(settings: Settings, seed: int, root: Path) -> Measurements:
    """Regret of both ways to choose, averaged over random draws of rows; and the leaderboard's best submission."""
    data = CovidData(str(root), edition=settings.edition)
    data.setup("fit")
    table = data.train
    assert table is not None
    assert table.target is not None
    rng = np.random.default_rng(seed)
    regret: dict[str, list[float]] = {"one split": [], "folds": []}
    curves = []
    for _ in range(settings.repeats):
        order = rng.permutation(len(table.target))
        used, rest = order[: settings.used_rows], order[settings.used_rows :]
        x, y = table.values[used], table.target[used]
        test = table.values[rest], table.target[rest]
        truth = np.array([squared_errors((x, y), test, n, settings.ridge).mean() for n in settings.features])
        held_out = fold_errors(x, y, settings.folds, settings.features, settings.ridge)
        for name, score in {"one split": held_out[0], "folds": held_out.mean(0)}.items():
            regret[name].append(float(truth[score.argmin()] / truth.min() - 1))
        curves.append(np.stack([truth, held_out[0], held_out.mean(0)]))
    public, private = leaderboard(table.target, settings.public_rows, settings.submissions, rng)
    return {
        "features": list(settings.features),
        "curves": np.mean(curves, axis=0).tolist(),
        "spread": np.std(curves, axis=0).tolist(),
        "one split": float(np.mean(regret["one split"])),
        "folds": float(np.mean(regret["folds"])),
        "submissions": list(settings.submissions),
        "public": public,
        "private": private,
    }


def judge(measurements: list[Measurements]) -> list[Finding]:
    """One per cent of the error counts as a difference in the choice, five per cent on the leaderboard."""
    better = across(measurements, "one split") - across(measurements, "folds")
    gap = across(measurements, "private") - across(measurements, "public")
    most = measurements[0]["submissions"][-1]
    return [
        effect("a model chosen by folds has less error on other rows than one chosen by one split (share of the best "
               "candidate's)", better.tolist(), 0.01),
        effect(f"the best of {most} equal submissions is worse in private than in public (share)",
               gap[:, -1].tolist(), 0.05),
        effect("and the gap grows with their number (share)", (gap[:, -1] - gap[:, 0]).tolist(), 0.05),
    ]  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """How steady both estimates are, and the leaderboard."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    features = measurements[0]["features"]
    curves, spread = across(measurements, "curves").mean(0), across(measurements, "spread").mean(0)
    for row, (name, colour) in enumerate((("other rows", "black"), ("one split", "tab:orange"), ("folds", "tab:blue"))):
        left.plot(features, curves[row], color=colour, label=name)
        left.fill_between(features, curves[row] - spread[row], curves[row] + spread[row], color=colour, alpha=0.12)
    left.set(xscale="log", xlabel="features in the model", ylabel="mean squared error",
             title="bands: deviation over draws of rows")  # fmt: skip
    left.set_ylim(0, 1.5 * float(np.quantile(curves + spread, 0.8)))
    left.legend()
    for name in ("public", "private"):
        values = across(measurements, name)
        right.errorbar(measurements[0]["submissions"], values.mean(0), values.std(0), fmt="o-", capsize=3, label=name)
    right.set(xscale="log", xlabel="submissions, all equally good", ylabel="error of the best in public (1: all)")
    right.legend()
    return drawn


def table(measurements: list[Measurements]) -> Table:
    """Regret, and the leaderboard's two ends."""
    public, private = across(measurements, "public"), across(measurements, "private")
    rows = [
        ["error above the best candidate's, chosen by one split", mean_and_spread(across(measurements, "one split"))],
        ["the same, chosen by folds", mean_and_spread(across(measurements, "folds"))],
    ]
    for i, count in enumerate(measurements[0]["submissions"]):
        if i in (0, len(measurements[0]["submissions"]) - 1):
            rows.append([f"public error of the best of {count}", mean_and_spread(public[:, i])])
            rows.append(["its private error", mean_and_spread(private[:, i])])
    return ["quantity", "mean over seeds"], rows


STUDY = Study(
    number=6,
    heading="N-fold Cross Validation",
    chinese="N 折交叉驗證",
    claim="The average over N folds chooses a better model than one split does, and choosing by a public leaderboard "
    "over many submissions overfits it.",
    source="Lecture 2 of 2021; Stone 1974, JRSS-B; Kohavi 1995, IJCAI; Blum and Hardt 2015, ICML",
    idea="One held-out part is small, so its error is a noisy guess; N parts in turn use every row. The more "
    "candidates are compared on the same rows, the more the best of them is only the luckiest: submissions that are "
    "all equally good show it purely.",
    formula="choose argmin<sub>m</sub> (1/N) Σ<sub>k</sub> L<sub>k</sub>(m)",
    varies="one split or the mean of 5 folds, among linear models of 1 to 80 features on 120 rows of HW1; number of "
    "submissions",
    code=("datamodules/hw1_covid.py:CovidData.split", "scripts/kfold.py:main"),
    quick=Settings(),
    full=Settings(repeats=200, edition="2021"),
    run=run,
    judge=judge,
    figure=figure,
    table=table,
    data="hw1_covid",
    seeds=5,
)
