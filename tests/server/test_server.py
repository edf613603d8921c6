"""The server over its HTTP routes: images, jobs, adapters, keys and limits."""

import base64
import errno
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

import tiny_adapters
import tiny_bases
from server_requests import PROMPT, Serve, ask, finished, key, upload
from tara.adapters.adapter import load_adapter
from tara.cli import main
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.denoising import Generation
from tara.inference.engine import Engine
from tara.inference.pipeline import Pipeline
from tara.inference.provenance import read_provenance
from tara.inference.shared_calls import SharedCalls
from tara.server.settings import ServerSettings
from tara.server.store import JobRecord, Store


def test_the_official_openai_client_gets_the_image_that_the_pipeline_makes(serve: Serve, rex: Path) -> None:
    http = serve()
    upload(http, rex)
    client = OpenAI(api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    extra = {"adapters": [{"name": "rex", "weight": 0.5}], "seed": 3, "steps": 2, "guidance_scale": 3.0}
    answer = client.images.generate(
        model="tiny", prompt=PROMPT, n=2, size="48x32", response_format="b64_json", extra_body=extra
    )
    base = Base(tiny_bases.sd_pipeline())
    used = [ActiveAdapter(load_adapter(rex), 0.5)]
    images = Pipeline(base)(PROMPT, used, seeds=[3, 4], steps=2, guidance_scale=3.0, width=48, height=32)
    for made, expected in zip(answer.data or [], images, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(made.b64_json or "")))
        difference = np.asarray(image, dtype=int) - np.asarray(expected, dtype=int)
        assert np.abs(difference).max() <= 1
    with pytest.raises(NotFoundError, match="There is no model 'dall-e-3'"):
        client.images.generate(model="dall-e-3", prompt=PROMPT)
    with pytest.raises(BadRequestError, match="'xlo' is not in the prompt"):
        client.images.generate(prompt="a dog", extra_body=extra)


def test_a_request_that_the_engine_refuses_leaves_no_job_and_names_what_it_takes(
    serve: Serve, store: Store, tmp_path: Path
) -> None:
    client, base = serve(), Base(tiny_bases.sd_pipeline())
    for name, word, kind in (("rex", "xlo", "dog"), ("tom", "szn", "cat")):
        adapter = tiny_adapters.random_adapter(base, word, kind, targets=tiny_adapters.ATTENTION)
        upload(client, adapter.save(tmp_path / f"{name}.safetensors"), name)
    both = ask(prompt="a xlo dog and a szn cat", adapters=[{"name": "rex"}, {"name": "tom"}])
    refused = client.post("/v1/jobs", json=both)
    assert refused.status_code == 400
    assert "The composer 'regions' has network calls of its own" in refused.json()["error"]["message"]
    assert store.count_unfinished() == 0
    job = client.post("/v1/jobs", json=both | {"composer": "sum"}).json()["id"]
    assert finished(client, job)["status"] == "done"


def test_a_job_ends_with_images_that_tell_how_they_were_made(serve: Serve, rex: Path, tmp_path: Path) -> None:
    client = serve()
    assert upload(client, rex).json()["card"]["rare_word"] == "xlo"
    accepted = client.post("/v1/jobs", json=ask(n=2))
    assert accepted.status_code == 202
    job = finished(client, accepted.json()["id"])
    assert (job["status"], len(job["images"])) == ("done", 2)
    (tmp_path / "image.png").write_bytes(client.get(job["images"][1]).content)
    provenance = read_provenance(tmp_path / "image.png")
    assert (provenance.prompt, provenance.seed, provenance.settings.steps) == (PROMPT, 4, 2)
    assert [file.given for file in provenance.adapters] == ["rex"]
    assert str(tmp_path) not in provenance.model_dump_json()
    events = client.get(f"/v1/jobs/{job['id']}/events")
    assert json.loads(events.text.removeprefix("data: ")) == job


def test_a_cancelled_job_gives_its_rows_back(serve: Serve) -> None:
    client = serve(rows=2, max_steps=1000)
    long = client.post("/v1/jobs", json=ask(adapters=[], steps=900)).json()["id"]
    short = client.post("/v1/jobs", json=ask(adapters=[])).json()["id"]
    assert client.delete(f"/v1/jobs/{long}").json()["status"] == "cancelled"
    assert finished(client, short)["status"] == "done"
    assert client.delete(f"/v1/jobs/{short}").json()["status"] == "done"  # what has ended stays so


def test_a_job_whose_image_is_there_before_submit_returns_ends_all_the_same(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, submit = serve(), Engine.submit

    def slow_to_return(*arguments: Any) -> list[Generation]:
        generations = submit(*arguments)
        for _ in range(600):
            if all(made.is_over for made in generations):
                time.sleep(0.1)  # for what the engine's thread does next
                break
            time.sleep(0.05)
        return generations

    monkeypatch.setattr(Engine, "submit", slow_to_return)
    job = client.post("/v1/jobs", json=ask(adapters=[], steps=1)).json()["id"]
    assert finished(client, job)["status"] == "done"


def test_a_failing_network_call_ends_its_job_and_the_server_goes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve()

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as while_broken:
        while_broken.setattr(SharedCalls, "predict", broken)
        answer = finished(client, client.post("/v1/jobs", json=ask(adapters=[])).json()["id"])
        assert (answer["status"], answer["error"]) == ("failed", "The image was not generated (RuntimeError).")
    assert client.get("/readyz").status_code == 200
    assert finished(client, client.post("/v1/jobs", json=ask(adapters=[])).json()["id"])["status"] == "done"


def test_accepted_jobs_outlive_their_server(serve: Serve, store: Store, rex: Path, tmp_path: Path) -> None:
    client = serve()
    upload(client, rex)
    client.__exit__(None, None, None)
    kept = JobRecord(owner="local", request=json.dumps(ask()))
    lost = JobRecord(owner="local", request=json.dumps(ask(adapters=[{"name": "tom"}])))
    store.add_job(kept)  # as a server leaves them that is killed right after it has accepted them
    store.add_job(lost)
    (tmp_path / "data" / "images" / ".x.unfinished-y.png").write_bytes(b"half")
    again = serve()
    assert finished(again, kept.id)["status"] == "done"
    assert "no adapter 'tom'" in finished(again, lost.id)["error"]
    assert not store.end_job(kept.id, "failed")  # nothing ends twice
    assert sorted(path.name for path in (tmp_path / "data" / "images").iterdir()) == [f"{kept.id}-0.png"]


ROUTES = (
    ("GET", "/v1/images/{job}/0"),
    ("GET", "/v1/jobs/{job}"),
    ("GET", "/v1/jobs/{job}/events"),
    ("DELETE", "/v1/jobs/{job}"),
    ("GET", "/v1/adapters/rex"),
    ("DELETE", "/v1/adapters/rex"),
)


def test_no_key_sees_what_is_anothers(serve: Serve, store: Store, rex: Path) -> None:
    ann, bob = key(store, "ann"), key(store, "bob")
    client = serve()
    upload(client, rex, **ann)
    job = client.post("/v1/jobs", json=ask(), **ann).json()["id"]
    finished(client, job, **ann)
    paths: dict[str, Any] = client.app.openapi()["paths"]  # type: ignore[attr-defined]
    names = {"{job_id}": "{job}", "{number}": "0", "{name}": "rex"}
    named = {(method.upper(), path) for path, methods in paths.items() if "{" in path for method in methods}
    assert {(method, re.sub(r"{\w+}", lambda part: names[part[0]], path)) for method, path in named} == set(ROUTES)
    for method, route in ROUTES:
        answer = client.request(method, route.format(job=job), **bob)
        assert answer.status_code == 404
        assert "xlo" not in answer.text
    assert client.get("/v1/adapters", **bob).json()["data"] == []
    assert "no adapter 'rex'" in client.post("/v1/jobs", json=ask(), **bob).json()["error"]["message"]
    assert upload(client, rex, "rex", **bob).status_code == 201  # names are each key's own
    assert client.get("/v1/jobs/" + job, **ann).json()["status"] == "done"


def test_a_shared_adapter_is_used_by_all_and_deleted_by_its_owner(serve: Serve, store: Store, rex: Path) -> None:
    ann, bob = key(store, "ann"), key(store, "bob")
    client = serve()
    content = {"file": ("rex", rex.read_bytes())}
    client.post("/v1/adapters", params={"name": "rex", "shared": True}, files=content, **ann)
    assert [(one["name"], one["is_mine"]) for one in client.get("/v1/adapters", **bob).json()["data"]] == [
        ("rex", False)
    ]
    job = client.post("/v1/jobs", json=ask(), **bob).json()["id"]
    assert client.delete("/v1/adapters/rex", **bob).status_code == 404
    assert client.delete("/v1/adapters/rex", **ann).status_code == 200  # while it is in use
    assert finished(client, job, **bob)["status"] == "done"


def test_every_route_but_health_and_metrics_wants_the_key(serve: Serve, store: Store) -> None:
    ann = key(store, "ann")
    client = serve()
    paths: dict[str, Any] = client.app.openapi()["paths"]  # type: ignore[attr-defined]
    for route, methods in paths.items():
        for method in methods:
            answer = client.request(method, re.sub(r"{\w+}", "0" * 32, route), headers={"Authorization": "Bearer x"})
            assert answer.status_code == (200 if route in ("/healthz", "/readyz", "/metrics") else 401), route
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers
    assert client.get("/v1/models", **ann).status_code == 200


def test_keys_are_kept_as_hashes(store: Store, tmp_path: Path) -> None:
    key = store.add_key("ann")
    assert (store.owner_of(key), store.owner_of(key + "x")) == ("ann", None)
    store.close()
    assert all(key.encode() not in path.read_bytes() for path in (tmp_path / "data").iterdir())


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": "x" * 2001}, 400, "prompt"),
    ({"prompt": "a\0"}, 400, "prompt"),
    ({"n": 11}, 400, "n: "),
    ({"steps": 101}, 400, "steps is 101, but this server takes at most 100"),
    ({"size": "33x32"}, 400, "width = 33 is refused"),
    ({"size": "9000x8"}, 400, "width is 9000"),
    ({"size": "../etc"}, 400, "size"),
    ({"seed": -1}, 400, "seed"),
    ({"adapters": [{"name": "../rex"}]}, 400, "name"),
    ({"adapters": [{"name": "http://a/b"}]}, 400, "name"),
    ({"adapters": [{"name": "owner/rex"}]}, 400, "name"),
    ({"adapters": [{"name": "rex", "path": "/etc"}]}, 400, "path"),
    ({"adapters": [{"name": "none"}]}, 400, "no adapter 'none'"),
    ({"prompt": "a dog", "negative_prompt": "x" * 70_000}, 413, "larger than 64 KiB"),
]


@pytest.mark.filterwarnings("ignore")
def test_bad_requests_are_one_sentence_in_openais_form(serve: Serve, rex: Path) -> None:
    client = serve()
    for changes, status, message in BAD:
        for route in ("/v1/jobs", "/v1/images/generations"):
            answer = client.post(route, json=ask(**({"adapters": []} | changes)))
            assert answer.status_code == status, changes
            assert message in answer.json()["error"]["message"]
    for body in (b"", b"{", b"[]", b"null", b"\xff"):
        assert client.post("/v1/jobs", content=body, headers={"content-type": "application/json"}).status_code == 400
    text = rex.with_name("text.safetensors")
    text.write_text("no adapter")
    for name, file in (("a/b", rex), ("..", rex), ("text", text)):
        answer = upload(client, file, name)
        assert answer.status_code == 400
        assert "/tara/" not in answer.text.replace("/v1/", "")
    other = tiny_adapters.random_adapter(Base(tiny_bases.sdxl_pipeline())).save(rex.with_name("sdxl.safetensors"))
    assert "this base is" in upload(client, other).json()["error"]["message"]
    assert client.get("/v1/adapters").json()["data"] == []
    assert "tara_refused_total" in client.get("/metrics").text
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_page_elsewhere_cannot_reach_a_server_of_this_computer(serve: Serve) -> None:
    client = serve()
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


def test_what_is_too_much_is_refused_with_the_time_to_come_back(serve: Serve) -> None:
    client = serve(max_queued_jobs_per_key=1, max_requests_per_minute=6, max_steps=1000)
    first = client.post("/v1/jobs", json=ask(adapters=[], steps=900)).json()["id"]
    full = client.post("/v1/jobs", json=ask(adapters=[]))
    assert (full.status_code, full.headers["retry-after"]) == (429, "5")
    client.delete(f"/v1/jobs/{first}")
    answers = [client.get("/v1/models") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60


def test_only_the_newest_images_of_a_key_are_kept(serve: Serve, tmp_path: Path) -> None:
    client = serve(max_images_kept_per_key=2)
    ids = [finished(client, client.post("/v1/jobs", json=ask(adapters=[])).json()["id"])["id"] for _ in range(3)]
    client.__exit__(None, None, None)
    kept = {path.name for path in (tmp_path / "data" / "images").iterdir()}
    assert kept == {f"{job}-0.png" for job in ids[1:]}


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = serve()

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tara.storage.files.os.fsync", full)
    job = client.post("/v1/jobs", json=ask(adapters=[])).json()["id"]
    ended = finished(client, job)
    assert ended["status"] == "failed"
    assert ended["error"].startswith("The disk is full")
    assert list((tmp_path / "data" / "images").iterdir()) == []


def test_a_server_for_others_wants_keys(refused: Callable[..., str], here: Path, base: Path) -> None:
    said = refused("server", "--base", base, "--host", "0.0.0.0", "--port", "18231", "--device", "cpu")
    assert "there is no API key" in said
    assert "There is no `tara server kye`" in refused("server", "kye", "--base", base)
    assert "there is no setting 'prot'. Did you mean 'port'" in refused("server", "--config", _toml(here, "prot = 1"))


def _toml(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(f'base = "tiny"\n{text}\n')
    return path


def test_the_printed_settings_are_a_file_of_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "--base", "tiny", "--port", "9000", "--print-config"]) == 0
    (here / "server.toml").write_text(capsys.readouterr().out)
    assert main(["server", "--config", "server.toml", "--print-config"]) == 0
    assert capsys.readouterr().out == (here / "server.toml").read_text()
    assert "port = 9000" in (here / "server.toml").read_text()


def test_a_key_needs_no_base_is_printed_once_and_works(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "key", "add", "ann"]) == 0
    store = Store(ServerSettings(base="tiny").database_url)
    assert store.owner_of(capsys.readouterr().out.strip()) == "ann"
    store.close()
