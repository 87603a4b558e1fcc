"""`lossearch train` and `lossearch embed`: the full-scale run with a loss, and what its network makes of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from lfs.errors import UserError
from lfs.session import INTERRUPTED, STOPPED, Interrupted, signals, tracked

if TYPE_CHECKING:
    from lfs.full_run import TrainingPlan
    from lfs.journal import Completed, Event

out = Console(highlight=False, markup=False)
err = Console(highlight=False, markup=False, stderr=True)


def train(
    config: Annotated[Path | None, typer.Argument(metavar="[TRAIN.TOML]", help="All defaults without.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one config value.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="An image set, in any known format.")] = None,
    loss: Annotated[str | None, typer.Option(help="A name, a winner.json, or the folder of a search.")] = None,
    network: Annotated[str | None, typer.Option(help="iresnet50, mobilefacenet, timm:NAME, module:factory ...")] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST[=IMAGES]",
            help="Score on these pairs too: a .bin, or a pairs.txt or .csv of images of DATA or IMAGES; several times.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="The folder of the training.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the training in this folder.")] = None,
) -> None:
    """Train a network at full scale with a found or a named loss; writes network, loss and history.

    After Ctrl-C, kill -9 or a power cut, --resume goes on from the last checkpoint as if nothing had happened.
    """
    from lfs.full_run import plan_resumed, plan_training
    from lfs.reading_bar import reading
    from lfs.train_config import load_train_config

    if resume is not None:
        given = {"TRAIN.TOML": config, "--data": data, "--loss": loss, "--network": network, "--out": output}
        if spare := [name for name, value in {**given, "--pairs": pairs}.items() if value]:
            raise UserError(f"--resume goes on with what the training was told; leave out {', '.join(spare)}")
        with reading(out) as on_decoded:
            planned = plan_resumed(resume.absolute(), overrides or [], on_decoded=on_decoded)
    else:
        if output is None:
            raise UserError("a training needs a folder to write into; give --out DIR")
        settings = load_train_config(
            config, overrides or [], data_path=data, loss=loss, network=network, pairs=pairs or []
        )
        with reading(out) as on_decoded:
            planned = plan_training(settings, output.absolute(), on_decoded=on_decoded)
    _train(planned)


def _train(planned: "TrainingPlan") -> None:
    from lfs.full_run import run_training
    from lfs.journal import FILE_NAME
    from lfs.launch import workspace_of
    from lfs.reading_bar import say_what_is_left_out
    from lfs.tracker import Tracker
    from lfs.tracker_uri import resolve_uri

    folder, tracking = planned.folder, planned.config.tracking
    uri = resolve_uri(tracking.uri, workspace_of(folder)) if tracking.enabled else None
    out.print(f"training: {folder}", soft_wrap=True)
    say_what_is_left_out(out, planned.task)
    with signals(), tracked(None if uri is None else Tracker(folder, uri)) as start_tracking:
        try:

            def on_event(event: "Event") -> None:
                start_tracking()
                _show(event, planned)

            completed = run_training(planned, on_event=on_event)
        except Interrupted:
            begun = (folder / FILE_NAME).exists()
            what = f"go on with: lossearch train --resume {folder}" if begun else "nothing was begun"
            out.print(f"interrupted; {what}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
    _conclude(completed, folder)


def _show(event: "Event", planned: "TrainingPlan") -> None:
    """One line an epoch."""
    from lfs.journal import Resumed, Trained

    if isinstance(event, Resumed):
        out.print("resumed")
    if not isinstance(event, Trained):
        return
    shown = {"loss": "train/loss", "rank-1": "val/rank1", "EER": "val/eer"}
    shown |= {name: f"pairs/{name}/accuracy" for name in planned.pairs}
    scores = [f"{title} {event.metrics[key]:.4f}" for title, key in shown.items() if key in event.metrics]
    out.print(f"epoch {event.epoch}/{planned.recipe.epochs}: {', '.join(scores)}", soft_wrap=True)


def _conclude(completed: "Completed", folder: Path) -> None:
    if completed.error is not None:
        err.print(f"lossearch: {completed.error}; try a lower recipe.learning_rate in another --out", soft_wrap=True)
        raise typer.Exit(STOPPED)
    out.print(*completed.remarks, sep="\n", end="\n" if completed.remarks else "", soft_wrap=True)
    for name in completed.files:
        out.print(f"written: {folder / name}", soft_wrap=True)


def embed(
    network: Annotated[Path, typer.Argument(metavar="NETWORK_DIR", help="The folder of a finished training.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="An image set, in any known format.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.npz")],
    split: Annotated[
        Literal["all", "train", "val", "test"], typer.Option(help="Which of the set's identities.")
    ] = "all",
) -> None:
    """Write the embeddings of a set's images: embeddings, labels, paths, and further columns of a CSV or parquet.

    Where the network was trained on mirrored images there is also flipped, the embeddings of those.
    """
    from lfs.embedding import embed_set
    from lfs.reading_bar import say_damaged

    images, damaged = embed_set(network, data, output, split=split)
    say_damaged(out, damaged)
    out.print(f"written: {output} ({images:,} images)", soft_wrap=True)
