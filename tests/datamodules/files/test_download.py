"""datamodules/files/download.py against a real HTTP server on this machine."""

import hashlib
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.files.download import TRIES, RemoteFile, fetch, google_drive

BODY = bytes(range(256)) * 2000  # 512,000 bytes: several chunks
CUT = 300_000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Server:
    """What the server does on each path, and what it was asked: (path, Range header or "")."""

    url: str = ""
    paths: dict[str, Callable[[BaseHTTPRequestHandler, int], None]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            before = sum(path == self.path for path, _ in state.asked)
            state.asked.append((self.path, self.headers.get("Range", "")))
            if self.path in state.paths:
                state.paths[self.path](self, before)
            else:
                reply(self, b"<html>not here</html>", 404, kind="text/html")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def reply(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    status: int = 200,
    kind: str = "application/octet-stream",
    cut_at: int | None = None,
) -> None:
    """Answer with `body`; promise all of it, and close the connection after `cut_at` bytes."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:cut_at])


def start(handler: BaseHTTPRequestHandler) -> int:
    return int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def whole(body: bytes, kind: str = "application/octet-stream") -> Callable[[BaseHTTPRequestHandler, int], None]:
    """A server that knows no Range."""
    return lambda handler, before: reply(handler, body, kind=kind)


def ranged(body: bytes, cuts: int = 0) -> Callable[[BaseHTTPRequestHandler, int], None]:
    """A server that knows Range and cuts its first `cuts` answers."""

    def answer(handler: BaseHTTPRequestHandler, before: int) -> None:
        begin = start(handler)
        if begin >= len(body):
            reply(handler, b"", 416)
        else:
            reply(handler, body[begin:], 206 if begin else 200, cut_at=CUT if before < cuts else None)

    return answer


def remote(server: Server, *paths: str, name: str = "covid.train.csv", body: bytes = BODY) -> RemoteFile:
    return RemoteFile(name, sha(body), tuple(server.url + path for path in paths))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_whole_file_lands_below_the_folder_and_nothing_else_does(server: Server, tmp_path: Path) -> None:
    server.paths["/a"] = whole(BODY)
    paths = fetch([remote(server, "/a", name="2021/covid.train.csv")], tmp_path / "data")
    assert paths == [tmp_path / "data/2021/covid.train.csv"]
    assert paths[0].read_bytes() == BODY
    assert names(tmp_path / "data") == ["2021", "2021/covid.train.csv"]


def test_cut_connection_goes_on_by_range(server: Server, tmp_path: Path) -> None:
    server.paths["/a"] = ranged(BODY, cuts=1)
    (path,) = fetch([remote(server, "/a")], tmp_path)
    assert path.read_bytes() == BODY
    (_, first), (_, second) = server.asked
    assert first == ""
    begin = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 0 < begin <= CUT
    assert names(tmp_path) == ["covid.train.csv"]


def test_a_later_run_goes_on_where_the_first_gave_up(server: Server, tmp_path: Path) -> None:
    # the server sends one chunk more each time, and always too little for the tries of one run
    def crumbs(handler: BaseHTTPRequestHandler, before: int) -> None:
        begin = start(handler)
        reply(handler, BODY[begin:], 206 if begin else 200, cut_at=70_000 if before < TRIES else None)

    server.paths["/a"] = crumbs
    with pytest.raises(DataError, match=r"connection cut.*kept, fetch again to go on"):
        fetch([remote(server, "/a")], tmp_path)
    got = (tmp_path / "covid.train.csv.part").read_bytes()
    assert len(server.asked) == TRIES
    assert 0 < len(got) < len(BODY)
    assert BODY.startswith(got)
    (path,) = fetch([remote(server, "/a")], tmp_path)
    assert server.asked[TRIES:] == [("/a", f"bytes={len(got)}-")]
    assert path.read_bytes() == BODY
    assert names(tmp_path) == ["covid.train.csv"]


def test_cut_at_one_mirror_goes_on_at_the_next(server: Server, tmp_path: Path) -> None:
    def cut_then_gone(handler: BaseHTTPRequestHandler, before: int) -> None:
        if before:
            reply(handler, b"", 503)
        else:
            reply(handler, BODY, cut_at=CUT)

    server.paths |= {"/a": cut_then_gone, "/b": ranged(BODY)}
    (path,) = fetch([remote(server, "/a", "/b")], tmp_path)
    assert path.read_bytes() == BODY
    assert [asked for asked, _ in server.asked] == ["/a", "/a", "/b"]
    assert server.asked[2][1].startswith("bytes=")


def test_server_that_ignores_range_starts_anew(server: Server, tmp_path: Path) -> None:
    server.paths["/a"] = lambda handler, before: reply(handler, BODY, cut_at=CUT if before == 0 else None)
    (path,) = fetch([remote(server, "/a")], tmp_path)
    assert path.read_bytes() == BODY
    assert server.asked[1][1].startswith("bytes=")


def test_part_that_was_whole_already(server: Server, tmp_path: Path) -> None:
    server.paths["/a"] = ranged(BODY)
    (tmp_path / "covid.train.csv.part").write_bytes(BODY)
    (path,) = fetch([remote(server, "/a")], tmp_path)
    assert path.read_bytes() == BODY
    assert server.asked == [("/a", f"bytes={len(BODY)}-")]


def test_part_of_another_file_does_not_cost_the_mirror(server: Server, tmp_path: Path) -> None:
    server.paths["/a"] = ranged(BODY)
    (tmp_path / "covid.train.csv.part").write_bytes(b"junk")
    (path,) = fetch([remote(server, "/a")], tmp_path)
    assert path.read_bytes() == BODY
    assert server.asked == [("/a", "bytes=4-"), ("/a", "")]


def test_wrong_checksum_goes_to_the_next_mirror_from_the_start(server: Server, tmp_path: Path) -> None:
    server.paths |= {"/bad": ranged(b"x" * 100_000), "/good": ranged(BODY)}
    (path,) = fetch([remote(server, "/bad", "/good")], tmp_path)
    assert path.read_bytes() == BODY
    assert server.asked == [("/bad", ""), ("/good", "")]
    assert names(tmp_path) == ["covid.train.csv"]


def test_missing_mirror_goes_to_the_next(server: Server, tmp_path: Path) -> None:
    server.paths["/good"] = whole(BODY)
    (path,) = fetch([remote(server, "/gone", "/good")], tmp_path)
    assert path.read_bytes() == BODY
    assert server.asked == [("/gone", ""), ("/good", "")]


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b"<p>Quota exceeded</p>", "text/html; charset=utf-8"),
        (b"\n <!DOCTYPE HTML><title>Sign in</title>", "application/octet-stream"),
        (b"<HTML lang=en>", "text/csv"),
    ],
)
def test_web_page_is_no_file_and_does_not_cost_the_part(server: Server, tmp_path: Path, page: bytes, kind: str) -> None:
    server.paths |= {"/page": whole(page, kind), "/good": ranged(BODY)}
    part = tmp_path / "covid.train.csv.part"
    part.write_bytes(BODY[:1000])
    with pytest.raises(DataError, match=r"/page \(a web page instead of the file"):
        fetch([remote(server, "/page")], tmp_path)
    assert part.read_bytes() == BODY[:1000]
    (path,) = fetch([remote(server, "/page", "/good")], tmp_path)
    assert path.read_bytes() == BODY
    assert server.asked[-1] == ("/good", "bytes=1000-")


def test_when_all_fail_one_line_says_why_and_what_to_do_by_hand(server: Server, tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound and never listening: nothing answers here
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        server.paths |= {"/page": whole(b"<html>"), "/bad": whole(b"other")}
        file = remote(server, "/gone", "/page", "/bad")
        file = RemoteFile(file.name, file.sha256, (*file.urls, dead))
        with pytest.raises(DataError) as caught:
            fetch([file], tmp_path)
    text = str(caught.value)
    assert text.startswith("covid.train.csv could not be downloaded: ")
    for part in (
        f"{server.url}/gone (HTTP 404)",
        f"{server.url}/page (a web page",
        f"{server.url}/bad (wrong SHA-256)",
        f"{dead} (no connection)",
        f"download it from {' or '.join(file.urls)} (or Kaggle) and put it at {tmp_path / 'covid.train.csv'}",
    ):
        assert part in text
    assert "\n" not in text
    assert "kept" not in text
    assert names(tmp_path) == []


def test_no_network_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        with pytest.raises(DataError, match=r"no connection.*by hand: download it from") as caught:
            fetch([RemoteFile("covid.train.csv", sha(BODY), (url,))], tmp_path)
    assert str(tmp_path / "covid.train.csv") in str(caught.value)
    assert names(tmp_path) == []


def test_file_that_is_there_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "covid.train.csv").write_bytes(BODY)
    assert fetch([remote(server, "/a")], tmp_path) == [tmp_path / "covid.train.csv"]
    assert server.asked == []


def test_differing_file_is_left_alone_and_the_others_still_come(server: Server, tmp_path: Path) -> None:
    server.paths |= {"/a": whole(b"id,x\n"), "/b": whole(BODY)}
    (tmp_path / "train.csv").write_bytes(b"id,x\r\n")
    files = [remote(server, "/a", name="train.csv", body=b"id,x\n"), remote(server, "/b", name="test.csv")]
    with pytest.raises(DataError, match=r"^\S+train\.csv: differs .* move it away .* or use it as it is") as caught:
        fetch(files, tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "train.csv").read_bytes() == b"id,x\r\n"
    assert (tmp_path / "test.csv").read_bytes() == BODY
    assert [asked for asked, _ in server.asked] == ["/b"]


def test_folder_that_is_a_file_is_a_data_error(server: Server, tmp_path: Path) -> None:
    server.paths["/a"] = whole(BODY)
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(DataError, match="cannot be read or written"):
        fetch([remote(server, "/a")], tmp_path / "data")


def test_google_drive_address_asks_for_no_confirmation() -> None:
    url = "https://drive.usercontent.google.com/download?id=19CCyCgJrUxt&export=download&confirm=t"
    assert google_drive("19CCyCgJrUxt") == url


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
    return path


def test_zip_is_fetched_and_unpacked_beside_itself_once(server: Server, tmp_path: Path) -> None:
    members = {"feat/": b"", "feat/a.txt": b"one", "feat/deep/b.txt": BODY, "windows\\c.txt": b"three"}
    body = make_zip(tmp_path / "source.zip", members).read_bytes()
    server.paths["/z"] = whole(body)
    file = RemoteFile("libriphone.zip", sha(body), (server.url + "/z",), unpack=True)
    data = tmp_path / "data"
    assert fetch([file], data) == [data / "libriphone.zip"]
    assert (data / "feat/a.txt").read_bytes() == b"one"
    assert (data / "feat/deep/b.txt").read_bytes() == BODY
    assert (data / "windows/c.txt").read_bytes() == b"three"
    there = names(data)
    assert len(there) == 7  # four files, three folders, nothing of the unpacking itself
    (data / "feat/a.txt").unlink()
    fetch([file], data)
    assert names(data) == there
    assert len(server.asked) == 1
