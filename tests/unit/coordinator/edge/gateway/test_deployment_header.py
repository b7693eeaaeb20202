"""The name of the deployment that answered, in a header, whatever a group is called."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from starlette.responses import Response

from coordinator.edge.gateway.routed_run import DEPLOYMENT_HEADER, header_name_of


@pytest.mark.parametrize("name", ["g/1", "our pools (big) 100%", "a@b:c"])
def test_a_plain_name_stands_as_it_is(name):
    assert header_name_of(name) == name


@pytest.mark.parametrize("name", ["模型/1", "é 100%", "a\r\nx-b: c", "\x1b[31m"])
def test_any_other_can_be_a_headers_value_too(name):
    told = header_name_of(name)
    response = Response(headers={DEPLOYMENT_HEADER: told})
    assert told.isascii()
    assert told.isprintable()
    assert unquote(response.headers[DEPLOYMENT_HEADER]) == name
