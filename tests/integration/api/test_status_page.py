"""The status page in a real Chromium: it shows what Redis has, live, to the eye, the keyboard and a screen reader."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
from api_server import Worker, served

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api.access import Access
from allocator.api.application import create_app
from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.api.drift import DriftView
from allocator.database.connection import Database
from allocator.database.upgrade import upgrade
from allocator.model.states import LeaseState
from allocator.model.tables import TableNames
from allocator.operations import hosts as operations
from allocator.operations import listing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import PoolSpec

pytestmark = [
    pytest.mark.alone("chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
AXE_VERSION = "4.11.0"
SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}
SCREENSHOTS = os.environ.get("ALLOCATOR_SCREENSHOTS")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The distribution's Chromium, installed where that is possible."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        arguments = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
        subprocess.run(arguments, capture_output=True, check=False, env=environment, stdin=subprocess.DEVNULL)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed; the package chromium of the distribution has it")
    return found


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed; it brings axe-core")
    directory = tmp_path_factory.mktemp("axe")
    arguments = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(directory)]
    done = subprocess.run([*arguments, f"axe-core@{AXE_VERSION}"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"axe-core cannot be had from npm: {done.stderr.strip()[:200]}")
    return (directory / "node_modules/axe-core/axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A browser, gone with this module: Playwright's event loop runs in this thread, where others want theirs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


class PatientWorker(Worker):
    """A caller whose leases outlive a test on a slow machine."""

    def claim(self, plugin: str = "email", org: str = "org-1", **arguments: Any) -> dict:
        return super().claim(plugin, org, **{"ttl_s": 600} | arguments)


@pytest.fixture
def worker(http: httpx.Client) -> Worker:
    return PatientWorker(http)


class Viewer:
    """A page, and whatever went wrong in it."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def port(self, number: int, host: str = "web-1") -> Any:
        return self.page.locator(f'.host[data-host="{host}"] .port[data-port="{number}"]')

    def shows(self, number: int, status: str, host: str = "web-1") -> None:
        self.page.locator(f'.host[data-host="{host}"] .port[data-port="{number}"][data-status="{status}"]').wait_for()

    def count(self, status: str) -> int:
        return int(self.page.locator(f'#counters b[data-count="{status}"]').inner_text())

    def until_there_are(self, count: int, selector: str) -> None:
        deadline = time.monotonic() + 60
        while self.page.locator(selector).count() != count:
            assert time.monotonic() < deadline, self.page.locator(selector).all_inner_texts()
            self.page.wait_for_timeout(50)

    def fact(self, name: str) -> str:
        return self.page.locator(f'#facts dd[data-fact="{name}"]').inner_text()

    def has_no_violation(self, what: str) -> None:
        """Check what is shown, with axe-core in the page, and that nothing is wider than the screen."""
        found = self.page.evaluate("axe.run()")["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], what
        self.page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")

    def live(self) -> Viewer:
        self.page.locator('#connection[data-state="live"]').wait_for()
        return self


@pytest.fixture
def look(browser: Any, url: str) -> Iterator[Any]:
    opened: list[Viewer] = []

    def open_page(**options: Any) -> Viewer:
        opened.append(Viewer(browser, url, **options))
        return opened[-1]

    yield open_page
    wrong = [text for viewer in opened for text in viewer.wrong]
    for viewer in opened:
        viewer.context.close()
    assert wrong == []


def test_the_page_shows_what_redis_has(look, worker, http, ports: PortAllocator, pool: PoolSpec) -> None:
    leases = [worker.claim("email", f"org-{number}") for number in range(6)]
    http.patch(worker.path(leases[0]), json={"state": "ready"}, headers=worker.proof(leases[0]))
    http.patch(worker.path(leases[1]), json={"state": "degraded"}, headers=worker.proof(leases[1]))
    http.post(worker.path(leases[2], "/decline"), headers=worker.proof(leases[2]))
    with socket.create_server(("127.0.0.1", pool.last)):
        viewer = look()
        viewer.shows(pool.last, "stranger")
        viewer.shows(leases[2]["port"], "quarantined")
        shown = {
            int(one.get_attribute("data-port")): one.get_attribute("data-status")
            for one in viewer.page.locator(".port").all()
        }
        counted = {status: viewer.count(status) for status in ("free", "starting", "ready", "degraded", "stranger")}
    in_redis = {lease.port: str(lease.state) for lease in ports.leases(host="web-1")}
    rest = {leases[2]["port"]: "quarantined", pool.last: "stranger"}
    assert shown == {port: in_redis.get(port, rest.get(port, "free")) for port in range(pool.first, pool.last + 1)}
    assert counted == {"free": 37, "starting": 3, "ready": 1, "degraded": 1, "stranger": 1}


def test_problems_come_first_with_a_command_to_copy_and_lead_to_the_port(look, worker, http) -> None:
    """Which worker of org-17 fails, why, and what should be done first."""
    worker.claim("stripe", "org-1")
    failing = worker.claim("email", "org-17")
    fields = {"state": "degraded", "last_error": "GET /health answered <b>500</b>"}
    http.patch(worker.path(failing), json=fields, headers=worker.proof(failing))
    viewer = look()
    first = viewer.page.locator("#problems-list li").first
    first.locator("text=org-17/email#0").wait_for()
    assert "GET /health answered <b>500</b>" in first.inner_text()
    assert "critical" in first.inner_text()
    assert first.locator("time").get_attribute("title")
    assert first.locator("code").inner_text() == f"allocator show {failing['port']} --host web-1"
    assert first.get_by_role("button", name=f"Copy: allocator show {failing['port']}").count() == 1
    first.locator("a").click()
    viewer.page.locator('#facts dd[data-fact="Last error"]').wait_for()
    assert viewer.fact("Worker") == "org-17/email#0"


def test_counters_are_filters_of_the_hosts(look, redis_url: str, pool: PoolSpec) -> None:
    """Which hosts have degraded workers."""
    for number in range(3):
        with PortAllocator.from_url(redis_url, pool=pool.name, host=f"web-{number}") as ports:
            lease = ports.claim("email", org=f"org-{number}")
            if number == 2:
                ports.renew(replace(lease, state=LeaseState.DEGRADED), rewrite=True)
    viewer = look()
    viewer.page.locator('.host[data-host="web-2"] .port[data-status="degraded"]').wait_for()
    assert viewer.page.locator(".host .name").all_inner_texts()[0] == "✕ web-2"
    button = viewer.page.locator('#counters button[data-status="degraded"]')
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert viewer.page.locator(".host").evaluate_all("all => all.map(one => one.dataset.host)") == ["web-2"]
    assert "1 of 3 hosts" in viewer.page.locator("#hosts-text").inner_text()
    button.click()
    assert viewer.page.locator(".host").count() == 3


def test_which_hosts_are_drained_is_a_filter_and_a_host_has_a_panel(look, redis_url: str, pool: PoolSpec) -> None:
    for number in range(3):
        with PortAllocator.from_url(redis_url, pool=pool.name, host=f"web-{number}") as ports:
            ports.claim("email", org=f"org-{number}")
            if number == 1:
                ports.run(operations.drain(pool.name, "web-1"))
            elif number == 2:
                ports.run(listing.cordon(pool.name, "web-2", on=True))
    viewer = look().live()
    viewer.page.locator('.host[data-host="web-1"] .name', has_text="web-1 (drained)").wait_for()
    viewer.page.locator('#conditions button[data-status="drained"]').click()
    assert viewer.page.locator(".host").evaluate_all("all => all.map(one => one.dataset.host)") == ["web-1"]
    viewer.page.locator('.host[data-host="web-1"] .port').first.focus()
    viewer.page.keyboard.press("ArrowLeft")
    viewer.page.keyboard.press("Enter")
    viewer.page.locator("#facts", has_text="draining: gives out no new ports").wait_for()
    assert viewer.page.locator("#detail-title").inner_text() == "Host web-1"
    assert "allocator host uncordon web-1" in viewer.page.locator("#commands").inner_text()
    assert viewer.page.url.endswith("/web-1/")
    viewer.page.keyboard.press("Escape")
    viewer.page.locator("#detail").wait_for(state="hidden")


def test_the_process_of_a_worker_of_this_host_is_shown(look, http, ports: PortAllocator) -> None:
    lease = ports.claim("email", org="org-1", pid=os.getpid())
    process = http.get(f"/v1/leases/web-1/{lease.port}").json()["process"]
    viewer = look()
    viewer.port(lease.port).click()
    viewer.page.locator('#facts dd[data-fact="Memory"]', has_text="MiB").wait_for()
    assert viewer.fact("Process") == f"{process['command']}, pid {os.getpid()}"
    assert process["resident_bytes"] > 1 << 20


def test_the_last_hour_is_drawn(browser, redis_url: str, pool: PoolSpec, ports: PortAllocator) -> None:
    lease = ports.claim("email", org="org-1")
    ports.renew(replace(lease, state=LeaseState.READY), rewrite=True)
    with served(create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1"))) as url:
        viewer = Viewer(browser, url)
        viewer.page.locator("#chart-leases-text", has_text="1 of 44 ports leased (2 %), most 1.").wait_for()
        assert "● ready 1" not in viewer.page.locator("#chart-leases-legend").inner_text()
        assert "ready 1" in viewer.page.locator("#chart-leases-legend").inner_text()
        assert viewer.page.locator("#chart-leases .band").count() == 4
        assert "claims 0 a second" in viewer.page.locator("#chart-claims-legend").inner_text()
        assert "started again 0 times" in viewer.page.locator("#chart-restarts-text").inner_text()
        viewer.context.close()


def test_a_thousand_hosts_are_drawn_where_they_are_seen(browser, redis_url: str, pool: PoolSpec) -> None:
    client = redis.Redis.from_url(redis_url)
    base = f"alloc:{{{pool.name}}}"
    for number in range(1_000):
        client.hset(f"{base}:host:web-{number:04}", mapping={"identity": f"m{number} b{number} -"})
        client.zadd(f"{base}:hosts", {f"web-{number:04}": "inf"})
    with served(create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="own"))) as url:
        viewer = Viewer(browser, url)
        viewer.page.locator('.host[data-host="web-0000"]').wait_for()
        assert 5 < viewer.page.locator(".host").count() < 60
        viewer.page.locator("#hosts").evaluate("box => { box.scrollTop = box.scrollHeight; }")
        viewer.page.locator('.host[data-host="web-0999"]').wait_for()
        assert viewer.page.locator(".host").count() < 60
        viewer.page.locator('.host[data-host="web-0999"] .port').first.click()
        viewer.page.locator('.host[data-host="web-0999"] .port').first.focus()
        viewer.page.keyboard.press("PageUp")
        assert viewer.page.evaluate("document.activeElement.dataset.host") < "web-0999"
        assert viewer.wrong == []
        viewer.context.close()


def test_a_pool_too_large_to_draw_is_folded_into_shares(look, ports: PortAllocator, pool: PoolSpec) -> None:
    ports.apply_pool(replace(pool, last=pool.first + 400))
    ports.session.context.rules.clear()
    ports.claim("email", org="org-1")
    viewer = look()
    share = viewer.page.locator('.host[data-host="web-1"] .share[data-status="free"]')
    share.wait_for()
    assert share.inner_text() == "· 400 free"
    assert viewer.page.locator(".port").count() == 0


def test_what_happens_is_seen_without_a_reload(look, worker, http) -> None:
    first = worker.claim()
    viewer = look().live()
    second = worker.claim("stripe", "org-9")
    viewer.shows(second["port"], "starting")
    http.patch(worker.path(second), json={"state": "ready"}, headers=worker.proof(second))
    viewer.shows(second["port"], "ready")
    http.delete(worker.path(first), headers=worker.proof(first))
    viewer.shows(first["port"], "free")
    viewer.page.get_by_role("link", name="Events").click()
    viewer.page.locator('#events li[data-type="released"]').wait_for()
    types = viewer.page.locator("#events li").evaluate_all("all => all.map(one => one.dataset.type)")
    assert types[:3] == ["released", "changed", "granted"]
    assert "granted" in types[3:]  # of before the page was opened
    viewer.page.locator("#events-type").select_option("granted")
    viewer.page.locator("#events-words").fill("org-9")
    viewer.until_there_are(1, "#events li")


def test_a_port_is_reached_and_chosen_by_keyboard_and_shows_its_history(look, worker, http) -> None:
    lease = worker.claim("email", "org-7", labels={"team": "mail"})
    http.patch(worker.path(lease), json={"state": "ready", "restarts": 3}, headers=worker.proof(lease))
    viewer = look().live()
    viewer.shows(lease["port"], "ready")
    viewer.page.keyboard.press("/")
    assert viewer.page.evaluate("document.activeElement.id") == "search"
    viewer.page.locator('.port[tabindex="0"]').first.focus()
    viewer.page.keyboard.press("End")
    viewer.page.keyboard.press("Home")
    for _ in range(lease["port"] - int(viewer.page.evaluate("document.activeElement.dataset.port"))):
        viewer.page.keyboard.press("ArrowRight")
    viewer.page.keyboard.press("Enter")
    viewer.page.locator("#history li").nth(1).wait_for()
    assert viewer.page.locator("#detail-title").inner_text() == f"Port {lease['port']} on web-1"
    facts = tuple(viewer.fact(name) for name in ("Worker", "Health", "Restarts", "Label team"))
    assert facts == ("org-7/email#0", "passes", "3", "mail")
    history = viewer.page.locator("#history li").evaluate_all("all => all.map(one => one.dataset.type)")
    assert history == ["changed", "granted"]
    viewer.page.locator("#history-since", has_text="older events are not shown").wait_for()
    address = viewer.page.url
    assert address.endswith(f"/web-1/{lease['port']}")
    viewer.page.keyboard.press("Escape")
    viewer.page.locator("#detail").wait_for(state="hidden")
    viewer.page.goto("about:blank")
    viewer.page.goto(address)  # as a colleague opens it
    viewer.page.locator('#facts dd[data-fact="Worker"]').wait_for()
    http.patch(
        worker.path(lease), json={"state": "degraded"}, headers=worker.proof(lease)
    )  # the panel stays, and is live
    viewer.page.locator("#history li").nth(2).wait_for()
    viewer.page.locator('#facts dd[data-fact="Status"]', has_text="▲ degraded").wait_for()


def test_a_search_as_one_types_finds_workers_that_are_not_on_the_screen(look, worker) -> None:
    """Who has a port of a host."""
    worker.claim("email", "org-1")
    mine = worker.claim("stripe", "org-2")
    viewer = look()
    viewer.shows(mine["port"], "starting")
    for text in ("org-2", "stripe", f"web-1:{mine['port']}", "org-2 STRIPE"):
        viewer.page.locator("#search").fill("")
        viewer.page.locator("#search").press_sequentially(text)
        viewer.until_there_are(1, "#found-list li[data-lease]")
        assert "org-2/stripe#0" in viewer.page.locator("#found-list li[data-lease]").inner_text()
    viewer.page.locator("#search").press("ArrowDown")
    viewer.page.keyboard.press("Enter")
    viewer.page.locator("#detail-title", has_text=f"Port {mine['port']} on web-1").wait_for()


def test_a_phone_shows_problems_and_search_first_and_the_panel_over_all(look, worker, http) -> None:
    failing = worker.claim("email", "org-17")
    http.patch(worker.path(failing), json={"state": "degraded", "last_error": "503"}, headers=worker.proof(failing))
    viewer = look(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    first = viewer.page.locator("#problems-list li").first
    first.wait_for()
    assert first.bounding_box()["y"] + first.bounding_box()["height"] < 844
    viewer.page.locator("#search").fill("org-17")
    viewer.page.locator("#found-list li[data-lease] a").tap()
    viewer.page.locator('#facts dd[data-fact="Worker"]').wait_for()
    panel = viewer.page.locator("#detail").bounding_box()
    assert (panel["x"], panel["y"], panel["width"], panel["height"]) == (0, 0, 390, 844)
    viewer.page.locator("#detail-close").tap()
    viewer.page.locator("#detail").wait_for(state="hidden")
    viewer.page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_very_many_events_leave_the_page_small_and_answering(look, redis_url: str, worker, pool: PoolSpec) -> None:
    lease = worker.claim("email", "org-1")
    viewer = look().live()
    viewer.page.get_by_role("link", name="Events").click()
    client = redis.Redis.from_url(redis_url)
    fields = {
        "type": "changed",
        "host": "web-1",
        "port": lease["port"],
        "worker": "org-1/email#0",
        "fence": lease["fence"],
    }
    with client.pipeline(transaction=False) as pipeline:
        for number in range(20_000):
            state = "ready" if number % 2 else "degraded"
            pipeline.xadd(f"alloc:{{{pool.name}}}:events", fields | {"state": state, "error": f"<b>{number}</b>"})
        pipeline.execute()
    viewer.page.locator("#events li", has_text="<b>19999</b>").wait_for()
    assert viewer.page.locator("#events li").count() <= 300
    assert viewer.page.locator("#events b").count() == 0
    viewer.page.get_by_role("link", name="Hosts").click()
    viewer.port(lease["port"]).wait_for()


def test_services_are_a_view_of_their_own(look, worker) -> None:
    lease = worker.claim("email", "org-1")
    viewer = look()
    viewer.page.get_by_role("link", name="Services").click()
    row = viewer.page.locator('#services-table tr[data-service="org-1/email"]')
    row.wait_for()
    assert row.locator("td").all_inner_texts()[:3] == ["email", "▲ 0", "1"]
    assert f"web-1:{lease['port']}" in row.inner_text()


def test_names_with_markup_run_nothing_and_overflow_nothing(look, worker, http) -> None:
    labels = {f"l{number}": "<img src=x onerror=alert(1)>" + "w" * 200 for number in range(10)}
    lease = worker.claim("email", "org-1", labels=labels)
    fields = {"state": "degraded", "last_error": "<script>document.title='gone'</script>" + "e" * 400}
    http.patch(worker.path(lease), json=fields, headers=worker.proof(lease))
    for width in (1280, 390):
        viewer = look(viewport={"width": width, "height": 800})
        viewer.page.locator('#problems-list li[data-check="degraded"]').wait_for()
        viewer.port(lease["port"]).click()
        viewer.page.locator('#facts dd[data-fact="Label l9"]').wait_for()
        assert viewer.page.title().startswith("✕ 1 · portlease ")
        assert viewer.page.locator("main img, main script").count() == 0
        viewer.page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_nothing_comes_from_outside_and_nothing_is_inline(look, url: str, http) -> None:
    viewer = look().live()
    assert {httpx.URL(asked).host for asked in viewer.asked} == {"127.0.0.1"}
    answer = http.get("/")
    assert "'unsafe-inline'" not in answer.headers["content-security-policy"]
    assert "style=" not in answer.text
    assert "onclick" not in answer.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_violation(look, worker, http, axe: str, pool: PoolSpec, scheme: str, width: int) -> None:
    leases = [worker.claim("email", f"org-{number}") for number in range(20)]
    states = ["ready", "degraded", "draining", "ready", "ready"]
    for lease, state in zip(leases, 3 * states, strict=False):
        fields = {"state": state, "last_error": "listen EADDRINUSE"} if state == "degraded" else {"state": state}
        http.patch(worker.path(lease), json=fields, headers=worker.proof(lease))
    http.post(worker.path(leases[18], "/decline"), headers=worker.proof(leases[18]))
    with socket.create_server(("127.0.0.1", pool.last)):
        viewer = look(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
        viewer.shows(pool.last, "stranger")
        viewer.port(leases[0]["port"]).click()
        viewer.page.locator("#history li").first.wait_for()
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(exist_ok=True)
            viewer.page.screenshot(path=f"{SCREENSHOTS}/status-{scheme}-{width}.png", full_page=width > 1000)
        viewer.page.evaluate(axe)
        found = viewer.page.evaluate("axe.run()")
        violations = [
            (one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"]) for one in found["violations"]
        ]
        assert violations == []
        viewer.page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_every_view_fits_its_screen_and_axe_finds_no_violation(
    look, worker, http, axe: str, ports: PortAllocator, pool: PoolSpec, screen: str
) -> None:
    """Problems, search, filters, panels of a port and of a host, services, events: as a colleague opens them."""
    failing = worker.claim("email", "org-17")
    http.patch(worker.path(failing), json={"state": "degraded", "last_error": "503"}, headers=worker.proof(failing))
    ports.run(listing.cordon(pool.name, "web-1", on=True))
    viewer = look(bypass_csp=True, **SCREENS[screen]).live()
    page, chosen = viewer.page, f"{failing['port']}"
    page.locator('#problems-list li[data-check="degraded"]').wait_for()
    page.evaluate(axe)
    seen = {
        "/": page.locator('#conditions button[data-status="cordoned"]:not(.none)'),
        f"/web-1/{chosen}": page.locator("#history li").nth(1),
        "/web-1/": page.locator("#facts", has_text="cordoned: gives out no new ports"),
        "/services": page.locator('#services-table tr[data-service="org-17/email"]'),
        "/events": page.locator('#events li[data-type="granted"]'),
    }
    for address, shown in seen.items():
        page.evaluate("address => { location.hash = address; }", f"#/{pool.name}{address}")
        shown.wait_for()
        viewer.has_no_violation(address)
    page.locator("#search").fill("org-17")
    page.locator("#found-list li[data-lease]").wait_for()
    viewer.has_no_violation("search")
    page.locator("#found-list li[data-lease] a").click()
    page.locator('#facts dd[data-fact="Last error"]', has_text="503").wait_for()
    assert page.url.endswith(f"/web-1/{chosen}")
    page.locator("#detail-close").click()
    page.locator('#conditions button[data-status="cordoned"]').click()
    page.locator("#hosts-text", has_text="1 of 1 hosts").wait_for()


@pytest.mark.parametrize("screen", SCREENS, ids=str)
def test_somebody_on_call_finds_the_answers(look, redis_url: str, pool: PoolSpec, screen: str) -> None:
    """Five questions, each answered from the page alone, by somebody who never saw it."""
    for host in ("web-3", "web-17", "web-212"):
        with PortAllocator.from_url(redis_url, pool=pool.name, host=host) as ports:
            lease = ports.claim("email", org=host.replace("web", "org"))
            if host == "web-3":
                ports.run(operations.drain(pool.name, host))
            elif host == "web-17":
                (failing,) = ports.renew(
                    replace(lease, state=LeaseState.DEGRADED, last_error="answered 503"), rewrite=True
                )
    page = look(**SCREENS[screen]).live().page

    first = page.locator("#problems-list li").first  # what should be done first
    first.locator("code", has_text=f"allocator show {failing.port} --host web-17").wait_for()

    page.locator("#search").fill("org-17")  # which worker of org-17 fails, and why
    page.locator("#found-list li[data-lease]", has_text="org-17/email#0 ▲ degraded: answered 503").wait_for()

    page.locator("#search").fill(f"web-212:{lease.port}")  # who has a port
    page.locator("#found-list li[data-lease]", has_text="org-212/email#0").wait_for()

    page.locator("#found-list li[data-lease] a").click()  # what happened to it in the last hour
    page.locator('#history li[data-type="granted"]').wait_for()
    page.locator("#history-since", has_text="All since").wait_for()
    page.locator("#detail-close").click()
    page.locator("#search").fill("")

    page.locator('#conditions button[data-status="drained"]').click()  # which hosts are drained
    page.locator("#hosts-text", has_text="1 of 3 hosts").wait_for()
    assert page.locator(".host").evaluate_all("all => all.map(one => one.dataset.host)") == ["web-3"]


def test_a_hundred_long_labels_of_another_program_fit_a_small_phone(
    look, worker, redis_url: str, pool: PoolSpec
) -> None:
    lease = worker.claim("email", "org-1")
    labels = {f"l{number}": "<img src=x onerror=alert(1)>" + "w" * 228 for number in range(100)}
    key = f"alloc:{{{pool.name}}}:lease:web-1:{lease['port']}"
    client = redis.Redis.from_url(redis_url)
    client.set(key, json.dumps(json.loads(client.get(key)) | {"labels": labels}), keepttl=True)
    viewer = look(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    viewer.port(lease["port"]).tap()
    viewer.page.locator('#facts dd[data-fact="Label l99"]').wait_for()
    assert viewer.page.locator("main img").count() == 0
    assert viewer.page.locator("#facts").evaluate("facts => facts.scrollWidth <= facts.clientWidth")
    viewer.page.wait_for_function("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_server_with_credentials_asks_for_a_token_and_keeps_it_out_of_addresses(
    browser, redis_url: str, pool, tmp_path: Path
) -> None:
    token = new_api_token()
    (tmp_path / "tokens").write_text(tokens_line("me", Scope.READ, token) + "\n")
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, access=Access(TokensFile(tmp_path / "tokens")))) as url:
        viewer = Viewer(browser, url)
        viewer.page.locator("#token").fill(token)
        viewer.page.keyboard.press("Enter")
        viewer.live()
        assert not any(token in asked for asked in viewer.asked)
        assert token not in viewer.page.content()
        viewer.context.close()


def test_a_token_for_another_pool_shows_that_one_alone(
    browser, redis_url: str, pool: PoolSpec, ports: PortAllocator, tmp_path: Path
) -> None:
    other = replace(pool, name=f"{pool.name}-b", first=pool.first + 2_000, last=pool.last + 2_000)
    ports.apply_pool(other)
    ports.claim("email", org="org-secret")
    with PortAllocator.from_url(redis_url, pool=other.name, host="web-2") as theirs:
        theirs.claim("email", org="org-theirs")
    token = new_api_token()
    (tmp_path / "tokens").write_text(tokens_line("b", Scope.READ, token, [other.name]) + "\n")
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, access=Access(TokensFile(tmp_path / "tokens")))) as url:
        viewer = Viewer(browser, url)
        viewer.page.locator("#token").fill(token)
        viewer.page.keyboard.press("Enter")
        viewer.page.locator('.host[data-host="web-2"]').wait_for()
        assert viewer.page.locator("#pool option").all_inner_texts() == [other.name]
        viewer.page.locator("#search").fill("org-")
        viewer.until_there_are(1, "#found-list li[data-lease]")
        assert "org-secret" not in viewer.page.content()
        viewer.context.close()


def test_it_shows_the_drift_that_the_reconciler_would_fix(
    browser, axe: str, redis_url: str, pool: PoolSpec, ports: PortAllocator, tmp_path: Path
) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/workers.sqlite3")
    upgrade(database, TableNames())
    lease = ports.claim("email", org="org-1")
    view = DriftView(PortAllocator.from_url(redis_url, pool=pool.name, host="web-1"), database, TableNames())
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    with served(create_app(allocator, drift_view=view)) as url:
        (reported,) = httpx.get(f"{url}/v1/drift").json()["differences"]
        viewer = Viewer(browser, url, bypass_csp=True)
        viewer.page.locator("#drift tbody tr").wait_for()
        cells = viewer.page.locator("#drift tbody td").all_inner_texts()
        assert viewer.page.locator("#drift-text").inner_text().startswith("1 difference, read at")
        viewer.page.evaluate(axe)
        assert viewer.page.evaluate("axe.run()")["violations"] == []
        viewer.context.close()
    assert (reported["kind"], reported["port"], reported["worker"]) == ("missing-row", lease.port, str(lease.worker))
    assert cells[:5] == ["missing-row", "web-1", str(lease.port), str(lease.worker), reported["action"]]


def test_a_database_that_is_away_leaves_the_rest_of_the_page_current(
    browser, redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    database = Database.open("postgresql://me:S3CRET@127.0.0.1:1/workers")
    view = DriftView(PortAllocator.from_url(redis_url, pool=pool.name, host="web-1"), database, TableNames())
    allocator = AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1")
    lease = ports.claim("email", org="org-1")
    with served(create_app(allocator, drift_view=view)) as url:
        viewer = Viewer(browser, url)
        viewer.page.locator("#drift-text", has_text="does not answer").wait_for()
        viewer.shows(lease.port, "starting")
        assert viewer.page.locator("#problem").is_hidden()
        assert "S3CRET" not in viewer.page.content()
        viewer.context.close()


def test_without_a_database_it_reports_it(look) -> None:
    look().page.locator("#drift-text", has_text="no database to compare with").wait_for()


def test_it_states_when_redis_is_away(browser) -> None:
    from servers import Server

    with Server() as server:
        server.ready()
        allocator = AsyncPortAllocator.from_url(server.url, host="web-1", timeout=0.5)
        with served(create_app(allocator)) as url:
            httpx.post(f"{url}/v1/leases", json={"plugin": "email", "org": "org-1"}).raise_for_status()
            viewers = [Viewer(browser, url, **screen).live() for screen in SCREENS.values()]
            os.kill(server.process.pid, signal.SIGSTOP)
            for viewer in viewers:
                viewer.page.locator("#problem", has_text="Not live since").wait_for()
                assert "Redis does not answer" in viewer.page.locator("#problem").inner_text()
                assert viewer.page.locator("main.stale").count() == 1
            os.kill(server.process.pid, signal.SIGCONT)
            for viewer in viewers:
                viewer.live().page.locator("#problem").wait_for(state="hidden")
                assert viewer.page.locator("main.stale").count() == 0
                viewer.context.close()


def test_it_states_when_the_server_is_away_and_catches_up(browser, redis_url: str, pool: PoolSpec) -> None:
    def application() -> Any:
        return create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1"))

    body = {"plugin": "email", "org": "org-1"}
    with served(application()) as url:
        port = int(url.rpartition(":")[2])
        httpx.post(f"{url}/v1/leases", json=body).raise_for_status()
        viewer = Viewer(browser, url).live()
        viewer.page.locator('.port[data-status="starting"]').wait_for()
    viewer.page.locator("#problem", has_text="the server does not answer").wait_for()
    with served(application(), port):
        httpx.post(f"{url}/v1/leases", json={**body, "org": "org-2"}).raise_for_status()
        viewer.live().page.locator("#problem").wait_for(state="hidden")
        viewer.until_there_are(2, '.port[data-status="starting"]')
        viewer.context.close()


def test_a_page_that_slept_for_a_day_catches_up(browser, url: str, worker) -> None:
    worker.claim("email", "org-1")
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.clock.install()
    page.goto(url)
    page.locator('#connection[data-state="live"]').wait_for()
    page.clock.fast_forward(24 * 3_600_000)
    lease = worker.claim("stripe", "org-2")
    deadline = time.monotonic() + 30
    while page.locator(f'.port[data-port="{lease["port"]}"][data-status="starting"]').count() == 0:
        assert time.monotonic() < deadline
        page.clock.run_for(5_000)
        time.sleep(0.3)  # for what is real: the server and the way to it
    page.locator('#connection[data-state="live"]').wait_for()
    context.close()
