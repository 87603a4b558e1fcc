"""The command line from end to end, and what it shows meanwhile."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lfs.journal import FILE_NAME, Asked, Event, Finished, Resumed, Retried, Told, comparable, read_events
from lfs.progress import Progress
from search_space import LossSpec, catalog
from tests.lfs.command import TINY_SEARCH, Result, contents, lossearch
from trainers.outcome import Outcome

COMMANDS = {
    "search": ["--set", "--method", "--data", "--run"],
    "resume": ["RUN", "--set"],
    "compare": ["RUN", "--seeds", "--baseline", "--no-tune", "--equal-compute", "--again", "--set"],
    "train": ["[TRAIN.TOML]", "--set", "--data", "--loss", "--network", "--pairs", "--out", "--resume"],
    "evaluate": ["EMBEDDINGS", "--pairs", "--gallery", "--probe", "--distractors", "--by", "--far", "--json", "--plot"],
    "embed": ["NETWORK_DIR", "DATA", "OUT.npz", "--split"],
    "report": ["RUN"],
    "sync": ["RUN", "--uri"],
    "dashboard": ["[RUN]", "--port"],
    "losses": ["[NAME]", "--set", "--plot", "--classes", "--json"],
    "export": ["RUN", "--output"],
    "data": ["info", "proxy", "convert", "split", "check"],
}
ENTRANTS = ("adacos-dynamic", "adacos-fixed", "p2sgrad", "p2sgrad-recipe", "softmax", "constant-margin")


def events_of(run_dir: Path) -> list[Event]:
    return read_events(run_dir / FILE_NAME)[0]


def test_help_names_every_command() -> None:
    done = lossearch("--help")
    assert done.code == 0
    listed = re.findall(r"^  (\w+) +\S", done.out[done.out.index("Commands:") :], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_what_it_takes(command: str) -> None:
    done = lossearch(command, "--help")
    assert done.code == 0
    assert f"Usage: lossearch {command}" in done.out
    assert not [name for name in COMMANDS[command] if name not in done.out]


def test_losses_lists_the_catalog_with_formulas_and_sources() -> None:
    done = lossearch("losses")
    assert done.code == 0
    lines = done.out.splitlines()
    assert {line.split()[0] for line in lines[1:] if line[0] != " "} == set(catalog.NAMES)
    assert any(re.match(r"softmax +T = s·cos θ$", line.rstrip()) for line in lines)
    assert any(line.strip() == "[CosFace, Wang et al., CVPR 2018, Eq. 4]" for line in lines)


def test_the_list_of_losses_is_readable_at_a_hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Console(file=io.StringIO(), width=100, highlight=False, markup=False)
    monkeypatch.setattr("lfs.cli.out", wide)
    assert lossearch("losses").code == 0
    assert isinstance(wide.file, io.StringIO)
    lines = wide.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert 2 * len(catalog.NAMES) < len(lines) <= 2.3 * len(catalog.NAMES)


def test_a_loss_is_shown_with_units_ranges_source_state_and_curves() -> None:
    done = lossearch("losses", "magface")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    words = re.sub(r" +", " ", done.out)
    assert "formula T = s·cos(θ + m(‖x‖)) where cos θ > 0" in words
    assert "source MagFace, Meng et al., CVPR 2021" in words
    assert "tracks nothing" in words
    assert "cost target-only" in words
    assert "upper_margin_rad 0.8 rad [0.45, π/2]" in words
    assert "scale 64 logits per cosine (0, 1024]" in words
    assert "target logit T" in words
    assert "⣀ ‖x‖ = 10 · ‖x‖ = 30 x ‖x‖ = 100" in words
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_loss_is_shown(name: str) -> None:
    done = lossearch("losses", name, "--classes", "30")
    assert done.code == 0, done.err
    words = " ".join(done.out.split())
    assert all(parameter in words for parameter in catalog.ENTRIES[name].defaults())
    assert "pull −∂L/∂cos θ" in words
    assert "At 30 classes" in words


def test_a_loss_is_shown_with_values_of_ones_own() -> None:
    done = lossearch("losses", "modulating_bins", "--set", "scale=64", "--set", "margins=[0,0,0,0,0,0,0,0,0,.5]")
    words = " ".join(done.out.split())
    assert "loss modulating bins u=[0 0 0 0 0 0 0 0 0 32] s=64" in words
    assert "[0, 8], each of 10" in words
    assert "0.2, 10 times" in words


def test_a_loss_is_printed_as_json_that_makes_it_again() -> None:
    done = lossearch("losses", "mv_arc", "--set", "variant=fixed", "--set", "t=0.3", "--json")
    assert LossSpec.model_validate_json(done.out) == catalog.get("mv_arc", variant="fixed", t=0.3)


def test_pictures_of_one_loss_or_of_all_go_into_a_page(tmp_path: Path) -> None:
    for arguments, figures in ((["arcface", "--set", "margin_rad=0.3"], 1), ([], len(catalog.NAMES))):
        page = tmp_path / f"{figures}.html"
        done = lossearch("losses", *arguments, "--plot", page, "--classes", "50")
        assert done.code == 0, done.err
        assert done.out == f"written: {page}\n"
        assert page.read_text(encoding="utf-8").count("<figure ") == figures
    assert "ArcFace m=0.3 rad s=64" in (tmp_path / "1.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "unknown loss 'nope'; known are softmax, sphereface,"),
        (["cosface", "--set", "margin_rad=1"], "loss 'cosface' has no parameter 'margin_rad'; it has margin, scale"),
        (["cosface", "--set", "margin=x"], "parameter 'margin' of loss 'cosface' must be a number, but got 'x'"),
        (["cosface", "--set", "margin=2"], "margin: must be at most 1, but got 2.0"),
        (["cosface", "--set", "margin=nan"], "must be a finite number, but got nan, from margin=nan"),
        (["cosface", "--set", "margin"], "--set needs PARAMETER=VALUE, such as margin=0.2, but got 'margin'"),
        (["modulating", "--set", "margin=100"], "u must be at most 512, but got 3200.0, from margin=100.0"),
        (["modulating_bins", "--set", "margins=1"], "must be a list of numbers, but got 1.0"),
        (["arcface", "--set", "gradient=some"], "gradient: must be 'exact' or 'detached', but got 'some'"),
        (["adacos_fixed", "--classes", "2"], "AdaCos needs num_classes >= 3"),
        (["cosface", "--plot", "cos.png"], "--plot writes a page, so its file must end in .html, but got cos.png"),
        (["--json"], "--json needs the NAME of a loss; 'lossearch losses' lists them"),
        (["--set", "scale=3"], "--set needs the NAME of a loss; 'lossearch losses' lists them"),
        (["cosface", "--plot", "no/such/folder/cos.html"], "cos.html cannot be read or written"),
    ],
)
def test_what_losses_cannot_show_is_said_in_one_sentence(arguments: list[str], sentence: str) -> None:
    done = lossearch("losses", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("lossearch: ")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_a_search_ends_with_its_table_its_report_and_a_finished_journal(finished_search: tuple[Path, Result]) -> None:
    run_dir, done = finished_search
    assert done.code == 0, done.err
    assert done.err == ""
    events = events_of(run_dir)
    assert isinstance(events[-1], Finished)
    assert events[-1].winner is not None
    table = done.out[done.out.index("┏") : done.out.index("└")]
    assert [name for name in ("winner", *ENTRANTS) if not re.search(rf"│ {name} +│ [01]\.\d{{4}} ", table)] == []
    assert f"report: {run_dir / 'report.html'}\n" in done.out
    report = (run_dir / "report.html").read_text(encoding="utf-8")
    assert [name for name in ENTRANTS if name not in report] == []


def test_a_search_prints_plain_lines_where_there_is_no_terminal(finished_search: tuple[Path, Result]) -> None:
    run_dir, done = finished_search
    assert "\x1b" not in done.out
    lines = done.out.splitlines()
    assert lines[0] == f"run: {run_dir}"
    assert lines[1].startswith("shapes: 8 classes, 48 images to train on; reward rank1 on 2 other identities")
    told = [event for event in events_of(run_dir) if isinstance(event, Told)]
    outcomes = [line for line in lines if re.search(r"reward \d\.\d{4}.* trials done, about \d+ (s|min) left$", line)]
    assert len(outcomes) == len(told) == 3 * 2 + len(ENTRANTS)
    assert outcomes[0].startswith(f"trial 0, round 0: reward {told[0].outcome.reward:.4f}")
    assert "12 trials done, about 0 s left" in outcomes[-1]


def test_a_search_is_the_same_again_from_a_config_file(
    finished_search: tuple[Path, Result], shapes: Path, here: Path
) -> None:
    (here / "run.toml").write_text(
        f"""
        data.path = "{shapes}"
        executor.kind = "serial"
        tracking.enabled = false
        numerics = {{ dtype = "float32", channels_last = false, lockstep = 1, execution = "eager" }}
        recipe = {{ width = 4, embedding_dim = 8, batch_size = 16, horizon_epochs = 3, reward = "rank1" }}
        search = {{ batch = 2, warmup_epochs = 1 }}
        """,
        encoding="utf-8",
    )
    assert lossearch("search", "run.toml", "--run", "again").code == 0
    again, first = events_of(here / "lossearch" / "runs" / "again"), events_of(finished_search[0])
    assert [comparable(event) for event in again[1:]] == [comparable(event) for event in first[1:]]


def test_a_finished_search_resumed_says_so_and_stays_as_it_is(finished_search: tuple[Path, Result], here: Path) -> None:
    run_dir, first = finished_search
    before = contents(run_dir)
    done = lossearch("resume", run_dir)
    assert done.code == 0
    assert "this search is finished: nothing is left to train" in done.out
    assert done.out[done.out.index("┏") :] == first.out[first.out.index("┏") :]
    after = contents(run_dir)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} <= {"report.html"}


def test_an_interrupted_search_resumed_ends_as_if_it_had_not_been(
    finished_search: tuple[Path, Result], here: Path
) -> None:
    run_dir = here / "runs" / "cut"
    run_dir.mkdir(parents=True)
    lines = (finished_search[0] / FILE_NAME).read_bytes().splitlines(keepends=True)
    (run_dir / FILE_NAME).write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"event":"to')
    done = lossearch("resume", run_dir)
    assert done.code == 0, done.err
    events, whole = events_of(run_dir), events_of(finished_search[0])
    assert sum(isinstance(event, Resumed) for event in events) == 1
    assert [comparable(event) for event in events if event.event not in ("resumed", "rebuilt")] == [
        comparable(event) for event in whole
    ]
    assert "about" in done.out
    assert f"report: {run_dir / 'report.html'}\n" in done.out


@pytest.mark.parametrize("executor", ["serial", "ray"])
def test_a_search_begun_with_cuda_graphs_goes_on_only_where_there_is_a_gpu(
    executor: str, finished_search: tuple[Path, Result], here: Path
) -> None:
    run_dir = here / "runs" / "cut"
    run_dir.mkdir(parents=True)
    lines = (finished_search[0] / FILE_NAME).read_bytes().splitlines(keepends=True)
    assert lines[0].count(b'"execution":"eager"') == 2  # of the config, and of what was measured
    measured = lines[0].rpartition(b'"execution":"eager"')
    begun = b'"execution":"cuda_graph"'.join([measured[0], measured[2]]) + b"".join(lines[1 : len(lines) // 2])
    (run_dir / FILE_NAME).write_bytes(begun)
    done = lossearch("resume", run_dir, f"--set=executor.kind={executor}")
    assert done.code == 2
    assert "'cuda_graph' needs a GPU, but the workers have none" in done.err
    assert (run_dir / FILE_NAME).read_bytes() == begun


def test_report_writes_the_page_of_an_unfinished_run(finished_search: tuple[Path, Result], here: Path) -> None:
    lines = (finished_search[0] / FILE_NAME).read_bytes().splitlines(keepends=True)
    (here / FILE_NAME).write_bytes(b"".join(lines[:5]))
    done = lossearch("report", here)
    assert done.code == 0
    assert done.out == f"{here / 'report.html'}\n"
    assert "<html" in (here / "report.html").read_text(encoding="utf-8")


def test_a_run_without_a_name_goes_into_the_default_workspace(shapes: Path, here: Path) -> None:
    done = lossearch("search", "--data", shapes, *TINY_SEARCH, "--set=recipe.horizon_epochs=2", "--set=baselines=[]")
    assert done.code == 0, done.err
    (run_dir,) = (here / "lossearch" / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-shapes", run_dir.name)
    assert isinstance(events_of(run_dir)[-1], Finished)
    assert {place.name for place in (here / "lossearch").iterdir()} == {"cache", "runs"}


def test_a_search_in_which_every_trial_fails_stops_with_the_reason(
    shapes: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Outcome(reward=None, seconds=0.1, images=0, error="RuntimeError: the GPU fell off the bus")
    monkeypatch.setattr("lfs.runner.train_together", lambda candidates, *_, **__: [(failure, None)] * len(candidates))
    done = lossearch("search", "--data", shapes, "--run", "hopeless", *TINY_SEARCH)
    assert done.code == 1
    assert done.err == "lossearch: 5 trials in a row failed alike: RuntimeError: the GPU fell off the bus\n"
    assert isinstance(events_of(here / "lossearch" / "runs" / "hopeless")[-1], Told)


def progress_in_a_terminal(events: list[Event]) -> str:
    """What a terminal of 120 columns shows after these events."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with Progress(console, epochs=18, metric="rank1") as progress:
        for event in events:
            progress.on_event(event)
        before = screen.tell()
    return screen.getvalue()[before:]


def test_a_terminal_shows_trials_best_controller_and_time_left(finished_search: tuple[Path, Result]) -> None:
    events = events_of(finished_search[0])[:-1]
    shown = progress_in_a_terminal(events)
    rewards = {
        event.trial: event.outcome.reward
        for event in events
        if isinstance(event, Told) and event.trial < 6 and event.outcome.reward is not None
    }
    assert re.search(r"trials +12 done, 0 running", shown)
    assert re.search(rf"best so far +rank1 {max(rewards.values()):.4f} \(trial \d, round \d\)", shown)
    assert re.search(r"controller +round \d+, m2_rad \d\.\d+ ± 0\.\d+, m3", shown)
    assert re.search(r"time left +about \d+ s left", shown)
    assert re.search(r"baselines +adacos-dynamic \d\.\d{4}", shown)


def test_a_terminal_shows_what_runs_and_what_failed(finished_search: tuple[Path, Result]) -> None:
    events = events_of(finished_search[0])
    asked = next(index for index, event in enumerate(events) if isinstance(event, Asked))
    first = events[asked]
    assert isinstance(first, Asked)
    number = first.trials[0].number
    shown = progress_in_a_terminal([*events[: asked + 1], Retried(trial=number, attempt=1, reason="the worker died")])
    assert re.search(rf"trials +0 done, {len(first.trials)} running, 1 retried", shown)
    assert re.search(r"running +trial 0, round 0", shown)
    assert re.search(r"best so far +–", shown)
    assert re.search(r"time left +time left unknown", shown)
