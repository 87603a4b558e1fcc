"""`lossearch evaluate`: the field's protocols on the embeddings of any network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lfs.errors import UserError, data_refusals, refuse_other_ending

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trainers.protocols.embedding_sets import EmbeddingSet
    from trainers.protocols.groups import Breakdown
    from trainers.protocols.measures import Evaluation

    Rows = slice | npt.NDArray[np.bool_]
    Protocol = tuple[npt.NDArray[np.str_] | None, Callable[[Rows], Evaluation]]
    """The group of each row, if groups are asked for, and what evaluates some of the rows."""

out = Console(highlight=False, markup=False)

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ALL = "all"
"""What the evaluation of everything is called beside its groups."""

_CELL_WIDTH = 19
"""Characters for a group's column, and for the names of the measures."""

PageOf = Callable[[str, "Evaluation", "Breakdown"], str]
"""The page of an evaluation as HTML: its title, what was found on everything, and on each group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is asked for, checked as far as that can be without reading anything."""

    pairs: Path | None
    gallery: str | None
    probe: str | None
    distractors: Path | None
    by: str | None
    rates: Sequence[float]
    resamples: int
    seed: int
    memory_bytes: int
    device: str

    def __post_init__(self) -> None:
        others = [name for name in ("gallery", "probe", "distractors") if getattr(self, name) is not None]
        if self.pairs is not None and others:
            raise UserError(f"--pairs is a protocol of its own: leave out --{others[0]}, or --pairs")
        if self.probe is not None and self.gallery is None:
            raise UserError("--probe needs a --gallery to look the probes up in")
        if wrong := [rate for rate in self.rates if not 0 < rate < 1]:
            raise UserError(f"--far must lie between 0 and 1, such as 1e-3, but got {wrong[0]:g}")


def evaluate_command(page_of: PageOf) -> Callable[..., None]:
    """The command, given what makes its page: `analysis` does, which this package does not import."""

    def evaluate(
        embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="An .npz: embeddings, labels, ...")],
        pairs: Annotated[
            Path | None, typer.Option(help="Verify these: pairs.txt (LFW), .bin (InsightFace) or .csv.")
        ] = None,
        gallery: Annotated[
            str | None,
            typer.Option(help="Identify among these: an .npz, or a list of names in EMBEDDINGS."),
        ] = None,
        probe: Annotated[
            str | None, typer.Option(help="Whom to identify, likewise; default: all of EMBEDDINGS not in the gallery.")
        ] = None,
        distractors: Annotated[
            Path | None, typer.Option(help="An .npz of strangers; without --gallery as in MegaFace.")
        ] = None,
        by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Also each group of this column.")] = None,
        far: Annotated[
            list[float] | None,
            typer.Option(metavar="FAR", help="A FAR or FPIR, several times; default: 1e-1 to 1e-6, if resolved."),
        ] = None,
        resamples: Annotated[int, typer.Option(min=20, help="Of the bootstrap.")] = 1000,
        seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
        memory_mib: Annotated[int, typer.Option(min=1, help="For chunks of scores; 20 million are held whole.")] = 256,
        device: Annotated[str, typer.Option(help="Where scores are computed: cpu, cuda, cuda:1.")] = "cpu",
        as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all numbers.")] = None,
        plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write a page with curves.")] = None,
    ) -> None:
        """Verification and identification on the embeddings of any network, with 95 % intervals.

        Over all pairs of images, each image counting once, unless --pairs, --gallery or --distractors say otherwise.
        EMBEDDINGS holds the arrays embeddings (N×D) and labels (N), and optionally flipped (of mirrored images),
        templates, media, paths and columns to group by.
        """
        request = _Request(
            pairs=pairs,
            gallery=gallery,
            probe=probe,
            distractors=distractors,
            by=by,
            rates=far or FARS,
            resamples=resamples,
            seed=seed,
            memory_bytes=memory_mib * 2**20,
            device=device,
        )
        _check_targets(as_json, plot)
        _check_device(device)
        with data_refusals():
            whole, groups = _evaluated(embeddings, request)
        _show(whole, groups)
        if as_json is not None:
            content = json.dumps(_plain(embeddings, request, whole, groups), indent=1, allow_nan=False)
            as_json.write_text(content + "\n", encoding="utf-8")
            out.print(f"written: {as_json}", soft_wrap=True)
        if plot is not None:
            plot.write_text(page_of(embeddings.name, whole, groups), encoding="utf-8")
            out.print(f"written: {plot}", soft_wrap=True)

    return evaluate


def _check_targets(as_json: Path | None, plot: Path | None) -> None:
    refuse_other_ending(plot, ".html", "--plot writes a page")
    refuse_other_ending(as_json, ".json", "--json writes JSON")
    for option, path in (("--json", as_json), ("--plot", plot)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{option} must name a file in a folder that is there, but got {path}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        known = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UserError(f"--device must be one of {', '.join(known)} here, but got '{device}'") from None


def _evaluated(path: Path, request: _Request) -> "tuple[Evaluation, Breakdown]":
    """What is found on everything and, where groups are asked for, on each of them."""
    from trainers.protocols.embedding_sets import pooled, read_embeddings
    from trainers.protocols.groups import Breakdown, by_group

    images = pooled(read_embeddings(path))
    with out.status("evaluating"):
        if request.pairs is not None:
            group_N, evaluate = _listed(images, request, request.pairs)
        elif request.gallery is not None:
            group_N, evaluate = _identified(images, request, request.gallery)
        else:
            group_N, evaluate = _images(images, request)
        whole = evaluate(slice(None))
        return whole, Breakdown() if group_N is None else by_group(group_N, evaluate)


def _group_of(images: "EmbeddingSet", request: _Request) -> "npt.NDArray[np.str_] | None":
    if request.by is None:
        return None
    group_N = images.column(request.by, "--by asks for")
    if ALL in group_N:
        raise UserError(f"--by {request.by}: a group of {images.name} is called '{ALL}', as everything is; rename it")
    return group_N


def _listed(images: "EmbeddingSet", request: _Request, path: Path) -> "Protocol":
    """Listed pairs; a pair is of a group when both of its images are."""
    import numpy as np

    from trainers.protocols.groups import NO_GROUP
    from trainers.protocols.listed_pairs import evaluate_listed_pairs, read_listed_pairs

    listed, group_N = read_listed_pairs(path, images), _group_of(images, request)

    def evaluate(rows: "Rows") -> "Evaluation":
        return evaluate_listed_pairs(
            images, listed.only(rows), fars=request.rates, resamples=request.resamples, rng=_rng(request)
        )

    if group_N is None:
        return None, evaluate
    one_P, two_P = group_N[listed.first_P], group_N[listed.second_P]
    return np.where(one_P == two_P, one_P, NO_GROUP), evaluate


def _identified(images: "EmbeddingSet", request: _Request, gallery: str) -> "Protocol":
    """Probes of all groups or of one, in the whole gallery."""
    from trainers.protocols.identification import evaluate_identification

    known, rest = _part(images, gallery, "--gallery")
    probes = rest if request.probe is None else _part(images, request.probe, "--probe")[0]
    others = _distractors(images, request)
    _same_dimensions(images, known, probes)

    def evaluate(rows: "Rows") -> "Evaluation":
        return evaluate_identification(
            probes.only(rows),
            known,
            distractors=others,
            fpirs=request.rates,
            resamples=request.resamples,
            rng=_rng(request),
            memory_bytes=request.memory_bytes,
            device=request.device,
        )

    return _group_of(probes, request), evaluate


def _images(images: "EmbeddingSet", request: _Request) -> "Protocol":
    """All pairs, or MegaFace's identification where there are distractors."""
    from trainers.protocols.all_pairs import evaluate_all_pairs
    from trainers.protocols.identification import evaluate_distractors

    others = _distractors(images, request)

    def evaluate(rows: "Rows") -> "Evaluation":
        if others is None:
            return evaluate_all_pairs(
                images.only(rows),
                fars=request.rates,
                resamples=request.resamples,
                rng=_rng(request),
                memory_bytes=request.memory_bytes,
                device=request.device,
            )
        return evaluate_distractors(
            images.only(rows),
            others,
            resamples=request.resamples,
            rng=_rng(request),
            memory_bytes=request.memory_bytes,
            device=request.device,
        )

    return _group_of(images, request), evaluate


def _part(images: "EmbeddingSet", what: str, option: str) -> "tuple[EmbeddingSet, EmbeddingSet]":
    """The embeddings of another `.npz`, or those of `images` that a file names; and all those that are not meant."""
    import numpy as np

    from trainers.protocols.embedding_sets import pooled, read_embeddings

    path = Path(what)
    if path.suffix == ".npz":
        return pooled(read_embeddings(path)), images
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {what} cannot be read ({error}); give an .npz or one name a line") from None
    if not names:
        raise UserError(f"{option} {what} names nobody; it must have one name a line")
    rows = images.rows_of(np.array(names), f"{option} {what}")
    return images.only(rows), images.only(np.setdiff1d(np.arange(len(images)), rows))


def _distractors(images: "EmbeddingSet", request: _Request) -> "EmbeddingSet | None":
    from trainers.protocols.embedding_sets import pooled, read_embeddings

    if request.distractors is None:
        return None
    others = pooled(read_embeddings(request.distractors))
    _same_dimensions(images, others)
    return others


def _same_dimensions(images: "EmbeddingSet", *others: "EmbeddingSet") -> None:
    dim = images.embeddings_ND.shape[1]
    for each in others:
        if each.embeddings_ND.shape[1] != dim:
            raise UserError(
                f"{each.name} has embeddings of {each.embeddings_ND.shape[1]} dimensions, but {images.name} of {dim}; "
                "they must come from one network"
            )


def _rng(request: _Request) -> "np.random.Generator":
    """The same draws for every group, so that a group's numbers do not depend on which others there are."""
    import numpy as np

    return np.random.default_rng(request.seed)


def _show(whole: "Evaluation", groups: "Breakdown") -> None:
    counted = ", ".join(f"{count:,} {what}" for what, count in whole.counts.items())
    out.print(f"{whole.protocol}: {counted}", soft_wrap=True)
    found, names = {ALL: whole, **groups.scored}, [ALL, *groups.names]
    columns = max(1, out.width // _CELL_WIDTH - 1)
    for start in range(0, len(names), columns):
        shown = names[start : start + columns]
        table = Table("", *(shown if len(names) > 1 else ["95 % interval"]), box=None, pad_edge=False)
        for what in whole.counts if len(names) > 1 else ():
            table.add_row(what, *(f"{found[name].counts.get(what, 0):,}" if name in found else "–" for name in shown))
        for measure in dict.fromkeys(measure for each in found.values() for measure in each.measures):
            table.add_row(
                measure, *(_cell(found.get(name), measure, "\n" if len(names) > 1 else " ") for name in shown)
            )
        out.print(table)
    if spread := groups.spreads():
        titles = ("over groups", "mean", "standard deviation", "lowest", "highest", "skewed error ratio")
        table = Table(*titles, box=None, pad_edge=False)
        for measure, each in spread.items():
            numbers = (each.mean, each.deviation, each.lowest, each.highest, each.skewed_error_ratio)
            table.add_row(measure, *("–" if number is None else f"{number:.4f}" for number in numbers))
        out.print(table)
    out.print(*whole.notes, *groups.notes(whole.notes), sep="\n", soft_wrap=True)


def _cell(evaluation: "Evaluation | None", measure: str, space: str) -> str:
    if evaluation is None or measure not in evaluation.measures:
        return "–"
    found = evaluation.measures[measure]
    return f"{found.value:.4f}{space}[{found.low:.4f}, {found.high:.4f}]"


def _plain(path: Path, request: _Request, whole: "Evaluation", groups: "Breakdown") -> dict[str, object]:
    """All of it in what JSON knows."""
    return {
        "embeddings": str(path),
        "request": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()},
        "level": 0.95,
        "results": {name: _plain_evaluation(each) for name, each in {ALL: whole, **groups.scored}.items()},
        "unscored": dict(groups.unscored),
        "spread": {measure: asdict(each) for measure, each in groups.spreads().items()},
    }


def _plain_evaluation(evaluation: "Evaluation") -> dict[str, object]:
    content = asdict(evaluation)
    if evaluation.curve is not None:
        content["curve"] = {name: values.tolist() for name, values in content["curve"].items()}
    return content
