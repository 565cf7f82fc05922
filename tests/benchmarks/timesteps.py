"""What it saves to draw each step's timesteps one from each equal part of the schedule.

    python tests/benchmarks/timesteps.py [--json OUT.json] [--draws N]

The variance of a step's loss and gradient over its draws of (t, eps), stratified over independent,
at the start of stages A and B on a held-out animal of the miniature: 1 saves nothing, 0.5 is as
good as twice the batch. Gradients are by the embedding (A) and by a LoRA of all layers (B); their
variance is the trace of the covariance. The living channels of the network alone: see `living`.
"""

import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

import torch
from miniature import edits
from torch import Tensor

from benchmarks import command
from benchmarks.counterfactual import Host

BATCHES = (2, 4, 8)


class Moments:
    """Sums of vectors and of their squared lengths, by part of the schedule."""

    def __init__(self, parts: int) -> None:
        """Of no vectors yet."""
        self.count, self.square = [0] * parts, [0.0] * parts
        self.sum: list[Any] = [0.0] * parts

    def add(self, part: int, vector: Tensor) -> None:
        """Count a vector in."""
        self.count[part] += 1
        self.square[part] += vector.square().sum().item()
        self.sum[part] = self.sum[part] + vector

    def variance(self, parts: list[int]) -> float:
        """Unbiased trace of the covariance of the vectors in these parts."""
        count = sum(self.count[p] for p in parts)
        mean = sum(self.sum[p] for p in parts) / count
        square = sum(self.square[p] for p in parts)
        return (square - count * mean.square().sum().item()) / (count - 1)

    def ratio(self, batch: int) -> float:
        """Variance of a stratified batch's mean over that of an independent one's."""
        total = len(self.count)
        width = total // batch
        strata = [list(range(i, i + width)) for i in range(0, total, width)]
        within = sum(map(self.variance, strata)) / batch
        return within / self.variance(list(range(total)))


def main() -> None:
    """Measure, print, write."""
    parser = command.parser(__doc__, "timesteps")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--edit", type=int, default=0)
    arguments = parser.parse_args()
    host = Host(command.comfyui(), only_living=True)
    edit = edits.edits(arguments.edit + 1)[arguments.edit]
    pack, text, image = host.pack, host.say(edit.target_text), host.encode(edit.source)
    parts = max(BATCHES)
    moments = {name: Moments(parts) for name in ("loss", "gradient A", "gradient B")}
    with pack.session(host.model, text, image, "lora") as session:
        embedding = [t.clone().requires_grad_() for t in session.embedding.tensors()]
        changes = session.changes.values()
        trained = [p for change in changes for p in change.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        for _ in range(arguments.draws // parts):
            draws = pack.draws(session, parts, generator, stratified=True)
            for part, one in enumerate(draws.split(1)):
                loss = pack.losses(session, embedding, one)
                gradients = torch.autograd.grad(
                    loss.mean(), [embedding[0], *trained], allow_unused=True
                )
                of_a, *of_b = (g.flatten() for g in gradients if g is not None)
                moments["loss"].add(part, loss.detach().double())
                moments["gradient A"].add(part, of_a.double())
                moments["gradient B"].add(part, torch.cat(of_b).double())
    found = {name: {b: round(m.ratio(b), 3) for b in BATCHES} for name, m in moments.items()}
    print(json.dumps(found, indent=1))
    about = {"draws": arguments.draws, "edit": edit.name, "sentence": edit.target_text}
    command.write(arguments.json, {"variance ratio by batch": found, **about})


if __name__ == "__main__":
    main()
