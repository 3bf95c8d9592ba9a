"""The control plane's database: one schema for SQLite and PostgreSQL."""
