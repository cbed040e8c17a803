#!/usr/bin/env python3
"""An OpenAI-like upstream on a loopback port, for the tests.

upstream.py REQUESTS [CERT KEY]: prints its port, serves until its standard
input ends (so it never outlives the test), and appends to the file REQUESTS a
JSON line for each request that came in and for each answer that the client cut
short. With CERT and KEY it speaks HTTPS. What it does is chosen by the model
that is asked for; see MODELS.
"""

import base64
import gzip
import itertools
import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = ["one", "two", "three", "four", "five"]
record_lock = threading.Lock()


def record(entry):
    with record_lock, open(sys.argv[1], "a") as log:
        log.write(json.dumps(entry) + "\n")


class ClientGone(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go in two writes

    def log_message(self, format, *args):
        pass

    def wait(self, seconds):
        """Sleeps, but raises as soon as the client hangs up."""
        if select.select([self.connection], [], [], seconds)[0]:
            raise ClientGone

    def answer(self, status, body, content_type="application/json", length=None):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length or len(body)))
        self.send_header("X-Upstream-Header", "stays here")
        self.end_headers()
        self.wfile.write(body)

    def answer_error(self, status, message):
        self.answer(status, {"error": {"message": message, "type": "upstream_error"}})

    # --- streams

    def start_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_data(self, data):
        data = data.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def send_chunk(self, delta, finish=None, usage=None):
        chunk = {
            "id": "chatcmpl-test",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        if self.asked_for_usage():
            chunk["usage"] = None
        if usage:
            chunk.update(choices=[], usage=usage)
        self.send_data("data: %s\n\n" % json.dumps(chunk))

    def stream(self, words, delay):
        self.start_stream()
        self.send_chunk({"role": "assistant"})
        for word in words:
            self.wait(delay)
            self.send_chunk({"content": word + " "})
        self.end_stream("stop", len(words))

    def end_stream(self, finish, completion):
        self.send_chunk({}, finish=finish)
        if self.asked_for_usage():
            self.send_chunk({}, usage=self.usage(completion))
        self.send_data("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def asked_for_usage(self):
        return (self.body.get("stream_options") or {}).get("include_usage")

    def usage(self, completion):
        return {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": 7 + completion}

    # --- one method a model

    def ok(self):
        if self.body.get("stream"):
            return self.stream(WORDS, 0.3)
        self.answer_message({"content": " ".join(WORDS)}, "stop")

    def answer_message(self, message, finish):
        self.answer(200, {
            "id": "chatcmpl-test",
            "object": "chat.completion",
            "created": 1700000000,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", **message},
                "finish_reason": finish,
            }],
            "usage": self.usage(len(WORDS)),
        })

    def tools(self):
        """Calls the first tool it is offered; told what came of that, repeats it."""
        last = self.body["messages"][-1]
        if last["role"] == "tool":
            if self.body.get("stream"):
                return self.stream(last["content"].split(), 0)
            return self.answer_message({"content": last["content"]}, "stop")

        name = self.body["tools"][0]["function"]["name"]
        arguments = '{"city": "K\u00f6ln"}'

        def call(arguments):
            return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}

        if not self.body.get("stream"):
            return self.answer_message({"content": None, "tool_calls": [call(arguments)]}, "tool_calls")
        self.start_stream()
        self.send_chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, **call("")}]})
        for piece in arguments[:5], arguments[5:]:
            self.send_chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        self.end_stream("tool_calls", len(WORDS))

    def embed(self):
        """Each input's vector begins with its length; all others are the same."""
        inputs = self.body["input"]
        inputs = inputs if isinstance(inputs, list) else [inputs]
        data = []
        for index, text in enumerate(inputs):
            vector = ([len(text), 0.25, -1.5, 1e-3] * 256)[:self.body.get("dimensions", 4)]
            if self.body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack("<%df" % len(vector), *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        self.answer(200, {"object": "list", "model": self.model, "data": data,
                          "usage": {"prompt_tokens": 3 * len(inputs), "total_tokens": 3 * len(inputs)}})

    def at_once(self):
        if self.body.get("stream"):
            return self.stream(WORDS, 0)
        self.ok()

    def slow(self):
        self.wait(1.5)
        self.ok()

    def long_stream(self):
        self.stream(["word%d" % n for n in range(20)], 0.2)

    def silent_stream(self):
        self.start_stream()
        self.send_chunk({"role": "assistant"})
        self.send_chunk({"content": "first "})
        self.wait(60)

    def many_events(self):
        self.start_stream()
        for _ in range(200):
            self.send_data("data: {}\n\n" * 100)
        self.wait(60)

    def large_event(self):
        self.stream(["x" * 300000], 0)

    def commented_stream(self):
        """Takes its time, but says that it is there."""
        self.start_stream()
        self.send_chunk({"role": "assistant"})
        for _ in range(20):
            self.wait(0.1)
            self.send_data(": busy\n\n")
        self.send_chunk({"content": "done "})
        self.end_stream("stop", 1)

    def comments(self):
        """Says nothing else, before the first event or after it, as the user wants."""
        self.start_stream()
        if self.body["user"] == "after":
            self.send_chunk({"content": "first "})
        while True:
            self.wait(0.05)
            self.send_data(": busy\n\n")

    def dribble(self):
        self.start_stream()
        for byte in itertools.chain('data: {"a":"', itertools.repeat("x")):
            self.wait(0.05)
            self.send_data(byte)

    def breaks(self):
        """Begins as it should, and goes on as the user names."""
        self.start_stream()
        self.send_chunk({"content": "first "})
        self.wait(0.1)
        how = self.body["user"]
        if how == "reset":
            return self.rst()
        if how == "chunk":
            return self.raw(b"zz\r\n")
        if how == "end":
            return self.raw()
        self.send_data({"event": "data: nonsense\n\n", "array": "data: [1]\n\n", "length": "data: " + "x" * 2000000,
                        "secret": "data: {\"a\":\"%s\"}\n\n" % self.headers.get("Authorization", "")}[how])
        self.end_stream("stop", 1)

    def early_usage(self):
        """Says before the end what has been used until then."""
        self.start_stream()
        self.send_data('data: {"choices":[{"delta":{"content":"first "}}],'
                       '"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n')
        self.wait(60)

    def dies(self):
        self.start_stream()
        self.send_chunk({"role": "assistant"})
        self.send_chunk({"content": "first "})
        self.wait(0.3)
        self.close_connection = True

    def no_done(self):
        """Ends the stream in order but without [DONE]."""
        self.start_stream()
        self.send_chunk({"content": "first "})
        self.wfile.write(b"0\r\n\r\n")

    def cut(self):
        self.answer(200, b'{"object": "chat.compl', length=1000)
        self.close_connection = True

    def hang(self):
        self.wait(60)

    def garbage(self):
        self.answer(200, b"<html>welcome</html>", content_type="text/html")

    def not_an_object(self):
        self.answer(200, b"[1, 2")

    def absurd_usage(self):
        self.answer(200, {"object": "chat.completion", "model": self.model, "choices": [],
                          "usage": {"prompt_tokens": 2**63 - 1, "completion_tokens": -2**63}})

    def odd_stream(self):
        """Events as no SDK would write them, the usage in several of them."""
        self.start_stream()
        for event in self.ODD_EVENTS:
            self.send_data(event)
        self.wfile.write(b"0\r\n\r\n")

    ODD_EVENTS = [
        "event: chunk\nid: 7\ndata: { \"choices\" : [ {\"delta\":{\"content\":\"a\", \"usage\":1}} ], \"n\":1.50 }\n\n",
        ": a comment\n\n",
        "data:{\"choices\":[],\"filter\":[1],\"usage\":null}\n\n",
        "event: chunk\ndata: {\"usage\" : {\"prompt_tokens\":1,\"completion_tokens\":1},\ndata: "
        "\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\nid: 8\n\n",
        "data: {\"choices\":[],\"us\\u0061ge\":{\"prompt_tokens\":3e0,\"completion_tokens\":18446744073709551615}}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n",
        "data: [DONE]\n\n",
    ]

    def no_options(self):
        """Knows no stream_options, and says so with the status that the user names."""
        if "stream_options" in self.body:
            return self.answer_error(int(self.body["user"]), "unknown member: stream_options")
        self.stream(WORDS, 0)

    def refuse(self):
        """Answers with the status and the Retry-After that the user names."""
        status, retry_after = self.body["user"].split()
        self.send_response(int(status))
        self.send_header("Retry-After", retry_after)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    # --- answers that no server should give, and some that it may

    def raw(self, *pieces):
        self.close_connection = True
        for piece in pieces:
            self.wfile.write(piece)

    def rst(self):
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def head_only(self):
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")

    def short_length(self):
        self.raw(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{"choices":[]}')

    def bad_chunk(self):
        self.raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n{}\r\n0\r\n\r\n')

    def gzipped(self):
        body = gzip.compress(b'{"choices":[]}')
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    def not_http(self):
        self.raw(b"SSH-2.0-nobody\r\n{}\r\n")

    def endless_line(self):
        self.raw(b"HTTP/1.1 200 OK\r\nX: ", *itertools.repeat(b"x" * 65536, 10000))

    def endless_head(self):
        self.raw(b"HTTP/1.1 200 OK\r\n", *itertools.repeat(b"X-Header: x\r\n" * 5000, 10000))

    def endless_1xx(self):
        self.raw(*itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, 10000))

    def endless_body(self):
        self.raw(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":"', *itertools.repeat(b"x" * 65536, 10000))

    def endless_event(self):
        self.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ", *itertools.repeat(b"x" * 65536, 10000))

    def early_hints(self):
        self.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        self.ok()

    def http_1_0(self):
        self.raw(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"choices":[{"message":{"content":"old"}}]}')

    def error_500(self):
        self.answer_error(500, "internal: " + self.headers.get("Authorization", ""))

    def error_429(self):
        self.answer_error(429, "slow down")

    def error_400(self):
        self.answer_error(400, "this model takes no pictures")

    def secret_400(self):
        self.answer_error(400, "bad request with " + self.headers.get("Authorization", ""))

    def secret_401(self):
        self.answer_error(401, "Incorrect API key: " + self.headers.get("Authorization", ""))

    def redirect(self):
        self.send_response(302)
        self.send_header("Location", "/v1/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    # --- an upstream that tells its secret wherever it can

    def leak(self):
        secret = self.headers.get("Authorization", "").split(" ")[-1]
        where = self.body["user"]
        chunk = json.dumps({"choices": [{"delta": {"content": "first " + (secret if where == "event" else "")}}]})
        body = json.dumps({"object": "chat.completion", "choices": [{"message": {
            "role": "assistant", "content": "nothing " + (secret if where == "body" else "")}}]})
        if where == "redirect":
            return self.raw(("HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/?key=%s\r\n"
                             "Content-Length: 0\r\n\r\n" % secret).encode())
        if where.isdigit():
            body = json.dumps({"error": {"message": "not with " + secret}})
        status = int(where) if where.isdigit() else 200
        reason = secret if where == "reason" else "OK"
        head = "HTTP/1.1 %d %s\r\n" % (status, reason)
        if where == "headers":
            head += "X-Secret: %s\r\nSet-Cookie: s=%s\r\nx-request-id: %s\r\nRetry-After: %s\r\n" % ((secret,) * 4)
        charset = "; charset=" + secret if where == "type" else ""
        if not self.body.get("stream") or where in ("body",) or status != 200:
            head += "Content-Type: application/json%s\r\nContent-Length: %d\r\n\r\n" % (charset, len(body))
            return self.raw((head + body).encode())
        prefix = {"comment": ": %s\n\n" % secret, "name": "event: %s\n" % secret, "id": "id: %s\n" % secret,
                  "later": 'data: {"choices":[{"delta":{"content":"ok "}}]}\n\ndata: {"leak":"%s"}\n\n' % secret,
                  "not-json": "data: %s\n\n" % secret}.get(where, "")
        end = "data: {\"error\":\"%s\"}\n\n" % secret if where == "end" else "data: [DONE]\n\n"
        self.raw((head + "Content-Type: text/event-stream%s\r\n\r\n" % charset).encode(),
                 (prefix + "data: " + chunk + "\n\n" + end).encode())

    MODELS = {
        "ok": ok, "at-once": at_once, "slow": slow, "long-stream": long_stream, "silent-stream": silent_stream,
        "dies": dies, "no-done": no_done, "cut": cut, "hang": hang, "stuck": hang, "garbage": garbage,
        "not-an-object": not_an_object, "error-500": error_500, "error-429": error_429,
        "error-400": error_400, "secret-400": secret_400, "secret-401": secret_401,
        "redirect": redirect, "refuse": refuse, "rst": rst, "head-only": head_only, "short-length": short_length,
        "bad-chunk": bad_chunk, "gzip": gzipped, "not-http": not_http, "endless-line": endless_line,
        "endless-head": endless_head, "endless-1xx": endless_1xx, "endless-body": endless_body,
        "endless-event": endless_event, "early-hints": early_hints, "http-1-0": http_1_0, "odd-stream": odd_stream,
        "many-events": many_events, "large-event": large_event, "commented-stream": commented_stream, "comments": comments, "dribble": dribble,
        "breaks": breaks, "early-usage": early_usage, "no-options": no_options, "absurd-usage": absurd_usage, "tools": tools, "embed": embed,
        "leak": leak,
    }

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.body = json.loads(raw)
        except ValueError:
            self.body = {}
        self.model = self.body.get("model")
        record({"event": "request", "path": self.path, "model": self.model, "body": self.body,
                "raw": raw.decode(errors="replace"),
                "headers": {name.lower(): value for name, value in self.headers.items()}})
        try:
            self.MODELS[self.model](self)
        except (ClientGone, OSError):
            record({"event": "client gone", "model": self.model})
            self.close_connection = True

    def do_GET(self):
        record({"event": "request", "path": self.path, "model": None})
        self.answer_error(404, "not here")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A refused TLS handshake is what some tests are about."""
        record({"event": "failed connection", "error": repr(sys.exc_info()[1])})


server = Server(("127.0.0.1", 0), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    # The handshake belongs to the connection's thread, not to the accept loop.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
os._exit(0)
