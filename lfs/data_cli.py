"""`lossearch data`: look at image sets and make others of them, without a search."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lfs.errors import UserError, data_refusals

if TYPE_CHECKING:
    from trainers.image_source import ImageSource
    from trainers.survey import Survey

data_app = typer.Typer(
    help="Look at image sets, split them, convert them, make smaller ones of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
out = Console(highlight=False, markup=False)

Source = Annotated[Path, typer.Argument(metavar="SRC", help="An image set, in any known format.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="What to write, in the format of its ending.")]

FORMATS = ("folder", "huggingface", "list", "npz", "parquet", "recordio", "tar", "webdataset", "zip")
"""What `convert` writes; a test holds that they are all that can be written."""

_DOUBTS_SHOWN = 50
_SHOWN = 10
"""How many suspicious images and duplicates `info` names."""


@data_app.command()
def info(path: Annotated[Path, typer.Argument(metavar="PATH", help="An image set, in any known format.")]) -> None:
    """What is in an image set, what is suspicious about it, and how a search would split it."""
    from trainers.formats.opening import find_images
    from trainers.image_source import DataError
    from trainers.splits import with_splits
    from trainers.survey import survey

    with data_refusals():
        found = find_images(path)
        images = sum(map(len, found.files.values()))
        with _progress("looking at the images", images) as advance:
            seen = survey(found, on_image=advance)
    out.print(
        f"{found.path}: {seen.images:,} images of {seen.identities:,} identities, as {found.format}", soft_wrap=True
    )
    _show_survey(seen)
    try:
        _show_splits(with_splits(found))
    except DataError as error:
        out.print(f"splits: {error}", soft_wrap=True)


def _show_survey(seen: "Survey") -> None:
    table = Table("images of an identity", "identities", box=None, pad_edge=False)
    for images, identities in seen.images_per_identity.items():
        table.add_row(images, f"{identities:,}")
    out.print(table)
    largest = sorted(seen.sizes.items(), key=lambda item: -item[1])[:3]
    sizes = ", ".join(f"{width}×{height} ({count:,})" for (width, height), count in largest)
    more = f" and {len(seen.sizes) - len(largest)} more" if len(seen.sizes) > len(largest) else ""
    out.print(f"sizes in pixels: {sizes or 'none'}{more}; in colour: {seen.coloured:,}", soft_wrap=True)
    repeated = sum(len(same) - 1 for same in seen.duplicates)
    out.print(f"images that repeat another byte for byte: {repeated:,}", soft_wrap=True)
    _show_some([" = ".join(same) for same in seen.duplicates])
    out.print(f"suspicious: {len(seen.suspicious):,}", soft_wrap=True)
    _show_some([text if name in text else f"{name} {text}" for name, text in seen.suspicious.items()])


def _show_some(lines: Sequence[str]) -> None:
    out.print(*(f"  {line}" for line in lines[:_SHOWN]), sep="\n", end="\n" if lines else "", soft_wrap=True)
    if len(lines) > _SHOWN:
        out.print(f"  and {len(lines) - _SHOWN:,} more")


def _show_splits(source: "ImageSource") -> None:
    from trainers.image_source import SPLITS

    table = Table("split", "identities", "with 2+ images", "with 4+", "images", box=None, pad_edge=False)
    for split in SPLITS:
        sizes = [len(source.files[name]) for name in source.classes(split)]
        shown = (len(sizes), sum(size > 1 for size in sizes), sum(size > 3 for size in sizes), sum(sizes))
        table.add_row(split, *(f"{number:,}" for number in shown))
    out.print(table)
    out.print(f"split by {source.split_by}", soft_wrap=True)


@data_app.command()
def proxy(
    source: Source,
    target: Target,
    identities: Annotated[int, typer.Option(min=2, help="Training identities to keep.")],
    images: Annotated[int, typer.Option(min=2, help="Images to keep of each, at most.")],
    min_images: Annotated[int, typer.Option(min=1, help="Only training identities with so many images.")] = 4,
    val_identities: Annotated[int | None, typer.Option(min=4, help="Default: all.")] = None,
    val_images: Annotated[int | None, typer.Option(min=2, help="Of each, at most; default: all.")] = None,
    test_identities: Annotated[int | None, typer.Option(min=2, help="Default: all.")] = None,
    test_images: Annotated[int | None, typer.Option(min=2, help="Of each, at most; default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which identities and images are drawn.")] = 0,
) -> None:
    """Write a smaller set that stands for a large one: fewer identities, fewer images of each.

    Identities are drawn evenly over class sizes and, where classes are named <group>__<class>, over groups. Validation
    and test identities stay as they are unless you say otherwise.
    """
    from trainers.formats.opening import open_images
    from trainers.image_source import Split
    from trainers.proxy_set import Share, proxy_of

    shares: Mapping[Split, Share] = {
        "train": Share(identities=identities, images=images, min_images=min_images),
        "val": Share(identities=val_identities, images=val_images),
        "test": Share(identities=test_identities, images=test_images),
    }
    with data_refusals():
        smaller = proxy_of(open_images(source), shares, seed=seed)
        _write(smaller, target)
    _show_splits(smaller)
    largest = max(len(smaller.files[name]) for name in smaller.classes("train"))
    if largest < min_images:
        out.print(f"search it with --set data.min_images_per_class={largest}")
    out.print(f"written: {target}", soft_wrap=True)


def _write(source: "ImageSource", target: Path, kind: str | None = None) -> None:
    from trainers.formats.writing import format_of, left_out, write_images

    with _progress("writing the images", len(source.names(source.files))) as advance:
        write_images(source, target, kind=kind, on_image=advance)
    kind = kind or format_of(target)
    if columns := left_out(source, kind):
        out.print(f"left out, as the format {kind} has no place for them: {', '.join(columns)}", soft_wrap=True)


@data_app.command()
def convert(
    source: Source,
    target: Target,
    kind: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}; default: by DST's ending.")
    ] = None,
) -> None:
    """Write an image set in another format, with its splits; the images keep their bytes.

    What a table says of the images beyond that is kept by list, parquet and huggingface.
    """
    from trainers.formats.opening import open_images

    with data_refusals():
        opened = open_images(source)
        _write(opened, target, kind)
    _show_splits(opened)
    out.print(f"written: {target}", soft_wrap=True)


@data_app.command()
def split(
    path: Source,
    output: Annotated[Path | None, typer.Option(help="Default: split.csv in the folder, or beside the file.")] = None,
    val: Annotated[float, typer.Option(min=0, max=0.8, help="Share of the identities.")] = 0.15,
    test: Annotated[float, typer.Option(min=0, max=0.8, help="Share of the identities.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Which identities are drawn.")] = 0,
) -> None:
    """Draw which identities train, validate and test, evenly over class sizes, and save it where a search looks."""
    from trainers.formats.opening import find_images
    from trainers.splits import TABLE_NAME, drawn_splits, split_table, with_splits

    with data_refusals():
        found = find_images(path)
        drawn = drawn_splits(found.files, path, val_share=val, test_share=test, seed=seed)
    place = output or (path if path.is_dir() else path.parent) / TABLE_NAME
    content = split_table(drawn)
    try:
        with place.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{place} is there already; remove it, or choose another --output") from None
    _show_splits(with_splits(found.with_table(content)))
    out.print(f"written: {place}", soft_wrap=True)


@data_app.command()
def check(
    path: Source,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Doubt labels by what this run's winner takes for alike.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Doubt labels by embeddings, with labels and paths.")
    ] = None,
    neighbours: Annotated[int, typer.Option(min=1, max=1000, help="Nearest images that vote on a label.")] = 5,
) -> None:
    """Images that are there twice, byte for byte or nearly, within and across splits; exit code 1 if across.

    With --checkpoint or --embeddings also images most of whose nearest neighbours carry another label.
    """
    from trainers.formats.opening import open_images
    from trainers.image_source import SPLITS
    from trainers.repeats import between_splits, repeats

    if checkpoint is not None and embeddings is not None:
        raise UserError(f"labels are doubted by --checkpoint {checkpoint} or --embeddings {embeddings}; leave one out")
    with data_refusals():
        opened = open_images(path)
        with _progress("looking at the images", len(opened.names(opened.files))) as advance:
            found, damaged, passed_over = repeats(opened, on_image=advance)
    by_splits = between_splits(found, opened)
    table = Table("splits", "same bytes", "same pixels", "nearly the same", box=None, pad_edge=False)
    across = []
    for number, one in enumerate(SPLITS):
        for two in SPLITS[number:]:
            both = by_splits.get((one, two), []) + (by_splits.get((two, one), []) if one != two else [])
            counts = [sum(repeat.kind == kind for repeat in both) for kind in ("bytes", "pixels", "nearly")]
            table.add_row(f"{one}, {two}" if one != two else f"within {one}", *(f"{count:,}" for count in counts))
            across += both if one != two else []
    out.print(table)
    out.print(f"images that cannot be decoded: {len(damaged):,}")
    _show_some(damaged)
    if passed_over:
        out.print(f"images that look like too many others for near repeats of them to be found: {passed_over:,}")
    out.print(f"images of one split that are in another: {len(across):,}")
    _show_some([f"{repeat.first} = {repeat.second} ({repeat.kind})" for repeat in across])
    if checkpoint is not None or embeddings is not None:
        _show_doubts(opened, checkpoint, embeddings, neighbours)
    if across:
        raise typer.Exit(1)


def _show_doubts(source: "ImageSource", run: Path | None, file: Path | None, neighbours: int) -> None:
    from lfs.reading_bar import reading
    from lfs.run_embeddings import embedded_by_winner
    from trainers.label_doubts import label_doubts, read_embedded

    with data_refusals(), reading(out) as on_decoded:
        if file is not None:
            embedded = read_embedded(file)
        elif run is not None:
            embedded = embedded_by_winner(source, run, on_decoded=on_decoded)
        doubts = label_doubts(embedded, neighbours=neighbours)
    out.print(f"images whose label looks wrong: {len(doubts):,} of {len(embedded.names):,}")
    table = Table("image", "label", "neighbours say", "votes", "cosine", "cosine to its own", box=None, pad_edge=False)
    for doubt in doubts[:_DOUBTS_SHOWN]:
        cosines = (f"{doubt.similarity:.3f}", f"{doubt.own_similarity:.3f}")
        table.add_row(doubt.name, doubt.label, doubt.other, f"{doubt.votes}/{neighbours}", *cosines)
    if doubts:
        out.print(table)
    if len(doubts) > _DOUBTS_SHOWN:
        out.print(f"  and {len(doubts) - _DOUBTS_SHOWN:,} more")


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar that what is yielded moves by one image; gone at the end."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda _: bar.advance(task)
