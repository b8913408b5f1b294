"""What is known of a request that failed."""

from __future__ import annotations

import httpx2

from pixyproxy.generation.openai.deadline import was_sent_in_full


def test_a_request_that_was_not_watched_may_have_been_sent() -> None:
    assert was_sent_in_full(httpx2.Request("POST", "http://localhost/"))
