"""A TensorBoard server for the tests."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request


class Server:
    """A TensorBoard server of its own process on a free port."""

    def __init__(self, logdir, *options):
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
        command += ["--host", "localhost", "--port", "0", "--reload_interval", "1", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(r"http://localhost:\d+", line):
                self.url = found[0]
                return
        raise RuntimeError("".join(lines))

    def get(self, path, **query):
        address = f"{self.url}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=30) as response:
            return json.load(response)

    def when(self, ready, path, **query):
        """Ask until what is on disk has been read."""
        for _ in range(300):
            if ready(answer := self.get(path, **query)):
                return answer
            time.sleep(0.1)
        raise TimeoutError(answer)

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.process.stderr.close()
