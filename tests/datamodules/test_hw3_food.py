"""FoodData: what is held out, what a batch holds, noise by seed, epoch, image and draw alone, the file of answers."""

import pickle
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from food_files import SIZE, write_image, write_set
from torchvision.transforms import v2

from datamodules.errors import DataError
from datamodules.hw3_food import FoodData
from datamodules.images.rows import Pictures, varied

CPU = SimpleNamespace(root_device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEEML_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "food")


def food(folder, stage="fit", **options):
    data = FoodData(dir=str(folder), **({"image_size": SIZE, "batch_size": 8} | options))
    data.setup(stage)
    return data


def jitter():
    return [v2.RandomResizedCrop(12), v2.TrivialAugmentWide(), v2.RandomErasing(0.5)]


def epoch_of(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_row(batches):
    return {int(r): x for batch in batches for r, x in zip(batch["row"], batch["x"], strict=True)}


# splits


def test_course_split_holds_the_validation_folder_out(folder):
    data = food(folder)
    (fold,) = data.split()
    names, y = data.labels(fold.val)
    assert len(fold.train) == 30
    assert len(names) == 12
    assert all(name.startswith("validation/") for name in names)
    assert [int(Path(name).stem.split("_")[0]) for name in names] == y.tolist()


def test_folds_are_stratified_shuffled_and_hold_every_image_out_once(folder):
    data = food(folder, folds=4)
    folds = data.split()
    assert sorted(np.concatenate([fold.val for fold in folds])) == list(range(42))
    for fold in folds:
        assert not set(fold.train) & set(fold.val)
        counts = Counter(data.labels(fold.val)[1].tolist())
        assert set(counts) == {0, 1, 2}
        assert max(counts.values()) - min(counts.values()) <= 1
        assert np.abs(np.diff(np.sort(fold.val))).max() > 1  # no run of neighbours in the class-sorted list
    again, other = food(folder, folds=4).split(), food(folder, folds=4, seed=1).split()
    assert all((a.val == b.val).all() for a, b in zip(folds, again, strict=True))
    assert any(a.val.tolist() != b.val.tolist() for a, b in zip(folds, other, strict=True))


def test_without_a_validation_folder_a_part_is_held_out(folder):
    shutil.rmtree(folder / "validation")
    folds = food(folder).split()
    assert len(folds) == 5
    assert len(folds[0].val) == 6


def test_facts_are_those_of_the_training_images(folder):
    facts = food(folder).facts
    pixels = np.stack([Pictures.__getitem__(p, torch.tensor([r]))[0].numpy()
                       for d in [food(folder)] for p in [d.pictures] for r in d.split()[0].train]) / 255  # fmt: skip
    assert facts["classes"] == facts["keys"] == ["0", "1", "2"]
    np.testing.assert_allclose(facts["mean"], pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(facts["deviation"], pixels.std((0, 2, 3)), rtol=1e-5)
    plain = food(folder, normalise=False).facts
    assert plain["mean"].tolist() == [0, 0, 0]
    assert plain["deviation"].tolist() == [1, 1, 1]


# batches


def test_a_batch_holds_the_images_themselves(folder):
    data = food(folder)
    for batch in epoch_of(data):
        assert batch["x"].dtype == torch.uint8
        assert batch["x"].is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch["x"].permute(0, 2, 3, 1), data.pictures.images[batch["row"]])
        assert batch["y"].tolist() == data.labels(batch["row"].numpy())[1].tolist()
        # grey by class: the pixels belong to the label
        shade = batch["x"].float().mean((1, 2, 3))
        assert ((shade - 40) / 60).round().tolist() == batch["y"].tolist()
    seen = [int(r) for batch in epoch_of(data) for r in batch["row"]]
    assert sorted(seen) == data.split()[0].train.tolist()


def test_noise_is_a_function_of_seed_epoch_image_and_draw_alone(folder):
    base = by_row(epoch_of(food(folder, augment=jitter())))
    assert {tuple(x.shape) for x in base.values()} == {(3, 12, 12)}
    for same in (food(folder, augment=jitter(), batch_size=5), food(folder, augment=jitter(), workers=2)):
        found = by_row(epoch_of(same))
        assert all(torch.equal(base[row], found[row]) for row in base)
    data = food(folder, augment=jitter())
    for other in (by_row(epoch_of(data, epoch=1)), by_row(epoch_of(food(folder, augment=jitter(), seed=1)))):
        assert sum(torch.equal(base[row], other[row]) for row in base) < len(base) / 4


def test_the_networks_noise_does_not_depend_on_the_datas(folder):
    dataset = food(folder, augment=jitter()).train_dataloader().dataset
    state = torch.get_rng_state()
    dataset[(0, torch.tensor([[3, 4]]), torch.zeros(1, 2, dtype=torch.long))]
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_a_batch_are_changed_each_in_its_own_way():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(32, 3, 16, 16)
    seen = varied(x, torch.arange(32)[:, None], v2.RandomResizedCrop(8), 0, 0)
    assert len({image.numpy().tobytes() for image in seen}) > 28


def test_ranks_share_a_batch_with_the_same_noise(folder):
    whole = epoch_of(food(folder, augment=jitter(), batch_size=8))
    shares = []
    for rank in range(2):
        data = food(folder, augment=jitter(), batch_size=8)
        connector = SimpleNamespace(use_distributed_sampler=False)
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=2, _accelerator_connector=connector, lightning_module=None, strategy=CPU
        )
        shares.append(epoch_of(data))
    for batch, *parts in zip(whole, *shares, strict=True):
        one, two = by_row([batch]), by_row(parts)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[row], two[row]) for row in one)


def test_a_last_batch_too_small_for_all_ranks_is_left_out(folder):
    assert len(food(folder, batch_size=29).train_dataloader()) == 1  # 30 images: 29 and 1, which batch norm refuses
    data = food(folder, batch_size=27)
    assert len(data.train_dataloader()) == 2
    connector = SimpleNamespace(use_distributed_sampler=False)
    data.trainer = SimpleNamespace(
        global_rank=1, world_size=2, _accelerator_connector=connector, lightning_module=None, strategy=CPU
    )
    assert [len(batch["row"]) for batch in epoch_of(data)] == [13]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_where_it_stopped(folder, workers):
    data = food(folder, augment=jitter(), workers=workers)
    whole = epoch_of(data, 3)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    fresh = data.train_dataloader()
    fresh.load_state_dict(state)
    fresh.sampler.set_epoch(3)
    rest = list(fresh)
    assert len(rest) == len(whole) - 2
    for a, b in zip(rest, whole[2:], strict=True):
        assert torch.equal(a["row"], b["row"])
        assert torch.equal(a["x"], b["x"])


def test_unlabelled_images_come_in_two_views(folder):
    for n in range(20):
        write_image(folder / "unlabeled" / f"{n:04d}.jpg", 8 * n + 40, 500 + n)
    data = food(folder, augment=[v2.RandomCrop(12)], unlabelled=2, batch_size=6)
    seen = 0
    for batch in epoch_of(data):
        assert batch["x"].shape[0] == len(batch["row"])
        assert batch["weak"].shape == (2 * len(batch["row"]), 3, SIZE, SIZE)
        assert batch["strong"].shape == (2 * len(batch["row"]), 3, 12, 12)
        # the same image on both sides: grey by number
        weak, strong = (batch[view].float().amax((1, 2, 3)) for view in ("weak", "strong"))
        assert (weak - strong).abs().max() < 30
        seen += len(batch["weak"])
    assert seen >= 20


def test_a_labelled_image_drawn_twice_looks_new(folder):
    """The labelled part is the smaller one, so an epoch goes through it several times."""
    for n in range(90):
        write_image(folder / "unlabeled" / f"{n:04d}.jpg", n, 500 + n)
    batches = epoch_of(food(folder, augment=[v2.RandomResizedCrop(12)], unlabelled=1))
    seen = {}
    for batch in batches:
        for row, x in zip(batch["row"].tolist(), batch["x"], strict=True):
            seen.setdefault(row, []).append(x.numpy().tobytes())
    assert {len(views) for views in seen.values()} == {3}
    assert sum(len(set(views)) == 3 for views in seen.values()) > 25  # of 30: two crops may be alike by chance


def test_too_few_unlabelled_images(folder):
    write_image(folder / "unlabeled" / "0.jpg", 99, 1)
    with pytest.raises(DataError, match="1 unlabelled images"):
        food(folder, unlabelled=2)


def test_setup_maps_the_images_instead_of_loading_them(tmp_path):
    """The statistics take a few images at a time."""
    folder = write_set(tmp_path / "many", train=60)
    food(folder, image_size=64)
    tracemalloc.start()
    food(folder, image_size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 192 * 64 * 64 * 3 * 8 / 4, "numpy's share of the memory"


def test_pictures_travel_to_workers_without_their_pixels(folder):
    data = food(folder)
    packed = pickle.dumps(data.pictures)
    assert len(packed) < 1000
    rows = torch.tensor([3, 1])
    assert torch.equal(pickle.loads(packed)[rows], data.pictures[rows])


def test_views_for_test_time_augmentation(folder):
    data = food(folder, "predict", augment=jitter(), tta=3)
    (batch,) = data.predict_dataloader()
    assert batch["views"].shape == (6, 3, 3, 12, 12)
    assert not torch.equal(batch["views"][:, 0], batch["views"][:, 1])
    (again,) = data.predict_dataloader()
    assert torch.equal(batch["views"], again["views"])
    assert "views" not in next(iter(food(folder, augment=jitter(), tta=3).val_dataloader()))


# bad images


def test_a_broken_image_is_named_and_left_out(folder):
    (folder / "training" / "0_3.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"0_3\.jpg"):
        data = food(folder)
    names = data.labels(data.split()[0].train)[0]
    assert len(names) == 29
    assert "training/0_3.jpg" not in names
    assert len([r for batch in epoch_of(data) for r in batch["row"]]) == 29
    with pytest.raises(DataError, match=r"0_3\.jpg"):
        food(folder, bad_images="refuse")


def test_a_broken_test_image_still_has_its_line(folder):
    (folder / "test" / "0002.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"0002\.jpg"):
        data = food(folder, "predict")
    rows = [int(r) for batch in data.predict_dataloader() for r in batch["row"]]
    assert rows == list(range(6))


@pytest.mark.parametrize(("broken", "says"), [("1", "class 1 has 0 images"), ("[012]", "has 0 images")])
def test_a_class_without_a_readable_image_is_an_error(folder, broken, says):
    for path in (folder / "training").glob(f"{broken}_*.jpg"):
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(DataError, match=says):
        food(folder)


def test_validation_images_of_which_none_can_be_read_are_an_error(folder):
    for path in (folder / "validation").iterdir():
        path.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(DataError, match="no validation image"):
        food(folder)


# results


@pytest.mark.parametrize("first", [0, 1])
def test_submission_counts_as_the_edition_does(tmp_path, first):
    data = food(write_set(tmp_path / "food", first=first), "predict")
    header, rows = data.submission(np.eye(3)[[2, 0, 1, 1, 0, 2]])
    assert header == ["Id", "Category"]
    assert rows == [[f"{n + first:04d}", c] for n, c in enumerate([2, 0, 1, 1, 0, 2])]


def test_submission_of_2021_and_of_own_classes(tmp_path):
    for label in range(2):
        for n in range(6):
            write_image(tmp_path / "f" / "training" / "labeled" / f"{label:02d}" / f"{n}.jpg", 99, 10 * label + n)
        write_image(tmp_path / "f" / "training" / "unlabeled" / "00" / f"{label}.jpg", 99, 30 + label)
        write_image(tmp_path / "f" / "testing" / "00" / f"{label:04d}.jpg", 99, 40 + label)
    data = food(tmp_path / "f", "predict")
    assert data.submission(np.eye(2)[[1, 0]])[1] == [["0", 1], ["1", 0]]
    for name in ("pizza", "ramen"):
        for n in range(6):
            write_image(tmp_path / "own" / "train" / name / f"{n}.png", 99, 50 + n)
    write_image(tmp_path / "own" / "test" / "lunch.webp", 99, 70)
    data = food(tmp_path / "own", "predict")
    assert data.submission(np.eye(2)[[1]])[1] == [["lunch.webp", "ramen"]]


def test_a_missing_test_file_does_not_move_the_others(folder):
    (folder / "test" / "0003.jpg").unlink()
    data = food(folder, "predict")
    assert [row[0] for row in data.submission(np.eye(3)[[0] * 5])[1]] == ["0001", "0002", "0004", "0005", "0006"]


def test_ids_are_unique_where_names_are_not(tmp_path):
    for name in ("pizza", "ramen"):
        for part in ("train", "test"):
            for n in range(6):
                write_image(tmp_path / "own" / part / name / f"{n:03d}.png", 99, n)
    data = food(tmp_path / "own", "predict")
    ids = [row[0] for row in data.submission(np.eye(2)[[0] * 12])[1]]
    assert ids == [f"test/{name}/{n:03d}.png" for name in ("pizza", "ramen") for n in range(6)]


def test_a_test_folder_of_one_class_is_labelled_and_a_camera_names_are_not(folder):
    shutil.rmtree(folder / "test")
    for n in range(3):
        write_image(folder / "test" / "1" / f"{n}.jpg", 99, n)
    assert food(folder, "test").test_targets.tolist() == [1, 1, 1]
    shutil.rmtree(folder / "test")
    for n in range(3):
        write_image(folder / "test" / f"20240101_{n}.jpg", 99, n)
    assert food(folder, "predict").test_targets is None


def test_labelled_test_images_are_scored_and_others_not(folder):
    assert "held-out" in food(folder, "test").describe_test()
    for label in range(3):
        for n in range(2):
            write_image(folder / "evaluation" / f"{label}_{n}.jpg", 40 + 60 * label, 700 + n)
    shutil.rmtree(folder / "test")
    data = food(folder, "test")
    batches = list(data.test_dataloader())
    assert [int(y) for batch in batches for y in batch["y"]] == [0, 0, 1, 1, 2, 2]
    assert data.describe_test().startswith("6 test images")


def test_decision_and_score():
    shares = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    data = FoodData()
    assert data.decide(shares).tolist() == [1, 0, 2]
    assert data.score(np.array([1, 1, 2]), data.decide(shares)) == pytest.approx(2 / 3)


def test_one_image_is_drawn_in_many_ways(folder):
    data = food(folder, augment=jitter())
    seen = data.variants(5)
    assert seen.shape == (6, 3, SIZE, SIZE)
    assert torch.equal(seen[0], data.pictures[torch.from_numpy(data.split()[0].train[:1])][0])
    assert len({image.numpy().tobytes() for image in seen}) == 6
    drawn = [axes.images[0].get_array() for axes in data.draw()["augmentations"].axes]
    np.testing.assert_array_equal(np.stack(drawn), seen.permute(0, 2, 3, 1))
    assert food(folder).draw() == {}


# mistakes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tta": 2}, "data.augment is empty"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"workers": -1}, "data.workers"),
        ({"unlabelled": 2}, "no unlabelled images"),
        ({"folds": 99}, "has 14 images to train on"),
        ({"augment": [v2.ToDtype(torch.float32, scale=True)]}, "leave out ToDtype"),
        ({"fold": 1}, "course's own split"),
    ],
)
def test_wrong_options(folder, options, says):
    with pytest.raises(DataError, match=says):
        food(folder, **options)


def test_a_zip_is_found_and_unpacked(folder, tmp_path):
    there = tmp_path / "root" / "hw3_food"
    there.mkdir(parents=True)
    shutil.make_archive(str(there / "pictures"), "zip", folder)
    with pytest.raises(DataError, match="leeml data prepare hw3_food"):
        FoodData(root=str(tmp_path / "root")).setup("fit")
    assert FoodData.prepare(there) == [there / "pictures"]
    FoodData(root=str(tmp_path / "root"), image_size=SIZE).setup("fit")
    with pytest.raises(DataError, match="no zip or tar"):
        FoodData.prepare(tmp_path)


def test_other_classes_or_other_held_out_images_than_the_models_are_refused(folder):
    data = food(folder)
    other = FoodData(dir=str(folder), image_size=SIZE)
    other.expect(data.facts)
    other.setup("test")  # its own
    other.expect(data.facts | {"keys": ["0", "1", "2", "3"]})
    with pytest.raises(DataError, match="classes"):
        other.setup("test")
    changed = FoodData(dir=str(folder), image_size=SIZE, folds=3)
    changed.expect(data.facts)
    with pytest.raises(DataError, match="other rows are held out"):
        changed.setup("test")


def test_the_real_images(real_data, tmp_path):
    (made,) = FoodData.prepare(tmp_path / "hw3_food", real_data("hw3_food"))
    data = FoodData(root=str(tmp_path), image_size=32)
    assert data.locate() in (made, made.parent)
    data.setup("fit")
    (fold,) = data.split()
    assert (len(fold.train), len(fold.val)) == (3247, 750)
    assert data.facts["classes"][7] == "bibimbap"
    assert np.bincount(data.labels(fold.val)[1]).tolist() == [75] * 10


def test_the_edition_asked_for_is_the_one_that_is_read(tmp_path):
    write_set(tmp_path / "hw3_food" / "2022" / "food11")
    assert FoodData(root=str(tmp_path), edition=2022).locate() == tmp_path / "hw3_food" / "2022"
    with pytest.raises(DataError, match="no files of edition '2021'"):
        FoodData(root=str(tmp_path), edition=2021).locate()


def test_the_very_folder_wins_over_the_edition(tmp_path):
    write_set(tmp_path / "somewhere" / "food11")
    assert FoodData(dir=str(tmp_path / "somewhere"), edition=2022).locate() == tmp_path / "somewhere"
