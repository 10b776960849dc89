"""The measure of speaker verification: are two utterances of one voice?"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

MOST = 3000  # utterances whose pairs are scored: 4.5 million of them


def equal_error_rate(scores: Tensor, same: Tensor) -> Tensor:
    """Where as many pairs of one speaker are refused as pairs of two are accepted, (N,), (N,) bool -> ().

    The mean of the two rates at the threshold where they come closest. NaN without pairs of both kinds.
    """
    order = scores.argsort(descending=True)
    ordered, same = scores[order], same[order].double()
    last = torch.cat(
        [ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)]
    )  # of each run of equal scores
    accepted = torch.cat([same.new_zeros(1), same.cumsum(0)[last]])
    wrongly = torch.cat([same.new_zeros(1), (1 - same).cumsum(0)[last]])
    refused = 1 - accepted / same.sum()
    wrongly = wrongly / (1 - same).sum()
    best = (refused - wrongly).abs().argmin()
    return ((refused[best] + wrongly[best]) / 2).float()


class EqualErrorRate(Metric):
    """Equal error rate of cosines between the embeddings of all pairs of utterances, of MOST of them at most."""

    higher_is_better = False
    full_state_update = False
    embeddings: list[Tensor]
    speakers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("speakers", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, speakers: Tensor) -> None:
        """Add utterances (B, E) and the numbers of their speakers (B,)."""
        self.embeddings.append(embeddings.float())
        self.speakers.append(speakers)

    def compute(self) -> Tensor:
        """The rate, from 0 to 1."""
        x, y = dim_zero_cat(self.embeddings), dim_zero_cat(self.speakers)
        chosen = torch.linspace(0, len(x) - 1, min(MOST, len(x))).round().long().to(x.device)
        x, y = torch.nn.functional.normalize(x[chosen]), y[chosen]
        first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
        return equal_error_rate((x @ x.T)[first, second], y[first] == y[second])
