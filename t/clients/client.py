"""Clients in Python: requests, and urllib of the standard library."""

import json
import sys
import time
import urllib.error
import urllib.request

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

site = json.loads(sys.argv[2])
MESSAGES = [{"role": "user", "content": "test"}]
TEXT = "one two three four five"
BY_KEY = {"X-API-Key": site["key"]["whole"]}


def report(line):
    print(json.dumps(line), flush=True)


def check(what, got, wanted=True):
    report({"check": what, "ok": got == wanted, "got": repr(got), "wanted": repr(wanted)})


def upstream_events(event, model):
    with open(site["requests"]) as log:
        entries = [json.loads(line) for line in log]
    return [entry for entry in entries if entry["event"] == event and entry["model"] == model]


def seen_to_go(what, model, act):
    """What act does makes an upstream see its client go."""
    before = len(upstream_events("client gone", model))
    end = time.monotonic() + 20
    act()
    while len(upstream_events("client gone", model)) == before and time.monotonic() < end:
        time.sleep(0.05)
    check(what, len(upstream_events("client gone", model)) - before, 1)


def read_events(lines):
    """The data of events, with when each came; whatever gives lines will do."""
    for line in lines:
        if isinstance(line, bytes):
            line = line.decode()
        if line.startswith("data: "):
            yield time.monotonic(), line[6:].rstrip("\n")


def text_of(events):
    chunks = [json.loads(data) for _, data in events if data != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices"))


def check_stream(who, events):
    words = [at for at, data in events if any(word in data for word in TEXT.split())]
    check("%s: the text of the stream" % who, text_of(events), TEXT + " ")
    check("%s: ends in [DONE]" % who, events[-1][1], "[DONE]")
    check("%s: as it came from the upstream, not at its end" % who, words[-1] - words[0] > 0.6)


def use_requests():
    url = site["url"] + "/v1/chat/completions"

    with requests.Session() as session:
        session.headers.update(BY_KEY)
        answer = session.post(url, json={"model": "chat", "messages": MESSAGES})
        answer.raise_for_status()
        check("requests: the answer", answer.json()["choices"][0]["message"]["content"], TEXT)
        check("requests: x-regpilot-model", answer.headers["X-RegPilot-Model"], "good/ok")
        session.post(url, json={"model": "chat", "messages": MESSAGES, "seed": 2**70}).raise_for_status()
        check("requests: a number of any length stays as it is", upstream_events("request", "ok")[-1]["body"]["seed"], 2**70)

        with session.post(url, json={"model": "chat", "messages": MESSAGES, "stream": True}, stream=True) as answer:
            check_stream("requests", list(read_events(answer.iter_lines())))
        with session.post(url, json={"model": "dies", "messages": MESSAGES, "stream": True}, stream=True) as answer:
            events = list(read_events(answer.iter_lines(decode_unicode=True)))
        check("requests: a stream that breaks off: what came", text_of(events), "first ")
        check("requests: a stream that breaks off: ends in an error", json.loads(events[-1][1])["error"]["code"],
              "UPSTREAM_FAILED")

        def leave():
            with session.post(url, json={"model": "long-stream", "messages": MESSAGES, "stream": True}, stream=True) as answer:
                next(answer.iter_lines())

        def time_out():
            try:
                session.post(url, json={"model": "hang", "messages": MESSAGES}, timeout=2)
                check("requests: timeout", False)
            except requests.Timeout:
                check("requests: timeout", True)

        seen_to_go("requests: the upstream sees that a stream is left", "long-stream", leave)
        seen_to_go("requests: the upstream sees a timeout of the client", "hang", time_out)

        answer = session.post(site["url"] + "/v1/embeddings", json={"model": "embed", "input": "test"})
        check("requests: an embedding", answer.json()["data"][0]["embedding"], [4, 0.25, -1.5, 0.001])
        answer = session.get(site["url"] + "/v1/models")
        check("requests: models", "chat" in [model["id"] for model in answer.json()["data"]])

    for name, value in site["credentials"].items():
        answer = requests.get(site["url"] + "/api/auth/verify", headers={name: value})
        check("requests: " + name, answer.status_code, 200)

    answer = requests.post(url, json={"model": "chat", "messages": MESSAGES})
    check("requests: no key", (answer.status_code, answer.json()["error"][:16]), (401, "Missing API key."))
    try:
        requests.post(url, headers={"X-API-Key": "nobody"}, json={"messages": MESSAGES}).raise_for_status()
        check("requests: a wrong key raises", False)
    except requests.HTTPError as error:
        check("requests: a wrong key raises", (error.response.status_code, error.response.json()),
              (401, {"error": "Invalid or inactive API key"}))


def use_urllib():
    url = site["url"] + "/v1/chat/completions"

    def call(body, headers):
        return urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}))

    with call({"model": "chat", "messages": MESSAGES}, BY_KEY) as answer:
        check("urllib: the answer", json.load(answer)["choices"][0]["message"]["content"], TEXT)
    with call({"model": "chat", "messages": MESSAGES, "stream": True}, BY_KEY) as answer:
        check_stream("urllib", list(read_events(answer)))
    for name, value in site["credentials"].items():
        with call({"model": "chat", "messages": MESSAGES}, {name: value}) as answer:
            check("urllib: " + name, answer.status, 200)
    try:
        call({"messages": MESSAGES}, {"X-API-Key": site["key"]["reads"]})
        check("urllib: a key that may only read raises", False)
    except urllib.error.HTTPError as error:
        check("urllib: a key that may only read raises", (error.code, json.load(error)),
              (403, {"error": "Insufficient permissions for this operation"}))


def use_retry():
    """urllib3's way to try again. The test lets most of a minute pass once the key's one place in it is taken."""
    url = site["url"] + "/api/auth/verify"
    headers = {"X-API-Key": site["key"]["retried"]}

    requests.get(url, headers=headers).raise_for_status()
    report({"taken": True})
    while int(requests.get(url, headers=headers).headers["Retry-After"]) > 30:
        time.sleep(0.05)

    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(total=2, status_forcelist=[429], allowed_methods=None)))
        answer = session.get(url, headers=headers)
    check("requests: tries again after 429", answer.status_code, 200)
    check("requests: by one refusal", [attempt.status for attempt in answer.raw.retries.history], [429])


{"calls": lambda: (use_requests(), use_urllib()), "retry": use_retry}[sys.argv[1]]()
