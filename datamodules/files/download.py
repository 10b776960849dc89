"""Fetch the files that the course published, checked by SHA-256, resumed after a cut, from mirrors.

Everything a user can run into is a DataError. Files appear by rename, only when they are whole and checked.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from datamodules.errors import DataError
from datamodules.files.archives import unpack

CHUNK = 1 << 16  # bytes; a cut loses at most one chunk
TRIES = 5  # of one address, while the connection is cut in the middle: no wait between them
TIMEOUT = (10, 60)  # seconds to connect, seconds of silence


@dataclass(frozen=True)
class RemoteFile:
    """A published file: `name` is its path below the folder, `unpack` marks a zip to be unpacked beside itself."""

    name: str
    sha256: str
    urls: tuple[str, ...]
    unpack: bool = False


class _CutError(requests.RequestException):
    """The connection ended in the middle of the body: worth another try of the same address."""


class _RefusedError(requests.RequestException):
    """The server answers, but not with the file: on to the next mirror."""


class _ResumingDownloader:
    """A pooch downloader that collects in `part` and, when called again, goes on where `part` ends."""

    def __init__(self, part: Path, progress: bool) -> None:
        self.part, self.progress = part, progress
        self.resumed = False  # whether the last call built on bytes of an earlier one

    def __call__(self, url: str, output_file: str, _pooch: Any) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"}  # a Range counts the bytes that travel: they must be the file's own
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            self.resumed = bool(have) and answer.status_code in (206, 416)
            if answer.ok:
                self._receive(answer, have if self.resumed else 0)
            elif not self.resumed:  # a 416 says that nothing follows: the part is whole, or its hash will tell
                raise _RefusedError(f"HTTP {answer.status_code}")
        os.replace(self.part, output_file)

    def _receive(self, answer: requests.Response, have: int) -> None:
        """Append the body to the first `have` bytes; a web page is refused before the part is touched."""
        pieces = _pieces(answer)
        first = next(pieces, b"")
        is_page = not have and first.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))
        if is_page or answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise _RefusedError("a web page instead of the file: out of quota, or wants a login")
        length = None if "Content-Encoding" in answer.headers else answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        hidden = None if self.progress else True  # None: tqdm shows the bar on a terminal only
        with (
            self.part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=self.part.stem, disable=hidden) as bar,
        ):
            for piece in chain([first], pieces):
                file.write(piece)
                bar.update(len(piece))
            if total is not None and file.tell() < total:  # urllib3 before 2.0 takes a short body for a whole one
                raise _CutError("connection cut")


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    try:
        yield from answer.iter_content(CHUNK)
    except requests.RequestException as error:
        raise _CutError("connection cut") from error


def google_drive(file_id: str) -> str:
    """The address of a shared Google Drive file that asks for no confirmation, however large the file is."""
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


def fetch(files: Sequence[RemoteFile], folder: Path, progress: bool = True) -> list[Path]:
    """Put `files` below `folder`, and return their paths in the same order (of an unpacked zip: the zip's path).

    A file that is there is never overwritten. One bad file does not keep the others from coming: a single DataError
    at the end has one line for each.
    """
    problems = []
    for file in files:
        target = folder / file.name
        try:
            _fetch_one(file, target, progress)
            if file.unpack:
                unpack(target, target.parent)
        except DataError as error:
            problems.append(str(error))
        except OSError as error:  # full disk, no right to write, a folder in the file's place
            problems.append(f"{target}: cannot be read or written: {error.strerror or error}")
    if problems:
        raise DataError("\n".join(problems))
    return [folder / file.name for file in files]


def _fetch_one(file: RemoteFile, target: Path, progress: bool) -> None:
    if target.exists():
        found = pooch.file_hash(str(target))
        if found != file.sha256.lower():
            raise DataError(
                f"{target}: differs from the published file (SHA-256 {found[:12]}…, expected {file.sha256[:12]}…) and "
                "was left alone: move it away and fetch again, or use it as it is (a CRLF copy differs too)"
            )
        return
    failures = []
    for url in file.urls:
        failure = _failure(url, file, target, progress)
        if not failure:
            return
        failures.append(f"{url} ({failure})")
    kept = "; what came so far is kept, fetch again to go on" if _part(target).exists() else ""
    raise DataError(
        f"{file.name} could not be downloaded: {', '.join(failures)}{kept}; by hand: "
        f"download it from {' or '.join(file.urls)} (or Kaggle) and put it at {target}"
    )


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _failure(url: str, file: RemoteFile, target: Path, progress: bool) -> str:
    """Download from one address; what went wrong in a short clause, or "" when the file is in its place."""
    downloader = _ResumingDownloader(_part(target), progress)
    sha256 = f"sha256:{file.sha256}"
    failure = ""
    for _ in range(TRIES):
        try:
            pooch.retrieve(url, sha256, fname=target.name, path=target.parent, downloader=downloader)
            return ""
        except _CutError as error:
            failure = str(error)
        except _RefusedError as error:
            return str(error)
        except requests.Timeout:
            return "no answer in time"
        except requests.ConnectionError:
            return "no connection"
        except requests.RequestException as error:
            return type(error).__name__
        except ValueError:  # pooch's word for a wrong hash; the part is gone with it
            failure = "wrong SHA-256"
            if not downloader.resumed:  # else the fault may lie in the bytes from before: once more, from the start
                break
    return failure
