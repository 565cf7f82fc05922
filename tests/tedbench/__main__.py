"""TEdBench, the benchmark of the Imagic paper, or any folder of photographs with sentences.

    python tests/tedbench run FOLDER OUT --checkpoint NAME [options]
    python tests/tedbench report OUT
    python tests/tedbench answers OUT FILE [FILE ...]
    python tests/tedbench scheduler [options of Dask's]
    python tests/tedbench worker ADDRESS [options]

`run` edits the photographs by Imagic, Imagic without stage B, SDEdit and DDIB, by one protocol
that is the same for all and lies in OUT/protocol.json. Run it again to go on where it was stopped
or where something failed. `report` makes OUT/scores.md, OUT/scores.json, OUT/curves.png (figure 9)
and OUT/page/index.html (figure 8) anew; `run` ends with it. Let people open the page and choose;
`answers` turns the files that they download there into rates.

FOLDER has an `input_list.json`, a list of {"img_name": ..., "target_text": ...}, and the
photographs, beside it or in `originals/`.

`run` starts a ComfyUI with this pack for each GPU and ends it with itself, or edits on those that
`--server` names. To edit on other machines, start `scheduler` on one of them, `worker` on each, and
give `run` the scheduler's address: `--scheduler tcp://HOST:8786`. It does whatever it is sent, so
let only friends reach its port. Nothing is left in a server's input and output folders.
"""

import argparse
import asyncio
import dataclasses
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

# This folder itself must not be on the path: its modules are named within tedbench.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from machine.environment import in_host

if __name__ == "__main__":
    in_host()

from distributed import Client
from distributed.cli import dask_scheduler

from tedbench import answers, benchmark, cluster, jobs, page, protocol
from tedbench.protocol import METHODS, Protocol, ProtocolError
from tedbench.servers import Unusable, defaults
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
    run.add_argument("folder", type=Path, help="with input_list.json and the photographs")
    run.add_argument("out", type=Path, help="folder for everything that comes out")
    run.add_argument("--checkpoint", required=True, help="as Load Checkpoint names it")
    run.add_argument("--scheduler", metavar="ADDRESS", help="edit on the workers of this one")
    run.add_argument(
        "--edits",
        nargs="+",
        default=[],
        metavar="N or NAME",
        help="every (all / N)th edit, or the edits or photographs of these names; default: all",
    )
    run.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    _add_protocol(run.add_argument_group("protocol", "the same in every run into one folder"))
    worker = commands.add_parser("worker", help="edit for a scheduler, from this machine")
    worker.add_argument("address", help="the scheduler's, such as tcp://192.168.0.2:8786")
    for each in (run, worker):
        each.add_argument(
            "--server",
            nargs="+",
            default=[],
            metavar="URL",
            help="edit on this running ComfyUI that has the pack, such as http://127.0.0.1:8188; "
            "several share the work; default: one of its own for each GPU",
        )
        each.add_argument(
            "--models",
            type=Path,
            help="models folder of its own; default: that of the ComfyUI which is found",
        )
    commands.add_parser("scheduler", help="where workers and runs meet", add_help=False)
    report = commands.add_parser("report", help="table, curves and page from what is there")
    report.add_argument("out", type=Path)
    told = commands.add_parser("answers", help="preference rates from people's answer files")
    told.add_argument("out", type=Path)
    told.add_argument("files", type=Path, nargs="+")
    read, others = parser.parse_known_args(given)
    if others and read.command != "scheduler":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    read.options = others
    return read


def _add_protocol(same: argparse._ArgumentGroup) -> None:
    same.add_argument(
        "--size",
        type=int,
        default=KNOWN["size"],
        help="side in pixels at which the model works; default: %(default)s",
    )
    same.add_argument(
        "--whole",
        action="store_true",
        help="keep the photograph's shape, at as many pixels; default: its middle square",
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
        metavar="FOLDER",
        help="of the CLIP that measures, in the form of transformers; default: ViT-L/14 of OpenAI "
        "where transformers has it in its cache, else none",
    )


def run(given: argparse.Namespace) -> int:
    """Run edits; return the exit code."""
    edits = benchmark.choose(benchmark.read(given.folder), given.edits)
    if given.clip and not (Path(given.clip) / "config.json").is_file():
        raise Unusable(f"{given.clip} is not the folder of a CLIP: it has no config.json")
    store = Store(given.out)
    with _cluster(given) as client:
        workers = cluster.editors(client)
        print(f"{len(workers)} workers; {client.dashboard_link} shows what they do", flush=True)
        fixed = _protocol(given, client, workers)
        client.run(jobs.ready, fixed, workers=workers)
        protocol.begin(given.out, fixed)
        jobs.Run(client, store, fixed, given.methods, lambda line: print(line, flush=True))(edits)
    report(store, fixed)
    failed = store.failures()
    for name, method, error in failed:
        print(f"failed: {name}, {method}: {error}", file=sys.stderr)
    if failed:
        print("run the same command again to try these again", file=sys.stderr)
    return 1 if failed else 0


def _cluster(given: argparse.Namespace) -> AbstractContextManager[Client]:
    if not given.scheduler:
        print("starting ...", flush=True)
        return cluster.local(cluster.comfies(given.server, given.models))
    if given.server or given.models:
        raise Unusable("with --scheduler it is the workers who are told --server or --models")
    return cluster.at(given.scheduler)


def _protocol(given: argparse.Namespace, client: Client, workers: list[str]) -> Protocol:
    nodes = client.run(jobs.nodes, workers=workers)[workers[0]]
    trained: dict[str, Any] = {}
    for stage, node in (
        ("optimize", "ImagicOptimizeEmbedding"), ("finetune", "ImagicFinetuneModel")
    ):  # fmt: skip
        steps = getattr(given, f"{stage}_steps")
        changed = {"seed": given.seed} | ({"steps": steps} if steps else {})
        trained[stage] = defaults(nodes, node, **changed)
    return Protocol(
        benchmark=benchmark.digest(given.folder), checkpoint=given.checkpoint, **trained,
        size=given.size, whole=given.whole, seed=given.seed, etas=tuple(given.etas),
        strengths=tuple(given.strengths), steps=given.steps, cfg=given.cfg, clip=given.clip,
    )  # fmt: skip


def report(store: Store, fixed: Protocol) -> None:
    """Table, curves and page of what is there."""
    # Takes seconds to load, of which workers have no use.
    from tedbench import curves, measures, scores

    try:
        judges = measures.judges(fixed.clip)
    except OSError as error:
        raise Unusable(f"the CLIP that this run was begun with cannot be read: {error}") from None
    found = scores.report(store, fixed, judges)
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
        if given.command == "scheduler":
            dask_scheduler.main(given.options, prog_name="scheduler")
        elif given.command == "worker":
            asyncio.run(cluster.join(given.address, cluster.comfies(given.server, given.models)))
        elif given.command == "report":
            report(Store(given.out), protocol.load(given.out))
        else:
            protocol.load(given.out)
            print(answers.report(given.out, given.files, page.load_key(given.out)))
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (answers.AnswersError, benchmark.BenchmarkError, ProtocolError, Unusable) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
