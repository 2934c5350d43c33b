"""What a person sees: plain lines, and pictures of which the words are looked at."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from saebench.runs.board import Best, Board, Running
from saebench.runs.clock import duration, time_left, time_of_day
from saebench.runs.events import Event
from saebench.runs.state import TrialState
from saebench.runs.stopped import stopped_sentence
from saebench.terminal import views as terminal
from saebench.terminal.encoding import allow_unencodable
from saebench.terminal.picture import encoding_line, failure_lines, pace_text, picture
from saebench.terminal.running import clock
from saebench.terminal.spark import sparkline
from saebench.terminal.views import LiveView, LoggedView, PlainView, QuietView, choose_view


@dataclass
class Texts:
    stage: str = "encoding"
    done: int = 0
    total: int | None = 1000
    rate: float = 0.0
    message: str = ""


def a_board() -> Board:
    board = Board("quickstart", left=8)
    board.counts.update(complete=10, pruned=2, failed=3, running=1, interrupted=0)
    board.running[12] = Running(12, "topk-k16-n1536", 1, "cpu (1/1)", 2, 1000, samples=250, fvu=0.25, l0=16.0)
    board.failures = {3: "diverged: loss is nan", 4: "crashed: ended by SIGSEGV", 7: "diverged: loss is nan"}
    board.verdicts.append("stopped 0005: FVU 0.656 at 50% of the budget, median of its 5 peers 0.553")
    return board


def drawn(board: Board, height: int = 40, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(picture(board, height, width))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_picture_shows_slots_counts_verdicts_and_failures_with_reasons() -> None:
    text = drawn(a_board())
    for words in (
        "15/24 trials",
        "10 complete",
        "2 pruned",
        "3 failed",
        "1 running",
        "0012 #2",
        "topk-k16-n1536",
        "250",
        "0.25",
        "0005: FVU 0.656 at 50% of the budget, median of its 5 peers 0.553",
        "0003, 0007: diverged: loss is nan",
        "0004: crashed: ended by SIGSEGV",
    ):
        assert words in text, words
    assert "interrupted" not in text


def test_a_sweep_that_nobody_works_on_has_no_pace_and_is_not_four_fifths_done() -> None:
    board = a_board()
    board.attended = False
    text = drawn(board)
    assert "15 trials of at most 24" in text
    assert "0:00" not in text.split("slot")[0]
    assert "15/24" not in text


def test_many_running_trials_leave_room_for_the_failures() -> None:
    board = a_board()
    for n in range(100):
        board.running[n] = Running(n, "topk", 0, f"slot {n:03d}", 1, 1000)
    text = drawn(board, height=30)
    assert text.count("\n") <= 30
    assert "more running" in text
    assert "0004: crashed" in text


def test_hundreds_of_failures_of_one_reason_take_one_line() -> None:
    board = Board("x")
    board.failures = dict.fromkeys(range(300), "out of GPU memory")
    assert failure_lines(board) == ["0000, 0001, 0002, 0003, 0004, 0005 and 294 more: out of GPU memory"]


def test_stopping_and_a_tracking_server_that_is_away_are_said() -> None:
    board = a_board()
    board.stopping, board.tracker = "Ctrl-C", "connection refused; 12 events wait on disk"
    text = drawn(board)
    assert "stopping: Ctrl-C" in text
    assert "MLflow: connection refused; 12 events wait on disk" in text


def test_eta_counts_the_running_trials_by_their_part() -> None:
    """Five trials of 100 samples took 40 s each, at other starts too; the sixth is half-way after 20 s, four are left:
    450 samples at 2.5 a second on the one slot that is busy."""
    board = Board("x", left=4)
    board.counts.update(complete=5, running=1)
    board.pace.trials, board.pace.samples, board.pace.seconds = 5, 500, 200.0
    board.ended_before = 3
    now = time.time()
    board.running[5] = Running(5, "s", 0, "cpu", 1, 100, samples=50, since=now - 20)
    board.started = now - 100
    assert board.eta(now) == pytest.approx(450 / 2.5)
    assert f", {time_left(180)}" in pace_text(board)
    assert time_left(180).startswith("about 3 min left, done around ")
    assert board.rate() == pytest.approx(2 / (100 / 60), rel=0.01)


def test_two_busy_slots_halve_the_time_and_an_interrupted_trial_counts() -> None:
    board = Board("x", left=3)
    board.counts.update(complete=5, running=2, interrupted=1)
    board.pace.trials, board.pace.samples, board.pace.seconds = 5, 500, 200.0
    now = time.time()
    for n in (5, 6):
        board.running[n] = Running(n, "s", 0, "cpu", 1, 100, samples=50, since=now - 20)
    assert board.eta(now) == pytest.approx((100 + 400) / 2.5 / 2)


def test_no_pace_before_there_is_a_measure() -> None:
    board = Board("x", left=10)
    assert board.eta() is None
    assert board.rate() is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_plain_lines_have_a_time_in_front() -> None:
    out = io.StringIO()
    view = PlainView(out)
    state = TrialState(7, "topk-k16", "p", 1, 1000, "failed", "diverged: loss is nan")
    state.values = {"eval/fvu": 0.5, "eval/l0": 16.0}
    view.ended(state)
    view.say("one\ntwo")
    lines = out.getvalue().splitlines()
    assert [line[8] for line in lines] == [" "] * 3
    assert lines[0][9:] == "trial 0007 topk-k16 seed 1 failed: diverged: loss is nan (fvu 0.5, l0 16)"
    assert [line[9:] for line in lines[1:]] == ["one", "two"]


def test_plain_encoding_is_a_line_per_tenth() -> None:
    out = io.StringIO()
    view = PlainView(out)
    for done in range(0, 1001, 7):
        view.encoding(Texts(done=done))
    assert len(out.getvalue().splitlines()) == 10
    assert "encoding: 0 of 1,000 texts" in out.getvalue()


def test_who_waits_for_another_encoder_says_so_once() -> None:
    out = io.StringIO()
    view = PlainView(out)
    for second in range(5):
        view.encoding(Texts(stage="waiting", done=second, total=None, message="another process builds x; waiting"))
    view.encoding(Texts(stage="texts", done=7, total=9))
    view.encoding(Texts(stage="loading", done=0, total=None))
    view.encoding(Texts(stage="verifying", done=1, total=3))
    said = [line.partition(" ")[2] for line in out.getvalue().splitlines()]
    waited, *rest = said
    assert waited == "another process builds x; waiting"
    assert rest == ["reading: 7 of 9 texts", "loading the encoder", "verifying: 1 of 3 files"]


def test_plain_says_how_things_stand_once_a_minute() -> None:
    out = io.StringIO()
    now = [0.0]
    view = PlainView(out, lambda: now[0])
    for second in range(180):
        now[0] = float(second)
        view.show(a_board())
    assert len(out.getvalue().splitlines()) == 2
    assert "15/24 trials" in out.getvalue()


def test_live_draws_the_board_and_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "FRAME", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    with LiveView(console) as view:
        view.say("sweep quickstart: [brackets] stay")
        view.note("before the board there are notes")
        view.encoding(Texts(done=10))
        view.show(a_board())
        view.note("this one is the board's business")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "sweep quickstart: [brackets] stay" in text
    assert "before the board" in text
    assert "this one" not in text
    assert "15/24 trials" in text


def test_what_is_said_is_logged_too(tmp_path: Path) -> None:
    inner = QuietView()
    with LoggedView(inner, tmp_path / "scheduler.log") as view:
        view.say("a")
        view.note("b")
        view.ended(TrialState(1, "s", "p", 0, 10, "complete"))
    lines = (tmp_path / "scheduler.log").read_text().splitlines()
    assert [line[20:] for line in lines] == ["a", "b", "trial 0001 s seed 0 complete"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    with LoggedView(QuietView(), tmp_path / "nowhere" / "scheduler.log") as view:
        view.say("a")


def test_what_an_encoding_lacks_stops_nothing(tmp_path: Path) -> None:
    """A folder's name under LC_ALL=C is decoded byte by byte; a pipe may take ASCII alone."""
    stream = io.BytesIO()
    out = io.TextIOWrapper(stream, encoding="ascii")
    with LoggedView(PlainView(out), tmp_path / "scheduler.log") as view:
        view.say("sweep: /home/jos\udcc3\udca9/runs")
        view.say("é • 木")
    shown = [line[9:] for line in stream.getvalue().decode("ascii").splitlines()]
    assert shown == [r"sweep: /home/jos\udcc3\udca9/runs", r"\xe9 * \u6728"]
    logged = (tmp_path / "scheduler.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in logged] == [shown[0], "é • 木"]


def test_no_live_screen_where_its_bars_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True, raising=False)
    for encoding, view in (("utf-8", LiveView), ("ascii", PlainView)):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(terminal, "make_console", lambda file=file: Console(file=file, force_terminal=True))
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(choose_view(), view)


def test_a_forgiving_stream_writes_the_bytes_of_names_our_signs_in_ascii_and_the_numbers_of_characters() -> None:
    stream = io.BytesIO()
    out = io.TextIOWrapper(stream, encoding="ascii")
    allow_unencodable(out)
    print("jos\udcc3\udca9 • ±0.1 é木", file=out, flush=True)
    assert stream.getvalue() == "josé ".encode() + b"* +-0.1 " + rb"\xe9\u6728" + b"\n"
    allow_unencodable(io.StringIO())


def test_no_live_screen_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_view(), PlainView)
    assert isinstance(choose_view(quiet=True), QuietView)
    monkeypatch.setattr(terminal.sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(choose_view(plain=True), PlainView)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_numbers_are_whole_however_narrow_the_screen_is(width: int) -> None:
    board = a_board()
    board.running[12] = Running(12, "batchtopk-k16-n1536", 1, "cuda:0 (1/2)", 2, 2_000_000, 1_250_000, 0.0625, 15.97)
    lines = drawn(board, width=width).splitlines()
    row = next(line for line in lines if "0012 #2" in line)
    for words in ("batchtopk-k16-n1536", "0.0625", "15.97", *(["1,250,000"] if width >= 100 else [])):
        assert words in row
    assert "…" not in row
    assert pace_text(board).split(",")[0] in lines[1] + lines[2]


def test_hold_out_values_are_not_replaced_by_those_of_a_training_batch() -> None:
    running = a_board().running[12]
    running.see(Event("step", 300, {"train/fvu": 0.05, "train/l0": 17}))
    assert (running.fvu, running.l0) == (0.05, 17)
    running.see(Event("eval", 400, {"eval/fvu": 0.5, "eval/l0": 16}))
    running.see(Event("step", 500, {"train/fvu": 0.04, "train/l0": 18}))
    assert (running.samples, running.fvu, running.l0) == (500, 0.5, 16)


def test_a_reader_who_leaves_does_not_end_the_sweep() -> None:
    """`saebench sweep ... | head -1`: the rest is said to nobody."""
    code = (
        "from saebench.terminal.views import PlainView as V; v = V(); [v.say('x' * 999) for _ in range(999)]; exit(7)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 7


def test_without_a_stdout_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert isinstance(choose_view(), QuietView)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "1 h 30 min"), (48000, "13 h 20 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_said_to_two_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_end_is_a_time_of_day_with_its_day_where_that_is_not_today_or_tonight() -> None:
    noon = time.mktime((2026, 11, 26, 14, 10, 0, 0, 0, -1))  # a Thursday
    assert time_left(48000, noon) == "about 13 h 20 min left, done around 03:30"
    assert time_of_day(600, noon) == "14:20"
    assert time_of_day(86400, noon) == "Fri 14:10"
    assert time_of_day(10 * 86400, noon) == "06 Dec 14:10"


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"pruner": "median", "threshold": 0.553, "peers": 5}, "median of its 5 peers 0.553"),
        ({"pruner": "asha", "threshold": 0.5, "peers": 8}, "the worst of its 8 peers that continue has 0.5"),
        ({"pruner": "threshold", "threshold": 0.6}, "the bound is 0.6"),
        ({"pruner": "pareto", "threshold": 0.4, "rival": 7, "rival_l0": 15.5},
         "trial 0007 does better with fewer latents (limit 0.4 and L0 15.5)"),
    ],
)  # fmt: skip
def test_why_a_trial_was_stopped_is_a_sentence(numbers: dict[str, object], said: str) -> None:
    verdict = {"verdict": "prune", "value": 0.656, **numbers}
    sentence = stopped_sentence(13, 200, 1000, verdict, "eval/fvu")
    assert sentence == f"stopped 0013: FVU 0.656 at 20% of the budget, {said}"


def test_encoding_says_its_rate_and_what_is_left() -> None:
    line = encoding_line(Texts(done=400, total=1000, rate=10.0))
    assert line.startswith("encoding: 400 of 1,000 texts, 10 a second, about 60 s left, done around ")
    assert encoding_line(Texts(stage="texts", done=400, rate=10.0)) == "reading: 400 of 1,000 texts"


def test_a_sparkline_shows_the_newest_value_and_a_flat_curve_is_flat() -> None:
    assert sparkline([3, 2, 1, 1], 8) == "█▅▁▁"
    assert sparkline([1, 1, 1], 8) == "▁▁▁"
    assert sparkline([9, 8, 7, 6, 5, 4, 3, 2], 4) == "▇▅▃▁"
    assert sparkline([1, float("nan")], 8) == ""


# --- what is on the screen -------------------------------------------------------------------------------------------


def a_search() -> Board:
    """Two arms at two levels, one trial of each but one complete, one that evaluates at its end."""
    board = Board(
        "quickstart", cells={f"{arm}-k{k}": (arm, f"k={k}") for arm in ("topk", "batchtopk") for k in (8, 16)}
    )
    board.searched = ("lr", "batch_size")
    board.counts.update(complete=3, running=2)
    for number, (arm, k, fvu) in enumerate([("topk", 8, 0.5), ("batchtopk", 8, 0.45), ("topk", 16, 0.3)]):
        state = TrialState(number, f"{arm}-k{k}", "p", 0, 1000, "complete", values={"eval/fvu": fvu})
        board.see_ended(state)
    board.see_ended(TrialState(9, "topk-k8", "p", 0, 1000, "complete", values={"eval/fvu": 0.6}))
    board.see_ended(TrialState(10, "topk-k8", "p", 0, 1000, "pruned", values={"eval/fvu": 0.1}))
    for number in (3, 4):
        row = Running(number, "batchtopk-k16", 0, "cpu", 1, 1000, parameters="lr 0.0031, batch_size 256")
        for samples, fvu in ((250, 0.9), (500, 0.6), (750, 0.45)):
            row.see(Event("eval", samples, {"eval/fvu": fvu, "eval/l0": 16.0}))
        board.running[number] = row
    board.running[4].see(Event("step", 1000, {}))
    return board


def test_the_best_so_far_is_a_row_per_arm_and_a_column_per_sparsity() -> None:
    board = a_search()
    assert board.best["topk", "k=8"] == Best(0.5, 0)
    lines = drawn(board, width=80).splitlines()
    head = next(i for i, line in enumerate(lines) if "best FVU" in line)
    assert lines[head].split() == ["best", "FVU", "k=8", "k=16"]
    assert lines[head + 1].split() == ["topk", "0.5000", "(0000)", "0.3000", "(0002)"]
    assert lines[head + 2].split() == ["batchtopk", "0.4500", "(0001)", "-"]


@pytest.mark.parametrize("width", [80, 160])
def test_a_running_trial_shows_its_parameters_its_curve_and_what_it_does_at_its_end(width: int) -> None:
    lines = drawn(a_search(), width=width).splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if "0004" in line)
    assert "evaluating, saving" in row
    assert "0.45" in row
    at = next(i for i, line in enumerate(lines) if line.startswith(" 0003") or " 0003 " in line)
    said = lines[at] if width == 160 else lines[at] + lines[at + 1]
    assert "lr 0.0031, batch_size 256" in said
    assert "█▃▁" in said


def test_a_trial_starts_then_trains_then_evaluates_its_two_parts() -> None:
    row = Running(1, "s", 0, "cpu", 1, 1000)
    assert row.doing == "starting"
    row.see(Event("start", 0))
    assert row.doing == ""
    row.see(Event("step", 1000))
    assert row.doing == "evaluating, saving"
    row.see(Event("eval", 1000, {"eval/fvu": 0.3}))
    assert row.doing == "test texts"


def test_the_bar_is_not_red_unless_something_has_failed() -> None:
    """ANSI: cyan is 36, yellow 33; rich's own bar is a red of the 256 colours."""
    for failures, colour in (({}, "\x1b[36m━"), ({3: "crash"}, "\x1b[33m━")):
        board = a_search()
        board.left, board.failures, board.running = 5, failures, {}
        console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard", no_color=False)
        console.print(picture(board, 40, 120))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert colour in text
        assert "\x1b[31m━" not in text


def test_plain_lines_have_no_escape_codes() -> None:
    out = io.StringIO()
    now = [0.0]
    view = PlainView(out, lambda: now[0])
    view.encoding(Texts(done=400, rate=10.0))
    now[0] = 100.0
    view.show(a_search())
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 2
