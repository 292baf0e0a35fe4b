"""Files and folders that another user may have touched: the one place where they are opened.

The rules of this file: what is opened is judged by its descriptor and not by its name, so that nothing can be put in
its place between a look and a use; a link is never followed where somebody could have planted it; what we make is 0700
or 0600 whatever the umask is; in a folder of another user root works with the rights of that user.
`docs/explanation/security.md` lists who opens what through here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError
from allocator.model.small_files import MAX_FILE_BYTES
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

ELSEWHERE = "remove it, or give another state directory with ALLOCATOR_STATE_DIR"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OpenFolder(Value):
    """A folder by its descriptor.

    Attributes:
        path: Its name, for messages.
        descriptor: The descriptor.
        uid: Its owner; files of others in it are not read.
        gid: Its group.
    """

    path: Path
    descriptor: int
    uid: int
    gid: int

    def entries(self, limit: int) -> dict[str, int]:
        """Return up to `limit` of its names with the time of their last change, in ns."""
        found: dict[str, int] = {}
        with os.scandir(self.descriptor) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
                if len(found) >= limit:
                    break
        return found

    def read(self, name: str) -> str:
        """Return the text of a regular file of the folder's owner.

        Raises:
            OSError: When it cannot be read, is another kind of file, or somebody else's.
            UnicodeDecodeError: When it is not UTF-8.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, "it is a symbolic link", name) from None
            raise
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", name)
            if found.st_uid != self.uid:
                raise PermissionError(errno.EPERM, f"{user_name(found.st_uid)} owns it", name)
            return _content(descriptor, name)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def temporary(self, text: str, *, prefix: str = ".new-", mode: int = 0o600) -> Iterator[str]:
        """Yield the name of a new file with this text, which the caller moves; it is removed at the end.

        Raises:
            OSError: When it cannot be written.
        """
        name = f"{prefix}{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
        descriptor = os.open(name, flags, 0o600, dir_fd=self.descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text.encode())
                file.flush()
            yield name
        finally:
            self.remove(name)

    def move(self, name: str, target: str) -> None:
        """Give a file another name, in place of what has it."""
        os.rename(name, target, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def link(self, name: str, target: str) -> None:
        """Give a file a second name, if no file has that name.

        Raises:
            FileExistsError: When something has it.
        """
        os.link(name, target, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def remove(self, name: str) -> bool:
        """Remove a file; return whether it was there and could be removed."""
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except OSError:
            return False
        return True


@contextlib.contextmanager
def private_folder(path: Path, *, shared: bool = False) -> Iterator[OpenFolder]:
    """Yield a folder of the caller's own, made when it does not exist, that nobody else can enter.

    Args:
        path: The folder.
        shared: Whether others may enter and read it, but not write.

    Raises:
        ConfigurationError: When it is somebody else's, a link or not a folder.
        OSError: When it cannot be made or opened.
    """
    _make(path)
    with _opened(path) as folder:
        if folder.uid != os.geteuid():
            raise _of_another(path, folder.uid)
        mode = stat.S_IMODE(os.fstat(folder.descriptor).st_mode)
        wanted = mode & ~OTHERS_WRITE if shared else 0o700
        if mode != wanted:
            os.fchmod(folder.descriptor, wanted)
        yield folder


@contextlib.contextmanager
def foreign_folder(path: Path, owner: int | None) -> Iterator[OpenFolder]:
    """Yield a folder of any user; inside the block root has no more rights to files than its owner.

    Args:
        path: The folder.
        owner: Who owned it when it was first opened, or None.

    Raises:
        ConfigurationError: When it is a link, not a folder, or another user's than before.
        OSError: When it cannot be opened.
    """
    with _opened(path) as folder:
        if owner not in {None, folder.uid}:
            raise ConfigurationError(
                f"the folder {path} belongs to {user_name(folder.uid)} now and to {user_name(owner or 0)} before; "
                "start the agent again if that is right"
            )
        with rights_of(folder.uid, folder.gid):
            yield folder


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[OpenFolder]:
    try:
        descriptor = os.open(path, _FOLDER_FLAGS)
    except PermissionError:
        owner = os.lstat(path).st_uid
        if owner != os.geteuid():
            raise _of_another(path, owner) from None
        raise
    except NotADirectoryError:
        kind = "a symbolic link" if path.is_symlink() else "not a folder"
        raise ConfigurationError(f"{path} is {kind}, where a folder is needed; {ELSEWHERE}") from None
    try:
        found = os.fstat(descriptor)
        yield OpenFolder(path, descriptor, found.st_uid, found.st_gid)
    finally:
        os.close(descriptor)


def _of_another(path: Path, owner: int) -> ConfigurationError:
    return ConfigurationError(
        f"the folder {path} belongs to {user_name(owner)}, and this is {user_name(os.geteuid())}; {ELSEWHERE}"
    )


def _make(path: Path) -> None:
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):
            one.mkdir(mode=0o700)
            one.chmod(0o700)  # a umask may have taken even the owner's rights


def private_file(path: Path, flags: int = os.O_RDWR) -> int:
    """Return a descriptor of a file of the caller's own, made when it does not exist: to lock, read and write it.

    Args:
        path: The file.
        flags: How it is opened.

    Raises:
        ConfigurationError: When it, or its folder, is somebody else's, a link, or of another kind.
        OSError: When it cannot be made or opened.
    """
    with private_folder(path.parent, shared=True) as folder:
        return own_file(folder, path.name, flags)


def own_file(folder: OpenFolder, name: str, flags: int = os.O_RDWR) -> int:
    """Return a descriptor of a file of the folder's owner, made when it does not exist; as `private_file` otherwise."""
    path = folder.path / name
    try:
        descriptor = os.open(name, flags | os.O_CREAT | _FILE_FLAGS, 0o600, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            kind = "a symbolic link" if error.errno == errno.ELOOP else "not a regular file"
            raise ConfigurationError(f"{path} is {kind}; {ELSEWHERE}") from None
        raise
    found = os.fstat(descriptor)
    why = _why_not_own(found, folder.uid)
    if why:
        os.close(descriptor)
        raise ConfigurationError(f"{path} {why}; {ELSEWHERE}")
    if stat.S_IMODE(found.st_mode) != 0o600:
        os.fchmod(descriptor, 0o600)
    return descriptor


def appendable(path: Path) -> int:
    """Return a descriptor of a file with secrets that is read and written at its end; a new one is 0600.

    Raises:
        ConfigurationError: When it is a link or of another kind, or neither the caller's nor its folder's owner's.
        OSError: When it cannot be made or opened.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = os.fstat(folder).st_uid
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _FILE_FLAGS
        try:
            descriptor = os.open(path.name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ConfigurationError(f"{path} is a symbolic link; name the file itself") from None
            raise
    finally:
        os.close(folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in {os.geteuid(), owner}:
        os.close(descriptor)
        raise ConfigurationError(
            f"{path} is not a regular file, or belongs to {user_name(found.st_uid)}; name another file"
        )
    return descriptor


def _why_not_own(found: os.stat_result, owner: int) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid != owner:
        return f"belongs to {user_name(found.st_uid)}"
    if found.st_nlink != 1:
        return "has a second name somewhere else"
    return ""


def why_not_trusted(found: os.stat_result) -> str:
    """Return why a file that the caller did not name must not be used, or an empty string."""
    if found.st_uid not in {os.geteuid(), 0}:
        return f"{user_name(found.st_uid)} owns it"
    if found.st_mode & stat.S_IWOTH:
        return "everybody may write it"
    if found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid):
        return "its group may write it"
    return ""


def _is_own_group(gid: int) -> bool:
    """Return whether a group has nobody but the caller in it, as on systems that give each user one (umask 002)."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        me, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == me.pw_gid and group.gr_name == me.pw_name and set(group.gr_mem) <= {me.pw_name}


def found_text(path: Path) -> tuple[str, str]:
    """Return the text of a file that was found rather than named, and why it must not be used.

    Raises:
        OSError: When it cannot be read.
        UnicodeDecodeError: When it is not UTF-8.
    """
    found = os.lstat(path)
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in {os.geteuid(), 0}:
        return "", f"it is a link that {user_name(found.st_uid)} made"
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        why = why_not_trusted(found)
        if why:
            return "", why
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return _content(descriptor, str(path)), ""
    finally:
        os.close(descriptor)


def _content(descriptor: int, name: str) -> str:
    parts, size = [], 0
    while part := os.read(descriptor, 65_536):
        parts.append(part)
        size += len(part)
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), name)
    return b"".join(parts).decode("utf-8")


def replace_shared(path: Path, text: str) -> bool:
    """Write a text file that other programs read, in one step; return whether that changed it.

    A file that is there keeps its mode and owner; a new one is 0644. A link is followed only when the caller or root
    made it; in a folder where others may write, a file of somebody else is left alone.

    Raises:
        ConfigurationError: When what is there is not ours to replace.
        OSError: When it cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in {os.geteuid(), 0}:
                raise ConfigurationError(
                    f"{path} is a link that {user_name(found.st_uid)} made, and is not followed; "
                    "remove it, or name another file"
                )
            path = Path(os.path.realpath(path))
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        folder = OpenFolder(path.parent, descriptor, status.st_uid, status.st_gid)
        before = _replaced(folder, path, others_write=bool(status.st_mode & OTHERS_WRITE))
        if before is not None and _same(folder, path.name, text):
            return False
        mode = 0o644 if before is None else stat.S_IMODE(before.st_mode)
        with folder.temporary(text, prefix=f".{path.name}.", mode=mode) as name:
            _finish(folder, name, before)
            folder.move(name, path.name)
    finally:
        os.close(descriptor)
    return True


def _replaced(folder: OpenFolder, path: Path, *, others_write: bool) -> os.stat_result | None:
    try:
        found = os.stat(path.name, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"{path} is not a regular file, and is not replaced; remove it, or name another file")
    if others_write and found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{path} belongs to {user_name(found.st_uid)}, in a folder where others may write; name another file"
        )
    return found


def holds(path: Path, text: str) -> bool:
    """Return whether a regular file, or what a link leads to, has this text; a pipe keeps nobody waiting."""
    return _same(None, os.path.realpath(path), text)


def _same(folder: OpenFolder | None, name: str, text: str) -> bool:
    wanted = text.encode()
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=None if folder is None else folder.descriptor)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            return stat.S_ISREG(found.st_mode) and found.st_size == len(wanted) and file.read(len(wanted)) == wanted
    return False


def _finish(folder: OpenFolder, name: str, before: os.stat_result | None) -> None:
    """Give a new file the owner of the one that it replaces, and write it to the disk (`fsync`)."""
    descriptor = os.open(name, os.O_RDONLY | _FILE_FLAGS, dir_fd=folder.descriptor)
    try:
        if before is not None and os.geteuid() == 0:
            with contextlib.suppress(OSError):  # root of a container, whose map may have no such user
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_name(uid: int) -> str:
    """Return a user as text: `user ana`, or `user 1000` when it has no name."""
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


@contextlib.contextmanager
def rights_of(uid: int, gid: int) -> Iterator[None]:
    """Let this thread of root have the rights of a user to files, inside the block.

    `setfsuid` changes one thread only, where `seteuid` would change all; for as long as it is not 0, the kernel takes
    the capabilities away that pass over the rights of files (capabilities(7)).

    Raises:
        OSError: When the kernel does not allow it: root in a unit or a container without CAP_SETUID.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    import ctypes

    libc = ctypes.CDLL(None)
    before = libc.setfsuid(-1), libc.setfsgid(-1)
    libc.setfsgid(gid)
    libc.setfsuid(uid)
    try:
        if libc.setfsuid(-1) != uid or libc.setfsgid(-1) != gid:
            raise PermissionError(
                errno.EPERM, f"the rights of {user_name(uid)} cannot be taken, which needs CAP_SETUID and CAP_SETGID"
            )
        yield
    finally:
        libc.setfsuid(before[0])
        libc.setfsgid(before[1])
