"""datamodules/images/folder.py: every layout that students have, and one clear line for each that cannot be read."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from datamodules import generated as sample
from datamodules.errors import DataError
from datamodules.files.archives import unpack
from datamodules.generated import write_food
from datamodules.images.decoded import decode
from datamodules.images.folder import ImageFolder, Images, has_images, read_folder


def put(folder: Path, *names: str) -> Path:
    """Empty files: nothing here opens an image."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def by_name(classes: int, each: int = 2) -> list[str]:
    return [f"{label}_{number}.jpg" for label in range(classes) for number in range(each)]


def course(folder: Path, train: str = "training", val: str = "validation", test: str = "test", first: int = 1) -> Path:
    put(folder / train, *by_name(11, 3))
    put(folder / val, *by_name(11, 1))
    put(folder / test, *(f"{number:04d}.jpg" for number in range(first, first + 12)))
    return folder


def course_2021(folder: Path, labelled: str = "labeled", unlabelled: str = "unlabeled") -> Path:
    put(folder / "training" / labelled, *(f"{label:02d}/{label}_{n}.jpg" for label in range(11) for n in range(2)))
    put(folder / "training" / unlabelled / "00", *(f"{n}.jpg" for n in range(15)))
    put(folder / "validation", *(f"{label:02d}/{label}_{n}.jpg" for label in range(11) for n in (7, 8, 9)))
    put(folder / "testing" / "00", *(f"{n:04d}.jpg" for n in range(12)))
    return folder


def names(images: Images | None) -> list[str]:
    assert images is not None
    return [path.name for path in images.paths]


def labels(images: Images | None) -> list[int]:
    assert images is not None
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    return images.labels.tolist()


def assert_refused(folder: Path, *parts: str, expect: list[str] | None = None) -> None:
    with pytest.raises(DataError) as caught:
        read_folder(folder, expect)
    text = str(caught.value)
    assert "\n" not in text
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    ("parts", "first"),
    [
        (("training", "validation", "test"), 1),
        (("train", "valid", "test"), 0),
        (("Training", "VALIDATION", "Test"), 1),
        (("train", "val", "testing"), 1),
    ],
)
def test_classes_in_file_names(parts: tuple[str, str, str], first: int, tmp_path: Path) -> None:
    course(tmp_path, *parts, first=first)
    found = read_folder(tmp_path)
    assert has_images(tmp_path)
    assert found.path == tmp_path
    assert found.keys == found.classes == [str(n) for n in range(11)]  # 10 behind 9, not behind 1
    assert names(found.train) == by_name(11, 3)
    assert labels(found.train) == [n for n in range(11) for _ in range(3)]
    assert labels(found.val) == list(range(11))
    assert names(found.test) == [f"{n:04d}.jpg" for n in range(first, first + 12)]
    assert found.test is not None
    assert found.test.labels is None
    assert found.unlabelled is None
    assert found.id_width == 4


def test_original_food11_has_a_labelled_evaluation_part(tmp_path: Path) -> None:
    course(tmp_path)
    (tmp_path / "test").rename(tmp_path / "old")
    put(tmp_path / "evaluation", *by_name(11))
    found = read_folder(tmp_path)
    assert labels(found.test) == [n for n in range(11) for _ in range(2)]
    assert found.id_width == 4


@pytest.mark.parametrize(("labelled", "unlabelled"), [("labeled", "unlabeled"), ("Labelled", "Unlabelled")])
def test_2021_has_folders_and_unlabelled_images(labelled: str, unlabelled: str, tmp_path: Path) -> None:
    found = read_folder(course_2021(tmp_path, labelled, unlabelled))
    assert found.keys == [f"{n:02d}" for n in range(11)]
    assert labels(found.train) == [n for n in range(11) for _ in range(2)]
    assert labels(found.val) == [n for n in range(11) for _ in range(3)]
    assert names(found.unlabelled) == [f"{n}.jpg" for n in range(15)]
    assert found.unlabelled is not None
    assert found.unlabelled.labels is None
    assert names(found.test) == [f"{n:04d}.jpg" for n in range(12)]
    assert found.test is not None
    assert found.test.labels is None
    assert found.id_width == 0


def test_unlabelled_images_may_lie_beside_the_parts(tmp_path: Path) -> None:
    put(course(tmp_path) / "unlabelled", "2.jpg", "10.jpg", "more/1.PNG")
    assert names(read_folder(tmp_path).unlabelled) == ["2.jpg", "10.jpg", "1.PNG"]


def test_own_classes_without_parts(tmp_path: Path) -> None:
    put(tmp_path, "sushi/a.jpg", "sushi/b.PNG", "Pizza/2.webp", "Pizza/10.jpeg", "apple pie/x_1.gif")
    found = read_folder(tmp_path)
    assert has_images(tmp_path)
    assert found.classes == ["apple pie", "Pizza", "sushi"]
    assert names(found.train) == ["x_1.gif", "2.webp", "10.jpeg", "a.jpg", "b.PNG"]
    assert labels(found.train) == [0, 1, 1, 2, 2]
    assert found.val is found.test is found.unlabelled is None
    assert found.id_width == 4


def test_own_classes_beside_a_test_folder(tmp_path: Path) -> None:
    put(tmp_path, "sushi/a.jpg", "pizza/b.jpg", "test/holiday.jpg", "test/IMG_7.jpg")
    found = read_folder(tmp_path)
    assert found.classes == ["pizza", "sushi"]
    assert names(found.test) == ["holiday.jpg", "IMG_7.jpg"]
    assert found.test is not None
    assert found.test.labels is None


def test_own_classes_in_parts(tmp_path: Path) -> None:
    put(tmp_path / "train", "sushi/a.jpg", "pizza/b.jpg", "unlabeled/c.jpg")
    put(tmp_path / "val", "sushi/d.jpg")
    put(tmp_path / "test", "sushi/e.jpg", "pizza/f.jpg")
    found = read_folder(tmp_path)
    assert (labels(found.train), labels(found.val), labels(found.test)) == ([0, 1], [1], [0, 1])
    assert (names(found.test), names(found.unlabelled)) == (["f.jpg", "e.jpg"], ["c.jpg"])


@pytest.mark.parametrize("wrapper", ["food11", "food-11", "my pictures"])
def test_one_folder_around_it_is_looked_through(wrapper: str, tmp_path: Path) -> None:
    course_2021(tmp_path / wrapper)
    put(tmp_path, "read me.txt", "__MACOSX/training/._0_0.jpg", ".cache/1.jpg", "preview.png")
    assert has_images(tmp_path)
    assert read_folder(tmp_path).path == tmp_path / wrapper


def test_what_is_no_image_is_left_out(tmp_path: Path) -> None:
    course(tmp_path)
    junk = [".DS_Store", "._0_0.jpg", "Thumbs.db", "labels.csv", "notes.txt", "0_1.jpg.part", "desktop.ini"]
    for part in ("training", "validation", "test"):
        put(tmp_path / part, *junk, "__MACOSX/0_0.jpg", ".ipynb_checkpoints/0_0.jpg")
    put(tmp_path, "sample_submission.csv", *junk)
    (tmp_path / "training" / "folder.jpg").mkdir()
    assert names(read_folder(tmp_path).train) == by_name(11, 3)


def test_all_endings_count_in_any_case(tmp_path: Path) -> None:
    endings = ["jpg", "JPEG", "Png", "bmp", "WEBP", "gif", "TIF", "tiff"]
    put(tmp_path, *(f"train/0_{n}.{ending}" for n, ending in enumerate(endings)), "train/1_0.jpg")
    assert len(names(read_folder(tmp_path).train)) == 9


@pytest.mark.parametrize("layout", ["test", "Testing/00", "evaluation", "other"])
@pytest.mark.parametrize("inside", [True, False])
def test_test_images_alone(layout: str, inside: bool, tmp_path: Path) -> None:
    """What predict has to do with: classes from the checkpoint; the folder above, or the very folder."""
    put(tmp_path / layout, "0000.jpg", "0001.jpg")
    given_folder = tmp_path / Path(layout).parts[0] if inside or layout == "other" else tmp_path
    assert has_images(given_folder)
    found = read_folder(given_folder, expect=["a", "b"])
    assert found.keys == found.classes == ["a", "b"]
    assert found.train is found.val is found.unlabelled is None
    assert names(found.test) == ["0000.jpg", "0001.jpg"]
    assert found.id_width == (0 if layout == "Testing/00" else 4)


def test_labelled_test_images_alone(tmp_path: Path) -> None:
    put(tmp_path / "evaluation", "3_12.jpg", "0_7.jpg", "10_1.jpg")
    keys = [f"{n:02d}" for n in range(11)]  # of a run on 2021's folders: 03 and 3 are one class
    assert labels(read_folder(tmp_path, keys).test) == [0, 3, 10]
    put(tmp_path / "other" / "test", "b/1.jpg", "a/2.jpg")
    assert labels(read_folder(tmp_path / "other" / "test", ["a", "b"]).test) == [0, 1]


def test_expected_classes_step_back_where_there_is_a_training_part(tmp_path: Path) -> None:
    assert len(read_folder(course(tmp_path), expect=["a", "b"]).classes) == 11


@pytest.mark.parametrize(
    "text",
    [
        "0 Bread\n1 Dairy product\n2 Egg\n",
        "\ufeff0\tBread\r\n1: Dairy product\r\n2, Egg",
        "Bread\nDairy product\nEgg\n",
    ],
)
def test_names_of_classes(text: str, tmp_path: Path) -> None:
    put(tmp_path / "training", *by_name(3))
    (tmp_path / "classes.txt").write_bytes(text.encode())
    found = read_folder(tmp_path)
    assert (found.keys, found.classes) == (["0", "1", "2"], ["Bread", "Dairy product", "Egg"])


@pytest.mark.parametrize(
    "text", ["", "0 Bread\n1 Egg\n", "Bread\n", "\ud83c not text".encode("utf-16", "surrogatepass")]
)
def test_names_that_do_not_fit_are_left_out(text: str | bytes, tmp_path: Path) -> None:
    put(tmp_path / "training", *by_name(3))
    (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_folder(tmp_path).classes == ["0", "1", "2"]


@pytest.mark.parametrize("stems", [["1", "2", "10"], ["0001", "002"], ["a", "b"], ["0001", "x"]])
def test_other_test_names_leave_the_ids_of_2022(stems: list[str], tmp_path: Path) -> None:
    put(tmp_path, *(f"test/{stem}.jpg" for stem in stems), "train/0_0.jpg", "train/1_0.jpg")
    found = read_folder(tmp_path)
    assert found.id_width == 4


class TestRefused:
    """Each message names the place, what is there, and what to do."""

    def test_nothing(self, tmp_path: Path) -> None:
        assert not has_images(tmp_path / "gone")
        assert not has_images(tmp_path)
        assert_refused(tmp_path / "gone", "gone: not a folder", "training/")
        assert_refused(tmp_path, f"{tmp_path}: no images", "here: nothing", "expected training/")
        put(tmp_path, "covid.train.csv", "one/two/three/1.jpg")
        assert not has_images(tmp_path)
        assert_refused(tmp_path, "here: one/, covid.train.csv")

    def test_empty_parts(self, tmp_path: Path) -> None:
        for part in ("training", "validation", "test"):
            (tmp_path / part).mkdir()
        assert not has_images(tmp_path)
        assert_refused(tmp_path, "no images", "training/")
        put(tmp_path / "test", "0001.jpg")
        assert_refused(tmp_path, f"{tmp_path / 'training'}: no image here", "<class>_<number>.jpg")
        put(tmp_path / "training", *by_name(2))
        assert_refused(tmp_path, f"{tmp_path / 'validation'}: no image here", "remove it")

    def test_no_training_part(self, tmp_path: Path) -> None:
        put(tmp_path / "test", "0001.jpg")
        assert_refused(tmp_path, "no training images", "here: test/")
        assert_refused(tmp_path / "test", "no training images", "images without classes")

    def test_two_folders_for_one_part(self, tmp_path: Path) -> None:
        put(course(tmp_path) / "Train", "0_0.jpg")
        assert_refused(tmp_path, "Train", "training", "expected one train folder")

    def test_a_number_without_images(self, tmp_path: Path) -> None:
        put(tmp_path / "train", "0_0.jpg", "1_0.jpg", "3_0.jpg")
        assert_refused(tmp_path, f"{tmp_path / 'train'}: no image of class 2", "0 to 3")
        put(tmp_path / "b" / "train", "1_0.jpg", "2_0.jpg")
        assert_refused(tmp_path / "b", "no image of class 0")

    def test_a_class_folder_without_images(self, tmp_path: Path) -> None:
        course_2021(tmp_path)
        folder = tmp_path / "training" / "labeled" / "05"
        for path in folder.iterdir():
            path.unlink()
        assert_refused(tmp_path, f"{folder}: no image of this class")
        folder.rmdir()
        assert_refused(tmp_path, f"{folder.parent}: no image of class 5")

    def test_own_numbers_need_not_begin_at_0(self, tmp_path: Path) -> None:
        put(tmp_path, "1/a.jpg", "2/b.jpg")
        assert read_folder(tmp_path).keys == ["1", "2"]
        put(tmp_path / "years", "2019/a.jpg", "2023/b.jpg")
        assert read_folder(tmp_path / "years").keys == ["2019", "2023"]

    def test_a_single_class(self, tmp_path: Path) -> None:
        put(tmp_path / "train", *by_name(1))
        assert_refused(tmp_path, "all 2 images are of class 0", "two or more")

    def test_a_training_file_without_a_class(self, tmp_path: Path) -> None:
        put(course(tmp_path) / "training", "0_1 (1).jpg")
        assert_refused(tmp_path, f"{tmp_path / 'training' / '0_1 (1).jpg'}: the name carries no class", "3_12.jpg")

    def test_images_beside_class_folders(self, tmp_path: Path) -> None:
        put(course(tmp_path) / "training" / "pizza", "1.jpg")
        assert_refused(tmp_path, f"{tmp_path / 'training'}: holds images (0_0.jpg)", "pizza/")

    def test_a_class_that_training_lacks(self, tmp_path: Path) -> None:
        put(course(tmp_path) / "validation", "11_0.jpg")
        assert_refused(tmp_path, f"{tmp_path / 'validation' / '11_0.jpg'}: its class '11'", "11 classes", "0, 1 … 10")

    @pytest.mark.parametrize("name", ["11_0.jpg", "pizza_0.jpg"])
    def test_a_test_label_that_is_no_class(self, name: str, tmp_path: Path) -> None:
        course(tmp_path, test="old")
        put(tmp_path / "evaluation", *by_name(11), name)
        assert_refused(tmp_path, f"{tmp_path / 'evaluation' / name}: its class")
        put(tmp_path / "folders" / "test", "cat/0.jpg", "dog/0.jpg")
        assert_refused(tmp_path / "folders", "0.jpg: its class 'dog'", "cat, cow", expect=["cat", "cow"])

    @pytest.mark.parametrize("text", ["0 Bread\n1 Egg\n2 Rice\n3 Soup\n", "Bread\nEgg\nRice\nSoup\n"])
    def test_a_name_without_images(self, text: str, tmp_path: Path) -> None:
        put(tmp_path / "training", *by_name(3))
        (tmp_path / "classes.txt").write_text(text)
        assert_refused(tmp_path, f"{tmp_path / 'classes.txt'}: class 3 (Soup) has no training image")


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=12))
def test_numbers_are_in_their_order(numbers: set[int]) -> None:
    with TemporaryDirectory() as folder:
        put(Path(folder), *(f"IMG {number}.jpg" for number in numbers))
        assert names(read_folder(Path(folder), ["a", "b"]).test) == [f"IMG {number}.jpg" for number in sorted(numbers)]


word = st.text("abAB01_ -é猫", min_size=1, max_size=5).filter(lambda s: s == s.strip() and not s.isdigit())


@settings(max_examples=40)
@given(
    st.dictionaries(word, st.integers(1, 3), min_size=2, max_size=5).filter(
        lambda d: len({*map(str.lower, d)}) == len(d)
    )
)
def test_folders_and_file_names_say_the_same(counts: dict[str, int]) -> None:
    with TemporaryDirectory() as scratch:
        one = put(Path(scratch) / "1", *(f"train/{key}_{n}.jpg" for key, count in counts.items() for n in range(count)))
        two = put(Path(scratch) / "2", *(f"train/{key}/{n}.jpg" for key, count in counts.items() for n in range(count)))
        found: list[ImageFolder] = [read_folder(one), read_folder(two)]
        for data in found:
            assert sorted(data.keys) == sorted(counts)
            assert [labels(data.train).count(label) for label in range(len(counts))] == [
                counts[key] for key in data.keys
            ]
        assert found[0].keys == found[1].keys
        assert found[0].train is not None
        for path, label in zip(found[0].train.paths, labels(found[0].train), strict=True):
            assert path.stem.rsplit("_", 1)[0] == found[0].keys[label]


def test_real_images(tmp_path: Path, real_data) -> None:
    unpack(real_data("hw3_food") / "food10_train_val.zip", tmp_path)
    found = read_folder(tmp_path)
    assert len(names(found.train)) == 3247
    assert len(names(found.val)) == 750
    assert found.classes[0] == "apple_pie"
    assert found.classes[-1] == "breakfast_burrito"
    assert found.keys == [str(n) for n in range(10)]
    assert np.bincount(labels(found.val)).tolist() == [75] * 10
    assert found.test is found.unlabelled is None


class TestGenerated:
    """sample.write_food"""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("data") / "hw3_food" / "sample"
        assert write_food(folder) == [folder / part for part in ("training", "validation", "test", "unlabeled")]
        return folder

    def test_layout_of_2022(self, folder: Path) -> None:
        found = read_folder(folder)
        assert [p.name for p in sorted(folder.parent.rglob("*")) if p.is_dir()] == [
            "sample", "test", "training", "unlabeled", "validation",
        ]  # fmt: skip
        assert np.bincount(labels(found.train)).tolist() == [24] * 11
        assert np.bincount(labels(found.val)).tolist() == [6] * 11
        assert names(found.test) == [f"{n:04d}.jpg" for n in range(1, 45)]
        assert names(found.unlabelled) == [f"{n:04d}.jpg" for n in range(1, 89)]
        assert found.test is not None
        assert found.test.labels is None
        sizes = [Image.open(path).size for path in found.test.paths]
        assert {144 <= side <= 176 for size in sizes for side in size} == {True}
        assert len(set(sizes)) > 20

    def test_seed_decides_every_byte(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sample, "FOOD_IMAGES", {"training": 1})  # the first to be drawn
        for seed in (0, 1):
            write_food(tmp_path / str(seed), seed)
        first = "training/0_0.jpg"
        assert (tmp_path / "0" / first).read_bytes() == (folder / first).read_bytes()
        assert (tmp_path / "1" / first).read_bytes() != (folder / first).read_bytes()

    @pytest.mark.parametrize("there", ["Train/notes.txt", "testing/1.jpg", "cat.jpg"])
    def test_what_is_there_is_left_alone(self, there: str, tmp_path: Path) -> None:
        put(tmp_path, there)
        with pytest.raises(DataError, match="images are here already; they are left as they are"):
            write_food(tmp_path)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / there]

    def test_nothing_is_left_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dishes = iter([Image.new("RGB", (8, 8))] * 30)
        monkeypatch.setattr(sample, "_dish", lambda *_: next(dishes))
        with pytest.raises(StopIteration):
            write_food(tmp_path / "sample")
        assert list(tmp_path.iterdir()) == []

    def test_there_is_something_to_learn(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A small network in three epochs: far from chance (1 in 11), and far from done."""
        monkeypatch.setenv("LEEML_CACHE", str(tmp_path))
        found = read_folder(folder)
        assert found.train is not None
        assert found.val is not None
        x, vx = (
            torch.tensor(decode(p.paths, 48).images).permute(0, 3, 1, 2) / 127.5 - 1 for p in (found.train, found.val)
        )
        y, vy = torch.tensor(labels(found.train)), torch.tensor(labels(found.val))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            blocks = [
                (nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)) for a, b in ((3, 16), (16, 32))
            ]
            layers = [layer for block in blocks for layer in block]
            net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 11))
            optimizer = torch.optim.Adam(net.parameters(), 5e-3)
            for _ in range(3):
                for rows in torch.randperm(len(x)).split(24):
                    loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        accuracy = (net.eval()(vx).argmax(1) == vy).float().mean().item()
        assert 0.25 < accuracy < 0.9


# nothing goes without a word


def test_images_in_deeper_folders_belong_to_their_class(tmp_path: Path) -> None:
    put(tmp_path / "train", "a/1.jpg", "a/2021/2.jpg", "a/2021/more/3.jpg", "b/2022/4.jpg")
    put(tmp_path / "test" / "00", "x/2.jpg", "x/10.jpg")
    found = read_folder(tmp_path)
    assert (names(found.train), labels(found.train)) == (["1.jpg", "2.jpg", "3.jpg", "4.jpg"], [0, 0, 0, 1])
    assert names(found.test) == ["2.jpg", "10.jpg"]
    assert str(found.account) == "images: 6 found, 6 read, 0 left out"


def test_class_folders_without_a_part_may_be_deep_but_editions_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path / "one", "a/x/1.jpg", "b/x/2.jpg")
    assert labels(read_folder(tmp_path / "one").train) == [0, 1]
    put(tmp_path / "two", "2021/x/1.jpg", "2022/x/2.jpg")
    put(tmp_path / "three", "mine/a/1.jpg", "mine/b/1.jpg", "yours/a/2.jpg", "yours/b/2.jpg")
    assert not has_images(tmp_path / "two")
    assert not has_images(tmp_path / "three")


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    put(course(tmp_path), "notes.txt", "training/1_1.CR2", "new/1.jpg", "new/2.jpg", ".DS_Store", "classes.txt")
    os.mkfifo(tmp_path / "test" / "0099.jpg")
    (tmp_path / "new" / "loop").symlink_to(tmp_path)
    line = str(read_folder(tmp_path).account)
    assert line.startswith("images: 62 found, 56 read, 6 left out: ")
    for part in (
        "2 in no folder of a class or part; move them into one (first: new/1.jpg)",
        "1 .cr2, raw photos; save as JPEG (first: training/1_1.CR2)",
        "1 no images (.txt) (first: notes.txt)",
        "2 no regular files; move them away (first: new/loop)",
    ):
        assert part in line


def test_heic_without_its_reader_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(course(tmp_path), "training/0_9.HEIC")
    assert "0_9.HEIC" in names(read_folder(tmp_path).train)
    monkeypatch.setattr("datamodules.images.folder.ENDINGS", {".jpg"})
    line = str(read_folder(tmp_path).account)
    assert "1 .heic, which need pillow-heif: pip install pillow-heif (first: training/0_9.HEIC)" in line
