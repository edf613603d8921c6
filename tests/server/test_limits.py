"""What a server refuses: pages of other sites, and what is too large."""

from pathlib import Path

import pytest

from server_requests import Serve, ask, finished, key, upload
from tara.server.store import Store

WRITING = (("POST", "/v1/jobs"), ("POST", "/v1/images/generations"), ("DELETE", "/v1/adapters/rex"))


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:3000", "http://localhost.evil.example", "null", ""]
)
def test_a_page_of_another_site_can_change_nothing(serve: Serve, rex: Path, origin: str) -> None:
    client = serve()
    upload(client, rex)
    for method, route in WRITING:
        answer = client.request(method, route, json=ask(), headers={"Origin": origin})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_site")
    assert upload(client, rex, "tom", headers={"Origin": origin}).status_code == 403
    assert [adapter["name"] for adapter in client.get("/v1/adapters").json()["data"]] == ["rex"]


def test_a_page_of_the_server_and_a_program_are_answered(serve: Serve, store: Store, rex: Path) -> None:
    client = serve()
    for number, headers in enumerate(({}, {"Origin": "http://localhost"})):
        assert upload(client, rex, f"rex{number}", headers=headers).status_code == 201
        job = client.post("/v1/jobs", json=ask(adapters=[]), headers=headers)
        assert finished(client, job.json()["id"])["status"] == "done"
        assert client.delete(f"/v1/adapters/rex{number}", headers=headers).status_code == 200
    with_key = key(store, "ann")["headers"]  # which no page elsewhere has
    assert client.get("/v1/models", headers=with_key | {"Origin": "https://app.example"}).status_code == 200


def test_an_upload_is_as_large_as_the_settings_say_at_most(serve: Serve, rex: Path, tmp_path: Path) -> None:
    client = serve(max_upload_mib=1, max_body_kib=1)
    large = rex.with_name("large.safetensors")
    large.write_bytes(rex.read_bytes() + bytes(2**20))
    answer = upload(client, large)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "1024 KiB" in answer.json()["error"]["message"]
    assert list((tmp_path / "data" / "adapters").iterdir()) == []
    assert upload(client, rex).status_code == 201
    assert client.post("/v1/jobs", json=ask(negative_prompt="x" * 1024)).status_code == 413


def test_a_key_keeps_so_many_bytes_of_adapters(serve: Serve, store: Store, rex: Path) -> None:
    client = serve(max_adapter_mib_per_key=1)
    ann, bob = key(store, "ann"), key(store, "bob")
    padded = rex.with_name("padded.safetensors")
    size = 700 * 2**10
    header = int.from_bytes(rex.read_bytes()[:8], "little")
    text = rex.read_bytes()[8 : 8 + header]
    # spaces after a header's JSON are part of the format
    padding = size - len(rex.read_bytes())
    padded.write_bytes(
        (header + padding).to_bytes(8, "little") + text + b" " * padding + rex.read_bytes()[8 + header :]
    )
    assert upload(client, padded, "one", **ann).status_code == 201
    refused = upload(client, padded, "two", **ann)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "Your adapters would take 1 MiB; 1 MiB are allowed. Delete some."
    assert upload(client, padded, "one", **bob).status_code == 201
    client.delete("/v1/adapters/one", **ann)
    assert upload(client, padded, "two", **ann).status_code == 201


def test_a_prompt_that_is_prepared_is_counted_as_a_hit(serve: Serve, rex: Path) -> None:
    client = serve()
    upload(client, rex)
    for prompt in ("a xlo dog", "a xlo dog", "a xlo dog in a box"):
        finished(client, client.post("/v1/jobs", json=ask(prompt=prompt, n=2)).json()["id"])
    lines = client.get("/metrics").text.splitlines()
    assert "tara_prepared_misses_total 2.0" in lines
    assert "tara_prepared_hits_total 4.0" in lines
