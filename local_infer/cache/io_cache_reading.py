"""Kept answers read beside the gateway that writes them (`local-infer drill`): nothing is written, not even their use."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from core.config_infer import InferConfig
from core.errors import NearpathError
from local_infer.cache.cache_entry import Entry, unpack
from local_infer.cache.freshness import lifetime_s
from local_infer.cache.io_cache_disk import SCHEMA_VERSION, Store, read_record
from local_infer.io_read_only import connect_read_only


async def open_to_read(config: InferConfig) -> Store | None:
    """Where the gateway of this configuration keeps answers beyond memory; None: nowhere yet. NearpathError."""
    if config.cache.redis is not None:
        from local_infer.cache.io_cache_redis import RedisCache  # 5 MB that nobody else needs

        kept = config.cache
        return _Reading(
            await RedisCache.open(config.cache.redis, kept.redis_password_file, lifetime_s(kept), kept.max_entry)
        )
    file = Path(config.state_dir) / "cache.sqlite"
    if config.cache.disk == 0 or not file.exists():
        return None
    return _Reading(_File(file))


class _Reading:
    """A Store that hands on what is asked of another one, and nothing else."""

    def __init__(self, store: Store | _File) -> None:
        self._store = store

    def may_have(self, key: bytes) -> bool:
        return self._store.may_have(key)

    async def get(self, key: bytes) -> Entry | None:
        return await self._store.get(key)

    def put(self, entry: Entry) -> None:
        """Not kept."""

    def touch(self, key: bytes) -> None:
        """Not noted."""

    async def recent(self, bytes_at_most: int) -> Sequence[Entry]:
        return ()

    def trouble(self) -> str:
        return ""

    async def close(self) -> None:
        await self._store.close()


class _File:
    """The SQLite file. It blocks: for commands, where nobody else is waiting."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._db = connect_read_only(file)
            # Of another version: the gateway would begin a new one.
            self._is_ours: bool = self._db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def may_have(self, key: bytes) -> bool:
        return self._is_ours

    async def get(self, key: bytes) -> Entry | None:
        try:
            record = read_record(self._db, key)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None
        return None if record is None else unpack(key, record)

    async def close(self) -> None:
        self._db.close()

    def _unreadable(self, error: sqlite3.Error) -> NearpathError:
        return NearpathError(f"{self._file} cannot be read ({error})", "run this as the gateway's user")
