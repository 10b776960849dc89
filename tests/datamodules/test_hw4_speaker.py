"""SpeakerData: folds, stretches and whole utterances against the frames themselves, what is refused, the answers."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules.errors import DataError
from datamodules.generated import write_speakers
from datamodules.hw4_speaker import SpeakerData
from datamodules.speech.crops import Crops
from datamodules.speech.packed import concatenate
from datamodules.speech.speaker_folder import Utterance, write_dataset

LENGTHS = [9, 30, 31, 47, 60, 20, 52, 100, 33, 41]  # of the utterances of each speaker; one shorter than SEGMENT
SEGMENT = 20
IDS = ["id00007", "id00003", "id00005"]


def counted(number, length):
    """Frames that say which utterance and which place they are; exact in float16."""
    x = np.zeros((length, 40), np.float32)
    x[:, 0], x[:, 1], x[:, 2] = number, np.arange(length), length
    return x


def write_set(folder, test=None):
    utterances = [
        Utterance(f"{s}/{n}", counted(len(LENGTHS) * s + n, length), IDS[s])
        for n, length in enumerate(LENGTHS)
        for s in range(3)
    ]
    write_dataset(folder, "train", utterances, IDS)
    if test is not None:
        write_dataset(folder, "test", test)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tests = [Utterance(f"t/{n}", counted(100 + n, length)) for n, length in enumerate([70, 3, 500, 41, 41, 1])]
    return write_set(tmp_path_factory.mktemp("speakers") / "Dataset", tests)


def trainer(rank=0, world=1):
    connector = SimpleNamespace(use_distributed_sampler=False)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_rank=rank, world_size=world, _accelerator_connector=connector, lightning_module=None, strategy=strategy
    )


def speakers(folder, stage="fit", ranks=(0, 1), facts=None, **options):
    data = SpeakerData(dir=str(folder), **({"segment": SEGMENT, "batch_size": 8, "folds": 5} | options))
    data.trainer = trainer(*ranks)
    if facts is not None:
        data.expect(facts)
    data.setup(stage)
    return data


def epoch_of(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_row(batches):
    """Valid frames of each row."""
    found = {}
    for batch in batches:
        mask = batch.get("mask", torch.ones(batch["x"].shape[:2], dtype=torch.bool))
        assert not set(found) & set(batch["row"].tolist())
        found |= {int(r): x[m] for r, x, m in zip(batch["row"], batch["x"], mask, strict=True)}
    return found


# folds


def test_each_speakers_utterances_are_dealt_evenly(folder):
    data = speakers(folder, folds=4)
    folds = data.split()
    assert sorted(np.concatenate([fold.val for fold in folds])) == list(range(30))
    for fold in folds:
        assert sorted([*fold.train, *fold.val]) == list(range(30))
        counts = Counter(data.targets[fold.val].tolist())
        assert set(counts) == {0, 1, 2}
        assert max(counts.values()) - min(counts.values()) <= 1
    again, other = speakers(folder, folds=4).split(), speakers(folder, folds=4, seed=1).split()
    assert all((a.val == b.val).all() for a, b in zip(folds, again, strict=True))
    assert any(a.val.tolist() != b.val.tolist() for a, b in zip(folds, other, strict=True))


def test_labels_are_the_mappings_numbers(folder):
    data = speakers(folder)
    assert data.facts["classes"] == IDS
    listed = json.loads((folder / "metadata.json").read_text())["speakers"]
    for name, y in zip(*data.labels(np.arange(30)), strict=True):
        assert name in {entry["feature_path"] for entry in listed[IDS[y]]}


# stretches


def test_a_stretch_is_frames_of_its_utterance_in_their_order(folder):
    data = speakers(folder)
    for epoch in range(3):
        batches = epoch_of(data, epoch)
        assert sorted(int(r) for batch in batches for r in batch["row"]) == data.split()[0].train.tolist()
        for batch in batches:
            assert torch.equal(batch["y"], data.targets[batch["row"]])
        for row, x in by_row(batches).items():
            frames = data.frames[row]
            first, length = int(x[0, 1]), len(frames)
            assert len(x) == min(SEGMENT, length)
            assert torch.equal(x, frames[first : first + len(x)])


def test_places_are_a_function_of_seed_epoch_and_row_alone(folder):
    base = by_row(epoch_of(speakers(folder)))
    # other company, fewer rows, two ranks
    for same in (
        by_row(epoch_of(speakers(folder, batch_size=3))),
        by_row(epoch_of(speakers(folder, fold=1))),
        by_row(epoch_of(speakers(folder, ranks=(0, 2))) + epoch_of(speakers(folder, ranks=(1, 2)))),
    ):
        both = base.keys() & same.keys()
        assert len(both) >= 15
        assert all(torch.equal(base[row], same[row]) for row in both)
    for other in (by_row(epoch_of(speakers(folder), 1)), by_row(epoch_of(speakers(folder, seed=1)))):
        both = base.keys() & other.keys()
        assert sum(torch.equal(base[row], other[row]) for row in both) < len(both) / 3


def test_two_ranks_share_each_batch(folder):
    whole, *shares = (epoch_of(speakers(folder, ranks=ranks)) for ranks in ((0, 1), (0, 2), (1, 2)))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(batch["row"].tolist()) == sorted(torch.cat([part["row"] for part in parts]).tolist())


def test_places_are_spread_evenly_over_the_utterance():
    packed = concatenate([counted(0, 12)])
    data, draws = Crops(packed, None, 9, None, 0), torch.zeros(1, 1)
    firsts = Counter(int(data[(epoch, torch.tensor([[0]]), draws)]["x"][0, 0, 1]) for epoch in range(4000))
    assert set(firsts) == {0, 1, 2, 3}  # the first and the last place too
    assert max(abs(count - 1000) for count in firsts.values()) < 140  # five deviations of a fair draw


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), frames=st.none() | st.integers(1, 40))
def test_padding_and_mask(lengths, frames):
    """One row each: its frames, then zeros; a mask only where something is padded."""
    packed, rows = concatenate([counted(n + 1, length) for n, length in enumerate(lengths)]), torch.arange(len(lengths))
    for index in (rows, (3, rows.unsqueeze(0), rows.unsqueeze(0))):
        batch = Crops(packed, None, frames, None, 0)[index]
        wanted = [length if frames is None else min(frames, length) for length in lengths]
        assert batch["x"].shape == (len(lengths), max(wanted), 40)
        assert ("mask" in batch) == (len(set(wanted)) > 1)
        assert "y" not in batch
        for n, (x, length) in enumerate(zip(batch["x"], wanted, strict=True)):
            first = int(x[0, 1])
            assert torch.equal(x[:length], packed[n][first : first + length])
            assert not x[length:].any()
            if "mask" in batch:
                assert batch["mask"][n].tolist() == [True] * length + [False] * (max(wanted) - length)


@settings(max_examples=60)
@given(length=st.integers(1, 200), frames=st.integers(1, 100))
def test_judging_so_many_frames_takes_the_middle(length, frames):
    x = Crops(concatenate([counted(0, length)]), None, frames, None, 0)[torch.tensor([0])]["x"][0]
    before, after = int(x[0, 1]), length - 1 - int(x[-1, 1])
    assert len(x) == min(frames, length)
    assert before - after in (0, 1, -1)


# judging


@pytest.mark.parametrize("options", [{}, {"judge_frames": 15}, {"judge_snr": 3.0}])
def test_every_held_out_utterance_is_judged_once_on_any_number_of_ranks(folder, options):
    data = speakers(folder, **options)
    one = by_row(data.val_dataloader())
    assert sorted(one) == data.split()[0].val.tolist()
    two = by_row([b for rank in range(2) for b in speakers(folder, ranks=(rank, 2), **options).val_dataloader()])
    assert one.keys() == two.keys()
    assert all(torch.equal(one[row], two[row]) for row in one)
    if "judge_snr" not in options:
        for row, x in one.items():
            assert len(x) == min(LENGTHS[row % 10], options.get("judge_frames", 1000))
            assert int(x[0, 0]) == row  # written speaker by speaker: the utterance's own number


def test_batches_of_whole_utterances_hold_so_many_frames(tmp_path):
    rng = np.random.default_rng(0)
    made = [Utterance(f"{n}", counted(n, int(rng.integers(100, 1500))), IDS[n % 2]) for n in range(60)]
    write_dataset(tmp_path / "d", "train", made)
    data = speakers(tmp_path / "d", folds=2)
    sizes = [batch["x"].shape[:2].numel() for batch in data.val_dataloader()]
    assert max(sizes) <= 16384
    assert len(sizes) < 5


def test_noise_when_judging_is_the_same_every_time_and_of_each_utterance_its_own(folder):
    data = speakers(folder, judge_snr=5.0)
    first, again = by_row(data.val_dataloader()), by_row(data.val_dataloader())
    quiet = by_row(speakers(folder).val_dataloader())
    assert all(torch.equal(first[row], again[row]) for row in first)
    assert all(first[row].ne(quiet[row]).any() for row in first)
    row = min(first, key=lambda row: len(first[row]))
    for other in first.keys() - {row}:
        assert not torch.equal(first[row][:, 5], first[other][: len(first[row]), 5])


def test_noise_in_training_is_new_every_epoch_and_the_same_for_any_batch(folder):
    base = by_row(epoch_of(speakers(folder, train_snr=(0, 20), segment=10_000)))
    same = by_row(epoch_of(speakers(folder, train_snr=(0, 20), segment=10_000, batch_size=3)))
    other = by_row(epoch_of(speakers(folder, train_snr=(0, 20), segment=10_000), 1))
    assert all(torch.equal(base[row], same[row]) for row in base)
    assert all(base[row].ne(other[row]).any() for row in base)


def test_predict_has_all_test_utterances_whole_and_without_noise(folder):
    facts = speakers(folder).facts
    data = speakers(folder, "predict", facts=facts, judge_frames=5, judge_snr=0.0)
    found = by_row(data.predict_dataloader())
    assert sorted(found) == list(range(6))
    listed = json.loads((folder / "testdata.json").read_text())["utterances"]
    for row, entry in enumerate(listed):
        number = int(entry["source"].split("/")[1])
        assert entry["mel_len"] == len(found[row])
        assert torch.equal(found[row], torch.from_numpy(counted(100 + number, len(found[row]))).half())
    header, lines = data.submission(np.eye(3)[[2, 0, 1, 1, 0, 2]])
    assert header == ["Id", "Category"]
    assert lines == [[e["feature_path"], IDS[c]] for e, c in zip(listed, [2, 0, 1, 1, 0, 2], strict=True)]


def test_predict_needs_no_training_part(folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in folder.iterdir():
        if path.name not in ("metadata.json", "mapping.json"):
            (alone / path.name).write_bytes(path.read_bytes())
    data = speakers(alone, "predict", facts=speakers(folder).facts)
    assert sorted(by_row(data.predict_dataloader())) == list(range(6))
    (alone / "testdata.json").rename(alone / "metadata.json")
    with pytest.raises(DataError, match=r"testdata\.json: missing.*--split test"):
        speakers(alone, "predict", facts=speakers(folder).facts)


def test_labelled_test_utterances_are_scored_by_the_models_numbers(folder, tmp_path):
    facts = speakers(folder).facts
    tests = [Utterance(f"t/{n}", counted(n, 30 + n), IDS[n % 2]) for n in range(4)]
    write_set(tmp_path / "d", tests)
    data = speakers(tmp_path / "d", "test", facts=facts)
    found = {int(r): int(y) for batch in data.test_dataloader() for r, y in zip(batch["row"], batch["y"], strict=True)}
    assert found == {0: 0, 1: 1, 2: 0, 3: 1}
    assert data.describe_test() == "4 test utterances whose speakers are known (whole)"
    stranger = [Utterance("t", counted(0, 30), "id00009")]
    write_dataset(tmp_path / "e", "test", stranger)
    with pytest.raises(DataError, match="speaker id00009 is none of the 3"):
        speakers(tmp_path / "e", "test", facts=facts)


def test_unlabelled_test_utterances_are_not_scored(folder):
    data = speakers(folder, "test", facts=speakers(folder).facts, judge_frames=10, judge_snr=5.0)
    assert sorted(by_row(data.test_dataloader())) == data.split()[0].val.tolist()
    assert data.describe_test().startswith("held-out utterances (10 frames each, noise at 5 dB;")


def test_other_speakers_or_held_out_utterances_than_the_models_are_refused(folder):
    facts = speakers(folder).facts
    for other in ([*IDS, "id00009"], IDS[::-1]):
        with pytest.raises(DataError, match=rf"3 speakers are not the {len(other)} that the model was trained on"):
            speakers(folder, "test", facts=facts | {"classes": other})
    for options in ({"folds": 3}, {"fold": 1}, {"seed": 1}):
        with pytest.raises(DataError, match="are held out here than in the run") as caught:
            speakers(folder, "test", facts=facts, **options)
        assert "\n" not in str(caught.value)


def test_the_dataset_folder_may_be_wrapped(folder, tmp_path):
    data = SpeakerData(root=str(tmp_path))
    (tmp_path / "hw4_speaker" / "2022").mkdir(parents=True)
    (tmp_path / "hw4_speaker" / "2022" / "Dataset").symlink_to(folder)
    data.setup("fit")
    assert len(data.targets) == 30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"segment": 0}, "data.segment is 0"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"judge_frames": 0}, "data.judge_frames is 0"),
        ({"train_snr": (20.0, 0.0)}, "lower ratio first"),
        ({"folds": 31}, "30 utterances leave fold"),
    ],
)
def test_wrong_options(folder, options, says):
    with pytest.raises(DataError, match=says):
        speakers(folder, **options)


def test_one_utterance_of_a_speaker_is_too_few(tmp_path):
    made = [Utterance(f"{n}", counted(n, 30), "b" if n else "a") for n in range(5)]
    write_dataset(tmp_path / "d", "train", made)
    with pytest.raises(DataError, match=r"too few utterances of a \(1\)"):
        speakers(tmp_path / "d", folds=2)


# the generated set


def moments(data, rows):
    """Mean and deviation of each band, (N, 80)."""
    return np.stack([np.concatenate([(x := data.frames[row].float().numpy()).mean(0), x.std(0)]) for row in rows])


def test_generated_speakers_can_be_told_apart_and_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_speakers(tmp_path / name, seed)
    read = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "abc"}
    assert read["a"] == read["b"]
    assert read["a"] != read["c"]
    data = speakers(tmp_path / "a")
    assert len(data.targets) == 192
    fold = data.split()[0]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(moments(data, fold.train), data.targets[fold.train])
    score = model.score(moments(data, fold.val), data.targets[fold.val])
    assert 0.4 < score < 1  # chance: 1 of 16; and not so easy that nothing can be seen


@pytest.mark.parametrize("kept", ["metadata.json", "mapping.json", "testdata.json"])
def test_generated_files_overwrite_nothing(tmp_path, kept):
    (tmp_path / kept).write_text("mine")
    with pytest.raises(DataError, match=f"{kept}: there already"):
        write_speakers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [kept]
    assert (tmp_path / kept).read_text() == "mine"


def test_the_courses_archive_is_unpacked(folder, tmp_path):
    home = tmp_path / "root" / "hw4_speaker"
    shutil.copytree(folder, tmp_path / "packed" / "Dataset")
    shutil.make_archive(str(home / "Dataset"), "gztar", tmp_path / "packed")
    with pytest.raises(DataError, match="unpack it first: leeml data prepare hw4_speaker"):
        SpeakerData(root=str(tmp_path / "root")).setup("fit")
    assert SpeakerData.prepare(home) == [home / "Dataset"]
    SpeakerData(root=str(tmp_path / "root")).setup("fit")
