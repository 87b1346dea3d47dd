"""`pwm top`: figures, widths and heights; the screens at three sizes; two thousand rows; text."""

import asyncio
import time
from typing import Any

import pytest
from aiohttp import web

from pwm.cli.profiles import Profile
from pwm.cli.target import Target
from pwm.cli.topui import tables
from pwm.cli.topui.app import TopApp
from pwm.cli.topui.columns import Table, bar
from pwm.cli.topui.layout import GAP, cell_length, fit, pane_heights, sparkline, trim
from pwm.cli.topui.rows import Rows
from pwm.cli.topui.screens import HelpScreen, OneWorkload, Overview
from pwm.cli.topui.snapshot import read
from tests.patience import PATIENCE_S
from tests.unit.cli_streams.conftest import Pwm
from tests.unit.cli_streams.fake_server import FakeServer
from tests.unit.cli_streams.figures import PROCESSES, top_message

SIZES = [(80, 24), (120, 40), (200, 50)]


# --- figures --------------------------------------------------------------------------------------


def test_rates_are_the_difference_of_two_beats() -> None:
    first = read(top_message(beat=1))
    second = read(top_message(beat=2), first)
    rates = next(w for w in second.workloads if w.name == "train-1").rates
    assert (rates.receive, rates.send, rates.read) == (2_000_000, 90_000, 2_000_000)
    assert next(w for w in first.workloads if w.name == "train-1").rates.receive == 0


def test_a_counter_that_begins_anew_is_no_negative_rate() -> None:
    later = read(top_message(beat=9))
    restarted = read({**top_message(beat=1), "time": "2026-01-02T03:09:00Z"}, later)
    assert all(w.rates.receive == 0 for w in restarted.workloads)


def test_containers_of_a_workload_are_added_up() -> None:
    message = top_message(workloads=2)
    second = {**message["containers"][0], "name": "train-0.1.1", "node": "node01", "phase": "PULLING"}
    message["containers"].append({**second, "usage": {**second["usage"], "uid": "other"}})
    workload = next(w for w in read(message).workloads if w.name == "train-0")
    assert (workload.containers, workload.gpus, workload.pids) == (2, 2, 24)
    assert (workload.nodes, workload.phase) == ("node00 +1", "RUNNING")


def test_an_empty_message_of_an_empty_cluster_is_read() -> None:
    snapshot = read({"time": "2026-01-02T03:04:05.5Z", "nodes": [{"name": "n1", "phase": "NOT_READY"}]})
    assert snapshot.nodes[0].cpu_total == 0
    assert snapshot.workloads == []


# --- widths and heights ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(20, 260, 7))
@pytest.mark.parametrize("table", [tables.NODES, tables.GPUS, tables.workloads(None), tables.containers(None)])
def test_columns_never_exceed_the_width_and_the_name_always_stays(table: Table[Any], width: int) -> None:
    chosen = fit(table.columns, width)
    assert sum(w for _, w in chosen) + GAP * (len(chosen) - 1) <= max(width, table.columns[0].width)
    assert chosen[0][0] is table.columns[0] or width < table.columns[0].width


@pytest.mark.parametrize("available", range(10, 60))
@pytest.mark.parametrize("rows", [[1, 0, 3], [3, 12, 40], [200, 800, 2000], [0, 0, 0]])
def test_panes_fill_the_screen_and_the_last_one_has_half_of_it(available: int, rows: list[int]) -> None:
    heights = pane_heights(available, rows)
    assert sum(heights) == available
    assert heights[-1] >= available // 2
    assert all(height == 0 for height, count in zip(heights[:-1], rows[:-1], strict=True) if not count)


@pytest.mark.parametrize(("used", "held", "drawn"), [
    (0, 0, "──────────"), (5, 0, "━━━━━─────"), (2.5, 8, "━━╸╍╍╍╍╍──"), (20, 20, "━━━━━━━━━━"), (0.01, 0, "──────────"),
    (0.1, 0, "╸─────────"),
])  # fmt: skip
def test_a_bar_shows_use_promise_and_rest(used: float, held: float, drawn: str) -> None:
    assert "".join(text for text, _ in bar(used, held, 10, width=10)) == drawn


def test_a_long_cell_is_cut_with_an_ellipsis() -> None:
    assert trim([("abc", "a"), ("defgh", "b")], 6) == [("abc", "a"), ("de…", "b")]
    assert cell_length(trim([("x" * 50, "a")], 7)) == 7


def test_a_sparkline_shows_the_latest_values_at_the_right() -> None:
    assert sparkline([0.9, 0.0, 0.5, 1.0], 3) == "▁▅█"
    assert sparkline([0.5], 3) == "  ▅"


# --- the screens ----------------------------------------------------------------------------------


def serve_top(server: FakeServer, **figures: Any) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for beat in range(3):
            await response.write(web.json_response({"result": top_message(beat=beat, **figures)}).body + b"\n")  # type: ignore[operator]
            if request.query.get("interval") == "0s":
                return response
        await asyncio.Event().wait()
        return response

    server.on("GET", "/v1/top", handle)
    server.answer("GET", "/v1/workloads/train-0/processes", PROCESSES)


def app_for(server: FakeServer, target: Target | None = None) -> TopApp:
    profile = Profile("lab", servers=[server.url], token="pwm_secret")
    return TopApp(profile, query={"interval": "2s"}, target=target)


async def until(condition: Any, pilot: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, pilot.app.trouble
        await pilot.pause(0.01)


def text_of(app: TopApp) -> list[str]:
    """The screen as lines of text."""
    width, height = app.size
    return [
        "".join(segment.text for segment in app.screen._compositor.render_strips()[y]).ljust(width)
        for y in range(height)
    ]


@pytest.mark.parametrize("size", SIZES)
async def test_everything_fits_on_the_screen(server: FakeServer, size: tuple[int, int]) -> None:
    serve_top(server)
    app = app_for(server)
    async with app.run_test(size=size) as pilot:
        await until(lambda: app.snapshot is not None and app.snapshot.time.second == 4, pilot)
        await pilot.pause()
        lines = text_of(app)
    assert all(len(line) == size[0] for line in lines)
    text = "\n".join(lines)
    for expected in ("pwm top · lab", "2 of 3 nodes ready", "● live", "Nodes 3", "GPUs 12", "Workloads 12", "q quit"):
        assert expected in text
    assert "node00" in text
    assert "train-" in text
    # The widest screen has room for what the narrowest leaves out.
    assert ("NET OUT" in text) == (size[0] >= 200)


async def test_keys_sort_filter_zoom_open_and_go_back(server: FakeServer) -> None:
    serve_top(server)
    app = app_for(server)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: app.snapshot is not None and app.snapshot.time.second == 4, pilot)
        rows = app.screen.query_one("#workloads", Rows)
        busiest = rows.selected
        await pilot.press("r")
        await pilot.press("home")
        assert rows.selected.cpu_used < busiest.cpu_used
        await pilot.press("slash", *"train-0", "enter")
        await until(lambda: rows.filter == "train-0", pilot)
        assert rows.selected.name == "train-0"
        await pilot.press("z")
        await pilot.pause()
        assert not app.screen.query_one("#nodes", Rows).display
        await pilot.press("z", "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape", "enter")
        await until(lambda: isinstance(app.screen, OneWorkload), pilot)
        processes = app.screen.query_one("#processes", Rows)
        await until(lambda: processes.count == 3, pilot)
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, Overview), pilot)
        await pilot.press("escape")
        assert rows.filter == ""
        await pilot.press("tab")
        assert app.screen.focused is app.screen.query_one("#nodes", Rows)
        await pilot.press("q")
    assert app.error is None


async def test_the_cursor_stays_on_its_row_when_rows_move(server: FakeServer) -> None:
    serve_top(server)
    app = app_for(server)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(lambda: app.snapshot is not None and app.snapshot.time.second == 4, pilot)
        rows = app.screen.query_one("#workloads", Rows)
        await pilot.press("down", "down")
        chosen = rows.selected.name
        app.beat(read(top_message(beat=25)))
        assert rows.selected.name == chosen


async def test_one_workload_begins_with_its_own_screen(server: FakeServer) -> None:
    serve_top(server)
    app = app_for(server, Target("train-0", group="vision"))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(lambda: app.snapshot is not None, pilot)
        await until(lambda: app.screen.query_one("#processes", Rows).count == 3, pilot)
        await pilot.pause()
        text = "\n".join(text_of(app))
    assert "vision/train-0" in text
    assert "python main.py" in text
    assert "Containers 1" in text


async def test_a_lost_server_is_said_on_the_screen_and_found_again(server: FakeServer) -> None:
    serve_top(server)
    good = server.handlers["GET", "/v1/top"]
    server.json_lines("/v1/top", [{**top_message()}])  # ends after one beat
    app = app_for(server)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(lambda: "trying again" in app.trouble, pilot)
        server.on("GET", "/v1/top", good)
        await until(lambda: app.trouble == "", pilot)
    assert app.error is None


async def test_what_asking_again_cannot_mend_ends_it_with_that_error(server: FakeServer) -> None:
    server.answer("GET", "/v1/top", {"code": 7, "message": "you may not look at this"}, status=403)
    app = app_for(server)
    async with app.run_test() as pilot:
        await until(lambda: app.error is not None, pilot)
    assert app.error is not None
    assert app.error.message == "you may not look at this"


async def test_a_beat_of_two_thousand_workloads_is_drawn(server: FakeServer) -> None:
    serve_top(server, workloads=1)
    app = app_for(server)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: app.snapshot is not None, pilot)
        for beat in (3, 4, 5):
            message = top_message(workloads=2000, nodes=50, gpus_per_node=8, beat=beat)
            app.beat(read(message, app.snapshot))
            await pilot.pause()
        rows = app.screen.query_one("#workloads", Rows)
        assert rows.count == 2000
        await pilot.press("end")
        assert rows.scroll_offset.y > 1900


def test_markup_in_names_is_shown_as_it_is() -> None:
    message = top_message(workloads=1)
    message["containers"][0]["workload"] = "[red]x[/red]"
    row = read(message).workloads[0]
    cell = tables.workloads(None).column("name").cell(row, 20)
    assert cell == [("[red]x[/red]", "name")]


def test_a_command_line_cannot_steer_the_terminal(server: FakeServer, pwm: Pwm) -> None:
    serve_top(server)
    rows = [{"cells": ["1", "python \x1b]0;title\x07\x9b2J main.py"]}]
    listing = {"container": "train-0.0.1", "titles": ["PID", "CMD"], "rows": rows}
    server.answer("GET", "/v1/workloads/train-0/processes", {"containers": [listing]})
    text = pwm("top", "wk", "train-0").stdout.decode()
    assert "python �]0;title��2J main.py" in text


# --- text -----------------------------------------------------------------------------------------


def test_without_a_terminal_the_tables_come_once_as_text(server: FakeServer, pwm: Pwm) -> None:
    serve_top(server)
    result = pwm("top")
    assert result.returncode == 0
    text = result.stdout.decode()
    assert "NODE" in text
    assert "A100-SXM4-40GB" in text
    assert len([line for line in text.splitlines() if line.startswith("train-")]) == 12
    assert "\x1b" not in text


def test_one_workload_as_text_has_its_processes(server: FakeServer, pwm: Pwm) -> None:
    serve_top(server)
    result = pwm("top", "wk", "train-0", "-g", "vision")
    assert result.returncode == 0
    assert b"python main.py --epochs 90" in result.stdout
    assert server.requests[0][2] == {"workload": "train-0", "group": "vision", "interval": "0s"}


def test_an_interval_that_is_too_short_is_refused(pwm: Pwm) -> None:
    result = pwm("top", "-d", "10ms")
    assert result.returncode == 2
    assert b"the shortest is" in result.stderr
