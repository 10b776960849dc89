"""What `wandb agent` and the runs that it starts need of W&B's service, on this machine: a sweep, its trials, runs."""

import gzip
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "p", "name": "leeml", "entity": {"id": "e", "name": "someone"}}


class Service:
    """One sweep; what arrives is kept.

    Args:
        sweep: Its file, as text.
        trials: Values of each, by dotted key, in the order in which agents get them.
    """

    def __init__(self, sweep, trials):
        self.sweep, self.waiting = sweep, dict(trials)
        self.runs = {}  # id -> fields that the run was registered with
        self.history = {}  # id -> rows
        self.exit_codes = {}
        self.address = ""

    def answer(self, asked, given):
        """Data of a GraphQL operation; None for one that is not known, which W&B's client can do without."""
        if asked == "Viewer":
            return {"viewer": {"id": "u", "entity": "someone", "username": "someone", "teams": {"edges": []}}}
        if asked == "SweepWithRuns":
            return {"project": {"sweep": {"id": "S", "name": "s", "config": self.sweep, "runs": {"edges": []}}}}
        if asked == "CreateAgent":
            return {"createAgent": {"agent": {"id": "A"}}}
        if asked == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "A"}, "commands": json.dumps(self.commands(given))}}
        if asked == "UpsertBucket":
            self.runs.setdefault(given["name"], {}).update({k: v for k, v in given.items() if v is not None})
            bucket = {"id": given["name"], "name": given["name"], "sweepName": given["sweep"], "project": PROJECT}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        if asked == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.address}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if asked == "CreateArtifact":  # as if it were there already
            sequence = {"latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return None

    def commands(self, given):
        if json.loads(given["runState"]):
            return []
        if not self.waiting:
            return [{"type": "exit"}]
        name = next(iter(self.waiting))
        values = {key: {"value": value} for key, value in self.waiting.pop(name).items()}
        return [{"type": "run", "run_id": name, "program": "leeml", "args": values}]

    def stream(self, run, content):
        """Rows and the exit code of a run."""
        for line in content.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.history.setdefault(run, []).append(json.loads(line))
        if content.get("exitcode") is not None:
            self.exit_codes[run] = content["exitcode"]


@contextmanager
def serving(service):
    """The service under an address of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def reply(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.reply({})

        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply({})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/graphql":
                asked = json.loads(body)
                (name,) = re.findall(r"^\s*(?:query|mutation)\s+(\w+)", asked["query"])
                data = service.answer(name, asked.get("variables") or {})
                self.reply({"data": data} if data else {"errors": [{"message": f"no {name} here"}]})
                return
            if stream := re.fullmatch(r"/files/someone/leeml/(.+)/file_stream", self.path):
                service.stream(stream[1], json.loads(body))
            self.reply({})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield service
        finally:
            server.shutdown()
