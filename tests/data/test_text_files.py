"""Text is read line by line, whatever its bytes and compression; what is damaged is named by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.data.text_files import read_lines
from seq2seq.support.errors import UserError
from tests.data.files import COMPRESS, write


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    content = "\ufeffa\u2028b\r\n \t c\x85d\x0c\x1ce\rf \n\n\ufeffg\x00h".encode()
    expected = ["a\u2028b", "c\x85d\x0c\x1ce\rf", "", "\ufeffg\x00h"]
    for suffix in COMPRESS:
        assert list(read_lines(Path(write(tmp_path / f"a{suffix}", content)))) == expected


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=8))
def test_there_are_as_many_lines_as_newlines(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lines") / "a"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    found = list(read_lines(path))
    assert len(found) == len(lines)
    assert found[1:] == [line.strip(" \t\r") for line in lines[1:]]


def test_invalid_utf8_is_named_by_file_line_and_byte(tmp_path: Path) -> None:
    for suffix in COMPRESS:
        path = write(tmp_path / f"a.en{suffix}", "gut\nü".encode() + b" caf\xe9\n")
        with pytest.raises(UserError, match="iconv") as caught:
            list(read_lines(Path(path)))
        assert f"{path}:2: byte 7 of the line (0xe9) is not UTF-8" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("harm", ["cut", "changed", "never compressed"])
def test_a_damaged_file_is_named(suffix: str, harm: str, tmp_path: Path) -> None:
    text = "".join(f"line {number} {number * number}\n" for number in range(20_000)).encode()
    whole = COMPRESS[suffix](text)
    middle = len(whole) // 2
    broken = {
        "cut": whole[:middle],
        # Bytes that follow one another like these are valid in none of the four formats.
        "changed": whole[:4] + bytes(255 - byte for byte in whole[4:400]) + whole[400:],
        "never compressed": text,
    }
    (tmp_path / f"a{suffix}").write_bytes(broken[harm])
    with pytest.raises(UserError, match=rf"a\{suffix}:\d+: the compressed file is damaged: "):
        list(read_lines(tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_all_parts_of_a_joined_file_are_read(suffix: str, tmp_path: Path) -> None:
    # `cat a.zst b.zst` and parallel compressors make such files.
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](b"a\nb") + COMPRESS[suffix](b"c\nd\n"))
    assert list(read_lines(path)) == ["a", "bc", "d"]
