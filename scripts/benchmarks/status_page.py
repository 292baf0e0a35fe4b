"""What one open page, and fifty, cost `serve` in a large fleet: 44 leases a host, 100 events a second.

The server is the command, a process of its own, over a real Redis; events and pages share another. A page here does
what the real one does: it follows `/v1/fleet/changes`, and reads `/v1/samples` and `/v1/drift` every ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from allocator import PoolSpec, PortAllocator
from allocator.client.session import make_session
from allocator.model.states import LeaseState
from allocator.store.blocking import Store
from benchmarks.servers import server
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import Lease

SIZES, EVENTS_A_SECOND, SECONDS = (300, 1_000), 100, 20
POOL = PoolSpec(name="sdk-v2", first=5_556, last=5_599, ttl_ms=3_600_000, ttl_max_ms=3_600_000, cooldown_ms=0)
EVERY_S = 10.0
ROUNDS = 5
TICKS = os.sysconf("SC_CLK_TCK")
NOTE_FIRST_DATA = """
new MutationObserver((_, observer) => {
  if (!document.querySelector(".host .port[data-status]")) return;
  window.firstDataMs = performance.now();
  observer.disconnect();
}).observe(document, { childList: true, subtree: true, attributes: true });
"""
"""Notes in the page when its first port is drawn, counted from when it was opened."""


def figures(binary: str | None, *, quick: bool) -> dict[str, Any]:
    """Return what the answers take, and what processor and memory `serve` takes with one page and with fifty."""
    sizes = [(30, 4)] if quick else [(hosts, SECONDS) for hosts in SIZES]
    return {"fleets": [figures_of(binary, hosts, seconds) for hosts, seconds in sizes]}


def figures_of(binary: str | None, hosts: int, seconds: float) -> dict[str, Any]:
    """Return the figures of a fleet of so many hosts."""
    found: dict[str, Any] = {"hosts": hosts}
    with (
        server(binary) as address,
        Fleet(address["unix"], hosts) as fleet,
        serving(address["unix"]) as (url, pid, began),
    ):
        found["leases"] = fleet.count
        with httpx.Client(base_url=url, timeout=60) as http:
            while http.get("/v1/fleet").status_code == httpx.codes.SERVICE_UNAVAILABLE:  # still being read
                time.sleep(0.1)
            found["first_s"] = time.perf_counter() - began
            for path in ("fleet", "problems", "services", "search?q=org-17", "hosts/web-17"):
                found[path.partition("?")[0].partition("/")[0] + "_ms"] = timed(http, f"/v1/{path}")
        with fleet.busy():
            found["idle"] = share_of_core(pid, seconds, 0, url)
            found["one"] = share_of_core(pid, seconds, 1, url)
            found["fifty"] = share_of_core(pid, seconds, 50, url)
            found["change_s"] = seconds_to_change(fleet, url)
            found |= in_chromium(fleet, url)
        found["memory_mb"] = memory_mb(pid)
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Return the lines of the table."""
    return [row for one in found["fleets"] for row in rows_of(one)]


def rows_of(found: dict[str, Any]) -> list[Row]:
    """Return the lines of one fleet."""
    factor = 1 if found["hosts"] <= SIZES[0] else 4
    hosts = f"{found['hosts']:,} hosts: "

    def line(what: str, value: float | None, target: float, unit: str, digits: int = 0) -> Row:
        if value is None:
            return Row(hosts + what, "", "no Chromium here", f"≤ {target * factor:g} {unit}", None)
        return Row(
            hosts + what, f"{value:.{digits}f} {unit}", "", f"≤ {target * factor:g} {unit}", value <= target * factor
        )

    plain = {
        "`GET /v1/problems`": f"{found['problems_ms']:.0f} ms",
        "`GET /v1/services`": f"{found['services_ms']:.0f} ms",
        "`GET /v1/search`": f"{found['search_ms']:.0f} ms",
        "`GET /v1/hosts/{host}`": f"{found['hosts_ms']:.0f} ms",
        f"`serve` with {EVENTS_A_SECOND} events a second and no page": f"{found['idle']:.1f} % of a core",
    }
    return [
        line(f"first `GET /v1/fleet` after the start, {found['leases']:,} leases", found["first_s"], 3, "s", 2),
        line("`GET /v1/fleet`", found["fleet_ms"], 300, "ms"),
        *(Row(hosts + what, value, "") for what, value in plain.items()),
        line("from an event to `/v1/fleet`", found["change_s"], 1, "s", 2),
        line("Chromium: from opening the page to its first data", found["page_first_s"], 1, "s", 2),
        line("Chromium: from an event to the screen", found["page_change_s"], 1, "s", 2),
        line("`serve` with one page open", found["one"], 3, "% of a core", 1),
        line("`serve` with fifty", found["fifty"], 20, "% of a core", 1),
        line("memory of `serve`", found["memory_mb"], 150, "MB"),
    ]


class Fleet:
    """Hosts full of leases, and events among them.

    Args:
        url: Redis.
        hosts: How many.
    """

    def __init__(self, url: str, hosts: int) -> None:
        self._store = Store.open(url)
        self._hosts = [f"web-{number}" for number in range(hosts)]
        self._ended = threading.Event()
        self.count = 0

    def __enter__(self) -> Self:
        with self._of("web-0") as ports:
            ports.apply_pool(POOL)
        self._leases = []
        for number, host in enumerate(self._hosts):
            ports = self._of(host)
            for instance in range(POOL.size):
                lease = ports.claim("email", org=f"org-{number}", instance=instance)
                self._leases.append((ports, lease))
        for at in range(0, len(self._leases), POOL.size):
            ports = self._leases[at][0]
            ready = [replace(lease, state=LeaseState.READY) for _, lease in self._leases[at : at + POOL.size]]
            self._leases[at : at + POOL.size] = [(ports, lease) for lease in ports.renew(*ready, rewrite=True)]
        self.count = len(self._leases)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._store.close()

    def _of(self, host: str) -> PortAllocator:
        session = make_session(POOL.name, "bench", "keep")
        return PortAllocator(self._store, session.as_host(host, f"{host} boot -"))

    def ports(self, number: int) -> PortAllocator:
        """Return the allocator of a lease's host."""
        return self._leases[number][0]

    def set(self, number: int, **fields: Any) -> Lease:
        """Give a lease other fields, and return it."""
        ports, lease = self._leases[number]
        (lease,) = ports.renew(replace(lease, **fields), rewrite=True)
        self._leases[number] = ports, lease
        return lease

    def release(self, number: int) -> None:
        """Release a lease."""
        ports, lease = self._leases[number]
        ports.release(lease)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Make events while the block lasts: of every four, one release, one claim, two changes of state."""
        thread = threading.Thread(target=self._make_events)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _make_events(self) -> None:
        due, number = time.monotonic(), 0
        while not self._ended.is_set():
            at = 1 + (number * 7) % (len(self._leases) - 1)  # the first is changed by whoever measures
            ports, lease = self._leases[at]
            ports.release(lease)
            claimed = ports.claim("email", org=lease.org, instance=lease.worker.instance)
            for state in (LeaseState.READY, LeaseState.DEGRADED):
                (claimed,) = ports.renew(replace(claimed, state=state), rewrite=True)
            self._leases[at] = ports, claimed
            number, due = number + 1, due + 4 / EVENTS_A_SECOND
            self._ended.wait(max(0.0, due - time.monotonic()))


@contextlib.contextmanager
def serving(redis_url: str) -> Iterator[tuple[str, int, float]]:
    """Run `serve`; gives its URL, its pid, and when it began to serve."""
    with tempfile.TemporaryDirectory(prefix="bench-page-") as directory:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        environment |= {"XDG_STATE_HOME": directory, "ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_HOST": "bench"}
        arguments = [sys.executable, "-m", "allocator", "serve", "--listen", "127.0.0.1:0", "--rate", "0"]
        process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            printed = next(found for line in process.stderr if (found := re.search(r" on (http://\S+);", line)))
            began = time.perf_counter()
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield printed[1], process.pid, began
        finally:
            process.terminate()
            process.wait()
            drain.wait()


def timed(http: httpx.Client, path: str) -> float:
    """Return the median time of a request in milliseconds."""
    took = []
    for _ in range(15):
        began = time.perf_counter()
        http.get(path).raise_for_status()
        took.append((time.perf_counter() - began) * 1_000)
    return statistics.median(took)


def processor_s(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1_024


def share_of_core(pid: int, seconds: float, pages: int, url: str) -> float:
    """Return the part of a core that `serve` takes with so many pages open, in percent."""
    return asyncio.run(_with_pages(pid, seconds, pages, url))


async def _with_pages(pid: int, seconds: float, pages: int, url: str) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        tasks = [asyncio.create_task(_page(http)) for _ in range(pages)]
        await asyncio.sleep(2.0)
        before, began = processor_s(pid), time.perf_counter()
        await asyncio.sleep(seconds)
        used = (processor_s(pid) - before) / (time.perf_counter() - began) * 100
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return used


async def _page(http: httpx.AsyncClient) -> None:
    async def read() -> None:
        while True:
            for path in ("samples", "drift"):
                (await http.get(f"/v1/{path}")).raise_for_status()
            await asyncio.sleep(EVERY_S)

    reading = asyncio.create_task(read())
    try:
        async with http.stream("GET", "/v1/fleet/changes") as answer:
            async for _ in answer.aiter_raw():
                pass
    finally:
        reading.cancel()


def seconds_to_change(fleet: Fleet, url: str) -> float:
    """Return how long after an event `/v1/fleet` shows it."""
    with httpx.Client(base_url=url, timeout=60) as http:
        changed = fleet.set(0, state=LeaseState.DEGRADED)
        began = time.perf_counter()
        while True:
            body = json.loads(http.get("/v1/fleet").content)
            row = next(one for one in body["hosts"] if one["name"] == changed.host)
            if row["ports"][changed.port - body["first"]] == "d":
                return time.perf_counter() - began
            time.sleep(0.02)


def in_chromium(fleet: Fleet, url: str) -> dict[str, float | None]:
    """Return how long the page takes to its first data, and to show a change: medians; None without Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        return {"page_first_s": None, "page_change_s": None}
    from playwright.sync_api import sync_playwright

    first, change = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(ROUNDS):
            page = browser.new_page()
            page.add_init_script(NOTE_FIRST_DATA)
            page.goto(url)
            page.locator(".host .port[data-status]").first.wait_for()
            first.append(page.evaluate("window.firstDataMs") / 1_000)
            fleet.set(0, state=LeaseState.READY)
            page.wait_for_timeout(1_500)
            changed = fleet.set(0, state=LeaseState.DEGRADED)  # its host is then the first that is drawn
            began = time.perf_counter()
            cell = f'.port[data-host="{changed.host}"][data-port="{changed.port}"]'
            page.locator(f'{cell}[data-status="degraded"]').wait_for()
            change.append(time.perf_counter() - began)
            page.close()
        browser.close()
    return {"page_first_s": statistics.median(first), "page_change_s": statistics.median(change)}
