"""HW3 from the command line: fit, test, predict, kfold and bad images, on a generated set and a small network."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import assert_fails, works
from PIL import Image

from datamodules.generated import write_food

pytestmark = pytest.mark.slow

EXPERIMENT = """\
model:
  class_path: FoodClassifier
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.003}}
    net: {class_path: modules.nets.resnet.ResNet, init_args: {blocks: [1, 1, 1], width: 8}}
    label_smoothing: 0.1
data:
  class_path: FoodData
  init_args:
    image_size: 24
    augment:
      - {class_path: torchvision.transforms.v2.RandomHorizontalFlip}
      - {class_path: torchvision.transforms.v2.RandomCrop, init_args: {size: 24, padding: 2}}
    batch_size: 16
    tta: 2
trainer:
  max_epochs: 5
  callbacks:
    - {class_path: EMAWeightAveraging, init_args: {decay: 0.9}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    write_food(root / "hw3_food" / "sample")
    (root / "food.yaml").write_text(EXPERIMENT)
    return root


@pytest.fixture(scope="module")
def food_run(root, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "food"
    works("fit", "--config", root / "food.yaml", "--data.root", root, "--run_dir", run)
    return run


def lines(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_fit_test_and_predict(food_run, root, tmp_path):
    assert json.loads((food_run / "scores.json").read_text())["best val/accuracy"] > 0.3  # chance: 1 of 11
    said = works("test", "--run_dir", food_run)
    assert "held-out" in said.out
    # on another machine: the checkpoint, and a folder of test images alone
    alone = tmp_path / "alone"
    shutil.copytree(root / "hw3_food" / "sample" / "test", alone / "hw3_food" / "test")
    shutil.copy(food_run / "checkpoints" / "best.ckpt", tmp_path / "best.ckpt")
    for ckpt, data in ((food_run / "checkpoints" / "best.ckpt", root), (tmp_path / "best.ckpt", alone)):
        works("predict", "--ckpt_path", ckpt, "--data.root", data, "--output", tmp_path / f"{data.name}.csv")
    here, there = lines(tmp_path / f"{root.name}.csv"), lines(tmp_path / "alone.csv")
    assert here == there
    assert here[0] == ["Id", "Category"]
    assert [row[0] for row in here[1:]] == [f"{n:04d}" for n in range(1, 45)]
    assert {int(row[1]) for row in here[1:]} <= set(range(11))


def test_labelled_test_images_are_scored(food_run, root, tmp_path):
    """The original Food-11: evaluation/<class>_<n>.jpg. The images are those held out, so the score is theirs."""
    shutil.copytree(root / "hw3_food" / "sample" / "validation", tmp_path / "hw3_food" / "evaluation")
    said = works("test", "--run_dir", food_run, "--data.root", tmp_path, "--data.tta", 0)
    assert "66 test images whose names carry their class" in said.out
    best = torch.load(food_run / "checkpoints" / "best.ckpt", weights_only=True)
    (score,) = [c["current_score"] for k, c in best["callbacks"].items() if "Checkpoint" in k and "current_score" in c]
    assert json.loads((food_run / "scores.json").read_text())["test/accuracy"] == pytest.approx(float(score), abs=1e-4)


@pytest.mark.usefixtures("pictures")
def test_pictures_of_a_test(food_run):
    works("test", "--run_dir", food_run)
    names = {path.stem for path in (food_run / "figures").glob("test_*.png")}
    assert names == {
        f"test_{n}"
        for n in (
            "confusion",
            "class_accuracy",
            "features",
            "first_filters",
            "worst_mistakes",
            "grad_cam",
        )
    }
    for path in (food_run / "figures").glob("test_*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100


def test_kfold_predicts_every_image_once_and_averages_the_test_set(root, tmp_path):
    run = tmp_path / "folds"
    args = ["--config", root / "food.yaml", "--data.root", root, "--folds", 2, "--run_dir", run]
    said = works("kfold", *args, "--trainer.max_epochs", 2)
    table = lines(run / "out_of_fold.csv")
    assert table[0] == ["id", "fold", "true", "predicted"]
    assert len({row[0] for row in table[1:]}) == len(table) - 1 == 264 + 66
    right = sum(row[2] == row[3] for row in table[1:]) / (len(table) - 1)
    assert json.loads((run / "scores.json").read_text())["kfold accuracy"] == pytest.approx(right, abs=1e-3)
    assert "fold_1" in {p.name for p in run.iterdir()}
    assert len(lines(run / "submission.csv")) == 45
    assert "accuracy" in said.out


# bad data


@pytest.fixture
def copy(root, tmp_path):
    return Path(shutil.copytree(root / "hw3_food" / "sample", tmp_path / "data" / "hw3_food")).parent


def damage_truncated(folder):
    path = folder / "training" / "3_4.jpg"
    path.write_bytes(path.read_bytes()[:200])
    return ["3_4.jpg"]


def damage_no_class(folder):
    (folder / "training" / "dinner.jpg").write_bytes((folder / "training" / "3_4.jpg").read_bytes())
    return ["dinner.jpg"]


def damage_hole(folder):
    for path in (folder / "training").glob("5_*.jpg"):
        path.unlink()
    return ["5"]


def damage_other_class(folder):
    (folder / "validation" / "3_0.jpg").rename(folder / "validation" / "17_0.jpg")
    return ["17_0.jpg"]


def damage_no_validation_or_training(folder):
    shutil.rmtree(folder / "training")
    shutil.rmtree(folder / "validation")
    return ["training"]


@pytest.mark.parametrize(
    "damage", [damage_truncated, damage_no_class, damage_hole, damage_other_class, damage_no_validation_or_training]
)
def test_bad_data_is_named_in_one_line(damage, root, copy, tmp_path):
    says = damage(copy / "hw3_food")
    line = ["fit", "--config", root / "food.yaml", "--data.root", copy, "--data.bad_images", "refuse"]
    assert_fails(tmp_path, *line, "--run_dir", tmp_path / "run", says=says)


def test_a_zip_alone_says_how_to_unpack_it(root, copy, tmp_path):
    shutil.make_archive(str(tmp_path / "zips" / "hw3_food" / "food"), "zip", copy / "hw3_food")
    says = ["food.zip", "leeml data prepare hw3_food --source"]
    assert_fails(tmp_path, "fit", "--config", root / "food.yaml", "--data.root", tmp_path / "zips", says=says)
    works("data", "prepare", "hw3_food", "--source", tmp_path / "zips" / "hw3_food" / "food.zip", tmp_path / "new")
    assert (tmp_path / "new" / "hw3_food" / "food" / "training").is_dir()


def test_a_root_that_holds_the_files_itself_is_told_apart_from_one_that_is_not_there(root, copy, tmp_path):
    line = ["fit", "--config", root / "food.yaml", "--run_dir", tmp_path / "run", "--data.root"]
    assert_fails(tmp_path, *line, copy / "hw3_food", says=["--data.dir"])
    assert_fails(tmp_path, *line, tmp_path / "nowhere", says=["no such folder"])


def test_photos_of_ones_own(root, tmp_path):
    """A folder a class and no validation part; the answers go by file name."""
    place = tmp_path / "hw3_food"
    for path in sorted((root / "hw3_food" / "sample" / "training").iterdir()):
        kind = {"0": "蛋餅", "1": "beef noodles", "2": "$5 rice"}.get(path.stem.split("_")[0])
        if kind:
            (place / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / kind / f"{path.stem}.JPG")
    (place / "test").mkdir()
    for n in (1, 2):
        shutil.copy(root / "hw3_food" / "sample" / "test" / f"{n:04d}.jpg", place / "test" / f"holiday{n}.jpg")
    run = tmp_path / "run"
    works("fit", "--config", root / "food.yaml", "--data.root", tmp_path, "--run_dir", run, "--trainer.max_epochs", 2)
    works("predict", "--run_dir", run)
    table = lines(run / "submission.csv")
    assert [row[0] for row in table] == ["Id", "holiday1.jpg", "holiday2.jpg"]
    assert {row[1] for row in table[1:]} <= {"蛋餅", "beef noodles", "$5 rice"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model.net", "torchvision.models.resnet19"], ["model.net", "class or function", "resnet19"]),
        (["--data.augment", "null"], ["data.tta is 2"]),
        (["--data.folds", "50"], ["too few to cut into data.folds = 50"]),
    ],
)
def test_mistakes_on_the_line(root, tmp_path, flags, says):
    line = ["fit", "--config", root / "food.yaml", "--data.root", root, "--run_dir", tmp_path / "run", *flags]
    assert_fails(tmp_path, *line, says=says)
