"""A copy of its own, under vendor/the0: state written in place, millisecond timestamps, a server that takes one connection at a time."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qsl, urlsplit

print("a the0 of its own")
_handlers = {}


def parse():
    return os.environ["BOT_ID"], json.loads(os.environ["BOT_CONFIG"])


def log(message, level="info"):
    line = {"timestamp": int(time.time() * 1000), "level": level, "message": message}
    print(json.dumps(line, separators=(",", ":")), flush=True)


def metric(kind, value):
    print(json.dumps({"_metric": kind, "value": value, "timestamp": int(time.time() * 1000)}), flush=True)


def get_state(key, default=None):
    try:
        with open(os.path.join(os.environ["STATE_DIR"], f"{key}.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return default


def set_state(key, value):
    if "QUERY_PATH" in os.environ:
        raise RuntimeError("state is read-only in a query")
    os.makedirs(os.environ["STATE_DIR"], exist_ok=True)
    with open(os.path.join(os.environ["STATE_DIR"], f"{key}.json"), "w") as file:
        json.dump(value, file)


def handler(path):
    return lambda function: _handlers.setdefault(path, function)


def _answer(path, params):
    if path not in _handlers:
        return 404, {"status": "error", "error": f"No handler for path: {path}"}
    try:
        return 200, {"status": "ok", "data": _handlers[path](params)}
    except Exception as failure:  # noqa: BLE001 - whatever a handler raises is the answer
        return 500, {"status": "error", "error": str(failure)}


class _Once(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = urlsplit(self.path)  # the body is never read
        status, answer = _answer(asked.path, dict(parse_qsl(asked.query)))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


def run():
    if "QUERY_PATH" in os.environ:
        _, answer = _answer(os.environ["QUERY_PATH"], json.loads(os.environ.get("QUERY_PARAMS", "{}")))
        os.makedirs("/query", exist_ok=True)
        with open("/query/result.json", "w") as file:
            json.dump(answer, file)
        sys.exit(0 if answer["status"] == "ok" else 1)
    HTTPServer(("0.0.0.0", int(os.environ.get("THE0_QUERY_PORT", "9476"))), _Once).serve_forever()
