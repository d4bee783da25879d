"""The pages on HTTP and gRPC name what the gateway has, and nothing it has not."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor import FileDescriptor

from handlers.wire import GENERATION_FIELDS
from scheduler.gateway import (
    bulks_api,
    classes_api,
    http,
    http_request,
    keys_api,
    tasks_api,
    tenants_api,
)
from scheduler.gateway.http_request import KEY_HEADER, REQUEST_ID_HEADER, TASK_HEADER
from scheduler.gateway.submission import OPTION_FIELDS
from scheduler.gateway.views import SUMMARY_FIELDS
from scheduler.rpc import inference_pb2, plait_pb2
from tests.docs.pages import ROOT, names, rows, section, text_of

ROUTES = {f"{route.method} {route.path}" for module in http.MODULES for route in module.ROUTES}
HTTP = text_of("http-api.md")


def first_cells(text: str) -> set[str]:
    return {name for row in rows(text) for name in names(row[0])}


def test_the_table_of_routes_is_the_code_s() -> None:
    assert first_cells(HTTP.split("\n## ")[0]) == ROUTES


def test_every_route_has_a_section_and_every_section_a_route() -> None:
    headings = re.findall(r"^### `([A-Z]+ /[^`]*)`$", HTTP, re.MULTILINE)

    assert sorted(headings) == sorted(ROUTES)


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_every_route_has_an_example_with_its_path(route: str) -> None:
    path = route.split()[1]
    # The form without a name stands for the one with it, and what is in braces for any value.
    pattern = re.sub(r"\\\{\w+\\\}", r"[\\w.-]+", re.escape(path))

    if route != "POST /predictions/{model}/{version}":  # The page says that it is as without.
        text = section(HTTP, f"### `{route}`")
        assert re.search(rf"curl[^`]*http://127\.0\.0\.1:8700{pattern}[\s'?]", text)


def test_fields_of_a_request_are_those_the_parsers_and_the_gateway_take() -> None:
    # "generated" is the scheduler's own, and "input" is the one field of an embedding.
    expected = (set(GENERATION_FIELDS) - {"generated"}) | {"input"} | set(OPTION_FIELDS)

    assert first_cells(section(HTTP, "## Fields of a request")) == expected


def test_fields_of_a_submission_are_those_the_gateway_takes() -> None:
    table = section(HTTP, "### `POST /v1/tasks`")

    assert first_cells(table) == set(tasks_api.SUBMIT_FIELDS)


def test_parameters_of_the_listing_are_those_the_gateway_takes() -> None:
    assert first_cells(section(HTTP, "### `GET /v1/tasks`")) == set(tasks_api.LIST_PARAMETERS)


@pytest.mark.parametrize(
    ("route", "parameters"),
    [
        ("POST /v1/bulks", bulks_api.BEGIN_PARAMETERS),
        ("GET /v1/bulks", bulks_api.LIST_PARAMETERS),
        ("GET /v1/bulks/{bulk_id}/results", bulks_api.RESULT_PARAMETERS),
    ],
)
def test_parameters_of_bulks_are_those_the_gateway_takes(
    route: str, parameters: tuple[str, ...]
) -> None:
    assert first_cells(section(HTTP, f"### `{route}`")) == set(parameters)


def test_everything_a_task_may_be_short_of_has_a_row() -> None:
    source = (ROOT / "scheduler" / "explanation.py").read_text()
    codes = set(re.findall(r'Shortage\(\s*"(\w+)"', source))

    assert first_cells(section(text_of("waiting.md"), "## What is short")) == codes


def test_fields_of_a_task_are_those_a_client_gets() -> None:
    table = section(HTTP, "### `GET /v1/tasks/{task_id}`")

    assert first_cells(table) == {"task_id", "state", "error", "result", *SUMMARY_FIELDS}


def test_fields_of_a_tenant_and_of_a_key_are_those_the_gateway_takes() -> None:
    tenant = section(HTTP, "### `PATCH /v1/tenants/{tenant}`")
    key = section(HTTP, "### `POST /v1/keys`")

    assert first_cells(tenant) == set(tenants_api.TENANT_FIELDS)
    assert first_cells(key) == set(keys_api.KEY_FIELDS)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("PUT /v1/cost-factors/{model}", classes_api.FACTOR_FIELDS),
        ("POST /v1/purge", classes_api.PURGE_FIELDS),
    ],
)
def test_fields_of_the_other_paths_of_operators_are_named(
    route: str, fields: tuple[str, ...]
) -> None:
    text = section(HTTP, f"### `{route}`")

    assert all(f"`{field}`" in text or f'"{field}"' in text for field in fields)


def test_headers_of_plait_s_own_are_named() -> None:
    own = {value for name, value in vars(http_request).items() if name.endswith("_HEADER")}

    assert own >= {KEY_HEADER, REQUEST_ID_HEADER, TASK_HEADER}
    assert own <= first_cells(section(HTTP, "## What holds for every request"))


@pytest.mark.parametrize("file", [inference_pb2.DESCRIPTOR, plait_pb2.DESCRIPTOR])
def test_every_grpc_method_has_a_row(file: FileDescriptor) -> None:
    methods = {
        method.name for service in file.services_by_name.values() for method in service.methods
    }

    assert methods <= first_cells(text_of("grpc-api.md"))


def test_every_message_of_the_runner_protocol_has_a_row() -> None:
    page = section(text_of("grpc-api.md"), "## The runner protocol")
    messages = {
        field.message_type.name
        for name in ("RunnerMessage", "ControlMessage")
        for field in plait_pb2.DESCRIPTOR.message_types_by_name[name].fields
        if field.message_type is not None
    }

    assert first_cells(page) == messages | {"Connect"}
