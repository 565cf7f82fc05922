"""Edits in a real ComfyUI while one fault after another strikes them: what is lost of them?

    python tests/benchmarks/faults.py [--json OUT.json] [--minutes N] [--seed N]

Each edit is run once undisturbed, keeping nothing; then again, and cancelled, failed by an error or
by too little memory, or its server killed (a new one follows, on the same user folder), at steps
drawn at random; then until it is done. What it has learned must be the same: all losses, and the
embedding and the weights to the bit, but for those whose steps were made in two processes, which
may add up in another order. The model is untrained and of the smallest size.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from machine.environment import REPOSITORY, in_host

if __name__ == "__main__":
    in_host()

import torch
from families.tiny import NARROW_UNETS, build_tiny
from machine.host_process import Server, serve
from PIL import Image
from safetensors import safe_open
from talk.api import Prompt, node
from talk.client import Client, Event, PromptFailed, PromptInterrupted

KINDS = ("cancelled", "raised", "out of memory", "killed")
TRAININGS = ("a", "b")
Learned = tuple[dict[str, Any], dict[str, torch.Tensor]]


class Ground:
    """A server that is started anew when it is gone; what it keeps outlives it."""

    server: Server
    client: Client

    def __init__(
        self,
        comfyui: Path,
        checkpoint: Path,
        user: Path,
        # Nothing of an earlier edit may answer instead.
        options: Sequence[str] = ("--cache-none",),
    ) -> None:
        """Take the ComfyUI, the model, the user folder and the server's other options."""
        self.comfyui, self.checkpoint, self.user = comfyui, checkpoint, user
        self.options = options
        self.stack = ExitStack()

    def __enter__(self) -> Ground:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def start(self) -> None:
        """A new server, in place of the one that may be there."""
        self.stack.close()
        self.stack = ExitStack()
        self.server = self.stack.enter_context(
            serve(
                self.comfyui, [self.checkpoint],
                more_packs=[REPOSITORY / "tests/host/faulting", NARROW_UNETS],
                options=["--user-directory", str(self.user), *self.options],
            )
        )  # fmt: skip
        self.client = self.stack.enter_context(Client(self.server.url))
        photograph = self.server.base / "photograph.png"
        Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(photograph)
        self.photograph = self.client.upload(photograph)

    def prompt(self, seed: int, steps: int, keep: bool) -> Prompt:
        """Both trainings of one edit, saved."""
        common = {
            "model": ["load", 0], "image": ["latent", 0], "steps": steps, "seed": seed,
            "batch_size": 2, "save_memory": "off", "keep": keep,
        }  # fmt: skip
        return {
            "load": node("CheckpointLoaderSimple", ckpt_name=self.checkpoint.name),
            "photograph": node("LoadImage", image=self.photograph),
            "latent": node("VAEEncode", pixels=["photograph", 0], vae=["load", 2]),
            "text": node("CLIPTextEncode", text=f"a sitting dog {seed}", clip=["load", 1]),
            "a": node("ImagicOptimizeEmbedding", target=["text", 0], learning_rate=1e-2, **common),
            "b": node(
                "ImagicFinetuneModel", optimized=["a", 0], learning_rate=1e-3, method="lora",
                rank=4, **common,
            ),
            "save": node(
                "ImagicSaveEdit", model=["load", 0], optimized=["a", 0], target=["text", 0],
                lora=["b", 1], optimized_loss=["a", 1], model_loss=["b", 2],
                filename_prefix=f"imagic/{seed} {time.monotonic_ns()}",
            ),
        }  # fmt: skip

    def run(self, seed: int, steps: int, keep: bool, on_event: Any = lambda _: None) -> Learned:
        """An edit; what it has learned, as its file has it."""
        prompt = self.prompt(seed, steps, keep)
        self.client.run(prompt, on_event)
        prefix = prompt["save"]["inputs"]["filename_prefix"]
        (file,) = (self.server.base / "output").glob(f"{prefix}*.safetensors")
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["edit"])["about"]["losses"]
            return about, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def kept(self) -> bool:
        """Whether there is a training that is not done."""
        return any((self.user / "__imagic" / "learned").glob("*.steps.safetensors"))

    def struck(self, seed: int, steps: int, fault: str, training: str, step: int) -> bool:
        """Run an edit until a fault strikes it; False where it was done before that."""
        pid = self.server.process.pid

        def on_event(event: Event) -> None:
            if event.type != "progress" or event.data["node"] != training:
                return
            if event.data["value"] < step or event.data["value"] == steps:
                return
            if fault == "cancelled":
                self.client.interrupt()
            elif fault == "killed":
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            elif not told:
                told.append(1)
                self.let_fail(fault, step % 3)

        told: list[int] = []
        try:
            self.run(seed, steps, keep=True, on_event=on_event)
        except (PromptInterrupted, PromptFailed) as error:
            is_ours = fault == "cancelled" or fault in str(error) or "memory" in str(error)
            assert is_ours, error
        except ConnectionError:
            self.start()
        else:
            # The fault that came too late would strike the next one.
            self.let_fail("never", 10**9)
            return False
        return True

    def let_fail(self, kind: str, after: int) -> None:
        """Have the model's pass fail after so many others; see the pack in host/faulting."""
        file = self.server.base / "temp" / "fault.json"
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"kind": kind, "after": after}), "utf-8")
        part.replace(file)


def same(found: Learned, expected: Learned, exact: bool) -> bool:
    """Whether both trainings ended alike."""
    if exact:
        alike = found[0] == expected[0]
        return alike and all(torch.equal(t, found[1][n]) for n, t in expected[1].items())
    pairs = [(found[0][name], expected[0][name]) for name in expected[0]]
    return all(
        len(a) == len(b) and torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-3)
        for a, b in pairs
    )


def main() -> None:
    """Strike until the time is up; write and print what became of it."""
    from benchmarks import command

    parser = command.parser(__doc__, "faults")
    parser.add_argument("--minutes", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; %(default)s")
    args = parser.parse_args()
    chance, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    struck: Counter[str] = Counter()
    edits, wrong = 0, []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = build_tiny(Path(folder) / "tiny.safetensors", seed=0)
        user = Path(folder) / "user"
        user.mkdir()
        with Ground(command.comfyui(), checkpoint, user) as ground:
            while time.monotonic() < end:
                seed, steps = chance.randrange(2**32), chance.randrange(10, 40)
                expected = ground.run(seed, steps, keep=False)
                exact = True
                for _ in range(chance.randrange(3, 7)):
                    fault = chance.choices(KINDS, (4, 4, 4, 1))[0]
                    at = chance.choice(TRAININGS), chance.randrange(1, steps)
                    if ground.struck(seed, steps, fault, *at):
                        struck[fault] += 1
                        exact = exact and fault != "killed"
                edits += 1
                if not same(ground.run(seed, steps, keep=True), expected, exact):
                    wrong.append(seed)
                print(f"{edits} edits, {dict(struck)}, wrong: {wrong}", flush=True)
    command.write(args.json, {"edits": edits, "struck": dict(struck), "wrong": wrong})


if __name__ == "__main__":
    main()
