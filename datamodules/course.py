"""What the course published: its baselines on the public leaderboards, and the addresses of its files."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError
from datamodules.files.download import RemoteFile, google_drive
from datamodules.files.download import fetch as fetch_files


class Baselines(NamedTuple):
    """Public leaderboard scores of one edition, which is recognised by the size of its training files."""

    edition: str
    size: Hashable
    metric: str
    levels: dict[str, float]

    def place(self, score: float) -> str:
        """Between which baselines a score is, in the edition's own metric.

        Args:
            score: As `HomeworkData.score` gives it: of HW1 always the mean squared error.
        """
        better = -1 if self.metric in ("MSE", "RMSE") else 1
        own = math.sqrt(score) if self.metric == "RMSE" else score
        passed = [level for level, value in self.levels.items() if better * own >= better * value]
        missed = [level for level in self.levels if level not in passed]
        where = [f"passes {passed[-1]}"] if passed else []
        where += [f"does not reach {missed[0]} ({self.levels[missed[0]]})"] if missed else []
        return f"{self.metric} {own:.4g} {', '.join(where)}"


BASELINES: dict[str, list[Baselines]] = {
    "hw1_covid": [  # states and days
        Baselines("2021", (40, 3), "RMSE", {"simple": 2.03004, "medium": 1.28359, "strong": 0.88017}),
        Baselines("2022", (37, 5), "MSE", {"simple": 2.28371, "medium": 1.49430, "strong": 1.05728, "boss": 0.86161}),
        Baselines("2023", (34, 3), "MSE", {"simple": 1.96993, "medium": 1.15678, "strong": 0.92619, "boss": 0.81456}),
    ],
    "hw2_phoneme": [  # labelled frames
        Baselines("2021", 1_229_932, "frame accuracy", {"simple": 0.68334, "strong": 0.76023}),
        Baselines(
            "2022", 2_644_158, "frame accuracy",
            {"simple": 0.45797, "medium": 0.69747, "strong": 0.75028, "boss": 0.82324},
        ),
        Baselines(
            "2023", 2_116_794, "frame accuracy",
            {"simple": 0.49798, "medium": 0.66440, "strong": 0.74944, "boss": 0.83017},
        ),
    ],
    "hw3_food": [  # labelled training images
        Baselines("2021", 3080, "accuracy", {"simple": 0.44862, "medium": 0.52807, "strong": 0.82138}),
        Baselines("2022", 9866, "accuracy", {"simple": 0.50099, "medium": 0.73207, "strong": 0.81872, "boss": 0.88446}),
        Baselines("2023", 10000, "accuracy", {"simple": 0.637, "medium": 0.700, "strong": 0.814, "boss": 0.874}),
    ],
    "hw4_speaker": [  # labelled utterances; 2023 has the data of 2022
        Baselines("2021", 69_438, "accuracy", {"easy": 0.82523, "medium": 0.90547, "hard": 0.95404}),
        Baselines(
            "2022", 56_666, "accuracy", {"simple": 0.60824, "medium": 0.70375, "strong": 0.77750, "boss": 0.86500}
        ),
        Baselines(
            "2023", 56_666, "accuracy", {"simple": 0.66025, "medium": 0.81750, "strong": 0.88500, "boss": 0.93175}
        ),
    ],
    "hw5_translation": [  # pairs of sentences; 2022 has the data of 2021
        Baselines("2021", 398_066, "BLEU", {"simple": 18.43, "medium": 24.04, "strong": 29.32}),
        Baselines("2022", 398_066, "BLEU", {"simple": 14.58, "medium": 18.04, "strong": 25.20, "boss": 29.13}),
        Baselines("2023", 400_726, "BLEU", {"simple": 15.05, "medium": 18.44, "strong": 23.57, "boss": 30.08}),
    ],
}  # fmt: skip

# files whose checksum is known; the addresses of others stand in docs/
PUBLISHED: dict[str, dict[str, list[RemoteFile]]] = {
    "hw1_covid": {
        "2021": [
            RemoteFile(
                "covid.train.csv",
                "7b70cccab9712a6f6c780eddbdde2484a43c98e1b63b765d64692b8f2ed9225a",
                (google_drive("19CCyCgJrUxtvgZF53vnctJiOJ23T5mqF"),),
            ),
            RemoteFile(
                "covid.test.csv",
                "6b5ba63b3d025889ebe7ee222b23b39d1a0c45761cfb3babfaa20a5ec0dbc051",
                (google_drive("1CE240jLm2npU-tdz81-oVKEF3T2yfT1O"),),
            ),
        ],
        "2022": [
            RemoteFile(
                "covid.train.csv",
                "298378b3db6a233e6cba686533c55844072b7c84e5e2eecf830a9e86a8dce475",
                (google_drive("1kLSW_-cW2Huj7bh84YTdimGBOJaODiOS"),),
            ),
            RemoteFile(
                "covid.test.csv",
                "d7bc0afb67a741638d745efa53dd4f967ca65f1e774957e701ff7822af6a37c3",
                (google_drive("1iiI5qROrAhZn-o4FPqsE97bMzDEFvIdg"),),
            ),
        ],
        "2023": [
            RemoteFile(
                "covid_train.csv",
                "c983dff31c12e67e751f37d98044b516e59d7d40d7c21f491066be2b8fb017fc",
                (
                    google_drive("1BjXalPZxq9mybPKNjF3h5L3NcF7XKTS-"),
                    "https://www.dropbox.com/s/lmy1riadzoy0ahw/covid.train.csv?dl=1",
                ),
            ),
            RemoteFile(
                "covid_test.csv",
                "330aeee0567ac59e756ef0dfb093e02f3a9af5b6291f4b955d283823b33b75c3",
                (
                    google_drive("1B55t74Jg2E5FCsKCsUEkPKIuqaY7UIi1"),
                    "https://www.dropbox.com/s/zalbw42lu4nmhr2/covid.test.csv?dl=1",
                ),
            ),
        ],
    },
    "hw3_food": {
        "2022": [
            RemoteFile(
                "food11.zip",
                "d62dca034fd9f04c38a11ce69b6c2ca02a25c3ce9fb6953644dcc410a0fe02f7",
                ("https://www.dropbox.com/s/6l2vcvxl54b0b6w/food11.zip?dl=1",),
                unpack=True,
            ),
        ],
    },
}


def baselines_of(homework: str, size: Hashable) -> list[Baselines]:
    """The baselines of the editions whose training files have this size; none where none has it."""
    return [known for known in BASELINES[homework] if known.size == size]


def describe_baselines(found: Iterable[Baselines], score: float | None = None) -> list[str]:
    """A line for each edition: its baselines, and between which of them a score is.

    Args:
        found: Baselines of one homework.
        score: As `HomeworkData.score` gives it; None: there is none yet.
    """
    return [
        f"{known.edition}, {known.metric}: {'  '.join(f'{level} {value}' for level, value in known.levels.items())} "
        "(on the course's own hidden test set)" + ("" if score is None else f"; here {known.place(score)}")
        for known in found
    ]


def fetch(homework: str, folder: Path, edition: str | None = None) -> list[Path]:
    """Download one edition, or all whose checksums are known, into folder/<edition>; returns the files.

    Raises:
        DataError: the edition is not known, or what datamodules/files/download.py says.
    """
    known = PUBLISHED[homework]
    if edition is not None and edition not in known:
        raise DataError(f"no edition {edition!r} of {homework} can be fetched, only {', '.join(known)}")
    years = [edition] if edition else known
    return fetch_files([replace(file, name=f"{year}/{file.name}") for year in years for file in known[year]], folder)
