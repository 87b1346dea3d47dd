"""Health, metrics and the web app: what strangers see, and what only readers of the cluster see."""

from pathlib import Path
from typing import Any

import pytest

from pwm.controlplane.gateway import HealthReport
from pwm.controlplane.gateway.site import find_file


async def test_health_is_open_to_everybody(gateway: Any) -> None:
    for path, said in (("/healthz", {"alive": True}), ("/readyz", {"ready": True})):
        answer = await gateway.get(path, Authorization="")
        assert (answer.status, answer.json) == (200, said)
        assert (await gateway.ask("HEAD", path, headers={"Authorization": ""})).body == b""


async def test_reasons_are_for_who_may_read_the_cluster(gateway: Any, world: Any) -> None:
    world.health = HealthReport(ready=False, reasons=("the view is not synced",))
    stranger = await gateway.get("/readyz", Authorization="")
    assert (stranger.status, stranger.json) == (503, {"ready": False})
    reader = await gateway.get("/readyz")
    assert (reader.status, reader.json) == (503, {"ready": False, "reasons": ["the view is not synced"]})
    assert (await gateway.get("/readyz", Authorization="Bearer pwm_bob")).status == 403


async def test_metrics_are_for_who_may_read_the_cluster(gateway: Any) -> None:
    assert (await gateway.get("/metrics", Authorization="")).status == 401
    assert (await gateway.get("/metrics", Authorization="Bearer pwm_bob")).status == 403
    answer = await gateway.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"# TYPE pwm_gateway_calls_total counter" in answer.body


async def test_without_a_web_app_the_front_page_says_what_this_is(gateway: Any) -> None:
    answer = await gateway.get("/", Authorization="")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "make webui" in answer.body.decode()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (await gateway.get("/index.html")).status == 404


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>app</title>")
    (folder / "assets" / "app-1a2b.js").write_text("export {}")
    (tmp_path / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


async def test_the_web_app_is_served_with_strict_headers(world: Any, start: Any, webui: Path) -> None:
    async with start(world, webui=webui) as gateway:
        page = await gateway.get("/", Authorization="")
        assert (page.status, page.body) == (200, b"<!doctype html><title>app</title>")
        assert page.headers["Content-Type"] == "text/html"
        assert page.headers["Cache-Control"] == "no-cache"
        script = await gateway.get("/assets/app-1a2b.js")
        assert script.headers["Content-Type"].endswith("/javascript")
        assert "immutable" in script.headers["Cache-Control"]
        for answer in (page, script):
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Server"] is None


async def test_pages_inside_the_app_are_the_app(world: Any, start: Any, webui: Path) -> None:
    async with start(world, webui=webui) as gateway:
        inside = await gateway.get("/workloads/train", Accept="text/html")
        assert (inside.status, inside.body) == (200, b"<!doctype html><title>app</title>")
        assert (await gateway.get("/workloads/train")).status == 404
        assert (await gateway.get("/assets/none.js", Accept="*/*")).status == 404
        assert (await gateway.get("/v1/nothing", Accept="text/html")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/assets/..%2f..%2fsecret.txt",
        "/link.txt",
        "/%00",
        "/assets",
        "/%ff",
        "//etc/passwd",
    ],
)
async def test_nothing_outside_the_folder_is_served(world: Any, start: Any, webui: Path, path: str) -> None:
    assert find_file(webui, path) is None
    async with start(world, webui=webui) as gateway:
        answer = await gateway.get(path)
        assert answer.status == 404
        assert b"outside" not in answer.body


def test_a_file_of_the_folder_is_found(webui: Path) -> None:
    assert find_file(webui, "/assets/app-1a2b.js") == (webui / "assets" / "app-1a2b.js").resolve()
    assert find_file(webui, "/") == (webui / "index.html").resolve()
