"""`leeml translate`: as many lines out as in, in their order, whatever interrupts; what is written stays whole."""

import gzip
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import answer, assert_fails, works
from hypothesis import given, settings
from hypothesis import strategies as st
from translation_run import TESTS, train, write_data

from datamodules.errors import DataError
from datamodules.text.cleaning import CLEAN, is_simplified
from modules.hw5_translation import Translator
from modules.translation.detokenize import RESTORE
from scripts import translate
from scripts.cli.mistakes import Parser
from scripts.run.checkpoint import load_translator
from scripts.translation import chunks, translator
from scripts.translation.chunks import CHUNK, Shard, write_all
from scripts.translation.reading import Line, read
from scripts.translation.translator import LineTranslator
from scripts.translation.writing import StandardOutput, WholeFile, unbroken

PROJECT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return train(root, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def best(run):
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def english(root):
    return root / "hw5_translation" / "sample" / "test.en"


def echo(self, source):
    """In place of a translation: what the source says, so that every line has its own."""
    return [self.text([token for token in row.tolist() if token > 3]) for row in source]


@pytest.fixture
def echoing(monkeypatch):
    """A model that repeats its source, and chunks of four lines."""
    monkeypatch.setattr(Translator, "translate", echo)
    monkeypatch.setattr(chunks, "CHUNK", 4)


def feed(monkeypatch, content, terminal=False):
    """Standard input."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal))


def numbered(count, folder, name="in.en"):
    path = folder / name
    path.write_text("".join(f"line number {n}\n" for n in range(count)))
    return path


# lines


class Collected:
    """A sink."""

    def __init__(self):
        self.chunks = []

    def wants(self, chunk):
        return True

    def write(self, lines):
        self.chunks.append(lines)

    def finish(self):
        self.finished = True


@pytest.fixture(scope="module")
def echo_lines(best):
    translator = LineTranslator([(best, [])], "cpu", 100)
    translator.model.translate = echo.__get__(translator.model)
    return translator


ODD = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]) | st.sampled_from("\r\t\x00\x0b\u2028 。(）")
)


@settings(max_examples=60)
@given(lines=st.lists(ODD | st.sampled_from(["", "some words", "one " * 90]), max_size=30))
def test_every_line_has_its_own_in_its_place(echo_lines, tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.en"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    got = list(read([path]))
    sink = Collected()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK", 7)
        write_all(read([path]), None, None, echo_lines, sink, lambda line, said: said)
    bom = [line.removeprefix("\ufeff") if n == 0 else line for n, line in enumerate(lines)]
    assert [line.text for line in got] == [line.removesuffix("\r") for line in bom]
    pieces = echo_lines.tokenizer
    short = [ids[: 64 - 1] for ids in pieces.encode([CLEAN["en"](line.text) for line in got])]
    said = [text for chunk in sink.chunks for text in chunk]
    assert said == [" ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split()) for text in pieces.decode(short)]
    assert [len(chunk) for chunk in sink.chunks] == [min(7, len(lines) - n) for n in range(0, len(lines), 7)]
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text) for text in said)
    assert sink.finished


def test_what_a_model_says_stays_on_one_line(echo_lines):
    model = echo_lines.model
    spelt = [model.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in "a\nb\x00\tc\r\u2028d".encode()]
    assert model.text(spelt) == "a b c d"


def test_long_lines_are_cut_and_named(echo_lines, capsys):
    said = echo_lines([Line("short", "a.en, line 8"), Line("very " * 90, "a.en, line 9")])
    words = len(echo_lines.tokenizer.encode(["very " * 90])[0])
    assert f"a.en, line 9: {words + 1} tokens, cut to the 64 that the model was trained for" in capsys.readouterr().err
    assert len(echo_lines.tokenizer.encode([said[1]])[0]) <= 63
    echo_lines([Line("short", "a.en, line 8")])
    assert not capsys.readouterr().err


def test_simplified_input_is_said_once(echo_lines, monkeypatch, capsys):
    simplified, traditional = "这是一个问题", "這是一個問題"
    assert is_simplified([simplified])
    monkeypatch.setattr(echo_lines, "source", "zh")
    echo_lines([Line(traditional, "a.zh, line 1")])
    assert not capsys.readouterr().err
    echo_lines([Line(simplified, "a.zh, line 2")])
    echo_lines([Line(simplified, "a.zh, line 3")])
    assert capsys.readouterr().err.count("Simplified Chinese") == 1


# against predict


def test_it_says_what_predict_says(root, run, best, english, tmp_path, monkeypatch):
    works("predict", "--run_dir", run, "--output", tmp_path / "submission.txt")
    expected = (tmp_path / "submission.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(expected)) > TESTS // 10  # else the order of lines would not show
    said = works("translate", "--run_dir", run, english, "--cleaned")
    assert said.out.splitlines() == expected
    assert said.err == ""
    alone = tmp_path / "model.ckpt"
    alone.write_bytes(best.read_bytes())
    feed(monkeypatch, english.read_bytes())
    said = works("translate", "--ckpt_path", alone)
    assert said.out.splitlines() == [RESTORE["zh"](line) for line in expected]


def test_flags_reach_the_model(best):
    given = translate.parse(translate_parser(), ["translate", "--ckpt_path", str(best), "--beam", "3"])
    (model,) = translate.planned(*given)
    assert load_translator(*model).beam == 3
    given = translate.parse(
        translate_parser(), ["translate", "--ckpt_path", str(best), "--model.beam", "4", "--length_penalty", "0.5"]
    )
    (model,) = translate.planned(*given)
    assert (load_translator(*model).beam, load_translator(*model).length_penalty) == (4, 0.5)


def translate_parser():
    parser = Parser(prog="leeml translate")
    parser.add_argument("--output", type=Path)
    translate.add_options(parser)
    return parser


def test_a_run_with_itself_is_the_run(run, english):
    one = works("translate", "--run_dir", run, english)
    two = works("translate", "--run_dir", run, "--run_dir", run, english)
    assert two.out == one.out
    ensemble = LineTranslator([(run / "checkpoints" / f"{name}.ckpt", []) for name in ("best", "last")], "cpu", 99)
    assert len(ensemble.model.others) == 1
    assert not any(net.training for net in [ensemble.model.net, *ensemble.model.others])


# input


@pytest.mark.usefixtures("echoing")
def test_files_and_standard_input(run, tmp_path, monkeypatch):
    one, two = numbered(5, tmp_path), tmp_path / "two.en.gz"
    two.write_bytes(gzip.compress(b"\n(aside)\nlast without end"))
    expected = [*(f"line number {n}" for n in range(5)), "", "", "last without end"]
    assert works("translate", "--run_dir", run, one, two).out.splitlines() == expected
    feed(monkeypatch, one.read_bytes() + gzip.decompress(two.read_bytes()))
    assert works("translate", "--run_dir", run).out.splitlines() == expected
    works("translate", "--run_dir", run, one, two, "--output", tmp_path / "new" / "out.zh")
    assert (tmp_path / "new" / "out.zh").read_text().splitlines() == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.zh"]


def test_nothing_in_nothing_out(run, tmp_path, monkeypatch):
    feed(monkeypatch, b"")
    assert works("translate", "--run_dir", run) == (0, "", "")
    works("translate", "--run_dir", run, "--output", tmp_path / "out.zh")
    assert (tmp_path / "out.zh").read_bytes() == b""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", ["translate needs a trained run", "--run_dir"]),
        ("--run_dir {run} gone.en", ["gone.en: no such file"]),
        ("--run_dir {run} bad.en", ["bad.en, line 3: byte 0xff is no UTF-8"]),
        ("--run_dir {run} cut.gz", ["cut.gz: cut short or no gz file"]),
        ("--run_dir {run} in.en --shard 0/2", ["--shard", "found 0/2, expected I/N such as 1/4"]),
        ("--run_dir {run} --shard 1/2", ["--shard 1/2 needs a FILE whose lines can be counted"]),
        ("--run_dir {run} in.en --resume", ["--resume needs --output"]),
        ("--run_dir {run} in.en --output in.en", ["in.en: there already"]),
        ("--run_dir {run} in.en --output out.gz", ["out.gz", "leave out .gz"]),
        ("--run_dir {run} in.en --max_tokens 0", ["--max_tokens 0: expected at least 1"]),
        ("--run_dir {run} in.en --beam 0", ["model.beam is 0"]),
        ("--run_dir {run} in.en --model.beems 2", ["model.beems: Translator has no option 'beems'", "beam"]),
        ("--run_dir {run} in.en --data.root .", ["--data.root", "no such flag"]),
        ("--run_dir {run} in.en --ckpt_path other.ckpt", ["other.ckpt: no such checkpoint"]),
        ("--ckpt_path in.en in.en", ["in.en: holds code besides weights", "only open checkpoints of leeml"]),
        ("--ckpt_path covid.ckpt in.en", ["covid.ckpt: of hw1_covid, which translates nothing"]),
        ("--ckpt_path back.ckpt --ckpt_path {best} in.en", ["best.ckpt translates from en to zh", "one direction"]),
        ("--ckpt_path words.ckpt --ckpt_path {best} in.en", ["best.ckpt: a tokenizer of another run", "words.ckpt"]),
        ("--run_dir {run} --model.net.layers 2 in.en", ["best.ckpt: does not fit its configuration", "--model"]),
    ],
)
def test_a_mistake_is_one_line(run, best, tmp_path, monkeypatch, flags, says):
    here = tmp_path / "here"
    numbered(9, here)
    (here / "bad.en").write_bytes(b"one\ntwo\nthr\xffe\n")
    (here / "cut.gz").write_bytes(gzip.compress(b"one\n" * 999)[:-9])
    checkpoint = torch.load(best, weights_only=True)
    facts = checkpoint["facts"]
    more = torch.tensor([0x9A, 0x06, 0x00], dtype=torch.uint8)  # a field that SentencePiece does not know
    for name, change in {
        "covid": {"homework": "hw1_covid"},
        "back": {"facts": facts | {"source": "zh", "target": "en"}},
        "words": {"facts": facts | {"tokenizer": torch.cat([facts["tokenizer"], more])}},
    }.items():
        if f"{name}.ckpt" in flags:
            torch.save(checkpoint | change, here / f"{name}.ckpt")
    feed(monkeypatch, b"one\n")
    assert_fails(tmp_path, "translate", *flags.format(run=run, best=best).split(), says=says)


def test_a_terminal_is_told_how(run, tmp_path, monkeypatch):
    feed(monkeypatch, b"", terminal=True)
    assert_fails(tmp_path, "translate", "--run_dir", run, says=["leeml translate ... < FILE"])


def test_models_that_make_no_ensemble(best, monkeypatch):
    class Parallel(Translator):
        def translate(self, source):
            return []

    def load(path, flags, trust):
        model = load_translator(path, flags, trust)
        model.__class__ = Parallel
        return model

    monkeypatch.setattr(translator, "load_translator", load)
    LineTranslator([(best, [])], "cpu", 99)
    with pytest.raises(DataError, match="only models that say word after word make an ensemble"):
        LineTranslator([(best, []), (best, [])], "cpu", 99)


@pytest.mark.usefixtures("echoing")
def test_what_came_before_a_bad_byte_is_whole(run, monkeypatch):
    feed(monkeypatch, b"good\n" * 6 + b"b\xe5d\n")
    said = answer("translate", "--run_dir", run)
    assert said.code == 1
    assert said.out == "good\n" * 4
    assert "standard input, line 7: byte 0xe5 is no UTF-8" in said.err


# interruptions


def stop_after(count, monkeypatch):
    """Ctrl-C in the translation after so many batches."""
    left = iter(range(count))

    def stop(self, source):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return echo(self, source)

    monkeypatch.setattr(Translator, "translate", stop)


def interrupted(sink):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("echoing")
class TestResume:
    @pytest.fixture
    def file(self, tmp_path):
        return numbered(23, tmp_path)

    @pytest.fixture
    def left(self, run, file, tmp_path, monkeypatch):
        """What is left after two chunks of six, and half a line."""
        out = tmp_path / "out.zh"
        with monkeypatch.context() as patch:
            stop_after(2, patch)
            said = answer("translate", "--run_dir", run, file, "--output", out)
        assert said.code == 130
        assert said.err.splitlines() == ["leeml: resume with the same command and --resume", "leeml: stopped"]
        assert not out.exists()
        part = tmp_path / "out.zh.part"
        assert part.read_text().splitlines() == file.read_text().splitlines()[:8]
        with part.open("a") as opened:
            opened.write("half a li")
        return out

    @pytest.mark.parametrize("piped", [False, True])
    def test_it_ends_as_in_one_go(self, run, file, left, monkeypatch, piped):
        calls = []
        monkeypatch.setattr(Translator, "translate", lambda self, source: calls.append(1) or echo(self, source))
        feed(monkeypatch, file.read_bytes())
        works("translate", "--run_dir", run, *([] if piped else [file]), "--output", left, "--resume")
        assert left.read_text() == file.read_text()
        assert len(calls) == 4
        assert sorted(path.name for path in left.parent.glob("out*")) == ["out.zh"]

    def test_with_nothing_left_it_begins(self, run, file, tmp_path):
        works("translate", "--run_dir", run, file, "--output", tmp_path / "new.zh", "--resume")
        assert (tmp_path / "new.zh").read_text() == file.read_text()

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            (["--resume", "--beam", "1"], ["made with flags = , now it is --model.beam=1"]),
            (["--resume", "--shard", "1/2"], ["made with shard = None, now it is 1/2"]),
            (["--resume", "--cleaned"], ["made with cleaned = False, now it is True"]),
            (["--resume", "--ckpt_path", "last"], ["made with checkpoints = ["]),
        ],
    )
    def test_what_it_does_not_go_on_with(self, run, file, left, tmp_path, flags, says):
        if "last" in flags:
            last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
            torch.save(last | {"epoch": 99}, tmp_path / "last.ckpt")
            flags = ["--resume", "--ckpt_path", tmp_path / "last.ckpt"]
        assert_fails(tmp_path, "translate", "--run_dir", run, file, "--output", left, *flags, says=says)

    @pytest.mark.parametrize("change", ["other", "shorter", "longer"])
    def test_other_input(self, run, file, left, tmp_path, monkeypatch, change):
        lines = file.read_text().splitlines()
        if change == "longer":  # the last chunk was not full, and now there is more
            with monkeypatch.context() as patch:
                patch.setattr(WholeFile, "finish", interrupted)
                feed(patch, file.read_bytes())
                assert answer("translate", "--run_dir", run, "--output", left, "--resume").code == 130
            assert left.with_name("out.zh.part").read_text() == file.read_text()
        changed = {"other": [*lines[:3], "new", *lines[4:]], "shorter": lines[:7], "longer": [*lines, "one", "two"]}
        feed(monkeypatch, "".join(f"{line}\n" for line in changed[change]).encode())
        before = left.with_name("out.zh.part").read_bytes()
        said = answer("translate", "--run_dir", run, "--output", left, "--resume")
        assert said.code == 1
        assert "lines were made of other input; give the same again, or leave out --resume" in said.err
        assert left.with_name("out.zh.part").read_bytes() == before

    @pytest.mark.parametrize("damage", ["", "shorter", "no record", "half a record"])
    @pytest.mark.parametrize("resume", [True, False])
    def test_what_a_kill_left_never_blocks(self, run, file, left, damage, resume):
        part, record = left.with_name("out.zh.part"), left.with_name("out.zh.part.json")
        if damage == "shorter":
            part.write_text("line")
        elif damage == "no record":
            record.unlink()
        elif damage:
            record.write_bytes(record.read_bytes()[:20])
        said = works("translate", "--run_dir", run, file, "--output", left, *(["--resume"] if resume else []))
        assert ("written again" in said.err) == (bool(damage) or not resume)
        assert left.read_text() == file.read_text()
        assert sorted(path.name for path in left.parent.glob("out*")) == ["out.zh"]

    def test_two_processes_do_not_write_one_file(self, run, file, left, tmp_path):
        holder = "import fcntl, sys\nfile = open(sys.argv[1], 'r+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        holder += "print('locked', flush=True)\nsys.stdin.read()\n"
        with subprocess.Popen(
            [sys.executable, "-c", holder, left.with_name("out.zh.part")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            for flags in ([], ["--resume"]):
                args = ["translate", "--run_dir", run, file, "--output", left, *flags]
                assert_fails(tmp_path, *args, says=["another process is writing it"])
            process.kill()
        works("translate", "--run_dir", run, file, "--output", left, "--resume")


@pytest.mark.usefixtures("echoing")
def test_ctrl_c_waits_for_the_end_of_a_line(run, tmp_path, monkeypatch):
    """A pipe takes what it has room for; the signal comes in between."""

    class Slow(io.StringIO):
        def write(self, text):
            for half in (text[: len(text) // 2], text[len(text) // 2 :]):
                super().write(half)
                signal.raise_signal(signal.SIGINT) if half and half[-1] != "\n" else None

    slow = Slow()
    monkeypatch.setattr(sys, "stdout", slow)
    sink = StandardOutput()
    with pytest.raises(KeyboardInterrupt):
        sink.write(["one", "two", "three"])
    assert slow.getvalue() == "one\ntwo\nthree\n"


def test_a_second_ctrl_c_does_not_wait():
    def stuck():
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it waits")

    with pytest.raises(KeyboardInterrupt):
        stuck()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def process(*args, **options):
    line = [sys.executable, "-m", "scripts.leeml", "translate", *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_leaves_whole_lines(run):
    running = process("--run_dir", run, "--beam", 1, stdin=subprocess.PIPE)
    lines = [f"line {n}\n" for n in range(CHUNK + 9)]
    running.stdin.write("".join(lines))
    running.stdin.flush()
    got = [running.stdout.readline() for _ in range(CHUNK)]
    running.send_signal(signal.SIGINT)  # as it waits for more
    rest, said = running.communicate()
    assert running.returncode == 130
    assert said.splitlines() == ["leeml: stopped"]
    assert rest == ""
    assert all(line.endswith("\n") for line in got)


def test_a_closed_pipe_is_no_fault(run, tmp_path):
    running = process("--run_dir", run, "--beam", 1, numbered(2 * CHUNK, tmp_path))
    assert running.stdout.readline().endswith("\n")
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait() == 141
    assert said == ""


# shards


@pytest.mark.usefixtures("echoing")
@pytest.mark.parametrize("parts", [2, 5])
def test_shards_put_together_are_the_whole(run, tmp_path, parts):
    file = numbered(27, tmp_path)
    found = [works("translate", "--run_dir", run, file, "--shard", f"{n}/{parts}").out for n in range(1, parts + 1)]
    assert "".join(found) == file.read_text()
    assert max(map(len, found)) <= -(-7 // parts) * 4 * len("line number 27\n")


@given(total=st.integers(0, 5000), parts=st.integers(1, 20))
def test_shards_follow_each_other(total, parts):
    found = [Shard(n, parts).lines(total) for n in range(1, parts + 1)]
    assert [line for part in found for line in part] == list(range(total))
    assert all(not part or part.start % CHUNK == 0 for part in found)


@pytest.mark.usefixtures("echoing")
def test_processes_of_torchrun(run, tmp_path, monkeypatch):
    file = numbered(27, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "11")
    monkeypatch.setenv("RANK", "0")
    assert_fails(
        tmp_path, "translate", "--run_dir", run, file, says=["cannot share standard output; add --output FILE"]
    )
    found = {}
    for rank in (0, 5, 10):
        monkeypatch.setenv("RANK", str(rank))
        works("translate", "--run_dir", run, file, "--output", tmp_path / "out.zh")
        found |= {path.name: path.read_text() for path in tmp_path.glob("out.zh*")}
    lines = file.read_text().splitlines(keepends=True)
    parts = {f"out.zh.{n:02}": Shard(n, 11).lines(27) for n in (1, 6, 11)}  # in the order that a shell gives them
    assert found == {name: "".join(lines[part.start : part.stop]) for name, part in parts.items()}
    assert "".join(found.values())
