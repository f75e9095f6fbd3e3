"""The table of faults."""

import pytest

from nexus.errors import ERROR_TYPES, FAULTS, status_label

ORIGINAL = {
    "timeout",
    "backend_error",
    "no_backend",
    "no_healthy_backend",
    "parse_error",
    "other",
    "model_not_found",
    "fallback_exhausted",
    "capability_mismatch",
}


def test_values_of_an_earlier_gateway_are_there():
    assert ORIGINAL <= ERROR_TYPES


def test_every_row_is_whole():
    for name, fault in FAULTS.items():
        assert name == fault.code
        assert fault.description.endswith(".")
        assert fault.status is None or 400 <= fault.status <= 599
        if fault.stream_end is not None and name != "client_gone":
            assert fault.status in (502, 504), (
                "a stream that broke after its first byte, by the contract"
            )


@pytest.mark.parametrize(
    ("status", "label"),
    [
        (200, "200"),
        (404, "404"),
        (499, "499"),
        (502, "502"),
        (418, "4xx"),
        (507, "5xx"),
        (206, "2xx"),
        (402, "402"),
        (529, "529"),
    ],
)
def test_statuses_are_bounded(status, label):
    assert status_label(status) == label
