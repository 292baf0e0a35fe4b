"""What a server's last words are taken for."""

from __future__ import annotations

import pytest

from allocator.model.errors import ConfigurationError, StoreUnavailableError
from allocator.store.embedded.log import diagnosis, last_line

PREFIX = "5764:M 24 Nov 2026 11:18:43.422 # "


def reported(directory, *arguments: str, before: str = "") -> Exception:
    log = directory / "server.log"
    log.write_text(before + "".join(f"{PREFIX}{line}\n" for line in arguments))
    error = diagnosis(directory, log, len(before))
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    "text",
    [
        "Bad file format reading the append only file appendonly.aof.1.incr.aof: make a backup of your AOF file",
        "Unknown command 'FOO' reading the append only file appendonly.aof.1.incr.aof",
        "Unrecoverable error reading the append only file appendonly.aof.1.incr.aof: Is a directory",
        "Unable to obtain the AOF file appendonly.aof.1.incr.aof length. stat: No such file or directory",
    ],
)
def test_damage_names_the_file_and_the_way_out(tmp_path, text):
    (tmp_path / "appendonlydir").mkdir()
    file = tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof"
    file.touch()
    error = reported(tmp_path, "Server initialized", text)
    assert isinstance(error, ConfigurationError)
    assert f"{file} is damaged" in str(error)
    assert str(error).endswith(f"mv {tmp_path}/appendonlydir {tmp_path}/appendonlydir.damaged")


def test_the_one_file_of_an_old_server_is_named_too(tmp_path):
    (tmp_path / "appendonly.aof").touch()
    error = reported(tmp_path, "Bad file format reading the append only file: make a backup of your AOF file")
    assert f"{tmp_path}/appendonly.aof is damaged" in str(error)


def test_data_of_a_newer_server_is_not_called_damaged(tmp_path):
    error = reported(
        tmp_path, "Can't handle RDB format version 80", "Error reading the RDB base file x, AOF loading aborted"
    )
    assert isinstance(error, ConfigurationError)
    assert "newer server" in str(error)
    assert "damaged" not in str(error)


@pytest.mark.parametrize("cause", ["No space left on device", "Read-only file system", "Permission denied"])
def test_what_the_disk_refused_is_a_configuration_error(tmp_path, cause):
    error = reported(tmp_path, f"Can't open or create append-only dir appendonlydir: {cause}")
    assert isinstance(error, ConfigurationError)
    assert cause in str(error)


def test_anything_else_is_unavailable_with_its_last_lines(tmp_path):
    error = reported(tmp_path, "Failed listening on unix socket, aborting.")
    assert isinstance(error, StoreUnavailableError)
    assert "(Failed listening on unix socket, aborting.)" in str(error)


def test_lines_of_an_earlier_run_are_not_held_against_this_one(tmp_path):
    earlier = f"{PREFIX}Bad file format reading the append only file x: make a backup\n"
    error = reported(tmp_path, "Out of memory", before=earlier)
    assert "damaged" not in str(error)


def test_a_death_without_a_last_line_is_reported_as_one(tmp_path):
    assert "wrote nothing into its log" in str(reported(tmp_path))
    assert last_line(tmp_path / "no.log") == "its log is empty"
