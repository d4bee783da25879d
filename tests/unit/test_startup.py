"""What is checked before anything starts, and what progress says."""

from __future__ import annotations

import pytest

from scheduler import startup
from scheduler.errors import StartupError


def test_a_package_name_that_another_distribution_owns_is_refused() -> None:
    with pytest.raises(StartupError, match=r"airflow-extras also installs .* 'scheduler'"):
        startup.check_names({"scheduler": ["plait", "airflow-extras"]})


def test_our_own_packages_are_no_conflict() -> None:
    startup.check_names({"scheduler": ["plait", "plait"], "handlers": ["plait"]})


def test_progress_counts_ready_replicas_and_says_what_the_others_do() -> None:
    replicas = [
        {"state": "ready", "detail": ""},
        {"state": "starting", "detail": "its worker is loading"},
    ]
    listing = {"models": [{"name": "demo", "desired_replicas": 2, "replicas": replicas}]}

    assert startup.describe(listing) == "demo 1/2 ready (starting: its worker is loading)"


def test_progress_says_what_a_model_without_replicas_waits_for() -> None:
    listing = {"models": [{"name": "demo", "desired_replicas": 1, "replicas": []}]}

    assert startup.describe(listing) == "demo 0/1 ready (waiting for TorchServe)"
