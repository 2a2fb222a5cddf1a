"""The part of the Hugging Face hub that downloads need, on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub on this machine, with one model ``someone/model``."""

    def __init__(self, files):
        self.files = files
        self.downloaded = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(with_body=False)

            def do_GET(self):
                self.answer(with_body=True)

            def answer(self, with_body):
                headers, body = hub.respond(self.path, with_body)
                self.send_response(200 if body is not None else 404)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if with_body and body:
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def respond(self, path, is_get):
        path = path.split("?")[0]
        model = "/api/models/someone/model"
        if path in (model, f"{model}/revision/main"):
            names = [{"rfilename": name} for name in self.files]
            info = {"id": "someone/model", "sha": COMMIT, "siblings": names}
            return {}, json.dumps(info).encode()
        if path.startswith(f"{model}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": name}
                for name, body in self.files.items()
            ]
            return {}, json.dumps(entries).encode()
        name = (
            path.partition(f"/resolve/{COMMIT}/")[2]
            or path.partition("/resolve/main/")[2]
        )
        if name not in self.files:
            return {}, None
        if is_get:
            self.downloaded.append(name)
        return {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, self.files[name]
