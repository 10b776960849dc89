"""datamodules/base.py: chance_loss, against scikit-learn's dummy predictors."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import log_loss, mean_squared_error

from datamodules.errors import DataError
from datamodules.hw1_covid import CovidData
from datamodules.hw4_speaker import SpeakerData


@pytest.mark.parametrize("cls", [CovidData, SpeakerData])
def test_chance_is_what_a_predictor_without_input_reaches(cls, tmp_path):
    cls.sample(tmp_path)
    data = cls(dir=str(tmp_path))
    data.setup("fit")
    y = data.labels(data.chosen_folds()[0].train)[1]
    x = np.zeros((len(y), 1))
    if cls is CovidData:
        expected = mean_squared_error(y, DummyRegressor().fit(x, y).predict(x))
    else:
        expected = log_loss(y, DummyClassifier(strategy="prior").fit(x, y).predict_proba(x))
    assert data.chance_loss() == pytest.approx(expected, rel=1e-5)


def test_a_root_that_holds_the_files_themselves_or_under_other_names_names_data_dir(tmp_path):
    """As on Kaggle: /kaggle/input/<competition>/covid.train.csv."""
    competition = tmp_path / "ml2022spring-hw1"
    CovidData.sample(competition)
    for root in (competition, tmp_path):
        with pytest.raises(DataError, match=r"--data\.dir"):
            CovidData(root=str(root)).locate()
    assert CovidData(dir=str(competition)).locate() == competition
