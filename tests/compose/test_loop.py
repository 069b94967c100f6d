"""What the loop left, asserted as on the cluster of processes, on this folder's `outside`."""

from tests.cluster.test_loop import (
    test_each_day_has_a_verdict_and_a_report,
    test_each_scheduled_flight_has_one_prediction_in_the_mart_and_in_the_lake,
    test_every_delivered_row_is_trusted_quarantined_or_duplicate,
    test_no_task_was_tried_twice,
    test_outcomes_join_what_has_matured,
    test_policies_cover_every_object_that_the_loop_wrote,
    test_registry_mart_ledger_and_bytes_agree_on_the_champion,
    test_trainings_ran_on_the_training_worker_and_only_they,
)

__all__ = [
    "test_each_day_has_a_verdict_and_a_report",
    "test_each_scheduled_flight_has_one_prediction_in_the_mart_and_in_the_lake",
    "test_every_delivered_row_is_trusted_quarantined_or_duplicate",
    "test_no_task_was_tried_twice",
    "test_outcomes_join_what_has_matured",
    "test_policies_cover_every_object_that_the_loop_wrote",
    "test_registry_mart_ledger_and_bytes_agree_on_the_champion",
    "test_trainings_ran_on_the_training_worker_and_only_they",
]
