"""Starts the program for a test and ends it with it."""

import os
import queue
import subprocess
import threading

PATIENCE = 60


class Server:
    """`farpost serve` on a free port; the built-in model unless the arguments name another."""

    def __init__(self, *arguments):
        command = [os.environ["FARPOST_PROGRAM"], "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines = queue.Queue()
        self.seen = []
        threading.Thread(target=self._read, daemon=True).start()
        self.address = self._wait_for("listening on ").split("listening on ")[1].split()[0]
        self._wait_for("ready: ")

    def _read(self):
        for line in self.process.stderr:
            self.lines.put(line)

    def _wait_for(self, part):
        while True:
            try:
                line = self.lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"{part!r} was not said, but {self.seen}") from None
            self.seen.append(line)
            if part in line:
                return line

    @property
    def base_url(self):
        return self.address.rstrip("/") + "/v1"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
