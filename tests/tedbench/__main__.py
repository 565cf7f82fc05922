"""TEdBench, the benchmark of the Imagic paper, on running ComfyUI servers.

    python tests/tedbench run TEDBENCH OUT --checkpoint NAME --server URL [URL ...] [options]
    python tests/tedbench report OUT
    python tests/tedbench answers OUT FILE [FILE ...]

`run` edits the benchmark's photographs by Imagic, Imagic without stage B, SDEdit and DDIB, by one
protocol that is the same for all and lies in OUT/protocol.json. Run it again to go on where it
was stopped or where something failed. `report` makes OUT/scores.md, OUT/scores.json,
OUT/curves.png (figure 9) and OUT/page/index.html (figure 8) anew; `run` ends with it. Let people
open the page and choose; `answers` turns the files that they download there into rates.

Every server must have this pack. Nothing is left in a server's input and output folders: pictures
go through its temporary one.
"""

import argparse
import dataclasses
import signal
import sys
import threading
from pathlib import Path
from typing import Any

# This folder itself must not be on the path: its modules are named within tedbench.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

from tedbench import answers, benchmark, curves, page, protocol, scores
from tedbench.farm import Farm
from tedbench.protocol import METHODS, Protocol, ProtocolError
from tedbench.servers import Unusable, Worker, check, defaults
from tedbench.store import Store

KNOWN = {f.name: f.default for f in dataclasses.fields(Protocol)}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python tests/tedbench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run edits, then report")
    run.add_argument("tedbench", type=Path, help="folder with input_list.json and originals/")
    run.add_argument("out", type=Path, help="folder for everything that comes out")
    run.add_argument("--checkpoint", required=True, help="as the servers' Load Checkpoint names it")
    run.add_argument(
        "--server",
        required=True,
        nargs="+",
        metavar="URL",
        help="a running ComfyUI such as http://127.0.0.1:8188; several share the work",
    )
    run.add_argument(
        "--edits",
        nargs="+",
        default=[],
        metavar="N or NAME",
        help="every (all / N)th edit, or the edits or photographs of these names; default: all",
    )
    run.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    same = run.add_argument_group("protocol", "the same in every run into one folder")
    same.add_argument(
        "--size",
        type=int,
        default=KNOWN["size"],
        help="side in pixels at which the model works; default: %(default)s",
    )
    same.add_argument("--seed", type=int, default=KNOWN["seed"], help="default: %(default)s")
    same.add_argument("--etas", type=float, nargs="+", default=KNOWN["etas"])
    same.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=KNOWN["strengths"],
        help="SDEdit's grid: how much of the photograph is noised",
    )
    same.add_argument(
        "--steps", type=int, default=KNOWN["steps"], help="sampling steps; default: %(default)s"
    )
    same.add_argument("--cfg", type=float, default=KNOWN["cfg"], help="default: %(default)s")
    for stage in ("optimize", "finetune"):
        same.add_argument(
            f"--{stage}-steps", type=int, metavar="N", help="training steps; default: the node's"
        )
    same.add_argument(
        "--clip",
        metavar="FILE",
        help="whole CLIP that the servers have both as a text encoder and as a CLIP "
        "vision model, for the alignment; default: it is not measured",
    )
    report = commands.add_parser("report", help="table, curves and page from what is there")
    report.add_argument("out", type=Path)
    told = commands.add_parser("answers", help="preference rates from people's answer files")
    told.add_argument("out", type=Path)
    told.add_argument("files", type=Path, nargs="+")
    return parser.parse_args(given)


def run(given: argparse.Namespace) -> int:
    """Run edits; return the exit code."""
    stop = threading.Event()
    edits = benchmark.choose(benchmark.read(given.tedbench), given.edits)
    servers = [Worker(url, stop) for url in dict.fromkeys(given.server)]
    described = [server.describe() for server in servers]
    for server, nodes in zip(servers, described, strict=True):
        missing = [n for n in ("ImagicOptimizeEmbedding", "ImagicFinetuneModel") if n not in nodes]
        if missing:
            raise Unusable(f"{server.url} does not have this pack: no {', '.join(missing)}")
    trained: dict[str, Any] = {}
    for stage, node in (
        ("optimize", "ImagicOptimizeEmbedding"), ("finetune", "ImagicFinetuneModel")
    ):  # fmt: skip
        steps = getattr(given, f"{stage}_steps")
        changed = {"seed": given.seed} | ({"steps": steps} if steps else {})
        trained[stage] = defaults(described[0], node, **changed)
    fixed = Protocol(
        benchmark=benchmark.digest(given.tedbench), checkpoint=given.checkpoint, **trained,
        size=given.size, seed=given.seed, etas=tuple(given.etas),
        strengths=tuple(given.strengths), steps=given.steps, cfg=given.cfg, clip=given.clip,
    )  # fmt: skip
    for server, nodes in zip(servers, described, strict=True):
        check(server, fixed, nodes)
    protocol.begin(given.out, fixed)

    store = Store(given.out)
    farm = Farm(store, fixed, edits, given.methods, lambda line: print(line, flush=True))
    farm.run(servers, stop)
    report(store, fixed)
    failed = store.failures()
    for name, method, error in failed:
        print(f"failed: {name}, {method}: {error}", file=sys.stderr)
    for url in farm.lost:
        print(f"lost: {url}", file=sys.stderr)
    if left := farm.unfinished():
        print(f"not done, no server is left: {', '.join(left)}", file=sys.stderr)
    if failed or left:
        print("run the same command again to try these again", file=sys.stderr)
    return 1 if failed or left else 0


def report(store: Store, fixed: Protocol) -> None:
    """Table, curves and page of what is there."""
    found = scores.report(store, fixed)
    drawn = curves.picture(found)
    if drawn:
        drawn.savefig(store.folder / "curves.png")
    choices = page.write_page(store, fixed)
    print((store.folder / "scores.md").read_text(encoding="utf-8"))
    print(f"{choices} blind choices: {(store.folder / 'page' / 'index.html').absolute()}")


def main() -> int:
    """Do what the command line says; return the exit code."""
    given = arguments()
    # A run that a shell has in the background takes its prompts back, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if given.command == "run":
            return run(given)
        fixed = protocol.load(given.out)
        if given.command == "report":
            report(Store(given.out), fixed)
        else:
            print(answers.report(given.out, given.files, page.load_key(given.out)))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (
        answers.AnswersError, benchmark.BenchmarkError, ProtocolError, scores.ScoresDiffer, Unusable
    ) as error:  # fmt: skip
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
