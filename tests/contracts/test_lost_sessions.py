"""What a restart of PostgreSQL, or a firewall, does to open sessions: they end under the one who holds them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from include.evergreen.errors import Unavailable
from include.evergreen.mart.store import Mart


def end_sessions(postgres: str) -> None:
    """End every session of the database but this one's."""
    engine = sa.create_engine(postgres, poolclass=sa.NullPool)
    with engine.connect() as connection:
        others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        assert connection.scalars(sa.text(others + "and pid <> pg_backend_pid()")).all()


def test_the_next_transaction_takes_a_fresh_session(postgres: str) -> None:
    mart = Mart(postgres)
    mart.create()
    assert mart.champion_history("nobody") == []
    end_sessions(postgres)
    assert mart.champion_history("nobody") == []


def test_a_transaction_that_lost_its_session_is_an_error_and_leaves_nothing(postgres: str) -> None:
    mart = Mart(postgres)
    mart.create()

    def write() -> None:
        with mart.writing() as connection:
            connection.execute(sa.text("create table half (n int)"))
            end_sessions(postgres)
            connection.execute(sa.text("create table whole (n int)"))

    with pytest.raises(Unavailable):
        write()
    assert not sa.inspect(mart.engine).has_table("half")


def test_who_lost_a_lock_hears_of_it_and_does_the_work_again(postgres: str) -> None:
    """Another may have held it since: without an error the work would count as done alone."""
    mart = Mart(postgres)
    mart.create()

    def work() -> None:
        with mart.lock("flight_delay", timeout=5):
            end_sessions(postgres)
            with Mart(postgres).lock("flight_delay", timeout=5):
                pass

    with pytest.raises(Unavailable):
        work()
    with mart.lock("flight_delay", timeout=5):
        pass
