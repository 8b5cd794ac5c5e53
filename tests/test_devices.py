"""`--devices`: what it may name, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.devices import parse_devices
from unet_batch.errors import UsageError


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("auto", ("auto",)),
        (" Auto ", ("auto",)),
        ("0", ("cuda:0",)),
        ("0,1", ("cuda:0", "cuda:1")),
        ("3, 1", ("cuda:3", "cuda:1")),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        ("cpu", ("cpu",)),
        ("cpu:1", ("cpu",)),
        ("cpu:3", ("cpu", "cpu", "cpu")),
    ],
)
def test_names_of_devices(text: str, devices: tuple[str, ...]) -> None:
    assert parse_devices(text) == devices


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "auto, numbers of GPUs or cpu:N expected"),
        ("0,", "expected"),
        ("-1", "expected"),
        ("cuda", "expected"),
        ("cpu:", "expected"),
        ("cpu:-2", "expected"),
        ("cpu,cpu", "expected"),
        ("auto,0", "expected"),
        ("\u0661", "expected"),  # a digit, in Arabic
        ("0,1,0", "GPU 0 is there twice"),
        ("0,00", "GPU 0 is there twice"),
        ("0,cpu", "GPUs and the CPU do not share a job"),
        ("cpu:2,1", "GPUs and the CPU do not share a job"),
        ("cpu:0", "0 processes, from 1 to 1,024 are possible"),
        ("cpu:100000", "100,000 processes, from 1 to 1,024 are possible"),
        ("99999", "expected"),
    ],
)
def test_what_names_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^devices {text!r}: .*{said}") as caught:
        parse_devices(text)
    assert caught.value.hint


@given(st.text() | st.text(alphabet="0123456789,:cpuda -", max_size=12))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        devices = parse_devices(text)
    except UsageError:
        return
    assert devices
    if devices != ("auto",) and devices[0] != "cpu":
        assert parse_devices(",".join(devices)) == devices
