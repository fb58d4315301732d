from __future__ import annotations

import re

import httpx
from live_server import serving


def test_the_document_says_what_is_there(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics"} <= set(
        document["paths"]
    )
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert operation.get("description"), path
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert {"400", "401", "404", "413", "429", "503"} <= set(chat["responses"])
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["temperature"]["anyOf"][0]["maximum"] == 2
    assert "securitySchemes" not in document["components"]
    page = httpx.get(f"{server.url}/docs").text
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any("swagger-ui-bundle.js" in path for path in needed), page
    assert all(path.startswith("/") for path in needed), "a machine without a network shows the page too"
    for path in needed:
        assert httpx.get(f"{server.url}{path}").status_code == 200


def test_a_key_is_part_of_the_document_which_needs_none(tmp_path):
    with serving([{"text": "yes"}], tmp_path, keys=("k",)) as guarded:
        document = httpx.get(f"{guarded.url}/openapi.json").json()
        for path in ("/docs", "/static-offline-docs/swagger-ui-bundle.js"):
            assert httpx.get(f"{guarded.url}{path}").status_code == 200
        assert httpx.get(f"{guarded.url}/static-offline-docs/../v1/models").status_code in (401, 404)
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert "security" in document["paths"]["/v1/models"]["get"]
    assert "security" not in document["paths"]["/health"]["get"]
