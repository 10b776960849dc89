"""Choosing a model: N folds against one split, and a public leaderboard that is looked at too often."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datamodules.hw1_covid import CovidData
from scripts.studies.lab.statements import Measurements, Said, Statement
from scripts.studies.lab.study import Study, Table, across, mean_and_spread


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


def steadier(found: Measurements) -> float:
    """How much wider one split's estimates spread over draws of rows than those of folds: median over candidates."""
    _, split, folds = np.array(found["spread"])
    return float(np.median(split / folds))


STATEMENTS = (
    Statement(
        Said(
            "The average over five folds is a steadier estimate of a model's error than one split of the same rows.",
            "同樣的資料，五折平均估出來的誤差比只切一次穩定。",
        ),
        steadier, 1.2, Said("times as much spread with one split", "倍的離散程度（只切一次）"), "ratio",
    ),
    Statement(
        Said(
            "A model that is chosen by folds has less error on other rows than one that is chosen by one split.",
            "用五折選出來的模型，在其他資料上的誤差比只切一次選出來的小。",
        ),
        lambda found: found["one split"] - found["folds"], 0.01,
        Said("percentage points of the best candidate's error", "個百分點（以最佳候選的誤差為 100）"), "share",
    ),
    Statement(
        Said(
            "Of many equally good submissions, the one that is best in public is worse in private.",
            "許多同樣好的提交檔中，公開排行榜上最好的那一個，到了私有排行榜就變差。",
        ),
        lambda found: found["private"][-1] - found["public"][-1], 0.05,
        Said("percentage points of the usual error", "個百分點（以平常的誤差為 100）"), "share",
    ),
    Statement(
        Said(
            "The more submissions there are, the larger is this difference.",
            "提交的次數越多，這個差距越大。",
        ),
        lambda found: (found["private"][-1] - found["public"][-1]) - (found["private"][0] - found["public"][0]), 0.05,
        Said("percentage points more than with a single one", "個百分點（與只提交一次相比）"), "share",
    ),
)  # fmt: skip


def figure(measurements: list[Measurements]) -> Figure:
    """How steady both estimates are, and the leaderboard."""
    drawn = Figure(figsize=(8, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    features = measurements[0]["features"]
    curves, spread = across(measurements, "curves").mean(0), across(measurements, "spread").mean(0)
    for row, (name, colour) in enumerate((("other rows", "black"), ("one split", "tab:orange"), ("folds", "tab:blue"))):
        left.plot(features, curves[row], color=colour, label=name)
        left.fill_between(features, curves[row] - spread[row], curves[row] + spread[row], color=colour, alpha=0.12)
    left.set(xscale="log", xlabel="features in the model", ylabel="mean squared error (percent squared)")
    left.set_title("error, and estimates of it")
    left.set_ylim(0, 1.5 * float(np.quantile(curves + spread, 0.8)))
    left.legend()
    for name in ("public", "private"):
        values = 100 * across(measurements, name)
        right.errorbar(measurements[0]["submissions"], values.mean(0), values.std(0), fmt="o-", capsize=3, label=name)
    right.set(xscale="log", xlabel="submissions, all equally good", ylabel="error (the usual one is 100)")
    right.set_title("the best in public")
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
    heading=Said("N-fold Cross Validation", "N 折交叉驗證"),
    lecture=Said(
        "Rows that are held out tell which model is best, but one small held-out part gives a noisy answer. N-fold "
        "cross validation holds out each of N parts in turn and takes the mean of the N errors, so that every row is "
        "used. Do not choose by the public leaderboard: who looks at it often enough finds the luckiest submission, "
        "not the best one.",
        "留出一部分資料，就能看出哪個模型最好；但留出的資料太少時，答案很不穩定。N 折交叉驗證輪流留出 N 份，"
        "取 N 個誤差的平均，每一筆資料都用到。"
        "不要看公開排行榜（public leaderboard）來選：看得夠多次，選到的只是運氣最好的提交檔，不是最好的。",
    ),
    formula="choose argmin<sub>m</sub> (1/N) Σ<sub>k</sub> L<sub>k</sub>(m)",
    varies=Said(
        "Linear models of 1 to 80 features on 120 rows of HW1, chosen by the mean of five folds or by the first of "
        "them alone; and the number of submissions, which are all equally good: the truth with noise.",
        "在 HW1 的 120 筆資料上，從用 1 到 80 個特徵的線性模型中選一個：用五折的平均，或只用第一折。"
        "另外改變提交的次數，"
        "所有提交檔都一樣好：正確答案加上雜訊。",
    ),
    caption=Said(
        "Left: error on other rows, which the one who chooses cannot see, and what one split and five folds say of it; "
        "the bands show the spread over draws of the rows. Right: error of the submission that is best in public.",
        "左：在其他資料上的誤差（選模型的人看不到），以及只切一次和五折的估計；色帶是換一批資料時的離散程度。"
        "右：公開排行榜上最好的提交檔的誤差。",
    ),
    doubt=Said(
        "Folds cost N fits. With thousands of rows one split is steady enough, and the choice is as good. Real "
        "submissions are alike, so a real leaderboard is overfitted more slowly than these independent ones.",
        "N 折要訓練 N 次。資料有幾千筆時，只切一次就夠穩定，選得一樣好。真正的提交檔彼此相似，"
        "所以對排行榜過擬合的速度比這裡慢。",
    ),
    again=(
        "leeml kfold --config configs/hw1_covid/medium.yaml",
        Said("HW1's net on five folds, and the ensemble of all five.", "用五折訓練 HW1 的網路，再把五個模型合起來。"),
    ),
    source="Lecture 2 of 2021; Stone 1974, JRSS-B; Kohavi 1995, IJCAI; Blum and Hardt 2015, ICML",
    code=("datamodules/hw1_covid.py:CovidData.split", "scripts/kfold.py:main"),
    quick=Settings(),
    full=Settings(repeats=100, edition="2021"),
    run=run,
    statements=STATEMENTS,
    figure=figure,
    table=table,
    data="hw1_covid",
    full_looks=(4, 8, 16),
)
