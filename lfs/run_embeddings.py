"""Embeddings of an image set by the network that won a search."""

from pathlib import Path, PurePosixPath

from lfs.checkpoints import CheckpointStore
from lfs.journal import Asked, Examined
from lfs.launch import read_search, workspace_of
from lfs.runner import default_device
from lfs.winner import take_home
from trainers.evaluation import embeddings
from trainers.image_cache import OnDecoded, decode
from trainers.image_source import DataError, ImageSource
from trainers.label_doubts import Embedded
from trainers.recipe import Numerics, Recipe

_MOST_DAMAGED = 0.5


def embedded_by_winner(source: ImageSource, run_dir: Path, *, on_decoded: OnDecoded) -> Embedded:
    """All images of `source` that can be decoded, of all splits, as the winner of the run at `run_dir` embeds them.

    Raises `JournalError` for a search without a winner, `DataError` where its checkpoint is gone.
    """
    started, events = read_search(run_dir)
    winner = int(str(take_home(events)["trial"]))
    trial = next(each for event in events if isinstance(event, Asked) for each in event.trials if each.number == winner)
    verdict = {event.trial: event for event in events if isinstance(event, Examined)}.get(winner)
    kept_as = verdict.same_as if verdict is not None and verdict.verdict == "reused" else winner
    checkpoint = None if kept_as is None else CheckpointStore(run_dir / "checkpoints").load(kept_as)
    if checkpoint is None:
        raise DataError(f"the checkpoint of trial {kept_as} is gone from {run_dir / 'checkpoints'}; give another run")
    recipe = Recipe.model_validate(started.config["recipe"])
    names = source.names(source.files)
    decoded = decode(
        source,
        names,
        image_size=int(str(started.data["width"])),
        colour="grey" if started.data["channels"] == 1 else "rgb",
        cache_dir=workspace_of(run_dir) / "cache",
        corrupt_share=_MOST_DAMAGED,
        on_decoded=on_decoded,
    )
    sound = [name for name in names if name not in decoded.damaged]
    embeddings_ND = embeddings(
        checkpoint,
        decoded.file.images(),
        recipe=recipe.changed(trial.recipe),
        numerics=Numerics.model_validate(started.numerics),
        device=default_device(),
    )
    return Embedded(embeddings_ND=embeddings_ND, labels=[PurePosixPath(name).parts[1] for name in sound], names=sound)
