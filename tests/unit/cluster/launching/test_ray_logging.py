"""Ray's messages for developers do not appear among a run's own lines."""

import logging

import pytest

from cluster.launching import ray_logging

POLICY = "ray.train.v2._internal.execution.failure_handling.default"
RAISED = "ray.train.v2._internal.util"


@pytest.fixture(autouse=True)
def levels():
    names = [POLICY, RAISED, *ray_logging._LEVELS]
    before = {name: logging.getLogger(name).level for name in names}
    logging.getLogger(RAISED).setLevel(logging.NOTSET)  # another test may have been a rank that raised
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_in_the_controller_a_failure_is_not_printed_with_the_ranks_traceback():
    ray_logging.quiet()
    assert not logging.getLogger(POLICY).isEnabledFor(logging.INFO)


def test_a_rank_prints_the_traceback_of_a_bug_but_none_of_what_is_raised_on_purpose():
    ray_logging.quiet()
    assert logging.getLogger(RAISED).isEnabledFor(logging.ERROR)
    ray_logging.quiet_traceback()
    assert not logging.getLogger(RAISED).isEnabledFor(logging.ERROR)


def test_the_loggers_that_are_quieted_are_rays_own():
    import ray.train.v2._internal.execution.failure_handling.default as policy
    import ray.train.v2._internal.util as raised

    assert policy.logger.name == POLICY
    assert raised.logger.name == RAISED == ray_logging._RAISED_BY_A_RANK


def test_joining_a_cluster_says_where_it_is_and_nothing_of_signal_handlers():
    said = []
    logger, handler = logging.getLogger("ray._private.worker"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with ray_logging.joining():
            logger.error("SIGTERM handler is not set because current thread is not the main thread.")
            logger.error("Connecting to existing Ray cluster")
        logger.error("SIGTERM handler is not set")
    finally:
        logger.removeHandler(handler)
    assert said == ["Connecting to existing Ray cluster", "SIGTERM handler is not set"]
