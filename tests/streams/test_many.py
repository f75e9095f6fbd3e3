"""Two hundred streams at once: their times, and the real client over them."""

import asyncio
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

from nexus.config import Config
from nexus.config.records import Server
from tests.support.load import chat
from tests.support.metrics import moved
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, backend, backend_toml
from tests.support.replay import HEAD

pytestmark = [pytest.mark.e2e, pytest.mark.alone]


def test_times_at_two_hundred_streams(gateway, replay):
    """Two hundred streams at once, started one after another: the gateway's times lie between what
    the backend and what the client saw of each, on the clock that all three share."""
    gateway.publish(
        Config(server=Server(max_concurrent_requests=1000)), [backend("up", replay.url, "timed")]
    )
    count, events, first_s, gap_s = 200, 5, 3.0, 0.2
    asked: dict[str, float] = {}
    said: dict[str, list[float]] = {}
    received: dict[str, float] = {}
    seen: dict[str, list[float]] = {}

    def send(body, sock: socket.socket) -> None:
        received[body["user"]] = time.monotonic()
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        times = said[body["user"]] = []
        for number in range(events):
            time.sleep(max(0.0, asked[body["user"]] + first_s + number * gap_s - time.monotonic()))
            event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
            times.append(time.monotonic())
            sock.sendall(b"%x\r\n%s\r\n" % (len(event), event))
        times.append(time.monotonic())
        sock.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def client(name: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        connection.connect()
        asked[name] = time.monotonic()
        body = json.dumps(chat("x", "timed", stream=True, user=name).body)
        connection.request("POST", "/v1/chat/completions", body, {"x-request-id": name})
        response = connection.getresponse()
        times = seen[name] = []
        while response.readline():
            times.append(time.monotonic())
        connection.request("GET", "/livez")  # by its response, the stream has ended in the gateway
        connection.getresponse().read()
        times.append(time.monotonic())
        connection.close()

    replay.scripts["timed"] = send
    before = gateway.settled()
    clients = []
    for number in range(count):
        clients.append(threading.Thread(target=client, args=(f"timed-{number}",)))
        clients[-1].start()
        time.sleep(0.01)
    for one in clients:
        one.join()
    after = gateway.settled()

    def lines_of_all() -> dict[str, dict[str, Any]] | None:
        found = {
            line["id"]: line for line in gateway.lines("request") if line["id"].startswith("timed-")
        }
        return found if len(found) == count else None

    lines = until(lines_of_all)
    assert len(said) == count

    for name, line in lines.items():
        for measured, nth in (("ttft_ms", 0), ("duration_ms", -1)):
            least_ms = (said[name][nth] - received[name]) * 1000
            most_ms = (seen[name][nth] - asked[name]) * 1000
            assert least_ms - 0.1 <= line[measured] <= most_ms + 0.1, "but for rounding"
    sums = {
        key[0]: value
        for key, value in moved(
            before,
            after,
            ("nexus_time_to_first_token_seconds_sum", "nexus_time_per_output_token_seconds_sum"),
        ).items()
    }
    mean = sum(line["ttft_ms"] for line in lines.values()) / 1000 / count
    assert sums["nexus_time_to_first_token_seconds_sum"] / count == pytest.approx(mean, abs=0.001)
    least_s = sum(said[name][events - 1] - seen[name][0] for name in said) / (events - 1)
    most_s = sum(seen[name][-1] - said[name][0] for name in said) / (events - 1)
    assert least_s <= sums["nexus_time_per_output_token_seconds_sum"] <= most_s


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_real_client(tmp_path: Path, kind: str):
    """Two hundred streams at once; a tenth is abandoned, a tenth broken off by the backend: each
    is counted as it was."""
    with (
        Demo(tmp_path, name="d", models=["m"], pace=100, length=5_000, usage="asked") as demo,
        Gateway(
            tmp_path,
            backend_toml(demo, total_timeout_seconds=60) + "[circuit_breaker]\nenabled = false\n",
            workers=2,
        ) as gateway,
    ):
        plan = ["leave"] * 20 + ["break"] * 20 + ["usage"] * 80 + ["plain"] * 80
        random.Random(3).shuffle(plan)
        seen: Counter[str] = Counter()
        tokens = [0]

        def arguments(role: str) -> dict:
            return {
                "model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True,
                **({"stream_options": {"include_usage": True}} if role == "usage" else {}),
                **({"max_tokens": 60} if role != "leave" else {}),
                "extra_headers": {"x-demo-fault": "break_after=20"} if role == "break" else {},
            }  # fmt: skip

        def take(role: str, chunk, events: int) -> bool:
            if chunk.usage is not None:
                tokens[0] += chunk.usage.completion_tokens
            if not chunk.choices:
                assert role == "usage", "only who asks for the usage sees it"
            return role == "leave" and events >= 10

        if kind == "sync":

            def one(role: str) -> None:
                events = 0
                try:
                    with client.chat.completions.create(**arguments(role)) as answer:
                        for chunk in answer:
                            events += 1
                            if take(role, chunk, events):
                                break
                    seen[role] += 1
                except openai.APIError as error:
                    seen[
                        "broken" if role == "break" and "broke off" in str(error) else str(error)
                    ] += 1

            with openai.OpenAI(
                base_url=f"{gateway.base}/v1", api_key="x", max_retries=0, timeout=60
            ) as client:
                threads = [threading.Thread(target=one, args=(role,)) for role in plan]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        else:

            async def one_async(client: openai.AsyncOpenAI, role: str) -> None:
                events = 0
                try:
                    async with await client.chat.completions.create(**arguments(role)) as answer:
                        async for chunk in answer:
                            events += 1
                            if take(role, chunk, events):
                                break
                    seen[role] += 1
                except openai.APIError as error:
                    seen[
                        "broken" if role == "break" and "broke off" in str(error) else str(error)
                    ] += 1

            async def all_of_them() -> None:
                async with openai.AsyncOpenAI(
                    base_url=f"{gateway.base}/v1", api_key="x", max_retries=0, timeout=60
                ) as client:
                    await asyncio.gather(*(one_async(client, role) for role in plan))

            asyncio.run(all_of_them())
        assert seen == {"leave": 20, "broken": 20, "usage": 80, "plain": 80}
        assert tokens[0] == 80 * 60
        scrape = until(lambda: (s := gateway.settled()).total("nexus_requests_total") == 200 and s)
        assert scrape.series("nexus_requests_total", "status") == {
            ("200",): 160,
            ("499",): 20,
            ("502",): 20,
        }
        assert scrape.series("nexus_stream_ends_total", "reason") == {
            ("complete",): 160, ("client_disconnect",): 20, ("upstream_reset",): 20,
        }  # fmt: skip
        assert scrape.series("nexus_usage_total", "source") == {
            ("reported",): 80,
            ("requested",): 80,
            ("counted",): 40,
        }
        assert scrape.series("nexus_errors_total", "error_type") == {
            ("client_disconnect",): 20,
            ("stream_interrupted",): 20,
        }
        assert scrape.total("nexus_time_to_first_token_seconds_count") == 200
        assert scrape.total("nexus_time_per_output_token_seconds_count", by="tokens") == 160
        assert scrape.total("nexus_time_per_output_token_seconds_count", by="events") == 40
        assert (
            scrape.value("nexus_tokens_total_count", model="m", backend="d", type="prompt") == 160
        )
        counted = 20 * 19  # the role, then nineteen words, then it is cut
        left = (
            scrape.value("nexus_tokens_total_sum", model="m", backend="d", type="completion")
            - 160 * 60
            - counted
        )
        assert left >= 20 * 9, "what was sent to those who left, at least what they read"
        assert scrape.value("nexus_streams_active") == 0
        assert scrape.value("nexus_accounting_imbalance") == 0
        assert scrape.value("nexus_pending_requests", backend="d") == 0
        assert scrape.value("nexus_gateway_overhead_seconds_count", phase="before") == 200
        until(lambda: demo.tally()["open"] == 0)
        streams = gateway.stats()["streams"]
        assert streams["active"] == 0
        assert streams["ends"] == {"complete": 160, "client_disconnect": 20, "upstream_reset": 20}
        assert 0 < streams["average_tokens_per_second"] < 150, "the demo backend's own pace"
        assert streams["average_ttft_ms"] > 0
