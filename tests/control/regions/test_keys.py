from relay.control.regions.keys import download_key, master_key
from relay.control.storage.database import Database


async def test_secret_is_generated_once(database: Database) -> None:
    made = await master_key(database)
    assert len(made) == 32
    assert await master_key(database) == made, "addresses that were given stay good"


def test_each_region_has_its_own_key() -> None:
    assert download_key(b"1", "eu") == download_key(b"1", "eu")
    assert len({download_key(b"1", "eu"), download_key(b"1", "us"), download_key(b"2", "eu")}) == 3
