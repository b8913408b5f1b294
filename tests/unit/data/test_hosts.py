from __future__ import annotations

from pixyproxy.data.hosts import Host, HostOrder


def test_hosts_that_have_failed_come_last_the_latest_failure_at_the_end() -> None:
    one, two, three = (Host(name, 3306) for name in ("one", "two", "three"))
    hosts = HostOrder([one, two, three])

    assert hosts.in_order() == [one, two, three]
    hosts.report_failure(one)
    assert hosts.in_order() == [two, three, one]
    hosts.report_failure(two)
    assert hosts.in_order() == [three, one, two]
    hosts.report_failure(one)
    assert hosts.in_order() == [three, two, one]
