"""The command line, and the one place where all parts meet."""

import contextlib
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from lfs.data_cli import data_app
from lfs.errors import UserError, refuse_other_ending
from lfs.evaluate_cli import ALL, evaluate_command
from lfs.methods import METHODS
from lfs.session import INTERRUPTED, STOPPED, Interrupted, signals, tracked
from lfs.train_cli import embed, train

if TYPE_CHECKING:
    from lfs.comparison import Comparison
    from lfs.journal import Event
    from lfs.launch import Plan
    from search_space import LossSpec
    from search_space.catalog import Value
    from trainers.protocols.groups import Breakdown
    from trainers.protocols.measures import Evaluation

app = typer.Typer(
    help="Search for the margin-softmax loss that suits your data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.command()(train)
app.command()(embed)
out = Console(highlight=False, markup=False)
err = Console(highlight=False, markup=False, stderr=True)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a search run.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one config value.")]

DEFAULT_WORKSPACE = Path("lossearch")


@app.command()
def search(
    config: Annotated[
        Path | None, typer.Argument(metavar="[RUN.TOML]", help="The config; all defaults without.")
    ] = None,
    overrides: Set = None,
    method: Annotated[str | None, typer.Option(help=f"{', '.join(METHODS)}.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder, zip, .rec, .tar, .csv, .parquet or .npz.")] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder; default lossearch/runs/<time>-<data>.")] = None,
) -> None:
    """Search for a loss, train the baselines beside it, write the report."""
    from lfs.config_file import load_config
    from lfs.launch import plan_new
    from lfs.reading_bar import reading

    settings = load_config(config, overrides or [], data_path=data, method=method)
    run_dir = _run_folder(run, "glyphs" if settings.data.path is None else settings.data.path.stem)
    with reading(out) as on_decoded:
        planned = plan_new(settings, run_dir, on_decoded=on_decoded)
    _run(planned)


@app.command()
def resume(run: Run, overrides: Set = None) -> None:
    """Go on with an interrupted search; --set takes executor.* and tracking.*."""
    from lfs.launch import plan_resume
    from lfs.reading_bar import reading

    run_dir = run.absolute()
    with reading(out) as on_decoded:
        planned = plan_resume(run_dir, overrides or [], on_decoded=on_decoded)
    if planned.finished:
        out.print("this search is finished: nothing is left to train")
        _conclude(run_dir)
    else:
        _run(planned)


def _run(planned: "Plan") -> None:
    from lfs.launch import has_begun, run, workspace_of
    from lfs.progress import Progress
    from lfs.reading_bar import say_what_is_left_out
    from lfs.search import SearchStoppedError
    from lfs.tracker import Tracker
    from lfs.tracker_uri import resolve_uri

    run_dir, tracking = planned.run_dir, planned.config.tracking
    uri = resolve_uri(tracking.uri, workspace_of(run_dir)) if tracking.enabled else None
    out.print(f"run: {run_dir}", soft_wrap=True)
    say_what_is_left_out(out, planned.task)
    with signals(), tracked(None if uri is None else Tracker(run_dir, uri)) as start_tracking:
        try:
            with Progress(out, epochs=planned.epochs, metric=planned.recipe.reward) as progress:

                def on_event(event: "Event") -> None:
                    start_tracking()
                    progress.on_event(event)

                finished = run(planned, on_event=on_event)
            _conclude(run_dir)
            if finished.winner is None:
                err.print(
                    "lossearch: no trial of the search reached the horizon, so there is no winner", soft_wrap=True
                )
                raise typer.Exit(STOPPED)
        except Interrupted:
            what = f"go on with: lossearch resume {run_dir}" if has_begun(run_dir) else "nothing was begun"
            out.print(f"interrupted; {what}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except SearchStoppedError as error:
            err.print(f"lossearch: {error}", soft_wrap=True)
            raise typer.Exit(STOPPED) from None


def _conclude(run_dir: Path) -> None:
    """The table of winner and baselines, then the report's path."""
    from analysis.ledger import Ledger
    from analysis.report import write_report
    from analysis.tables import finals_of, leaderboard_of, score_meaning, score_title
    from lfs.journal import FILE_NAME, read_events

    ledger = Ledger.of(read_events(run_dir / FILE_NAME)[0])
    columns = ("", "reward half", "choice half", "images", "images in all")
    title = f"validation {score_title(ledger.reward_metric)} of one seed, best on the choice half first"
    table = Table(*columns, title=title, title_justify="left")
    notes = [*filter(None, [score_meaning(ledger.reward_metric)])]
    for row in leaderboard_of(ledger).to_dict("records"):
        name, scores = str(row["entrant"]), [_number(row["reward"]), _number(row["choice"])]
        table.add_row(name, *scores, f"{row['lineage_images']:,}", f"{row['total_images']:,}")
        found = ", ".join(filter(None, (row["loss"], row["recipe"])))
        remarks = [row["error"], row["collapse"], found if name == "winner" else None]
        notes += [f"{name}: {remark}" for remark in remarks if isinstance(remark, str)]
    out.print(table)
    for row in finals_of(ledger).head(1).to_dict("records"):
        notes.append(f"winner: mean choice score {row['mean']:.4f} over {row['trainings']} trainings, after the finals")
    out.print(*notes, f"report: {write_report(run_dir)}", sep="\n", soft_wrap=True)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) and value == value else "–"


@app.command()
def compare(
    run: Run,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each entrant, 2 to 20; default 10.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="Only this baseline; may be given several times. Default: all.")
    ] = None,
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Without the tuned constant margins and scales.")] = False,
    scales: Annotated[str | None, typer.Option(help="The grid's scales; default 16,32,64.")] = None,
    cosface_margins: Annotated[str | None, typer.Option(help="Default 0.1,0.2,0.35.")] = None,
    arcface_margins: Annotated[str | None, typer.Option(help="In radians; default 0.3,0.5,0.7.")] = None,
    learning_rates: Annotated[
        str | None, typer.Option(help="Each baseline chooses one of these too, such as 0.1,0.2,0.4.")
    ] = None,
    equal_compute: Annotated[
        list[str] | None,
        typer.Option(help="Give each baseline the search's compute: 'seeds' (best of many) or 'longer' (more epochs)."),
    ] = None,
    schedule_controls: Annotated[
        bool, typer.Option("--schedule-controls", help="Also the winner's schedule shuffled, and its last loss alone.")
    ] = False,
    metric: Annotated[
        str | None, typer.Option(help="The tested score, such as tar_at_far_1e-3; default: the search's reward.")
    ] = None,
    resamples: Annotated[int | None, typer.Option(help="Of the bootstrap; default 1000.")] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN", help="A further search, equal but for its seed; several times. They share the seeds evenly."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Another comparison: the test is opened once more.")] = False,
    overrides: Set = None,
) -> None:
    """Retrain the winner and the baselines over several seeds and score them on the sealed test identities.

    With --also it is the kind of search that is compared: its searches are what is repeated, not their trainings.
    Goes on with a comparison that was interrupted; of a finished one it shows the table.
    """
    from lfs.comparison import prepare

    lists = {"scales": scales, "cosface_margins": cosface_margins, "arcface_margins_rad": arcface_margins}
    lists |= {"learning_rates": learning_rates}
    grid = {name: text for name, text in lists.items() if text is not None}
    options: dict[str, object] = {"seeds": seeds, "baselines": baseline, "equal_compute": equal_compute}
    options |= {"metric": metric, "resamples": resamples}
    given = {name: value for name, value in options.items() if value is not None}
    given |= ({"grid": grid} if grid else {}) | ({"tune": False} if no_tune else {})
    given |= {"schedule_controls": True} if schedule_controls else {}
    given |= {"also": [str(each.absolute()) for each in also]} if also else {}
    with out.status("reading the data"):
        prepared = prepare(run.absolute(), given, overrides=overrides or [], again=again)
    if caveat := prepared.plan.caveat():
        out.print(caveat, soft_wrap=True)
    if prepared.launch is None:
        _show_comparison(prepared.folder)
    else:
        _compare(prepared, prepared.launch)


def _compare(prepared: "Comparison", launch: "Plan") -> None:
    from lfs.compare import compare as run_comparison
    from lfs.launch import workspace_of
    from lfs.progress import Progress
    from lfs.search import SearchStoppedError
    from lfs.tracker import Tracker
    from lfs.tracker_uri import resolve_uri

    out.print(f"comparison: {prepared.folder}", soft_wrap=True)
    run_dir, tracking = prepared.folder.parent.parent, launch.config.tracking
    uri = resolve_uri(tracking.uri, workspace_of(run_dir)) if tracking.enabled else None
    with signals(), tracked(None if uri is None else Tracker(prepared.folder, uri)) as start_tracking:
        try:
            with Progress(out, epochs=prepared.plan.epochs, metric=launch.recipe.reward) as progress:

                def on_event(event: "Event") -> None:
                    start_tracking()
                    progress.on_event(event)

                run_comparison(prepared, launch, on_event=on_event)
            _show_comparison(prepared.folder)
        except Interrupted:
            out.print(f"interrupted; go on with: lossearch compare {run_dir}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        except SearchStoppedError as error:
            err.print(f"lossearch: {error}", soft_wrap=True)
            raise typer.Exit(STOPPED) from None


def _show_comparison(folder: Path) -> None:
    """The table of a finished comparison, then the paths of its page and the files beside it."""
    from analysis.comparison import Results
    from analysis.comparison_page import write_comparison

    results = Results.read(folder)
    for shown in results.terminal_tables():
        table = Table()
        for column in shown.columns:
            table.add_column(str(column), overflow="fold")
        for row in shown.itertuples(index=False):
            table.add_row(*map(str, row))
        out.print(table)
    out.print(results.headline, soft_wrap=True)
    out.print(*results.remarks(), sep="\n", soft_wrap=True)
    for path in write_comparison(results, folder.parent.parent):
        out.print(f"written: {path}", soft_wrap=True)


@app.command()
def report(run: Run) -> None:
    """Write report.html of a run, finished or not, and print its path."""
    from analysis.report import write_report
    from lfs.launch import read_search

    read_search(run)
    out.print(str(write_report(run.absolute())), soft_wrap=True)


@app.command()
def sync(
    run: Run, uri: Annotated[str | None, typer.Option(help="Where to; default as in the run's config.")] = None
) -> None:
    """Write to MLflow what it lacks of a run and its comparisons; twice is the same as once."""
    from lfs.tracker import sync as write_missing

    result = write_missing(run.absolute(), _tracking_uri(run.absolute(), uri))
    out.print(f"MLflow has {result.runs} runs of {run}; {result.runs_written} of them were written now", soft_wrap=True)


@app.command()
def dashboard(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder; default: all runs.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 0,
) -> None:
    """Start the MLflow page on 127.0.0.1 and print the addresses; Ctrl-C ends it."""
    from lfs.launch import runs_of
    from lfs.tracker_page import serve
    from lfs.tracker_uri import resolve_uri

    if run is None:
        runs = runs_of(DEFAULT_WORKSPACE.absolute())
        uri = resolve_uri(None, DEFAULT_WORKSPACE.absolute())
    else:
        runs, uri = [run.absolute()], _tracking_uri(run.absolute(), None)
    with signals(), contextlib.suppress(Interrupted):
        with out.status("starting the MLflow page"):
            page = serve(uri, port=port)
        with page:
            out.print(f"MLflow: {page.base}", soft_wrap=True)
            for each in runs:
                _print_addresses(each, uri, page.base)
            page.wait()


def _print_addresses(run: Path, uri: str, base: str) -> None:
    """The pages of a run and its comparisons, or why there are none."""
    from lfs.tracker import addresses
    from lfs.tracker_comparison import comparisons_of

    for folder in (run, *comparisons_of(run)):
        name = run.name if folder == run else f"{run.name}, compare {folder.name}"
        try:
            found = addresses(folder, uri, base)
        except UserError as error:
            out.print(f"{name}\n  {error}", soft_wrap=True)
        else:
            what = {"compare": "comparison", "full training": "training"}.get(found.role, found.role)
            out.print(f"{name}\n  all trials: {found.runs}\n  the {what}: {found.search}", soft_wrap=True)


def _tracking_uri(run_dir: Path, uri: str | None) -> str:
    from lfs.launch import read_run, workspace_of
    from lfs.tracker_uri import resolve_uri

    tracking = read_run(run_dir)[0].config["tracking"]
    configured = tracking.get("uri") if isinstance(tracking, dict) else None
    return resolve_uri(uri or (str(configured) if configured else None), workspace_of(run_dir))


@app.command()
def losses(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A loss; default: a list of all.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="PARAMETER=VALUE", help="Another value than the default.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page of pictures instead.")] = None,
    classes: Annotated[int, typer.Option(min=2, help="Classes to draw for.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the loss as JSON instead.")] = False,
) -> None:
    """The catalog, or one loss: formula, parameters with units and ranges, source, curves."""
    from search_space import build, catalog

    if name is None and (overrides or as_json):
        raise UserError(f"{'--set' if overrides else '--json'} needs the NAME of a loss; 'lossearch losses' lists them")
    chosen = dict(_assigned(each) for each in overrides or [])
    try:
        wanted = {each: catalog.get(each, **chosen) for each in ([name] if name else catalog.NAMES)}
        for spec in wanted.values():
            build(spec, num_classes=classes, class_counts=[1] * classes)
    except ValueError as error:
        raise UserError(_sentence(error, chosen)) from None
    if plot is not None:
        _write_pictures(wanted, plot, classes)
    elif name is None:
        _list_losses()
    elif as_json:
        out.print(wanted[name].model_dump_json(indent=2), soft_wrap=True)
    else:
        from analysis.loss_sheet import loss_sheet

        out.print(*loss_sheet(name, chosen, num_classes=classes, width=min(out.width, 100)), sep="\n")


def _list_losses() -> None:
    from search_space import catalog

    table = Table("name", "formula, source", box=None, pad_edge=False)
    for name, entry in catalog.ENTRIES.items():
        table.add_row(name, f"{entry.formula}\n[{entry.source}]")
    out.print(table)


def _write_pictures(wanted: "Mapping[str, LossSpec]", path: Path, classes: int) -> None:
    from analysis.loss_page import losses_html

    refuse_other_ending(path, ".html", "--plot writes a page")
    path.write_text(losses_html(wanted, num_classes=classes), encoding="utf-8")
    out.print(f"written: {path}", soft_wrap=True)


def _assigned(override: str) -> "tuple[str, Value]":
    """The parameter and the value of `parameter=value`: a number, a list of numbers, or else a word."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set needs PARAMETER=VALUE, such as margin=0.2, but got '{override}'")
    with contextlib.suppress(ValueError):
        return name.strip(), float(text)
    with contextlib.suppress(ValueError):
        return name.strip(), tuple(float(number) for number in text.strip().strip("[]()").split(","))
    return name.strip(), text.strip()


def _sentence(error: ValueError, values: "Mapping[str, Value]") -> str:
    """One sentence that names a parameter of the user's, where the error is about what was made of it."""
    from pydantic import ValidationError

    from lfs.config_file import sentence

    if not isinstance(error, ValidationError):
        return str(error)
    said = sentence(error, values).removeprefix(": ")
    given = ", ".join(f"{name}={value}" for name, value in values.items())
    return said if any(name in said for name in values) else f"{said}, from {given}"


EXAMPLE = """\
import json, pathlib
from search_space import LossSchedule, MarginHead
schedule = LossSchedule.model_validate(json.loads(pathlib.Path("{path}").read_text())["schedule"])
head = MarginHead(schedule.at(0), num_classes=..., dim=...)  # its parameters go to your optimiser
head.use(schedule.at(epoch))  # at the start of each epoch
head(embeddings, labels).backward()"""


CONSTANT_HINT = """\
Its schedule is one of {epochs} epochs of a proxy. For a training of another length take its "constant", a LossSpec."""


@app.command()
def export(
    run: Run, output: Annotated[Path | None, typer.Option(help="Default: winner.json in the run folder.")] = None
) -> None:
    """Write the winner's schedule and the constant loss at the final mean as JSON, and show how to use them."""
    from lfs.launch import read_search
    from lfs.winner import take_home

    refuse_other_ending(output, ".json", "--output is written as JSON")
    found = take_home(read_search(run)[1])
    content = json.dumps(found, indent=2)
    path = output or run / "winner.json"
    try:
        path.write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    out.print(f"written: {path}", soft_wrap=True)
    if found["constant"] is not None:
        out.print(CONSTANT_HINT.format(epochs=found["epochs"]), soft_wrap=True)
    out.print("\n" + EXAMPLE.format(path=path), soft_wrap=True)


def _evaluation_page(title: str, whole: "Evaluation", groups: "Breakdown") -> str:
    from analysis.protocol_page import evaluation_html
    from lfs.evaluation_tables import curves, measures, spreads

    found, spread = {ALL: whole, **groups.scored}, groups.spreads()
    tables = {"with 95 % intervals": measures(found, groups.unscored)}
    tables |= {"over groups": spreads(spread)} if spread else {}
    axes = ("FPIR", "TPIR") if whole.protocol == "identification" else ("FAR", "TAR")
    notes = [*whole.notes, *groups.notes(whole.notes)]
    return evaluation_html(title, whole.protocol, tables=tables, curves=curves(found), axes=axes, notes=notes)


app.command()(evaluate_command(_evaluation_page))


def _run_folder(run: Path | None, data_name: str) -> Path:
    """A bare name is a run of the default workspace."""
    if run is None:
        return (DEFAULT_WORKSPACE / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{data_name}").absolute()
    return (run if len(run.parts) > 1 or run.exists() else DEFAULT_WORKSPACE / "runs" / run).absolute()


def main() -> None:
    """The console script: one sentence and exit code 2 for what the user can mend."""
    try:
        app()
    except UserError as error:
        err.print(f"lossearch: {error}", soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        err.print(f"lossearch: {error.filename} cannot be read or written: {error.strerror}", soft_wrap=True)
        sys.exit(2)
