from pathlib import Path

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from relay.control.storage.database import Database
from relay.control.storage.schema import metadata


async def test_migrations_lead_to_the_schema(tmp_path: Path) -> None:
    database = Database(tmp_path / "d")
    await database.open()
    async with database.read() as connection:

        def difference(plain: sa.Connection) -> object:
            return compare_metadata(MigrationContext.configure(plain), metadata)

        assert await connection.run_sync(difference) == []
    await database.close()
