"""Utterances out of TIMIT-11's rows: neighbouring rows of one utterance share 10 of their 11 frames."""

from pathlib import Path

import numpy as np
import torch

from datamodules.errors import DataError
from datamodules.speech.libriphone import BLOCK, TIMIT_FRAMES, WIDTH
from datamodules.speech.packed import Packed, Precision

AROUND = TIMIT_FRAMES // 2  # frames on each side of a row's own
JOINED = 0.5  # share of the rows that must go on from the row before


def rebuild(path: Path, precision: Precision = "float32") -> Packed | None:
    """Utterances of rows (N, 429), each the 11 frames around its own; None where the rows are in no such order.

    An utterance goes on as long as the last 10 frames of a row equal the first 10 of the next. What the row at a border
    shows before the first frame, or after the last, follows one of two rules, found out for each border:

    - the border frame is repeated: these copies are taken out, and as many frames as rows are left;
    - anything else: real frames, where there are rows only for windows that lie wholly inside, or a filling such as
      zeros. They stay as `context`, five frames without a row of their own.

    By either rule `windows` of 11 frames around every row give the rows again. It fails in two cases. Utterances are
    joined where the ten frames at a border are the same on both sides (one constant frame, as in digital silence). And
    rows that were shuffled, or drawn one by one, share nothing with their neighbours: where fewer than half of them go
    on from the row before, the result is None. A row that was left out only cuts its utterance in two.

    Args:
        path: The .npy file; see `read_windows`, which checks it.
        precision: Of the frames.

    Raises:
        DataError: a value is too large for the precision.
    """
    count = len(np.load(path, mmap_mode="r"))
    ends, firsts, goes_on = [], [], np.zeros(count, bool)
    before = np.full((1, TIMIT_FRAMES * WIDTH), np.nan)
    for start in range(0, count, BLOCK):
        # a map opened for each block: pages seen through one map would stay in memory
        block = np.array(np.load(path, mmap_mode="r")[start : start + BLOCK])
        shifted = np.concatenate([before[:, WIDTH:], block[:-1, WIDTH:]])
        goes_on[start : start + BLOCK] = (shifted == block[:, :-WIDTH]).all(1)
        if goes_on[: start + BLOCK].mean() < JOINED:
            return None
        firsts.append(block[~goes_on[start : start + BLOCK], :-WIDTH])
        ends.append(block[:, -WIDTH:])
        before = block[-1:]
    starts = np.flatnonzero(~goes_on)
    lengths = np.diff([*starts, count])
    # frames of utterance u: the first ten of its first row, and the last one of each of its rows
    heads = np.concatenate(firsts).reshape(len(starts), TIMIT_FRAMES - 1, WIDTH)
    tails = np.split(np.concatenate(ends), starts[1:])
    frames, context = [], np.zeros((len(starts), 2), np.int64)
    for utterance, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        whole = np.concatenate([head, tail])
        if (whole[:AROUND] == whole[AROUND]).all():
            whole = whole[AROUND:]
        else:
            context[utterance, 0] = AROUND
        if (whole[-AROUND:] == whole[-AROUND - 1]).all():
            whole = whole[:-AROUND]
        else:
            context[utterance, 1] = AROUND
        with np.errstate(over="ignore"):  # said below
            frames.append(whole.astype(precision))
        if not np.isfinite(frames[-1]).all():
            raise DataError(f"{path}: a value in row {starts[utterance]} or after is too large for {precision}")
    offsets = np.cumsum([0, *(lengths + context.sum(1))])
    return Packed(torch.from_numpy(np.concatenate(frames)), torch.from_numpy(offsets), None, torch.from_numpy(context))
