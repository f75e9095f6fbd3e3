"""Makes docs/dashboard.png: demo backends under load, in a real browser.

It takes five minutes and needs Debian's chromium.
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from playwright.sync_api import sync_playwright  # noqa: E402

from tests.support.load import chat, run  # noqa: E402
from tests.support.processes import Demo, Gateway, backend_toml  # noqa: E402

MODELS = ["llama3.1:70b", "llama3.1:70b", "qwen2.5:7b", "llava:13b", "gpt-4", "mixtral"]
SYSTEM_TEXTS = [f"You are assistant {n}. {'Be brief and polite. ' * 60}" for n in range(12)]
CACHE = {"cache-blocks": 900, "slots": 16}
MORE = """
[[backends]]
name = "old-box"
url = "http://127.0.0.1:9"
type = "ollama"
[routing.fallbacks]
"gpt-4" = ["llama3.1:70b"]
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, stop = Path(name), threading.Event()
        with (
            Demo(
                directory, name="rack-1", pace=200, models=["llama3.1:70b", "qwen2.5:7b"], **CACHE
            ) as one,
            Demo(
                directory,
                name="rack-2",
                pace=200,
                models=["qwen2.5:7b", "llava:13b"],
                fault="status=503,rate=0.1",
                **CACHE,
            ) as two,
            Demo(directory, name="workstation", pace=100, models=["llava:13b"], **CACHE) as three,
            Gateway(directory, backend_toml(one, two, three, max_concurrent=16) + MORE) as gateway,
        ):

            def load() -> None:
                chance = random.Random(1)
                while not stop.is_set():
                    requests = [
                        chat(
                            "",
                            chance.choice(MODELS[:5] if chance.random() < 0.9 else MODELS),
                            stream=chance.random() < 0.8,
                            messages=[
                                {"role": "system", "content": chance.choice(SYSTEM_TEXTS)},
                                {"role": "user", "content": "Hello there"},
                            ],
                        )
                        for _ in range(40)
                    ]
                    run(
                        gateway.port,
                        requests,
                        concurrency=chance.randint(4, 14),
                        seen=lambda *_: None,
                    )

            thread = threading.Thread(target=load)
            thread.start()
            try:
                time.sleep(300)  # as long as the charts go back
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(
                        executable_path="/usr/bin/chromium", args=["--no-sandbox"]
                    )
                    page = browser.new_page(
                        viewport={"width": 1400, "height": 1400}, color_scheme="light"
                    )
                    page.goto(gateway.base + "/")
                    page.wait_for_timeout(3000)
                    page.screenshot(path=ROOT / "docs" / "dashboard.png")
                    browser.close()
            finally:
                stop.set()
                thread.join()


if __name__ == "__main__":
    main()
