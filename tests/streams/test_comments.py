"""Comments that keep a client waiting, and what follows them."""

import contextlib
import http.client
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from nexus.config import Config
from nexus.config.records import Server
from nexus.config.routing_records import Routing
from tests.streams.exact import flat, stream
from tests.support.load import chat
from tests.support.polling import until
from tests.support.processes import Demo, Gateway, Workers, backend, backend_toml

pytestmark = pytest.mark.e2e

GRACE_S = 3


def test_comments_while_it_waits(tmp_path: Path):
    """Where they are on, the head is sent with the first one, and what fails later is reported
    within the stream."""
    with (
        Demo(tmp_path, name="d", models=["m"], pace=0, fault="delay=0.7") as demo,
        Demo(tmp_path, name="e", models=["sick"], pace=0, fault="delay=0.5,status=500") as sick,
    ):
        config = Config(server=Server(stream_keepalive_seconds=0.2), routing=Routing(max_retries=0))
        with Workers(
            tmp_path, config, [backend("d", demo.url, "m"), backend("e", sick.url, "sick")]
        ) as workers:
            sick.fault("hang")
            status, content = stream(workers, "m")
            assert status == 200
            assert content.startswith(b": waiting\n\n: waiting\n\n: waiting\n\ndata: {")
            assert content.endswith(b"data: [DONE]\n\n")
            workers.publish(
                config,
                [
                    backend("d", demo.url, "m"),
                    backend("e", sick.url, "sick", first_byte_timeout_seconds=0.5),
                ],
            )
            before = workers.settled()
            status, content = stream(workers, "sick")
            assert status == 200
            *comments, event = content.strip().split(b"\n\n")
            assert comments == [b": waiting"] * 2
            assert (
                json.loads(event.removeprefix(b"data: "))["error"]["code"] == "first_byte_timeout"
            )
            assert flat(before, workers.settled()) == {"requests_total{e,sick,504}": 1}
            demo.fault("")
            assert stream(workers, "m")[1].startswith(b"data: "), (
                "nothing is added where it is not needed"
            )
            with contextlib.suppress(OSError):
                sick.fault("hang")
            connection = http.client.HTTPConnection("127.0.0.1", workers.port, timeout=10)
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(chat("x", "sick", stream=True).body)
            )
            assert connection.getresponse().readline() == b": waiting\n"
            connection.close()
            scrape = until(
                lambda: (s := workers.settled()).total("nexus_requests_total") == 4 and s
            )
            assert scrape.total("nexus_requests_total", model="sick") == 2
            assert scrape.value("nexus_accounting_imbalance") == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>\r\nno\r\n</html>", "<html>\r\nno\r\n</html>"),
        (b'{\n "detail": "no"\n}', '{\n "detail": "no"\n}'),
        (b'{\n "error": {"message": "no"}\n}', "no"),
    ],
)
def test_a_backends_own_refusal_after_comments(gateway, replay, answer, message):
    """Whatever form it has, the client's library gets an error."""

    def refuse(_, sock: socket.socket) -> None:
        time.sleep(0.4)
        sock.sendall(
            b"HTTP/1.1 404 X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (len(answer), answer)
        )

    replay.scripts["gone"] = refuse
    gateway.publish(
        Config(server=Server(stream_keepalive_seconds=0.1)), [backend("up", replay.url, "gone")]
    )
    before = gateway.settled()
    status, content = stream(gateway, "gone")
    assert status == 200
    *comments, event = content.strip().split(b"\n\n")
    assert set(comments) == {b": waiting"}
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == message
    assert flat(before, gateway.settled()) == {"requests_total{up,gone,404}": 1}


def test_at_a_stop_a_slow_client_of_comments_gets_an_error(tmp_path: Path):
    """It takes less than comes, so that the gateway is in the middle of sending to it when the
    grace is over."""
    with Demo(tmp_path, name="d", models=["m"], pace=0, length=400_000, fault="delay=0.5") as demo:
        gateway = Gateway(
            tmp_path, backend_toml(demo), workers=1, server="stream_keepalive_seconds = 0.2",
            environ={"NEXUS_GRACEFUL_TIMEOUT": str(GRACE_S)},
        )  # fmt: skip
        body = json.dumps(
            {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        ).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", gateway.port))
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\n"
                b"content-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            content = b""
            until(lambda: gateway.scrape().value("nexus_streams_active") == 1)
            gateway.send(signal.SIGTERM)
            slow_until = time.monotonic() + GRACE_S
            while piece := client.recv(4096):
                content += piece
                if time.monotonic() < slow_until:
                    time.sleep(0.002)
        assert gateway.child.wait(20) == 0
        assert b": waiting" in content
        assert content.endswith(b"\r\n0\r\n\r\n"), "the chunks are whole"
        assert b'"code":"shutdown"' in content[-300:]
        [line] = gateway.lines("request")
        assert (line["status"], line["fault"]) == (502, "shutdown")
