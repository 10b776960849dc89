"""SentencePiece pieces of HW5: one unigram model for both languages, as the course trains it.

Kudo 2018, "Subword Regularization"; Kudo and Richardson 2018, "SentencePiece". Text is normalised as NFKC and in lower
case. What no piece covers is spelled in bytes, so that every text has pieces and nothing is unknown.
"""

import io
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from datamodules.errors import DataError

PAD, UNK, BOS, EOS = range(4)
TAG = "<bt>"  # before the source of a back-translated pair; no text has this piece
SEEDS = 100_000  # candidates to begin with: a tenth of the usual takes a third of the time, for the same pieces a text
THREADS = 4  # of training, fixed: the sums of its threads differ in the last bit, and so may the pieces


class Tokenizer:
    """Pieces of a text and back.

    Args:
        model: Of SentencePiece, serialised.

    Raises:
        DataError: it is none, or one with other reserved pieces.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.load_from_serialized_proto(model)
        except RuntimeError:
            raise DataError("the tokenizer is no SentencePiece model; take the facts of a run of HW5") from None
        own = self.processor
        if (own.pad_id(), own.unk_id(), own.bos_id(), own.eos_id()) != (PAD, UNK, BOS, EOS) or own.is_unknown(self.tag):
            raise DataError(
                f"the tokenizer has other reserved pieces than pad {PAD}, unk {UNK}, bos {BOS}, eos {EOS} and {TAG}; "
                "take the facts of a run of HW5"
            )

    def __len__(self) -> int:
        return self.processor.vocab_size()

    @property
    def tag(self) -> int:
        """Number of the piece that marks back-translated sources."""
        return self.processor.piece_to_id(TAG)

    def encode(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Numbers of the pieces of each cleaned text, without bos and eos."""
        return self.processor.encode(list(texts), num_threads=threads)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts, normalised; reserved pieces say nothing."""
        return self.processor.decode([list(sentence) for sentence in ids]) if len(ids) else []

    @property
    def is_byte(self) -> np.ndarray:
        """Which pieces spell a byte of a character that no other piece covers, (V,) bool."""
        return np.array([self.processor.is_byte(piece) for piece in range(len(self))])

    def as_tensor(self) -> Tensor:
        """The model as uint8, for the facts."""
        return torch.frombuffer(bytearray(self.model), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, model: Tensor) -> "Tokenizer":
        """The tokenizer in the facts."""
        return cls(model.cpu().numpy().tobytes())


def train_tokenizer(texts: Iterable[str], vocabulary: int, seed: int = 0) -> bytes:
    """A serialised model of at most so many pieces (fewer where the texts hold fewer); the same for the same texts.

    Raises:
        DataError: the texts need more pieces than that, one for each character.
    """
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, model_type="unigram", vocab_size=vocabulary,
            hard_vocab_limit=False, character_coverage=1.0, byte_fallback=True, normalization_rule_name="nmt_nfkc_cf",
            input_sentence_size=1_000_000, shuffle_input_sentence=True, pad_id=PAD, unk_id=UNK, bos_id=BOS, eos_id=EOS,
            control_symbols=[TAG], num_threads=THREADS,
            seed_sentencepiece_size=SEEDS, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise DataError(f"data.vocabulary is {vocabulary}: no tokenizer can be trained with it ({error})") from None
    return model.getvalue()
