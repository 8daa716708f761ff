"""The text forms, against a parser written another way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comparison.builds import Build
from comparison.libllama import Context, Library, LlamaError

N_LAYER = 30
INT_MAX = 2**31 - 1


def parse(spec: str) -> str | None:
    """What a set leaves out of 30 blocks, in its shortest form; None where it has to be refused."""
    out: dict[str, set[int]] = {"": set(), ":attn": set(), ":ffn": set()}
    for item in re.split("[,;]", spec) if spec != "none" else ():
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+)(?:\+([0-9]+))?)?(:attn|:ffn)?", item)
        if not match:
            return None
        first, last, step = (
            int(x) if x else d for x, d in zip(match.groups()[:3], (0, int(match[1]), 1), strict=True)
        )
        if last < first or step == 0 or last >= N_LAYER or step > INT_MAX:
            return None
        out[match[4] or ""].update(range(first, last + 1, step))
    if len(out[""] | out[":attn"] & out[":ffn"]) == N_LAYER:
        return None
    items = []
    for half, named in out.items():
        blocks = named - out[""] if half else named
        for first in sorted(il for il in blocks if il - 1 not in blocks):
            last = next(il for il in range(first, N_LAYER) if il + 1 not in blocks)
            items.append((f"{first}-{last}" if last > first else str(first)) + half)
    return ",".join(items)


number = st.integers(0, 34).map(str) | st.sampled_from(["00", "007", "4294967301", "99999999999999999999"])
blocks = st.one_of(
    number,
    st.tuples(number, number).map("-".join),
    st.tuples(number, number, st.integers(0, 9).map(str)).map(lambda t: f"{t[0]}-{t[1]}+{t[2]}"),
)
item = st.tuples(blocks, st.sampled_from(["", "", ":attn", ":ffn", ":", ":foo"])).map("".join)
specs = st.lists(item, min_size=1, max_size=5).flatmap(
    lambda items: st.lists(st.sampled_from(",;"), min_size=len(items), max_size=len(items)).map(
        lambda seps: "".join(a + b for a, b in zip(items, seps, strict=True))[:-1]
    )
)
noise = st.text("0123456789-+,;:none.x ", max_size=12).filter(lambda s: " " not in s)

_context: list[Context] = []


def set_of(lib: Library, path: Path, spec: str) -> str | tuple[str]:
    """The set as the library writes it, or its error alone in a tuple."""
    if not _context:
        _context.append(lib.model(path).context(n_ctx=64))
    ctx = _context[0]
    try:
        ctx.mask(spec)
    except LlamaError as error:
        return (str(error),)
    return ctx.mask_layers()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs | noise)
def test_a_set_is_what_another_parser_says(ours: Build, smollm2: Path, spec: str) -> None:
    found = ours.worker.call(set_of, smollm2, spec)
    expected = parse(spec)
    if expected is None:
        assert isinstance(found, tuple) and found[0].startswith("mask: ")
    else:
        assert found == expected


def checked(lib: Library, path: Path, layers: str | None, scale: str | None) -> str | None:
    encoded = [None if v is None else v.encode() for v in (layers, scale)]
    if lib.c.llama_skip_check(str(path).encode(), *encoded, b"LAYERS", b"SCALE"):
        return None
    return lib.c.llama_skip_error().decode()


finite = st.floats(-(2.0**99), 2.0**99, allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.lists(st.sampled_from([0, 5, 13, 20]), min_size=1, max_size=4),
    values=st.lists(finite, min_size=4),
)
def test_a_scale_names_each_gap_once(
    ours: Build, smollm2: Path, gaps: list[int], values: list[float]
) -> None:
    scale = ",".join(f"{gap}:{value!r}" for gap, value in zip(gaps, values, strict=False))
    error = ours.worker.call(checked, smollm2, "0,5-6,13-14", scale)
    if len(set(gaps)) < len(gaps):
        assert error and error.startswith("SCALE: the gap at block ") and "named twice" in error
    elif 20 in gaps:
        assert error == "SCALE: no gap begins at block 20, the blocks left out are 0,5-6,13-14"
    else:
        assert error is None


@pytest.mark.parametrize(
    ("layers", "scale", "message"),
    [
        ("", None, None),
        ("none", None, None),
        ("13", "", None),
        (",", None, "LAYERS: empty item in ','"),
        ("1,,2", None, "LAYERS: empty item in '1,,2'"),
        ("1,", None, "LAYERS: empty item in '1,'"),
        ("1-", None, "LAYERS: malformed item '1-'"),
        ("-1", None, "LAYERS: malformed item '-1'"),
        ("1-2-3", None, "LAYERS: malformed item '1-2-3'"),
        ("1+2", None, "LAYERS: malformed item '1+2'"),
        ("1.5", None, "LAYERS: malformed item '1.5'"),
        ("0x1", None, "LAYERS: malformed item '0x1'"),
        ("none,1", None, "LAYERS: malformed item 'none'"),
        ("20-10", None, "LAYERS: reversed range '20-10'"),
        ("3-9+0", None, "LAYERS: step 0 in '3-9+0'"),
        ("30", None, "LAYERS: block 30 is out of range, the model has blocks 0-29"),
        ("25-30", None, "LAYERS: block 30 is out of range, the model has blocks 0-29"),
        ("0-29", None, "LAYERS: every block is left out"),
        ("0-29+2,1-29+2", None, "LAYERS: every block is left out"),
        (
            "10:foo",
            None,
            "LAYERS: malformed item '10:foo', expected N, N-M or N-M+STEP, with :attn or :ffn behind it",
        ),
        (":attn", None, "LAYERS: malformed item ':attn'"),
        ("10:attn:ffn", None, "LAYERS: malformed item '10:attn:ffn'"),
        ("10,10:attn", None, None),
        ("0-29:attn,0-29:ffn", None, "LAYERS: every block is left out"),
        ("0-12:attn,0-12:ffn,13-29", None, "LAYERS: every block is left out"),
        ("0-29:attn", None, None),
        ("30:ffn", None, "LAYERS: block 30 is out of range, the model has blocks 0-29"),
        ("13", "13:attn:0.5", "SCALE: malformed item '13:attn:0.5'"),
        ("13:attn", "13:0.5", "SCALE: no gap begins at block 13, the blocks left out are none"),
        ("13:attn", "0.5", "SCALE: no block is left out, so there is no gap to scale"),
        ("13", "x", "SCALE: malformed item 'x'"),
        ("13", "13:", "SCALE: malformed item '13:'"),
        ("13", ":1", "SCALE: malformed item ':1'"),
        ("13", "13:0.5x", "SCALE: malformed item '13:0.5x'"),
        ("13", "13: 0.5", "SCALE: malformed item '13: 0.5'"),
        ("13", "13:0.5,", "SCALE: empty item"),
        ("13", "inf", "SCALE: the scale 'inf' is not finite"),
        ("13", "-nan", "SCALE: the scale '-nan' is not finite"),
        ("13", "1e39", "SCALE: the scale '1e39' is not finite"),
        ("13-14", "14:0.5", "SCALE: no gap begins at block 14"),
        ("13", "999999:0.5", "SCALE: no gap begins at block 999999"),
        ("13", "0.5,13:0.5", "SCALE: '0.5,13:0.5' mixes"),
        ("13", "0.5,0.6", "SCALE: '0.5,0.6' mixes"),
        (None, "0.5", "SCALE: no block is left out"),
        ("none", "0.5", "SCALE: no block is left out"),
        ("none", "13:0.5", "SCALE: no gap begins at block 13, the blocks left out are none"),
    ],
)
def test_messages(
    ours: Build, smollm2: Path, layers: str | None, scale: str | None, message: str | None
) -> None:
    error = ours.worker.call(checked, smollm2, layers, scale)
    assert (error is None) == (message is None), error
    assert message is None or str(error).startswith(message)


def test_a_file_that_cannot_be_read_is_not_the_sets_fault(ours: Build, tmp_path: Path) -> None:
    for content in (None, b"", b"GGUF", b"not a model" * 100):
        path = tmp_path / "model.gguf"
        if content is not None:
            path.write_bytes(content)
        assert ours.worker.call(checked, path, "13", None) is None
        assert "malformed" in ours.worker.call(checked, path, "x", None)
