"""How an older journal becomes one of today: a module for each version of its tables (Alembic)."""
