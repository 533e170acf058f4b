"""S3 that refuses, breaks off, damages and lies: all arrives in the end, whole, and the user knows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest

from heimdall_tracking import MLflowTracker
from heimdall_tracking.errors import ArtifactError
from support import s3
from support.helpers import MIB, PATIENCE_S, SEED, contents, wait_until, write
from support.s3_proxy import (
    PASSING,
    Request,
    S3Proxy,
    any_request,
    begins,
    completes,
    name_of_fault,
    of,
    parts,
    puts,
)

PART = 8 * MIB


class Far:
    """A run whose artifacts go to S3 through a proxy, what was logged to it, and what has arrived."""

    def __init__(
        self, tracker: MLflowTracker, server: s3.S3Server, proxy: S3Proxy, bucket: str, folder: Path
    ) -> None:
        self.tracker, self.server, self.proxy, self.bucket, self.folder = (
            tracker,
            server,
            proxy,
            bucket,
            folder,
        )
        self.logged: dict[str, bytes] = {}
        self.run_id = tracker.start_run()

    def log(self, name: str, content: bytes = b"content"):
        self.logged[name] = content
        return self.tracker.log_artifact(write(self.folder / name, content), "")

    def arrived(self) -> dict[str, bytes]:
        return self.server.objects(self.bucket, f"runs/{self.run_id}/artifacts")

    def check(self, nameless: int = 0) -> None:
        """Assert that everything arrives, whole, and that nothing else is left anywhere.

        Save for uploads whose beginning the store has never confirmed: nobody knows their names to end them,
        but `heimdall gc`.
        """
        self.tracker.flush(PATIENCE_S)
        assert self.arrived() == self.logged
        assert len(self.server.unfinished(self.bucket)) <= nameless
        status = self.tracker.status()
        assert (status.pending, status.parked, status.degraded, status.last_error) == (0, 0, False, None)

    def is_told(self, caplog: pytest.LogCaptureFixture, *words: str) -> Callable[[], bool]:
        """A condition: the user has been told something with these words in it."""

        def told() -> bool:
            # A call that records is what brings the sentences of the background.
            self.tracker.set_tag("waiting", "for words")
            texts = [record.getMessage() for record in caplog.records]
            return any(all(word in text for word in words) for text in texts)

        return told


@pytest.fixture
def far(
    s3_tracker: Callable[..., MLflowTracker],
    s3_server: s3.S3Server,
    proxy: S3Proxy,
    bucket: str,
    tmp_path: Path,
) -> Far:
    return Far(s3_tracker(bucket, proxy), s3_server, proxy, bucket, tmp_path / "source")


def test_what_a_killed_process_had_not_sent_of_a_folder_arrives(far, start_script, uri, tmp_path):
    # Of one call, and so of one place in the journal.
    files = {name: os.urandom(1000) for name in "abcde"}
    for name, content in files.items():
        write(tmp_path / "model" / name, content)
    code = """
        import sys
        from heimdall_tracking import MLflowTracker
        uri, artifacts, endpoint, key, secret, folder = sys.argv[1:]
        tracker = MLflowTracker(
            uri, artifacts, s3_endpoint_url=endpoint, s3_access_key_id=key, s3_secret_access_key=secret
        )
        if folder:
            print(tracker.start_run(), flush=True)
            tracker.log_artifacts_dir(folder, "")
            tracker.log_metric("loss", 1.0)
            sys.stdin.read()
        tracker.flush()
    """
    place = (uri, f"s3://{far.bucket}/runs", far.proxy.url, s3.ACCESS_KEY, s3.SECRET_KEY)
    theirs = tmp_path / "theirs"
    held = far.proxy.strike("hold", lambda it: puts(it) and it.path[-1] in "cde")
    process = start_script(code, *place, tmp_path / "model", HEIMDALL_DIR=theirs)
    run_id = process.stdout.readline().strip()
    arrived = lambda: far.server.objects(far.bucket, f"runs/{run_id}/artifacts")  # noqa: E731
    wait_until(lambda: held.struck == 3 and len(arrived()) == 2, "two of the folder's files have arrived")
    # The position behind them is saved.
    wait_until(lambda: '"next"' in "".join(it.read_text() for it in theirs.rglob("position*")), "it is noted")
    process.kill()
    process.wait(PATIENCE_S)
    far.proxy.heal()
    again = start_script(code, *place, "", HEIMDALL_DIR=theirs)
    told = again.communicate(timeout=PATIENCE_S)[1]
    assert told.count("\n") == told.count("marked FAILED") == 1
    assert arrived() == files


def test_files_of_a_dead_process_are_not_mixed_with_those_on_their_way(far, start_script, uri):
    held = far.proxy.strike("hold", lambda it: puts(it) and "live" in it.path)
    # More than go together, so that some have not begun.
    for number in range(20):
        far.log(f"live-{number}", os.urandom(1000 + number))
    wait_until(lambda: held.struck == 16, "as many are on their way as go together")
    dead = start_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        uri, artifacts, file = sys.argv[1:]
        tracker = MLflowTracker(uri, artifacts, experiment_name="dead", mode="offline")
        run_id = tracker.start_run()
        tracker.log_artifact(file, "")
        tracker.log_metric("loss", 1.0)
        print(run_id, flush=True)
        os._exit(0)
        """,
        uri,
        f"s3://{far.bucket}/runs",
        write(far.folder / "dead", b"of a dead process"),
    )
    run_id = dead.stdout.readline().strip()
    dead.wait(PATIENCE_S)
    flush = Thread(target=far.tracker.flush)
    flush.start()
    there = {"dead": b"of a dead process"}
    folder = f"runs/{run_id}/artifacts"
    wait_until(
        lambda: far.server.objects(far.bucket, folder) == there, "what the dead process has left arrives"
    )
    far.proxy.heal()
    flush.join(PATIENCE_S)
    far.check()
    far.tracker.end_run()
    far.tracker.flush(PATIENCE_S)
    assert far.tracker.get_run_info(far.run_id)["status"] == "FINISHED"
    assert far.tracker.get_run_info(run_id)["status"] == "FAILED"


def test_a_model_that_has_lost_a_file_is_not_registered(far):
    model = far.folder / "model"
    write(model / "MLmodel")
    write(model / "weights")
    far.proxy.strike("refuse", of("model/weights"), status=403, code="AccessDenied")
    far.tracker.log_artifacts_dir(model, "model")
    far.tracker.log_artifact(model / "MLmodel", "other")
    for path in ("model", "model/weights", ""):
        with pytest.raises(ArtifactError, match=r"model/weights was not taken: .*AccessDenied"):
            far.tracker.register_model("lost", f"runs:/{far.run_id}/{path}")
    # Nothing is missing in these.
    for number, path in enumerate(["model/MLmodel", "other"], 1):
        assert far.tracker.register_model("whole", f"runs:/{far.run_id}/{path}") == str(number)
    assert [it.name for it in far.tracker.search_model_versions()] == ["whole"] * 2
    far.proxy.heal()
    far.tracker.log_artifact(model / "weights", "model")
    assert far.tracker.register_model("lost", f"runs:/{far.run_id}/model") == "1"


# Faults that pass.

NAMES = [name_of_fault(fault) for fault in PASSING]


@pytest.mark.parametrize(("name", "details"), PASSING, ids=NAMES)
@pytest.mark.parametrize(("after", "times"), [(0, 1), (0, 6), (2, 3)], ids=["once", "often", "later"])
def test_a_fault_that_passes_costs_nothing(far, name, details, after, times):
    fault = far.proxy.strike(name, puts, times, after, **details)
    far.log("small", os.urandom(200_000))
    far.log("large", os.urandom(20 * MIB))
    for number in range(5):
        far.log(f"{number}", os.urandom(150_000))
    far.check()
    assert fault.struck >= 1


@pytest.mark.parametrize(
    "chooses", [begins, parts, completes, of("large", "HEAD")], ids=["begin", "part", "complete", "look"]
)
@pytest.mark.parametrize(
    ("name", "details"),
    [PASSING[0], PASSING[6], PASSING[9], PASSING[10]],
    ids=[NAMES[0], NAMES[6], NAMES[9], NAMES[10]],
)
def test_no_step_of_an_upload_in_parts_is_one_that_must_not_fail(far, chooses, name, details):
    fault = far.proxy.strike(name, chooses, 5, **details)
    far.log("large", os.urandom(20 * MIB))
    reaches_the_server = chooses is begins and name in ("lose answer", "cut")
    far.check(nameless=5 if reaches_the_server else 0)
    assert fault.struck >= 1


def test_a_part_whose_connection_is_reset_is_the_only_one_that_is_sent_again(far):
    second = far.proxy.strike("reset", lambda it: it.part == 2, 2, at=MIB)
    far.log("large", os.urandom(40 * MIB))
    far.check()
    assert second.struck == 2
    assert sorted(far.proxy.sent_parts()) == [1, 2, 3, 4, 5]


def test_parts_that_arrived_before_an_outage_are_not_sent_again(far):
    far.proxy.strike("refuse", parts, after=3, status=503, code="SlowDown")
    far.log("large", os.urandom(64 * MIB))
    wait_until(lambda: far.tracker.status().degraded, "it is clear that the store takes no more")
    before = far.proxy.sent_parts()
    assert len(before) == 3
    far.proxy.heal()
    far.check()
    assert sorted(far.proxy.sent_parts()) == list(range(1, 9))
    assert len(far.proxy.seen(begins)) == 1


def test_a_server_that_dies_in_the_middle_of_an_upload_gets_the_rest_when_it_is_back(tmp_path, uri):
    with s3.running() as server, S3Proxy(server.port) as proxy:
        bucket = server.create_bucket()
        tracker = MLflowTracker(
            uri,
            f"s3://{bucket}/runs",
            s3_endpoint_url=proxy.url,
            s3_access_key_id=s3.ACCESS_KEY,
            s3_secret_access_key=s3.SECRET_KEY,
        )
        far = Far(tracker, server, proxy, bucket, tmp_path / "source")
        proxy.strike("hold", parts, after=3)
        far.log("large", os.urandom(40 * MIB))
        far.log("small")
        wait_until(lambda: len(proxy.sent_parts()) == 3, "some parts have arrived")
        server.process.kill()
        server.process.wait()
        proxy.heal()
        wait_until(lambda: tracker.status().degraded, "the outage is noticed")
        server.start()
        far.check()


def test_a_store_that_is_not_there_yet_gets_everything_when_it_is(tmp_path, uri, caplog):
    server = s3.S3Server()
    try:
        tracker = MLflowTracker(
            uri,
            "s3://later/runs",
            s3_endpoint_url=server.url,
            s3_access_key_id=s3.ACCESS_KEY,
            s3_secret_access_key=s3.SECRET_KEY,
        )
        run_id = tracker.start_run()
        for number in range(10):
            tracker.log_artifact(write(tmp_path / f"{number}"), "")

        def is_told() -> bool:
            tracker.set_tag("waiting", "for words")
            return "degraded" in caplog.text

        wait_until(is_told, "the outage is told")
        server.start()
        server.create_bucket("later")
        tracker.flush(PATIENCE_S)
        assert len(server.objects("later", f"runs/{run_id}/artifacts")) == 10
        told = [record.getMessage() for record in caplog.records]
        assert sum("degraded" in text for text in told) == 1, told
    finally:
        server.stop()


def test_a_storm_of_faults_costs_nothing(far):
    print(f"HEIMDALL_SEED={SEED}")
    rng, over = random.Random(SEED), Event()

    def strike_at_random() -> None:
        while not over.wait(rng.uniform(0.02, 0.2)):
            name, details = rng.choice(PASSING)
            far.proxy.strike(name, any_request, rng.randrange(1, 6), rng.randrange(4), **details)
        far.proxy.heal()

    storm = Thread(target=strike_at_random)
    storm.start()
    try:
        for number in range(60):
            far.log(f"{number}", rng.randbytes(rng.choice([0, 1000, 300_000])))
            if number % 20 == 0:
                far.log(f"large {number}", rng.randbytes(rng.randrange(17, 30) * MIB))
    finally:
        over.set()
        storm.join()
    # The beginnings of the three large ones may be among what was struck.
    begun = far.proxy.seen(lambda it: begins(it) and it.fault in ("lose answer", "cut"))
    far.check(nameless=len(begun))


# Stores that know or permit less.


def adds_up(request: Request) -> bool:
    """Return whether it has to do with checksums of parts that add up to that of the whole."""
    headers = request.headers
    return "x-amz-checksum-crc64nvme" in headers or headers.get("x-amz-checksum-algorithm") == "CRC64NVME"


@pytest.mark.parametrize(
    ("step", "status", "code"),
    [
        (begins, 400, "InvalidRequest"),
        (begins, 501, "NotImplemented"),
        (begins, 403, "AccessDenied"),
        (parts, 400, "InvalidRequest"),
        (parts, 501, "NotImplemented"),
    ],
)
def test_a_store_that_does_not_know_checksums_that_add_up_gets_others(far, step, status, code):
    refusal = far.proxy.strike("refuse", lambda it: step(it) and adds_up(it), status=status, code=code)
    far.log("first", os.urandom(20 * MIB)).wait(PATIENCE_S)
    asked = refusal.met
    # Later runs know as well what a store does not support.
    far.tracker.end_run()
    far.run_id = far.tracker.start_run()
    content = far.logged.pop("first")
    far.log("second", content)
    far.check()
    assert refusal.met == asked >= 1
    taken = [it for it in far.proxy.seen(parts) if it.status == 200]
    assert len(taken) == 6
    assert all("x-amz-checksum-sha256" in it.headers for it in taken)


def test_a_store_that_cannot_complete_what_adds_up_gets_others(far):
    refusal = far.proxy.strike("refuse", completes, 1, status=400, code="InvalidRequest")
    far.log("large", os.urandom(20 * MIB))
    far.check()
    assert refusal.struck == 1
    assert [adds_up(it) for it in far.proxy.seen(parts)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("status", [403, 400, 405, 501])
@pytest.mark.parametrize("what", ["checksums", "anything"])
def test_who_may_only_write_may_send_all_the_same(far, what, status):
    def looks(request: Request) -> bool:
        return request.method == "HEAD" and (what == "anything" or "x-amz-checksum-mode" in request.headers)

    refusal = far.proxy.strike("refuse", looks, status=status, code="AccessDenied")
    far.log("large", os.urandom(20 * MIB))
    far.check()
    assert refusal.struck >= 1


# Stores that lie.

# A CRC-64/NVME, of no bytes.
NOTHING = "AAAAAAAAAAA="


@pytest.mark.parametrize(
    ("size", "header"),
    [(1000, {"x-amz-checksum-sha256": "A" * 43 + "="}), (20 * MIB, {"x-amz-checksum-crc64nvme": NOTHING})],
    ids=["whole", "in parts"],
)
def test_an_answer_with_another_checksum_is_never_taken(far, caplog, size, header):
    lie = far.proxy.strike("lie", puts, headers=header)
    upload = far.log("file", os.urandom(size))
    wait_until(far.is_told(caplog, "degraded", "sent"), "the lie is told")
    assert not upload.done
    assert lie.struck
    assert "sent" in far.tracker.status().last_error
    far.proxy.heal()
    far.check()
    assert upload.done


def test_a_part_with_another_etag_does_not_become_an_object_that_is_incomplete(far):
    far.proxy.strike("lie", parts, 2, headers={"ETag": '"00000000000000000000000000000000"'})
    far.log("large", os.urandom(40 * MIB))
    far.check()


@pytest.mark.parametrize("has_sums", [True, False])
def test_a_store_that_shows_a_file_later_than_it_takes_it_has_it(far, has_sums):
    if not has_sums:
        far.proxy.strike("refuse", begins, times=1, status=501, code="NotImplemented")
    far.proxy.strike("refuse", of("late.bin", "HEAD"), status=404, code="NoSuchKey")
    far.log("late.bin", os.urandom(2 * PART + 5))
    far.check()
    assert sorted(far.proxy.sent_parts()) == [1, 2, 3]


def test_parts_that_have_become_other_bytes_are_sent_again(far):
    far.proxy.strike("lie", of("large", "HEAD"), headers={"x-amz-checksum-crc64nvme": NOTHING})
    far.log("large", os.urandom(20 * MIB))
    far.check()
    assert [adds_up(it) for it in far.proxy.seen(parts)] == [True] * 3 + [False] * 3


def test_bytes_that_are_damaged_on_their_way_never_become_an_object(far):
    damage = far.proxy.strike("damage", puts, 4)
    far.log("small", os.urandom(1000))
    far.log("large", os.urandom(20 * MIB))
    far.check()
    assert damage.struck == 4


# Faults that the user can mend.


@pytest.mark.parametrize("status", [403, 400])
def test_a_clock_that_is_wrong_is_named(far, caplog, status):
    far.proxy.strike("refuse", status=status, code="RequestTimeTooSkewed")
    far.log("file")
    wait_until(far.is_told(caplog, "degraded", "clock"), "the clock is named")
    assert far.tracker.status().pending
    far.proxy.heal()
    far.check()


def test_a_bucket_that_does_not_exist_is_named_and_gets_everything_once_it_does(
    s3_tracker, s3_server, proxy, tmp_path, caplog
):
    far = Far(s3_tracker("not-yet-there", proxy), s3_server, proxy, "not-yet-there", tmp_path / "source")
    far.log("small")
    far.log("large", os.urandom(20 * MIB))
    wait_until(far.is_told(caplog, "degraded", "bucket"), "the bucket is named")
    far.tracker.end_run()
    assert "not-yet-there" in caplog.text
    s3_server.create_bucket("not-yet-there")
    far.check()
    assert sum("degraded" in record.getMessage() for record in caplog.records) == 1


WRONG_KEYS = [(s3.ACCESS_KEY, "another-secret"), ("NOBODYKNOWSME", "another-secret")]


@pytest.mark.parametrize(("key", "secret"), WRONG_KEYS, ids=["secret", "key"])
def test_wrong_keys_are_told_once_and_all_is_kept_for_a_start_with_the_right_ones(
    s3_tracker, s3_server, proxy, bucket, tmp_path, caplog, start_script, uri, heimdall_dir, key, secret
):
    for number in range(5):
        write(tmp_path / "source" / f"{number}", os.urandom(100_000))
    script = start_script(
        """
        import sys, logging
        from heimdall_tracking import MLflowTracker

        logging.basicConfig(format="%(message)s")
        uri, artifacts, endpoint, key, secret, source = sys.argv[1:]
        tracker = MLflowTracker(
            uri, artifacts, s3_endpoint_url=endpoint, s3_access_key_id=key, s3_secret_access_key=secret,
            experiment_name="s3",
        )
        print(repr(tracker), tracker.start_run())
        handles = [tracker.log_artifacts_dir(source, f"{number}") for number in range(3)]
        while not tracker.status().degraded:
            pass
        print(handles, tracker.status(), tracker.status().last_error)
        """,
        uri,
        f"s3://{bucket}/runs",
        proxy.url,
        key,
        secret,
        tmp_path / "source",
        HEIMDALL_EXIT_TIMEOUT=4,
    )
    out, err = script.communicate(timeout=PATIENCE_S)
    assert script.returncode == 0, err
    assert err.count("degraded") == 1, err
    assert "AWS_SECRET_ACCESS_KEY" in err
    assert s3_server.keys(bucket) == []
    kept = b"".join(contents(heimdall_dir).values())
    for place in (out, err, kept.decode(errors="replace")):
        assert secret not in place
    assert s3.SECRET_KEY not in kept.decode(errors="replace")

    tracker = s3_tracker(bucket, proxy)
    tracker.flush(PATIENCE_S)
    expected = contents(tmp_path / "source")
    found = s3_server.objects(bucket)
    assert len(found) == 15
    for name, content in found.items():
        assert expected[name.rpartition("/")[2]] == content
    assert tracker.status().parked == 0


@pytest.mark.parametrize("size", [1000, 20 * MIB], ids=["whole", "in parts"])
def test_an_object_that_the_store_forbids_is_parked_and_the_rest_arrives(far, caplog, heimdall_dir, size):
    far.proxy.strike("refuse", of("forbidden"), status=403, code="AccessDenied")
    content = os.urandom(size)
    far.log("before")
    forbidden = far.log("forbidden", content)
    for number in range(5):
        far.log(f"{number}")
    far.tracker.log_metrics({"loss": 1.0}, step=1)
    far.tracker.flush(PATIENCE_S)
    del far.logged["forbidden"]
    assert far.arrived() == far.logged
    assert far.server.unfinished(far.bucket) == []
    status = far.tracker.status()
    assert (status.pending, status.parked) == (0, 1)
    with pytest.raises(ArtifactError, match="forbidden"):
        forbidden.wait(PATIENCE_S)
    told = [record.getMessage() for record in caplog.records]
    assert sum("forbidden" in text for text in told) == 1, told
    # The user still has the bytes.
    assert content in contents(heimdall_dir / "dead_letter").values()
    assert far.tracker.get_run(far.run_id).metrics == {"loss": 1.0}


def test_an_endpoint_may_have_a_path(s3_tracker, s3_server, bucket, tmp_path):
    with S3Proxy(s3_server.port, prefix="/deep/s3") as proxy:
        for slash in ("", "/"):
            settings = {"s3_endpoint_url": proxy.url + slash}
            far = Far(
                s3_tracker(bucket, proxy, **settings), s3_server, proxy, bucket, tmp_path / f"source{slash}"
            )
            far.log("small")
            far.log("large", os.urandom(20 * MIB))
            far.check()
            far.tracker.end_run()
        assert all(request.path.startswith(f"/{bucket}/runs/") for request in proxy.seen())


# Secrets.


def test_no_key_is_in_anything_that_is_written_or_shown(
    s3_tracker, s3_server, proxy, bucket, tmp_path, heimdall_dir, caplog, capfd
):
    caplog.set_level("DEBUG")
    tracker = s3_tracker(bucket, proxy)
    tracker.start_run()
    proxy.strike("refuse", of("denied"), status=403, code="AccessDenied")
    proxy.strike("refuse", of("skewed"), times=8, status=403, code="RequestTimeTooSkewed")
    handles = [
        tracker.log_artifact(write(tmp_path / "source" / name), "") for name in ("fine", "denied", "skewed")
    ]
    tracker.log_artifact(write(tmp_path / "source" / "large", os.urandom(20 * MIB)), "")
    shown = [repr(tracker), repr(tracker.status()), repr(handles), str(tracker.status().last_error)]
    during = dict(contents(heimdall_dir))
    tracker.flush(PATIENCE_S)
    with pytest.raises(ArtifactError, match="denied") as refused:
        handles[1].wait(PATIENCE_S)
    shown += [str(refused.value), repr(tracker.status()), caplog.text, *capfd.readouterr()]
    written = {**during, **contents(heimdall_dir)}
    assert written
    assert not any(s3.SECRET_KEY in text for text in shown)
    assert not any(s3.SECRET_KEY.encode() in content for content in written.values())
